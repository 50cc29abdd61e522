"""Which moments a write publishes, and which readers may take them.

A write publishes the moments of the release patterns that it ends. A release pattern and an acquire pattern synchronise
under two conditions (the PTX ISA, 8.8 to 8.9.4). First, the read observes the write, directly or through a chain of
atomic operations, each of which reads the previous one. Each pair in the chain must be morally strong, so the chain
breaks if a scope excludes the other thread. Second, the scopes of the first operation of the release pattern and of the
last one of the acquire pattern include each other's threads, no matter which threads wrote in between.

Therefore an atomic operation may publish releases of several threads, and some readers may take only some of them. So a
write has a map from groups of readers to vector clocks. The clock for a block has every release of the block's threads.
The clock for a device has the device's releases of at least gpu scope, and the clock for the system the releases of
system scope. All blocks of a cluster are one group. A map lies in the pool of vector clocks and never changes; 0 is the
empty map.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .bits import get, put
from .clocks import closed, cluster_of, device_of, forward, includes, join, publish, reach_of
from .missing import see_map
from .units import unit

DEVICE, SYSTEM = 1 << 40, 1 << 41  # bits of a device's and the system's group; a cluster's group is its first block


@jit
def device_group(x, gid):
    """The group of the threads of a thread's device, or of the host's threads."""
    return DEVICE | (device_of(x, gid) + 1)


@jit
def clock_for(x, published, group):
    """The clock that a map has for a group of readers, or 0 if there is none."""
    if published == 0:
        return np.int64(0)
    pool = get(x, s.CLOCKS)
    for i in range(get(pool, 2 * published)):
        if get(pool, 2 * (published + 1 + i)) == group:
            return get(pool, 2 * (published + 1 + i) + 1)
    return np.int64(0)


@jit
def linked(x, writer, scope, reader, my_scope):
    """Whether a strong read and a strong write are morally strong: their scopes include each other's threads."""
    return includes(x, scope, writer, reader) and includes(x, my_scope, reader, writer)


@jit
def released(x, thread, block, warp, location, order, scope):
    """What a thread's strong write releases: (clock for its block, for its device, for the system).

    A release operation releases the present moment. Another strong write releases the moments of the thread's fences,
    and that of its last release operation if this operation was on the same location.
    """
    r0, r1, r2 = get(thread, s.T_RELEASE0), get(thread, s.T_RELEASE1), get(thread, s.T_RELEASE2)
    if order >= isa.RELEASE:
        now = publish(x, thread, block, warp)
        put(thread, s.T_OWN_AT, location + 1)
        put(thread, s.T_OWN_VC, now)
        put(thread, s.T_OWN_SCOPE, scope)
        reach = reach_of(scope)
        return now, now if reach >= 1 else r1, now if reach >= 2 else r2
    if get(thread, s.T_OWN_AT) == location + 1:
        own, reach = get(thread, s.T_OWN_VC), reach_of(get(thread, s.T_OWN_SCOPE))
        r0 = join(x, r0, own)
        r1 = join(x, r1, own) if reach >= 1 else r1
        r2 = join(x, r2, own) if reach >= 2 else r2
    return r0, r1, r2


@jit
def published(x, gid, r0, r1, r2, observed):
    """The map of a write: the clocks that its thread releases, joined with the map of the observed write.

    r0, r1, r2: the results of `released`. observed: the map of the write that an atomic operation read, or 0.
    """
    if r0 == 0:  # in this case r1 and r2 are 0 too
        return observed
    own, device = cluster_of(x, gid), device_group(x, gid)
    r0 = join(x, clock_for(x, observed, own), r0)
    r1 = join(x, clock_for(x, observed, device), r1)
    r2 = join(x, clock_for(x, observed, SYSTEM), r2)
    pool, top = get(x, s.CLOCKS), get(x, s.CLOCKS_TOP)
    n = append(pool, top, np.int64(0), own, r0)
    n = append(pool, top, n, device, r1)
    n = append(pool, top, n, SYSTEM, r2)
    for i in range(get(pool, 2 * observed) if observed else 0):
        group = get(pool, 2 * (observed + 1 + i))
        if group != own and group != device and group != SYSTEM:
            n = append(pool, top, n, group, get(pool, 2 * (observed + 1 + i) + 1))
    return closed(x, top, n)


