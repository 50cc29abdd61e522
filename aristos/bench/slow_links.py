"""Links that are slowed on purpose: each peer's link gets a latency and a bandwidth. The code that puts is unchanged.

The wire's words hold the addresses of the MPI functions that the wire calls. A `SlowLinks` replaces three of these
functions. A put first waits as long as its bytes take on the link, and a flush waits for the link's latency; then the
real function runs. A sync is not slowed. So a put and its flush take alpha + beta * bytes, the model that `bench put`
and `aristos topo --measure` fit. A waiting thread sleeps and may wake late. The excess is subtracted from the waits
that follow, until `taken` is called. So the waits together take at least the set time, and hardly more. The links of a
rank are used one at a time, because a put holds the wire's lock. Only the wire is slowed; stores within a node and
MPI's own messages are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Any

import numba
import numpy as np
from numba import int32, int64

from kernel_cache.compile import jit, warm_up

from ..kernels.cpu import llvm as _lowerings  # noqa: F401  registers the primitives' compiled bodies
from ..primitives import memory as mem
from ..primitives import wire as mpi
from ..primitives.buffers import aligned
from .pairs import take_wire

MIB = 1 << 20
LONG_NS = 100_000  # a wait longer than this is one usleep
LOCK_SECONDS = 30.0  # time limit of the wait for the wire's lock
# Words: the real functions and window, usleep, and the excess of earlier waits in ns; then PER_PEER words for each
# peer.
PUT, FLUSH, SYNC, WINDOW, SLEEP, EXCESS, PEERS = range(7)
LATENCY, PER_MIB, WAITED, BYTES, PUTS, FLUSHES, PER_PEER = range(7)  # ns, ns per MiB; ns waited, counts since a reset
CALLED = int32(*[int64] * 8)


@jit
def pass_time(slow, row, nanoseconds):
    """Sleep for `nanoseconds` minus the excess of earlier waits, and add the time slept to a peer's row."""
    begun = mem.clock()
    now, until = begun, begun + nanoseconds - mem.load(slow + 8 * EXCESS)
    while now < until:
        if until - now > LONG_NS:
            mem.call(mem.load(slow + 8 * SLEEP), (until - now) // 1000, 0, 0, 0, 0, 0, 0, 0)
        else:
            mem.nap()
        now = mem.clock()
    mem.store(slow + 8 * EXCESS, now - until)
    mem.store(row + 8 * WAITED, mem.load(row + 8 * WAITED) + now - begun)


@jit
def slow_put(source, n, kind, peer, at, n_there, kind_there, slow):
    """MPI_Put, after the time that `n` bytes take on the link."""
    row = slow + 8 * (PEERS + PER_PEER * peer)
    pass_time(slow, row, mem.load(row + 8 * PER_MIB) * n // MIB)
    mem.store(row + 8 * BYTES, mem.load(row + 8 * BYTES) + n)
    mem.store(row + 8 * PUTS, mem.load(row + 8 * PUTS) + 1)
    window = mem.load(slow + 8 * WINDOW)
    return mem.call(mem.load(slow + 8 * PUT), source, n, kind, peer, at, n_there, kind_there, window)


@jit
def slow_flush(peer, slow):
    """MPI_Win_flush, after the link's latency."""
    row = slow + 8 * (PEERS + PER_PEER * peer)
    pass_time(slow, row, mem.load(row + 8 * LATENCY))
    mem.store(row + 8 * FLUSHES, mem.load(row + 8 * FLUSHES) + 1)
    return mem.call(mem.load(slow + 8 * FLUSH), peer, mem.load(slow + 8 * WINDOW), 0, 0, 0, 0, 0, 0)


@jit
def same_sync(slow):
    """MPI_Win_sync, not slowed."""
    return mem.call(mem.load(slow + 8 * SYNC), mem.load(slow + 8 * WINDOW), 0, 0, 0, 0, 0, 0, 0)


@cache
def _functions() -> tuple[Any, Any, Any]:
    """The three functions as C functions of eight integers, which live as long as the process."""
    eight, word = (int64,) * 8, (int64,)
    warm_up([(slow_put, eight), (slow_flush, word * 2), (same_sync, word)])

    def put(a, b, c, d, e, f, g, h):
        return int32(slow_put(a, b, c, d, e, f, g, h))

    def flush(a, b, c, d, e, f, g, h):
        return int32(slow_flush(a, b))

    def sync(a, b, c, d, e, f, g, h):
        return int32(same_sync(a))

    made = [numba.cfunc(CALLED)(each) for each in (put, flush, sync)]
    return made[0], made[1], made[2]


class SlowLinks:
    """A context manager that slows the wire at an address. It is not collective, and slows only this rank's puts.

    alpha_us, beta_us_per_mib: [world] of this rank's link to each rank of the wire's communicator, 0 for itself.
    Leave the block before the window is closed. Raises WaitTimeout if another thread does not release the wire.
    """

    def __init__(self, wire: int, alpha_us: Sequence[float], beta_us_per_mib: Sequence[float]) -> None:
        self._wire = wire
        self._words = aligned((PEERS + PER_PEER * len(alpha_us),), np.int64)
        self._words[:] = 0
        self._rows = self._words[PEERS:].reshape(-1, PER_PEER)
        self._rows[:, LATENCY] = np.asarray(alpha_us) * 1e3
        self._rows[:, PER_MIB] = np.asarray(beta_us_per_mib) * 1e3

    def __enter__(self) -> SlowLinks:
        functions = _functions()
        real = mem.words(self._wire, mpi.words(len(self._rows)))
        self._words[:EXCESS] = real[[mpi.PUT, mpi.FLUSH, mpi.SYNC, mpi.WINDOW, mpi.SLEEP]]
        self._install([*(each.address for each in functions), self._words.ctypes.data])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._install(self._words[:SLEEP].tolist())

    def _install(self, functions: list[int]) -> None:
        """Write the wire's functions and window, under its lock."""
        take_wire(self._wire, LOCK_SECONDS)
        words = mem.words(self._wire, mpi.words(len(self._rows)))
        words[[mpi.PUT, mpi.FLUSH, mpi.SYNC, mpi.WINDOW]] = functions
        mpi.unlock(self._wire)

    def taken(self) -> tuple[float, int, int, int]:
        """(seconds waited, bytes put, puts, flushes) since the last call of `taken`.

        Use it between calls of the layer.
        """
        waited, *counts = self._rows[:, [WAITED, BYTES, PUTS, FLUSHES]].sum(0).tolist()
        self._rows[:, WAITED:] = 0
        self._words[EXCESS] = 0
        return waited * 1e-9, counts[0], counts[1], counts[2]
