"""Vector clocks, which say which moments of other threads happened before a thread's present moment.

A vector clock is a sorted list of pairs (key, clock) in one pool of lists; 0 is the empty list. A list never changes
once it is made. A key names a thread, a warp or a block; the entry of a warp or a block covers all its threads up to
that clock. A key may name a launch: its entry covers all work of the launch. A key may name a stream: its clock is then
a place in the stream, and the entry covers all launches up to this place. A key may also name a memory location. Its
clock is then the number of a write, and the thread that holds the list may read no older write.

Two orders are kept elsewhere. Threads of one block are ordered by the block's floor, which each barrier of the whole
block raises. Lanes of one warp are ordered by the table KNOWN.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .bits import get, put
from .units import unit

LOCATION = 1 << 62
LAUNCH, STREAM = 1 << 61 | 1 << 56, 1 << 61 | 1 << 57
SUB_BITS = 12
WARP_KEY, BLOCK_KEY = 0x800, 0xFFF
NONE, SOME, ALL = range(3)  # how much of a block's work a vector clock covers
AGENT_SHIFT = 38  # the bits of a number from here on are the kind of agent (agents.py), 0 for a thread
AGENTS = 7 << AGENT_SHIFT
HOST = 1 << 31  # this bit of a block number marks Python actors; the other bits are the first number of the run


@jit
def lookup(x, vc, key):
    """The clock of a key, or -1 if there is none."""
    if vc == 0:
        return np.int64(-1)
    pool = get(x, s.CLOCKS)
    low, high = np.int64(0), get(pool, 2 * vc) - 1
    while low <= high:
        mid = (low + high) >> 1
        found = get(pool, 2 * (vc + 1 + mid))
        if found == key:
            return get(pool, 2 * (vc + 1 + mid) + 1)
        if found < key:
            low = mid + 1
        else:
            high = mid - 1
    return np.int64(-1)


@jit
def single(x, key, clock):
    """A vector clock of one entry."""
    pool, vc = get(x, s.CLOCKS), get(x, s.CLOCKS_TOP)
    put(pool, 2 * vc, 1)
    put(pool, 2 * vc + 1, 0)
    put(pool, 2 * (vc + 1), key)
    put(pool, 2 * (vc + 1) + 1, clock)
    put(x, s.CLOCKS_TOP, vc + 2)
    return vc


@jit
def closed(x, vc, count):
    """Finish a vector clock or a map whose entries are written at the top of the pool.

    Returns 0 if it has no entries.
    """
    if count == 0:
        return np.int64(0)
    pool = get(x, s.CLOCKS)
    put(pool, 2 * vc, count)
    put(pool, 2 * vc + 1, 0)
    put(x, s.CLOCKS_TOP, vc + 1 + count)
    put(x, s.MAX_CLOCKS, max(get(x, s.MAX_CLOCKS), count))
    return vc


@jit
def join(x, a, b):
    """The entry-wise maximum of two vector clocks. If it equals one of the two, that one is returned."""
    if b == 0 or a == b:
        return a
    if a == 0:
        return b
    pool, top = get(x, s.CLOCKS), get(x, s.CLOCKS_TOP)
    na, nb = get(pool, 2 * a), get(pool, 2 * b)
    i, j, n = np.int64(0), np.int64(0), np.int64(0)
    same_a, same_b = True, True
    while i < na or j < nb:
        ka = get(pool, 2 * (a + 1 + i)) if i < na else np.int64(0x7FFFFFFFFFFFFFFF)
        kb = get(pool, 2 * (b + 1 + j)) if j < nb else np.int64(0x7FFFFFFFFFFFFFFF)
        va = get(pool, 2 * (a + 1 + i) + 1) if ka <= kb else np.int64(-1)
        vb = get(pool, 2 * (b + 1 + j) + 1) if kb <= ka else np.int64(-1)
        if vb > va:
            same_a = False
        if va > vb:
            same_b = False
        put(pool, 2 * (top + 1 + n), min(ka, kb))
        put(pool, 2 * (top + 1 + n) + 1, max(va, vb))
        n += 1
        if ka <= kb:
            i += 1
        if kb <= ka:
            j += 1
    if same_a:
        return a
    if same_b:
        return b
    return closed(x, top, n)


@jit
def in_clock(x, vc, gid, clock):
    """Whether a vector clock covers a thread's moment, by an entry of the thread, its warp or its block."""
    if vc == 0:
        return False
    block = (gid >> 10) << SUB_BITS
    if lookup(x, vc, block | (gid & 1023)) >= clock:
        return True
    if lookup(x, vc, block | WARP_KEY | ((gid & 1023) >> 5)) >= clock:
        return True
    if lookup(x, vc, block | BLOCK_KEY) >= clock:
        return True
    return whole_launch(x, vc, gid)


@jit
def whole_launch(x, vc, gid):
    """Whether a vector clock covers all work of a thread's launch."""
    pool = get(x, s.CLOCKS)
    if vc == 0 or get(pool, 2 * (vc + get(pool, 2 * vc))) < LAUNCH:  # keys are sorted, so none names a launch or stream
        return False
    number = launch_of(x, gid)
    if number < 0:
        return False
    launch = get(x, s.LAUNCHES) + number * s.L_FIELDS * 8
    if lookup(x, vc, STREAM | get(launch, s.L_STREAM)) >= get(launch, s.L_ORDER):
        return True
    return lookup(x, vc, LAUNCH | number) >= 0


