"""Accesses by asynchronous work: bulk copies and wgmma. No thread makes them; they go through the asynchronous proxy.

In the checker an agent stands for asynchronous work. An agent has a clock, and a number like a thread's, with the
agent's kind in the bits of `clocks.AGENTS`. The bulk copies that one mbarrier counts are one agent, whose clock is the
barrier's phase. The copies of a thread's bulk groups are another agent, and so are the wgmmas of a warp; the clocks of
these agents are the numbers of the groups. A thread that waits for a phase or a group joins the agent's clock into its
own. So the work of this phase or group, and no other, happened before the thread's next accesses.

If a thread has accessed memory, asynchronous work may access the same memory only after a fence.proxy.async (the PTX
ISA on proxies). The vector clocks also hold the moments that such fences cover, under keys with a bit of `PROXY`. So a
thread that learns a clock also learns these moments.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import shadow_of, thread_of, warp_slot
from .bits import get, load8, load64, put, store8
from .clocks import (
    AGENT_SHIFT,
    AGENTS,
    BLOCK_KEY,
    LOCATION,
    SUB_BITS,
    WARP_KEY,
    advance,
    closed,
    earlier_run,
    history_slot,
    in_clock,
    join,
    lookup,
    publish,
    single,
    whole_launch,
)
from .units import unit
from .watch import GID_MASK, coherent, noncoherent, report

OF_BARRIER, OF_WARPGROUP, GROUP_READS, GROUP_WRITES, OF_TENSOR = 1, 2, 3, 4, 5  # kinds of agents
PROXY = 1 << 58  # bit for all memory; the next two bits are for shared memory alone and for global memory alone
HOST_BIT = 1 << 41
KNOWN_BYTES = 0x0101010101010101


@jit
def agent_number(kind, gid):
    """The number of an agent. gid: a thread's number, or a block's number followed by the index of an mbarrier."""
    return gid | kind << AGENT_SHIFT


@jit
def as_agent(x, number, clock, vc):
    """Set the agent of the accesses that follow. Its work begins after all moments that the vector clock vc covers."""
    agent = get(x, s.AGENT)
    put(agent, s.T_GID, number)
    put(agent, s.T_CLOCK, clock)
    put(agent, s.T_VC, vc)


@jit
def learnt(x, vc, number, clock):
    """The vector clock vc, extended so that it covers an agent's work up to a clock."""
    key = (number >> 10) << SUB_BITS | (number & 1023)
    return vc if lookup(x, vc, key) >= clock else join(x, vc, single(x, key, clock))


# ---- the proxies ----
@jit
def in_proxy(x, vc, bits, gid, clock):
    """Whether a vector clock notes a fence that covers a thread up to a clock. bits: PROXY or one of the next two."""
    block = (gid >> 10) << SUB_BITS | bits
    if lookup(x, vc, block | (gid & 1023)) >= clock or lookup(x, vc, block | BLOCK_KEY) >= clock:
        return True
    return lookup(x, vc, block | WARP_KEY | ((gid & 1023) >> 5)) >= clock


@jit
def shown(x, vc, space, gid, clock):
    """Whether a fence has made a thread's accesses up to a clock visible to the asynchronous proxy."""
    return in_proxy(x, vc, PROXY, gid, clock) or in_proxy(x, vc, PROXY * (2 if space == isa.SHARED else 4), gid, clock)


@unit
def proxy_fence(x, warp, block, which, mask):
    """Run fence.proxy.async for the lanes of mask. which: 0 for all memory, 1 for shared, 2 for global memory.

    If all lanes of a warp run the fence, their clocks get one entry for the warp, so that joins of many threads' clocks
    are cheap.
    """
    slot = warp_slot(x, warp)
    whole = mask == get(warp, s.W_EXISTS)
    latest = np.int64(0)
    for lane in range(32):
        if (mask >> lane) & 1:
            latest = max(latest, get(thread_of(x, warp, lane), s.T_CLOCK))
    old, new = np.int64(-1), np.int64(0)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        known = get(thread, s.T_VC)
        if not whole:
            put(thread, s.T_VC, fenced(x, publish(x, thread, block, slot), known, block, which))
            continue
        put(thread, s.T_CLOCK, latest)
        advance(thread, block)
        if known != old:
            old = known
            new = fenced(x, join(x, known, of_warp(x, warp, block, latest)), known, block, which)
        put(thread, s.T_VC, new)
    return 0


