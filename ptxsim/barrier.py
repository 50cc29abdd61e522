"""Barriers of a block and of a grid, and the list of warps that can run."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import register, set_register, thread_of, warp_slot
from .bits import get, put
from .clocks import BLOCK_KEY, SUB_BITS, join, publish
from .missing import share_hints
from .units import unit
from .watch import report


@jit
def wake(x, warp):
    """Add a warp to the list of warps that can run, if it can run."""
    if get(warp, s.W_READY) < 0 and get(warp, s.W_LIVE) & ~get(warp, s.W_WAIT) != 0:
        n = get(x, s.READY_COUNT)
        put(get(x, s.READY), n, warp_slot(x, warp))
        put(warp, s.W_READY, n)
        put(x, s.READY_COUNT, n + 1)


@jit
def rest(x, warp):
    """Remove a warp from the list of warps that can run."""
    at = get(warp, s.W_READY)
    if at < 0:
        return
    n = get(x, s.READY_COUNT) - 1
    last = get(get(x, s.READY), n)
    put(get(x, s.READY), at, last)
    put(get(x, s.WARPS) + last * s.W_FIELDS * 8, s.W_READY, at)
    put(warp, s.W_READY, -1)
    put(x, s.READY_COUNT, n)


@jit
def barrier_of(x, block, number):
    """The row of a block's barrier."""
    return get(x, s.BARRIERS) + (get(block, s.B_SLOT) * s.BARRIERS_PER_BLOCK + (number & 15)) * s.Q_FIELDS * 8


@unit
def arrive(x, warp, block, line, pc, mask):
    """Run bar or barrier for the lanes of mask, and mark the lanes that have to wait.

    The T_PC of these lanes already names the next instruction.
    """
    op, flags = get(line, isa.OP), get(line, isa.FLAGS)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        number = np.int64(register(x, warp, get(line, isa.A), lane)) & 15
        count = np.int64(register(x, warp, get(line, isa.B), lane)) & 0xFFFF
        wrong = register(x, warp, get(line, isa.A), lane) > np.uint64(15) or count & 31 != 0
        if wrong and get(x, s.CHECK):
            report(x, s.BARRIER_DIVERGENCE, pc, get(thread, s.T_GID), 0, 0, 0, 0, 0, 3, 0)
        q = barrier_of(x, block, number)
        put(q, s.Q_ARRIVED, get(q, s.Q_ARRIVED) + 1)
        put(q, s.Q_EXPECTED, count)
        if op == isa.BARRED:
            value = register(x, warp, get(line, isa.C), lane) & np.uint64(1)
            if get(q, s.Q_ARRIVED) == 1:
                put(q, s.Q_POPC, 0)
            put(q, s.Q_POPC, get(q, s.Q_POPC) + np.int64(value))
        if count != 0 and (op == isa.BARARRIVE or count < get(block, s.B_THREADS)):
            put(q, s.Q_PARTIAL, 1)
            if get(x, s.CHECK):
                put(q, s.Q_VC, join(x, get(q, s.Q_VC), publish(x, thread, block, warp_slot(x, warp))))
        if op == isa.BARARRIVE:
            continue
        put(thread, s.T_WAIT, s.AT_BARRIER)
        put(thread, s.T_BARRIER, number)
        put(thread, s.T_RESULT, pc)
        put(warp, s.W_WAIT, get(warp, s.W_WAIT) | 1 << lane)
    if flags & 1 and get(x, s.CHECK):
        split(x, warp, pc, mask)
        pass_by(x, warp, line, pc, mask)
    first = np.int64(0)
    while not (mask >> first) & 1:
        first += 1
    return settle(x, block, np.int64(register(x, warp, get(line, isa.A), first)) & 15)


@jit
def split(x, warp, pc, mask):
    """Report lanes of one warp that wait at different aligned barriers. PTX forbids this."""
    for lane in range(32):
        if (get(warp, s.W_WAIT) >> lane) & 1 and not (mask >> lane) & 1:
            thread = thread_of(x, warp, lane)
            if get(thread, s.T_WAIT) == s.AT_BARRIER and get(thread, s.T_RESULT) != pc:
                other = get(thread, s.T_GID)
                report(x, s.BARRIER_DIVERGENCE, pc, other, 0, 0, 0, get(thread, s.T_RESULT), other, 1, 0)
                return


