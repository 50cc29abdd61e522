"""What is missing between two accesses that race: hints for reports, never a reason to report.

A thread has a vector clock by the rules of PTX, and three more vector clocks by weaker rules. LOOSE takes every strong
read as an acquire operation. WIDE also takes every scope as one that includes all threads. SEEN also takes every strong
write as a release operation that covers the writing thread. The first of the three clocks that covers the earlier
access says what is missing. At a barrier of a block or warp, threads share all four clocks.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import state as s
from .bits import get, put
from .clocks import AGENTS, BLOCK_KEY, HOST, SUB_BITS, cluster_of, device_of, in_clock, join, launch_of, lookup, single
from .units import unit

# what two accesses lack
(UNKNOWN, SCOPE_OF_ACCESS, SIZES, WARP_BARRIER, BARRIER, ACQUIRE, SCOPE, RELEASE, BARRIER_BEFORE, LAUNCHES, BLOCKS,
 DEVICES, HOST_ORDER, FENCE_AFTER, CLUSTERS) = range(15)  # fmt: skip
SAME_VALUE = 16  # flag: the store writes the value that is there
HINTS = (s.T_LOOSE, s.T_WIDE, s.T_SEEN)


@unit
def see(x, thread, writer, clock):
    """Note that a strong read of `thread` has returned what `writer` wrote at the writer's moment `clock`."""
    if writer >> 10 == get(thread, s.T_GID) >> 10:
        return 0
    key = (writer >> 10) << SUB_BITS | (writer & 1023)
    if lookup(x, get(thread, s.T_SEEN), key) < clock:
        put(thread, s.T_SEEN, join(x, get(thread, s.T_SEEN), single(x, key, clock)))
        put(x, s.HINTED, 1)
    return 0


@unit
def see_map(x, thread, found):
    """Note all clocks of the write that a strong read has returned. found: the write's map, readers -> clock."""
    if found == get(thread, s.T_WIDE_OF):
        return 0
    put(thread, s.T_WIDE_OF, found)
    pool = get(x, s.CLOCKS)
    for i in range(get(pool, 2 * found)):
        put(thread, s.T_WIDE, join(x, get(thread, s.T_WIDE), get(pool, 2 * (found + 1 + i) + 1)))
    put(x, s.HINTED, 1)
    return 0


@jit
def hints_of(x, slot, lanes, loose, wide, seen):
    """Join the hints of some lanes of a warp into three vector clocks."""
    for lane in range(32):
        if (lanes >> lane) & 1:
            thread = get(x, s.THREADS) + (slot * 32 + lane) * s.T_FIELDS * 8
            loose = join(x, loose, get(thread, s.T_LOOSE))
            wide = join(x, wide, get(thread, s.T_WIDE))
            seen = join(x, seen, get(thread, s.T_SEEN))
    return loose, wide, seen


@jit
def give_hints(x, slot, lanes, loose, wide, seen):
    """Set the hints of some lanes of a warp."""
    for lane in range(32):
        if (lanes >> lane) & 1:
            thread = get(x, s.THREADS) + (slot * 32 + lane) * s.T_FIELDS * 8
            put(thread, s.T_LOOSE, loose)
            put(thread, s.T_WIDE, wide)
            put(thread, s.T_SEEN, seen)


@unit
def share_hints(x, block, slot, lanes):
    """Let threads that meet at a barrier share their hints: `lanes` of the warp in `slot`, or a block if slot is -1."""
    if not get(x, s.HINTED):
        return 0
    loose, wide, seen = np.int64(0), np.int64(0), np.int64(0)
    if slot >= 0:
        loose, wide, seen = hints_of(x, slot, lanes, loose, wide, seen)
        if loose | wide | seen:
            give_hints(x, slot, lanes, loose, wide, seen)
        return 0
    first = get(block, s.B_FIRST_WARP)
    for k in range(get(block, s.B_WARPS)):
        live = get(get(x, s.WARPS) + (first + k) * s.W_FIELDS * 8, s.W_LIVE)
        loose, wide, seen = hints_of(x, first + k, live, loose, wide, seen)
    if loose | wide | seen:
        for k in range(get(block, s.B_WARPS)):
            live = get(get(x, s.WARPS) + (first + k) * s.W_FIELDS * 8, s.W_LIVE)
            give_hints(x, first + k, live, loose, wide, seen)
    return 0


