"""The barrier of a cluster: barrier.cluster.arrive and barrier.cluster.wait.

A phase ends when every thread of the cluster that has not ended has arrived. An arrival releases the work before it to
the threads that wait, unless it is relaxed. Source: the PTX ISA, "barrier.cluster".
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import thread_of, warp_slot
from .agents import of_warp
from .barrier import wake
from .bits import get, put
from .clocks import advance, join, publish
from .cluster import ARRIVES_AGAIN, NEVER_ARRIVED
from .units import unit
from .watch import report


@unit
def arrive_cluster(x, warp, block, line, pc, mask):
    """Run barrier.cluster.arrive for the lanes of mask."""
    misused(x, warp, mask & (get(warp, s.W_ARRIVED) | get(warp, s.W_PASSED)), pc, ARRIVES_AGAIN)
    cluster = get(block, s.B_CLUSTER)
    if get(x, s.CHECK):
        vc = get(cluster, s.K_VC)
        if get(line, isa.FLAGS) & 15 == isa.RELAXED:
            for lane in range(32):
                if (mask >> lane) & 1:
                    vc = join(x, vc, get(thread_of(x, warp, lane), s.T_RELEASE0))
        else:
            vc = join(x, vc, released_by(x, warp, block, mask))
        put(cluster, s.K_VC, vc)
    put(warp, s.W_ARRIVED, get(warp, s.W_ARRIVED) | mask)
    put(warp, s.W_PASSED, get(warp, s.W_PASSED) & ~mask)
    put(cluster, s.K_OPEN, 1)
    put(x, s.PROGRESS, get(x, s.STEP))
    return settle_cluster(x, cluster)


@jit
def released_by(x, warp, block, mask):
    """A vector clock of all that happened before now for the lanes of mask. One entry stands for a whole warp."""
    vc, old = np.int64(0), np.int64(-1)
    whole = mask == get(warp, s.W_LIVE)
    latest = np.int64(0)
    for lane in range(32):
        if (mask >> lane) & 1:
            latest = max(latest, get(thread_of(x, warp, lane), s.T_CLOCK))
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        if not whole:
            vc = join(x, vc, publish(x, thread, block, warp_slot(x, warp)))
            continue
        put(thread, s.T_CLOCK, latest)
        advance(thread, block)
        if get(thread, s.T_VC) != old:
            old = get(thread, s.T_VC)
            vc = join(x, vc, old)
    return join(x, vc, of_warp(x, warp, block, latest)) if whole else vc


@jit
def misused(x, warp, lanes, pc, what):
    """Report lanes that use the barrier against its rules."""
    if lanes and get(x, s.CHECK):
        first = np.int64(0)
        while not (lanes >> first) & 1:
            first += 1
        report(x, s.MISUSE, pc, get(thread_of(x, warp, first), s.T_GID), 0, isa.SHARED, 0, 0, 0, what, 0)


@unit
def await_cluster(x, warp, block, pc, mask):
    """Run barrier.cluster.wait for the lanes of mask. Lanes whose phase has ended go on."""
    misused(x, warp, mask & ~(get(warp, s.W_ARRIVED) | get(warp, s.W_PASSED)), pc, NEVER_ARRIVED)
    waits = mask & get(warp, s.W_ARRIVED)
    old, new = np.int64(-1), np.int64(0)
    for lane in range(32):
        thread = thread_of(x, warp, lane)
        if (waits >> lane) & 1:
            put(thread, s.T_WAIT, s.AT_CLUSTER)
            put(thread, s.T_RESULT, pc)
        elif (mask & get(warp, s.W_PASSED)) >> lane & 1:
            old, new = learn_phase(x, thread, get(block, s.B_CLUSTER), old, new)
    put(warp, s.W_PASSED, get(warp, s.W_PASSED) & ~mask)
    if waits:
        put(warp, s.W_WAIT, get(warp, s.W_WAIT) | waits)
        put(warp, s.W_DIVERGED, 1)
    return 0


@jit
def learn_phase(x, thread, cluster, old, new):
    """Join the clock of a cluster's last phase into a thread's. Returns this thread's clock before and after.

    old, new: what the call for the previous thread returned. Most often both threads have equal clocks.
    """
    known = get(thread, s.T_VC)
    if not get(x, s.CHECK):
        return old, new
    if known != old:
        old = known
        new = join(x, known, get(cluster, s.K_DONE))
    put(thread, s.T_VC, new)
    return old, new


@unit
def settle_cluster(x, cluster):
    """End the phase if every thread of the cluster that has not ended has arrived, and release those that wait."""
    if not get(cluster, s.K_OPEN):
        return 0
    size = get(cluster, s.K_SIZE)
    for rank in range(size):
        block = get(cluster, s.K_BLOCKS + rank)
        for k in range(get(block, s.B_WARPS)):
            warp = get(x, s.WARPS) + (get(block, s.B_FIRST_WARP) + k) * s.W_FIELDS * 8
            if get(warp, s.W_LIVE) & ~get(warp, s.W_ARRIVED):
                return 0
    put(cluster, s.K_OPEN, 0)
    put(cluster, s.K_PHASE, get(cluster, s.K_PHASE) + 1)
    put(cluster, s.K_DONE, get(cluster, s.K_VC))
    put(cluster, s.K_VC, 0)
    old, new = np.int64(-1), np.int64(0)
    for rank in range(size):
        block = get(cluster, s.K_BLOCKS + rank)
        for k in range(get(block, s.B_WARPS)):
            warp = get(x, s.WARPS) + (get(block, s.B_FIRST_WARP) + k) * s.W_FIELDS * 8
            passed = get(warp, s.W_ARRIVED) & get(warp, s.W_LIVE)
            for lane in range(32):
                thread = thread_of(x, warp, lane)
                if (passed & get(warp, s.W_WAIT)) >> lane & 1 and get(thread, s.T_WAIT) == s.AT_CLUSTER:
                    old, new = learn_phase(x, thread, cluster, old, new)
                    put(thread, s.T_WAIT, s.RUNS)
                    put(warp, s.W_WAIT, get(warp, s.W_WAIT) & ~(1 << lane))
                    put(warp, s.W_DIVERGED, 1)
                    passed &= ~(1 << lane)
            put(warp, s.W_ARRIVED, 0)
            put(warp, s.W_PASSED, passed)
            wake(x, warp)
    put(x, s.PROGRESS, get(x, s.STEP))
    return 0
