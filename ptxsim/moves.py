"""Loads and stores of a warp, the instructions ld and st: checked, counted and carried out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import FAULT, check, examine, locate, location_of, register, set_register, thread_of, warp_slot
from .bits import get, load, load32, load64, put, store, store64
from .integer import cut
from .integer import read as as_integer
from .quick import LONG, UNWRITTEN, quiet_read, quiet_write, rewritten
from .region import FULL, NOWHERE, region_of
from .requests import count_access
from .rows import PARAMS
from .units import unit
from .watch import (
    ALONE,
    ANY,
    NOT_COHERENT,
    SAME,
    SIZE_SHIFT,
    STRONG,
    log2,
    newest_of,
    next_number,
    read,
    wrote,
    wrote_afresh,
    wrote_weakly,
)
from .wide import fetch, read_together, together, wide_cell, write_together


class Access(NamedTuple):
    """An instruction ld or st.

    values: how many values it moves. base, offset: the row of the address and a number to add. items: the address of
    the list of the values' rows. how: the flags that `check` takes.
    """

    type_: int
    size: int
    values: int
    base: int
    offset: int
    order: int
    scope: int
    space: int
    items: int
    how: int


@jit
def access_at(x, line):
    """Read an instruction ld or st from its row."""
    type_, flags = get(line, isa.TYPE), get(line, isa.FLAGS)
    order, scope, space = flags & 15, (flags >> isa.SCOPE_SHIFT) & 3, (flags >> isa.SPACE_SHIFT) & 7
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    how = (STRONG if order != isa.WEAK else 0) | scope << 1 | (NOT_COHERENT if flags & isa.NOT_COHERENT else 0)
    base, offset = get(line, isa.A), get(line, isa.IMM)
    return Access(type_, type_ & 15, get(line, isa.COUNT), base, offset, order, scope, space, items, how)


@jit
def locate_lane(x, warp, thread, block, lane, access, write, pc):
    """Call `locate` for a lane's address. Note the address, or -1 after a fault, in the scratch table.

    `count_access` reads it there.
    """
    address = np.int64(register(x, warp, access.base, lane)) + access.offset
    found = locate(x, warp, thread, block, lane, access.space, address, access.size * access.values, write, pc)
    put(get(x, s.SCRATCH), lane, -1 if found[0] == FAULT else address)
    return found


@jit
def load_parameter(x, warp, block, access, pc, mask):
    """Load a parameter for the lanes in mask, whose address is the same. Returns False if the access is not allowed."""
    launch = get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8
    place, size = access.offset, access.size
    if place < 0 or place + size > get(launch, s.L_PARAM_BYTES) or place & (size - 1):
        return False
    value = load(get(x, s.PARAMETERS) + get(launch, s.L_PARAMS) - isa.PARAM_WINDOW + place, size)
    if access.type_ & 0xF0 == isa.S:
        value = np.uint64(as_integer(value, access.type_))
    row = get(access.items, 0)
    for lane in range(32):
        if (mask >> lane) & 1:
            set_register(x, warp, row, lane, value)
    return True


@unit
def loads(x, warp, block, line, pc, mask):
    """Run ld for the lanes in mask. line: the address of the instruction's row."""
    access = access_at(x, line)
    space, bytes_ = access.space, access.size * access.values
    if access.base == PARAMS and access.values == 1 and load_parameter(x, warp, block, access, pc, mask):
        return 0
    if access.order == isa.WEAK:
        region = region_of(x, warp, block, space, access.base, access.offset, bytes_, False, mask)
        if region.space != NOWHERE:
            if get(x, s.CHECK) and region.space != isa.LOCAL and space != isa.CONST:
                shift = together(x, region, bytes_, access.size, mask)
                if shift == s.NARROW:
                    load_watched(x, warp, block, access, region, pc, mask)
                else:
                    load_together(x, warp, block, access, region, shift, pc, mask)
            else:
                load_plainly(x, warp, access, region, mask)
            count_access(x, warp, line, pc, mask, region.space, bytes_, False)
            return 0
    load_lanes(x, warp, block, line, pc, mask)
    return 0


@jit
def load_plainly(x, warp, access, region, mask):
    """Load from a region that the checker does not watch."""
    regs, where, size = get(warp, s.W_REGS), get(x, s.SCRATCH), access.size
    signed = access.type_ & 0xF0 == isa.S
    whole = mask == FULL and region.step == 0 and not signed
    for k in range(access.values):
        row, host = regs + get(access.items, k) * 256, region.host + k * size
        if whole and size == 4:
            for lane in range(32):
                store64(row + lane * 8, load32(host + get(where, lane)))
        elif whole and size == 8:
            for lane in range(32):
                store64(row + lane * 8, load64(host + get(where, lane)))
        else:
            for lane in range(32):
                if (mask >> lane) & 1:
                    value = load(host + get(where, lane) + lane * region.step, size)
                    store64(row + lane * 8, np.uint64(as_integer(value, access.type_)) if signed else value)


