"""Processes of this machine, as the ranks of a job name them to each other: whether one has ended or is stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process. place: its machine and process namespace. started: when, in ticks since boot; numbers come again."""

    place: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> Process:
        """This process."""
        return cls(_place(), os.getpid(), _stat(os.getpid())[1])

    def trouble(self) -> str:
        """Why it does not run, as a clause: that it has ended, or is stopped. Empty if it runs, or is not seen here."""
        if not self.place or self.place != _place():
            return ""
        state, started = _stat(self.pid)
        if started != self.started or state in "ZX":
            return "has ended"
        return "is stopped" if state in "Tt" else ""


def _stat(pid: int) -> tuple[str, str]:
    """(state, start) of a process; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


def _place() -> str:
    """Equal in processes that see each other by number; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
