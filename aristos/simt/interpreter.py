"""The interpreter: chooses warps by the seed, lanes by their place in the program, and executes instructions.

Lanes of a warp that stand at the same instruction run it together. Where they part, the lanes furthest behind run
first, so that they meet the others; but lanes that spin are left after a while for others to run, whom they may be
waiting for.
"""

from __future__ import annotations

import numpy as np

from . import isa
from . import state as s
from .access import (
    atomics,
    finish_copies,
    loads,
    register,
    set_register,
    start_copy,
    stores,
    thread_of,
    warp_slot,
)
from .arithmetic import calculate_conversions, calculate_floats, calculate_integers
from .barrier import arrive, arrive_grid, rest, settle, settle_grid, wake
from .bits import get, load8, load64, put, store8
from .bulk import abandon, bulk, fence_of_proxies, land_some
from .clocks import join
from .collective import FULL, together
from .inner import jit
from .integer import cut
from .mbarrier import mbarrier, time_out
from .rows import FRAME, PARAMS, ROW
from .units import unit
from .warpgroup import touch, watch_registers
from .watch import draw, fence, report

TIRED, PATIENT, STRETCH = 12, 4096, 400  # waits seen, instructions run, before other lanes get a stretch
REPEATS = 48  # how often a warp must come back to the same state to count as spinning
QUIET = 50_000  # instructions without any change before spinning is looked for


@jit
def store_pc(x, warp, mask, pc):
    for lane in range(32):
        if (mask >> lane) & 1:
            put(thread_of(x, warp, lane), s.T_PC, pc)


@unit
def select(x, warp):
    """Choose which lanes run next; all lanes' T_PC are right. False if none can."""
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
    """The lanes whose guard lets them execute."""
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
def popcount32(m):
    m = m - ((m >> 1) & 0x55555555)
    m = (m & 0x33333333) + ((m >> 2) & 0x33333333)
    m = (m + (m >> 4)) & 0x0F0F0F0F
    return ((m * 0x01010101) & 0xFFFFFFFF) >> 24


@unit
def move(x, warp, line, op, mask):
    """Vectors of registers, and clocks."""
    regs = get(warp, s.W_REGS)
    type_, part, count = get(line, isa.TYPE), get(line, isa.IMM), get(line, isa.COUNT)
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        if op == isa.PACK:
            value = np.uint64(0)
            for k in range(count):
                piece = cut(np.uint64(get(regs, get(items, k) * 32 + lane)), part)
                value |= piece << np.uint64(8 * part * k)
            put(regs, get(line, isa.D) * 32 + lane, np.int64(value))
        elif op == isa.UNPACK:
            value = cut(np.uint64(get(regs, get(line, isa.A) * 32 + lane)), type_)
            for k in range(count):
                put(regs, get(items, k) * 32 + lane, np.int64(cut(value >> np.uint64(8 * part * k), part)))
        else:  # CLOCK: cycles, their high half, nanoseconds, theirs
            step = get(x, s.STEP) * 4
            if part >= 2:
                step += get(x, s.START_TIME)
            put(regs, get(line, isa.D) * 32 + lane, step >> 32 if part & 1 else step)
    return 0


@jit
def branch(x, warp, line, pc, mask, taken):
    """Send the lanes of `taken` to the target and the others on; True if the warp came apart."""
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


# ---- calls ----
@jit
def stack_of(x, thread):
    slot = (thread - get(x, s.THREADS)) // (s.T_FIELDS * 8)
    return get(x, s.STACKS) + slot * get(x, s.STACK_BYTES)


@unit
def call(x, warp, block, line, pc, lane, target, first, end):
    """One lane's call: parameters copied into the callee's frame, the way back put on the lane's stack."""
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
def give_back(x, warp, lane):
    """One lane's return: results copied into the caller's frame."""
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


# ---- the end of threads and blocks ----
@unit
def end_lanes(x, warp, block, mask):
    """Threads that end: their copies land, and barriers no longer wait for them."""
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
    put(warp, s.W_LIVE, get(warp, s.W_LIVE) & ~mask)
    put(warp, s.W_WAIT, get(warp, s.W_WAIT) & ~mask)
    put(block, s.B_LIVE, get(block, s.B_LIVE) - n)
    put(x, s.PROGRESS, get(x, s.STEP))
    if get(block, s.B_LIVE) == 0:
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
    """trap: the whole grid ends."""
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


