"""Links made slow on purpose, each peer's by its own latency and bandwidth, below everything that puts.

The wire's words name the functions of MPI that it calls. While a `SlowLinks` is in place they name three compiled ones
instead: a put first waits for as long as its bytes take on the link, a flush for the link's latency, and then the real
function runs. A put and its flush so take alpha + beta bytes, which is how `bench put` and `aristos topo --measure` fit
a link. What waits has given its core away, and may get it back late: what one wait lasted too long is taken off the
next ones until `taken`, so that together they never last less than was set, and hardly more. One rank's links are used
one after the other: whoever puts holds the wire's lock. It refuses to slow anything that does not go by the wire: ranks
of one node, MPI's own messages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Any

import numba
import numpy as np
from numba import int32, int64

from ..errors import WaitTimeout
from ..kernels.cpu import llvm as _lowerings  # noqa: F401  registers the primitives' compiled bodies
from ..primitives import memory as mem
from ..primitives import wire as mpi
from ..primitives.buffers import aligned
from ..primitives.compile import jit, warm_up

MIB = 1 << 20
LONG_NS = 100_000  # a wait from which on it is slept at once
LOCK_SECONDS = 30.0  # that the wire's lock may be held by somebody else
# Words: the real functions and window, usleep; ns waited beyond what was asked for; then PER_PEER words a peer.
PUT, FLUSH, SYNC, WINDOW, SLEEP, AHEAD, PEERS = range(7)
LATENCY, PER_MIB, WAITED, BYTES, PUTS, FLUSHES, PER_PEER = range(7)  # ns, ns a MiB; since reset: ns waited, counts
CALLED = int32(*[int64] * 8)


@jit
def pass_time(slow, row, nanoseconds):
    """Wait so long less what was waited ahead, away from the core, and count it in a peer's row."""
    begun = mem.clock()
    now, until = begun, begun + nanoseconds - mem.load(slow + 8 * AHEAD)
    while now < until:
        if until - now > LONG_NS:
            mem.call(mem.load(slow + 8 * SLEEP), (until - now) // 1000, 0, 0, 0, 0, 0, 0, 0)
        else:
            mem.nap()
        now = mem.clock()
    mem.store(slow + 8 * AHEAD, now - until)
    mem.store(row + 8 * WAITED, mem.load(row + 8 * WAITED) + now - begun)


@jit
def slow_put(source, n, kind, peer, at, n_there, kind_there, slow):
    """MPI_Put after the time that `n` bytes take."""
    row = slow + 8 * (PEERS + PER_PEER * peer)
    pass_time(slow, row, mem.load(row + 8 * PER_MIB) * n // MIB)
    mem.store(row + 8 * BYTES, mem.load(row + 8 * BYTES) + n)
    mem.store(row + 8 * PUTS, mem.load(row + 8 * PUTS) + 1)
    window = mem.load(slow + 8 * WINDOW)
    return mem.call(mem.load(slow + 8 * PUT), source, n, kind, peer, at, n_there, kind_there, window)


@jit
def slow_flush(peer, slow):
    """MPI_Win_flush after the link's latency."""
    row = slow + 8 * (PEERS + PER_PEER * peer)
    pass_time(slow, row, mem.load(row + 8 * LATENCY))
    mem.store(row + 8 * FLUSHES, mem.load(row + 8 * FLUSHES) + 1)
    return mem.call(mem.load(slow + 8 * FLUSH), peer, mem.load(slow + 8 * WINDOW), 0, 0, 0, 0, 0, 0)


@jit
def same_sync(slow):
    """MPI_Win_sync, as it is."""
    return mem.call(mem.load(slow + 8 * SYNC), mem.load(slow + 8 * WINDOW), 0, 0, 0, 0, 0, 0, 0)


@cache
def _functions() -> tuple[Any, Any, Any]:
    """The three as C functions of eight integers; they stay for as long as the process lives."""
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
    """Slows the wire at an address, until the block is left; not collective, each rank slows what it puts itself.

    alpha_us, beta_us_per_mib: [world] of this rank's link to each rank of the wire's communicator, 0 for itself. Leave
    the block before the window is closed. Raises WaitTimeout if the wire stays in use.
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
        theirs = mem.words(self._wire, mpi.words(len(self._rows)))
        self._words[:AHEAD] = theirs[[mpi.PUT, mpi.FLUSH, mpi.SYNC, mpi.WINDOW, mpi.SLEEP]]
        self._name([*(each.address for each in functions), self._words.ctypes.data])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._name(self._words[:SLEEP].tolist())

    def _name(self, names: list[int]) -> None:
        """Write the wire's functions and window, while nobody is in MPI."""
        end = time.monotonic() + LOCK_SECONDS
        while not mpi.take(self._wire):
            if time.monotonic() > end:
                raise WaitTimeout(f"the wire was in use for {LOCK_SECONDS:g} s: a put or a flush does not come back")
            time.sleep(1e-4)
        words = mem.words(self._wire, mpi.words(len(self._rows)))
        words[[mpi.PUT, mpi.FLUSH, mpi.SYNC, mpi.WINDOW]] = names
        mpi.leave(self._wire)

    def taken(self) -> tuple[float, int, int, int]:
        """(seconds waited in links, bytes put, puts, flushes) since the last time; between calls of the layer."""
        waited, *counts = self._rows[:, [WAITED, BYTES, PUTS, FLUSHES]].sum(0).tolist()
        self._rows[:, WAITED:] = 0
        self._words[AHEAD] = 0
        return waited * 1e-9, counts[0], counts[1], counts[2]
