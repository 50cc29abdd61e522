"""Processes of this machine: how ranks name processes to each other, and whether a process has ended or stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ENDED = "has ended"


@dataclass(frozen=True)
class Process:
    """A process. place: its machine, and its namespaces of processes and of time. started: when it started.

    started is in clock ticks since boot, as the process's namespace of time counts them. place or started is empty if
    unknown. The kernel reuses process ids, so two objects name one process only if they have the same `started` too.
    """

    place: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> Process:
        """This process."""
        return cls(_place(), os.getpid(), _stat(os.getpid())[1])

    def seen_here(self) -> bool:
        """Whether the calling process sees, by the id, that the named process runs.

        False does not mean that the process has ended: /proc may hide it (hidepid=2), or it may run on a copy of this
        virtual machine, which has the same place.
        """
        return self._of_this_place() and _stat(self.pid)[1] == self.started

    def _of_this_place(self) -> bool:
        """Whether its machine and namespaces are those of the calling process."""
        return bool(self.place and self.started) and self.place == _place()

    def trouble(self) -> str:
        """A clause that says why the process does not run: it has ended, or is stopped.

        The clause is empty if the process runs, or belongs to another place. Use this only for a process that was
        `seen_here`, or that /proc does not hide.
        """
        if not self._of_this_place():
            return ""
        state, started = _stat(self.pid)
        if not state:
            return ""
        if state in ("Z", "X") or started != self.started:
            return ENDED
        return "is stopped" if state in ("T", "t") else ""


def _stat(pid: int) -> tuple[str, str]:
    """(state, start) of a process. The state is X if there is no such process; both are empty if unknown."""
    try:  # read as bytes, because the name of a process need not be valid text
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), fields[19].decode()
    except (FileNotFoundError, ProcessLookupError):
        return "X", ""
    except (OSError, IndexError):
        return "", ""


def _place() -> str:
    """A text that is equal in processes that see each other's ids; empty if unknown or /proc is another namespace's."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        times = os.readlink("/proc/self/ns/time") if os.path.exists("/proc/self/ns/time") else ""
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {times}"
    except OSError:
        return ""