# ---- lanes that wait for each other ----
@jit
def wanted(x, warp, line, lane):
    """The mask that a collective instruction names in a lane."""
    op = get(line, isa.OP)
    if op >= isa.MMA:
        return get(warp, s.W_EXISTS)
    row = isa.A if op == isa.WARPSYNC else isa.E
    return np.int64(register(x, warp, get(line, row), lane)) & FULL


@unit
def gather(x, warp, block, line, pc, mask):
    """A collective instruction for the lanes of mask (T_PC = pc): executed now, or the lanes wait."""
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
        together(x, warp, block, op, mask)
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
    """Execute the collective instructions whose lanes have all come."""
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
        together(x, warp, block, op, here)
        for other in range(32):
            if (here >> other) & 1:
                peer = thread_of(x, warp, other)
                put(peer, s.T_WAIT, s.RUNS)
                put(peer, s.T_PC, get(peer, s.T_PC) + 1)
        put(warp, s.W_WAIT, get(warp, s.W_WAIT) & ~here)
        put(warp, s.W_DIVERGED, 1)
        put(x, s.PROGRESS, get(x, s.STEP))
    wake(x, warp)
    return 0


# ---- one instruction ----
@jit
def step(x, warp, block):
    """Execute one instruction of the chosen lanes; False when the warp has none to run."""
    pc, mask = get(warp, s.W_PC), get(warp, s.W_MASK)
    line = get(x, s.CODE) + pc * isa.COLUMNS * 8
    op = get(line, isa.OP)
    act = guarded(x, warp, line, mask)
    if get(warp, s.W_FLIGHT) and act:
        touch(x, warp, line, op, pc)
    if get(line, isa.NEGATE) < 2:
        counts = get(x, s.COUNTS) + pc * s.N_FIELDS * 8
        put(counts, s.N_WARPS, get(counts, s.N_WARPS) + 1)
        put(counts, s.N_LANES, get(counts, s.N_LANES) + popcount32(act))
        put(x, s.STEP, get(x, s.STEP) + 1)
    if op < 300:
        regs = get(warp, s.W_REGS)
        if op < 100:
            calculate_integers(x, regs, line, op, act)
        elif op < 200:
            calculate_floats(x, regs, line, op, act)
        else:
            calculate_conversions(x, regs, line, op, act)
    elif op >= 500 and op < 600:
        if memory(x, warp, block, line, pc, op, act):
            after(x, warp, mask, pc + 1)
            return 0  # the loop first: it makes room for clocks
    elif op < 400:
        move(x, warp, line, op, act)
    elif op == isa.BRA:
        backward = get(line, isa.IMM) <= pc
        if backward and get(x, s.SUSPECT):
            store_pc(x, warp, mask, pc)
            spinning(x, warp, block, pc)
        if branch(x, warp, line, pc, mask, act):
            return select(x, warp)
        return after(x, warp, mask, get(warp, s.W_PC))
    else:
        return special(x, warp, block, line, pc, op, mask, act)
    return after(x, warp, mask, pc + 1)


@jit
def after(x, warp, mask, pc):
    """Go on at pc; where lanes are apart, choose anew."""
    if get(warp, s.W_DIVERGED):
        store_pc(x, warp, mask, pc)
        put(warp, s.W_AGE, get(warp, s.W_AGE) + 1)
        return select(x, warp)
    put(warp, s.W_PC, pc)
    return 1


