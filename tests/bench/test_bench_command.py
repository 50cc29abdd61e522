"""`python -m aristos.bench` as a user runs it: arguments, exit codes, wrong results, files. Times are not checked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from benchmarks import PATCH, ROOT, SMALL, bench, needs_mpiexec
from mpi import FLAG, LAUNCHER_VARIABLES, ONE_THREAD

from aristos import results
from aristos.bench import suites

pytestmark = [pytest.mark.slow, pytest.mark.parallel]


@needs_mpiexec
def test_pretended_nodes_use_transport_rma_and_pairs_of_an_odd_number_of_ranks_meet(tmp_path):
    """Outputs are right, and the file records the nodes and a latency for each pair."""
    suites = ("put", "signal", "exchange", "layer", "idle")
    words = [*SMALL, "--seconds", "20", "--ranks-per-node", "2", "--json", "--out", str(tmp_path / "r.h5")]
    done = bench(3, *suites, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(suite["ok"] for suite in json.loads(done.stdout)["suites"].values())
    (run,) = results.load(tmp_path / "r.h5").runs
    assert run.attributes["options.ranks_per_node"] == 2
    assert run.attributes["node_of_rank"] == [0, 0, 2]
    assert run.attributes["transports"] == "shm, rma"
    latency = run.tables[[t.name for t in run.tables].index("put")].variables["latency"].values
    assert (np.isfinite(latency).any(axis=(2, 3)) == ~np.eye(3, dtype=bool)).all()


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
    assert f"(default, two minutes in all: {usual})" in " ".join(done.stdout.split())


def test_a_launcher_that_does_not_match_is_an_environment_error():
    for rank, lines in ((0, 1), (1, 0)):
        done = bench(0, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="2", SLURM_PROCID=str(rank))
        assert done.returncode == 3
        assert done.stderr.count("srun started 2 tasks, but the size of MPI_COMM_WORLD is 1: try --mpi=") == lines
        assert done.stdout == ""


def test_a_file_that_is_not_hdf5_is_an_error_before_measuring(tmp_path):
    (tmp_path / "r.h5").write_text("mine")
    start = time.monotonic()
    done = bench(0, "--out", str(tmp_path / "r.h5"))
    assert done.returncode == 3
    assert "not an HDF5 file" in done.stderr
    assert time.monotonic() - start < 30
    assert (tmp_path / "r.h5").read_text() == "mine"


@needs_mpiexec
def test_wrong_results_are_shown_and_exit_with_1():
    """The oracle is made wrong by 1 part in 1000, so that right outputs count as wrong."""
    code = PATCH + "true = r.expert; r.expert = lambda *a, **k: true(*a, **k) * 1.001; sys.exit(main())"
    done = bench(2, "gemm", "layer", "idle", "plan", *SMALL, "--out", "none", code=code)
    assert done.returncode == 1, done.stderr
    assert "FAILED: wrong results in gemm, layer, idle, plan" in done.stdout


@needs_mpiexec
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_after_a_signal_the_file_has_the_finished_suites(tmp_path, how):
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
