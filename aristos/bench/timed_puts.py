"""Timed puts of one pair of ranks, for the suite `put` and for the measurement of links."""

from __future__ import annotations

import numpy as np

from .pairs import ACK, FLAG, Side, deadline


def cell(side: Side, size: int, flight: int, samples: int) -> np.ndarray:
    """Time `samples` samples, each of `flight` puts of `size` bytes and a quiet. Both sides of the pair call this.

    Returns [samples] nanoseconds at the origin, and undefined values at the target.
    """
    base = side.advance(FLAG, samples)
    slots, stride = side.slots(side.target), max(64, size)
    flag, ack = side.word(side.target, FLAG), side.word(side.origin, ACK)
    out = np.empty(samples, np.int64)
    if side.first:
        source, scratch = side.payload(size), np.zeros(1, np.int64)
        places: tuple[int, ...] = (slots, stride, source.ctypes.data, size, flight, flag, ack)
        if not side.remote:
            places += (scratch.ctypes.data,)
        done = side.run("put_origin", places, base, samples, deadline(), out)
    elif side.remote:
        done = side.run("put_target", (flag, ack), base, samples, deadline())
    else:
        done = side.run("put_target", (slots, stride, size, flight, flag, ack), base, samples, deadline(), out)
    side.bounded(done)
    return out


def landed(side: Side, size: int, flight: int) -> bool:
    """Whether every slot of this rank holds the origin's payload."""
    want = side.payload(size)[:size]
    return all(np.array_equal(side.landed(size, p * max(64, size)), want) for p in range(flight))