@jit
def load_watched(x, warp, block, access, region, pc, mask):
    """Load from a region that the checker watches, by weak accesses."""
    where, slot, size = get(x, s.SCRATCH), warp_slot(x, warp), access.size
    how, floor = access.how | log2(size) << SIZE_SHIFT, get(block, s.B_FLOOR)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        for k in range(access.values):
            at = get(where, lane) + k * size
            shadow = region.init + at, region.grain, region.cells, region.first + at, at
            known = quiet_read(x, thread, block, slot, floor, shadow, size, how, pc)
            if known == LONG:
                check(x, warp, thread, block, region.space, region.place + at, size, access.how, False, True, pc)
            load_value(x, warp, thread, block, slot, access, region, lane, k, at, known)


@jit
def load_value(x, warp, thread, block, slot, access, region, lane, k, at, known):
    """Load value k of a lane's access, which was checked. at: its address. known: what `quiet_read` returned."""
    size = access.size
    if get(x, s.WEAK_MEMORY) and known != UNWRITTEN and rewritten(x, region.location + at, size):
        value = np.uint64(read(x, thread, block, slot, region.location + at, region.host + at, size, isa.WEAK, 0, ANY))
    else:
        value = load(region.host + at, size)
    if access.type_ & 0xF0 == isa.S:
        value = np.uint64(as_integer(value, access.type_))
    put(get(warp, s.W_REGS), get(access.items, k) * 32 + lane, np.int64(value))


@jit
def load_together(x, warp, block, access, region, shift, pc, mask):
    """`load_watched` by wide cells. shift: log2 of their bytes."""
    where, slot, size = get(x, s.SCRATCH), warp_slot(x, warp), access.size
    how, floor, bytes_ = access.how | log2(size) << SIZE_SHIFT, get(block, s.B_FLOOR), size * access.values
    fetch(x, region, shift)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread, at = thread_of(x, warp, lane), get(where, lane)
        cell = wide_cell(x, region.row, region.first + at, shift)
        known = read_together(x, thread, block, slot, floor, region.init + at, cell, shift, bytes_, how, pc)
        if known == UNWRITTEN:
            continue
        mask ^= 1 << lane
        for k in range(access.values):
            if known == LONG:
                place = region.place + at
                examine(x, warp, thread, block, slot, region.space, place, size, access.how, False, True, pc)
            load_value(x, warp, thread, block, slot, access, region, lane, k, at, known)
            at += size
    load_plainly(x, warp, access, region, mask)


@unit
def load_lanes(x, warp, block, line, pc, mask):
    """Run ld for the lanes in mask, one after the other. Each address is looked up."""
    type_, size, count, _, _, order, scope, space, items, how = access = access_at(x, line)
    signed = type_ & 0xF0 == isa.S
    checked = get(x, s.CHECK) != 0
    slot = warp_slot(x, warp)
    seen = np.int64(isa.PARAM)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        host, place, kind = locate_lane(x, warp, thread, block, lane, access, False, pc)
        if host == FAULT:
            for k in range(count):
                set_register(x, warp, get(items, k), lane, np.uint64(0))
            continue
        seen = kind
        watched = checked and (kind == isa.GLOBAL or kind == isa.SHARED) and space != isa.CONST
        newest = np.int64(ANY)
        if watched and count > 1 and order != isa.WEAK:
            newest = newest_of(x, location_of(x, block, kind, place), size, count)
        if watched:
            for k in range(count):
                examine(x, warp, thread, block, slot, kind, place + k * size, size, how, False, True, pc)
        for k in range(count):
            at = location_of(x, block, kind, place + k * size) if watched else place
            if watched and (order != isa.WEAK or (get(x, s.WEAK_MEMORY) and rewritten(x, at, size))):
                value = np.uint64(read(x, thread, block, slot, at, host + k * size, size, order, scope, newest))
                if order != isa.WEAK:
                    newest = get(x, s.CHOSEN)
            else:
                value = load(host + k * size, size)
            if signed:
                value = np.uint64(as_integer(value, type_))
            set_register(x, warp, get(items, k), lane, value)
    count_access(x, warp, line, pc, mask, seen, size * count, False)
    return 0


@unit
def stores(x, warp, block, line, pc, mask):
    """Run st for the lanes in mask."""
    access = access_at(x, line)
    space, bytes_ = access.space, access.size * access.values
    if access.order == isa.WEAK:
        region = region_of(x, warp, block, space, access.base, access.offset, bytes_, True, mask)
        if region.space != NOWHERE:
            store_in_region(x, warp, block, access, region, pc, mask)
            count_access(x, warp, line, pc, mask, region.space, bytes_, True)
            return 0
    store_lanes(x, warp, block, line, pc, mask)
    return 0


