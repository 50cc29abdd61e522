"""Finds the memory of an access, and checks it. The atomic operations of a warp, lane by lane."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .bits import f32_of, f64_of, get, load, load8, load32, put, store, store8, u32_of, u64_of
from .cluster import LOW, holder, reached
from .floating import NAN32, flush32, least_most
from .integer import cut
from .integer import read as as_integer
from .quick import LONG, quiet
from .requests import count_access
from .rounding import BFLOAT, HALF, exact, widen
from .units import unit
from .watch import (
    ALONE,
    ATOMIC,
    GID_MASK,
    NOT_COHERENT,
    SIZE_SHIFT,
    STRONG,
    coherent,
    log2,
    race,
    read_latest,
    report,
    saw_latest,
    wrote,
)
from .wide import narrow

FAULT = -1


@jit
def register(x, warp, row, lane):
    """The value of a register in one lane. warp: the address of the warp's table."""
    return np.uint64(get(get(warp, s.W_REGS), row * 32 + lane))


@jit
def set_register(x, warp, row, lane, value):
    """Set a register in one lane."""
    put(get(warp, s.W_REGS), row * 32 + lane, np.int64(value))


@jit
def locate(x, warp, thread, block, lane, space, address, size, write, pc):
    """Find the memory of an access. Returns (address in this process, place, space).

    If the access is not allowed, such as a write to parameters, this is reported, and the address is FAULT. place: the
    offset in the space, or for global memory in the machine's memory. In another block's shared memory it has the
    block's rank in its high bits (cluster.py).
    """
    if space == isa.GENERIC:
        if isa.SHARED_WINDOW <= address < isa.SHARED_WINDOW + isa.WINDOW:
            space, address = isa.SHARED, address - isa.SHARED_WINDOW
        elif isa.LOCAL_WINDOW <= address < isa.LOCAL_WINDOW + isa.WINDOW:
            space, address = isa.LOCAL, address - isa.LOCAL_WINDOW
        elif isa.PARAM_WINDOW <= address < isa.PARAM_WINDOW + isa.WINDOW:
            space = isa.PARAM
        else:
            space = isa.GLOBAL
    gid = get(thread, s.T_GID)
    if space == isa.SHARED:
        if isa.SHARED_WINDOW <= address < isa.SHARED_WINDOW + isa.WINDOW:
            address -= isa.SHARED_WINDOW
        owner = block
        if address >> isa.RANK_SHIFT != 0:
            owner = reached(x, thread, block, address, size, write, pc)
            if owner == 0:
                return np.int64(FAULT), address, space
            if owner == block:
                address &= LOW
        limit = get(block, s.B_SHARED_SIZE)
        bad = (address & LOW) + size > limit
        if not bad:
            valid = get(block, s.B_VALID) + (address & LOW)
            bad = load8(valid) == np.uint64(0) or load8(valid + size - 1) == np.uint64(0)
        if bad:
            report(x, s.OUT_OF_BOUNDS, pc, gid, address, space, size, 0, 0, limit, write)
            return np.int64(FAULT), address, space
        if address & (size - 1):
            report(x, s.MISALIGNED, pc, gid, address, space, size, 0, 0, 0, write)
            return np.int64(FAULT), address, space
        return get(owner, s.B_SHARED) + (address & LOW), address, space
    if space == isa.LOCAL:
        limit = get(get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8, s.L_LOCAL)
        if address < 0 or address + size > limit:
            report(x, s.OUT_OF_BOUNDS, pc, gid, address, space, size, 0, 0, limit, write)
            return np.int64(FAULT), address, space
        if address & (size - 1):
            report(x, s.MISALIGNED, pc, gid, address, space, size, 0, 0, 0, write)
            return np.int64(FAULT), address, space
        slot = (thread - get(x, s.THREADS)) // (s.T_FIELDS * 8)
        return get(x, s.LOCAL) + slot * get(x, s.LOCAL_BYTES) + address, address, space
    if space == isa.PARAM:
        launch = get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8
        place = address - get(launch, s.L_PARAMS)
        if write or place < 0 or place + size > get(launch, s.L_PARAM_BYTES):
            report(x, s.OUT_OF_BOUNDS, pc, gid, place, space, size, 0, 0, 0, write)
            return np.int64(FAULT), place, space
        if address & (size - 1):
            report(x, s.MISALIGNED, pc, gid, place, space, size, 0, 0, 0, write)
            return np.int64(FAULT), place, space
        return get(x, s.PARAMETERS) + address - isa.PARAM_WINDOW, place, space
    place = address - isa.GLOBAL_START
    if place < 0 or place + size > get(x, s.MEMORY_TOP):
        report(x, s.OUT_OF_BOUNDS, pc, gid, address, isa.GLOBAL, size, 0, 0, -1, write)
        return np.int64(FAULT), place, isa.GLOBAL
    if address & (size - 1):
        report(x, s.MISALIGNED, pc, gid, address, isa.GLOBAL, size, 0, 0, 0, write)
        return np.int64(FAULT), place, isa.GLOBAL
    if get(x, s.CHECK):
        number = np.int64(load32(get(x, s.PAGES) + (place >> s.PAGE_SHIFT) * 4))
        row = get(x, s.ALLOCS) + number * s.A_FIELDS * 8
        start = get(row, s.A_START)
        outside = number == 0 or place < start or place + size > start + get(row, s.A_SIZE)
        if outside or (write and get(row, s.A_STATE) == s.CONSTANT):
            report(x, s.OUT_OF_BOUNDS, pc, gid, address, isa.GLOBAL, size, 0, 0, number, write)
            return np.int64(FAULT), place, isa.GLOBAL
        if get(row, s.A_STATE) == s.FREED:
            report(x, s.USE_AFTER_FREE, pc, gid, address, isa.GLOBAL, size, 0, 0, number, write)
            return np.int64(FAULT), place, isa.GLOBAL
    return get(x, s.MEMORY) + place, place, np.int64(isa.GLOBAL)