@unit
def memory(x, warp, block, line, pc, op, act):
    if act == 0:
        return 0
    if op == isa.LD:
        loads(x, warp, block, line, pc, act)
        flags = get(line, isa.FLAGS)
        if get(warp, s.W_DIVERGED) and (flags & 15 != isa.WEAK or (flags >> isa.SPACE_SHIFT) & 7 <= isa.SHARED):
            put(warp, s.W_SPINS, get(warp, s.W_SPINS) + (4 if flags & 15 != isa.WEAK else 0))
    elif op == isa.ST:
        stores(x, warp, block, line, pc, act)
    elif op == isa.ATOM:
        atomics(x, warp, block, line, pc, act)
        if get(warp, s.W_DIVERGED):
            put(warp, s.W_SPINS, get(warp, s.W_SPINS) + 4)
    elif op == isa.FENCE:
        if get(x, s.CHECK):
            flags = get(line, isa.FLAGS)
            for lane in range(32):
                if (act >> lane) & 1:
                    thread = thread_of(x, warp, lane)
                    fence(x, thread, block, warp_slot(x, warp), flags & 15, (flags >> isa.SCOPE_SHIFT) & 3)
    elif op == isa.CPASYNC:
        start_copy(x, warp, block, line, pc, act)
    elif op >= isa.BULKLOAD:
        bulk(x, warp, block, line, pc, op, act)
        return 1
    else:
        for lane in range(32):
            if (act >> lane) & 1:
                thread = thread_of(x, warp, lane)
                group = get(thread, s.T_GROUP)
                if op == isa.CPCOMMIT:
                    put(thread, s.T_GROUP, group + 1)
                else:
                    left = get(line, isa.IMM)
                    before = group + 1 if left < 0 else group - left
                    finish_copies(x, warp, thread, block, before, s.C_MOST)
    return 0


@unit
def special(x, warp, block, line, pc, op, mask, act):
    """Calls, ends, barriers, waits and collective instructions: all that moves lanes in its own way."""
    store_pc(x, warp, mask, pc + 1)
    if act == 0:
        return select(x, warp)
    if op == isa.RET:
        leaving = np.int64(0)
        for lane in range(32):
            if (act >> lane) & 1:
                if get(thread_of(x, warp, lane), s.T_DEPTH) == 0:
                    leaving |= 1 << lane
                else:
                    give_back(x, warp, lane)
        if leaving:
            end_lanes(x, warp, block, leaving)
    elif op == isa.EXIT:
        end_lanes(x, warp, block, act)
    elif op == isa.CALL or op == isa.CALLI:
        for lane in range(32):
            if (act >> lane) & 1:
                target, first, end = get(line, isa.IMM), get(line, isa.C), get(line, isa.E)
                if op == isa.CALLI:
                    number = np.int64(register(x, warp, get(line, isa.A), lane)) - isa.FUNCTION_START
                    table = get(x, s.FUNCTIONS)
                    if number < 0 or number >= get(table, 0):
                        report(x, s.TRAPPED, pc, get(thread_of(x, warp, lane), s.T_GID), number, 0, 0, 0, 0, 2, 0)
                        end_lanes(x, warp, block, 1 << lane)
                        continue
                    target, first, end = (
                        get(table, 1 + 3 * number),
                        get(table, 2 + 3 * number),
                        get(table, 3 + 3 * number),
                    )
                call(x, warp, block, line, pc, lane, target, first, end)
    elif op == isa.BRX:
        for lane in range(32):
            if (act >> lane) & 1:
                index = np.int64(register(x, warp, get(line, isa.A), lane)) & FULL
                items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
                if index < get(line, isa.COUNT):
                    put(thread_of(x, warp, lane), s.T_PC, get(items, index))
    elif op == isa.TRAP:
        first = np.int64(0)
        while not (act >> first) & 1:
            first += 1
        report(x, s.TRAPPED, pc, get(thread_of(x, warp, first), s.T_GID), 0, 0, 0, 0, 0, 0, 0)
        stop_launch(x, block)
        return 0
    elif op == isa.NOP:
        return select(x, warp)
    elif op == isa.BAR or op == isa.BARARRIVE or op == isa.BARRED:
        arrive(x, warp, block, line, pc, act)
    elif op == isa.GRIDSYNC:
        arrive_grid(x, warp, block, act)
    elif op == isa.NANOSLEEP:
        put(warp, s.W_SPINS, get(warp, s.W_SPINS) + 6)
        select(x, warp)
        return 0  # the others first
    elif op >= isa.MBINIT and op < isa.SHFL:
        if op >= isa.PROXYFENCE:
            if op == isa.INITFENCE or get(x, s.CHECK):
                fence_of_proxies(x, warp, block, line, op, act)
        else:
            mbarrier(x, warp, block, line, pc, op, act)
        select(x, warp)
        return 0  # the others first
    elif op == isa.ACTIVEMASK:
        for lane in range(32):
            if (act >> lane) & 1:
                set_register(x, warp, get(line, isa.D), lane, np.uint64(act))
    elif op == isa.PRINTF:
        for lane in range(32):
            if (act >> lane) & 1:
                printf(x, warp, block, line, pc, lane)
    else:
        store_pc(x, warp, act, pc)
        gather(x, warp, block, line, pc, act)
        if op >= isa.WGMMA:
            select(x, warp)
            return 0  # the others first
    return select(x, warp)