@jit
def pass_by(x, warp, line, pc, mask):
    """Mark lanes that pass by an aligned barrier of the whole block at which other lanes of their warp arrive.

    mask: the lanes that arrive. A marked lane that ends without arriving is reported. Lanes that have ended already are
    not marked, because the barrier waits only for threads that have not ended (the PTX ISA on `barrier` and `exit`).
    """
    for lane in range(32):
        thread = thread_of(x, warp, lane)
        if (mask >> lane) & 1:
            put(thread, s.T_PASSED, 0)
        elif (get(warp, s.W_LIVE) >> lane) & 1 and not (get(warp, s.W_WAIT) >> lane) & 1:
            first = np.int64(0)
            while not (mask >> first) & 1:
                first += 1
            whole = np.int64(register(x, warp, get(line, isa.B), first)) & 0xFFFF == 0
            if whole and get(thread, s.T_PASSED) == 0 and has_work(x, get(thread, s.T_PC)):
                put(thread, s.T_PASSED, pc + 1)


@jit
def has_work(x, pc):
    """Whether a lane at pc touches memory or other lanes before it ends or branches."""
    for _ in range(256):
        line = get(x, s.CODE) + pc * isa.COLUMNS * 8
        op = get(line, isa.OP)
        if op == isa.BRA and get(line, isa.PRED) < 0:
            pc = get(line, isa.IMM)
        elif op >= 400 and op != isa.NOP:
            return op >= 500
        else:
            pc += 1
    return False


@unit
def settle(x, block, number):
    """Release the threads that wait at a barrier if its count of threads, or without a count all live ones, arrived."""
    q = barrier_of(x, block, number)
    arrived, expected = get(q, s.Q_ARRIVED), get(q, s.Q_EXPECTED)
    if arrived == 0:
        return 0
    if expected == 0:
        expected = get(block, s.B_LIVE)
    if arrived < expected:
        return 0
    checked = get(x, s.CHECK) != 0
    partial = get(q, s.Q_PARTIAL) != 0
    total = get(q, s.Q_POPC)
    floor = get(block, s.B_MAX_CLOCK) + 1
    vc, sv = np.int64(0), np.int64(0)
    first = get(block, s.B_FIRST_WARP)
    if checked and not partial:
        for i in range(get(block, s.B_WARPS)):
            warp = get(x, s.WARPS) + (first + i) * s.W_FIELDS * 8
            for lane in range(32):
                if (get(warp, s.W_LIVE) >> lane) & 1:
                    thread = thread_of(x, warp, lane)
                    vc = join(x, vc, get(thread, s.T_VC))
                    sv = join(x, sv, get(thread, s.T_SV))
    for i in range(get(block, s.B_WARPS)):
        warp = get(x, s.WARPS) + (first + i) * s.W_FIELDS * 8
        for lane in range(32):
            if not (get(warp, s.W_WAIT) >> lane) & 1:
                continue
            thread = thread_of(x, warp, lane)
            if get(thread, s.T_WAIT) != s.AT_BARRIER or get(thread, s.T_BARRIER) != number:
                continue
            pc = get(thread, s.T_RESULT)
            line = get(x, s.CODE) + pc * isa.COLUMNS * 8
            if get(line, isa.OP) == isa.BARRED:
                kind = get(line, isa.IMM)
                result = total
                if kind == 1:
                    result = np.int64(total == arrived)
                elif kind == 2:
                    result = np.int64(total != 0)
                set_register(x, warp, get(line, isa.D), lane, np.uint64(result))
            if checked and partial:
                put(thread, s.T_VC, join(x, get(thread, s.T_VC), get(q, s.Q_VC)))
            elif checked:
                put(thread, s.T_VC, vc)
                put(thread, s.T_SV, sv)
                put(thread, s.T_CLOCK, floor)
            put(thread, s.T_WAIT, s.RUNS)
            put(warp, s.W_WAIT, get(warp, s.W_WAIT) & ~(1 << lane))
            put(warp, s.W_DIVERGED, 1)
        wake(x, warp)
    if checked and not partial:
        share_hints(x, block, -1, 0)
        put(block, s.B_FLOOR, floor)
        put(block, s.B_MAX_CLOCK, floor)
    put(q, s.Q_ARRIVED, 0)
    put(q, s.Q_VC, 0)
    put(q, s.Q_PARTIAL, 0)
    put(q, s.Q_POPC, 0)
    put(x, s.PROGRESS, get(x, s.STEP))
    return 0