@jit
def store_in_region(x, warp, block, access, region, pc, mask):
    """Store to a region by weak accesses."""
    regs, where, slot = get(warp, s.W_REGS), get(x, s.SCRATCH), warp_slot(x, warp)
    type_, size, how = access.type_, access.size, access.how
    watched, changed, floor = get(x, s.CHECK) and region.space != isa.LOCAL, False, get(block, s.B_FLOOR)
    if watched:
        shift = together(x, region, size * access.values, size, mask)
        if shift != s.NARROW:
            store_together(x, warp, block, access, region, shift, pc, mask)
            return
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        for k in range(access.values):
            at = get(where, lane) + k * size
            host = region.host + at + lane * region.step
            value = cut(np.uint64(get(regs, get(access.items, k) * 32 + lane)), type_)
            old = load(host, size)
            changed |= old != value
            if watched:
                flags = how | (SAME if old == value else 0)
                shadow = region.init + at, region.grain, region.cells, region.first + at, at
                flags_of = flags | log2(size) << SIZE_SHIFT
                if quiet_write(x, thread, block, slot, floor, shadow, size, flags_of, pc) == LONG:
                    check(x, warp, thread, block, region.space, region.place + at, size, flags, True, False, pc)
                wrote_weakly(x, thread, region.location + at, size, old, value, access.scope)
            store(host, size, value)
    if changed and region.space != isa.LOCAL:
        put(x, s.PROGRESS, get(x, s.STEP))


@jit
def store_together(x, warp, block, access, region, shift, pc, mask):
    """`store_in_region` by wide cells. shift: log2 of their bytes."""
    regs, where, slot = get(warp, s.W_REGS), get(x, s.SCRATCH), warp_slot(x, warp)
    size, items, floor, changed = access.size, access.items, get(block, s.B_FLOOR), False
    how, bytes_ = access.how | log2(size) << SIZE_SHIFT, size * access.values
    keep = ~np.uint64(0) >> np.uint64(64 - 8 * size)
    # each value but the last of 8 bytes has a history only until the next value, in the same slot, is recorded
    paired = size < 8 and access.values > 1 and get(x, s.SYNC_USED) == 0
    fetch(x, region, shift)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread, at, same, row = thread_of(x, warp, lane), get(where, lane), np.int64(0), regs + lane * 8
        host, location = region.host + at, region.location + at
        for k in range(access.values):
            if load(host + k * size, size) == load64(row + get(items, k) * 256) & keep:
                same |= ((1 << size) - 1) << k * size
        changed |= same != (1 << bytes_) - 1
        cell = wide_cell(x, region.row, region.first + at, shift)
        known = write_together(x, thread, block, slot, floor, region.init + at, cell, shift, bytes_, how, same, pc)
        if known == LONG:
            examine_values(x, warp, thread, block, slot, access, region, at, same, pc)
        gid, clock = get(thread, s.T_GID), get(thread, s.T_CLOCK)
        for k in range(access.values):
            value, old = load64(row + get(items, k) * 256) & keep, load(host, size)
            location += size
            if not paired:
                wrote_weakly(x, thread, location - size, size, old, value, access.scope)
            elif location & 7 == 0 or k + 1 == access.values:
                wrote_afresh(x, gid, clock, location - size, size, old, value, access.scope)
            else:
                next_number(x)
            store(host, size, value)
            host += size
    if changed:
        put(x, s.PROGRESS, get(x, s.STEP))


@jit
def examine_values(x, warp, thread, block, slot, access, region, at, same, pc):
    """Check a lane's store value by value. at: its address. same: a bit for each byte that it leaves as it is."""
    for k in range(0, access.size * access.values, access.size):
        how = access.how | (SAME if (same >> k) & 1 else 0)
        examine(x, warp, thread, block, slot, region.space, region.place + at + k, access.size, how, True, False, pc)


@unit
def store_lanes(x, warp, block, line, pc, mask):
    """Run st for the lanes in mask, one after the other. Each address is looked up."""
    type_, size, count, _, _, order, scope, _, items, how = access = access_at(x, line)
    checked = get(x, s.CHECK) != 0
    slot = warp_slot(x, warp)
    seen = np.int64(isa.PARAM)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        host, place, kind = locate_lane(x, warp, thread, block, lane, access, True, pc)
        if host == FAULT:
            continue
        seen = kind
        watched = checked and (kind == isa.GLOBAL or kind == isa.SHARED)
        for k in range(count):
            value = cut(register(x, warp, get(items, k), lane), type_)
            old = load(host + k * size, size)
            if old != value and kind != isa.LOCAL:
                put(x, s.PROGRESS, get(x, s.STEP))
            hidden = np.int64(0)
            if watched:
                flags = how | (SAME if old == value else 0)
                examine(x, warp, thread, block, slot, kind, place + k * size, size, flags, True, False, pc)
                at = location_of(x, block, kind, place + k * size)
                item = k if count > 1 and order != isa.WEAK else np.int64(ALONE)
                hidden = wrote(x, thread, block, slot, at, size, old, value, order, scope, False, item)
            if not hidden:
                store(host + k * size, size, value)
    count_access(x, warp, line, pc, mask, seen, size * count, True)
    return 0
