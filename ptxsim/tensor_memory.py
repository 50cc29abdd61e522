"""tcgen05: tensor memory of a block, its loads and stores, and products that one thread issues.

A block has 128 lanes of 512 columns of 32 bits. A product is computed when it is issued; it counts as pending until an
mbarrier has counted the commit of its thread. For the checker an agent (`agents.py`) reads the operands in shared
memory, and every column remembers the product that wrote it last. A thread may touch the column when the thread has
learnt the clock of this product's agent. Blocks of one SM do not share columns here. Source: the PTX ISA, "Tensorcore
5th Generation Family Instructions".
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa, matrix
from . import state as s
from .access import FAULT, check, locate, location_of, register, set_register, thread_of, warp_slot
from .agents import OF_TENSOR, agent_number, as_agent
from .bits import f32_of, fma32, get, load32, put, store32, u32_of, u64_of
from .clocks import SUB_BITS, lookup, publish
from .cluster import LOW, holder
from .integer import clamp, spread
from .mbarrier import check_expects, live, pending, row_of
from .rounding import HALF, exact, widen
from .tensor_fence import AFTER, BEFORE, knows_product, unfenced
from .units import unit
from .warpgroup import load_registers, operand
from .watch import ALONE, report, wrote

FULL = 0xFFFFFFFF
LANES, COLUMNS = 128, 512
OWNERS = LANES * COLUMNS // 2  # the first word of the owners of columns: (agent, clock, instruction) of each
BLOCKS = OWNERS + 3 * COLUMNS  # the first word of the columns' blocks: 1 + the number of a column's block, or 0
STORED = BLOCKS + COLUMNS  # the first word of the last stores: moment and warp of each, for four parts of a column
WORDS = STORED + 4 * COLUMNS
LANE_32, PARTS_64, PARTS_128, PARTS_256, TWICE_32 = range(5)  # shapes of loads and stores
FROM_TENSOR, PACKS = 1, 2  # bits in FLAGS: the first of products, the second of loads and stores
F16_KIND, TF32_KIND, F8_KIND, I8_KIND = range(4)  # kinds of products
# details of MISUSE and MISSING_WAIT reports, after those of tensor.py
NO_COLUMNS, NOT_ALLOCATED, OTHER_LANES, BAD_PRODUCT = 16, 17, 18, 19
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
    if op == isa.TCALLOC:
        allocate(x, warp, thread, block, table, line, pc)
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
def allocate(x, warp, thread, block, table, line, pc):
    """Run tcgen05.alloc: find free columns, and write their address to shared memory."""
    count = np.int64(register(x, warp, get(line, isa.B), 0)) & 0xFFFF
    if count < 32 or count > COLUMNS or count & (count - 1):
        wrong(x, thread, pc, NO_COLUMNS)
        return
    mine, first = get(block, s.B_GID) + 1, np.int64(0)
    while first < COLUMNS:
        column = first
        while column < first + count and get(table, BLOCKS + column) != mine:
            column += 1
        if column == first + count:
            break
        first += count
    if first == COLUMNS:
        wrong(x, thread, pc, NO_COLUMNS)
        return
    for column in range(first, first + count):
        put(table, BLOCKS + column, mine)
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


# ---- products ----
@unit
def tensor_core(x, warp, block, line, pc, op, mask):
    """Run tcgen05.mma or tcgen05.commit for the lanes of mask."""
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        if op == isa.TCMMA:
            product(x, warp, thread, block, line, lane, pc)
            continue
        at = np.int64(register(x, warp, get(line, isa.A), lane)) + get(line, isa.IMM)
        put(thread, s.T_TENSOR, get(thread, s.T_TENSOR) + 1)
        ranks = np.int64(register(x, warp, get(line, isa.C), lane)) & 0xFFFF
        if not get(line, isa.FLAGS):
            commit(x, warp, thread, block, lane, at, pc)
        for k in range(s.MOST_CLUSTER):
            if get(line, isa.FLAGS) and (ranks >> k) & 1:
                commit(x, warp, thread, block, lane, (at & LOW) | (k + 1) << isa.RANK_SHIFT, pc)
    return 0


@unit
def commit(x, warp, thread, block, lane, at, pc):
    """Let the mbarrier at an address count a thread's products so far."""
    host, place, _ = locate(x, warp, thread, block, lane, isa.SHARED, at, 8, False, pc)
    if host != FAULT:
        owner = holder(x, block, place)
        index = live(x, thread, owner, place & LOW, pc)
        if index >= 0:
            check_expects(x, thread, row_of(x, owner, index), pc)
            pending(x, s.P_COMMIT, owner, thread, 0, 0, 0, index, get(thread, s.T_TENSOR), pc)
    return 0


