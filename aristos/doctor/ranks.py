"""The ranks of the job: starts and ends MPI, and makes a few collectives, each with a time limit.

mpi4py holds Python's lock while it starts and ends MPI, so no Python thread could watch that. This module starts and
ends MPI by ctypes, which releases the lock. A call that takes too long ends the report and the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..host.mpi_library import loaded
from ..host.nodes import Nodes
from .finding import named

SAID = 10.0  # seconds that a rank waits silently in `prepare`


class Ranks:
    """COMM_WORLD, or one process without MPI. limit: seconds that one call may take.

    give_up(what): called on the rank that waited too long, before it ends the job with exit code 3.
    """

    def __init__(self, limit: float, give_up: Callable[[str], None]) -> None:
        self.rank, self.size = 0, 1
        self.comm: Any = None
        self.node: Any = None  # the communicator of the ranks that share memory
        self.nodes = Nodes.split(1)
        self._limit, self._give_up = limit, give_up
        self._library: ctypes.CDLL | None = None
        self._mine = False  # whether MPI was started here

    def start(self) -> None:
        """Load the MPI library, start MPI, find the nodes.

        Raises ImportError or RuntimeError if MPI cannot be loaded or started.
        """
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI

        self._library = loaded("MPI_Init_thread")
        if not MPI.Is_initialized():
            with self.bounded("MPI to start (MPI_Init_thread)"):
                self._start(MPI)
            self._mine = True
        comm = MPI.COMM_WORLD
        comm.Set_errhandler(MPI.ERRORS_RETURN)  # so that mpi4py raises errors as exceptions
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        with self.bounded("the other ranks (MPI_Comm_split_type)"):
            self.nodes, self.node = Nodes.shared(comm)
        self.comm = comm

    def _start(self, mpi: Any) -> None:
        if self._library is None:
            mpi.Init_thread()
            return
        level = ctypes.c_int()
        code = self._library.MPI_Init_thread(None, None, mpi.THREAD_MULTIPLE, ctypes.byref(level))
        if code:
            raise RuntimeError(f"MPI_Init_thread returned {code}")

    def end(self) -> None:
        """End MPI; collective."""
        if self.comm is None:
            return
        with self.bounded("the other ranks to end MPI (MPI_Finalize)"):
            self.node.Free()
            if self._mine and self._library is not None:
                self._library.MPI_Finalize()

    @property
    def lead(self) -> bool:
        """Whether this is the first rank of its node."""
        return self.nodes.node_of[self.rank] == self.rank

    def allgather(self, value: Any, what: str) -> list[Any]:
        """`value` of every rank, in rank order. what: the value in words, for the message if a rank is missing."""
        if self.comm is None:
            return [value]
        with self.bounded(f"the other ranks ({what})"):
            request = self.comm.Ibarrier()
            while not request.Test():  # sleep between polls: another rank may be measuring, or running a slow command
                time.sleep(0.001)
            return self.comm.allgather(value)

    def prepare(self, step: Callable[[], object], what: str) -> list[str]:
        """Run a step on every rank. Returns each rank's error, or ''. The limit does not count the time of the step.

        The step calls no MPI. It may compile, or wait for a process that does, for minutes. After SAID seconds rank 0
        says on stderr which ranks it waits for.
        """
        said = time.monotonic() + SAID
        with ThreadPoolExecutor(1) as pool:
            mine = pool.submit(step)
            while not all(done := self.allgather(mine.done(), what)):
                if self.rank == 0 and time.monotonic() > said:
                    late = named(rank for rank in range(self.size) if not done[rank])
                    print(f"aristos doctor: waiting for {late} {what}", file=sys.stderr, flush=True)
                    said = float("inf")
                time.sleep(0.05)
        error = mine.exception()
        return self.allgather("" if error is None else f"{type(error).__name__}: {error}", what)

    @contextlib.contextmanager
    def bounded(self, what: str) -> Iterator[None]:
        """End the job if the block takes longer than the limit."""
        timer = threading.Timer(self._limit, self._abort, (what,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _abort(self, what: str) -> None:
        text = f"rank {self.rank} waited {self._limit:g} s for {what}"
        print(f"aristos doctor: {text}; ending the job", file=sys.stderr, flush=True)
        self._give_up(text)
        if self.comm is not None and self.size > 1:
            threading.Timer(5.0, os._exit, (3,)).start()  # in case Abort hangs
            self.comm.Abort(3)
        os._exit(3)
