"""The comparison against outside peers: a tiny run on 2 ranks, the figures' arithmetic, and the page's markers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi import LAUNCHER_VARIABLES, find_mpiexec

from aristos import results

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
SHAPES = "24/16/32/4/2,5/8/8/2/1"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bench/ importable, as for a script in it."""
    monkeypatch.syspath_prepend(str(BENCH))


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    """compare.py on 2 ranks, with its output."""
    mpiexec = find_mpiexec()
    if not mpiexec:
        pytest.skip("no mpiexec beside python or on PATH: pip install mpich")
    env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env.setdefault("HYDRA_IFACE", "lo")
    command = [*mpiexec, "-n", "2", sys.executable, str(BENCH / "compare.py"), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)


@pytest.mark.slow
def test_help_and_errors_are_printed_once() -> None:
    done = launch("--help")
    assert done.returncode == 0
    assert done.stdout.count("usage: ") == 1
    done = launch("--rounds", "x")
    assert done.returncode == 2
    assert done.stderr.count("invalid int value: 'x'") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("script", "options"), [("nodes.py", ("--shapes", "--rounds")), ("crowded.py", ("--rounds",))])
def test_the_other_scripts_have_help(script: str, options: tuple[str, ...]) -> None:
    command = [sys.executable, str(BENCH / script), "--help"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for option in options:
        assert re.search(rf"^  {option} \w+ +\w.*\(\S+\)$", done.stdout, re.MULTILINE), done.stdout  # with its default


@pytest.mark.slow
def test_a_small_run_checks_every_peer_and_writes_file_page_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, out = tmp_path / "page.md", tmp_path / "compare.h5"
    page.write_text("# Mine\n\nbefore\n")
    done = launch(
        *("--shapes", SHAPES, "--rounds", "2", "--iters", "3", "--no-micro", "--page", str(page), "--out", str(out))
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text()
    assert text.startswith("# Mine\n\nbefore\n")
    assert "Aristos fused" in text
    assert "24/16/32/4/2" in text
    assert (tmp_path / "performance.png").read_bytes().startswith(b"\x89PNG")

    (run,) = results.load(out).runs
    assert "bench/compare.py" in run.attributes["command"]
    tables = {table.name: table for table in run.tables}
    table = tables["shape-24-16-32-4-2"]
    peers = table.dims["peer"].values.tolist()
    assert peers[:3] == ["fused", "bulk", "numpy"]
    assert table.variables["seconds"].values.shape == (len(peers), 2, 3, 2)
    assert (table.variables["seconds"].values > 0).all()
    for peer, error in zip(peers, table.variables["error"].values):
        assert error < (3e-2 if peer.startswith("bf16") else 1e-5)
    assert table.attributes["fused_and_bulk_equal_bits"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("--shapes", "Q"), ("--peers", "nobody"), ("--rounds", "0"), ("--shapes", "1/2/3/4")], ids=" ".join
)
def test_usage_errors(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "compare.py"), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert words[1] in done.stderr or "must be" in done.stderr or "at least" in done.stderr


@pytest.mark.usefixtures("bench")
def test_ratios_are_formed_within_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    import figures
    import jobs
    import rounds

    m = rounds.ShapeResults(jobs.SHAPES["A"], 2, iters=3)
    drift = np.array([1.0, 10.0, 2.0])[:, None, None]  # a busy machine slows both alike
    m.times = {"fused": drift * np.ones((3, 3, 2)), "numpy": drift * 1.5 * np.ones((3, 3, 2))}
    m.times["fused"][:, :, 1] *= 0.5  # only the slowest rank counts
    assert figures.ratio(m, "numpy") == figures.Spread(1.5, 1.5, 1.5)
    assert figures.ratio(m, "bulk") is None

    m.busiest, m.mean, m.peak = np.full(3, 90e9), np.full(3, 80e9), 100 / drift[:, :, 0] * np.ones((3, 2))
    assert figures.peak_share(m).median == pytest.approx(0.9)
    assert figures.gflops(m, "fused").high == pytest.approx(80)

    families = "avx512", "avx512 on znver4", "avx2", "generic"
    monkeypatch.setattr(figures, "PRODUCT_SHARE", dict.fromkeys(families, 0.86))
    rates = {64: np.stack([90 / drift[:, :, 0], 100 / drift[:, :, 0]]), 128: np.full((2, 3, 1), 100.0)}
    rates[128][0] = 80
    found = {f.what: f for f in figures.figures([m], {8: [0.3, 0.5, 0.35]}, "", rates)}
    assert found["A: fused over the best of NumPy and torch"].met
    assert not found["A: fused over bulk"].met
    shares = [f.reached.median for what, f in found.items() if what.startswith("product of")]
    assert shares == pytest.approx([90, 80])
    m.times["torch-loop"] = drift * 1.02 * np.ones((3, 3, 2))
    assert figures.over_best(m).median == pytest.approx(1.02)
    assert found["8 bytes + signal, there and back"].met
    assert not found["4 KB row + signal, there and back"].met


@pytest.mark.usefixtures("bench")
def test_rates_of_products_are_kept(tmp_path: Path) -> None:
    import save

    out = tmp_path / "compare.h5"
    save.save(out, [], [], {}, {8: [0.5]}, {64: np.full((2, 3, 2), 90.0), 128: np.full((2, 3, 2), 100.0)})
    (run,) = results.load(out).runs
    table = {table.name: table for table in run.tables}["products"]
    assert table.variables["product"].values.shape == (2, 3, 2)
    assert table.variables["product"].values[0, 0, 0] == 90e9


@pytest.mark.usefixtures("bench")
def test_wrong_outputs_are_neither_timed_nor_hidden() -> None:
    import figures
    import jobs
    import report
    import rounds

    m = rounds.ShapeResults(jobs.SHAPES["C"], 2, iters=1, errors={"fused": 1e-7, "numpy": float("nan")})
    m.busiest = m.mean = np.ones(1)
    m.times = {"fused": np.ones((1, 1, 2))}
    assert m.wrong() == ["numpy"]
    text = report.markdown([m], figures.figures([m], {}, "left out", {}), [], None)
    assert "Alltoallv + NumPy gave WRONG outputs on C" in text


@pytest.mark.usefixtures("bench")
def test_splice_keeps_the_text_around_the_markers_and_other_families(tmp_path: Path) -> None:
    import report

    page = tmp_path / "docs" / "performance.md"
    report.splice(page, "one", "amx, x")
    page.write_text(page.read_text() + "\n\nafter\n")
    report.splice(page, "other", "avx2, y")
    report.splice(page, "two", "amx, x")
    text = page.read_text()
    assert "one" not in text
    assert text.startswith("# Performance")
    assert text.endswith("\n\nafter\n")
    first, last = report.BEGIN.format("amx, x"), report.END.format("amx, x")
    assert text.count("two") == text.count(first) == text.count(last) == 1
    assert text.count("other") == 1 + text.count("others")
    assert text.index("two") < text.index("## On avx2, y") < text.index("other") < text.index("after")
    page.write_text(text.replace(last, ""))
    with pytest.raises(ValueError, match="both markers or none"):
        report.splice(page, "three", "amx, x")


@pytest.mark.usefixtures("bench")
def test_missing_torch_is_reported_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import jobs
    import peers
    import rounds

    class One:
        size, rank = 1, 0

        def allgather(self, value: object) -> list[object]:
            return [value]

        def Allreduce(self, mine: np.ndarray, out: np.ndarray) -> None:
            out[:] = mine

    monkeypatch.setitem(sys.modules, "torch", None)
    job = jobs.make_job(One(), jobs.parse_shape("4/4/4/2/1"), seed=0)
    m = rounds.ShapeResults(job.shape, 1)
    assert rounds.make_peers(One(), job, [peers.ENTRIES["torch-loop"]], m) == {}
    assert "torch is not installed" in m.absent["torch-loop"]
