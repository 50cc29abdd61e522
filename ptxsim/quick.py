"""The checker's short way for accesses that cannot be wrong. Nearly all accesses take it.

`check` (access.py) is the long way: it checks everything, and reports. Both leave the same marks in a cell.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inlined
from kernel_cache.compile import inner as jit

from . import state as s
from .bits import get, load, put, store
from .clocks import before_launch, happened, history_slot, launch_over
from .watch import GID_MASK, NOT_COHERENT, noncoherent, record_read

INITIALISED = 0x0101010101010101  # the flags of 8 bytes that were written
PENDING = 0x0202020202020202  # the flags of 8 bytes that a pending copy will write
LONG, QUIET, UNWRITTEN = range(3)  # take the long way; recorded; recorded in cells that nothing ever wrote


@jit
def quiet(x, thread, block, slot, shadow, size, how, write, pc):
    """Record an access in its cells. If it or an earlier one could be reported, only return LONG (0).

    Else returns UNWRITTEN if nobody has written to the cells, whose bytes then have no history, and QUIET otherwise.
    shadow: what `shadow_of` returns. how: the flags of the access, with its size. The access is no atomic operation.
    """
    floor = get(block, s.B_FLOOR)
    if write:
        return quiet_write(x, thread, block, slot, floor, shadow, size, how, pc)
    return quiet_read(x, thread, block, slot, floor, shadow, size, how, pc)


@inlined
def quiet_read(x, thread, block, slot, floor, shadow, size, how, pc):
    """`quiet` for a read. floor: the block's."""
    init, grain, cells, first, _ = shadow
    gid = get(thread, s.T_GID)
    found = UNWRITTEN if load(init, size) == np.uint64(INITIALISED >> (64 - 8 * size)) else LONG
    if found != LONG:
        origin, when, step, shift = words_for(gid, get(thread, s.T_CLOCK), grain, first, size, how, pc)
        for at in range(first, first + size, step):
            cell = cells + (at >> shift) * s.CELL_WORDS * 8
            found = min(found, read_cell(x, thread, block, slot, floor, cell, gid, origin, when, how))
            if found == LONG:
                break
    return found


@inlined
def read_cell(x, thread, block, slot, floor, cell, gid, origin, when, how):
    """`quiet` for a read of one cell, whose bytes are all written. origin, when: the two words for this read."""
    w, r, found = get(cell, 0), get(cell, 2), UNWRITTEN
    if w != 0:
        known = settled(cell, 0, gid, floor) or passed(x, thread, block, slot, cell, 0)
        if known and how & NOT_COHERENT:
            known = before_launch(x, gid, w & GID_MASK, get(cell, 1) & 0xFFFFFFFF)
        found = QUIET if known else LONG
    if found != LONG:
        if r == 0 or ((r ^ gid) & GID_MASK == 0 and (how & NOT_COHERENT or not noncoherent(cell, 2))):
            put(cell, 2, origin)
            put(cell, 3, when)
        else:
            record_read(x, thread, block, slot, cell, gid, origin, when, how)
    return found


@inlined
def quiet_write(x, thread, block, slot, floor, shadow, size, how, pc):
    """`quiet` for a write. floor: the block's."""
    init, grain, cells, first, _ = shadow
    gid = get(thread, s.T_GID)
    flags, written = load(init, size), np.uint64(INITIALISED >> (64 - 8 * size))
    found = UNWRITTEN if flags & np.uint64(PENDING) == np.uint64(0) else LONG
    if found != LONG:
        if flags != written:
            store(init, size, written)
        origin, when, step, shift = words_for(gid, get(thread, s.T_CLOCK), grain, first, size, how, pc)
        for at in range(first, first + size, step):
            cell = cells + (at >> shift) * s.CELL_WORDS * 8
            found = min(found, write_cell(x, thread, block, slot, floor, cell, gid, origin, when))
            if found == LONG:
                break
    return found


@inlined
def write_cell(x, thread, block, slot, floor, cell, gid, origin, when):
    """`quiet` for a write to one cell. origin, when: the two words for this write."""
    w, r, q, found = get(cell, 0), get(cell, 2), get(cell, 4), UNWRITTEN
    if w != 0:
        found = QUIET if settled(cell, 0, gid, floor) or passed(x, thread, block, slot, cell, 0) else LONG
    if r != 0 and not settled(cell, 2, gid, floor) and not passed(x, thread, block, slot, cell, 2):
        found = LONG
    if q != 0 and not settled(cell, 4, gid, floor) and not passed(x, thread, block, slot, cell, 4):
        found = LONG
    if found != LONG:
        put(cell, 0, origin)
        put(cell, 1, when)
        put(cell, 2, 0)
        put(cell, 4, 0)
    return found


@inlined
def words_for(gid, clock, grain, first, size, how, pc):
    """(origin, when, step, shift) of an access: its two words in a cell, the bytes of it in a cell, log2 of grain."""
    mask, step = (1 << grain) - 1, grain
    if size < grain:
        mask, step = ((1 << size) - 1) << (first & (grain - 1)), size
    return gid | pc << s.GID_BITS, clock | how << 40 | mask << 32, step, (grain >> 1) - (grain >> 3)


@inlined
def settled(cell, k, gid, floor):
    """Whether two words of a cell describe a plain access by the thread, or by its block before clock `floor`."""
    apart, when = (get(cell, k) ^ gid) & GID_MASK, get(cell, k + 1)
    return (when >> 40) & NOT_COHERENT == 0 and (apart == 0 or (apart >> 10 == 0 and when & 0xFFFFFFFF < floor))


@jit
def passed(x, thread, block, slot, cell, k):
    """Whether the access that two words of a cell describe happened before this one.

    If it was ld.global.nc, its launch must also be over.
    """
    origin = get(cell, k) & GID_MASK
    if noncoherent(cell, k) and not launch_over(x, origin):
        return False
    return happened(x, thread, block, slot, origin, get(cell, k + 1) & 0xFFFFFFFF)


@jit
def rewritten(x, location, size):
    """Whether the history of a location has writes, so that a read may return another value than memory's."""
    slot = history_slot(x, location)
    return get(slot, s.H_COUNT) != 0 and get(slot, s.H_ADDRESS) == location and get(slot, s.H_SIZE) == size
