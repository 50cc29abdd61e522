"""bench/gpu_report.py without a GPU: its messages, and the report of invented runs."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
try:
    import gpu_report
finally:
    sys.path.pop(0)

from simt_gpu import on_ranks

from aristos import results
from aristos.bench import suites
from aristos.bench.gpu import clock
from aristos.errors import EnvironmentProblem

FACTS = {"card": "A card", "card_arch": "sm_90", "driver_version": "580.1", "sm_clock_mhz": 1980}
PRINT = "import json, sys; print(json.dumps({document!r}))"


def suite(**rows):
    return {"suites": {name: {"ok": True, "tables": [{"title": f"{name} here", "rows": given, "notes": ["a note"]}]}
                       for name, given in rows.items()}}  # fmt: skip


def part(name, code, limit=20.0):
    return gpu_report.Part(name, ("-c", code), limit)


GEMM = suite(gemm=[{"rows": 16, "share": 0.2, "check": "ok"}, {"rows": 1024, "share": 0.71, "check": "ok"}])
PUT = suite(
    put=[{"way": "both ways", "share": s, "check": "ok"} for s in (0.9, 0.8)] + [{"way": "one way", "share": 0.1}],
    signal=[{"row_bytes": 16, "median_us": 4.5, "check": "ok"}],
)
LAYER = suite(layer=[{"tokens": 64, "what": "aristos graph", "speedup": 2.0, "check": "FAILED"}])


def test_without_a_gpu(monkeypatch, capsys, tmp_path):
    def none():
        raise EnvironmentProblem("cuDeviceGetCount: no GPU is visible")

    monkeypatch.setattr(gpu_report, "gpu_facts", none)
    assert gpu_report.main(["--out", str(tmp_path / "r")]) == 3
    assert capsys.readouterr().err == "no GPU to report on: cuDeviceGetCount: no GPU is visible\n"
    assert not list(tmp_path.iterdir())


def test_a_missing_routing_file_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        gpu_report.main(["--routing", "nowhere.npz"])
    assert "no such file: --routing nowhere.npz" in capsys.readouterr().err


def test_the_report_names_failed_parts_and_figures(monkeypatch, capsys, tmp_path):
    """It names a part that failed and one that did not end; wrong results give no figures."""
    monkeypatch.setattr(gpu_report, "gpu_facts", lambda: FACTS)
    monkeypatch.setattr(gpu_report, "BEAT", 0.2)
    monkeypatch.setattr(gpu_report, "PARTS", (
        part("products against float64", "import sys; print('x: 1 WRONG'); sys.exit(1)"),
        part("put and signal", PRINT.format(document=PUT)),
        part("gemm", PRINT.format(document=GEMM)),
        part("layer", PRINT.format(document=LAYER)),
        part("tests/gpu", "import time; time.sleep(60)", limit=1.0),
    ))  # fmt: skip
    stem = tmp_path / "report"
    assert gpu_report.main(["--out", str(stem)]) == 1
    page = stem.with_suffix(".md").read_text()
    page = re.sub(r"\| \d+ \| x: 1 WRONG", "| N | x: 1 WRONG", page)  # its seconds depend on other load
    for line in (
        "# Aristos on A card",
        "- driver_version: 580.1",
        "| bf16 product, 8 experts x 1024 rows, 4096 x 14336, over cuBLAS | 0.85 of cuBLAS | 0.71 of cuBLAS | no |",
        "over the copy | 0.85 of the copy | 0.8 of the copy | no |",
        "| put + signal there and back, 16 bytes | 6 us | 4.5 us | yes |",
        "| layer over the unfused chain, 64 tokens | 1.5 x | not measured | - |",
        "| products against float64 | FAILED (1) | N | x: 1 WRONG |",
        "| tests/gpu | no end after 1 s | 1 |  |",
        "## gemm here",
        "- a note",
    ):
        assert line in page
    (run,) = results.load(stem.with_suffix(".h5")).runs
    assert run.attributes["card"] == "A card"
    assert list(run.tables[0].variables["outcome"].values) == [
        "FAILED (1)", "ok", "ok", "ok", "no end after 1 s",
    ]  # fmt: skip
    assert "tests/gpu: 0 s" in capsys.readouterr().err


def test_the_report_of_several_gpus(monkeypatch, tmp_path):
    """Under mpirun every part runs in this process, on all ranks; the page names every GPU."""
    from aristos.bench import main

    monkeypatch.setattr(gpu_report, "gpu_facts", lambda: FACTS | {"card_uuid": "GPU-1"})
    monkeypatch.setattr(gpu_report.launch_environment, "started_as", lambda: ("mpirun", 2, 0))
    monkeypatch.setattr(gpu_report, "check_products", lambda: print("bf16_16x128: 1e-3 ok") or 0)
    seen = []

    def bench(words):
        seen.append(words)
        print(json.dumps(PUT if words[0] == "put" else LAYER))
        return 0 if words[0] != "exchange" else 1

    monkeypatch.setattr(main, "main", bench)
    stem = tmp_path / "report"
    assert gpu_report.main(["--out", str(stem)]) == 1
    page = stem.with_suffix(".md").read_text()
    for line in (
        "- gpus: A card GPU-1",
        "| products against float64 | ok | 0 | bf16_16x128: 1e-3 ok |",
        "| exchange | FAILED (1) |",
        "| put + signal there and back, 16 bytes | 6 us | 4.5 us | yes |",
    ):
        assert line in page
    assert [words[0] for words in seen] == ["put", "layer", "exchange", "idle"]
    assert all("cuda" in words and str(stem.with_suffix(".h5")) in words for words in seen)


@pytest.mark.parametrize(("arch", "goal"), [("sm_80", 0.6), ("sm_90", 0.85), ("sm_100", 0.6)])
def test_the_goal_is_higher_with_warpgroup_products(arch, goal):
    found = {figure.part: figure.goal for figure in gpu_report.figures(arch)}
    assert found["gemm"] == goal


def test_a_part_beyond_its_limit_ends_with_its_children(tmp_path):
    """The ranks of a hung test would otherwise hold the GPU."""
    marks = tmp_path / "child"
    child = f"import time; time.sleep(3); open({str(marks)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert gpu_report.run(part("it", code, limit=1.0), tmp_path / "none.h5", 1.0, lambda text: None).code is None
    time.sleep(3)
    assert not marks.exists()


def test_parts_can_be_parsed_and_figures_name_existing_parts(tmp_path):
    """The command lines of the parts are valid, and all GPU suites but `plan` are timed."""
    from aristos.bench.command_line import parse

    names, timed = {each.name for each in gpu_report.PARTS}, set()
    assert {figure.part for figure in gpu_report.figures("sm_90")} <= names
    trace = tmp_path / "trace.npz"
    trace.touch()
    for each in (*gpu_report.PARTS, gpu_report.replayed(trace)):
        if "aristos.bench" in each.words:
            asked = parse([*each.words[2:-1], "none"])
            assert asked.backend == "cuda"
            assert asked.json
            timed |= set(asked.suites)
    assert timed == set(suites.known("cuda")) - {"plan"}  # which needs several GPUs
    for each in gpu_report.TOGETHER:
        assert parse([*each.words, "--backend", "cuda", "--json", "--out", "none"]).budget <= each.limit
    assert sum(float(each.words[each.words.index("--seconds") + 1]) for each in gpu_report.TOGETHER) < 200
    assert sum(each.limit for each in gpu_report.PARTS) > gpu_report.SECONDS, "a limit is for a part that hangs"


@pytest.mark.slow
@pytest.mark.parallel
def test_the_product_check_covers_the_tiles_of_each_kind(monkeypatch, capsys):
    """The check itself, on the PTX machine, for the two smallest tiles of each kind."""
    from aristos.kernels.cuda import gemm

    monkeypatch.setattr(clock, "FLUSH", 1 << 12)
    all_tiles = gemm.tiles
    monkeypatch.setattr(gemm, "tiles", lambda kind, arch: all_tiles(kind, arch)[:2])
    assert on_ranks(1, lambda comm, rank: gpu_report.check_products()) == [0]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "f32_16x64", "f32_64x64", "tf32_16x128", "tf32_32x128", "bf16_wgmma_64x128", "bf16_wgmma_128x128",
        "f16_wgmma_64x128", "f16_wgmma_128x128",
    ]  # fmt: skip
    assert all(line.endswith("ok") for line in said)
