"""The `ranks` marker itself: small test files are written to a folder and run by another pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi import find_mpiexec, ranks_each

TESTS = Path(__file__).resolve().parents[1] / "support"
HEAD = """\
import os, time
import pytest
from hypothesis import assume, given, settings, strategies as st
"""
CONFTEST = f"""\
import sys
sys.path.insert(0, {str(TESTS)!r})
pytest_plugins = ["mpi"]
"""

pytestmark = pytest.mark.parallel
needs_mpiexec = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def run(tmp_path: Path, body: str, *words: str, **env: str) -> tuple[int, str, float]:
    """Run one written test file; return pytest's exit code, its output, and the seconds it took."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_inner.py").write_text(HEAD + body)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *words, "test_inner.py"]
    start = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start


def processes_of(folder: Path) -> list[int]:
    """Processes that still run in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.path.samefile(entry / "cwd", folder):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@ranks_each(1, 3)
def test_each_rank_sees_the_world(comm, world):
    assert comm.size == world
    assert comm.allgather(comm.rank) == list(range(world))
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"


@pytest.mark.ranks(2)
@settings(max_examples=40)
@given(st.lists(st.integers()), st.data())
def test_hypothesis_draws_the_same_on_all_ranks(comm, values, data):
    more = data.draw(st.integers(0, 10))
    assert comm.allgather((values, more)) == [(values, more)] * 2


@pytest.mark.slow
@needs_mpiexec
def test_only_the_failing_rank_is_shown_and_others_do_not_hang(tmp_path):
    code, out, seconds = run(
        tmp_path,
        """
@pytest.mark.ranks(2, timeout=60)
def test_it(comm):
    print("words of rank", comm.rank)
    assert comm.rank == 0, "reason given"
    comm.recv(source=1)
""",
    )
    assert code == 1
    assert "failed on rank 1 of 2" in out
    assert "reason given" in out
    assert "words of rank 1" in out
    assert "words of rank 0" not in out
    assert seconds < 40


@pytest.mark.slow
@needs_mpiexec
def test_a_hang_is_ended_at_the_limit_with_the_stack_of_the_hanging_rank(tmp_path):
    code, out, seconds = run(
        tmp_path,
        """
@pytest.mark.ranks(2, timeout=8)
def test_it(comm):
    if comm.rank == 0:
        time.sleep(1000)
""",
    )
    assert code == 1
    assert "no end within 8 s on rank 0 of 2" in out
    assert re.search(r'test_inner.py", line \d+ in test_it', out)
    assert "rank 1 ----" not in out
    assert seconds < 25
    assert not processes_of(tmp_path)


@pytest.mark.slow
@needs_mpiexec
def test_a_crash_is_shown(tmp_path):
    code, out, _ = run(
        tmp_path,
        """
@pytest.mark.ranks(2, timeout=60)
def test_it(comm):
    if comm.rank == 1:
        import ctypes
        ctypes.string_at(0)
    comm.barrier()
""",
    )
    assert code == 1
    assert "Segmentation fault" in out
    assert "rank 0 ----" not in out


@pytest.mark.slow
@needs_mpiexec
def test_a_falsified_example_ends_the_test(tmp_path):
    code, out, seconds = run(
        tmp_path,
        """
@pytest.mark.ranks(2, timeout=60)
@settings(max_examples=200)
@given(st.integers(0, 1000))
def test_it(comm, value):
    assume(value % 2)
    comm.barrier()
    assert comm.rank == 0 or value < 20
""",
    )
    assert code == 1
    assert re.search(r"falsifying example: value=\d+", out)
    assert "failed on rank 1 of 2" in out
    assert seconds < 40


@pytest.mark.slow
@needs_mpiexec
def test_different_examples_are_named(tmp_path):
    code, out, _ = run(
        tmp_path,
        """
@pytest.mark.ranks(2, timeout=60)
@given(st.integers(), st.data())
def test_it(comm, value, data):
    if comm.rank:
        data.draw(st.integers())
""",
    )
    assert code == 1
    assert "ranks drew different examples" in out


@pytest.mark.slow
@needs_mpiexec
def test_skips_xfails_and_fixtures_pass_through(tmp_path):
    code, out, _ = run(
        tmp_path,
        """
@pytest.fixture(params=["a", "b::c [d]"])
def letter(request):
    return request.param

@pytest.mark.ranks(2)
def test_param(comm, letter, tmp_path):
    assert letter[0] in "ab"

@pytest.mark.ranks(2)
def test_skip(comm):
    pytest.skip("not today")

@pytest.mark.ranks(2)
@pytest.mark.xfail(reason="known", strict=True)
def test_xfail(comm):
    assert False

def test_no_marker(comm):
    pass
""",
    )
    assert "2 passed, 1 skipped, 1 xfailed, 1 error" in out, out
    assert "not today" in out
    assert "the fixture comm needs @pytest.mark.ranks(n)" in out
    assert code == 1


@pytest.mark.slow
@needs_mpiexec
def test_tests_share_a_job_that_a_failure_ends(tmp_path):
    """There are three jobs: for the tests up to the failing one, for those after it, and for the isolated one."""
    code, out, _ = run(
        tmp_path,
        """
