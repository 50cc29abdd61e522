"""cp.async.bulk: copies of many bytes between global and shared memory by the asynchronous proxy.

A copy is checked when it starts, and carried out later, at a time that the seed chooses. A copy to shared memory then
counts its bytes on its mbarrier. A copy to global memory is carried out at the latest when a thread waits for its
group. Until a copy is carried out, its target counts as pending. Source: the PTX ISA, "cp.async.bulk".
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import FAULT, combined, locate, location_of, register, thread_of, warp_slot
from .agents import (
    GROUP_READS,
    GROUP_WRITES,
    agent_access,
    agent_number,
    as_agent,
    landed,
    learnt,
    proxy_fence,
)
from .async_store import land_store, start_store
from .bits import get, load, load64, put, store, store64
from .boxes import (
    box_to_global,
    box_to_shared,
    element_size,
    end_inside,
    first_inside,
    part_place,
    row_start,
    rows_of,
    width,
)
from .clocks import join, publish
from .cluster import LOW, holder
from .copies import finish_copies
from .counted import barrier_for, count_copy
from .mbarrier import pending, row_of, settle_phase
from .tensor_fence import tensor_fence
from .units import unit
from .watch import draw, report

BAD_SIZE, NOT_DONE = 8, 9  # details of MISUSE reports, after those of mbarrier.py


@jit
def locate_all(x, warp, thread, block, lane, space, address, size, write, pc):
    """Call `locate` for every 16 of `size` bytes. Returns (address in this process, place) of the first, or FAULT."""
    first, start = np.int64(FAULT), np.int64(0)
    for k in range(0, size, 16):
        host, place, _ = locate(x, warp, thread, block, lane, space, address + k, 16, write, pc)
        if host == FAULT:
            return np.int64(FAULT), start
        if k == 0:
            first, start = host, place
    return first, start


@unit
def bulk(x, warp, block, line, pc, op, mask):
    """Run cp.async.bulk, or an instruction on its groups, for the lanes of mask."""
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        if op == isa.BULKCOMMIT:
            put(thread, s.T_BULK, get(thread, s.T_BULK) + 1)
        elif op == isa.STASYNC:
            start_store(x, warp, thread, block, line, lane, pc)
        elif op == isa.BULKWAIT:
            wait_groups(x, thread, get(thread, s.T_BULK) - get(line, isa.IMM), get(line, isa.FLAGS) != 0)
        else:
            start(x, warp, thread, block, line, lane, op, pc)
    return 0


@jit
def ends(x, warp, thread, block, line, lane, pc, to_space, from_space, rank):
    """Where one lane's copy goes and comes from: (bytes, both addresses, target and its place, origin and its place).

    IMM and TYPE are added to the addresses. The target is FAULT if something is wrong, which is reported. rank: see
    `in_rank`.
    """
    size = np.int64(register(x, warp, get(line, isa.C), lane)) & 0xFFFFFFFF
    to = in_rank(np.int64(register(x, warp, get(line, isa.A), lane)) + get(line, isa.IMM), rank)
    source = np.int64(register(x, warp, get(line, isa.B), lane)) + get(line, isa.TYPE)
    target, to_place, origin, from_place = np.int64(FAULT), np.int64(0), np.int64(FAULT), np.int64(0)
    if size & 15 or size == 0:
        report(x, s.MISUSE, pc, get(thread, s.T_GID), size, isa.SHARED, 16, 0, 0, BAD_SIZE, 0)
        return size, to, source, target, to_place, origin, from_place
    target, to_place = locate_all(x, warp, thread, block, lane, to_space, to, size, True, pc)
    if target != FAULT:
        origin, from_place = locate_all(x, warp, thread, block, lane, from_space, source, size, False, pc)
        if origin == FAULT:
            target = np.int64(FAULT)
    return size, to, source, target, to_place, origin, from_place


@jit
def start(x, warp, thread, block, line, lane, op, pc):
    """Start one lane's copy."""
    if op == isa.BULKLOAD:
        ranks = np.int64(0)  # the mask of .multicast::cluster
        if get(line, isa.COUNT):
            row = get(get(x, s.OPERANDS) + get(line, isa.LIST) * 8, 0)
            ranks = np.int64(register(x, warp, row, lane)) & 0xFFFF
        for k in range(s.MOST_CLUSTER):
            if (ranks >> k) & 1 or (k == 0 and not get(line, isa.COUNT)):
                start_load(x, warp, thread, block, line, lane, pc, k + isa.FIRST_RANK if get(line, isa.COUNT) else 0)
        return
    size, to, _, target, to_place, origin, from_place = ends(
        x, warp, thread, block, line, lane, pc, isa.GLOBAL, isa.SHARED, 0
    )
    if target == FAULT:
        return
    count_bytes(x, pc, to, size)
    group = get(thread, s.T_BULK)
    if get(x, s.CHECK):
        vc = publish(x, thread, block, warp_slot(x, warp))
        as_agent(x, agent_number(GROUP_READS, get(thread, s.T_GID)), group + 1, vc)
        agent_access(x, thread, block, isa.SHARED, from_place, size, False, pc)
        as_agent(x, agent_number(GROUP_WRITES, get(thread, s.T_GID)), group + 1, vc)
        agent_access(x, thread, block, isa.GLOBAL, to_place, size, True, pc)
    pending(x, s.P_STORE, block, thread, to_place, origin, size, -1, group, pc)


