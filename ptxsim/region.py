"""Finds the memory of all lanes of a warp at once, if they access one region: one array, shared or local memory.

One look-up and one check of bounds then serve all lanes. `access.locate` and `access.shadow_of` say the same of one
lane. They also find what is outside this short way: faults, parameters, other blocks' shared memory, lanes whose
addresses lie in several arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .bits import get, load8, load32, load64, put

FULL = 0xFFFFFFFF
NOWHERE = -1  # the space if no region holds all addresses
MOST = 0x7FFFFFFFFFFFFFFF


class Region(NamedTuple):
    """The region of a warp's access. Its fields, added to an address in the kernel, give what belongs to it.

    space: GLOBAL, SHARED, LOCAL or NOWHERE. host: gives the address in this process, for lane 0; each further lane's is
    `step` bytes on. place: gives the place that `locate` returns. location: gives the number that `location_of`
    returns. The other fields count only if the checker watches the region. init: gives the address of the byte's init
    flag. first: gives the offset from the region's first cell. cells, grain, which are not added: the address of this
    cell, and the bytes of an item. row: the address of the array's row, 0 outside arrays.
    """

    space: int
    host: int
    step: int
    place: int
    location: int
    init: int
    first: int
    cells: int
    grain: int
    row: int


@jit
def nowhere():
    """The result of `region_of` if no region holds all addresses."""
    zero = np.int64(0)
    return Region(np.int64(NOWHERE), zero, zero, zero, zero, zero, zero, zero, zero, zero)


@jit
def note_addresses(x, warp, base, offset, mask):
    """Write each lane's address into the scratch table. Returns (the least, the greatest, the bits that any has).

    base: the row of the addresses. offset: a number to add. Lanes outside mask do not count.
    """
    row, where = get(warp, s.W_REGS) + base * 256, get(x, s.SCRATCH)
    least, most, bits = np.int64(MOST), np.int64(-MOST), np.int64(0)
    if mask == FULL:
        for k in range(0, 256, 8):
            address = np.int64(load64(row + k)) + offset
            put(where + k, 0, address)
            least, most, bits = min(least, address), max(most, address), bits | address
        return least, most, bits
    for lane in range(32):
        if (mask >> lane) & 1:
            address = get(row, lane) + offset
            put(where, lane, address)
            least, most, bits = min(least, address), max(most, address), bits | address
    return least, most, bits


@jit
def region_of(x, warp, block, space, base, offset, size, write, mask):
    """The region that holds the accesses of the lanes in mask, or `nowhere` if they must be looked up one by one.

    The addresses are then in the scratch table. space: that of the instruction. base, offset: the row of the addresses
    and a number to add. size: bytes that a lane accesses. An access in a region is aligned, in bounds and allowed.
    """
    least, most, bits = note_addresses(x, warp, base, offset, mask)
    if bits & (size - 1):
        return nowhere()
    generic = space == isa.GENERIC
    if generic:
        space = window_of(least, most)
    if space == isa.GLOBAL or space == isa.CONST:
        return in_global(x, least, most + size, write)
    if space == isa.SHARED:
        return in_shared(x, block, least, most, size, mask)
    if space == isa.LOCAL:
        start = np.int64(isa.LOCAL_WINDOW if generic else 0)
        return in_local(x, warp, block, start, least - start, most - start + size)
    return nowhere()


@jit
def window_of(least, most):
    """The space that generic addresses name, if all lie in one window, else NOWHERE."""
    if least >= isa.PARAM_WINDOW + isa.WINDOW:
        return np.int64(isa.GLOBAL)
    if least >= isa.SHARED_WINDOW and most < isa.SHARED_WINDOW + isa.WINDOW:
        return np.int64(isa.SHARED)
    if least >= isa.LOCAL_WINDOW and most < isa.LOCAL_WINDOW + isa.WINDOW:
        return np.int64(isa.LOCAL)
    return np.int64(NOWHERE)


@jit
def in_global(x, least, end, write):
    """The region of accesses to global memory from the address `least` up to `end`."""
    place, zero = -np.int64(isa.GLOBAL_START), np.int64(0)
    first, last = least + place, end + place
    if first < 0 or last > get(x, s.MEMORY_TOP):
        return nowhere()
    init, offset, cells, grain, row = zero, zero, zero, zero, zero
    if get(x, s.CHECK):
        number = np.int64(load32(get(x, s.PAGES) + (first >> s.PAGE_SHIFT) * 4))
        row = get(x, s.ALLOCS) + number * s.A_FIELDS * 8
        start, state = get(row, s.A_START), get(row, s.A_STATE)
        if number == 0 or first < start or last > start + get(row, s.A_SIZE):
            return nowhere()
        if state == s.FREED or (write and state == s.CONSTANT):
            return nowhere()
        init, offset, grain = get(x, s.INIT) + place, place - start, get(row, s.A_GRANULE)
        cells = get(x, s.SHADOW) + get(row, s.A_SHADOW) * s.CELL_WORDS * 8
    return Region(np.int64(isa.GLOBAL), get(x, s.MEMORY) + place, zero, place, place, init, offset, cells, grain, row)


@jit
def in_shared(x, block, least, most, size, mask):
    """The region of accesses to the block's own shared memory."""
    place, zero = np.int64(0), np.int64(0)
    if least >= isa.SHARED_WINDOW and most < isa.SHARED_WINDOW + isa.WINDOW:
        place = -np.int64(isa.SHARED_WINDOW)
    if least + place < 0 or most + place + size > get(block, s.B_SHARED_SIZE):
        return nowhere()
    where, valid, outside = get(x, s.SCRATCH), get(block, s.B_VALID) + place, np.int64(0)
    for lane in range(32):
        if (mask >> lane) & 1:
            at = valid + get(where, lane)
            outside |= np.int64(load8(at) == np.uint64(0) or load8(at + size - 1) == np.uint64(0))
    if outside:
        return nowhere()
    init, cells, grain = zero, zero, zero
    if get(x, s.CHECK):
        init, cells = get(block, s.B_INIT) + place, get(block, s.B_SHADOW)
        grain = get(get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8, s.L_GRANULE)
    location = (np.int64(1) << 61 | get(block, s.B_GID) << 20) + place
    return Region(
        np.int64(isa.SHARED), get(block, s.B_SHARED) + place, zero, place, location, init, place, cells, grain, zero
    )


@jit
def in_local(x, warp, block, start, first, end):
    """The region of accesses to the lanes' local memory, from its byte `first` up to `end`. start: its address."""
    zero = np.int64(0)
    limit = get(get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8, s.L_LOCAL)
    if first < 0 or end > limit:
        return nowhere()
    step = get(x, s.LOCAL_BYTES)
    host = get(x, s.LOCAL) + get(warp, s.W_SLOT) * 32 * step - start
    return Region(np.int64(isa.LOCAL), host, step, -start, zero, zero, zero, zero, zero, zero)
