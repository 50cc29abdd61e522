"""`aristos doctor` on ranks and alone: collective checks, exit codes, and a wrong launcher."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import run_job
from mpi import find_mpiexec, rank_environment

from aristos.cli import __main__ as cli
from aristos.doctor import (
    equal,
    progress,
    ranks,
    windows,
)
from aristos.host.mpi_library import Library
from aristos.host.nodes import Nodes

ROOT = Path(__file__).resolve().parents[2]
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}
STEP |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_MPI_TYPE": "none"}
MPICH, OPEN, INTEL = (Library(kind, f"/env/lib/{kind}.so", True) for kind in ("MPICH", "Open MPI", "Intel MPI"))


def test_a_pair_on_two_nodes_is_preferred():
    assert progress.pair(Nodes((0, 0, 2, 2))) == (0, 2)
    assert progress.pair(Nodes((0, 0))) == (0, 1)


def test_progress_is_judged_by_both_times():
    fast, slow = 0.001, 0.25
    assert progress.judged(progress.PutTimes(fast, fast, (0, 1), False)).state == "ok"
    got = progress.judged(progress.PutTimes(fast, slow, (0, 1), True))
    assert got.state == "ok"
    assert got.text.startswith("1.00 ms with Aristos's progress thread, 250.00 ms without, for a put of 4096 bytes")
    assert "this MPI makes no progress" in got.text
    got = progress.judged(progress.PutTimes(slow, slow, (0, 1), True))
    assert got.state == "warn"
    assert got.remedy


def test_shared_windows_must_show_every_ranks_stores():
    two = Nodes((0, 0))
    assert windows.judged(["", ""], [[], []], two).state == "ok"
    assert windows.judged(["", ""], [[], []], Nodes((0, 1))).text.startswith("not tried")
    assert windows.judged(["", "MPIError: no"], [[], []], two).text == "rank 1: MPIError: no"
    assert windows.judged(["", ""], [[], [0]], two).text == "rank 1 cannot see what rank 0 stored"


def test_ranks_that_differ_are_named():
    facts = [{name: "1" for name, *_ in equal.RULES} for _ in range(4)]
    assert {each.state for each in equal.equal(facts)} == {"ok"}
    facts[2] |= {"numpy": "2", "instructions": "avx2"}
    found = {each.name: each for each in equal.equal(facts)}
    assert found["same numpy"].state == "fail"
    assert found["same numpy"].text == "2 on rank 2, but 1 on ranks 0-1, 3"
    assert found["same instructions"].state == "warn"
    assert found["same numba"].text == "equal on all 4 ranks: 1"


def test_hosts_of_ranks_are_listed():
    got = equal.hosts(["a", "a", "b"], Nodes((0, 0, 2)))
    assert got.state == "warn"
    assert got.text.startswith("3 ranks on 2 nodes: a (ranks 0-1), b (rank 2)")
    assert equal.hosts(["a", "b"], Nodes((0, 1))).state == "ok"


needs_mpiexec = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def doctor(n: int, *words: str, limit: float = 90, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command; n = 0: without a launcher."""
    launcher = [*find_mpiexec(), "-n", str(n)] if n else []
    env = {key: value for key, value in rank_environment(ROOT).items() if not key.startswith("SLURM_")} | variables
    command = [*launcher, sys.executable, "-m", "aristos", "doctor", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit)


def states(text: str) -> dict[str, str]:
    return {each["name"]: each["state"] for each in json.loads(text)["findings"]}


@pytest.mark.slow
@pytest.mark.parallel
def test_the_command_alone():
    done = doctor(0, "--json")
    found = states(done.stdout)
    assert done.returncode == (3 if "fail" in found.values() else 0), done.stderr
    assert found["launcher"] == found["Numba"] == found["kernel cache"] == "ok"
    assert "same numpy" not in found
    lines = doctor(0).stdout.splitlines()
    assert any(line.startswith("ok    launcher          none: one process") for line in lines)
    assert lines[-1].endswith("failed")
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.slow
@needs_mpiexec
def test_the_command_on_two_ranks(tmp_path):
    """With an empty cache each rank compiles what it needs, whichever modules its other checks have imported."""
    done = doctor(2, "--json", ARISTOS_CACHE=str(tmp_path / "cache"))
    found = states(done.stdout)
    assert done.returncode == (3 if "fail" in found.values() else 0), done.stderr
    assert json.loads(done.stdout)["ranks"] == 2
    one = ("launcher", "shared windows", "experts in place", "MPI threads")
    for name in (*one, "same numpy", "same MPI library", "same core count"):
        assert found[name] == "ok"
    measured = next(each for each in json.loads(done.stdout)["findings"] if each["name"] == "RMA progress")
    assert measured["values"]["helped_ms"] > 0
    assert "both on the only node" in measured["text"]


