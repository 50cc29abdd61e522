"""The mbarrier that counts asynchronous work, and the work's agent (agents.py)."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import FAULT, check, locate, warp_slot
from .agents import OF_BARRIER, OF_TENSOR, agent_number, as_agent, shown
from .bits import get, put
from .clocks import SUB_BITS, join, publish, single
from .cluster import LOW, OTHER_BLOCK, holder
from .mbarrier import OF_ALL, check_expects, expect, live, row_of, settle_phase
from .watch import report


@jit
def barrier_for(x, warp, thread, block, owner, lane, at, proxy, pc):
    """The index of the mbarrier at an address that will count a copy to a block `owner`, or -1 after a report.

    Sets the mbarrier's agent, which makes the copy. The agent's clock is the number of the phase after the present one.
    proxy: whether the copy signals the mbarrier in the asynchronous proxy.
    """
    host, place, _ = locate(x, warp, thread, block, lane, isa.SHARED, at, 8, False, pc)
    if host == FAULT:
        return np.int64(-1)
    if holder(x, block, place) != owner:
        report(x, s.MISUSE, pc, get(thread, s.T_GID), place, isa.SHARED, 8, 0, 0, OTHER_BLOCK, 0)
        return np.int64(-1)
    index = live(x, thread, owner, place & LOW, pc)
    if index < 0:
        return index
    barrier = row_of(x, owner, index)
    check_expects(x, thread, barrier, pc)
    clock, vc = get(barrier, s.MB_PHASE) + 1, np.int64(0)
    if get(x, s.CHECK):
        check(x, warp, thread, block, isa.SHARED, place, 8, OF_ALL, False, True, pc)
        vc = publish(x, thread, block, warp_slot(x, warp))
        maker = get(barrier, s.MB_GID)
        if proxy and not get(barrier, s.MB_FENCED) and not shown(x, vc, isa.SHARED, maker, get(barrier, s.MB_CLOCK)):
            report(x, s.MISSING_FENCE, pc, get(thread, s.T_GID), place, isa.SHARED, 8, 0, 0, 1, 0)
    as_agent(x, agent_of(owner, index), clock, vc)
    return index


@jit
def agent_of(block, index):
    """The agent of the copies that an mbarrier counts."""
    return agent_number(OF_BARRIER, get(block, s.B_GID) << 10 | index)


@jit
def count_copy(x, block, thread, row):
    """Count the bytes of a copy to shared memory on its mbarrier, or arrive there for a thread's tcgen05.commit.

    block: the mbarrier's block. For a box, the row's FROM names the mbarrier's block instead.
    """
    index = get(row, s.P_BARRIER)
    if get(row, s.P_KIND) == s.P_BOX_LOAD:
        block = get(row, s.P_FROM)
    barrier, commits = row_of(x, block, index), get(row, s.P_KIND) == s.P_COMMIT
    if get(x, s.CHECK):
        number = agent_number(OF_TENSOR, get(thread, s.T_GID)) if commits else agent_of(block, index)
        key = (number >> 10) << SUB_BITS | (number & 1023)
        put(barrier, s.MB_VC, join(x, get(barrier, s.MB_VC), single(x, key, get(row, s.P_GROUP))))
    if get(barrier, s.MB_LIVE) and commits:
        if get(barrier, s.MB_PENDING) > 0:
            put(barrier, s.MB_PENDING, get(barrier, s.MB_PENDING) - 1)
            settle_phase(x, block, barrier, index)
    elif get(barrier, s.MB_LIVE):
        expect(x, thread, barrier, -get(row, s.P_SIZE), get(row, s.P_PC))
        settle_phase(x, block, barrier, index)
