"""A running job: its launcher as a child, signals passed on, and nothing of it left behind.

What it leaves would be processes (a launcher that was killed, ranks that ignore SIGTERM) and files in /dev/shm. The
first are known by a variable that only this job has, the second by appearing while it ran and being in nobody's use.
It refuses to look at other machines: there Slurm, or the MPI's own daemons, end the tasks.
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

from ..doctor.memory import leftovers
from ..transport.room import SHM
from .take_seat import JOB

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PATIENCE = 10.0  # seconds a job that was told to end gets before SIGTERM, and again before SIGKILL
GONE = 5.0  # seconds its processes get to vanish after the launcher


def run(words: list[str], env: Mapping[str, str]) -> int:
    """Start the launcher, wait for it, clean up; its exit code, 128 + the signal that ended it or this process."""
    mark = secrets.token_hex(8)
    before = set(os.listdir(SHM)) if os.path.isdir(SHM) else set()
    child: subprocess.Popen[bytes] | None = None
    told: list[int] = []

    def pass_on(how: int, frame: object) -> None:
        told.append(how)
        if child is not None:
            _tell(child, how)

    old = {how: signal.signal(how, pass_on) for how in PASSED_ON}
    try:
        # A session of its own: a terminal's Ctrl-C comes to this process alone, which passes it on once.
        child = subprocess.Popen(
            words, env={**env, JOB: mark}, start_new_session=True, preexec_fn=_end_with_parent
        )  # fmt: skip
        for how in told:  # while it was started
            _tell(child, how)
        code = _wait(child, told)
    finally:
        _clear(mark)
        removed = clean(before)
        if removed:
            print(f"aristos run: removed {removed} files in {SHM} that MPI left", flush=True)
        for how, action in old.items():
            signal.signal(how, action)
    ended = next((how for how in told if how in ENDING), None)
    if ended is not None:
        return 128 + ended
    return code if code >= 0 else 128 - code


def _end_with_parent() -> None:
    """Should this process be killed, the launcher ends the job as for SIGTERM."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _tell(child: subprocess.Popen[bytes], how: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, how)


def _wait(child: subprocess.Popen[bytes], told: list[int]) -> int:
    """The launcher's exit code. Once it was told to end, it is told so more and more firmly."""
    firmer = [signal.SIGTERM, signal.SIGKILL]
    last = None
    while True:
        try:
            return child.wait(0.1)
        except subprocess.TimeoutExpired:
            pass
        if not any(how in ENDING for how in told):
            continue
        now = time.monotonic()
        last = last or now
        if firmer and now > last + PATIENCE:
            _tell(child, firmer.pop(0))
            last = now


def processes(mark: str) -> list[int]:
    """Processes of this machine with the job's mark in their environment, zombies and this one aside."""
    wanted = f"{JOB}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def _clear(mark: str) -> None:
    """Wait for the job's processes on this machine to be gone; what stays is killed."""
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


def clean(before: set[str], folder: str = SHM) -> int:
    """Remove MPI's files that were not there `before` the job and that no process has mapped or open; how many.

    A mapping survives the removal of its file, and who makes one has it open, so no other job can lose anything.
    """
    removed = 0
    for path, _ in leftovers(folder, young=0.0):
        if Path(path).name not in before:
            with contextlib.suppress(OSError):
                os.unlink(path)
                removed += 1
    return removed


def clean_old(folder: str = SHM) -> int:
    """Remove what killed jobs of this user left a while ago; how many files."""
    removed = 0
    for path, _ in leftovers(folder):
        with contextlib.suppress(OSError):
            os.unlink(path)
            removed += 1
    return removed
