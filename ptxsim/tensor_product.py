"""tcgen05.mma, cp and commit: work on tensor memory that one thread issues.

A product is computed when it is issued; it counts as pending until an mbarrier has counted the commit of its thread.
For the checker an agent (`agents.py`) reads the operands in shared memory. With .cta_group::2 a pair of blocks, whose
ranks differ in the last bit, share a product. Each has half of A's rows and half of B's columns in its shared memory,
at the places that the issuing thread names, and half of D's rows in its tensor memory. Source: the PTX ISA, "Tensorcore
5th Generation Family Instructions".
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa, matrix
from . import state as s
from .access import FAULT, locate, register, thread_of, warp_slot
from .agents import OF_TENSOR, agent_number, as_agent
from .bits import f32_of, fma32, get, load32, put, store32, u32_of, u64_of
from .clocks import publish
from .cluster import LOW, holder, partner
from .integer import clamp, spread
from .mbarrier import check_expects, live, pending, row_of
from .rounding import HALF, exact, widen
from .scaled_product import (
    BY_EXPONENT,
    FACTORS_SHIFT,
    MX_KIND,
    float_kind,
    row_of_scaled,
    scaled_fits,
    scaled_kinds,
    take_factors,
)
from .small_floats import E2M1, E2M3, PART, byte_of, code_at
from .tensor_memory import BAD_PRODUCT, COLUMNS, EVERY_PART, LANES, NO_PAIR, OWNERS, PAIR, table_of, usable, wrong
from .units import unit
from .warpgroup import operand, part_at, read_part

FULL = 0xFFFFFFFF
FROM_TENSOR, MULTICAST = 1, 1  # bits in FLAGS: of products and of commits
WIDENS_4, WIDENS_6 = 8, 16  # bits in FLAGS of copies: elements of 4 or 6 bits get a byte each
F16_KIND, TF32_KIND, F8_KIND, I8_KIND = range(4)  # kinds of products
WHOLE, EVERY_32, HALVES, QUARTERS, FOUR = range(5)  # which lanes a copy fills
ROWS = (128, 4, 64, 64, 32)  # the rows of each of these copies


@unit
def tensor_core(x, warp, block, line, pc, op, mask):
    """Run tcgen05.mma, tcgen05.cp or tcgen05.commit for the lanes of mask."""
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        first, sides = block, 1
        if get(line, isa.FLAGS) & PAIR:
            other, sides = partner(block), 2
            if other == 0:
                wrong(x, thread, pc, NO_PAIR)
                continue
            first = other if get(block, s.B_RANK) & 1 else block
        if op == isa.TCMMA:
            product(x, warp, thread, block, first, sides, line, lane, pc)
        elif op == isa.TCCOPY:
            for side in range(sides):
                copy(x, warp, thread, block, first if side == 0 else partner(first), line, lane, pc)
        else:
            commits(x, warp, thread, block, line, lane, pc)
    return 0


# ---- commits ----
@jit
def commits(x, warp, thread, block, line, lane, pc):
    """Run tcgen05.commit of one lane, which notifies one mbarrier, or one in each block of a mask."""
    at = np.int64(register(x, warp, get(line, isa.A), lane)) + get(line, isa.IMM)
    put(thread, s.T_TENSOR, get(thread, s.T_TENSOR) + 1)
    ranks = np.int64(register(x, warp, get(line, isa.C), lane)) & 0xFFFF
    if not get(line, isa.FLAGS) & MULTICAST:
        commit(x, warp, thread, block, lane, at, pc)
    for k in range(s.MOST_CLUSTER):
        if get(line, isa.FLAGS) & MULTICAST and (ranks >> k) & 1:
            commit(x, warp, thread, block, lane, (at & LOW) | (k + isa.FIRST_RANK) << isa.RANK_SHIFT, pc)


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


# ---- products ----
@jit
def kinds_of(kind, shape, each):
    """The kinds of elements (matrix.py) of A and B, as a pair; -1 for what the machine lacks.

    shape: the instruction descriptor. each: how many scale factors a row has; 0 without .block_scale.
    """
    if kind >= MX_KIND:
        return scaled_kinds(kind, shape, each)
    a, b, result = (shape >> 7) & 7, (shape >> 10) & 7, (shape >> 4) & 3
    if shape & 7:
        return -1, -1
    if kind == F16_KIND and a == b and a <= 1 and result <= 1:
        return (matrix.F16 if a == 0 else matrix.BF16), (matrix.F16 if b == 0 else matrix.BF16)
    if kind == TF32_KIND and a == 2 and b == 2 and result == 1:
        return matrix.TF32, matrix.TF32
    if kind == F8_KIND and result <= 1:
        return float_kind(a, (shape >> 15) & 1), float_kind(b, (shape >> 16) & 1)
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
def fits(kind, rows, n, sides):
    """Whether tcgen05.mma has a product of so many rows and columns."""
    if sides == 2:
        step = 16 if kind in (F16_KIND, TF32_KIND) else 32
        return (rows == LANES or rows == 2 * LANES) and step <= n <= 256 and n % step == 0
    return (rows == 64 or rows == LANES) and 8 <= n <= 256 and (rows == 64 or n & 15 == 0)


@jit
def far(block, owner):
    """What is added to an address in a block's own shared memory, so that it means the same place of another block."""
    return np.int64(0) if owner == block else (get(owner, s.B_RANK) + isa.FIRST_RANK) << isa.RANK_SHIFT


