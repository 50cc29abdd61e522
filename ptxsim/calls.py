"""Calls and returns of a lane, and the end of lanes and grids."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import register, set_register, thread_of
from .barrier import rest, settle, settle_grid
from .bits import get, load8, put, store8
from .clocks import join
from .cluster import left_behind
from .cluster_barrier import settle_cluster
from .copies import finish_copies
from .lanes import resolve
from .rows import FRAME
from .units import unit
from .watch import report


@jit
def stack_of(x, thread):
    """The stack of calls of a thread."""
    slot = (thread - get(x, s.THREADS)) // (s.T_FIELDS * 8)
    return get(x, s.STACKS) + slot * get(x, s.STACK_BYTES)


@unit
def call(x, warp, block, line, pc, lane, target, first, end):
    """Call a function in one lane: copy parameters into the callee's frame, and push the place to return to.

    first, end: the rows that the call saves, from `first` to below `end`. The two are equal if it saves none.
    """
    thread = thread_of(x, warp, lane)
    depth = get(thread, s.T_DEPTH)
    launch = get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8
    frame = np.int64(register(x, warp, FRAME, lane))
    top = frame + get(line, isa.TYPE2)
    rows = end - first
    if (
        depth + 1 >= get(x, s.DEPTH)
        or top + 16 > get(launch, s.L_LOCAL)
        or get(thread, s.T_SAVED) + rows > get(x, s.SAVE_ROWS)
    ):
        report(x, s.TRAPPED, pc, get(thread, s.T_GID), 0, 0, 0, 0, 0, 1, 0)
        end_lanes(x, warp, block, 1 << lane)
        return 0
    stack = stack_of(x, thread)
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    returns, arguments = get(items, 0), get(items, 1)
    slot = (thread - get(x, s.THREADS)) // (s.T_FIELDS * 8)
    memory = get(x, s.LOCAL) + slot * get(x, s.LOCAL_BYTES)
    for k in range(returns, returns + arguments):
        here, there, size = get(items, 2 + 3 * k), get(items, 3 + 3 * k), get(items, 4 + 3 * k)
        for i in range(size):
            store8(memory + top + there + i, load8(memory + frame + here + i))
    put(stack, 4 * depth, pc)
    put(stack, 4 * depth + 1, frame)
    put(stack, 4 * depth + 2, first)
    put(stack, 4 * depth + 3, rows)
    saved = stack + (4 * get(x, s.DEPTH) + get(thread, s.T_SAVED)) * 8
    for k in range(rows):
        put(saved, k, np.int64(register(x, warp, first + k, lane)))
    put(thread, s.T_SAVED, get(thread, s.T_SAVED) + rows)
    put(thread, s.T_DEPTH, depth + 1)
    set_register(x, warp, FRAME, lane, np.uint64(top))
    put(thread, s.T_PC, target)
    return 0


@unit
def return_call(x, warp, lane):
    """Return in one lane: copy results into the caller's frame, and pop the stack."""
    thread = thread_of(x, warp, lane)
    depth = get(thread, s.T_DEPTH) - 1
    stack = stack_of(x, thread)
    pc, frame = get(stack, 4 * depth), get(stack, 4 * depth + 1)
    first, rows = get(stack, 4 * depth + 2), get(stack, 4 * depth + 3)
    line = get(x, s.CODE) + pc * isa.COLUMNS * 8
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    slot = (thread - get(x, s.THREADS)) // (s.T_FIELDS * 8)
    memory = get(x, s.LOCAL) + slot * get(x, s.LOCAL_BYTES)
    top = np.int64(register(x, warp, FRAME, lane))
    for k in range(get(items, 0)):
        here, there, size = get(items, 2 + 3 * k), get(items, 3 + 3 * k), get(items, 4 + 3 * k)
        for i in range(size):
            store8(memory + frame + here + i, load8(memory + top + there + i))
    put(thread, s.T_SAVED, get(thread, s.T_SAVED) - rows)
    saved = stack + (4 * get(x, s.DEPTH) + get(thread, s.T_SAVED)) * 8
    for k in range(rows):
        set_register(x, warp, first + k, lane, np.uint64(get(saved, k)))
    put(thread, s.T_DEPTH, depth)
    set_register(x, warp, FRAME, lane, np.uint64(frame))
    put(thread, s.T_PC, pc + 1)
    return 0


# ---- the end of threads and grids ----
@unit
def end_lanes(x, warp, block, mask):
    """End threads. Their copies land, and barriers no longer wait for them."""
    n = np.int64(0)
    for lane in range(32):
        if (mask >> lane) & 1:
            n += 1
            thread = thread_of(x, warp, lane)
            if get(thread, s.T_PASSED):
                barrier = get(thread, s.T_PASSED) - 1
                report(x, s.BARRIER_DIVERGENCE, barrier, get(thread, s.T_GID), 0, 0, 0, 0, 0, -1, 0)
            if get(thread, s.T_COPIES):
                finish_copies(x, warp, thread, block, get(thread, s.T_GROUP) + 1, s.C_MOST)
            if get(x, s.CHECK) and get(thread, s.T_VC) != 0:
                launch = get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8
                put(launch, s.L_VC_OUT, join(x, get(launch, s.L_VC_OUT), get(thread, s.T_VC)))
                if get(x, s.CLUSTERED):
                    put(block, s.B_VC_OUT, join(x, get(block, s.B_VC_OUT), get(thread, s.T_VC)))
    put(warp, s.W_LIVE, get(warp, s.W_LIVE) & ~mask)
    put(warp, s.W_WAIT, get(warp, s.W_WAIT) & ~mask)
    put(block, s.B_LIVE, get(block, s.B_LIVE) - n)
    put(x, s.PROGRESS, get(x, s.STEP))
    settle_cluster(x, get(block, s.B_CLUSTER))
    if get(block, s.B_LIVE) == 0:
        if get(block, s.B_REACHED) and get(x, s.CHECK):
            left_behind(x, block)
        put(x, s.DEAD, get(x, s.DEAD) + 1)
        return 0
    if get(warp, s.W_WAIT) != 0:
        resolve(x, warp, block)
    for number in range(s.BARRIERS_PER_BLOCK):
        settle(x, block, number)
    if get(block, s.B_AT_GRID):
        settle_grid(x, get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8)
    return 0


@unit
def stop_launch(x, block):
    """Run trap, which ends all threads of the launch."""
    number = get(block, s.B_LAUNCH)
    launch = get(x, s.LAUNCHES) + number * s.L_FIELDS * 8
    put(launch, s.L_STOPPED, 1)
    for i in range(get(x, s.BLOCK_SLOTS)):
        other = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
        if get(other, s.B_LIVE) > 0 and get(other, s.B_LAUNCH) == number:
            for k in range(get(other, s.B_WARPS)):
                warp = get(x, s.WARPS) + (get(other, s.B_FIRST_WARP) + k) * s.W_FIELDS * 8
                put(warp, s.W_LIVE, 0)
                put(warp, s.W_WAIT, 0)
                put(warp, s.W_MASK, 0)
                rest(x, warp)
            put(other, s.B_LIVE, 0)
            put(x, s.DEAD, get(x, s.DEAD) + 1)
    return 0
