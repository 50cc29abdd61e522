"""cp.async. A copy is checked when it starts, and carried out when a thread waits for it.

Two pending copies of different threads are twins if they have the same target, source and size. The threads race, but
whichever copy lands first, the bytes are the same.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import FAULT, examine, locate, location_of, register, shadow_of, thread_of, warp_slot
from .bits import get, load, load8, put, store8
from .requests import count_access
from .units import unit
from .watch import ALONE, SAME, conflicts, report, wrote


@unit
def start_copy(x, warp, block, line, pc, mask):
    """Run cp.async: check the copy and queue it. Until the thread has waited for it, no access may touch its target."""
    size, offset = get(line, isa.TYPE), get(line, isa.IMM)
    where, slot = get(x, s.SCRATCH), warp_slot(x, warp)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        to = np.int64(register(x, warp, get(line, isa.A), lane)) & 0xFFFFFFFF
        source = np.int64(register(x, warp, get(line, isa.B), lane))
        length = min(np.int64(register(x, warp, get(line, isa.C), lane)), size)
        put(where, lane, source if length > 0 else np.int64(-1))
        twin = np.int64(0)
        host, place, _ = locate(x, warp, thread, block, lane, isa.SHARED, to + offset, size, True, pc)
        if host == FAULT or not own_place(x, thread, place, pc):
            continue
        if length > 0:
            aligned = size if source & (size - 1) else length
            origin, at, kind = locate(x, warp, thread, block, lane, isa.GLOBAL, source, aligned, False, pc)
            if origin == FAULT:
                continue
            if get(x, s.CHECK):
                step = min(np.int64(4), length)
                for k in range(0, length, step):
                    examine(x, warp, thread, block, slot, kind, at + k, step, 0, False, True, pc)
        else:
            origin = np.int64(0)
        if get(x, s.CHECK):
            twin = begin_target(x, warp, thread, block, place, origin, size, length, pc)
        if get(thread, s.T_COPIES) == s.C_MOST:
            finish_copies(x, warp, thread, block, get(thread, s.T_GROUP) + 1, 1)
        n = get(thread, s.T_COPIES)
        row = copy_row(x, thread, n)
        put(row, s.C_TO, place)
        put(row, s.C_FROM, origin)
        put(row, s.C_SIZE, size)
        put(row, s.C_READ, length)
        put(row, s.C_GROUP, get(thread, s.T_GROUP))
        put(row, s.C_PC, pc)
        put(row, s.C_TWIN, twin)
        put(thread, s.T_COPIES, n + 1)
    count_access(x, warp, line, pc, mask, isa.GLOBAL, size, False)
    for lane in range(32):
        if (mask >> lane) & 1:
            put(where, lane, (np.int64(register(x, warp, get(line, isa.A), lane)) & 0xFFFFFFFF) + offset)
    count_access(x, warp, line, pc, mask, isa.SHARED, size, True)
    return 0


@jit
def own_place(x, thread, place, pc):
    """Whether a place that `locate` returned lies in the block's own shared memory. If not, this is reported."""
    if place >> isa.RANK_SHIFT:
        report(x, s.OUT_OF_BOUNDS, pc, get(thread, s.T_GID), place, isa.SHARED, 4, 0, 0, 0, True)
    return place >> isa.RANK_SHIFT == 0


@jit
def begin_target(x, warp, thread, block, place, origin, size, length, pc):
    """Check the bytes that a copy will write, and mark them as pending. Returns whether the copy has a twin.

    A copy races with its twin, but both write the same value.
    """
    init, target, slot = get(block, s.B_INIT) + place, get(block, s.B_SHARED) + place, warp_slot(x, warp)
    state, twin = load8(init), np.int64(0)
    if state & np.uint64(s.COPYING):
        twin = find_twin(x, thread, block, warp, place, origin, size, length)
    if twin != 0:
        put(twin, s.C_TWIN, 1)
        mark(init, size, np.uint64(s.LANDED))
    else:
        state = np.uint64(s.COPYING)
    for k in range(0, size, 4):
        equal = load(target + k, np.int64(4)) == read_source(origin, k, length)
        how = SAME if twin != 0 or (equal and again(x, thread, block, slot, place + k, pc)) else np.int64(0)
        examine(x, warp, thread, block, slot, isa.SHARED, place + k, 4, how, True, False, pc)
    mark(init, size, state)
    return np.int64(twin != 0)


