"""Wide cells: one cell of the checker for several items of an array that kernels always access together.

The first access of an array decides. If each lane accesses more than one item, such as a vector, the array has wide
cells of as many bytes, at most 16. A wide cell has the words of a cell, which hold for each of its items. The first
access to a part of its bytes splits it: its items get their own cells, with the same words, and keep them. Nothing is
lost: wide cells are only for accesses by the short way (quick.py), which mark all items alike. Every other access
splits the cells that it touches.

In the word of a wide cell that describes a write, bits from SAME_SHIFT on say for each byte whether the write left it
as it was. The mask of bytes is not used there.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inlined
from kernel_cache.compile import inner as jit

from . import state as s
from .bits import get, load, load32, load64, prefetch, put, store, store64
from .quick import INITIALISED, LONG, PENDING, UNWRITTEN, read_cell, write_cell
from .units import unit
from .watch import SAME

MOST_SHIFT = 4  # log2 of the most bytes of a wide cell
SAME_SHIFT = 48
WHOLE = 0xFF << 32  # any mask of bytes
SPLIT = -1  # the first word of a wide cell whose items have their own cells


@jit
def shift_of(row, size, part):
    """log2 of the bytes of an array's wide cells, or NARROW. The first call decides.

    row: the array's. size: bytes that a lane accesses. part: bytes of each value.
    """
    shift = get(row, s.A_SHIFT)
    if shift == s.UNDECIDED:
        grain, shift = get(row, s.A_GRANULE), np.int64(s.NARROW)
        if grain < size and grain <= part:
            while shift < MOST_SHIFT and 1 << shift < size:
                shift += 1
        put(row, s.A_SHIFT, shift)
    return shift


@jit
def wide_cell(x, row, first, shift):
    """The address of the wide cell that holds byte `first` of an array."""
    return get(x, s.SHADOW) + (get(row, s.A_WIDE) + (first >> shift)) * s.CELL_WORDS * 8


@jit
def together(x, region, size, part, mask):
    """log2 of the bytes of the wide cells by which a warp's access of a region goes, or NARROW.

    In the second case the bytes then have narrow cells. The lanes' addresses are in the scratch table.
    """
    if region.row == 0:
        return np.int64(s.NARROW)
    shift = shift_of(region.row, size, part)
    if shift != s.NARROW and (size >> shift == 0 or part < region.grain):
        narrow_lanes(x, region.row, region.first, size, mask)
        shift = np.int64(s.NARROW)
    return shift


@jit
def fetch(x, region, shift):
    """Begin to bring near what the lanes of a warp will need for their accesses by wide cells, all at once."""
    where = get(x, s.SCRATCH)
    for lane in range(32):
        at = get(where, lane)
        cell = wide_cell(x, region.row, region.first + at, shift)
        prefetch(cell)
        prefetch(cell + (s.CELL_WORDS - 1) * 8)
        prefetch(region.init + at)
        prefetch(region.host + at)


@unit
def narrow_lanes(x, row, offset, size, mask):
    """Give the bytes that the lanes in mask access narrow cells. offset: from an address to a place in the array."""
    where = get(x, s.SCRATCH)
    for lane in range(32):
        if (mask >> lane) & 1:
            narrow(x, row, offset + get(where, lane), size)
    return 0


@unit
def narrow(x, row, first, size):
    """Give `size` bytes of an array narrow cells, from byte `first` on."""
    shift = get(row, s.A_SHIFT)
    if shift == s.UNDECIDED:
        put(row, s.A_SHIFT, s.NARROW)
    elif shift != s.NARROW:
        for k in range(first >> shift, ((first + size - 1) >> shift) + 1):
            if get(wide_cell(x, row, k << shift, shift), 0) != SPLIT:
                split(x, row, k)
    return 0


@jit
def narrow_at(x, place, size):
    """Give bytes of global memory narrow cells. place: their offset in the machine's memory."""
    number = np.int64(load32(get(x, s.PAGES) + (place >> s.PAGE_SHIFT) * 4))
    row = get(x, s.ALLOCS) + number * s.A_FIELDS * 8
    if get(row, s.A_SHIFT) != s.NARROW:
        narrow(x, row, place - get(row, s.A_START), size)


@unit
def split(x, row, k):
    """Split wide cell k of an array."""
    shift, grain = get(row, s.A_SHIFT), get(row, s.A_GRANULE)
    wide, items = wide_cell(x, row, k << shift, shift), (1 << shift) // grain
    cell = get(x, s.SHADOW) + (get(row, s.A_SHADOW) + k * items) * s.CELL_WORDS * 8
    for item in range(items):
        for word in range(0, s.CELL_WORDS, 2):
            origin, when = get(wide, word), get(wide, word + 1)
            if origin != 0:  # else the words of the narrow cell are zero too
                how = (when >> 40) & 0xFF
                if (when >> (SAME_SHIFT + item * grain)) & 1:
                    how |= SAME
                put(cell, word, origin)
                put(cell, word + 1, (when & 0xFFFFFFFF) | ((1 << grain) - 1) << 32 | how << 40)
        cell += s.CELL_WORDS * 8
    put(wide, 0, SPLIT)
    return 0


@inlined
def read_together(x, thread, block, slot, floor, init, cell, shift, size, how, pc):
    """`quiet` for a read of all bytes of wide cells. cell: the first one. init: the address of the bytes' flags."""
    found = UNWRITTEN if flags_are(init, size, ~0, INITIALISED) else LONG
    if found != LONG:
        gid = get(thread, s.T_GID)
        origin, when = gid | pc << s.GID_BITS, get(thread, s.T_CLOCK) | WHOLE | how << 40
        for _ in range(size >> shift):
            if get(cell, 0) == SPLIT:
                found = LONG
            else:
                found = min(found, read_cell(x, thread, block, slot, floor, cell, gid, origin, when, how))
            if found == LONG:
                break
            cell += s.CELL_WORDS * 8
    return found


@inlined
def write_together(x, thread, block, slot, floor, init, cell, shift, size, how, same, pc):
    """`quiet` for a write to all bytes of wide cells. same: a bit for each byte, set if it stays as it is."""
    found = UNWRITTEN if flags_are(init, size, PENDING, 0) else LONG
    if found != LONG:
        gid = get(thread, s.T_GID)
        origin, when = gid | pc << s.GID_BITS, get(thread, s.T_CLOCK) | WHOLE | how << 40
        if size < 8:
            store(init, size, np.uint64(INITIALISED))
        else:
            for k in range(0, size, 8):
                store64(init + k, np.uint64(INITIALISED))
        for _ in range(size >> shift):
            if get(cell, 0) == SPLIT:
                found = LONG
            else:
                words = when | same << SAME_SHIFT
                found = min(found, write_cell(x, thread, block, slot, floor, cell, gid, origin, words))
            if found == LONG:
                break
            cell += s.CELL_WORDS * 8
            same >>= 1 << shift
    return found


@inlined
def flags_are(init, size, mask, wanted):
    """Whether the init flags of `size` bytes, under a mask for eight of them, are as wanted."""
    if size < 8:
        part = np.uint64((1 << 8 * size) - 1)
        return load(init, size) & np.uint64(mask) == np.uint64(wanted) & part
    found = np.uint64(0)
    for k in range(0, size, 8):
        found |= (load64(init + k) & np.uint64(mask)) ^ np.uint64(wanted)
    return found == np.uint64(0)
