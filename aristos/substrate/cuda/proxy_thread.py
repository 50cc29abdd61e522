"""The proxy thread, which calls MPI for a rank whose workers are on a GPU, and passes on what has arrived.

The thread runs `engine.proxy` in a loop of compiled code, without the GIL, and calls no function of CUDA. It lives as
long as the MPI window, so that it also serves calls that Python does not see, such as those of a captured graph. This
module knows no protocol.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from numba import int32, int64, typeof

from kernel_cache.compile import Locator, compiling, entry, jit, warm_up

from ...engine import codes, proxy, words
from ...engine.poison import poison_word
from ...kernels import cpu as _lowerings  # noqa: F401  registers what the primitives compile to
from ...primitives import memory as mem
from ...primitives import wire
from ...primitives.buffers import zeros
from ..idle import rest
from .outboxes import Sides

POISON_SECONDS = 0.1  # how long a failing proxy lets MPI deliver its poison


def put(source, n, _byte, _peer, at, _n, _same, _wire):
    """Stands for MPI_Put: copies to where kernels read, unless they read the source itself."""
    if at != source:
        mem.copy_row(at, source, n)
    return 0


def flush(_peer, _wire, _c, _d, _e, _f, _g, _h):
    """Stands for MPI_Win_flush. It does nothing: copies are complete, and later words are stored with release."""
    return 0


class DeviceWire:
    """A wire to the GPU that makes no call of the driver. address: where its words lie, for compiled code."""

    def __init__(self, world: int) -> None:
        with compiling():
            self._kept = [entry(function, int32(*[int64] * 8), Locator) for function in (put, flush)]
        self.words = zeros((wire.words(world),))
        self.address = self.words.ctypes.data
        self.words[[wire.PUT, wire.FLUSH]] = [compiled.address for compiled in self._kept]
        self.words[wire.WINDOW] = self.address


@jit
def serve(job, st, device_job, device_st):
    """Poll both sides until the window's threads must end (RAN) or something has failed (POISONED)."""
    polls = 0
    while mem.load_acquire(job[words.WIRE] + 8 * wire.STOP) == 0:
        moved = proxy.serve_both(job, st, device_job, device_st)
        if moved < 0:
            return codes.POISONED
        polls = 0 if moved else polls + 1
        rest(job, job[words.YIELDS] if proxy.between_calls(job, st) else polls)
    return codes.RAN


class ProxyThread:
    """The proxy of a rank, for `DeviceMemory.start`. error: the error that has ended it early, or None."""

    def __init__(self, sides: Sides, device: Any, rank: int) -> None:
        self.sides, self._device, self._rank = sides, device, rank
        self.error: str | None = None
        one = typeof(sides.job), typeof(sides.st)
        warm_up([(serve, one * 2), (proxy.put_poison, one), (proxy.poison, (*one * 2, int64))])

    def run(self) -> None:
        """Do the thread's work. Returns when the window's threads must end, or when something has failed."""
        sides = self.sides
        try:
            with self._device.current():  # an MPI that puts from the GPU's memory needs the context
                if serve(sides.job, sides.st, sides.device_job, sides.device_st) == codes.RAN:
                    return
        except BaseException as error:
            self.error = f"{type(error).__name__}: {error}"
            self.poison(self._rank, codes.CAUSE_ERROR)
        self._notify_remote_peers()

    def poison(self, origin: int, cause: int) -> None:
        """Record for this rank's kernel, and in the words for remote ranks, that this rank fails."""
        sides = self.sides
        word = poison_word(int(sides.job[words.EPOCH]), origin, cause)
        proxy.poison(sides.job, sides.st, sides.device_job, sides.device_st, word)

    def _notify_remote_peers(self) -> None:
        """Put the poison to remote ranks, and give MPI a moment to move it."""
        until = time.monotonic() + POISON_SECONDS
        with contextlib.suppress(Exception):
            while not proxy.put_poison(self.sides.job, self.sides.st) and time.monotonic() < until:
                time.sleep(0.001)
            while time.monotonic() < until:
                wire.tend(self.sides.job[words.WIRE])
                time.sleep(0.001)