@unit
def printf(x, warp, block, line, pc, lane):
    """Keep a format and its arguments for the host, which prints them."""
    n = get(x, s.PRINTS_COUNT)
    thread = thread_of(x, warp, lane)
    row = get(x, s.PRINTS) + n * 80 * 8
    put(row, 0, np.int64(register(x, warp, get(line, isa.A), lane)))
    put(row, 1, get(thread, s.T_GID))
    put(row, 2, pc)
    address = np.int64(register(x, warp, get(line, isa.B), lane)) - isa.LOCAL_WINDOW
    slot = (thread - get(x, s.THREADS)) // (s.T_FIELDS * 8)
    limit = get(get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8, s.L_LOCAL)
    for i in range(64):
        value = np.uint64(0)
        if address + 8 * i >= 0 and address + 8 * i + 8 <= limit:
            value = load64(get(x, s.LOCAL) + slot * get(x, s.LOCAL_BYTES) + address + 8 * i)
        put(row, 3 + i, np.int64(value))
    put(x, s.PRINTS_COUNT, n + 1)
    set_register(x, warp, get(line, isa.D), lane, np.uint64(1))
    return 0


# ---- spinning ----
@unit
def spinning(x, warp, block, pc):
    """Has a warp come back to a state it was in? Looked at only after nothing has changed for long."""
    launch = get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8
    h = np.uint64(1469598103934665603) ^ np.uint64(pc)
    prime = np.uint64(1099511628211)
    regs = get(warp, s.W_REGS)
    for i in range(get(launch, s.L_ROWS) * 32):
        h = (h ^ load64(regs + 8 * i)) * prime
    for lane in range(32):
        h = (h ^ np.uint64(get(thread_of(x, warp, lane), s.T_PC))) * prime
    value = np.int64(h)
    if value == get(warp, s.W_HASH):
        same = get(warp, s.W_SAME) + 1
        put(warp, s.W_SAME, same)
        if same == REPEATS:
            put(x, s.SPINNING, get(x, s.SPINNING) + 1)
        return 0
    put(warp, s.W_HASH_AGE, get(warp, s.W_HASH_AGE) + 1)
    age = get(warp, s.W_HASH_AGE)
    if age & (age - 1) == 0:  # look back at ever older states, so that long circles are found too
        put(warp, s.W_HASH, value)
    return 0


