"""The inner side of tests in other processes: a pytest that runs a test when the outer one asks for it (see mpi.py)."""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mpi import STACKS, job_folder, number_of_ranks
from rank_job import END, GRACE, LAST, POLL, READY


def folder() -> Path:
    found = job_folder()
    assert found is not None
    return found


@functools.cache
def read_job() -> Any:
    """The job, as the outer pytest has written it."""
    return json.loads((folder() / "job.json").read_text())


@functools.cache
def my_rank() -> int:
    """This process's rank as the launcher reports it, known before MPI is initialised."""
    if not number_of_ranks():
        return 0
    for variable in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        if variable in os.environ:
            return int(os.environ[variable])
    raise RuntimeError("no launcher variable gives this process its rank")


class Loop:
    """The plugin of an inner pytest: it runs the tests that it is asked for and reports each of them."""

    def __init__(self) -> None:
        self.word = READY  # the last command of the outer pytest
        self.outcome = ("passed", "")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tests = read_job()["tests"]
        items = {item.nodeid: item for item in session.items}
        absent = [test for test in tests if test not in items]
        if absent:
            fail(f"this rank has not collected {absent[0]}: it collected {sorted(items)[:5]} ...")
        report(READY, "passed", "")
        while (word := self.next()) != LAST:
            number = int(word)
            limit = float((folder() / "limit").read_text())
            faulthandler.dump_traceback_later(max(0.1, limit - STACKS), exit=False)
            os.ftruncate(1, 0)  # a failing rank shows only this test's output
            following = items[tests[number + 1]] if number + 1 < len(tests) else None
            item = items[tests[number]]
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            faulthandler.cancel_dump_traceback_later()
        os.ftruncate(1, 0)
        faulthandler.dump_traceback_later(END - STACKS, exit=False)  # shows where a rank hangs that does not end
        return True

    def next(self) -> str:
        """Wait for the next command."""
        while (word := (folder() / "command").read_text()) == self.word:
            if os.getppid() == 1:  # the launcher has ended
                os._exit(1)
            time.sleep(POLL)
        self.word = word
        return word

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Report the outcome of this rank's test to the outer pytest."""
        found = yield
        if found.failed:
            fail(f"in {found.when}:\n{found.longreprtext}")
        if found.skipped:
            xfail = getattr(found, "wasxfail", None)
            reason = found.longrepr[2] if isinstance(found.longrepr, tuple) else str(found.longrepr)
            self.outcome = ("xfailed" if xfail is not None else "skipped", xfail or reason)
        elif found.when == "setup":
            self.outcome = ("passed", "")
        if found.when == "teardown":
            report(self.word, *self.outcome)
        return found


_spent = 0.0


def report(command: str, outcome: str, text: str) -> None:
    """Append one line to this rank's report, in one write. It has the processor seconds since the last line."""
    global _spent
    before, _spent = _spent, sum(os.times()[:4])
    line = json.dumps({"command": command, "outcome": outcome, "text": text, "spent": _spent - before}) + "\n"
    with open(folder() / f"rank-{my_rank()}.jsonl", "ab", buffering=0) as file:
        file.write(line.encode())


def fail(text: str) -> NoReturn:
    """Report a failure, give the other ranks a moment to report theirs, and take the job down."""
    print(text, flush=True)
    word = (folder() / "command").read_text()
    report(word, "failed", text)
    n, until = number_of_ranks(), time.monotonic() + GRACE
    while time.monotonic() < until and not all(has_reported(word, rank) for rank in range(n)):
        time.sleep(0.02)
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(1)
    os._exit(1)


def has_reported(word: str, rank: int) -> bool:
    """Whether a rank has reported on the current test."""
    file = folder() / f"rank-{rank}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return bool(lines) and json.loads(lines[-1])["command"] == word


def main() -> int:
    """Run as one rank: write to an output file of its own, and start pytest."""
    job, rank = read_job(), my_rank()
    out = os.open(folder() / f"rank-{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    (folder() / f"rank-{rank}.pid").write_text(str(os.getpid()))
    if sys.platform == "linux":  # if the launcher is killed, this rank is killed too
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    faulthandler.dump_traceback_later(max(0.1, job["start"] - STACKS), exit=False)
    sys.path.insert(0, job["root"])  # as `python -m pytest` does
    loop = Loop()
    code = int(pytest.main(job["args"], plugins=[loop]))
    if loop.word != LAST:
        fail(f"pytest ended with code {code}")
    return code


if __name__ == "__main__":
    sys.modules["rank_main"] = sys.modules["__main__"]  # mpi.py then imports this module
    sys.exit(main())
