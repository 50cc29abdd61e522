"""Transport `shm`: MPI shared windows between the ranks of a node. A put is a store, a signal a release store."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, MemoryProblem

SHM = "/dev/shm"
LINE = 64


def free_shared_memory() -> int | None:
    """Bytes that new shared memory may take on this node, or None where nobody says."""
    try:
        info = os.statvfs(SHM)
    except OSError:
        return None
    return info.f_bavail * info.f_frsize


def free_memory() -> int | None:
    """Bytes of main memory that this node, or this container, can still give; None where nobody says."""
    known = []
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:
        known += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        known.append(max(0, limit - int(Path("/sys/fs/cgroup/memory.current").read_text())))
    return min(known, default=None)


def short_of_memory(nbytes: int) -> str | None:
    """What is wrong if this node's main memory cannot hold `nbytes` more; None if it can."""
    have = free_memory()
    if have is None or have >= nbytes:
        return None
    return (
        f"{nbytes / 2**20:.1f} MiB of memory are needed, {have / 2**20:.1f} MiB are free:"
        " lower max_tokens, top_k or threads, or use fewer ranks on this node (MoE.memory() tells a rank's windows)"
    )


def check_memory(nbytes: int) -> None:
    """Raise if this node's main memory cannot hold `nbytes` more."""
    problem = short_of_memory(nbytes)
    if problem is not None:
        raise MemoryProblem(f"windows: {problem}")


def check_room(comm: Any, nbytes: int) -> None:
    """Raise on every rank if /dev/shm cannot hold `nbytes` a rank: written to later, it would be a SIGBUS."""
    need = comm.allreduce(nbytes)
    have = min((n for n in (free_shared_memory(), free_memory()) if n is not None), default=None)
    short = comm.allreduce(int(have is not None and have < need))
    if short:
        raise MemoryProblem(
            f"windows need {need / 2**20:.1f} MiB of shared memory in {SHM} for {comm.size} ranks,"
            f" {(have or 0) / 2**20:.1f} MiB are free there or in main memory: make it larger"
            " (docker run --shm-size=...), lower max_tokens, or remove what killed jobs left there"
        )


class ShmWindow:
    """`nbytes` of memory a rank, that every rank of `comm` can load and store. Collective.

    base: address of every rank's part in this process, on a cache line. The memory starts as zeros.
    """

    def __init__(self, comm: Any, nbytes: int) -> None:
        from mpi4py import MPI

        check_room(comm, nbytes + LINE)
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        here = node.size
        node.Free()
        if here != comm.size:
            raise EnvironmentProblem(
                f"transport shm needs all {comm.size} ranks on one node,"
                f" this rank shares its node with {here - 1} others"
            )
        self.nbytes = nbytes
        self._window: Any = MPI.Win.Allocate_shared(nbytes + LINE, 1, comm=comm)
        self.base = []
        for rank in range(comm.size):
            memory, _ = self._window.Shared_query(rank)
            self.base.append(-(-memory.address // LINE) * LINE)
        ctypes.memset(self.base[comm.rank], 0, nbytes)
        self._window.Lock_all()
        self._window.Sync()
        comm.Barrier()
        self._window.Sync()

    def close(self) -> None:
        """Free the window; collective."""
        if self._window is not None:
            self._window.Unlock_all()
            self._window.Free()
            self._window = None