@jit
def take_columns(x, thread, owner, column, count, clock, pc):
    """Let the product or copy of a thread's agent write columns of a block. Returns whether it may."""
    table, number = table_of(x, owner), agent_number(OF_TENSOR, get(thread, s.T_GID))
    if not usable(x, thread, owner, table, column, count, number, EVERY_PART, pc):
        return False
    if get(x, s.CHECK):
        for k in range(column, column + count):
            put(table, OWNERS + 3 * k, number)
            put(table, OWNERS + 3 * k + 1, clock)
            put(table, OWNERS + 3 * k + 2, pc)
    return True


@jit
def product(x, warp, thread, block, first, sides, line, lane, pc):
    """Run tcgen05.mma of one lane, in one block or in the two of a pair, of which `first` has the even rank.

    TYPE2: the kind. LIST: the predicate, then the addresses of the scale factors of A and B, or masks of lanes not
    written. A block of a pair has half of D's rows: 128 in as many lanes, or 64, whose left halves are in lanes 0 to 63
    and right halves in the same columns of the others.
    """
    kind, flags = get(line, isa.TYPE2), get(line, isa.FLAGS)
    shape = np.int64(register(x, warp, get(line, isa.E), lane))
    scaled, each = kind >= MX_KIND, flags >> FACTORS_SHIFT
    kind_a, kind_b = kinds_of(kind, shape, each)
    n, rows = ((shape >> 17) & 63) << 3, ((shape >> 24) & 31) << 4
    share, part = rows // sides, n // sides
    folded = sides == 2 and share == 64
    turned_a, turned_b = (shape >> 15) & 1 != 0, (shape >> 16) & 1 != 0
    whole = scaled_fits(rows, n, sides) if scaled else fits(kind, rows, n, sides)
    if min(kind_a, kind_b) < 0 or not whole or (folded and flags & FROM_TENSOR):
        wrong(x, thread, pc, BAD_PRODUCT)
        return
    if turned_b and part % (128 // matrix.bits_of(kind_b)):
        wrong(x, thread, pc, BAD_PRODUCT)
        return
    desc_a, desc_b = np.int64(0), shared_descriptor(np.int64(register(x, warp, get(line, isa.C), lane)))
    if not flags & FROM_TENSOR:
        desc_a = shared_descriptor(np.int64(register(x, warp, get(line, isa.B), lane)))
    if desc_a == -1 or desc_b == -1:
        wrong(x, thread, pc, BAD_PRODUCT)
        return
    to = np.int64(register(x, warp, get(line, isa.A), lane)) + get(line, isa.IMM)
    column, base = to & 0xFFFF, (to >> 16) & 127
    clock = get(thread, s.T_TENSOR) + 1
    for side in range(sides):
        owner = first if side == 0 else partner(first)
        if not take_columns(x, thread, owner, column, part if folded else n, clock, pc):
            return
    number = agent_number(OF_TENSOR, get(thread, s.T_GID))
    if get(x, s.CHECK):
        as_agent(x, number, clock, publish(x, thread, block, warp_slot(x, warp)))
    free_a, free_b = (shape >> 7) & 1 == 0, (shape >> 10) & 1 == 0  # whether bytes have no sign
    depth = 256 // matrix.bits_of(kind_a)
    a, b = np.empty((64, 128), np.float32), np.empty((64, 256), np.float32)
    factors_a, factors_b = np.empty((4, 128), np.float64), np.empty((4, 256), np.float64)
    for side in range(sides):
        high = far(block, first if side == 0 else partner(first))
        operand(x, warp, thread, block, pc, desc_b, kind_b, free_b, turned_b, 0, part, high, side * part, b)
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    adds = register(x, warp, get(items, 0), lane) & np.uint64(1) != np.uint64(0)
    sign = np.float32(-1 if ((shape >> 13) ^ (shape >> 14)) & 1 else 1)
    for side in range(sides):
        owner = first if side == 0 else partner(first)
        table = table_of(x, owner)
        if flags & FROM_TENSOR:
            at = np.int64(register(x, warp, get(line, isa.B), lane)) + get(line, isa.TYPE)
            if not usable(x, thread, owner, table, at & 0xFFFF, 8, number, EVERY_PART, pc):
                return
            held_operand(table, at, kind_a, free_a, share, depth, a)
        else:
            operand(x, warp, thread, block, pc, desc_a, kind_a, free_a, turned_a, 0, share, far(block, owner), 0, a)
        if scaled:
            at_a = np.int64(register(x, warp, get(items, 1), lane))
            at_b = np.int64(register(x, warp, get(items, 2), lane))
            grows, id_a, id_b = shape & BY_EXPONENT, (shape >> 29) & 3, (shape >> 4) & 3
            if not take_factors(
                x, thread, owner, at_a, id_a, each, share, grows, column, n, number, pc, factors_a
            ) or not take_factors(x, thread, owner, at_b, id_b, each, n, grows, column, n, number, pc, factors_b):
                return
        for half in range(2 if folded else 1):
            for row in range(share):
                target = row + 64 * half if folded else (lane_of(share, row) + base) & 127
                if not scaled and get(line, isa.COUNT) > 1:
                    word = np.int64(register(x, warp, get(items, 1 + 4 * side + (target >> 5)), lane))
                    if (word >> (target & 31)) & 1:
                        continue
                cells = table + (target * COLUMNS + column) * 4
                begin, count = half * part, part if folded else n
                if scaled:
                    row_of_scaled(cells, a, b, row, n, depth, each, adds, sign, factors_a, factors_b)
                elif kind == I8_KIND:
                    row_of_integers(cells, a, b, row, begin, count, adds, shape & 8)
                else:
                    row_of_floats(x, cells, a, b, row, begin, count, depth, adds, sign, (shape >> 4) & 3 == 0)
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
def row_of_floats(x, cells, a, b, row, begin, n, depth, adds, sign, half):
    """n columns of a row of D from `begin` on, in float32; with `half` they are read from and rounded to float16."""
    total = np.zeros(256, np.float32)
    if adds:
        for column in range(n):
            raw = np.int64(load32(cells + 4 * column))
            total[column] = np.float32(widen(raw & 0xFFFF, HALF)) if half else f32_of(np.uint32(raw))
    for k in range(depth):
        factor = a[k, row] * sign
        for column in range(n):
            total[column] = fma32(factor, b[k, begin + column], total[column])
    for column in range(n):
        value = total[column]
        raw = np.int64(0x7FFFFFFF) if value != value else np.int64(u32_of(value))
        if half:
            raw = np.int64(exact(x, isa.FABS, u64_of(np.float64(value)), 0, 0, HALF, isa.RN))
        store32(cells + 4 * column, np.uint64(raw))


@jit
def row_of_integers(cells, a, b, row, begin, n, adds, saturates):
    """n columns of a row of D from `begin` on, in int32. float32 holds each product exactly."""
    for column in range(n):
        total = spread(np.int64(load32(cells + 4 * column)), 4) if adds else np.int64(0)
        for k in range(32):
            total += np.int64(a[k, row] * b[k, begin + column])
        if saturates:
            total = clamp(total, np.int64(isa.S32))
        store32(cells + 4 * column, np.uint64(total & FULL))


# ---- copies from shared memory ----
@jit
def copy(x, warp, thread, block, owner, line, lane, pc):
    """Run tcgen05.cp of one lane: copy from a block's shared memory to the block's tensor memory.

    TYPE: the parts of 16 bytes in a row. TYPE2: which lanes the rows fill. FLAGS: whether elements become wider.
    """
    flags = get(line, isa.FLAGS)
    kind = E2M1 if flags & WIDENS_4 else (E2M3 if flags & WIDENS_6 else 0)
    parts, lanes = get(line, isa.TYPE), get(line, isa.TYPE2)
    descriptor = shared_descriptor(np.int64(register(x, warp, get(line, isa.B), lane)))
    if descriptor == -1:
        wrong(x, thread, pc, BAD_PRODUCT)
        return
    to = np.int64(register(x, warp, get(line, isa.A), lane)) + get(line, isa.IMM)
    column, base, clock = to & 0xFFFF, (to >> 16) & 127, get(thread, s.T_TENSOR) + 1
    if not take_columns(x, thread, owner, column, 4 * parts, clock, pc):
        return
    if get(x, s.CHECK):
        number = agent_number(OF_TENSOR, get(thread, s.T_GID))
        as_agent(x, number, clock, publish(x, thread, block, warp_slot(x, warp)))
    replicas = 4 if lanes == FOUR else (2 if lanes in (HALVES, QUARTERS) else 1)
    for row in range(ROWS[lanes]):
        for part in range(parts):
            address = part_at(descriptor, False, row, part) + far(block, owner)
            host, place, _ = locate(x, warp, thread, block, 0, isa.SHARED, address, 16, False, pc)
            if host == FAULT:
                continue
            if get(x, s.CHECK):
                read_part(x, thread, block, place, kind, pc)
            for replica in range(replicas):
                target = (base + filled(lanes, row, replica)) & 127
                for k in range(4):
                    cell = table_of(x, owner) + (target * COLUMNS + column + 4 * part + k) * 4
                    store32(cell, widened(host, k, kind) if kind else load32(host + 4 * k))
    put(x, s.PROGRESS, get(x, s.STEP))


@jit
def widened(host, k, kind):
    """Word k of four: elements 4 k to 4 k + 3 of a part of 16 bytes in shared memory, each in a byte."""
    word = np.int64(0)
    for j in range(PART // 4):
        word |= byte_of(code_at(host, 4 * k + j, kind), kind) << (8 * j)
    return np.uint64(word)


@jit
def filled(lanes, row, replica):
    """The lane that a replica of a row fills. lanes: which lanes the copy fills, one of WHOLE to FOUR."""
    if lanes == EVERY_32:
        return 32 * row
    if lanes == HALVES:  # .warpx2::02_13
        return row + 64 * replica
    if lanes == QUARTERS:  # .warpx2::01_23
        return 64 * (row >> 5) + (row & 31) + 32 * replica
    return row + 32 * replica