@jit
def of_warp(x, warp, block, clock):
    """A vector clock that covers all lanes of a warp up to a clock, and the block up to its last barrier."""
    key = get(block, s.B_GID) << SUB_BITS
    vc = single(x, key | WARP_KEY | get(warp, s.W_INDEX), clock)
    floor = get(block, s.B_FLOOR)
    return vc if floor == 0 else join(x, vc, single(x, key | BLOCK_KEY, floor - 1))


@jit
def fenced(x, vc, known, block, which):
    """A thread's clock after a fence: `known`, with all moments of `vc` noted as visible to the asynchronous proxy.

    Entries for threads of the block are left out if the entry for the block's last barrier covers them.
    """
    pool, top = get(x, s.CLOCKS), get(x, s.CLOCKS_TOP)
    mine, floor = get(block, s.B_GID), get(block, s.B_FLOOR)
    n = np.int64(0)
    for i in range(get(pool, 2 * vc) if vc else 0):
        key, clock = get(pool, 2 * (vc + 1 + i)), get(pool, 2 * (vc + 1 + i) + 1)
        if key >= PROXY:  # keys are sorted
            break
        owner = key >> SUB_BITS
        covered = owner == mine and key & BLOCK_KEY != BLOCK_KEY and clock < floor
        foreign = which == 1 and owner != mine and not get(x, s.CLUSTERED)
        if owner & (AGENTS >> 10) != 0 or foreign or covered:
            continue
        put(pool, 2 * (top + 1 + n), key | PROXY << which)
        put(pool, 2 * (top + 1 + n) + 1, clock)
        n += 1
    shows = closed(x, top, n)
    top = get(x, s.CLOCKS_TOP)
    n = np.int64(0)
    for i in range(get(pool, 2 * known) if known else 0):
        key, clock = get(pool, 2 * (known + 1 + i)), get(pool, 2 * (known + 1 + i) + 1)
        owner = (key & (PROXY - 1)) >> SUB_BITS
        kind = key - (key & (PROXY - 1))
        same = kind == 0 or kind == PROXY << which or (which == 0 and kind < LOCATION)
        if same and owner == mine and key & BLOCK_KEY != BLOCK_KEY and clock < floor:
            continue
        put(pool, 2 * (top + 1 + n), key)
        put(pool, 2 * (top + 1 + n) + 1, clock)
        n += 1
    return join(x, closed(x, top, n), shows)


# ---- accesses ----
@jit
def before(x, agent, gid, clock):
    """Whether an access happened before the agent's work began.

    Two accesses of one agent have no order.
    """
    return earlier_run(x, gid) or in_clock(x, get(agent, s.T_VC), gid, clock)


@jit
def examine(x, thread, agent, origin, when, space, address, size, write, pc):
    """Report the agent's access if it races with an earlier one, or if a fence is missing between the two.

    origin, when: the two words of a cell that describe the earlier access.
    """
    gid, clock = origin & GID_MASK, when & 0xFFFFFFFF
    other_pc = (origin >> s.GID_BITS) & 0x3FFFFF
    mine = get(thread, s.T_GID)
    if not before(x, agent, gid, clock):
        report(x, s.RACE, pc, mine, address, space, size, other_pc, gid, 0, write)
        return
    thread_now = gid & (AGENTS | HOST_BIT) == 0 and not earlier_run(x, gid)
    vc = get(agent, s.T_VC)
    if thread_now and not shown(x, vc, space, gid, clock) and not whole_launch(x, vc, gid):
        report(x, s.MISSING_FENCE, pc, mine, address, space, size, other_pc, gid, 0, write)