@jit
def in_rank(address, rank):
    """The same address of shared memory in another block of the cluster.

    rank: the block's rank plus FIRST_RANK. If rank is 0, the address is not changed.
    """
    return address if rank == 0 else (address & LOW) | rank << isa.RANK_SHIFT


@unit
def start_load(x, warp, thread, block, line, lane, pc, rank):
    """Start one lane's copy to shared memory. TYPE2 is added to the address of the mbarrier. FLAGS: the source's space.

    rank: 0, or for a multicast the rank of the block to which this copy goes, plus FIRST_RANK.
    """
    space = get(line, isa.FLAGS)
    size, _, source, target, to_place, origin, from_place = ends(
        x, warp, thread, block, line, lane, pc, isa.SHARED, space, rank
    )
    if target == FAULT:
        return 0
    if space == isa.GLOBAL:
        count_bytes(x, pc, source, size)
    owner, to_place = holder(x, block, to_place), to_place & LOW
    at = in_rank(np.int64(register(x, warp, get(line, isa.E), lane)) + get(line, isa.TYPE2), rank)
    index = barrier_for(x, warp, thread, block, owner, lane, at, True, pc)
    if index < 0:
        return 0
    if get(x, s.CHECK):
        agent_access(x, thread, block, space, from_place, size, False, pc)
        agent_access(x, thread, owner, isa.SHARED, to_place, size, True, pc)
    pending(x, s.P_LOAD, owner, thread, to_place, origin, size, index, get(get(x, s.AGENT), s.T_CLOCK), pc)
    return 0