@unit
def lacking(x, thread, block, gid, clock, strong, sizes):
    """What is missing between an earlier access and the present access of `thread`.

    gid, clock: the thread and the moment of the earlier access.
    strong, sizes: whether both accesses are strong, and whether they are of equal sizes.
    """
    mine = get(thread, s.T_GID)
    if strong:
        return np.int64(SCOPE_OF_ACCESS if sizes else SIZES)
    if gid >> 10 & (AGENTS >> 10):
        return np.int64(UNKNOWN)
    if gid >> 10 == mine >> 10:
        return np.int64(WARP_BARRIER if gid >> 5 == mine >> 5 else BARRIER)
    if in_clock(x, get(thread, s.T_LOOSE), gid, clock):
        return np.int64(ACQUIRE)
    if in_clock(x, get(thread, s.T_WIDE), gid, clock):
        return np.int64(SCOPE)
    if in_clock(x, get(thread, s.T_SEEN), gid, clock):
        return np.int64(RELEASE)
    seen = seen_of_block(x, get(thread, s.T_SEEN), gid)
    # `seen` is later than `clock` if this thread has read what the block wrote after a barrier that followed the access
    if seen > clock and fenced_before(x, mine, gid, clock, seen):
        return np.int64(FENCE_AFTER)
    if seen_of_block(x, get(thread, s.T_VC), gid) >= clock or seen == clock:
        return np.int64(BARRIER_BEFORE)
    if seen > clock:
        return np.int64(RELEASE)
    if block == 0 or gid >> 10 & HOST:
        return np.int64(HOST_ORDER)
    here, there = launch_of(x, mine), launch_of(x, gid)
    if here == there:
        return np.int64(CLUSTERS if cluster_of(x, mine) == cluster_of(x, gid) else BLOCKS)
    of_here = get(get(x, s.LAUNCHES) + here * s.L_FIELDS * 8, s.L_DEVICE)
    of_there = get(get(x, s.LAUNCHES) + there * s.L_FIELDS * 8, s.L_DEVICE)
    return np.int64(LAUNCHES if of_here == of_there else DEVICES)


@jit
def seen_of_block(x, vc, gid):
    """The latest moment that a vector clock covers for any thread in the block of thread `gid`, or -1."""
    latest = np.int64(-1)
    pool = get(x, s.CLOCKS)
    for i in range(get(pool, 2 * vc) if vc else 0):
        key = get(pool, 2 * (vc + 1 + i))
        if key >> SUB_BITS == gid >> 10 and key & BLOCK_KEY != BLOCK_KEY:
            latest = max(latest, get(pool, 2 * (vc + 1 + i) + 1))
    return latest


@jit
def fenced_before(x, mine, gid, clock, seen):
    """Whether the last fence of thread `gid` came after its moment `clock` and before the moment `seen`.

    Only a fence whose scope includes thread `mine` counts. After the fence the block has met at a barrier, and at
    `seen` another thread of the block has set a flag.
    """
    field = s.T_RELEASE0 + (1 if device_of(x, mine) == device_of(x, gid) else 2)
    key = (gid >> 10) << SUB_BITS | (gid & 1023)
    for i in range(get(x, s.WARP_SLOTS) * 32):
        thread = get(x, s.THREADS) + i * s.T_FIELDS * 8
        if get(thread, s.T_GID) == gid:
            return clock <= lookup(x, get(thread, field), key) < seen
    return False
