"""The checker's short way for accesses that nothing can be wrong with, which are nearly all.

`check` (access.py) is the long way: it looks at everything, and reports. Both leave the same marks in a cell.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import state as s
from .bits import get, load, put, store
from .clocks import happened, history_slot
from .watch import GID_MASK, NOT_COHERENT, noncoherent

INITIALISED = 0x0101010101010101  # the flags of 8 bytes that were written
PENDING = 0x0202020202020202  # the flags of 8 bytes that a pending copy will write


@jit
def quiet(x, thread, block, slot, shadow, size, how, write, pc):
    """Record an access in its cells, unless it or an earlier access could be reported. Then False is returned.

    shadow: what `shadow_of` returns. how: the flags of the access, with its size. The access is no atomic operation.
    """
    init, grain, cells, first, _ = shadow
    written = np.uint64(INITIALISED >> (64 - 8 * size))
    if load(init, size) != written:
        if not write or load(init, size) & np.uint64(PENDING) != np.uint64(0):
            return False
        store(init, size, written)
    if how & NOT_COHERENT:
        return False
    gid = get(thread, s.T_GID)
    origin, when = gid | pc << s.GID_BITS, get(thread, s.T_CLOCK) | how << 40
    mask, step = (1 << grain) - 1, grain
    if size < grain:
        mask, step = ((1 << size) - 1) << (first & (grain - 1)), size
    when |= mask << 32
    shift = (grain >> 1) - (grain >> 3)
    for at in range(first, first + size, step):
        cell = cells + (at >> shift) * s.CELL_WORDS * 8
        w, r, q = get(cell, 0), get(cell, 2), get(cell, 4)
        if w != 0 and not over(x, thread, block, slot, w, get(cell, 1)):
            return False
        if write:
            if r != 0 and (noncoherent(cell, 2) or not over(x, thread, block, slot, r, get(cell, 3))):
                return False
            if q != 0 and (noncoherent(cell, 4) or not over(x, thread, block, slot, q, get(cell, 5))):
                return False
            put(cell, 0, origin)
            put(cell, 1, when)
            put(cell, 2, 0)
            put(cell, 4, 0)
            continue
        if r != 0 and noncoherent(cell, 2):
            return False
        if r == 0 or r & GID_MASK == gid:
            put(cell, 2, origin)
            put(cell, 3, when)
        elif q == 0 or q & GID_MASK == gid:
            put(cell, 4, origin)
            put(cell, 5, when)
        elif over(x, thread, block, slot, r, get(cell, 3)):
            put(cell, 2, origin)
            put(cell, 3, when)
        elif (r & GID_MASK) >> 5 == (q & GID_MASK) >> 5 != gid >> 5 or over(x, thread, block, slot, q, get(cell, 5)):
            put(cell, 4, origin)
            put(cell, 5, when)
    return True


@jit
def over(x, thread, block, slot, origin, when):
    """Whether an earlier access, described by two words of a cell, happened before the thread's present moment."""
    return happened(x, thread, block, slot, origin & GID_MASK, when & 0xFFFFFFFF)


@jit
def rewritten(x, location, size):
    """Whether the history of a location has writes, so that a read may return another value than memory's."""
    slot = history_slot(x, location)
    return get(slot, s.H_COUNT) != 0 and get(slot, s.H_ADDRESS) == location and get(slot, s.H_SIZE) == size
