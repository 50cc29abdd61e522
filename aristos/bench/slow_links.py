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

import numpy as np

from kernel_cache.compile import jit

from ..primitives import memory as mem
from ..primitives.buffers import aligned
from .replaced_wire import OWN, SLEEP, ReplacedWire, c_functions, real_flush, real_put

MIB = 1 << 20
LONG_NS = 100_000  # a wait longer than this is one usleep
# Words after the first OWN: the excess of earlier waits in ns; then PER_PEER words for each peer.
EXCESS, PEERS = OWN, OWN + 1
LATENCY, PER_MIB, WAITED, BYTES, PUTS, FLUSHES, PER_PEER = range(7)  # ns, ns per MiB; ns waited, counts since a reset


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
    return real_put(source, n, kind, peer, at, n_there, kind_there, slow)


@jit
def slow_flush(peer, slow):
    """MPI_Win_flush, after the link's latency."""
    row = slow + 8 * (PEERS + PER_PEER * peer)
    pass_time(slow, row, mem.load(row + 8 * LATENCY))
    mem.store(row + 8 * FLUSHES, mem.load(row + 8 * FLUSHES) + 1)
    return real_flush(peer, slow)


class SlowLinks(ReplacedWire):
    """A context manager that slows the wire at an address. It is not collective, and slows only this rank's puts.

    alpha_us, beta_us_per_mib: [world] of this rank's link to each rank of the wire's communicator, 0 for itself.
    Leave the block before the window is closed. Raises WaitTimeout if another thread does not release the wire.
    """

    def __init__(self, wire: int, alpha_us: Sequence[float], beta_us_per_mib: Sequence[float]) -> None:
        self._words = aligned((PEERS + PER_PEER * len(alpha_us),), np.int64)
        self._words[:] = 0
        self._rows = self._words[PEERS:].reshape(-1, PER_PEER)
        self._rows[:, LATENCY] = np.asarray(alpha_us) * 1e3
        self._rows[:, PER_MIB] = np.asarray(beta_us_per_mib) * 1e3
        super().__init__(wire, len(alpha_us), self._words, c_functions(slow_put, slow_flush))

    def taken(self) -> tuple[float, int, int, int]:
        """(seconds waited, bytes put, puts, flushes) since the last call of `taken`.

        Use it between calls of the layer.
        """
        waited, *counts = self._rows[:, [WAITED, BYTES, PUTS, FLUSHES]].sum(0).tolist()
        self._rows[:, WAITED:] = 0
        self._words[EXCESS] = 0
        return waited * 1e-9, counts[0], counts[1], counts[2]