@jit
def warp_slot(x, warp):
    """The number of a warp's slot."""
    return get(warp, s.W_SLOT)


@jit
def shadow_of(x, block, space, place, size):
    """What the checker knows of bytes: (address of their init flags, bytes of an item, first cell, offset, address).

    The first cell is that of the array, or of the block's shared memory, that holds the place; the offset is the
    place's offset in this memory. The last address is the one that reports give. The bytes then have narrow cells.
    """
    if space == isa.SHARED:
        grain = get(get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8, s.L_GRANULE)
        owner, offset = holder(x, block, place), place & LOW
        return get(owner, s.B_INIT) + offset, grain, get(owner, s.B_SHADOW), offset, place
    number = np.int64(load32(get(x, s.PAGES) + (place >> s.PAGE_SHIFT) * 4))
    row = get(x, s.ALLOCS) + number * s.A_FIELDS * 8
    cells, first = get(x, s.SHADOW) + get(row, s.A_SHADOW) * s.CELL_WORDS * 8, place - get(row, s.A_START)
    if get(row, s.A_SHIFT) != s.NARROW:
        narrow(x, row, first, size)
    return get(x, s.INIT) + place, get(row, s.A_GRANULE), cells, first, place + isa.GLOBAL_START


@unit
def check(x, warp, thread, block, space, place, size, how, write, reads, pc):
    """Check an access for uninitialised bytes, pending copies and races. The access is in bounds.

    how: the flags of the access (watch.py). reads: whether the access reads, so that the bytes must be initialised.
    """
    gid = get(thread, s.T_GID)
    slot = warp_slot(x, warp)
    init, grain, cells, first, address = shadow_of(x, block, space, place, size)
    fresh, pending = False, False
    if load(init, size) != np.uint64(0x0101010101010101) >> np.uint64(64 - 8 * size):
        for i in range(size):
            state = load8(init + i)
            if state == np.uint64(0):
                fresh = True
            elif state >= np.uint64(s.COPYING) and (write or state == np.uint64(s.COPYING)):
                pending = True
            if write:
                store8(init + i, np.uint64(1))
    if pending:
        report(x, s.MISSING_WAIT, pc, gid, address, space, size, 0, 0, 0, write)
    elif fresh and reads:
        report(x, s.UNINITIALISED, pc, gid, address, space, size, 0, 0, 0, write)
    how |= log2(size) << SIZE_SHIFT
    at = first - first % grain
    while at < first + size:
        mask = np.int64(0)
        for i in range(grain):
            if first <= at + i < first + size:
                mask |= 1 << (i & 7)
        cell = cells + at // grain * s.CELL_WORDS * 8
        if space == isa.GLOBAL and (write or how & NOT_COHERENT):
            coherent(x, gid, cell, mask, write, how, address, pc)
        found = race(x, thread, block, slot, cell, mask, how, write, pc)
        if found != 0:
            other = found & GID_MASK
            lack = get(x, s.LACKS)
            report(x, s.RACE, pc, gid, address, space, size, (found >> s.GID_BITS) & 0x3FFFFF, other, lack, write)
        at += grain
    return 0


