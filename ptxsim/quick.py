"""The checker's short way for accesses that nothing can be wrong with, which are nearly all.

`check` (access.py) is the long way: it looks at everything, and reports. Both leave the same marks in a cell.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import state as s
from .bits import get, load, put, store
from .clocks import before_launch, happened, history_slot, launch_over
from .watch import GID_MASK, NOT_COHERENT, noncoherent, record_read

INITIALISED = 0x0101010101010101  # the flags of 8 bytes that were written
PENDING = 0x0202020202020202  # the flags of 8 bytes that a pending copy will write
LONG, QUIET, UNWRITTEN = range(3)  # the access takes the long way; it is recorded; and nothing ever wrote its cells


@jit
def quiet(x, thread, block, slot, shadow, size, how, write, pc):
    """Record an access in its cells, unless it or an earlier access could be reported. Then LONG (0) is returned.

    Returns UNWRITTEN if nobody has written to the cells, so that their bytes have no history, else QUIET. shadow: what
    `shadow_of` returns. how: the flags of the access, with its size. The access is no atomic operation.
    """
    init, grain, cells, first, _ = shadow
    written = np.uint64(INITIALISED >> (64 - 8 * size))
    if load(init, size) != written:
        if not write or load(init, size) & np.uint64(PENDING) != np.uint64(0):
            return LONG
        store(init, size, written)
    gid = get(thread, s.T_GID)
    origin, when = gid | pc << s.GID_BITS, get(thread, s.T_CLOCK) | how << 40
    mask, step = (1 << grain) - 1, grain
    if size < grain:
        mask, step = ((1 << size) - 1) << (first & (grain - 1)), size
    when |= mask << 32
    shift = (grain >> 1) - (grain >> 3)
    found = UNWRITTEN
    for at in range(first, first + size, step):
        cell = cells + (at >> shift) * s.CELL_WORDS * 8
        w = get(cell, 0)
        if w != 0:
            found = QUIET
            clock = get(cell, 1) & 0xFFFFFFFF
            if not happened(x, thread, block, slot, w & GID_MASK, clock):
                return LONG
            if how & NOT_COHERENT and not before_launch(x, gid, w & GID_MASK, clock):
                return LONG
        if write:
            if not over(x, thread, block, slot, cell, 2) or not over(x, thread, block, slot, cell, 4):
                return LONG
            put(cell, 0, origin)
            put(cell, 1, when)
            put(cell, 2, 0)
            put(cell, 4, 0)
        else:
            record_read(x, thread, block, slot, cell, gid, origin, when, how)
    return found


@jit
def over(x, thread, block, slot, cell, k):
    """Whether a write need not report the read that two words of a cell describe: it happened before, or there is none.

    A load by ld.global.nc is over only when its launch is.
    """
    r = get(cell, k)
    if r == 0:
        return True
    if noncoherent(cell, k) and not launch_over(x, r & GID_MASK):
        return False
    return happened(x, thread, block, slot, r & GID_MASK, get(cell, k + 1) & 0xFFFFFFFF)


@jit
def rewritten(x, location, size):
    """Whether the history of a location has writes, so that a read may return another value than memory's."""
    slot = history_slot(x, location)
    return get(slot, s.H_COUNT) != 0 and get(slot, s.H_ADDRESS) == location and get(slot, s.H_SIZE) == size