@unit
def arrive_grid(x, warp, block, mask):
    """Let lanes wait at a grid-wide barrier until every thread of the launch has arrived."""
    launch = get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8
    n = np.int64(0)
    for lane in range(32):
        if (mask >> lane) & 1:
            n += 1
            put(thread_of(x, warp, lane), s.T_WAIT, s.AT_GRID)
    put(warp, s.W_WAIT, get(warp, s.W_WAIT) | mask)
    put(block, s.B_AT_GRID, get(block, s.B_AT_GRID) + n)
    put(launch, s.L_AT_GRID, get(launch, s.L_AT_GRID) + n)
    return settle_grid(x, launch)


@unit
def settle_grid(x, launch):
    """Release the threads that wait at a grid-wide barrier if every block of the launch has arrived.

    As in CUDA's runtime, thread 0 of a block arrives for the block once all threads of the block that have not ended
    have arrived. If a block, or its thread 0, has ended, the other blocks wait for ever.
    """
    if get(launch, s.L_AT_GRID) == 0:
        return 0
    number = (launch - get(x, s.LAUNCHES)) // (s.L_FIELDS * 8)
    arrived = np.int64(0)
    for i in range(get(x, s.BLOCK_SLOTS)):
        block = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
        if get(block, s.B_LIVE) > 0 and get(block, s.B_LAUNCH) == number:
            if get(block, s.B_AT_GRID) < get(block, s.B_LIVE):
                return 0
            arrived += get(get(x, s.WARPS) + get(block, s.B_FIRST_WARP) * s.W_FIELDS * 8, s.W_LIVE) & 1
    if arrived < get(launch, s.L_BLOCKS):
        return 0
    checked = get(x, s.CHECK) != 0
    joined = np.int64(0)
    if checked:
        joined = grid_clock(x, number)
    for i in range(get(x, s.BLOCK_SLOTS)):
        block = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
        if get(block, s.B_LIVE) == 0 or get(block, s.B_LAUNCH) != number:
            continue
        floor = get(block, s.B_MAX_CLOCK) + 1
        for k in range(get(block, s.B_WARPS)):
            warp = get(x, s.WARPS) + (get(block, s.B_FIRST_WARP) + k) * s.W_FIELDS * 8
            for lane in range(32):
                if (get(warp, s.W_WAIT) >> lane) & 1:
                    thread = thread_of(x, warp, lane)
                    put(thread, s.T_WAIT, s.RUNS)
                    if checked:
                        put(thread, s.T_CLOCK, floor)
                        put(thread, s.T_VC, joined)
            put(warp, s.W_WAIT, 0)
            put(warp, s.W_DIVERGED, 1)
            wake(x, warp)
        put(block, s.B_FLOOR, floor)
        put(block, s.B_MAX_CLOCK, floor)
        put(block, s.B_AT_GRID, 0)
    put(launch, s.L_AT_GRID, 0)
    put(x, s.PROGRESS, get(x, s.STEP))
    return 0


@jit
def grid_clock(x, number):
    """One vector clock that covers the present moment of every thread of a launch, and all that these threads know."""
    vc = np.int64(0)
    launch = get(x, s.LAUNCHES) + number * s.L_FIELDS * 8
    blocks, first = get(launch, s.L_BLOCKS), get(launch, s.L_FIRST_GID)
    for i in range(get(x, s.BLOCK_SLOTS)):
        block = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
        if get(block, s.B_LIVE) == 0 or get(block, s.B_LAUNCH) != number:
            continue
        for k in range(get(block, s.B_WARPS)):
            warp = get(x, s.WARPS) + (get(block, s.B_FIRST_WARP) + k) * s.W_FIELDS * 8
            for lane in range(32):
                if (get(warp, s.W_LIVE) >> lane) & 1:
                    vc = join(x, vc, get(thread_of(x, warp, lane), s.T_VC))
    pool, top = get(x, s.CLOCKS), get(x, s.CLOCKS_TOP)
    for i in range(blocks):
        put(pool, 2 * (top + 1 + i), (first + i) << SUB_BITS | BLOCK_KEY)
        put(pool, 2 * (top + 1 + i) + 1, 0x3FFFFFFF)
    for i in range(get(x, s.BLOCK_SLOTS)):
        block = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
        if get(block, s.B_LIVE) > 0 and get(block, s.B_LAUNCH) == number:
            put(pool, 2 * (top + 1 + get(block, s.B_GID) - first) + 1, get(block, s.B_MAX_CLOCK))
    put(pool, 2 * top, blocks)
    put(pool, 2 * top + 1, 0)
    put(x, s.CLOCKS_TOP, top + 1 + blocks)
    put(x, s.MAX_CLOCKS, max(get(x, s.MAX_CLOCKS), blocks + 64))
    return join(x, vc, top)
