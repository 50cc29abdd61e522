"""st.async and red.async: stores and reductions to shared memory of a cluster, which complete on an mbarrier.

They are checked when they start, and carried out later, at a time that the seed chooses. The bytes are then counted on
the mbarrier, which lies in the block that the store goes to. They are weak, or for reductions relaxed, operations of
the generic proxy, so no fence between proxies is needed. Like bulk copies they are accesses of the mbarrier's agent
(agents.py): only the end of the mbarrier's phase orders them. Source: the PTX ISA, "st.async", "red.async".
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import FAULT, combined, locate, location_of, register, shadow_of
from .agents import before, check_written, landed
from .bits import get, load, load8, put, store
from .cluster import LOW, holder
from .counted import barrier_for
from .integer import cut
from .mbarrier import NOT_SHARED, pending, wrong
from .units import unit
from .watch import ATOMIC, GID_MASK, SIZE_SHIFT, log2, report

REDUCES = 1 << 4  # FLAGS: a reduction, whose number is in the low 4 bits
SPACE_SHIFT = 8  # FLAGS: the space of both addresses, from this bit on


@unit
def start_store(x, warp, thread, block, line, lane, pc):
    """Start one lane's st.async or red.async. TYPE2 is added to the address of the mbarrier."""
    type_, flags, count = get(line, isa.TYPE), get(line, isa.FLAGS), get(line, isa.COUNT)
    size, reduces = (type_ & 15) * count, flags & REDUCES != 0
    address = np.int64(register(x, warp, get(line, isa.A), lane)) + get(line, isa.IMM)
    host, place, kind = locate(x, warp, thread, block, lane, flags >> SPACE_SHIFT, address, size, True, pc)
    if host == FAULT:
        return 0
    if kind != isa.SHARED:
        wrong(x, thread, place, NOT_SHARED, pc)
        return 0
    owner, to = holder(x, block, place), place & LOW
    at = np.int64(register(x, warp, get(line, isa.E), lane)) + get(line, isa.TYPE2)
    index = barrier_for(x, warp, thread, block, owner, lane, at, False, pc)
    if index < 0:
        return 0
    if get(x, s.CHECK):
        examine_store(x, thread, block, place, size, type_ & 15, reduces, pc)
    kind = s.P_ADD if reduces else s.P_PUT
    row = pending(x, kind, owner, thread, to, 0, size, index, get(get(x, s.AGENT), s.T_CLOCK), pc)
    put(row, s.P_FLAGS, type_ << 4 | flags & 15)
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    for k in range(count):
        put(row, s.P_MAP + k, np.int64(register(x, warp, get(items, k), lane)))
    return 0


@jit
def examine_store(x, thread, block, place, size, part, reduces, pc):
    """Check and record a store or a reduction by the present agent (AGENT). part: bytes of an element.

    Reductions of one size do not race with each other. Bytes of a store count as pending until it is carried out.
    """
    init, grain, cells, first, address = shadow_of(x, block, isa.SHARED, place, size)
    gid = get(thread, s.T_GID)
    if reduces:
        for i in range(size):
            if load8(init + i) != np.uint64(1):
                kind = s.UNINITIALISED if load8(init + i) == np.uint64(0) else s.MISSING_WAIT
                report(x, kind, pc, gid, address + i, isa.SHARED, size, 0, 0, 0, True)
    else:
        check_written(x, thread, isa.SHARED, init, address, size, True, pc)
    agent = get(x, s.AGENT)
    how = (ATOMIC | log2(part) << SIZE_SHIFT) if reduces else np.int64(0)
    for k in range(size // grain):
        cell = cells + (first // grain + k) * s.CELL_WORDS * 8
        for word in range(0, s.CELL_WORDS, 2):
            origin, when = get(cell, word), get(cell, word + 1)
            other, theirs = origin & GID_MASK, when >> 40
            if origin == 0 or (reduces and word == 0 and theirs == how):
                continue
            if not before(x, agent, other, when & 0xFFFFFFFF):
                other_pc = (origin >> s.GID_BITS) & 0x3FFFFF
                report(x, s.RACE, pc, gid, address + k * grain, isa.SHARED, size, other_pc, other, 0, True)
            put(cell, word, 0)
        put(cell, 0, get(agent, s.T_GID) | pc << s.GID_BITS)
        put(cell, 1, get(agent, s.T_CLOCK) | ((1 << grain) - 1) << 32 | how << 40)


@unit
def land_store(x, block, row):
    """Carry out a store or a reduction. block: the block whose memory changes. row: the row of the pending work."""
    type_, kind, to = get(row, s.P_FLAGS) >> 4, get(row, s.P_FLAGS) & 15, get(row, s.P_TO)
    part = type_ & 15
    for k in range(get(row, s.P_SIZE) // part):
        target = get(block, s.B_SHARED) + to + k * part
        value = cut(np.uint64(get(row, s.P_MAP + k)), type_)
        if get(row, s.P_KIND) == s.P_ADD:
            value = combined(x, kind, type_, load(target, part), value, np.uint64(0), True)
        store(target, part, value)
    if get(x, s.CHECK):
        landed(x, get(block, s.B_INIT) + to, location_of(x, block, isa.SHARED, to), get(row, s.P_SIZE))
    return 0