@jit
def earlier_run(x, gid):
    """Whether a thread, agent or actor took part in an earlier run."""
    return ((gid & ~AGENTS) >> 10) & ~HOST < get(x, s.RUN_FLOOR)


@jit
def launch_of(x, gid):
    """The number of a thread's launch; -1 for the host. Later launches have later blocks."""
    block = (gid & ~AGENTS) >> 10
    low, high = np.int64(0), get(x, s.LAUNCH_COUNT) - 1
    while low <= high:
        number = (low + high) >> 1
        launch = get(x, s.LAUNCHES) + number * s.L_FIELDS * 8
        first = get(launch, s.L_FIRST_GID)
        if first <= block < first + get(launch, s.L_BLOCKS):
            return number
        if block < first:
            high = number - 1
        else:
            low = number + 1
    return np.int64(-1)


@jit
def device_of(x, gid):
    """The device that a thread runs on; -1 for the host."""
    number = launch_of(x, gid)
    if number < 0:
        return np.int64(-1)
    return get(get(x, s.LAUNCHES) + number * s.L_FIELDS * 8, s.L_DEVICE)


@jit
def same_launch(x, a, b):
    """Whether two threads, or the work that they started, belong to one launch."""
    number = launch_of(x, a)
    return number >= 0 and number == launch_of(x, b)


@jit
def before_launch(x, mine, gid, clock):
    """Whether a moment (gid, clock) happened before the launch of thread `mine` began.

    A PROGRAMMATIC launch may begin before earlier launches end, and waits for them by griddepcontrol.wait. So for its
    threads each moment of another launch that has ended counts as earlier too.
    """
    if earlier_run(x, gid):
        return True
    launch = get(x, s.LAUNCHES) + launch_of(x, mine) * s.L_FIELDS * 8
    if in_clock(x, get(launch, s.L_VC), gid, clock):
        return True
    return get(launch, s.L_PROGRAMMATIC) != 0 and not same_launch(x, mine, gid) and launch_over(x, gid)


@jit
def launch_over(x, gid):
    """Whether the launch of a thread is over."""
    if earlier_run(x, gid):
        return True
    return get(get(x, s.LAUNCHES) + launch_of(x, gid) * s.L_FIELDS * 8, s.L_STATE) == s.FINISHED


@jit
def next_key(x, vc, first):
    """The least key of a vector clock that is at least `first`; -1 if there is none."""
    pool = get(x, s.CLOCKS)
    low, high = np.int64(0), get(pool, 2 * vc)
    while low < high:
        mid = (low + high) >> 1
        if get(pool, 2 * (vc + 1 + mid)) < first:
            low = mid + 1
        else:
            high = mid
    return get(pool, 2 * (vc + 1 + low)) if low < get(pool, 2 * vc) else np.int64(-1)


@unit
def ask(x, vc, gid):
    """How much of the work of a thread's block a vector clock covers: ALL, SOME or NONE. Earlier runs count as covered.

    The answer is kept in x: the lanes of a warp mostly ask the same. It is forgotten when vector clocks move.
    """
    answer = np.int64(NONE)
    if earlier_run(x, gid):
        answer = np.int64(ALL)
    elif vc != 0:
        first = (gid >> 10) << SUB_BITS
        key = next_key(x, vc, first)
        if first <= key <= first | BLOCK_KEY:
            answer = np.int64(SOME)
        elif whole_launch(x, vc, gid):
            answer = np.int64(ALL)
    put(x, s.ASKED_VC, vc)
    put(x, s.ASKED_BLOCK, gid >> 10)
    put(x, s.ANSWER, answer)
    return answer


@jit
def happened(x, thread, block, warp, gid, clock):
    """Whether a thread's moment (gid, clock) happened before the present moment of `thread`.

    thread, block: addresses of the tables (block 0: the host). warp: the number of the warp's slot.
    """
    mine, vc = get(thread, s.T_GID), get(thread, s.T_VC)
    if gid == mine:
        return True
    if get(x, s.ASKED_BLOCK) == gid >> 10 and get(x, s.ASKED_VC) == vc:
        answer = get(x, s.ANSWER)
    else:
        answer = ask(x, vc, gid)
    if answer == ALL:
        return True
    if block != 0 and gid >> 10 == mine >> 10:
        if clock < get(block, s.B_FLOOR):
            return True
        if (gid & 1023) >> 5 == (mine & 1023) >> 5:
            table = get(x, s.KNOWN) + (warp * 1024 + (mine & 31) * 32) * 8
            if get(table, gid & 31) >= clock:
                return True
    return answer == SOME and in_clock(x, vc, gid, clock)