@pytest.mark.slow
@needs_mpiexec
def test_a_rank_that_cannot_compile_is_reported(tmp_path):
    """The failure is reported at once: the other rank does not wait in the measurement."""
    body = """
from aristos.doctor import progress, ranks
if rank == 1:
    progress.compiled = lambda: 1 / 0
else:
    progress.compiled = lambda: time.sleep(3)  # longer than the limit: a rank may compile
ranks.SAID = 1.0
both = ranks.Ranks(2.0, say)
both.start()
found = progress.progress(both, True)
say(found.state, found.text)
both.end()
"""
    job = run_job(tmp_path, 2, body)
    assert job.code == 0, job.out
    assert "".join(job.out).count("aristos doctor: waiting for rank 0 to compile what measures RMA progress") == 1
    for rank in (0, 1):
        assert job.lines(rank) == [
            "fail not measured: rank 1 cannot compile kernels: ZeroDivisionError: division by zero"
        ]


@pytest.mark.slow
@pytest.mark.parallel
def test_a_launcher_of_another_mpi_is_reported():
    for rank in (0, 1):
        done = doctor(0, OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK=str(rank))
        assert "Traceback" not in done.stderr
        if rank:
            assert (done.returncode, done.stdout) == (0, "")
        else:
            assert done.returncode == 3
            assert "fail  launcher" in done.stdout
            assert "Open MPI's mpirun started 4 tasks" in done.stdout


@pytest.mark.slow
@pytest.mark.parallel
def test_the_command_without_an_mpi_library():
    done = doctor(0, MPI4PY_LIBMPI="/no/libmpi.so")
    assert done.returncode == 3
    assert "fail  MPI library       mpi4py loads none" in done.stdout
    assert "pip install 'aristos[mpich]'" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_an_mpi_call_that_hangs_ends_the_process():
    code = (
        "import time; from aristos.doctor import main, ranks\n"
        "ranks.Ranks._start = lambda *_: time.sleep(30)\n"
        "raise SystemExit(main.run_doctor(True, 0.5))"
    )
    pytest.importorskip("mpi4py")
    env = rank_environment(ROOT)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    if "mpi4py loads none" in done.stdout:
        pytest.skip("no MPI library")
    assert done.returncode == 3
    assert time.monotonic() - start < 25
    assert "rank 0 waited 0.5 s for MPI to start (MPI_Init_thread); ending the job" in done.stderr
    assert states(done.stdout)["hang"] == "fail"


@pytest.mark.slow
def test_one_process_is_a_job_of_one():
    alone = ranks.Ranks(1.0, lambda text: None)
    assert alone.lead
    assert alone.allgather("me", "a test") == ["me"]
    alone.end()


def test_wrong_timeouts_are_usage_errors(capsys):
    assert "doctor" in cli.commands()
    for wrong in ("-1", "nan", "inf", "1e30"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["doctor", "--timeout", wrong])
        assert stop.value.code == 2
        message = f"--timeout: must be a positive number of seconds, less than 1000000, got {wrong}\n"
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("words", [["bad"], ["doctor", "--bad"], ["doctor", "--timeout", "0"], []])
def test_usage_errors_are_printed_by_one_rank(monkeypatch, capsys, words, rank):
    """Rank 0 prints, if the launcher's variables give the rank."""
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", str(rank))
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(cli.main(words))
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert bool(printed.out + printed.err) == (rank == 0)


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.parametrize("words", ["", "--json"])
@pytest.mark.parametrize("stdout", [">/dev/full", ">&-"])
def test_a_report_that_cannot_be_written(words, stdout):
    """One line reports it, and the job ends on every rank."""
    command = f"exec {sys.executable} -m aristos doctor {words} {stdout}"
    env = rank_environment(ROOT)
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, timeout=90)
    why = "stdout is closed" if "&" in stdout else "[Errno 28] No space left on device"
    assert (done.returncode, done.stderr) == (3, f"aristos doctor: cannot write the report: {why}\n")
