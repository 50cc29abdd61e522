"""`python -m aristos.bench` as a user runs it on two ranks: tables, files and pictures. Times are not checked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from benchmarks import PATCH, SMALL, bench, needs_mpiexec
from mpi import find_mpiexec

from aristos import results
from aristos.bench import plots, suites
from aristos.bench.plots import simulate as simulated

pytestmark = [pytest.mark.slow, pytest.mark.parallel]

CPU_PICTURES = {  # of the tables that the suites write on CPUs
    name: each
    for name, each in plots.pictures().items()
    if not name.endswith("_cuda") and name not in simulated.PICTURES
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    """A recorded routing."""
    file = tmp_path_factory.mktemp("bench") / "trace.npz"
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((60, 3, 8)), axis=-1)[..., :2].astype(np.uint8)
    np.savez(file, expert_ids=ids, gate_weight=np.full(ids.shape, 0.5, np.float16), seq_lens=[20, 40])
    return file


@pytest.fixture(scope="module")
def watched(trace) -> tuple[Path, dict, str]:
    """One run of every suite on 2 ranks: its folder, the JSON document, and what it wrote to stderr."""
    if not find_mpiexec():
        pytest.skip("no mpiexec beside python or on PATH")
    folder = trace.parent
    words = [*suites.known(), *SMALL, "--routing", str(trace), "--json"]
    words += ["--alpha", "2us,1ms", "--rate", "10GB/s"]  # of `overlap`: 2 points instead of 12
    words += ["--seconds", "40"]  # of all suites, instead of 25 of each; `exchange` may leave out larger blocks
    words += ["--watch", "--moves", "tokens", "--out", str(folder / "r.h5"), "--timeline", str(folder / "t.json")]
    done = bench(2, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def whole(watched) -> tuple[Path, dict]:
    return watched[:2]


def test_watch_says_how_long_the_last_calls_took(watched):
    """The times are printed as lines, because stderr is no terminal here."""
    lines = re.findall(
        r"^# (\w+): .*: median of [12] ranks [0-9.]+ ms, slowest rank [01] [0-9.]+ ms$", watched[2], re.M
    )
    assert {"layer", "gemm"} & set(lines)


def test_every_suite_ran_and_was_right(whole):
    _, document = whole
    assert document["ok"] is True
    assert list(document["suites"]) == list(suites.known())
    for name, suite in document["suites"].items():
        assert suite["ok"], name
        for table in suite["tables"]:
            assert table["rows"], name
            for row in table["rows"]:
                assert row.get("check", "ok") == "ok", (name, row)
                if "error" in row:
                    assert 0 < row["error"] < 1e-5, (name, row)
    assert document["environment"]["ranks"] == 2


def test_the_file_has_raw_times_of_all_ranks(whole):
    folder, document = whole
    (run,) = results.load(folder / "r.h5").runs
    tables = {table.name: table for table in run.tables}
    assert set(tables) == set(CPU_PICTURES)
    call = tables["layer"].variables["call_time"]
    assert call.dims == ("tokens", "schedule", "rank", "iteration")
    assert call.units == "s"
    assert call.values.shape == (2, 2, 2, 4)
    assert (call.values > 0).all()
    core = tables["layer"].variables["core_share"]
    assert core.dims == call.dims
    assert ((core.values >= 0) & (core.values <= 1)).all()
    fused = next(r for r in document["suites"]["layer"]["tables"][0]["rows"] if r["schedule"] == "fused")
    schedule = list(tables["layer"].dims["schedule"].values).index("fused")
    assert np.median(call.values[0, schedule].max(axis=0)) * 1e3 == pytest.approx(fused["median_ms"])
    assert run.attributes["seed"] == 0
    assert run.attributes["finished"]
    assert run.attributes["versions.numpy"] == np.__version__
    assert "aristos.bench" in run.attributes["command"]


def test_every_table_and_heading_names_the_kernels_that_ran(whole):
    folder, document = whole
    (run,) = results.load(folder / "r.h5").runs
    isa = run.attributes["isa"]
    for table in run.tables:
        computes = table.suite not in ("put", "signal", "exchange", "progress")
        assert table.attributes["isa"] == isa
        assert ("dtype" in table.attributes) == computes, table.name
        assert all(each["title"].endswith(f", {isa}") for each in document["suites"][table.suite]["tables"])


OTHER_TYPE = """
import dataclasses, aristos, aristos.bench.workload as w
class Float32(aristos.MoE):
    def __init__(self, cfg, *a, **k): super().__init__(dataclasses.replace(cfg, dtype="float32"), *a, **k)