@jit
def examine(x, warp, thread, block, slot, space, place, size, how, write, reads, pc):
    """Check an access like `check`, by the short way if nothing can be wrong with it. Not for atomic operations."""
    shadow = shadow_of(x, block, space, place, size)
    if quiet(x, thread, block, slot, shadow, size, how | log2(size) << SIZE_SHIFT, write, pc) == LONG:
        check(x, warp, thread, block, space, place, size, how, write, reads, pc)


@jit
def location_of(x, block, space, place):
    """A number that no other location has: the offset in global memory, or block and offset for shared memory."""
    if space == isa.SHARED:
        return 1 << 61 | get(holder(x, block, place), s.B_GID) << 20 | (place & LOW)
    return place


@jit
def thread_of(x, warp, lane):
    """The address of the table of a lane's thread."""
    return get(warp, s.W_THREADS) + lane * s.T_FIELDS * 8


@jit
def float_add(x, a, b, type_, flush):
    """The sum of two floats, as bits, for an atomic add. flush: whether subnormal float32 numbers become zeros."""
    if type_ == isa.F32:
        if flush:
            a, b = np.uint64(flush32(np.int64(a))), np.uint64(flush32(np.int64(b)))
        total = f32_of(np.uint32(a)) + f32_of(np.uint32(b))
        bits = np.int64(NAN32) if total != total else np.int64(u32_of(total))
        return np.uint64(flush32(bits) if flush else bits)
    if type_ == isa.F64:
        return u64_of(f64_of(a) + f64_of(b))
    form = BFLOAT if type_ == isa.BF16 or type_ == isa.BF16X2 else HALF
    total = half_add(x, np.int64(a) & 0xFFFF, np.int64(b) & 0xFFFF, form)
    if type_ & 15 == 4:
        total |= half_add(x, (np.int64(a) >> 16) & 0xFFFF, (np.int64(b) >> 16) & 0xFFFF, form) << 16
    return np.uint64(total)


@jit
def half_add(x, a, b, form):
    """The sum of two 16-bit floats of a format, as bits."""
    return exact(x, isa.FADD, u64_of(widen(a, form)), u64_of(widen(b, form)), 0, form, isa.RN)


@jit
def float_extreme(x, a, b, type_, op):
    """min or max, as bits, of 16-bit floats or pairs of them. A NaN is ignored."""
    form = BFLOAT if type_ == isa.BF16 or type_ == isa.BF16X2 else HALF
    result = np.int64(0)
    for shift in range(0, (type_ & 15) * 8, 16):
        mine, theirs = widen((np.int64(a) >> shift) & 0xFFFF, form), widen((np.int64(b) >> shift) & 0xFFFF, form)
        best = least_most(op, mine, theirs, 0)
        result |= np.int64(exact(x, isa.FABS, u64_of(best), 0, 0, form, isa.RN)) << shift
    return np.uint64(result)


