"""Replaces the MPI functions that a wire calls by other functions. The code that puts is unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import numba
import numpy as np
from numba import int32, int64

from kernel_cache.compile import jit, warm_up

from ..kernels.cpu import llvm as _lowerings  # noqa: F401  registers the primitives' compiled bodies
from ..primitives import memory as mem
from ..primitives import wire as mpi
from .pairs import take_wire

LOCK_SECONDS = 30.0  # time limit of the wait for the wire's lock
# The first words of a replacement: the real functions and window, and usleep. The functions get the address of these
# words in place of the window.
PUT, FLUSH, SYNC, WINDOW, SLEEP, OWN = range(6)
CALLED = int32(*[int64] * 8)


@jit
def real_put(source, n, kind, peer, at, n_there, kind_there, words):
    """MPI_Put."""
    window = mem.load(words + 8 * WINDOW)
    return mem.call(mem.load(words + 8 * PUT), source, n, kind, peer, at, n_there, kind_there, window)


@jit
def real_flush(peer, words):
    """MPI_Win_flush."""
    return mem.call(mem.load(words + 8 * FLUSH), peer, mem.load(words + 8 * WINDOW), 0, 0, 0, 0, 0, 0)


@jit
def real_sync(words):
    """MPI_Win_sync."""
    return mem.call(mem.load(words + 8 * SYNC), mem.load(words + 8 * WINDOW), 0, 0, 0, 0, 0, 0, 0)


@cache
def c_functions(put: Any, flush: Any) -> tuple[Any, Any, Any]:
    """(put, flush, sync) as C functions of eight integers, which live as long as the process.

    put, flush: compiled functions with the arguments of `real_put` and `real_flush`.
    """
    eight, word = (int64,) * 8, (int64,)
    warm_up([(put, eight), (flush, word * 2), (real_sync, word)])

    def c_put(a, b, c, d, e, f, g, h):
        return int32(put(a, b, c, d, e, f, g, h))

    def c_flush(a, b, c, d, e, f, g, h):
        return int32(flush(a, b))

    def c_sync(a, b, c, d, e, f, g, h):
        return int32(real_sync(a))

    made = [numba.cfunc(CALLED)(each) for each in (c_put, c_flush, c_sync)]
    return made[0], made[1], made[2]


class ReplacedWire:
    """A context manager: within the block a wire calls other functions. It is not collective.

    wire: address of the wire. ranks: the number of ranks of its communicator. words: int64 on a cache line, OWN words
    for this class and any others for the functions. functions: from `c_functions`. Leave the block before the window is
    closed. Raises WaitTimeout if another thread does not release the wire.
    """

    def __init__(self, wire: int, ranks: int, words: np.ndarray, functions: Sequence[Any]) -> None:
        self._wire, self._size, self._replacing, self._functions = wire, mpi.words(ranks), words, functions

    def __enter__(self) -> Self:
        real = mem.words(self._wire, self._size)
        self._replacing[:OWN] = real[[mpi.PUT, mpi.FLUSH, mpi.SYNC, mpi.WINDOW, mpi.SLEEP]]
        self._install([*(each.address for each in self._functions), self._replacing.ctypes.data])
        return self

    def __exit__(self, *why: object) -> None:
        self._install(self._replacing[:SLEEP].tolist())

    def _install(self, functions: list[int]) -> None:
        """Write the wire's functions and window, under its lock."""
        take_wire(self._wire, LOCK_SECONDS)
        mem.words(self._wire, self._size)[[mpi.PUT, mpi.FLUSH, mpi.SYNC, mpi.WINDOW]] = functions
        mpi.unlock(self._wire)
