"""tcgen05: tensor memory of a block, its allocation, and its loads and stores.

A block has 128 lanes of 512 columns of 32 bits. Every column remembers the product or copy that wrote it last
(tensor_product.py). A thread may touch the column when the thread has learnt the clock of this product's agent. Blocks
of one SM do not share columns here. With .cta_group::2 a warp of each block of a pair runs tcgen05.alloc; the first one
waits for the other, and both get the same columns. Source: the PTX ISA, "Tensorcore 5th Generation Family
Instructions".
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import FAULT, check, locate, location_of, register, set_register, thread_of, warp_slot
from .barrier import wake
from .bits import get, load32, put, store32
from .clocks import SUB_BITS, lookup
from .cluster import partner
from .tensor_fence import AFTER, BEFORE, knows_product, unfenced
from .units import unit
from .warpgroup import load_registers
from .watch import ALONE, report, wrote

FULL = 0xFFFFFFFF
LANES, COLUMNS = 128, 512
OWNERS = LANES * COLUMNS // 2  # the first word of the owners of columns: (agent, clock, instruction) of each
BLOCKS = OWNERS + 3 * COLUMNS  # the first word of the columns' blocks: 1 + the number of a column's block, or 0
STORED = BLOCKS + COLUMNS  # the first word of the last stores: moment and warp of each, for four parts of a column
WORDS = STORED + 4 * COLUMNS
LANE_32, PARTS_64, PARTS_128, PARTS_256, TWICE_32 = range(5)  # shapes of loads and stores
PACKS, PAIR = 2, 4  # bits in FLAGS: of loads and stores, and of all instructions with .cta_group::2
# details of MISUSE and MISSING_WAIT reports, after those of tensor.py
NO_COLUMNS, NOT_ALLOCATED, OTHER_LANES, BAD_PRODUCT = 16, 17, 18, 19
NO_PAIR, OTHER_COUNT = 26, 27  # after those of mbarrier.py
BAD_SCALES, COPIES_DIFFER = 32, 33  # after those of sampling.py
COLUMN_PENDING, STORE_PENDING = 3, 5
EVERY_PART = -1
FREES = -1  # in place of an agent: tcgen05.dealloc, which needs no fence


@jit
def table_of(x, block):
    """The address of a block's tensor memory."""
    return get(x, s.TENSOR_MEMORY) + get(block, s.B_SLOT) * WORDS * 8


@jit
def wrong(x, thread, pc, what):
    """Record a MISUSE report."""
    report(x, s.MISUSE, pc, get(thread, s.T_GID), 0, isa.SHARED, 4, 0, 0, what, 0)


@jit
def usable(x, thread, block, table, first, count, agent, part, pc):
    """Whether a block has allocated columns. A column that a pending product or store writes is reported.

    agent: the number of the agent that uses them, 0 for the thread itself, or FREES. part: which 32 lanes of the
    columns are used, or EVERY_PART.
    """
    if first < 0 or first + count > COLUMNS:
        wrong(x, thread, pc, NOT_ALLOCATED)
        return False
    for column in range(first, first + count):
        if get(table, BLOCKS + column) != get(block, s.B_GID) + 1:
            wrong(x, thread, pc, NOT_ALLOCATED)
            return False
    if get(x, s.CHECK):
        for column in range(first, first + count):
            owner = get(table, OWNERS + 3 * column)
            key = (owner >> 10) << SUB_BITS | (owner & 1023)
            if owner == 0 or owner == agent:
                continue
            clock, other = get(table, OWNERS + 3 * column + 1), get(table, OWNERS + 3 * column + 2)
            if lookup(x, get(thread, s.T_FENCED), key) >= clock:
                continue
            if not knows_product(x, thread, key, clock):
                gid = get(thread, s.T_GID)
                report(x, s.MISSING_WAIT, pc, gid, column, isa.LOCAL, 4, other, gid, COLUMN_PENDING, 0)
                break
            if agent != FREES:
                unfenced(x, thread, pc, column, other, AFTER)
                break
        for k in range(4 * first, 4 * (first + count)):
            if part == EVERY_PART or part == k & 3:
                settle_store(x, thread, table, k, agent != FREES, pc)
    return True