@jit
def combined(x, kind, type_, old, b, c, flush):
    """The value that an atomic operation writes. kind: 0 to 9 for add, exch, cas, min, max, inc, dec, and, or, xor."""
    floats = type_ & 0xF0 == isa.F or type_ & 0xF0 in (isa.BF16 & 0xF0, isa.F16X2 & 0xF0, isa.BF16X2 & 0xF0)
    if kind == 0:
        if floats:
            return float_add(x, old, b, type_, flush)
        return cut(old + b, type_)
    if kind == 1:
        return b
    if kind == 2:
        return c if old == b else old
    if floats:
        return float_extreme(x, old, b, type_, isa.FMIN if kind == 3 else isa.FMAX)
    if kind == 3 or kind == 4:
        mine, theirs = as_integer(old, type_), as_integer(b, type_)
        if type_ & 0xF0 == isa.S:
            less = mine < theirs
        else:
            less = np.uint64(mine) < np.uint64(theirs)
        return old if less == (kind == 3) else b
    if kind == 5:
        return np.uint64(0) if old >= b else old + np.uint64(1)
    if kind == 6:
        return b if old == np.uint64(0) or old > b else old - np.uint64(1)
    if kind == 7:
        return old & b
    if kind == 8:
        return old | b
    return old ^ b


@unit
def atomics(x, warp, block, line, pc, mask):
    """Run atom and red for the lanes in mask, one lane after the other."""
    type_, flags, base = get(line, isa.TYPE), get(line, isa.FLAGS), get(line, isa.A)
    size, kind_of, whole = type_ & 15, get(line, isa.TYPE2) & 255, get(line, isa.TYPE2) >> 8
    order, scope, space = flags & 15, (flags >> isa.SCOPE_SHIFT) & 3, (flags >> isa.SPACE_SHIFT) & 7
    checked = get(x, s.CHECK) != 0
    how = STRONG | ATOMIC | scope << 1
    slot = warp_slot(x, warp)
    offset, d = get(line, isa.IMM), get(line, isa.D)
    where = get(x, s.SCRATCH)
    seen = np.int64(isa.PARAM)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        address = np.int64(register(x, warp, base, lane)) + offset
        put(where, lane, address)
        host, place, kind = locate(x, warp, thread, block, lane, space, address, size, True, pc)
        if host != FAULT and whole and address & (whole - 1):
            report(x, s.MISALIGNED, pc, get(thread, s.T_GID), address, isa.GLOBAL, whole, 0, 0, 0, True)
            host = np.int64(FAULT)
        if host == FAULT:
            put(where, lane, -1)
            set_register(x, warp, d, lane, np.uint64(0))
            continue
        seen = kind
        b = cut(register(x, warp, get(line, isa.B), lane), type_)
        c = cut(register(x, warp, get(line, isa.C), lane), type_)
        old = load(host, size)
        flush = kind == isa.GLOBAL  # hardware flushes subnormals in global memory, but not in shared memory
        value = combined(x, kind_of, type_, old, b, c, flush)
        if checked and kind != isa.LOCAL:
            at = location_of(x, block, kind, place)
            check(x, warp, thread, block, kind, place, size, how, True, True, pc)
            read_latest(x, thread, at, order, scope)
            if value != old or kind_of != 2:
                wrote(x, thread, block, slot, at, size, old, value, order, scope, True, ALONE)
            else:
                saw_latest(x, thread, at, size)
        if old != value:
            put(x, s.PROGRESS, get(x, s.STEP))
        store(host, size, value)
        set_register(x, warp, d, lane, old)
    count_access(x, warp, line, pc, mask, seen, size, True)
    return 0
