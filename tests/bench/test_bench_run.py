"""`python -m aristos.bench` as a user runs it on several ranks: tables, files, pictures and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mpi import FLAG, LAUNCHER_VARIABLES, ONE_THREAD, find_mpiexec

from aristos import results
from aristos.bench import plots, suites

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--hidden", "32", "--ffn", "48", "--experts", "8", "--tokens", "8,24", "--iters", "4", "--warmup", "1"]
CPU_PICTURES = {name: each for name, each in plots.pictures().items() if not name.endswith("_cuda")}
PATCH = "import sys; from aristos.bench.main import main; import aristos.reference as r; "

needs_mpiexec = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def bench(ranks: int, *words: str, code: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark, or the program `code`, on some ranks; 0 ranks: without mpiexec."""
    launcher = (*find_mpiexec(), "-n", str(ranks)) if ranks else ()
    program = ["-c", code] if code else ["-m", "aristos.bench"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES) and k != FLAG}
    clean |= dict.fromkeys(ONE_THREAD, "1") | {"HYDRA_IFACE": "lo", "PYTHONPATH": str(ROOT)} | env
    command = [*launcher, sys.executable, *program, *words]
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    """One run of every suite on 2 ranks: its folder, and the JSON document."""
    if not find_mpiexec():
        pytest.skip("no mpiexec beside python or on PATH")
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((60, 3, 8)), axis=-1)[..., :2].astype(np.uint8)
    np.savez(folder / "trace.npz", expert_ids=ids, gate_weight=np.full(ids.shape, 0.5, np.float16), seq_lens=[20, 40])
    words = [*suites.known(), *SMALL, "--routing", str(folder / "trace.npz"), "--json"]
    words += ["--moves", "tokens", "--out", str(folder / "r.h5"), "--timeline", str(folder / "t.json")]
    done = bench(2, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout)


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


def test_every_picture_is_drawn(whole, tmp_path):
    pytest.importorskip("matplotlib")
    folder, _ = whole
    drawn = plots.draw(str(folder / "r.h5"), tmp_path)
    assert sorted(p.stem for p in drawn) == sorted(name for each in CPU_PICTURES.values() for name, _ in each)
    assert all(p.stat().st_size > 10_000 for p in drawn)


def exit_code(main, words):
    """A usage error ends the command as argparse does."""
    try:
        return main(words)
    except SystemExit as end:
        return end.code


