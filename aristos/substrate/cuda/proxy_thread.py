"""The thread that calls MPI for a rank whose workers are on a card, and the wire that it copies to the card with.

It is `engine.proxy` in a loop of compiled code, without the GIL. It lives as long as the MPI window, so that calls
which Python does not see, such as those of a captured graph, are served too. It knows no protocol.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
from numba import int32, int64

from ...engine import codes, proxy, words
from ...errors import EnvironmentProblem
from ...primitives import memory as mem
from ...primitives import wire
from ...primitives.buffers import aligned
from ...primitives.compile import Locator, compiling, entry, jit, warm_up
from ..cpu.loop import rest
from .outboxes import Sides

LAST_WORDS_SECONDS = 0.1  # how long a proxy that fails helps its poison on the way
COPY, WAIT = wire.PROBE, wire.SYNC  # in the words of a wire to the card: the driver's functions


def put(source, n, _byte, _peer, at, _n, _same, words):
    """As MPI_Put calls it: cuMemcpyHtoDAsync, whose failure stays in the wire."""
    code = mem.call(mem.load(words + 8 * COPY), at, source, n, mem.load(words + 8 * wire.COMM), 0, 0, 0, 0)
    if code != 0:
        mem.store(words + 8 * wire.ERROR, code)
    return code


def flush(_peer, words, _c, _d, _e, _f, _g, _h):
    """As MPI_Win_flush calls it: cuStreamSynchronize."""
    code = mem.call(mem.load(words + 8 * WAIT), mem.load(words + 8 * wire.COMM), 0, 0, 0, 0, 0, 0, 0)
    if code != 0:
        mem.store(words + 8 * wire.ERROR, code)
    return code


class CardWire:
    """A wire whose put is the card's copy from the host, on a stream of its own, and whose flush waits for that stream.

    copy, wait: addresses of cuMemcpyHtoDAsync and cuStreamSynchronize; both need the card's context in the thread.
    address: of its words, for compiled code.
    """

    def __init__(self, copy: int, wait: int, stream: int, world: int) -> None:
        with compiling():
            self._kept = [entry(function, int32(*[int64] * 8), Locator) for function in (put, flush)]
        self.words = aligned((wire.words(world),), np.int64)
        self.words[:] = 0
        self.address = self.words.ctypes.data
        self.words[[wire.PUT, wire.FLUSH]] = [compiled.address for compiled in self._kept]
        self.words[[COPY, WAIT, wire.COMM, wire.WINDOW]] = copy, wait, stream, self.address


@jit
def serve(job, st, card, cs):
    """Look both ways until the window's threads are to end (RAN) or something has failed (POISONED)."""
    sweeps = 0
    while mem.load_acquire(job[words.WIRE] + 8 * wire.STOP) == 0:
        moved = proxy.turn(job, st, card, cs)
        if moved < 0:
            return codes.POISONED
        sweeps = 0 if moved else sweeps + 1
        rest(job, job[words.YIELDS] if proxy.quiet(job, st) else sweeps)
    return codes.RAN


class Caller:
    """What a rank's proxy runs with. error: why it has ended early, if it has."""

    def __init__(self, sides: Sides, card: Any, card_wire: CardWire, rank: int) -> None:
        self.sides, self._card, self._wire, self._rank = sides, card, card_wire, rank
        self.error: str | None = None
        job, state = sides.job, sides.st
        one = _types(job, state)
        warm_up([(serve, one * 2), (proxy.put_poison, one), (proxy.poison, (*one * 2, int64))])

    def run(self) -> None:
        """The thread's work: it comes back when the window's threads are to end, or something has failed."""
        sides = self.sides
        try:
            with self._card.current():
                if serve(sides.job, sides.st, sides.card, sides.cs) == codes.RAN:
                    return
            code = int(self._wire.words[wire.ERROR])
            if code:
                raise EnvironmentProblem(
                    f"a copy of what has arrived from far ranks to the card failed: CUDA error {code}"
                )
        except BaseException as error:
            self.error = f"{type(error).__name__}: {error}"
            self.poison(self._rank, codes.CAUSE_ERROR)
        self._tell()

    def poison(self, origin: int, cause: int) -> None:
        """This rank fails: its kernel reads that, and far ranks are told."""
        sides = self.sides
        told = (((int(sides.job[words.EPOCH]) << codes.ORIGIN_BITS) + origin) << codes.CAUSE_BITS) + cause
        proxy.poison(sides.job, sides.st, sides.card, sides.cs, told)

    def _tell(self) -> None:
        """Put the poison to far ranks, and give MPI a moment to move it."""
        until = time.monotonic() + LAST_WORDS_SECONDS
        with contextlib.suppress(Exception):
            while not proxy.put_poison(self.sides.job, self.sides.st) and time.monotonic() < until:
                time.sleep(0.001)
            while time.monotonic() < until:
                wire.tend(self.sides.job[words.WIRE])
                time.sleep(0.001)


def _types(job: np.ndarray, state: np.ndarray) -> tuple:
    from numba import typeof

    return typeof(job), typeof(state)
