"""cp.async.bulk.tensor and cp.reduce.async.bulk: copies of a box of a tensor, and bulk reductions.

A copy is checked when it starts: the descriptor, and every row of the box that lies inside the tensor. It is carried
out later, as other bulk copies are. The descriptor is read when the copy starts.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import FAULT, check, locate, location_of, register, shadow_of, thread_of, warp_slot
from .agents import GROUP_READS, GROUP_WRITES, agent_access, agent_number, as_agent
from .bits import get, load, load64, put, store
from .boxes import (
    BYTES,
    MULTICAST,
    PAIRED,
    REDUCES,
    element_size,
    end_inside,
    first_inside,
    part_place,
    pitch,
    row_start,
    rows_of,
    usable,
    width,
)
from .bulk import count_bytes, ends, in_rank, locate_all
from .clocks import publish
from .cluster import LOW, holder, partner
from .counted import barrier_for
from .mbarrier import pending
from .units import unit
from .watch import ALONE, fence, report, wrote

NO_MAP, NOT_128 = 14, 15  # details of MISUSE reports, after those of warpgroup.py


@unit
def tensor(x, warp, block, line, pc, op, mask):
    """Run cp.async.bulk.tensor, cp.reduce.async.bulk or tensormap.cp_fenceproxy for the lanes of mask."""
    for lane in range(32):
        if (mask >> lane) & 1:
            thread = thread_of(x, warp, lane)
            if op == isa.MAPCOPY:
                copy_map(x, warp, thread, block, line, lane, pc)
                return 0  # all lanes have the same operands
            if op == isa.BULKREDUCE:
                start_reduction(x, warp, thread, block, line, lane, pc)
            else:
                ranks = np.int64(0)
                if get(line, isa.FLAGS) & MULTICAST:
                    ranks = np.int64(register(x, warp, get(line, isa.C), lane)) & 0xFFFF
                for k in range(s.MOST_CLUSTER):
                    if (ranks >> k) & 1:
                        start_box(x, warp, thread, block, line, lane, True, k + isa.FIRST_RANK, pc)
                if not get(line, isa.FLAGS) & MULTICAST:
                    start_box(x, warp, thread, block, line, lane, op == isa.TENSORLOAD, 0, pc)
    return 0


@jit
def copy_map(x, warp, thread, block, line, lane, pc):
    """Run tensormap.cp_fenceproxy: copy a descriptor from shared to global memory, and release it."""
    to = np.int64(register(x, warp, get(line, isa.A), lane)) + get(line, isa.IMM)
    source = np.int64(register(x, warp, get(line, isa.B), lane)) + get(line, isa.TYPE)
    slot = warp_slot(x, warp)
    for k in range(0, BYTES, 8):
        origin, place, kind = locate(x, warp, thread, block, lane, isa.SHARED, source + k, 8, False, pc)
        target, at, space = locate(x, warp, thread, block, lane, isa.GLOBAL, to + k, 8, True, pc)
        if origin == FAULT or target == FAULT:
            return
        value = load64(origin)
        if get(x, s.CHECK):
            check(x, warp, thread, block, kind, place, 8, 0, False, True, pc)
            check(x, warp, thread, block, space, at, 8, 0, True, False, pc)
            location = location_of(x, block, space, at)
            wrote(x, thread, block, slot, location, 8, load(target, 8), value, isa.WEAK, 0, False, ALONE)
        store(target, np.int64(8), value)
    put(x, s.PROGRESS, get(x, s.STEP))
    if get(x, s.CHECK):
        fence(x, thread, block, slot, isa.RELEASE, (get(line, isa.FLAGS) >> isa.SCOPE_SHIFT) & 3)


@jit
def start_reduction(x, warp, thread, block, line, lane, pc):
    """Start cp.reduce.async.bulk, which combines bytes of shared memory with those of global memory."""
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
    row = pending(x, s.P_REDUCE, block, thread, to_place, origin, size, -1, group, pc)
    put(row, s.P_FLAGS, get(line, isa.FLAGS))


@unit
def start_box(x, warp, thread, block, line, lane, loads, rank, pc):
    """Start the copy of a box. The list of operands has the coordinates; IMM, TYPE, TYPE2 are added to addresses.

    rank: see bulk.in_rank.
    """
    gid, flags = get(thread, s.T_GID), get(line, isa.FLAGS)
    map_at = np.int64(register(x, warp, get(line, isa.B), lane)) + get(line, isa.TYPE)
    map_, _, _ = locate(x, warp, thread, block, lane, isa.GENERIC, map_at, 64, False, pc)
    if map_ == FAULT or locate(x, warp, thread, block, lane, isa.GENERIC, map_at + 64, 64, False, pc)[0] == FAULT:
        return 0
    if not usable(map_):
        report(x, s.MISUSE, pc, gid, 0, isa.SHARED, BYTES, 0, 0, NO_MAP, 0)
        return 0
    address = in_rank(np.int64(register(x, warp, get(line, isa.A), lane)) + get(line, isa.IMM), rank)
    if address & 127:
        report(x, s.MISUSE, pc, gid, address, isa.SHARED, 128, 0, 0, NOT_128, 0)
        return 0
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    at = get(x, s.SCRATCH)
    for k in range(get(line, isa.COUNT)):
        where = np.int64(register(x, warp, get(items, k), lane)) & 0xFFFFFFFF
        put(at, k, where - (where >> 31 << 32))
    size = rows_of(map_, flags) * width(map_)
    host, place = locate_all(
        x, warp, thread, block, lane, isa.SHARED, address, rows_of(map_, flags) * pitch(map_), loads, pc
    )
    if host == FAULT or not rows_inside(x, warp, thread, block, lane, map_, at, flags, not loads, pc):
        return 0
    owner, place = holder(x, block, place), place & LOW
    index, group, counts = np.int64(-1), get(thread, s.T_BULK), owner
    if loads:
        barrier = np.int64(register(x, warp, get(line, isa.E), lane)) + get(line, isa.TYPE2)
        counts = counting(x, block, owner, barrier) if flags & PAIRED else owner
        if flags & PAIRED or rank:
            barrier = in_rank(barrier, get(counts, s.B_RANK) + isa.FIRST_RANK)
        index = barrier_for(x, warp, thread, block, counts, lane, barrier, True, pc)
        if index < 0:
            return 0
        group = get(get(x, s.AGENT), s.T_CLOCK)
    if get(x, s.CHECK):
        box_accesses(x, warp, thread, owner, map_, at, place, flags, loads, group, pc)
    kind = s.P_BOX_LOAD if loads else s.P_BOX_STORE
    row = pending(x, kind, owner, thread, place, counts if loads else 0, size, index, group, pc)
    put(row, s.P_FLAGS, flags)
    for k in range(BYTES // 8):
        put(row, s.P_MAP + k, get(map_, k))
    for k in range(5):
        put(row, s.P_AT + k, get(at, k))
    return 0


@jit
def counting(x, block, owner, barrier):
    """The block of the target's pair whose mbarrier counts a copy with .cta_group::2.

    Its rank is even if the rank of the block in which the named mbarrier lies is even, else odd. barrier: the address
    that the instruction names, in any block of the cluster.
    """
    named = holder(x, block, barrier)
    if named == 0 or (get(named, s.B_RANK) ^ get(owner, s.B_RANK)) & 1 == 0 or partner(owner) == 0:
        return owner
    return partner(owner)


@jit
def rows_inside(x, warp, thread, block, lane, map_, at, flags, write, pc):
    """Whether the elements that the box has in the tensor lie in memory of an array. If not, this is reported."""
    size = element_size(map_)
    first, end = first_inside(map_, at), end_inside(map_, at)
    for row in range(rows_of(map_, flags)):
        start = row_start(map_, at, row, flags)
        if start < 0 or first == end:
            continue
        begin = start + get(at, 0) * size
        for edge in (begin + first * size, begin + (end - 1) * size):
            if locate(x, warp, thread, block, lane, isa.GLOBAL, edge, size, write, pc)[0] == FAULT:
                return False
        count_bytes(x, pc, begin + first * size, (end - first) * size)
    return True


@jit
def box_accesses(x, warp, thread, block, map_, at, place, flags, loads, group, pc):
    """Check and record the accesses of a box. For loads the mbarrier's agent is set already; a reduction's writes to
    global memory are atomic, and are not recorded."""
    gid, size = get(thread, s.T_GID), element_size(map_)
    if not loads:
        vc = publish(x, thread, block, warp_slot(x, warp))
        as_agent(x, agent_number(GROUP_READS, gid), group + 1, vc)
    for row in range(rows_of(map_, flags)):
        for part in range(width(map_) // 16):
            agent_access(x, thread, block, isa.SHARED, part_place(map_, place, row, part), 16, loads, pc)
    if not loads:
        as_agent(x, agent_number(GROUP_WRITES, gid), group + 1, get(get(x, s.AGENT), s.T_VC))
    first, end = first_inside(map_, at), end_inside(map_, at)
    if flags & REDUCES or first == end:
        return
    for row in range(rows_of(map_, flags)):
        start = row_start(map_, at, row, flags)
        if start < 0:
            continue
        begin = start + (get(at, 0) + first) * size - isa.GLOBAL_START
        _, grain, _, offset, _ = shadow_of(x, block, isa.GLOBAL, begin, size)
        before = offset % grain
        length = (end - first) * size + before
        agent_access(x, thread, block, isa.GLOBAL, begin - before, (length + grain - 1) // grain * grain, not loads, pc)