@jit
def kinds_of(kind, a, b, result):
    """The kinds of elements (matrix.py) of A and B, -1 for types that the machine lacks, as a pair."""
    if kind == F16_KIND and a == b and a <= 1 and result <= 1:
        return (matrix.F16 if a == 0 else matrix.BF16), (matrix.F16 if b == 0 else matrix.BF16)
    if kind == TF32_KIND and a == 2 and b == 2 and result == 1:
        return matrix.TF32, matrix.TF32
    if kind == F8_KIND and a <= 1 and b <= 1 and result <= 1:
        return (matrix.E4M3 if a == 0 else matrix.E5M2), (matrix.E4M3 if b == 0 else matrix.E5M2)
    if kind == I8_KIND and a <= 1 and b <= 1 and result == 2:
        return matrix.INT8, matrix.INT8
    return -1, -1


@jit
def shared_descriptor(descriptor):
    """A tcgen05 descriptor in the form of wgmma. -1: the machine lacks the swizzle, or there is a base offset."""
    mode = (descriptor >> 61) & 7
    if mode & 1 or (descriptor >> 49) & 15:
        return np.int64(-1)
    return (descriptor & ((1 << 46) - 1)) | (mode >> 1) << 62


@jit
def lane_of(rows, row):
    """The lane of tensor memory that holds a row of A or D: with 64 rows, each warp has 16."""
    return row if rows == LANES else (row >> 4) * 32 + (row & 15)