aristos.MoE, w.Workload.typed = Float32, lambda work, call: call
"""


@needs_mpiexec
def test_layers_of_another_element_type_than_asked_for_are_caught_in_every_suite(trace):
    names = ("layer", "idle", "replay", "plan", "overlap")
    words = [*names, *SMALL, "--dtype", "bfloat16", "--routing", str(trace), "--json", "--out", "none"]
    done = bench(2, *words, "--alpha", "1us", "--rate", "100GB/s", code=PATCH + OTHER_TYPE + "sys.exit(main())")
    assert done.returncode == 1, done.stderr
    for name, suite in json.loads(done.stdout)["suites"].items():
        assert not suite["ok"], name
        for table in suite["tables"]:
            assert ", float32, " in table["title"], name
            assert any("bfloat16 highest was asked for, but float32 highest ran" in note for note in table["notes"]), (
                name
            )


def test_idle_measures_tokens_that_move_and_those_that_need_not(whole):
    folder, document = whole
    (run,) = results.load(folder / "r.h5").runs
    table = next(table for table in run.tables if table.name == "idle")
    call = table.variables["call_time"]
    assert call.dims == ("pattern", "schedule", "moves", "rank", "iteration")
    assert list(table.dims["moves"].values) == ["tokens", "auto"]
    measured = np.isfinite(call.values).all(axis=(0, 3, 4))
    assert dict(zip(table.dims["schedule"].values, measured.tolist())) == {"bulk": [True, False], "fused": [True, True]}
    rows = document["suites"]["idle"]["tables"][0]["rows"]
    assert {(r["schedule"], r["moves"]) for r in rows} == {("bulk", "tokens"), ("fused", "tokens"), ("fused", "auto")}
    assert all(r["kept"] == 0 for r in rows if r["moves"] == "tokens")
    assert all(r["over_even"] == 1 for r in rows if r["pattern"] == "uniform")
    assert len({r["rows"] for r in rows}) == 1
    assert sum("recorded, layer" in r["pattern"] for r in rows) == 3 * 3


def drawn(figure) -> np.ndarray:
    """All numbers of a picture: of its lines, bars, points and images."""
    found = []
    for axis in figure.axes:
        found += [np.asarray(line.get_ydata(), float) for line in axis.lines]
        found += [np.array([each.get_height()]) for each in axis.patches if hasattr(each, "get_height")]
        found += [np.asarray(each.get_offsets(), float).ravel() for each in axis.collections]
        found += [np.ma.filled(image.get_array().astype(float), np.nan).ravel() for image in axis.images]
    return np.concatenate(found)


SHOWN = {  # suite -> columns of its table, and the factor with which its pictures show them
    "put": {"latency_us": 1, "bandwidth_gbs": 1, "fitted_us": 1},
    "signal": {"round_trip_us": 1, "million_per_s": 1},
    "exchange": {
        "one_sided_median_us": 1,
        "alltoall_median_us": 1,
        "alltoallv_median_us": 1,
        "one_sided_busbw_gbs": 1,
        "alltoallv_busbw_gbs": 1,
    },
    "progress": {"waits_us": 1, "computes_us": 1, "thread_us": 1, "worker_us": 1},
    "gemm": {"gflops": 1, "blas_gflops": 1},
    "layer": {"median_ms": 1, "share_of_peak": 100, "overlap_efficiency": 100},
    "train": {"forward_ms": 1, "backward_ms": 1, "optimizer_ms": 1, "step_ms": 1},
    "idle": {"idle": 100, "median_ms": 1},
    "overlap": {"speedup": 1, "bulk_efficiency": 100, "fused_efficiency": 100},
    "replay": {},  # its pictures show single steps, its table all steps together
    "plan": {},  # its pictures show parts of a step: compared below
}


def test_pictures_show_the_numbers_of_the_tables(whole):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    folder, document = whole
    (run,) = results.load(folder / "r.h5").runs
    assert {table.suite for table in run.tables} == set(SHOWN)
    kept: dict[str, list[np.ndarray]] = {}
    for table in run.tables:
        for _, picture in CPU_PICTURES[table.name]:
            figure = picture(table)
            kept.setdefault(table.suite, []).append(drawn(figure))
            pyplot.close(figure)
    numbers = {suite: np.concatenate(found) for suite, found in kept.items()}

    def shown(suite: str, value: float) -> bool:
        return bool(np.isclose(numbers[suite], value, rtol=1e-9, atol=0).any())

    for suite, columns in SHOWN.items():
        rows = [row for table in document["suites"][suite]["tables"] for row in table["rows"]]
        for column, factor in columns.items():
            values = [row[column] for row in rows if row.get(column) is not None]
            assert values, (suite, column)
            for value in values:
                assert shown(suite, value * factor), (suite, column, value)
    (plan,) = (table for table in run.tables if table.suite == "plan")
    for row in document["suites"]["plan"]["tables"][0]["rows"]:
        if row["term"] in ("pi", "comm", "all-reduce"):
            factor = 1 if row["term"] == "all-reduce" else plan.attributes["kappa"]
            assert shown("plan", row["measured_ms"] * factor), row
            assert shown("plan", row["predicted_ms"] * factor), row


def exit_code(main, words):
    """The command's exit code. After a usage error argparse raises it as SystemExit."""
    try:
        return main(words)
    except SystemExit as end:
        return end.code