@jit
def settle_store(x, thread, table, k, fences, pc):
    """Report the use of a part of a column if a warp has stored it and not waited, or if fences are missing between."""
    word = get(table, STORED + k)
    if word == 0:
        return
    warp = get(x, s.WARPS) + ((word & 0xFFFFF) - 1) * s.W_FIELDS * 8
    if get(warp, s.W_STORED) <= word >> 20:
        gid = get(thread, s.T_GID)
        report(x, s.MISSING_WAIT, pc, gid, k >> 2, isa.LOCAL, 4, 0, gid, STORE_PENDING, 0)
    elif fences and get(warp, s.W_SLOT) != (thread - get(x, s.THREADS)) // (s.T_FIELDS * 8) // 32:
        if get(warp, s.W_BEFORE) <= word >> 20:
            unfenced(x, thread, pc, k >> 2, 0, BEFORE)
        elif get(thread, s.T_FENCE_AT) <= word >> 20:
            unfenced(x, thread, pc, k >> 2, 0, AFTER)
    put(table, STORED + k, 0)


# ---- allocation, loads and stores: all lanes of a warp together ----
@unit
def tensor_memory(x, warp, block, op, mask):
    """Run tcgen05.alloc, dealloc, ld, st or wait for a whole warp."""
    thread = thread_of(x, warp, 0)
    pc = get(thread, s.T_PC)
    line = get(x, s.CODE) + pc * isa.COLUMNS * 8
    table = table_of(x, block)
    if op == isa.TCALLOC and get(line, isa.FLAGS) & PAIR:
        allocate_pair(x, warp, thread, block, line, pc, mask)
    elif op == isa.TCALLOC:
        count = columns_wanted(x, warp, line)
        hand_out(x, warp, thread, block, line, pc, free_columns(x, block, block, count), count)
    elif op == isa.TCDEALLOC:
        first = np.int64(register(x, warp, get(line, isa.A), 0)) & 0xFFFF
        count = np.int64(register(x, warp, get(line, isa.B), 0)) & 0xFFFF
        if usable(x, thread, block, table, first, count, FREES, EVERY_PART, pc):
            for column in range(first, first + count):
                put(table, BLOCKS + column, 0)
    elif op == isa.TCWAIT:
        wait_for_registers(x, warp, get(line, isa.IMM))
    else:
        move(x, warp, block, table, line, op, pc)
    return 0


@jit
def wait_for_registers(x, warp, stores):
    """Run tcgen05.wait: the warp's loads, or with `stores` its stores, are complete."""
    if stores:
        put(warp, s.W_STORED, get(x, s.STEP) + 1)
    else:
        put(warp, s.W_FLIGHT, 0)


@jit
def columns_wanted(x, warp, line):
    """How many columns a tcgen05.alloc of a warp asks for."""
    return np.int64(register(x, warp, get(line, isa.B), 0)) & 0xFFFF


@jit
def free_columns(x, block, other, count):
    """The first of `count` columns that are free in two blocks, which may be one; -1 if there are none."""
    if count < 32 or count > COLUMNS or count & (count - 1):
        return np.int64(-1)
    for first in range(0, COLUMNS, count):
        free = True
        for column in range(first, first + count):
            free &= get(table_of(x, block), BLOCKS + column) != get(block, s.B_GID) + 1
            free &= get(table_of(x, other), BLOCKS + column) != get(other, s.B_GID) + 1
        if free:
            return np.int64(first)
    return np.int64(-1)


@jit
def hand_out(x, warp, thread, block, line, pc, first, count):
    """Give columns to a block, and write their address to shared memory for a tcgen05.alloc. first: -1 for none."""
    if first < 0:
        wrong(x, thread, pc, NO_COLUMNS)
        return
    table = table_of(x, block)
    for column in range(first, first + count):
        put(table, BLOCKS + column, get(block, s.B_GID) + 1)
        put(table, OWNERS + 3 * column, 0)
        for part in range(4):
            put(table, STORED + 4 * column + part, 0)
    address = np.int64(register(x, warp, get(line, isa.A), 0)) + get(line, isa.IMM)
    host, place, _ = locate(x, warp, thread, block, 0, isa.SHARED, address, 4, True, pc)
    if host == FAULT:
        return
    if get(x, s.CHECK):
        check(x, warp, thread, block, isa.SHARED, place, 4, 0, True, False, pc)
        location, old = location_of(x, block, isa.SHARED, place), load32(host)
        wrote(x, thread, block, warp_slot(x, warp), location, 4, old, np.uint64(first), isa.WEAK, 0, False, ALONE)
    store32(host, np.uint64(first))
    put(x, s.PROGRESS, get(x, s.STEP))


