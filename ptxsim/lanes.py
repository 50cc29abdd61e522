"""The lanes of a warp: which run next, which diverge at a branch, and which wait for each other.

Lanes at the same instruction run it together. If lanes diverge, those furthest behind run first, so that they meet the
others. If lanes spin for a while, other lanes get a turn, because the spinning ones may be waiting for them.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import register, thread_of
from .barrier import wake
from .bits import get, put
from .collective import FULL, run_collective
from .units import unit
from .watch import draw, report

TIRED, PATIENT, STRETCH = (
    12,
    4096,
    400,
)  # after TIRED polls or PATIENT instructions of some lanes, others run for STRETCH instructions


@jit
def store_pc(x, warp, mask, pc):
    """Set the next instruction of the lanes in mask."""
    for lane in range(32):
        if (mask >> lane) & 1:
            put(thread_of(x, warp, lane), s.T_PC, pc)


@unit
def select(x, warp):
    """Choose the lanes that run next by their T_PC. Returns 0 if no lane can run."""
    free = get(warp, s.W_LIVE) & ~get(warp, s.W_WAIT)
    if free == 0:
        put(warp, s.W_MASK, 0)
        return 0
    chosen = np.int64(-1)
    stick = get(warp, s.W_STICK)
    if stick:
        if get(warp, s.W_AGE) > STRETCH or not (free >> (stick - 1)) & 1:
            put(warp, s.W_STICK, 0)
            put(warp, s.W_AGE, 0)
            put(warp, s.W_SPINS, 0)
        else:
            chosen = get(thread_of(x, warp, stick - 1), s.T_PC)
    elif get(warp, s.W_SPINS) > TIRED or get(warp, s.W_AGE) > PATIENT:
        others = free & ~get(warp, s.W_MASK)
        if others == 0:
            others = free
        lane = draw(x) & 31
        while not (others >> lane) & 1:
            lane = (lane + 1) & 31
        put(warp, s.W_STICK, lane + 1)
        put(warp, s.W_AGE, 0)
        chosen = get(thread_of(x, warp, lane), s.T_PC)
    if chosen < 0:
        chosen = np.int64(1 << 40)
        for lane in range(32):
            if (free >> lane) & 1:
                chosen = min(chosen, get(thread_of(x, warp, lane), s.T_PC))
    mask = np.int64(0)
    for lane in range(32):
        if (free >> lane) & 1 and get(thread_of(x, warp, lane), s.T_PC) == chosen:
            mask |= 1 << lane
    put(warp, s.W_MASK, mask)
    put(warp, s.W_PC, chosen)
    apart = mask != get(warp, s.W_LIVE)
    put(warp, s.W_DIVERGED, 1 if apart else 0)
    if not apart:
        put(warp, s.W_AGE, 0)
        put(warp, s.W_SPINS, 0)
        put(warp, s.W_STICK, 0)
    return 1


@jit
def guarded(x, warp, line, mask):
    """The lanes of mask whose guard is true."""
    row = get(line, isa.PRED)
    if row < 0:
        return mask
    act = np.int64(0)
    regs = get(warp, s.W_REGS) + row * 256
    negated = get(line, isa.NEGATE) & 1
    for lane in range(32):
        act |= ((get(regs, lane) ^ negated) & 1) << lane
    return act & mask


@jit
def branch(x, warp, line, pc, mask, taken):
    """Send the lanes of `taken` to the target, the others to the next instruction. Returns 1 if the warp diverges."""
    target = get(line, isa.IMM)
    if taken == mask:
        put(warp, s.W_PC, target)
        return 0
    if taken == 0:
        put(warp, s.W_PC, pc + 1)
        return 0
    store_pc(x, warp, taken, target)
    store_pc(x, warp, mask & ~taken, pc + 1)
    counts = get(x, s.COUNTS) + pc * s.N_FIELDS * 8
    put(counts, s.N_SPLITS, get(counts, s.N_SPLITS) + 1)
    put(warp, s.W_DIVERGED, 1)
    return 1


@jit
def after(x, warp, mask, pc):
    """Go on at pc. A diverged warp chooses its lanes again."""
    if get(warp, s.W_DIVERGED):
        store_pc(x, warp, mask, pc)
        put(warp, s.W_AGE, get(warp, s.W_AGE) + 1)
        return select(x, warp)
    put(warp, s.W_PC, pc)
    return 1


# ---- lanes that wait for each other ----
@jit
def wanted(x, warp, line, lane):
    """The mask of lanes that a collective instruction, executed by a lane, waits for."""
    op = get(line, isa.OP)
    if op >= isa.MMA:
        return get(warp, s.W_EXISTS)
    row = isa.A if op == isa.WARPSYNC else isa.E
    return np.int64(register(x, warp, get(line, row), lane)) & FULL


@unit
def gather(x, warp, block, line, pc, mask):
    """Execute a collective instruction for the lanes of mask (T_PC = pc), or let these lanes wait for others."""
    same, first = True, np.int64(-1)
    for lane in range(32):
        if (mask >> lane) & 1:
            want = wanted(x, warp, line, lane)
            put(thread_of(x, warp, lane), s.T_EXPECT, want)
            if not (want >> lane) & 1 and get(x, s.CHECK):
                gid = get(thread_of(x, warp, lane), s.T_GID)
                report(x, s.BARRIER_DIVERGENCE, pc, gid, want, 0, 0, 0, 0, 2, 0)
            if first < 0:
                first = want
            elif want != first:
                same = False
    op = get(line, isa.OP)
    if same and first & get(warp, s.W_LIVE) & ~mask == 0:
        run_collective(x, warp, block, op, mask)
        store_pc(x, warp, mask, pc + 1)
        return 0
    for lane in range(32):
        if (mask >> lane) & 1:
            put(thread_of(x, warp, lane), s.T_WAIT, s.AT_WARP)
    put(warp, s.W_WAIT, get(warp, s.W_WAIT) | mask)
    put(warp, s.W_DIVERGED, 1)
    resolve(x, warp, block)
    return 0


@unit
def resolve(x, warp, block):
    """Execute the collective instructions whose lanes have all arrived."""
    tried = np.int64(0)
    for lane in range(32):
        thread = thread_of(x, warp, lane)
        if not (get(warp, s.W_WAIT) >> lane) & 1 or get(thread, s.T_WAIT) != s.AT_WARP or (tried >> lane) & 1:
            continue
        want = get(thread, s.T_EXPECT)
        line = get(x, s.CODE) + get(thread, s.T_PC) * isa.COLUMNS * 8
        op, imm, type_ = get(line, isa.OP), get(line, isa.IMM), get(line, isa.TYPE)
        here = np.int64(0)
        for other in range(32):
            peer = thread_of(x, warp, other)
            if not (get(warp, s.W_WAIT) >> other) & 1 or get(peer, s.T_WAIT) != s.AT_WARP:
                continue
            at = get(x, s.CODE) + get(peer, s.T_PC) * isa.COLUMNS * 8
            alike = get(at, isa.OP) == op and get(at, isa.IMM) == imm and get(at, isa.TYPE) == type_
            if alike and get(peer, s.T_EXPECT) == want:
                here |= 1 << other
        tried |= here
        if want & get(warp, s.W_LIVE) & ~here != 0:
            continue
        for other in range(32):
            if (here >> other) & 1:
                put(thread_of(x, warp, other), s.T_WAIT, s.RUNS)
        put(warp, s.W_WAIT, get(warp, s.W_WAIT) & ~here)
        run_collective(x, warp, block, op, here)  # afterwards lanes may wait again, for the other block of a pair
        for other in range(32):
            if (here >> other) & 1:
                peer = thread_of(x, warp, other)
                put(peer, s.T_PC, get(peer, s.T_PC) + 1)
        put(warp, s.W_DIVERGED, 1)
        put(x, s.PROGRESS, get(x, s.STEP))
    wake(x, warp)
    return 0