@jit
def product(x, warp, thread, block, line, lane, pc):
    """Run tcgen05.mma of one lane. TYPE2: the kind. LIST: the predicate, then masks of lanes not written."""
    kind, flags = get(line, isa.TYPE2), get(line, isa.FLAGS)
    shape = np.int64(register(x, warp, get(line, isa.E), lane))
    kind_a, kind_b = kinds_of(kind, (shape >> 7) & 7, (shape >> 10) & 7, (shape >> 4) & 3)
    n, rows = ((shape >> 17) & 63) << 3, ((shape >> 24) & 31) << 4
    if kind_a < 0 or shape & 7 or (rows != 64 and rows != LANES) or n < 8 or n > 256 or (rows == LANES and n & 15):
        wrong(x, thread, pc, BAD_PRODUCT)
        return
    desc_a, desc_b = np.int64(0), shared_descriptor(np.int64(register(x, warp, get(line, isa.C), lane)))
    if not flags & FROM_TENSOR:
        desc_a = shared_descriptor(np.int64(register(x, warp, get(line, isa.B), lane)))
    if desc_a == -1 or desc_b == -1:
        wrong(x, thread, pc, BAD_PRODUCT)
        return
    table = table_of(x, block)
    to = np.int64(register(x, warp, get(line, isa.A), lane)) + get(line, isa.IMM)
    column, base = to & 0xFFFF, (to >> 16) & 127
    gid = get(thread, s.T_GID)
    number, clock = agent_number(OF_TENSOR, gid), get(thread, s.T_TENSOR) + 1
    if not usable(x, thread, block, table, column, n, number, EVERY_PART, pc):
        return
    if get(x, s.CHECK):
        as_agent(x, number, clock, publish(x, thread, block, warp_slot(x, warp)))
        for k in range(column, column + n):
            put(table, OWNERS + 3 * k, number)
            put(table, OWNERS + 3 * k + 1, clock)
            put(table, OWNERS + 3 * k + 2, pc)
    signed_a, signed_b = (shape >> 7) & 1, (shape >> 10) & 1
    depth = 256 // matrix.bits_of(kind_a)
    a, b = np.empty((32, 128), np.float32), np.empty((32, 256), np.float32)
    if flags & FROM_TENSOR:
        at = np.int64(register(x, warp, get(line, isa.B), lane)) + get(line, isa.TYPE)
        if not usable(x, thread, block, table, at & 0xFFFF, 8, number, EVERY_PART, pc):
            return
        held_operand(table, at, kind_a, signed_a == 0, rows, depth, a)
    else:
        operand(x, warp, thread, block, pc, desc_a, kind_a, signed_a == 0, (shape >> 15) & 1 != 0, 0, rows, a)
    operand(x, warp, thread, block, pc, desc_b, kind_b, signed_b == 0, (shape >> 16) & 1 != 0, 0, n, b)
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    adds = register(x, warp, get(items, 0), lane) & np.uint64(1) != np.uint64(0)
    sign = np.float32(-1 if ((shape >> 13) ^ (shape >> 14)) & 1 else 1)
    for row in range(rows):
        target = (lane_of(rows, row) + base) & 127
        if get(line, isa.COUNT) > 1:
            word = np.int64(register(x, warp, get(items, 1 + (target >> 5)), lane))
            if (word >> (target & 31)) & 1:
                continue
        cells = table + (target * COLUMNS + column) * 4
        if kind == I8_KIND:
            row_of_integers(cells, a, b, row, n, adds, shape & 8)
        else:
            row_of_floats(x, cells, a, b, row, n, depth, adds, sign, (shape >> 4) & 3 == 0)
    put(x, s.PROGRESS, get(x, s.STEP))


@jit
def held_operand(table, at, kind, unsigned, rows, depth, out):
    """Read A from tensor memory into out[k, row]: several elements lie in a column."""
    bits = matrix.bits_of(kind)
    per = 32 // bits
    for row in range(rows):
        lane = (lane_of(rows, row) + ((at >> 16) & 127)) & 127
        for k in range(depth):
            raw = np.int64(load32(table + (lane * COLUMNS + (at & 0xFFFF) + k // per) * 4))
            out[k, row] = np.float32(matrix.element(raw, k % per, kind, unsigned))


@jit
def row_of_floats(x, cells, a, b, row, n, depth, adds, sign, half):
    """One row of D in float32; with `half` it is read from and rounded to float16."""
    total = np.zeros(256, np.float32)
    if adds:
        for column in range(n):
            raw = np.int64(load32(cells + 4 * column))
            total[column] = np.float32(widen(raw & 0xFFFF, HALF)) if half else f32_of(np.uint32(raw))
    for k in range(depth):
        factor = a[k, row] * sign
        for column in range(n):
            total[column] = fma32(factor, b[k, column], total[column])
    for column in range(n):
        value = total[column]
        raw = np.int64(0x7FFFFFFF) if value != value else np.int64(u32_of(value))
        if half:
            raw = np.int64(exact(x, isa.FABS, u64_of(np.float64(value)), 0, 0, HALF, isa.RN))
        store32(cells + 4 * column, np.uint64(raw))


@jit
def row_of_integers(cells, a, b, row, n, adds, saturates):
    """One row of D in int32. float32 holds each product exactly."""
    for column in range(n):
        total = spread(np.int64(load32(cells + 4 * column)), 4) if adds else np.int64(0)
        for k in range(32):
            total += np.int64(a[k, row] * b[k, column])
        if saturates:
            total = clamp(total, np.int64(isa.S32))
        store32(cells + 4 * column, np.uint64(total & FULL))
