"""Transport `rma`: MPI windows between nodes. A put is MPI_Put, a signal a put of words after MPI_Win_flush."""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import EnvironmentProblem
from ..host.mpi_library import loaded, mapped
from ..primitives import wire
from ..primitives.buffers import LINE, zeros

STOP_SECONDS = 5.0  # how long a process that ends waits for its progress thread


def mpi_library() -> ctypes.CDLL:
    """The MPI library that mpi4py has loaded. It is never loaded a second time."""
    library = loaded("MPI_Put")
    if library is not None:
        return library
    raise EnvironmentProblem(
        "transport rma finds no MPI library with MPI_Put in this process"
        f" (mapped: {', '.join(mapped()) or 'none'}): use an mpi4py that is not linked statically with MPI"
    )


def _address(function: Any) -> int:
    value = ctypes.cast(function, ctypes.c_void_p).value
    assert value is not None
    return value


def _handle(thing: Any) -> int:
    """An MPI handle as an integer: a 32-bit int in the MPICH family, a pointer in Open MPI."""
    from mpi4py import MPI

    value = MPI._handleof(thing)
    return ctypes.c_int(value).value if MPI._sizeof(thing) == 4 else int(value)


class RmaWindow:
    """`nbytes` of memory on each rank, into which every rank of `comm` can put. Collective.

    base: address of this rank's part, on a cache line. bases: the addresses of all parts that this process maps, by
    rank of `comm`. shift: [world] bytes from the start of each rank's MPI window to its part. wire: address of the
    words through which compiled code calls MPI. The memory starts as zeros.
    """

    def __init__(self, comm: Any, nbytes: int, part: np.ndarray | None = None) -> None:
        """part: this rank's part, uint8, on a cache line; by default MPI allocates it."""
        from mpi4py import MPI

        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise EnvironmentProblem(
                "transport rma calls MPI from several threads, so MPI must be initialised with MPI_THREAD_MULTIPLE"
                " (mpi4py does so unless mpi4py.rc.thread_level says otherwise)"
            )
        self.nbytes = nbytes
        if part is None:
            self._window: Any = MPI.Win.Allocate(nbytes + LINE, 1, comm=comm)
        else:
            self._window = MPI.Win.Create(part, 1, comm=comm)
        # A failed put must end the job. By mpi4py's default it would return, and peers would trust later words,
        # though the data never arrived.
        self._window.Set_errhandler(MPI.ERRORS_ARE_FATAL)
        address = self._window.tomemory().address
        self.base = -(-address // LINE) * LINE
        self.bases = {comm.Get_rank(): self.base}
        self.shift = comm.allgather(self.base - address)
        ctypes.memset(self.base, 0, nbytes)
        self._window.Lock_all()
        self._window.Sync()
        self._words = self._connect(comm)
        self.wire = self._words.ctypes.data
        self._threads: list[threading.Thread] = []
        comm.Barrier()
        self._window.Sync()
        self.start("aristos-progress", wire.run_progress_thread, self.wire)
        self._pid = os.getpid()
        self._key = MPI.Comm.Create_keyval(delete_fn=lambda *_: self.stop())
        MPI.COMM_SELF.Set_attr(self._key, self)  # MPI_Finalize deletes this attribute first, so the threads end
        atexit.register(self._forget)

    def _connect(self, comm: Any) -> np.ndarray:
        from mpi4py import MPI

        library = mpi_library()
        words = zeros((wire.words(comm.Get_size()),))
        for name, function in (
            (wire.PUT, library.MPI_Put),
            (wire.FLUSH, library.MPI_Win_flush),
            (wire.SYNC, library.MPI_Win_sync),
            (wire.PROBE, library.MPI_Iprobe),
            (wire.SLEEP, ctypes.CDLL(None).usleep),
        ):
            words[name] = _address(function)
        words[wire.WINDOW], words[wire.COMM], words[wire.BYTE] = map(_handle, (self._window, comm, MPI.BYTE))
        words[wire.ANY_SOURCE], words[wire.ANY_TAG] = MPI.ANY_SOURCE, MPI.ANY_TAG
        return words

    def start(self, name: str, target: Callable[..., None], *args: Any) -> None:
        """Start a thread that may make MPI calls on this window until the word STOP of the wire is set."""
        self._threads.append(threading.Thread(target=target, args=args, name=name, daemon=True))
        self._threads[-1].start()

    def in_call(self, yes: bool) -> None:
        """Set whether the workers themselves let MPI make progress."""
        self._words[wire.IN_CALL] = yes

    def calling(self) -> tuple[int, int, list[int]]:
        """(peer of the current MPI call or -1, its start in ns on CLOCK_MONOTONIC, other peers with unflushed puts).

        Raises EnvironmentProblem if MPI has failed to make progress.
        """
        if self._words[wire.ERROR]:
            from mpi4py import MPI

            why = MPI.Get_error_string(int(self._words[wire.ERROR]))
            raise EnvironmentProblem(f"MPI_Iprobe, which makes progress with puts, has failed: {why}")
        peer = int(self._words[wire.PEER]) - 1
        others = [r for r in np.flatnonzero(self._words[wire.UNDER_WAY :]).tolist() if r != peer]
        return peer, int(self._words[wire.SINCE]), others

    def stop(self) -> None:
        """End the threads. Does not wait for an MPI call that does not return."""
        self._words[wire.STOP] = 1
        for thread in self._threads:
            thread.join(STOP_SECONDS)

    def _forget(self) -> None:
        """End the progress thread while Python and MPI still work."""
        from mpi4py import MPI

        if self._key != MPI.KEYVAL_INVALID and os.getpid() == self._pid and not MPI.Is_finalized():
            MPI.COMM_SELF.Delete_attr(self._key)
            self._key = MPI.Comm.Free_keyval(self._key)

    def close(self) -> None:
        """Free the window; collective."""
        if self._window is not None:
            self._forget()
            atexit.unregister(self._forget)
            self._window.Unlock_all()
            self._window.Free()
            self._window = None