@jit
def publish(x, thread, block, warp):
    """A vector clock of everything that happened before now, including the thread's present moment.

    The thread's clock then advances.
    """
    mine = get(thread, s.T_GID)
    key = (mine >> 10) << SUB_BITS
    clock = get(thread, s.T_CLOCK)
    pool, vc = get(x, s.CLOCKS), get(x, s.CLOCKS_TOP)
    n = np.int64(0)
    floor = np.int64(0)
    if block != 0:
        floor = get(block, s.B_FLOOR)
        table = get(x, s.KNOWN) + (warp * 1024 + (mine & 31) * 32) * 8
        for lane in range(32):
            known = clock if lane == mine & 31 else get(table, lane)
            if known >= floor and known >= 0:
                put(pool, 2 * (vc + 1 + n), key | ((mine & 992) + lane))
                put(pool, 2 * (vc + 1 + n) + 1, known)
                n += 1
        if floor > 0:
            put(pool, 2 * (vc + 1 + n), key | BLOCK_KEY)
            put(pool, 2 * (vc + 1 + n) + 1, floor - 1)
            n += 1
    else:
        put(pool, 2 * (vc + 1), key | (mine & 1023))
        put(pool, 2 * (vc + 1) + 1, clock)
        n = np.int64(1)
    put(pool, 2 * vc, n)
    put(pool, 2 * vc + 1, 0)
    put(x, s.CLOCKS_TOP, vc + 1 + n)
    advance(thread, block)
    return join(x, get(thread, s.T_VC), vc)


@jit
def advance(thread, block):
    """Advance a thread's clock."""
    clock = get(thread, s.T_CLOCK) + 1
    put(thread, s.T_CLOCK, clock)
    if block != 0 and clock > get(block, s.B_MAX_CLOCK):
        put(block, s.B_MAX_CLOCK, clock)


@unit
def first_of_cluster(x, gid):
    """The number of the first block of a thread's cluster, in a run that has launches with clusters."""
    block, number = gid >> 10, launch_of(x, gid)
    if number < 0:
        return block
    launch = get(x, s.LAUNCHES) + number * s.L_FIELDS * 8
    if get(launch, s.L_CLUSTER) == 1:
        return block
    gx, gy, at = get(launch, s.L_GX), get(launch, s.L_GY), block - get(launch, s.L_FIRST_GID)
    column, row, layer = at % gx, at // gx % gy, at // (gx * gy)
    column -= column % get(launch, s.L_CX)
    row -= row % get(launch, s.L_CY)
    layer -= layer % get(launch, s.L_CZ)
    return get(launch, s.L_FIRST_GID) + column + gx * (row + gy * layer)


@jit
def cluster_of(x, gid):
    """A number for a thread's cluster: that of its first block."""
    return first_of_cluster(x, gid) if get(x, s.CLUSTERED) else gid >> 10


@jit
def reach_of(scope):
    """The widest group (published.py) that a scope reaches: 0 the cluster or block, 1 the device, 2 the system."""
    return np.int64(0) if scope == isa.CLUSTER else scope


@jit
def includes(x, scope, mine, other):
    """Whether a scope of thread `mine` includes thread `other`.

    Scope 0 (cta) includes the threads of its block, 1 (gpu) those of its device, 2 (sys) all, 3 those of its cluster.
    """
    if scope == 2 or mine >> 10 == other >> 10:
        return True
    if scope == 0:
        return False
    if scope == isa.CLUSTER:
        return cluster_of(x, mine) == cluster_of(x, other)
    return device_of(x, mine) == device_of(x, other)


@jit
def forward(x, old, vc, new_top):
    """Move a vector clock to the new pool, and note the new place in the old one. Returns (new place, new top)."""
    if vc == 0:
        return np.int64(0), new_top
    if get(old, 2 * vc + 1) < 0:
        return -get(old, 2 * vc + 1), new_top
    pool = get(x, s.CLOCKS)
    n, kept = get(old, 2 * vc), np.int64(0)
    for i in range(n):
        key, clock = get(old, 2 * (vc + 1 + i)), get(old, 2 * (vc + 1 + i) + 1)
        if key & LOCATION and not remembered(x, key, clock):
            continue
        put(pool, 2 * (new_top + 1 + kept), key)
        put(pool, 2 * (new_top + 1 + kept) + 1, clock)
        kept += 1
    put(pool, 2 * new_top, kept)
    put(pool, 2 * new_top + 1, 0)
    put(old, 2 * vc + 1, -new_top)
    return new_top, new_top + 1 + kept


@jit
def history_slot(x, location):
    """The slot for the history of the 8 bytes that hold a location."""
    h = (np.uint64(location >> 3) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(52)
    return get(x, s.HISTORY) + (np.int64(h) & (s.HISTORY_SLOTS - 1)) * s.H_FIELDS * 8


@jit
def remembered(x, key, sequence):
    """Whether an entry for a location still matters.

    It matters while the history of the location may hold a write that the entry forbids to read.
    """
    slot = history_slot(x, key & ~LOCATION)
    count = get(slot, s.H_COUNT)
    if count == 0 or get(slot, s.H_ADDRESS) != key & ~LOCATION:
        return False
    return get(slot + (s.H_MESSAGES + (count - 1) * s.M_FIELDS) * 8, s.M_SEQUENCE) >= sequence