@jit
def check_written(x, thread, space, init, address, size, write, pc):
    """Report an access to bytes that a pending copy will write, or a read of bytes that were never written.

    The bytes of a write are marked as pending.
    """
    fresh, pending = np.int64(-1), np.int64(-1)
    for i in range(0, size, 8):
        if i + 8 > size or load64(init + i) != np.uint64(KNOWN_BYTES):
            for k in range(i, min(i + 8, size)):
                state = load8(init + k)
                if state == np.uint64(0) and fresh < 0:
                    fresh = np.int64(k)
                elif pending < 0 and state >= np.uint64(s.COPYING) and (write or state == np.uint64(s.COPYING)):
                    pending = np.int64(k)
    gid = get(thread, s.T_GID)
    if pending >= 0:
        report(x, s.MISSING_WAIT, pc, gid, address + pending, space, size, 0, 0, 0, write)
    elif fresh >= 0 and not write:
        report(x, s.UNINITIALISED, pc, gid, address + fresh, space, size, 0, 0, 0, write)
    if write:
        for i in range(size):
            store8(init + i, np.uint64(2))


@unit
def agent_access(x, thread, block, space, place, size, write, pc):
    """Check and record an access by the agent that `as_agent` set. The access is in bounds.

    size: bytes, a multiple of those of one of the checker's cells. thread: the one that started the work, for reports.
    Written bytes count as pending until `landed` is called.
    """
    init, grain, cells, first, address = shadow_of(x, block, space, place, size)
    check_written(x, thread, space, init, address, size, write, pc)
    agent = get(x, s.AGENT)
    origin = get(agent, s.T_GID) | pc << s.GID_BITS
    when = get(agent, s.T_CLOCK) | ((1 << grain) - 1) << 32
    w, w_when, r, r_when, q, q_when = np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    old_r, old_q = False, False  # whether the reads r and q happened before the agent's work
    cell = cells + first // grain * s.CELL_WORDS * 8
    for k in range(size // grain):
        at = address + k * grain
        if write and space == isa.GLOBAL:
            coherent(x, origin & GID_MASK, cell, (1 << grain) - 1, True, 0, at, pc)
        if get(cell, 0) != 0 and (get(cell, 0) != w or get(cell, 1) != w_when):  # else this write was examined already
            w, w_when = get(cell, 0), get(cell, 1)
            examine(x, thread, agent, w, w_when, space, at, size, write, pc)
        if get(cell, 2) != 0 and (get(cell, 2) != r or get(cell, 3) != r_when):
            r, r_when = get(cell, 2), get(cell, 3)
            old_r = before(x, agent, r & GID_MASK, r_when & 0xFFFFFFFF)
            if write:
                examine(x, thread, agent, r, r_when, space, at, size, write, pc)
        if get(cell, 4) != 0 and (get(cell, 4) != q or get(cell, 5) != q_when):
            q, q_when = get(cell, 4), get(cell, 5)
            old_q = before(x, agent, q & GID_MASK, q_when & 0xFFFFFFFF)
            if write:
                examine(x, thread, agent, q, q_when, space, at, size, write, pc)
        place_in = np.int64(0)  # the cell's first word to set, for its write or one of its two reads; -1: none
        if write:
            put(cell, 2, 0)
            put(cell, 4, 0)
        elif get(cell, 2) == 0 or get(cell, 2) & GID_MASK == origin & GID_MASK:
            place_in = np.int64(2)
        elif get(cell, 4) == 0 or get(cell, 4) & GID_MASK == origin & GID_MASK:
            place_in = np.int64(4)
        elif old_r and not noncoherent(cell, 2):
            place_in = np.int64(2)
        elif old_q:
            place_in = np.int64(4)
        else:
            place_in = np.int64(-1)
        if place_in >= 0:
            put(cell, place_in, origin)
            put(cell, place_in + 1, when)
        cell += s.CELL_WORDS * 8
    return 0


@jit
def landed(x, init, location, size):
    """Mark the bytes of a finished copy as written, and let no reader find older values."""
    for i in range(size):
        store8(init + i, np.uint64(1))
    for at in range(location & ~7, location + size, 8):
        slot = history_slot(x, at)
        if get(slot, s.H_COUNT) != 0 and get(slot, s.H_ADDRESS) >> 3 == at >> 3:
            put(slot, s.H_COUNT, 0)
