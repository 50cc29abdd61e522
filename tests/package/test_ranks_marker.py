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
from mpi import comm, pytest_collection_modifyitems, pytest_configure, pytest_runtest_makereport
"""

needs_mpiexec = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def run(tmp_path: Path, body: str, **env: str) -> tuple[int, str, float]:
    """Run one written test file; return pytest's exit code, its output, and the seconds it took."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_inner.py").write_text(HEAD + body)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "test_inner.py"]
    start = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, timeout=100)
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


@needs_mpiexec
def test_a_hang_is_ended_at_the_limit_with_the_stack_of_who_hangs(tmp_path):
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


def test_without_mpiexec_the_reason_is_given(tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    body = "import mpi\nmpi.find_mpiexec = lambda: ()\n@pytest.mark.ranks(2)\ndef test_it(comm):\n    pass\n"
    code, out, _ = run(tmp_path, body, PATH=str(bare))
    assert code == 0
    assert "1 skipped" in out
    assert "no mpiexec beside python or on PATH" in out
