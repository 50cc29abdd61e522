"""cp.async. A copy is checked when it starts, and carried out when a thread waits for it."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import FAULT, examine, locate, location_of, register, thread_of, warp_slot
from .bits import get, load, load8, put, store8
from .requests import count_access
from .units import unit
from .watch import ALONE, report, wrote


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
            for k in range(0, size, 4):
                examine(x, warp, thread, block, slot, isa.SHARED, place + k, 4, 0, True, False, pc)
            for k in range(size):
                store8(get(block, s.B_INIT) + place + k, np.uint64(2))
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
            if get(x, s.CHECK):  # so that readers do not find older values
                for i in range(0, get(row, s.C_SIZE), 4):
                    value = np.uint64(0)
                    for j in range(min(4, get(row, s.C_READ) - i)):
                        value |= load8(source + i + j) << np.uint64(8 * j)
                    at, old = location_of(x, block, isa.SHARED, to + i), load(shared + to + i, np.int64(4))
                    wrote(x, thread, block, slot, at, 4, old, value, isa.WEAK, 0, False, ALONE)
            for i in range(get(row, s.C_SIZE)):
                value = load8(source + i) if i < get(row, s.C_READ) else np.uint64(0)
                store8(shared + to + i, value)
                if get(x, s.CHECK):
                    store8(get(block, s.B_INIT) + to + i, np.uint64(1))
            if get(x, s.CHECK):
                for i in range(0, get(row, s.C_SIZE), 4):
                    examine(x, warp, thread, block, slot, isa.SHARED, to + i, 4, 0, True, False, get(row, s.C_PC))
            put(x, s.PROGRESS, get(x, s.STEP))
        else:
            target = copy_row(x, thread, kept)
            for f in range(s.C_FIELDS):
                put(target, f, get(row, f))
            kept += 1
    put(thread, s.T_COPIES, kept)
    return 0
