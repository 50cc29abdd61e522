"""Transport `shm`: MPI shared windows between the ranks of a node. A put is a store, a signal a release store."""

from __future__ import annotations

import ctypes
from typing import Any

from ..errors import EnvironmentProblem
from ..primitives.buffers import LINE


def check_one_node(comm: Any, transport: str) -> None:
    """Raise EnvironmentProblem unless MPI can share memory between all ranks of `comm`. Collective."""
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    here = node.size
    node.Free()
    if here != comm.size:
        raise EnvironmentProblem(
            f"transport {transport} needs all {comm.size} ranks on one node, but this rank's node has {here} of them"
        )


class ShmWindow:
    """`nbytes` of memory on each rank, which every rank of `comm` can load and store. Collective.

    base: address of every rank's part in this process, on a cache line. The memory starts as zeros.
    """

    def __init__(self, comm: Any, nbytes: int) -> None:
        from mpi4py import MPI

        check_one_node(comm, "shm")
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