def test_the_plot_command_draws_and_has_exit_codes(whole, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from aristos.cli.__main__ import main

    folder, _ = whole
    assert main(["plot", str(folder / "r.h5"), "--out", str(tmp_path), "--format", "svg"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(list(tmp_path.glob("*.svg")))
    assert main(["plot", str(folder / "r.h5"), "--run", "1999"]) == 2
    assert main(["plot", str(folder / "missing.h5")]) == 3
    both = [str(folder / "t.json")] * 2
    assert main(["plot", *both, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "timeline.png").stat().st_size > 10_000
    for words, code, said in (
        ([both[0], str(folder / "r.h5")], 2, "one results file, or timelines"),
        ([both[0], "--run", "x"], 2, "--run is for results files"),
        ([str(folder / "missing.json")], 3, "No such file"),
        ([str(tmp_path / "broken.json")], 3, "no timeline of"),
    ):
        (tmp_path / "broken.json").write_text('{"traceEvents": [{"ph": "X"}]}')
        assert exit_code(main, ["plot", *words, "--out", str(tmp_path)]) == code
        assert said in capsys.readouterr().err
    assert main(["nonsense"]) == 2
    assert "unknown command 'nonsense'" in capsys.readouterr().err


def test_the_timeline_shows_the_steps_of_every_rank(whole):
    folder, _ = whole
    events = json.loads((folder / "t.json").read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    for rank in range(2):
        kinds = {e["cat"] for e in spans if e["pid"] == rank}
        assert {"dispatch", "expert", "combine"} <= kinds
    assert min(e["ts"] for e in spans) == 0
    assert all(e["dur"] >= 0 for e in spans)


@needs_mpiexec
def test_pairs_on_an_odd_number_of_ranks(tmp_path):
    done = bench(3, "put", "signal", "exchange", "--iters", "3", "--json", "--out", str(tmp_path / "r.h5"))
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = results.load(tmp_path / "r.h5").runs
    latency = run.tables[[t.name for t in run.tables].index("put")].variables["latency"].values
    assert (np.isfinite(latency).any(axis=(2, 3)) == ~np.eye(3, dtype=bool)).all()


@needs_mpiexec
def test_pretended_nodes_use_transport_rma(tmp_path):
    """Outputs are right, and the file records the nodes."""
    done = bench(
        3,
        "put",
        "signal",
        "exchange",
        "layer",
        "idle",
        *SMALL,
        "--ranks-per-node",
        "2",
        "--json",
        "--out",
        str(tmp_path / "r.h5"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(suite["ok"] for suite in json.loads(done.stdout)["suites"].values())
    (run,) = results.load(tmp_path / "r.h5").runs
    assert run.attributes["options.ranks_per_node"] == 2
    assert run.attributes["node_of_rank"] == [0, 0, 2]
    assert run.attributes["transports"] == "shm, rma"


def test_one_process_without_a_launcher(tmp_path):
    done = bench(0, "gemm", "layer", "idle", *SMALL, "--out", str(tmp_path / "r.h5"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert "\x1b" not in done.stdout
    assert "fused" in done.stdout
    assert ", 1 rank on 1 node by self, " in done.stdout
    assert results.load(tmp_path / "r.h5").runs


def test_a_named_suite_that_needs_more_ranks_is_a_usage_error():
    done = bench(0, "put", "--out", "none")
    assert done.returncode == 2
    assert "needs at least 2 ranks, got 1" in done.stderr


@needs_mpiexec
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nonsense",), 2, "unknown suite 'nonsense'"),
        (("layer", "--experts", "2", "--top-k", "3"), 2, "top_k must be at most experts (2), got 3"),
        (("gemm", "--out", "/dev/null/r.h5"), 2, "no such folder"),
        (("layer", "--ranks-per-node", "0"), 2, "--ranks-per-node: must be at least 1, got 0"),
    ],
)
def test_an_error_of_all_ranks_is_printed_once(words, code, message):
    done = bench(2, *words, "--seconds", "1")
    assert done.returncode == code, done.stderr
    assert done.stderr.count(message) == 1
    assert done.stdout == ""


def test_a_closed_stdout_is_an_error_before_measuring():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}
    command = f"exec {sys.executable} -m aristos.bench gemm --seconds 60 --out none >&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=clean, stderr=subprocess.PIPE, text=True, timeout=50)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("python -m aristos.bench: stdout is closed")
    assert "Traceback" not in done.stderr


def test_help_needs_no_mpi():
    done = bench(0, "--help", PMI_SIZE="2", PMI_RANK="1")
    assert (done.returncode, done.stdout) == (0, "")
    done = bench(0, "--help")
    for word in (*suites.known(), "--routing", "olmoe-1b-7b"):
        assert word in done.stdout
    usual = " ".join(name for name, each in suites.known().items() if each.default)
    assert f"default (two minutes in all): {usual}" in " ".join(done.stdout.split())


def test_a_launcher_that_does_not_match_is_an_environment_error():
    for rank, lines in ((0, 1), (1, 0)):
        done = bench(0, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="2", SLURM_PROCID=str(rank))
        assert done.returncode == 3
        assert done.stderr.count("srun started 2 tasks but MPI sees 1: try --mpi=") == lines
        assert done.stdout == ""


def test_a_file_of_another_kind_is_an_error_before_measuring(tmp_path):
    (tmp_path / "r.h5").write_text("mine")
    start = time.monotonic()
    done = bench(0, "--out", str(tmp_path / "r.h5"))
    assert done.returncode == 3
    assert "not an HDF5 file" in done.stderr
    assert time.monotonic() - start < 30
    assert (tmp_path / "r.h5").read_text() == "mine"


@needs_mpiexec
@pytest.mark.parametrize("suite", ["gemm", "layer", "idle", "plan"])
def test_a_wrong_result_is_shown_and_exits_with_1(suite):
    """The oracle is wrong by 1 part in 1000, which looks like a wrong kernel."""
    code = PATCH + "true = r.expert; r.expert = lambda *a, **k: true(*a, **k) * 1.001; sys.exit(main())"
    done = bench(2, suite, *SMALL, "--out", "none", code=code)
    assert done.returncode == 1, done.stderr
    assert "FAILED" in done.stdout
    assert f"FAILED: wrong results in {suite}" in done.stdout


STOPS = """
import aristos.bench.bounds as b, aristos.bench.options as o, aristos.bench.world as w, os, signal
o.Options.limit = 2.0
def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGSTOP)
def peak(world, *a, **k):
    if world.rank == 1: stop()
    return true(world, *a, **k)
true, b.peak = b.peak, peak
"""
IN_A_COLLECTIVE = """
b.peak = lambda world, *a, **k: world.gather(0) and 1.0
gather = w.World.bounded
w.World.bounded = lambda world, call: stop() if world.rank == 1 and call == "gather" else gather(world, call)
"""

IN_ITS_CHECK = """
import aristos.bench.suites.exchange as x
x.ExchangeCalls.alltoall = lambda each: stop() if each.world.rank == 1 else each.world.comm.Barrier()
"""
WHEN_TIMED = """
import aristos.bench.suites.exchange as x
x.ExchangeCalls.right = lambda each, method: True
x.ExchangeCalls.alltoallv = lambda each: stop() if each.world.rank == 1 else each.world.comm.Barrier()
"""
IN_A_SPLIT = """
bounded = w.World.bounded
w.World.bounded = lambda world, call: stop() if world.rank == 1 and "split" in call else bounded(world, call)
"""


@needs_mpiexec
@pytest.mark.parametrize(
    ("suite", "where", "call"),
    [
        pytest.param("gemm", "", "", id="before a barrier"),
        pytest.param("gemm", IN_A_COLLECTIVE, "gather", id="in a collective"),
        pytest.param("exchange", IN_ITS_CHECK, "Alltoall", id="in a call that is checked"),
        pytest.param("exchange", WHEN_TIMED, "Alltoallv", id="in a call that is timed"),
        pytest.param("plan", IN_A_SPLIT, "MPI_Comm_split", id="when groups are formed"),
    ],
)
def test_a_rank_that_stops_outside_a_layer_call_ends_the_job(suite, where, call):
    """The job ends within the limit, with one line and exit code 3."""
    done = bench(2, suite, *SMALL, "--out", "none", code=PATCH + STOPS + where + "sys.exit(main())")
    assert done.returncode == 3, done.stderr
    awaited = re.escape(f"for the other ranks ({call})" if call else "for the other ranks")
    assert re.search(f"rank 0 waited 2[.0-9]* s .*{awaited}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


@needs_mpiexec
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_suites_that_have_ended_are_in_the_file_of_a_job_that_is_ended(tmp_path, how):
    """`aristos run` gets the signal while the second suite runs."""
    code = PATCH + (
        "import aristos.bench.bounds as b, pathlib, time\n"
        f"b.peak = lambda *a: (pathlib.Path({str(tmp_path)!r}, 'second').touch(), time.sleep(60))\n"
        "sys.exit(main())"
    )
    words = ["put", "gemm", *SMALL, "--out", str(tmp_path / "r.h5")]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES) and k != FLAG}
    clean |= dict.fromkeys(ONE_THREAD, "1") | {"HYDRA_IFACE": "lo", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "aristos", "run", "-n", "2", "--", sys.executable, "-c", code, *words]
    with subprocess.Popen(
        command, cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        end = time.monotonic() + 300
        while not (tmp_path / "second").exists():
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        job.send_signal(how)
        _, stderr = job.communicate(timeout=60)
    (run,) = results.load(tmp_path / "r.h5").runs
    assert [table.name for table in run.tables] == ["put"]
    assert not run.attributes["finished"]
    if how == signal.SIGTERM:
        assert job.returncode == 128 + signal.SIGTERM
        assert run.attributes["interrupted"]
        assert "aristos.bench: interrupted" in stderr
        assert "Traceback" not in stderr


@needs_mpiexec
def test_an_exception_on_one_rank_ends_the_job():
    code = PATCH + (
        "import aristos.bench.bounds as b, os; true = b.peak\n"
        "def peak(world, *a, **k):\n"
        "    if world.rank == 1: raise RuntimeError('boom')\n"
        "    return true(world, *a, **k)\n"
        "b.peak = peak; sys.exit(main())"
    )
    start = time.monotonic()
    done = bench(2, "gemm", *SMALL, "--out", "none", code=code)
    assert done.returncode not in (0, 2, 3)
    assert "[rank 1] RuntimeError: boom" in done.stderr
    assert "[rank 0]" not in done.stderr
    assert time.monotonic() - start < 60
