"""The machine as a job sees it: its own /dev/shm and disk, so that all leftovers and full disks are the job's.

Needs root (CAP_SYS_ADMIN), for mounts in a namespace of this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

NEW_MOUNTS, READ_ONLY, REMOUNT, RECURSIVE, PRIVATE, DETACH = 0x20000, 1, 32, 0x4000, 0x40000, 2
MARK = "ARISTOS_FAULT_JOB"  # in the environment of every process of a job
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def own_mounts() -> bool:
    """Give this process mounts of its own; False without the rights for it."""
    try:
        _call("unshare", NEW_MOUNTS)
        _call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system in memory of a size such as 16m."""
    _call("mount", b"aristos-faults", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode())
    try:
        yield
    finally:
        _call("umount2", str(folder).encode(), DETACH)


def read_only(folder: Path, yes: bool) -> None:
    """Make a mounted file system read-only, or writable again."""
    flags = REMOUNT | (READ_ONLY if yes else 0)
    for tries in range(200):
        try:
            _call("mount", None, str(folder).encode(), None, flags, None)
            return
        except OSError:  # a file is open for writing
            if tries == 199:
                raise
            time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def marked(token: str) -> list[int]:
    """Processes of a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={token}".encode() in (folder / "environ").read_bytes().split(b"\0") and alive(int(folder.name)):
                found.append(int(folder.name))
    return found


def kill_all(token: str) -> None:
    """Kill what is left of a job."""
    for pid in marked(token):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