@jit
def allocate_pair(x, warp, thread, block, line, pc, mask):
    """Run tcgen05.alloc.cta_group::2: wait for the pair's other block, or allocate in both and let its warp go on."""
    other = partner(block)
    if other == 0:
        wrong(x, thread, pc, NO_PAIR)
        return
    if get(block, s.B_ALLOCATES):
        wrong(x, thread, pc, OTHER_COUNT)
        return
    if get(other, s.B_ALLOCATES) == 0:
        put(block, s.B_ALLOCATES, get(warp, s.W_SLOT) + 1)
        for lane in range(32):
            if (mask >> lane) & 1:
                put(thread_of(x, warp, lane), s.T_WAIT, s.AT_PAIR)
                put(thread_of(x, warp, lane), s.T_RESULT, pc)
        put(warp, s.W_WAIT, get(warp, s.W_WAIT) | mask)
        put(warp, s.W_DIVERGED, 1)
        return
    peer = get(x, s.WARPS) + (get(other, s.B_ALLOCATES) - 1) * s.W_FIELDS * 8
    put(other, s.B_ALLOCATES, 0)
    its_thread = thread_of(x, peer, 0)
    its_pc = get(its_thread, s.T_RESULT)
    its_line = get(x, s.CODE) + its_pc * isa.COLUMNS * 8
    count = columns_wanted(x, warp, line)
    if columns_wanted(x, peer, its_line) == count:
        first = free_columns(x, block, other, count)
        hand_out(x, warp, thread, block, line, pc, first, count)
        hand_out(x, peer, its_thread, other, its_line, its_pc, first, count)
    else:
        wrong(x, thread, pc, OTHER_COUNT)
    for lane in range(32):
        if (get(peer, s.W_WAIT) >> lane) & 1 and get(thread_of(x, peer, lane), s.T_WAIT) == s.AT_PAIR:
            put(thread_of(x, peer, lane), s.T_WAIT, s.RUNS)
            put(peer, s.W_WAIT, get(peer, s.W_WAIT) & ~(1 << lane))
    put(peer, s.W_DIVERGED, 1)
    wake(x, peer)
    put(x, s.PROGRESS, get(x, s.STEP))


@jit
def place_of(shape, lane, k, split):
    """Where register k of a lane lies in tensor memory: (lane, column), counted from the instruction's address."""
    if shape == LANE_32:
        return lane, k
    if shape == PARTS_64:
        return (lane >> 2) + 8 * (lane & 1), ((lane >> 1) & 1) + 2 * k
    if shape == PARTS_128:
        return (lane >> 2) + 8 * (k & 1), (lane & 3) + 4 * (k >> 1)
    if shape == PARTS_256:
        return (lane >> 2) + 8 * ((k >> 1) & 1), (k & 1) + 2 * (lane & 3) + 8 * (k >> 2)
    return lane & 15, k + (split if lane > 15 else 0)


@jit
def move(x, warp, block, table, line, op, pc):
    """Run tcgen05.ld or tcgen05.st. TYPE: the shape. TYPE2: the columns between the halves of .16x32bx2."""
    shape, split, count, packs = (
        get(line, isa.TYPE),
        get(line, isa.TYPE2),
        get(line, isa.COUNT),
        get(line, isa.FLAGS) & PACKS,
    )
    thread = thread_of(x, warp, 31)
    address = np.int64(register(x, warp, get(line, isa.A), 0)) + get(line, isa.IMM)
    first_lane, first = (address >> 16) & 0xFFFF, address & 0xFFFF
    last = np.int64(0)
    for lane in range(32):
        last = max(last, place_of(shape, lane, (2 * count if packs else count) - 1, split)[1])
    if first_lane >> 5 != get(warp, s.W_INDEX) & 3:
        wrong(x, thread, pc, OTHER_LANES)
        return
    part = first_lane >> 5 if op == isa.TCLOAD else np.int64(4)  # 4 is no part: stores need not wait for stores
    if not usable(x, thread, block, table, first, last + 1, 0, part, pc):
        return
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    if get(x, s.CHECK) and op == isa.TCLOAD:
        load_registers(x, warp, items, count)
    elif get(x, s.CHECK):
        for column in range(first, first + last + 1):
            put(table, STORED + 4 * column + (first_lane >> 5), get(x, s.STEP) << 20 | (get(warp, s.W_SLOT) + 1))
    for lane in range(32):
        for k in range(count):
            row, column = place_of(shape, lane, 2 * k if packs else k, split)
            cell = table + ((first_lane + row) * COLUMNS + first + column) * 4
            if op == isa.TCLOAD:
                value = load32(cell)
                if packs:
                    value = (value & np.uint64(0xFFFF)) | (load32(cell + 4) & np.uint64(0xFFFF)) << np.uint64(16)
                set_register(x, warp, get(items, k), lane, value)
            else:
                value = register(x, warp, get(items, k), lane) & np.uint64(FULL)
                if packs:
                    store32(cell, value & np.uint64(0xFFFF))
                    store32(cell + 4, value >> np.uint64(16))
                else:
                    store32(cell, value)
    put(x, s.PROGRESS, get(x, s.STEP))