def test_the_plot_command_draws_every_picture_and_has_exit_codes(whole, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from aristos.cli.__main__ import main
    from aristos.cli.plot import FORMATS

    folder, _ = whole
    assert main(["plot", str(folder / "r.h5"), "--out", str(tmp_path)]) == 0
    drawn = list(tmp_path.glob("*.png"))
    assert sorted(p.stem for p in drawn) == sorted(name for each in CPU_PICTURES.values() for name, _ in each)
    assert all(p.stat().st_size > 10_000 for p in drawn)
    assert len(capsys.readouterr().out.splitlines()) == len(drawn)
    assert main(["plot", str(folder / "r.h5"), "--run", "1999"]) == 2
    assert main(["plot", str(folder / "missing.h5")]) == 3
    both = [str(folder / "t.json")] * 2
    for form in FORMATS:
        assert main(["plot", *both, "--out", str(tmp_path), "--format", form]) == 0
        assert (tmp_path / f"timeline.{form}").stat().st_size > 10_000
    for words, code, said in (
        ([both[0], str(folder / "r.h5")], 2, "one results file, or timelines"),
        ([both[0], "--run", "x"], 2, "--run needs a results file"),
        ([str(folder / "missing.json")], 3, "No such file"),
        ([str(tmp_path / "broken.json")], 3, "no timeline of"),
    ):
        (tmp_path / "broken.json").write_text('{"traceEvents": [{"ph": "X"}]}')
        assert exit_code(main, ["plot", *words, "--out", str(tmp_path)]) == code
        assert said in capsys.readouterr().err


def test_the_timeline_shows_the_steps_of_every_rank(whole):
    folder, _ = whole
    events = json.loads((folder / "t.json").read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    for rank in range(2):
        kinds = {e["cat"] for e in spans if e["pid"] == rank}
        assert {"dispatch", "expert", "combine"} <= kinds
    assert min(e["ts"] for e in spans) == 0
    assert all(e["dur"] >= 0 for e in spans)