def note(name, comm):
    with open(f"jobs-{comm.rank}", "a") as file:
        print(name, os.getpid(), file=file)

@pytest.fixture(scope="module")
def shared(comm):
    return [comm.rank]

@pytest.mark.ranks(2, timeout=30)
@pytest.mark.parametrize("n", range(2))
def test_first(comm, shared, n):
    note(f"first-{n}", comm)
    shared.append(n)
    assert shared == [comm.rank, *range(n + 1)]
    print("words of", n)

@pytest.mark.ranks(2, timeout=30, isolated=True)
def test_isolated(comm):
    note("isolated", comm)

@pytest.mark.ranks(2, timeout=30)
def test_fails(comm):
    note("fails", comm)
    assert comm.rank == 0

@pytest.mark.skipif(True, reason="not here")
@pytest.mark.ranks(2, timeout=30)
def test_skipped(comm):
    note("skipped", comm)

@pytest.mark.ranks(2, timeout=30)
@pytest.mark.parametrize("n", "ab")
def test_last(comm, n):
    note(f"last-{n}", comm)
""",
    )
    assert code == 1
    assert "1 failed, 5 passed, 1 skipped" in out, out
    assert "words of" not in out
    for rank in range(2):
        lines = [line.split() for line in (tmp_path / f"jobs-{rank}").read_text().splitlines()]
        jobs = dict(lines)
        assert [name for name, _ in lines] == ["first-0", "first-1", "fails", "last-a", "last-b", "isolated"]
        assert jobs["first-0"] == jobs["first-1"] == jobs["fails"]
        assert jobs["last-a"] == jobs["last-b"]
        assert len(set(jobs.values())) == 3
    assert not processes_of(tmp_path)


@pytest.mark.slow
@needs_mpiexec
def test_each_test_has_its_own_limit(tmp_path):
    """Two tests take 7 s and have limits of 12 s. A test that hangs uses up its own limit; those after it still run."""
    code, out, _ = run(
        tmp_path,
        """
@pytest.mark.ranks(2, timeout=12)
@pytest.mark.parametrize("seconds", [7, 7.5, 90, 0])
def test_it(comm, seconds):
    time.sleep(seconds if comm.rank else 0)
""",
    )
    assert code == 1
    assert "1 failed, 3 passed" in out, out
    assert "no end within 12 s on rank 1 of 2" in out


@pytest.mark.slow
@needs_mpiexec
def test_what_fails_at_the_end_of_a_job_is_an_error(tmp_path):
    code, out, _ = run(
        tmp_path,
        """
import atexit

@pytest.mark.ranks(2)
def test_leaves_a_hook(comm):
    atexit.register(lambda: (print("words at the end", flush=True), os._exit(3)))

@pytest.mark.ranks(2)
def test_last(comm):
    pass
""",
    )
    assert code == 1
    assert "2 passed, 1 error" in out, out
    assert "after the last of 2 tests of this job" in out
    assert "words at the end" in out


@pytest.mark.slow
@needs_mpiexec
def test_ranks_run_what_is_left_after_deselection(tmp_path):
    body = """
@pytest.mark.ranks(2)
@pytest.mark.parametrize("n", range(4))
def test_it(comm, n):
    open(f"ran-{n}-{comm.rank}", "w").close()

def test_alone():
    assert not list(__import__("pathlib").Path(".").glob("ran-*")), "tests on ranks come last"
"""
    code, out, _ = run(tmp_path, body, "-k", "1 or 3 or alone")
    assert code == 0, out
    assert sorted(file.name for file in tmp_path.glob("ran-*")) == ["ran-1-0", "ran-1-1", "ran-3-0", "ran-3-1"]


@pytest.mark.slow
@needs_mpiexec
def test_stopping_at_the_first_failure_leaves_no_rank(tmp_path):
    body = """
@pytest.mark.ranks(2)
@pytest.mark.parametrize("n", range(3))
def test_it(comm, n):
    assert n

def test_alone():
    pass
"""
    code, out, _ = run(tmp_path, body, "-x")
    assert code == 1
    assert "1 failed, 1 passed" in out, out
    assert not processes_of(tmp_path)


def test_an_uncompiled_file_runs_in_one_process_of_its_own(tmp_path):
    """The file's tests are reported one by one, and a failure does not affect the others."""
    code, out, _ = run(
        tmp_path,
        """
pytestmark = pytest.mark.uncompiled

@given(st.integers())
def test_compiles_nothing(value):
    from numba import njit
    from numba.core import config
    assert config.DISABLE_JIT
    assert not hasattr(njit(lambda: 0), "py_func")

@pytest.mark.parametrize("n", range(3))
def test_number(n):
    print("words of", n)
    assert n != 1, "reason given"
""",
    )
    assert code == 1
    assert "1 failed, 3 passed" in out, out
    assert "reason given" in out
    assert "words of 1" in out
    assert "words of 0" not in out


def test_without_mpiexec_the_reason_is_given(tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    body = "import mpi\nmpi.find_mpiexec = lambda: ()\n@pytest.mark.ranks(2)\ndef test_it(comm):\n    pass\n"
    code, out, _ = run(tmp_path, body, PATH=str(bare))
    assert code == 0
    assert "1 skipped" in out
    assert "no mpiexec beside python or on PATH" in out
