"""The interpreter, which chooses warps by the seed and executes their instructions."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import atomics, register, set_register, thread_of, warp_slot
from .arithmetic import calculate_conversions, calculate_floats, calculate_integers
from .barrier import arrive, arrive_grid, rest
from .begin import await_launch, begin_launches, trigger
from .bits import get, load64, put
from .blocks import admit, remove_ended
from .bulk import bulk, fence_of_proxies, land_some
from .calls import call, end_lanes, return_call, stop_launch
from .cluster import cluster_register
from .cluster_barrier import arrive_cluster, await_cluster
from .collective import FULL
from .copies import finish_copies, start_copy
from .integer import cut
from .lanes import after, branch, gather, guarded, select, store_pc
from .matrix import multiply
from .mbarrier import mbarrier, time_out
from .moves import loads, stores
from .sampling import sample
from .tensor import tensor
from .tensor_product import tensor_core
from .units import unit
from .warpgroup import touch
from .watch import draw, fence, report

REPEATS = 48  # how often a warp must return to the same state to count as spinning
FIRST_SKIP, MOST_SKIPS = 1 << 20, 10  # cycles; together about half a second at 2 GHz
MOST_LOCAL = 4096  # bytes of a lane's local memory that belong to its state
LONG_TURN = 400  # instructions of a warp's turn after the end of a plan
QUIET = 50_000  # instructions without any change before the interpreter looks for spinning warps


@jit
def popcount32(m):
    """The number of set bits of a 32-bit mask."""
    m = m - ((m >> 1) & 0x55555555)
    m = (m & 0x33333333) + ((m >> 2) & 0x33333333)
    m = (m + (m >> 4)) & 0x0F0F0F0F
    return ((m * 0x01010101) & 0xFFFFFFFF) >> 24


@unit
def move(x, warp, line, op, mask):
    """Pack or unpack a vector of registers, or read a clock or a special register of clusters."""
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
        elif op == isa.CLUSTERREG:
            block = get(x, s.BLOCKS) + get(warp, s.W_BLOCK) * s.B_FIELDS * 8
            put(regs, get(line, isa.D) * 32 + lane, cluster_register(x, block, part))
        else:  # CLOCK; IMM: 0 cycles, 1 their high half, 2 nanoseconds, 3 their high half
            step = get(x, s.STEP) * 4 + get(x, s.SKIPPED)
            put(x, s.CLOCK_READ, 1)
            if part >= 2:
                step += get(x, s.START_TIME)
            put(regs, get(line, isa.D) * 32 + lane, step >> 32 if part & 1 else step)
    return 0


# ---- one instruction ----
@jit
def step(x, warp, block):
    """Execute one instruction of the chosen lanes.

    Returns 0 if another warp must run next, or if no lane of this warp can run.
    """
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
        signals = (op == isa.ST or op == isa.ATOM) and get(line, isa.FLAGS) & 15 != isa.WEAK
        late = signals and act and get(x, s.CHECK) and delay(x, warp)
        if memory(x, warp, block, line, pc, op, act) or late:
            after(x, warp, mask, pc + 1)
            return 0  # so that the loop makes space for vector clocks, or lets others run
    elif op < 400:
        move(x, warp, line, op, act)
    elif op == isa.BRA:
        backward = get(line, isa.IMM) <= pc
        if backward and get(x, s.SUSPECT):
            store_pc(x, warp, mask, pc)
            spinning(x, warp, block, line, pc, mask)
        if branch(x, warp, line, pc, mask, act):
            return select(x, warp)
        return after(x, warp, mask, get(warp, s.W_PC))
    elif op == isa.MMA and act == get(warp, s.W_LIVE) and not get(warp, s.W_DIVERGED):
        multiply(x, warp, line)  # no lane waits for another
    else:
        return special(x, warp, block, line, pc, op, mask, act)
    return after(x, warp, mask, pc + 1)


@unit
def memory(x, warp, block, line, pc, op, act):
    """Run a memory instruction for the lanes in act. Returns 1 if `run` must act before the next instruction."""
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
    elif op >= isa.TCMMA:
        tensor_core(x, warp, block, line, pc, op, act)
        return 1
    elif op >= isa.TENSORLOAD:
        tensor(x, warp, block, line, pc, op, act)
        return 1
    elif op >= isa.BULKLOAD:
        bulk(x, warp, block, line, pc, op, act)
        return 1
    elif op >= isa.TEX:
        sample(x, warp, block, line, pc, op, act)
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
    """Run an instruction after which lanes may branch or wait: a call, an end, a barrier, a wait or a collective."""
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
                    return_call(x, warp, lane)
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
    elif op == isa.GRIDWAIT:
        await_launch(x, warp, block, act)
    elif op == isa.GRIDTRIGGER:
        if trigger(x, block):
            put(x, s.DEAD, get(x, s.DEAD) + 1)  # so that the loop begins the next launch
            select(x, warp)
            return 0
    elif op == isa.CLUSTERARRIVE:
        arrive_cluster(x, warp, block, line, pc, act)
    elif op == isa.CLUSTERWAIT:
        await_cluster(x, warp, block, pc, act)
    elif op == isa.NANOSLEEP:
        put(warp, s.W_SPINS, get(warp, s.W_SPINS) + 6)
        select(x, warp)
        return 0  # so that other warps run first
    elif op >= isa.MBINIT and op < isa.SHFL:
        if op >= isa.PROXYFENCE:
            if op == isa.INITFENCE or get(x, s.CHECK):
                fence_of_proxies(x, warp, block, line, op, act)
        else:
            mbarrier(x, warp, block, line, pc, op, act)
        select(x, warp)
        return 0  # so that other warps run first
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
            return 0  # so that other warps run first
    return select(x, warp)


@unit
def printf(x, warp, block, line, pc, lane):
    """Record a format and its arguments, which the host prints later."""
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
def spinning(x, warp, block, line, pc, mask):
    """Count a warp as spinning if it has returned to the same state REPEATS times.

    This is called at a backward branch, when nothing has changed for long. The state of a lane is its place in the
    code, the beginning of its local memory, and some registers: for lanes at the branch those that the code after the
    branch may read (liveness.py), for other lanes those that any loop of the function may read. The branch's list has
    the rows of the former, then of the latter, each after their number. So a clock that the loop reads afresh does not
    count.
    """
    h = np.uint64(1469598103934665603) ^ np.uint64(pc)
    regs = get(warp, s.W_REGS)
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    others = items + (1 + get(items, 0)) * 8
    size = min(get(get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8, s.L_LOCAL), MOST_LOCAL) >> 3
    for lane in range(32):
        rows = items if (mask >> lane) & 1 else others
        for i in range(get(rows, 0)):
            h = mixed(h, get(regs, get(rows, 1 + i) * 32 + lane))
        thread = thread_of(x, warp, lane)
        h = mixed(h, get(thread, s.T_PC))
        local = get(x, s.LOCAL) + (warp_slot(x, warp) * 32 + lane) * get(x, s.LOCAL_BYTES)
        for i in range(size):
            h = mixed(h, get(local, i))
    value = np.int64(h)
    if value == get(warp, s.W_HASH):
        same = get(warp, s.W_SAME) + 1
        put(warp, s.W_SAME, same)
        if same == REPEATS:
            put(x, s.SPINNING, get(x, s.SPINNING) + 1)
        return 0
    put(warp, s.W_HASH_AGE, get(warp, s.W_HASH_AGE) + 1)
    age = get(warp, s.W_HASH_AGE)
    if age & (age - 1) == 0:  # the state to compare with gets older and older, so that long cycles are found too
        put(warp, s.W_HASH, value)
    return 0


@jit
def mixed(h, value):
    """A hash with one more value (FNV-1a)."""
    return (h ^ np.uint64(value)) * np.uint64(1099511628211)


@jit
def skip_time(x):
    """Let time pass, if threads that spin read clocks: the first time FIRST_SKIP cycles, then twice as many and so on.

    So loops that wait for some time end, but timeouts of a second and more do not. Returns False if no more time may
    pass before something changes.
    """
    if get(x, s.SKIPPED_AT) != get(x, s.PROGRESS):
        put(x, s.SKIPPED_AT, get(x, s.PROGRESS))
        put(x, s.SKIPS, 0)
    if not get(x, s.CLOCK_READ) or get(x, s.SKIPS) >= MOST_SKIPS:
        return False
    put(x, s.SKIPPED, get(x, s.SKIPPED) + (FIRST_SKIP << get(x, s.SKIPS)))
    put(x, s.SKIPS, get(x, s.SKIPS) + 1)
    put(x, s.CLOCK_READ, 0)
    return True


# ---- the loop ----
@jit
def clocks_full(x):
    """Whether the pool of vector clocks is too full for one more instruction of a warp."""
    return get(x, s.CLOCKS_CAP) - get(x, s.CLOCKS_TOP) < 65536 + get(x, s.CLOCK_SPACE) * get(x, s.MAX_CLOCKS)


@unit
def run(x, budget):
    """Run up to `budget` warp instructions. Returns why it stopped: state.BUDGET or another."""
    begin_launches(x)
    for number in range(get(x, s.DEVICE_COUNT)):
        admit(x, number)
    until = get(x, s.STEP) + budget
    while True:
        if get(x, s.DEAD):
            remove_ended(x)
        ready = get(x, s.READY_COUNT)
        if ready == 0:
            if get(x, s.DEAD):
                continue
            if get(x, s.PENDING_COUNT):
                land_some(x)
                continue
            if time_out(x):
                continue
            return s.STUCK if get(x, s.OPEN) else s.ALL_DONE
        if get(x, s.STEP) >= until:
            return s.BUDGET
        if get(x, s.STOP):
            return s.STOPPED
        if get(x, s.PRINTS_CAP) - get(x, s.PRINTS_COUNT) < 32 * 40:
            return s.PRINTS_FULL
        if get(x, s.CHECK):
            if clocks_full(x):
                return s.CLOCKS_FULL
            if 2 * get(x, s.SYNC_USED) + 4096 > get(x, s.SYNC_CAP):
                return s.SYNC_FULL
        # an instruction adds at most one entry a lane, and a copy to the blocks of a cluster one for each
        if get(x, s.PENDING_COUNT) > s.P_MOST - 32 * max(get(x, s.BURST), s.MOST_CLUSTER):
            land_some(x)
            continue
        quiet = get(x, s.STEP) - get(x, s.PROGRESS)
        if get(x, s.SUSPECT):
            if quiet < QUIET:
                calm(x)
            elif get(x, s.SPINNING) >= ready or quiet > get(x, s.PATIENCE):
                if not time_out(x) and not skip_time(x):
                    return s.LIVELOCK
                calm(x)
        elif quiet >= QUIET:
            put(x, s.SUSPECT, 1)
        r = draw(x)
        if get(x, s.PENDING_COUNT) and r >> 50 & 15 == 0:
            land_some(x)
            ready = get(x, s.READY_COUNT)
        chosen, count = get(get(x, s.READY), (r >> 8) % ready), 1 + (r & 255) % get(x, s.BURST)
        if get(x, s.PLAN):
            chosen, count = planned(x, ready)
        elif get(x, s.STEP) < get(x, s.SLOW_UNTIL) and r >> 40 & 7:  # a delayed warp has some turns
            chosen = ahead(x, (r >> 8) % ready, ready)
        warp = get(x, s.WARPS) + chosen * s.W_FIELDS * 8
        block = get(x, s.BLOCKS) + get(warp, s.W_BLOCK) * s.B_FIELDS * 8
        before = get(x, s.STEP)
        burst(x, warp, block, count)
        if get(x, s.TURNS_COUNT) < get(x, s.TURNS_CAP):
            note_turn(x, warp, block, get(x, s.STEP) - before)


@jit
def delay(x, warp):
    """Delay a warp for a while, at random, because it signals by a strong write. Returns whether it does.

    So others get ahead of it, as on hardware. Then errors show such as a flag that counts twice.
    """
    r = draw(x)
    if get(x, s.BLOCK_SLOTS) < 2 or r & 3 == 0:
        return False
    put(x, s.SLOW, get(warp, s.W_SLOT))
    put(x, s.SLOW_UNTIL, get(x, s.STEP) + (32 << (r >> 8 & 3)))
    return True


@jit
def ahead(x, at, ready):
    """The warp at a place of the list of warps that can run, or the one after it if the first is delayed."""
    chosen = get(get(x, s.READY), at)
    return get(get(x, s.READY), (at + 1) % ready) if chosen == get(x, s.SLOW) else chosen


@jit
def planned(x, ready):
    """The warp that the plan of a run names next, and for how many instructions it runs.

    After the plan the warps that can run take long turns, one after the other.
    """
    at = get(x, s.PLAN_AT)
    put(x, s.PLAN_AT, at + 1)
    if at < get(x, s.PLAN_COUNT):
        turn = get(x, s.PLAN) + at * s.U_FIELDS * 8
        slot = get(turn, s.U_SLOT)
        if slot < get(x, s.WARP_SLOTS) and get(get(x, s.WARPS) + slot * s.W_FIELDS * 8, s.W_READY) >= 0:
            return slot, max(get(turn, s.U_COUNT), 1)
    return get(get(x, s.READY), at % ready), np.int64(LONG_TURN)


@jit
def note_turn(x, warp, block, count):
    """Record a turn, as one with the turn before if that was of the same warp."""
    number = get(x, s.TURNS_COUNT)
    turn = get(x, s.TURNS) + number * s.U_FIELDS * 8
    last = turn - s.U_FIELDS * 8
    same = number > 0 and get(last, s.U_SLOT) == get(warp, s.W_SLOT) and get(last, s.U_GID) == get(block, s.B_GID)
    if same:
        turn = last
        count += get(last, s.U_COUNT)
    else:
        put(x, s.TURNS_COUNT, number + 1)
    put(turn, s.U_SLOT, get(warp, s.W_SLOT))
    put(turn, s.U_COUNT, count)
    put(turn, s.U_GID, get(block, s.B_GID))
    put(turn, s.U_PC, get(warp, s.W_PC))


@jit
def burst(x, warp, block, count):
    """Run up to `count` instructions of one warp."""
    if get(warp, s.W_DIVERGED) and not select(x, warp):
        rest(x, warp)
        return
    for _ in range(count):
        if not step(x, warp, block):
            break
        if get(x, s.DEAD) or (get(x, s.CHECK) and clocks_full(x)):
            break
    if get(warp, s.W_LIVE) & ~get(warp, s.W_WAIT) == 0:
        rest(x, warp)


@jit
def calm(x):
    """Stop counting warps as spinning, because something has changed."""
    put(x, s.SUSPECT, 0)
    put(x, s.SPINNING, 0)
    for i in range(get(x, s.WARP_SLOTS)):
        warp = get(x, s.WARPS) + i * s.W_FIELDS * 8
        put(warp, s.W_SAME, 0)
        put(warp, s.W_HASH_AGE, 0)