@jit
def append(pool, top, n, group, vc):
    """Add an entry to the map that is being made at `top`, unless the clock is empty. Returns the number of entries."""
    if vc == 0:
        return n
    put(pool, 2 * (top + 1 + n), group)
    put(pool, 2 * (top + 1 + n) + 1, vc)
    return n + 1


@jit
def take(x, thread, found, field, reach):
    """Join a map's clock for a group of readers into one of the thread's clocks.

    found: the map. field: the thread's clock. reach: 0 for the group of the thread's block, 1 for that of its device, 2
    for the system.
    """
    if reach == 0:
        group = cluster_of(x, get(thread, s.T_GID))
    elif reach == 1:
        group = device_group(x, get(thread, s.T_GID))
    else:
        group = np.int64(SYSTEM)
    put(thread, field, join(x, get(thread, field), clock_for(x, found, group)))


@jit
def acquire(x, thread, location, found, scope, writer, order, my_scope):
    """Take the clocks that a strong read acquires: now for an acquire operation, at the next fence for a relaxed read.

    found, scope, writer: the map, the scope and the thread of the write that was read. An acquire operation also takes
    the clocks of the thread's last relaxed read if this read the same location.
    """
    now = order >= isa.ACQUIRE and order != isa.RELEASE
    most = reach_of(my_scope) + 1
    if now and get(thread, s.T_READ_AT) == location + 1:
        for reach in range(most):
            take(x, thread, get(thread, s.T_READ_MAP), s.T_VC, reach)
    if found == 0:
        return
    see_map(x, thread, found)
    if not linked(x, writer, scope, get(thread, s.T_GID), my_scope):
        return
    for reach in range(most if now else 3):
        take(x, thread, found, s.T_VC if now else s.T_PENDING0 + reach, reach)
    if now:
        return
    for reach in range(most):
        take(x, thread, found, s.T_LOOSE, reach)
    put(thread, s.T_READ_AT, location + 1)
    put(thread, s.T_READ_MAP, found)


@jit
def forward_map(x, old, found, new_top):
    """Move a map and its clocks to the new pool. The old place then holds the new one. Returns (new place, new top)."""
    if found == 0:
        return np.int64(0), new_top
    if get(old, 2 * found + 1) < 0:
        return -get(old, 2 * found + 1), new_top
    pool = get(x, s.CLOCKS)
    n = get(old, 2 * found)
    for i in range(n):
        moved, new_top = forward(x, old, get(old, 2 * (found + 1 + i) + 1), new_top)
        put(old, 2 * (found + 1 + i) + 1, moved)
    for i in range(n):
        put(pool, 2 * (new_top + 1 + i), get(old, 2 * (found + 1 + i)))
        put(pool, 2 * (new_top + 1 + i) + 1, get(old, 2 * (found + 1 + i) + 1))
    put(pool, 2 * new_top, n)
    put(pool, 2 * new_top + 1, 0)
    put(old, 2 * found + 1, -new_top)
    return new_top, new_top + 1 + n