# ---- blocks ----
@unit
def start_block(x, device, launch, slot, sm):
    """Fill a block's slot: its threads, their special registers and constants."""
    block = get(x, s.BLOCKS) + slot * s.B_FIELDS * 8
    cta = get(launch, s.L_NEXT)
    put(launch, s.L_NEXT, cta + 1)
    threads, warps = get(launch, s.L_THREADS), get(launch, s.L_WARPS)
    put(block, s.B_LAUNCH, get(launch, s.L_NUMBER))
    put(block, s.B_CTA, cta)
    put(block, s.B_THREADS, threads)
    put(block, s.B_WARPS, warps)
    put(block, s.B_LIVE, threads)
    put(block, s.B_GID, get(launch, s.L_FIRST_GID) + cta)
    put(block, s.B_FLOOR, 0)
    put(block, s.B_MAX_CLOCK, 1)
    put(block, s.B_SM, sm)
    put(block, s.B_SC, 0)
    put(block, s.B_AT_GRID, 0)
    put(block, s.B_MBARRIERS, 0)
    shared = get(launch, s.L_SHARED)
    put(block, s.B_SHARED_SIZE, shared)
    put(block, s.B_VALID, get(launch, s.L_VALID))
    clear(get(block, s.B_SHARED), shared)
    if get(x, s.CHECK):
        clear(get(block, s.B_INIT), shared)
        clear(get(block, s.B_SHADOW), (shared // get(launch, s.L_GRANULE) + 1) * s.CELL_WORDS * 8)
    for number in range(s.BARRIERS_PER_BLOCK):
        q = get(x, s.BARRIERS) + (slot * s.BARRIERS_PER_BLOCK + number) * s.Q_FIELDS * 8
        for f in range(s.Q_FIELDS):
            put(q, f, 0)
    gx, gy = get(launch, s.L_GX), get(launch, s.L_GY)
    bx, by = get(launch, s.L_BX), get(launch, s.L_BY)
    for k in range(warps):
        number = get(block, s.B_FIRST_WARP) + k
        warp = get(x, s.WARPS) + number * s.W_FIELDS * 8
        regs = get(x, s.REGS) + number * get(x, s.REGISTERS_PER_WARP) * 8
        clear(regs, get(launch, s.L_ROWS) * 256)
        clear(warp, s.W_FIELDS * 8)
        put(warp, s.W_REGS, regs)
        put(warp, s.W_BLOCK, slot)
        put(warp, s.W_INDEX, k)
        put(warp, s.W_READY, -1)
        if get(x, s.CHECK):
            for i in range(1024):
                put(get(x, s.KNOWN), number * 1024 + i, -1)
        live = np.int64(0)
        for lane in range(32):
            tid = k * 32 + lane
            thread = thread_of(x, warp, lane)
            clear(thread, s.T_FIELDS * 8)
            put(thread, s.T_PC, get(launch, s.L_ENTRY))
            put(thread, s.T_GID, get(block, s.B_GID) << 10 | tid)
            put(thread, s.T_CLOCK, 1)
            put(thread, s.T_TID, tid)
            put(thread, s.T_VC, get(launch, s.L_VC))
            if tid < threads:
                live |= 1 << lane
            put(regs, ROW_TID_X * 32 + lane, tid % bx)
            put(regs, ROW_TID_Y * 32 + lane, tid // bx % by)
            put(regs, ROW_TID_Z * 32 + lane, tid // (bx * by))
            put(regs, ROW_LANEID * 32 + lane, lane)
            put(regs, ROW_EQ * 32 + lane, 1 << lane)
            put(regs, ROW_LE * 32 + lane, (2 << lane) - 1)
            put(regs, ROW_LT * 32 + lane, (1 << lane) - 1)
            put(regs, ROW_GE * 32 + lane, FULL & ~((1 << lane) - 1))
            put(regs, ROW_GT * 32 + lane, FULL & ~((2 << lane) - 1))
        put(warp, s.W_LIVE, live)
        put(warp, s.W_EXISTS, live)
        fill(regs, ROW_NTID, bx)
        fill(regs, ROW_NTID + 1, by)
        fill(regs, ROW_NTID + 2, get(launch, s.L_BZ))
        fill(regs, ROW_CTAID, cta % gx)
        fill(regs, ROW_CTAID + 1, cta // gx % gy)
        fill(regs, ROW_CTAID + 2, cta // (gx * gy))
        fill(regs, ROW_NCTAID, gx)
        fill(regs, ROW_NCTAID + 1, gy)
        fill(regs, ROW_NCTAID + 2, get(launch, s.L_GZ))
        fill(regs, ROW_WARPID, k)
        fill(regs, ROW_NWARPID, warps)
        fill(regs, ROW_SMID, sm)
        fill(regs, ROW_NSMID, get(device, s.D_SMS))
        fill(regs, ROW_GRIDID, get(launch, s.L_NUMBER))
        fill(regs, PARAMS, get(launch, s.L_PARAMS))
        fill(regs, ROW_DYNAMIC, get(launch, s.L_DYNAMIC))
        fill(regs, ROW_DYNAMIC + 1, shared)
        fill(regs, ROW_DYNAMIC + 4, 1)
        constants = get(launch, s.L_CONSTANTS)
        for i in range(get(launch, s.L_CONSTANT_COUNT)):
            fill(regs, get(constants, 2 * i), get(constants, 2 * i + 1))
        if get(launch, s.L_WARPGROUP) and get(x, s.CHECK):
            watch_registers(x, warp, number, launch)
        select(x, warp)
        wake(x, warp)
    put(x, s.PROGRESS, get(x, s.STEP))
    return 0


ROW_TID_X, ROW_TID_Y, ROW_TID_Z, ROW_NTID, ROW_CTAID, ROW_NCTAID = (
    ROW[name] for name in ("tid.x", "tid.y", "tid.z", "ntid.x", "ctaid.x", "nctaid.x")
)
ROW_LANEID, ROW_WARPID, ROW_NWARPID, ROW_SMID, ROW_NSMID, ROW_GRIDID, ROW_DYNAMIC = (
    ROW[name] for name in ("laneid", "warpid", "nwarpid", "smid", "nsmid", "gridid", "dynamic_smem_size")
)
ROW_EQ, ROW_LE, ROW_LT, ROW_GE, ROW_GT = (ROW[f"lanemask_{name}"] for name in ("eq", "le", "lt", "ge", "gt"))


@jit
def fill(regs, row, value):
    for lane in range(32):
        put(regs, row * 32 + lane, value)


@jit
def clear(address, size):
    n = size >> 3
    for i in range(n):
        put(address, i, 0)
    for i in range(n * 8, size):
        store8(address + i, np.uint64(0))


@unit
def admit(x, number):
    """Start the blocks of a device's launch, in the order of their index, while there is room on its SMs."""
    device = get(x, s.DEVICES) + number * (s.D_FIELDS + s.MAX_SMS) * 8
    sms = get(device, s.D_SMS)
    while True:
        current = get(device, s.D_CURRENT)
        if current < 0:
            return 0
        launch = get(x, s.LAUNCHES) + current * s.L_FIELDS * 8
        if get(launch, s.L_NEXT) >= get(launch, s.L_BLOCKS):
            return 0
        room = np.int64(-1)
        for k in range(sms):
            sm = (get(device, s.D_NEXT_SM) + k) % sms
            if get(device, s.D_FIELDS + sm) < get(launch, s.L_PER_SM):
                room = sm
                break
        if room < 0:
            return 0
        slot = np.int64(-1)
        for i in range(get(x, s.BLOCK_SLOTS)):
            block = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
            if get(block, s.B_DEVICE) == number and get(block, s.B_LAUNCH) < 0:
                slot = np.int64(i)
                break
        if slot < 0:
            return 0
        put(device, s.D_NEXT_SM, room + 1)
        put(device, s.D_FIELDS + room, get(device, s.D_FIELDS + room) + 1)
        start_block(x, device, launch, slot, room)
    return 0


@unit
def bury(x):
    """Free the slots of blocks that ended; launches that are over make way for the next of their device."""
    put(x, s.DEAD, 0)
    for i in range(get(x, s.BLOCK_SLOTS)):
        block = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
        number = get(block, s.B_LAUNCH)
        if number < 0 or get(block, s.B_LIVE) > 0:
            continue
        for k in range(get(block, s.B_WARPS)):
            rest(x, get(x, s.WARPS) + (get(block, s.B_FIRST_WARP) + k) * s.W_FIELDS * 8)
        device = get(x, s.DEVICES) + get(block, s.B_DEVICE) * (s.D_FIELDS + s.MAX_SMS) * 8
        sm = s.D_FIELDS + get(block, s.B_SM)
        put(device, sm, get(device, sm) - 1)
        launch = get(x, s.LAUNCHES) + number * s.L_FIELDS * 8
        if get(x, s.PENDING_COUNT):
            abandon(x, block, get(launch, s.L_STOPPED))
        put(launch, s.L_DONE, get(launch, s.L_DONE) + 1)
        put(block, s.B_LAUNCH, -1)
        if get(launch, s.L_STOPPED):
            put(launch, s.L_DONE, get(launch, s.L_DONE) + get(launch, s.L_BLOCKS) - get(launch, s.L_NEXT))
            put(launch, s.L_NEXT, get(launch, s.L_BLOCKS))
        if get(launch, s.L_DONE) == get(launch, s.L_BLOCKS):
            put(launch, s.L_STATE, s.FINISHED)
            following(x, device, launch)
        admit(x, get(block, s.B_DEVICE))
    return 0


@jit
def following(x, device, launch):
    """The next launch of a device begins; it knows all that the one before knew."""
    number = get(launch, s.L_NUMBER)
    put(device, s.D_CURRENT, -1)
    for k in range(number + 1, get(x, s.LAUNCH_COUNT)):
        other = get(x, s.LAUNCHES) + k * s.L_FIELDS * 8
        if get(other, s.L_DEVICE) == get(launch, s.L_DEVICE) and get(other, s.L_STATE) == s.QUEUED:
            put(other, s.L_STATE, s.ACTIVE)
            put(other, s.L_VC, join(x, get(other, s.L_VC), get(launch, s.L_VC_OUT)))
            put(device, s.D_CURRENT, k)
            return


# ---- the loop ----
@unit
def run(x, budget):
    """Run up to `budget` instructions of warps; returns why it came back (state.BUDGET ...)."""
    for number in range(get(x, s.DEVICE_COUNT)):
        admit(x, number)
    until = get(x, s.STEP) + budget
    while True:
        if get(x, s.DEAD):
            bury(x)
        ready = get(x, s.READY_COUNT)
        if ready == 0:
            if get(x, s.DEAD):
                continue
            if get(x, s.PENDING_COUNT):
                land_some(x)
                continue
            if time_out(x):
                continue
            for number in range(get(x, s.DEVICE_COUNT)):
                device = get(x, s.DEVICES) + number * (s.D_FIELDS + s.MAX_SMS) * 8
                if get(device, s.D_CURRENT) >= 0:
                    return s.STUCK
            return s.ALL_DONE
        if get(x, s.STEP) >= until:
            return s.BUDGET
        if get(x, s.STOP):
            return s.STOPPED
        if get(x, s.PRINTS_CAP) - get(x, s.PRINTS_COUNT) < 32 * 40:
            return s.PRINTS_FULL
        if get(x, s.CHECK):
            if get(x, s.CLOCKS_CAP) - get(x, s.CLOCKS_TOP) < 65536 + get(x, s.CLOCK_ROOM) * get(x, s.MAX_CLOCKS):
                return s.CLOCKS_FULL
            if 2 * get(x, s.SYNC_USED) + 4096 > get(x, s.SYNC_CAP):
                return s.SYNC_FULL
        if get(x, s.PENDING_COUNT) > s.P_MOST - 32 * get(x, s.BURST):  # each instruction adds one a lane
            land_some(x)
            continue
        quiet = get(x, s.STEP) - get(x, s.PROGRESS)
        if get(x, s.SUSPECT):
            if quiet < QUIET:
                calm(x)
            elif get(x, s.SPINNING) >= ready or quiet > get(x, s.PATIENCE):
                if not time_out(x):
                    return s.LIVELOCK
                calm(x)
        elif quiet >= QUIET:
            put(x, s.SUSPECT, 1)
        r = draw(x)
        if get(x, s.PENDING_COUNT) and r >> 50 & 15 == 0:
            land_some(x)
            ready = get(x, s.READY_COUNT)
        chosen = get(get(x, s.READY), (r >> 8) % ready)
        warp = get(x, s.WARPS) + chosen * s.W_FIELDS * 8
        block = get(x, s.BLOCKS) + get(warp, s.W_BLOCK) * s.B_FIELDS * 8
        burst(x, warp, block, 1 + (r & 255) % get(x, s.BURST))


@jit
def burst(x, warp, block, count):
    """A few instructions of one warp."""
    if get(warp, s.W_DIVERGED) and not select(x, warp):
        rest(x, warp)
        return
    for _ in range(count):
        if not step(x, warp, block):
            break
        if get(x, s.DEAD):
            break
    if get(warp, s.W_LIVE) & ~get(warp, s.W_WAIT) == 0:
        rest(x, warp)


@jit
def calm(x):
    """Something changed: nobody spins for ever."""
    put(x, s.SUSPECT, 0)
    put(x, s.SPINNING, 0)
    for i in range(get(x, s.WARP_SLOTS)):
        warp = get(x, s.WARPS) + i * s.W_FIELDS * 8
        put(warp, s.W_SAME, 0)
        put(warp, s.W_HASH_AGE, 0)
