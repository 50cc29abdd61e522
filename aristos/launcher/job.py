"""Runs a job: its launcher is a child process, signals are passed on, and what stays is cleaned up.

A job may leave processes (a killed launcher's ranks, ranks that ignore SIGTERM) and files in /dev/shm. Its processes
are found by an environment variable that only this job has, and ended. Files that appeared while the job ran, and that
no process uses, are named, or removed on request. All this is done only on this node: on other nodes Slurm or MPI's
daemons end the tasks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..host.mpi_files import SHM
from . import left
from .take_seat import JOB

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PATIENCE = 10.0  # seconds from an ending signal to the launcher's SIGTERM
FIRMER = 3.0  # seconds from that SIGTERM to SIGKILL
OPEN_MPI = "OMPI_COMM_WORLD_RANK"  # a variable that only ranks under Open MPI have
GONE = 5.0  # seconds from the launcher's end to SIGKILL for the job's processes that still run


class Job:
    """A launcher's process, which passes signals to its ranks. words[0] is the launcher's program.

    Open MPI's launcher kills its ranks a quarter of a second after any ending signal, so this class sends such signals
    to the ranks itself. srun kills its tasks when it gets an ending signal, so scancel sends such signals to the tasks,
    by the name of the job step.
    """

    def __init__(self, words: list[str], env: Mapping[str, str]) -> None:
        self.mark = secrets.token_hex(8)
        self.step = f"aristos-{self.mark}" if Path(words[0]).name == "srun" else ""
        self.signals: list[int] = []
        words = [words[0], f"--job-name={self.step}", *words[1:]] if self.step else words
        # The launcher gets a new session, so that a terminal's Ctrl-C reaches only this process, which passes it on
        # once.
        self.child = subprocess.Popen(
            words, env={**env, JOB: self.mark}, start_new_session=True, preexec_fn=self._end_with_parent
        )

    def _end_with_parent(self) -> None:
        """Make this process end with its parent. The child calls this.

        srun ends its tasks when it gets SIGTERM; mpiexec's daemons end their ranks when mpiexec dies.
        """
        ctypes.CDLL(None).prctl(1, signal.SIGTERM if self.step else signal.SIGKILL)

    def send(self, how: int) -> None:
        """Pass a signal on to the launcher, or an ending signal to the ranks where Slurm or their mark reaches them."""
        if not (how in ENDING and (_to_step(self.step, how) if self.step else _to_ranks(self.mark, how))):
            self._kill(how)

    def _kill(self, how: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, how)

    def wait(self) -> int:
        """Wait for the launcher's exit code, and pass signals on.

        A launcher that outlives an ending signal by PATIENCE gets SIGTERM, and FIRMER later SIGKILL.
        """
        passed, firmer, last = 0, [(PATIENCE, signal.SIGTERM), (FIRMER, signal.SIGKILL)], None
        while True:
            while passed < len(self.signals):
                self.send(self.signals[passed])
                passed += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.child.wait(0.1)
            if not self.ended_by:
                continue
            now = time.monotonic()
            last = last or now
            if firmer and now > last + firmer[0][0]:
                self._kill(firmer.pop(0)[1])
                last = now

    @property
    def ended_by(self) -> int:
        """The first ending signal that this process received; 0 if there was none."""
        return next((how for how in self.signals if how in ENDING), 0)


def run_job(words: list[str], env: Mapping[str, str], clean: bool) -> tuple[int, bool]:
    """Start the launcher, wait for it, and end processes that stay. clean: whether to remove files that the job leaves.

    Returns (exit code, whether a signal to this process ended the job). A signal gives the code 128 + its number.
    """
    before = set(os.listdir(SHM)) if os.path.isdir(SHM) else set()
    received: list[int] = []
    old = {how: signal.signal(how, lambda how, frame: received.append(how)) for how in PASSED_ON}
    try:
        job = Job(words, env)
        job.signals = received
        try:
            code = job.wait()
        finally:
            _clear(job.mark)
            left.handle(clean, before)
    finally:
        for how, action in old.items():
            signal.signal(how, action)
    if job.ended_by:
        return 128 + job.ended_by, True
    return code if code >= 0 else 128 - code, False


def _to_step(name: str, how: int) -> bool:
    """Send a signal to all tasks of a step through Slurm; False if that failed."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "start_new_session": True}
    try:
        steps = subprocess.run(["squeue", "--steps", "--noheader", "--format=%i %j"], **options).stdout.splitlines()
        found = [line.split()[0] for line in steps if line.split()[1:] == [name]]
        words = ["scancel", f"--signal={signal.Signals(how).name.removeprefix('SIG')}", *found]
        return bool(found) and subprocess.run(words, **options).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _to_ranks(mark: str, how: int) -> bool:
    """Send a signal to the ranks of Open MPI's launcher; False if there are none."""
    ranks = processes(mark, OPEN_MPI)
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
    return bool(ranks)


def processes(mark: str, variable: str = "") -> list[int]:
    """Processes of this machine with the job's mark, and with the variable, in their environment.

    This process and zombies are left out.
    """
    wanted, also = f"{JOB}={mark}".encode(), f"\0{variable}=".encode() if variable else b""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environ = b"\0" + (folder / "environ").read_bytes()
            if wanted in environ.split(b"\0") and also in environ and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def _clear(mark: str) -> None:
    """Wait until the job's processes on this machine have ended; kill those that stay."""
    begun, killed = time.monotonic(), set()
    while left := processes(mark):
        spent = time.monotonic() - begun
        if spent > 2 * GONE:
            return
        for pid in left if spent > 0.5 else ():
            how = signal.SIGKILL if spent > GONE else signal.SIGTERM
            if (pid, how) not in killed:
                killed.add((pid, how))
                with contextlib.suppress(OSError):
                    os.kill(pid, how)
        time.sleep(0.02)