@unit
def compact(x, old):
    """Copy every vector clock in use from the pool at `old` to the pool of x."""
    top = np.int64(1)
    for i in range(get(x, s.WARP_SLOTS) * 32):
        thread = get(x, s.THREADS) + i * s.T_FIELDS * 8
        for field in range(s.T_VC, s.T_PENDING2 + 1):
            moved, top = forward(x, old, get(thread, field), top)
            put(thread, field, moved)
        moved, top = forward(x, old, get(thread, s.T_OWN_VC), top)
        put(thread, s.T_OWN_VC, moved)
        for field in range(s.T_LOOSE, s.T_SEEN + 1):
            moved, top = forward(x, old, get(thread, field), top)
            put(thread, field, moved)
        put(thread, s.T_WIDE_OF, 0)
        moved, top = forward_map(x, old, get(thread, s.T_READ_MAP), top)
        put(thread, s.T_READ_MAP, moved)
    for i in range(get(x, s.BLOCK_SLOTS)):
        moved, top = forward(x, old, get(get(x, s.BLOCKS) + i * s.B_FIELDS * 8, s.B_SC), top)
        put(get(x, s.BLOCKS) + i * s.B_FIELDS * 8, s.B_SC, moved)
        moved, top = forward(x, old, get(get(x, s.BLOCKS) + i * s.B_FIELDS * 8, s.B_VC_OUT), top)
        put(get(x, s.BLOCKS) + i * s.B_FIELDS * 8, s.B_VC_OUT, moved)
        for field in (s.K_VC, s.K_DONE):
            cluster = get(x, s.CLUSTERS) + i * s.K_FIELDS * 8
            moved, top = forward(x, old, get(cluster, field), top)
            put(cluster, field, moved)
        for q in range(s.BARRIERS_PER_BLOCK):
            barrier = get(x, s.BARRIERS) + (i * s.BARRIERS_PER_BLOCK + q) * s.Q_FIELDS * 8
            moved, top = forward(x, old, get(barrier, s.Q_VC), top)
            put(barrier, s.Q_VC, moved)
        for q in range(get(get(x, s.BLOCKS) + i * s.B_FIELDS * 8, s.B_MBARRIERS)):
            barrier = get(x, s.MBARRIERS) + (i * s.MB_MOST + q) * s.MB_FIELDS * 8
            for field in (s.MB_VC, s.MB_DONE):
                moved, top = forward(x, old, get(barrier, field), top)
                put(barrier, field, moved)
            put(barrier, s.MB_OLD, -1)
    for i in range(get(x, s.LAUNCH_COUNT)):
        launch = get(x, s.LAUNCHES) + i * s.L_FIELDS * 8
        moved, top = forward(x, old, get(launch, s.L_VC), top)
        put(launch, s.L_VC, moved)
        moved, top = forward(x, old, get(launch, s.L_VC_OUT), top)
        put(launch, s.L_VC_OUT, moved)
    for i in range(get(x, s.DEVICE_COUNT)):
        device = get(x, s.DEVICES) + i * (s.D_FIELDS + s.MAX_SMS) * 8
        moved, top = forward(x, old, get(device, s.D_SC), top)
        put(device, s.D_SC, moved)
    moved, top = forward(x, old, get(x, s.SC_SYSTEM), top)
    put(x, s.SC_SYSTEM, moved)
    for i in range(get(x, s.SYNC_CAP)):
        entry = get(x, s.SYNC) + i * s.S_FIELDS * 8
        if get(entry, s.S_KEY) != 0:
            moved, top = forward_map(x, old, get(entry, s.S_MAP), top)
            put(entry, s.S_MAP, moved)
    for i in range(s.HISTORY_SLOTS):
        slot = get(x, s.HISTORY) + i * s.H_FIELDS * 8
        if get(slot, s.H_COUNT) > 0:
            moved, top = forward_map(x, old, get(slot, s.H_BASE_MAP), top)
            put(slot, s.H_BASE_MAP, moved)
            for k in range(get(slot, s.H_COUNT)):
                message = slot + (s.H_MESSAGES + k * s.M_FIELDS) * 8
                moved, top = forward_map(x, old, get(message, s.M_MAP), top)
                put(message, s.M_MAP, moved)
    put(x, s.CLOCKS_TOP, top)
    put(x, s.ASKED_BLOCK, -1)
    return 0