@jit
def count_bytes(x, pc, address, size):
    """Add a copy's request of global memory to the counters."""
    counts = get(x, s.COUNTS) + pc * s.N_FIELDS * 8
    sectors = ((address + size - 1) >> 5) - (address >> 5) + 1
    put(counts, s.N_WIDTH, max(get(counts, s.N_WIDTH), size))
    put(counts, s.N_REQUESTS, get(counts, s.N_REQUESTS) + 1)
    put(counts, s.N_SECTORS, get(counts, s.N_SECTORS) + sectors)
    put(counts, s.N_BYTES, get(counts, s.N_BYTES) + size)
    put(counts, s.N_IDEAL, get(counts, s.N_IDEAL) + (size + 31) // 32)


# ---- landing ----
@jit
def take_out(x, at):
    """Remove a row of the table of pending work, and move the last row to its place."""
    last = get(x, s.PENDING_COUNT) - 1
    for field in range(s.P_FIELDS):
        put(get(x, s.PENDING) + at * s.P_FIELDS * 8, field, get(get(x, s.PENDING) + last * s.P_FIELDS * 8, field))
    put(x, s.PENDING_COUNT, last)


@unit
def land(x, at):
    """Carry out the pending work at an index of the table."""
    last = get(x, s.PENDING) + s.P_MOST * s.P_FIELDS * 8  # a copy of the row, since work may be added meanwhile
    for field in range(s.P_FIELDS):
        put(last, field, get(get(x, s.PENDING) + at * s.P_FIELDS * 8, field))
    take_out(x, at)
    put(x, s.PROGRESS, get(x, s.STEP))
    kind, block, thread = get(last, s.P_KIND), get(last, s.P_BLOCK), get(last, s.P_THREAD)
    to, source, size = get(last, s.P_TO), get(last, s.P_FROM), get(last, s.P_SIZE)
    if kind == s.P_ARRIVE:
        copies_arrive(x, block, thread, get(last, s.P_BARRIER))
        return 0
    if kind == s.P_COMMIT:
        count_copy(x, block, thread, last)
        return 0
    if kind == s.P_REDUCE:
        reduce_bytes(x, to, source, size, get(last, s.P_FLAGS))
        return 0
    if kind == s.P_PUT or kind == s.P_ADD:
        land_store(x, block, last)
    elif kind == s.P_BOX_LOAD or kind == s.P_BOX_STORE:
        land_box(x, block, last, kind == s.P_BOX_LOAD)
    else:
        target = get(block, s.B_SHARED) + to if kind == s.P_LOAD else get(x, s.MEMORY) + to
        for i in range(0, size, 8):
            store64(target + i, load64(source + i))
    if get(x, s.CHECK):
        if kind == s.P_STORE:
            landed(x, get(x, s.INIT) + to, to, size)
        elif kind == s.P_LOAD:
            landed(x, get(block, s.B_INIT) + to, location_of(x, block, isa.SHARED, to), size)
    if kind < s.P_STORE:
        count_copy(x, block, thread, last)
    return 0


@jit
def reduce_bytes(x, to, source, size, flags):
    """Combine elements of shared memory with those of global memory. The flags have the operation and the type."""
    type_, kind = flags >> 4, flags & 15
    for i in range(0, size, type_ & 15):
        target, bytes_ = get(x, s.MEMORY) + to + i, type_ & 15
        value = combined(x, kind, type_, load(target, bytes_), load(source + i, bytes_), np.uint64(0), True)
        store(target, bytes_, value)
    if get(x, s.CHECK):
        landed(x, get(x, s.INIT) + to, to, size)


@unit
def land_box(x, block, row, loads):
    """Carry out the copy of a box of a tensor, and let no reader find older values."""
    map_, at, place, flags = row + s.P_MAP * 8, row + s.P_AT * 8, get(row, s.P_TO), get(row, s.P_FLAGS)
    if loads:
        box_to_shared(x, block, map_, at, place, flags)
    else:
        box_to_global(x, block, map_, at, place, flags)
    if not get(x, s.CHECK):
        return 0
    size, first, end = element_size(map_), first_inside(map_, at), end_inside(map_, at)
    for line in range(rows_of(map_, flags)):
        if loads:
            for part in range(width(map_) // 16):
                to = part_place(map_, place, line, part)
                landed(x, get(block, s.B_INIT) + to, location_of(x, block, isa.SHARED, to), 16)
            continue
        start = row_start(map_, at, line, flags)
        if start >= 0 and first < end:
            to = start + (get(at, 0) + first) * size - isa.GLOBAL_START
            landed(x, get(x, s.INIT) + to, to, (end - first) * size)
    return 0


@jit
def copies_arrive(x, block, thread, index):
    """Run the arrival of cp.async.mbarrier.arrive: finish the thread's copies by cp.async, then arrive at the mbarrier.

    The arrival releases these copies, and everything that the thread did before.
    """
    slot = (thread - get(x, s.THREADS)) // (s.T_FIELDS * 8) // 32
    warp = get(x, s.WARPS) + slot * s.W_FIELDS * 8
    if get(thread, s.T_COPIES):
        finish_copies(x, warp, thread, block, get(thread, s.T_GROUP) + 1, s.C_MOST)
    barrier = row_of(x, block, index)
    if get(x, s.CHECK):
        put(barrier, s.MB_VC, join(x, get(barrier, s.MB_VC), publish(x, thread, block, slot)))
    if get(barrier, s.MB_LIVE) and get(barrier, s.MB_PENDING) > 0:
        put(barrier, s.MB_PENDING, get(barrier, s.MB_PENDING) - 1)
        settle_phase(x, block, barrier, index)


@jit
def land_some(x):
    """Carry out the pending work of one random row, or of 64 random rows if the table is more than half full."""
    for _ in range(64 if get(x, s.PENDING_COUNT) > s.P_MOST // 2 else 1):
        land(x, draw(x) % get(x, s.PENDING_COUNT))


@jit
def wait_groups(x, thread, before, reads):
    """Run cp.async.bulk.wait_group: complete the thread's groups below `before`.

    reads: whether the thread waits only until the copies have read their sources (.read).
    """
    at = get(x, s.PENDING_COUNT) - 1
    while at >= 0:
        row = get(x, s.PENDING) + at * s.P_FIELDS * 8
        if get(row, s.P_KIND) >= s.P_STORE and get(row, s.P_THREAD) == thread and get(row, s.P_GROUP) < before:
            land(x, at)
        at -= 1
    if get(x, s.CHECK) and before > 0:
        vc = learnt(x, get(thread, s.T_VC), agent_number(GROUP_READS, get(thread, s.T_GID)), before)
        if not reads:
            vc = learnt(x, vc, agent_number(GROUP_WRITES, get(thread, s.T_GID)), before)
        put(thread, s.T_VC, vc)


@jit
def abandon(x, block, stopped):
    """Report the copies of a block that are still pending although the block has ended."""
    at = get(x, s.PENDING_COUNT) - 1
    while at >= 0:
        row = get(x, s.PENDING) + at * s.P_FIELDS * 8
        if get(row, s.P_BLOCK) == block:
            if get(x, s.CHECK) and not stopped and get(row, s.P_KIND) > s.P_COMMIT:
                gid = get(get(row, s.P_THREAD), s.T_GID)
                report(x, s.MISUSE, get(row, s.P_PC), gid, 0, isa.SHARED, get(row, s.P_SIZE), 0, 0, NOT_DONE, 0)
            if get(row, s.P_KIND) >= s.P_STORE:
                land(x, at)
            else:
                take_out(x, at)
        at -= 1


# ---- fences ----
@unit
def fence_of_proxies(x, warp, block, line, op, mask):
    """Run fence.proxy.async, tcgen05.fence, or fence.mbarrier_init for the mbarriers that the thread initialised."""
    if op == isa.TCFENCE:
        return tensor_fence(x, warp, get(line, isa.IMM), mask)
    if op == isa.PROXYFENCE:
        return proxy_fence(x, warp, block, get(line, isa.IMM), mask)
    for lane in range(32):
        for index in range(get(block, s.B_MBARRIERS)):
            row = row_of(x, block, index)
            if (mask >> lane) & 1 and get(row, s.MB_GID) == get(thread_of(x, warp, lane), s.T_GID):
                put(row, s.MB_FENCED, 1)
                if get(x, s.CLUSTERED) and get(x, s.CHECK):  # so that a relaxed arrival passes the fence on
                    thread = thread_of(x, warp, lane)
                    now = publish(x, thread, block, warp_slot(x, warp))
                    put(thread, s.T_RELEASE0, join(x, get(thread, s.T_RELEASE0), now))
    return 0