@jit
def find_twin(x, thread, block, warp, place, origin, size, length):
    """The row of a pending copy by another thread of the block from the same bytes to the same place, or 0."""
    row = twin_in(x, thread, warp, place, origin, size, length)
    for k in range(get(block, s.B_WARPS)):
        other = get(x, s.WARPS) + (get(block, s.B_FIRST_WARP) + k) * s.W_FIELDS * 8
        if row == 0 and other != warp:
            row = twin_in(x, thread, other, place, origin, size, length)
    return row


@jit
def twin_in(x, thread, warp, place, origin, size, length):
    """`find_twin` among the threads of one warp."""
    for lane in range(32):
        other = thread_of(x, warp, lane)
        if (get(warp, s.W_EXISTS) >> lane) & 1 and other != thread:
            for n in range(get(other, s.T_COPIES)):
                row = copy_row(x, other, n)
                same = get(row, s.C_TO) == place and get(row, s.C_FROM) == origin
                if same and get(row, s.C_SIZE) == size and get(row, s.C_READ) == length:
                    return row
    return np.int64(0)


@jit
def again(x, thread, block, slot, place, pc):
    """Whether a copy races with an earlier write to these 4 bytes by the same instruction, in another thread."""
    _, grain, cells, first, _ = shadow_of(x, block, isa.SHARED, place, np.int64(4))
    cell = cells + first // grain * s.CELL_WORDS * 8
    origin = get(cell, 0)
    if (origin >> s.GID_BITS) & 0x3FFFFF != pc:
        return False
    return conflicts(x, thread, block, slot, origin, get(cell, 1), np.int64(0xFF), np.int64(0))


@jit
def read_source(source, at, length):
    """Four bytes of a copy's source, from offset `at` on. Bytes from `length` on are zeros."""
    value = np.uint64(0)
    for j in range(min(np.int64(4), length - at)):
        value |= load8(source + at + j) << np.uint64(8 * j)
    return value


@jit
def mark(init, size, state):
    """Set what the checker knows of bytes."""
    for k in range(size):
        store8(init + k, state)


@jit
def copy_row(x, thread, n):
    """The row of a thread's n-th pending copy."""
    slot = (thread - get(x, s.THREADS)) // (s.T_FIELDS * 8)
    return get(x, s.COPIES) + (slot * s.C_MOST + n) * s.C_FIELDS * 8


@unit
def finish_copies(x, warp, thread, block, before, most):
    """Carry out at most `most` of a thread's copies, of groups below `before`. The rows of its other copies move up."""
    n, kept, done = get(thread, s.T_COPIES), np.int64(0), np.int64(0)
    shared, slot = get(block, s.B_SHARED), warp_slot(x, warp)
    for k in range(n):
        row = copy_row(x, thread, k)
        if get(row, s.C_GROUP) < before and done < most:
            done += 1
            to, source = get(row, s.C_TO), get(row, s.C_FROM)
            size, length, same, state = get(row, s.C_SIZE), get(row, s.C_READ), np.int64(0), np.uint64(s.LANDED)
            if get(x, s.CHECK):  # so that readers do not find older values
                if get(row, s.C_TWIN) and find_twin(x, thread, block, warp, to, source, size, length) != 0:
                    same, state = np.int64(-1), np.uint64(s.LANDED | s.COPYING)
                for i in range(0, size, 4):
                    value = read_source(source, i, length)
                    at, old = location_of(x, block, isa.SHARED, to + i), load(shared + to + i, np.int64(4))
                    if old == value and (get(row, s.C_TWIN) or again(x, thread, block, slot, to + i, get(row, s.C_PC))):
                        same |= np.int64(1) << i
                    wrote(x, thread, block, slot, at, 4, old, value, isa.WEAK, 0, False, ALONE)
            for i in range(size):
                store8(shared + to + i, load8(source + i) if i < length else np.uint64(0))
            if get(x, s.CHECK):
                mark(get(block, s.B_INIT) + to, size, np.uint64(s.LANDED))
                for i in range(0, size, 4):
                    how = SAME if (same >> i) & 1 else np.int64(0)
                    examine(x, warp, thread, block, slot, isa.SHARED, to + i, 4, how, True, False, get(row, s.C_PC))
                mark(get(block, s.B_INIT) + to, size, state)
            put(x, s.PROGRESS, get(x, s.STEP))
        else:
            target = copy_row(x, thread, kept)
            for f in range(s.C_FIELDS):
                put(target, f, get(row, f))
            kept += 1
    put(thread, s.T_COPIES, kept)
    return 0
