"""The outer side of tests in other processes: a job runs a batch of tests, one after another (see mpi.py).

The outer pytest writes the number of the test that comes next into the file `command` of the job's folder. Each rank
runs it and appends a line of JSON to `rank-<r>.jsonl`. Ranks are killed only if this process started them, and only the
output of the failing ranks is shown.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mpi import FLAG, find_mpiexec, rank_environment

START = 300.0  # seconds within which the ranks must have imported the tests
END = 60.0  # seconds within which the ranks must have ended after the last test
GRACE = 1.0  # seconds that a failed rank gives the others to fail by themselves and report why
POLL = 0.005
SHOWN = 20_000  # characters shown of each failing rank
READY, LAST = "ready", "end"  # commands besides a test's number: report that tests are collected; end


def die_with_parent() -> None:
    """Called in the launcher's process: when pytest is killed, the launcher gets SIGTERM, and ends its ranks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Batch:
    """Tests that share a job of n ranks, or an uncompiled process if n is 0. They run in the order of arrival."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.items: list[pytest.Item] = []
        self.limits: dict[pytest.Item, float] = {}
        self.spent: dict[pytest.Item, float] = {}  # processor seconds of all ranks
        self.job: Job | None = None

    def add(self, item: pytest.Item, timeout: float) -> None:
        self.items.append(item)
        self.limits[item] = timeout

    def run(self, item: pytest.Item) -> None:
        """Run one test on the ranks. It passes, is skipped or fails as it did there."""
        if self.n and not find_mpiexec():
            pytest.skip("no mpiexec beside python or on PATH: pip install mpich")
        try:
            if self.job is None:
                self.job = Job(self.n, self.items[self.items.index(item) :])
            outcome, text, self.spent[item] = self.job.run(item, self.limits[item])
        except BaseException:
            self.close()
            raise
        if outcome == "xfailed":
            pytest.xfail(text)
        if outcome == "skipped":
            pytest.skip(text.removeprefix("Skipped: "))

    def finish(self) -> None:
        """Let the ranks end, if a job runs; fail if that goes wrong."""
        try:
            if self.job is not None:
                self.job.finish()
        finally:
            self.close()

    def close(self) -> None:
        """Kill what is left of the job."""
        if self.job is not None:
            self.job.close()
            self.job = None


class Job:
    """One `mpiexec -n n` whose ranks wait for commands; without mpiexec, an uncompiled process is its only rank."""

    def __init__(self, n: int, items: list[pytest.Item]) -> None:
        self.n, self.items = n or 1, items
        self.starter = "mpiexec" if n else "the uncompiled process"
        self.started = False
        self.read = [0] * self.n  # how many bytes of each rank's reports have been read
        self.reported: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)  # by command, then by rank
        self.folder = Path(tempfile.mkdtemp(prefix="aristos-ranks-"))
        config = items[0].config
        args = [item.nodeid for item in items]
        args += ["--rootdir", str(config.rootpath), "-p", "no:cacheprovider", "-s", "-q"]
        args += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # rank_main.py imports mpi.py before pytest does
        if config.inipath is not None:
            args += ["-c", str(config.inipath)]
        tests = [item.nodeid for item in items]
        job = {"n": n, "args": args, "tests": tests, "root": str(config.rootpath), "start": START}
        (self.folder / "job.json").write_text(json.dumps(job))
        self.command(READY, START)
        launcher = [*find_mpiexec(), "-n", str(n)] if n else []
        with open(self.folder / "launcher.out", "wb") as out:
            self.process = subprocess.Popen(
                [*launcher, sys.executable, str(Path(__file__).with_name("rank_main.py"))],
                cwd=config.rootpath,
                env=rank_environment(self.folder) | ({} if n else {"NUMBA_DISABLE_JIT": "1"}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def command(self, word: str, limit: float) -> None:
        """Give all ranks a command, atomically: a rank reads all of it or none."""
        (self.folder / "limit").write_text(str(limit))
        aside = self.folder / "command.tmp"
        aside.write_text(word)
        aside.replace(self.folder / "command")

    def run(self, item: pytest.Item, limit: float) -> tuple[str, str, float]:
        """Run one test; return its outcome, its reason unless it passed, and its processor seconds; or fail."""
        spent = 0.0
        if not self.started:
            reports = self.wait(READY, START, f"not ready within {START:g} s")
            spent += sum(report["spent"] for report in reports.values())
            self.started = True
        number = str(self.items.index(item))
        self.command(number, limit)
        reports = self.wait(number, limit, f"no end within {limit:g} s")
        outcomes = {report["outcome"]: report["text"] for report in reports.values()}
        spent += sum(report["spent"] for report in reports.values())
        if "xfailed" in outcomes:
            return "xfailed", outcomes["xfailed"], spent
        if set(outcomes) == {"skipped"}:
            return "skipped", outcomes["skipped"], spent
        return "passed", "", spent

    def wait(self, word: str, limit: float, late: str) -> dict[int, dict[str, Any]]:
        """Wait until all ranks have reported on a command; fail the test for those that failed, crashed or hang."""
        deadline, failed_at = time.monotonic() + limit, None
        while True:
            code = self.process.poll()
            now = time.monotonic()
            reports = self.reports(word)
            failed = [r for r, report in reports.items() if report["outcome"] == "failed"]
            silent = [r for r in range(self.n) if r not in reports]
            if not failed and not silent:
                return reports
            if failed and failed_at is None:
                failed_at = now
            waited = failed_at is not None and now > failed_at + 5 * GRACE  # MPI_Abort did not bring the job down
            if failed and (code is not None or waited):
                self.show(failed, f"failed on {name(failed)} of {self.n}")
            if code is not None:
                crashed = [r for r in silent if "Fatal Python error" in self.output(r)]
                self.show(crashed or silent, f"{self.starter} ended with code {code}", launcher=True)
            if now > deadline and not failed:
                self.show(silent, f"{late} on {name(silent)} of {self.n}", launcher=word == READY)
            time.sleep(POLL)

    def finish(self) -> None:
        """Let the ranks end. Something that a test left open may fail only now."""
        self.command(LAST, END)
        tests = f"after the last of {len(self.items)} tests of this job"
        try:
            code = self.process.wait(END)
        except subprocess.TimeoutExpired:
            left = [rank for rank in range(self.n) if is_ours(self.pid(rank), self.folder)]
            which = name(left) if left else f"{self.starter} alone, without ranks,"
            self.show(left, f"{which} did not end within {END:g} s {tests}", launcher=True)
        if code:
            self.show(list(range(self.n)), f"{self.starter} ended with code {code} {tests}", launcher=True)

    def reports(self, word: str) -> dict[int, dict[str, Any]]:
        """The ranks' reports on a command so far, by rank. Reads only what they have written since the last call."""
        for rank in range(self.n):
            file = self.folder / f"rank-{rank}.jsonl"
            if not file.exists() or file.stat().st_size == self.read[rank]:
                continue
            with open(file, "rb") as lines:
                lines.seek(self.read[rank])
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    self.read[rank] += len(line)
                    report = json.loads(line)
                    self.reported[report["command"]][rank] = report
        return self.reported[word]

    def output(self, rank: int) -> str:
        """What one rank has written since the current test began."""
        file = self.folder / f"rank-{rank}.out"
        return file.read_text(errors="replace") if file.exists() else ""

    def show(self, ranks: list[int], why: str, launcher: bool = False) -> NoReturn:
        """Fail the test with the output of these ranks."""
        self.kill()
        parts = [why]
        for rank in ranks:
            parts += [f"---- rank {rank} ----", self.output(rank)[-SHOWN:] or "(no output)"]
        if launcher:
            parts += [f"---- {self.starter} ----", (self.folder / "launcher.out").read_text(errors="replace")[-SHOWN:]]
        pytest.fail("\n".join(parts), pytrace=False)

    def close(self) -> None:
        """Kill what is left of the job and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """Kill what this job started and still runs: mpiexec's group, then ranks in groups of their own."""
        for sig in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                os.killpg(self.process.pid, sig)
                try:
                    self.process.wait(3.0)
                except subprocess.TimeoutExpired:
                    continue
        for rank in range(self.n):
            if is_ours(pid := self.pid(rank), self.folder):
                os.kill(pid, signal.SIGKILL)

    def pid(self, rank: int) -> int:
        """The process id of a rank; 0 before it has started."""
        file = self.folder / f"rank-{rank}.pid"
        return int(file.read_text() or 0) if file.exists() else 0


def is_ours(pid: int, folder: Path) -> bool:
    """Whether the process with this id is still a rank of this job: ids are reused."""
    if not pid:
        return False
    try:
        return f"{FLAG}={folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def name(ranks: list[int]) -> str:
    """`rank 1`, or `ranks 0, 2`."""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
