"""mma.sync, with exact products and with sums in the accumulator's type.

For each element of D, the products are added to the element of C one by one, in the order of k. Tensor cores add
several products at once and truncate low bits, so the last bits of a GPU's results differ.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .bits import f32_of, f64_of, fma32, fma64, get, put, u32_of, u64_of
from .convert import quarter_value
from .integer import clamp, spread
from .matrix_halves import multiply_halves
from .rounding import BFLOAT, HALF, exact, widen
from .small_floats import E2M3, PACKED_E2M1, code_in, small_value
from .units import unit

TF32, F16, BF16, INT8, F64, E4M3, E5M2, INT4, BIT = 0, 2, 4, 6, 9, 10, 11, 12, 13  # kinds of elements
BIT_XOR = isa.FINITE  # flag of an mma of single bits: they are combined by xor, not by and


@jit
def bits_of(kind):
    """The number of bits of an element."""
    if kind == TF32:
        return 32
    if kind in (F16, BF16):
        return 16
    if kind == F64:
        return 64
    if kind in (INT4, PACKED_E2M1):
        return 4
    return 1 if kind == BIT else 8


@jit
def a_place(m, k, bits, row, column):
    """Where A[row, column] lies: (lane, register, element in the register).

    The next register holds the rows 8 below, or if there are none, the next columns.
    """
    per = max(32 // bits, 1)
    width = 4 * per  # columns that a register covers
    lane = (row & 7) * 4 + (column % width) // per
    which = (row >> 3) + (2 if m == 16 else 1) * (column // width)
    return lane, which, column % per


@jit
def b_place(bits, row, column):
    """Where B[row, column] lies: (lane, register, element in the register)."""
    per = max(32 // bits, 1)
    width = 4 * per
    return column * 4 + (row % width) // per, row // width, row % per


@unit
def multiply(x, warp, line):
    """Run mma.sync for a whole warp. IMM has 8 bits each for the kinds of A and B and the rows, 16 for the depth."""
    packed, half, flags = get(line, isa.IMM), get(line, isa.TYPE), get(line, isa.FLAGS)
    kind, kind_b, m, depth, n = packed & 255, (packed >> 8) & 255, (packed >> 16) & 255, packed >> 24, 8
    bits = bits_of(kind)
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    each = 32 * max(bits, 32)  # bits that a register of all lanes holds
    count_c = m * n // 32
    count_d = 2 if half & 2 else count_c
    at_a, at_b = count_d, count_d + m * depth * bits // each
    at_c = at_b + depth * n * bits // each
    regs = get(warp, s.W_REGS)
    if kind in (F16, BF16) and half == 0:
        multiply_halves(x, regs, items, depth, kind == BF16)
        return 0
    result = np.empty((16, 8), np.uint64)
    a = np.empty((16, depth), np.float64)
    b = np.empty((depth, 8), np.float64)
    for row in range(m):
        for column in range(depth):
            lane, which, part = a_place(m, depth, bits, row, column)
            a[row, column] = element(
                np.int64(get(regs, get(items, at_a + which) * 32 + lane)), part, kind, flags & isa.HIGH
            )
    for row in range(depth):
        for column in range(n):
            lane, which, part = b_place(bits, row, column)
            b[row, column] = element(
                np.int64(get(regs, get(items, at_b + which) * 32 + lane)), part, kind_b, flags & isa.WIDE
            )
    for row in range(m):
        for column in range(n):
            lane = (row & 7) * 4 + column // 2
            which = (row >> 3) * 2 + (column & 1)
            if half & 1:
                raw = get(regs, get(items, at_c + (which >> 1)) * 32 + lane) >> (16 * (which & 1)) & 0xFFFF
            else:
                raw = get(regs, get(items, at_c + which) * 32 + lane)
            result[row, column] = chain(x, a, b, row, column, depth, kind, half, flags, raw)
    for row in range(m):
        for column in range(n):
            lane = (row & 7) * 4 + column // 2
            which = (row >> 3) * 2 + (column & 1)
            if half & 2:
                other = np.int64(result[row, column ^ 1])
                mine = np.int64(result[row, column])
                pair = mine | other << 16 if which & 1 == 0 else other | mine << 16
                put(regs, get(items, which >> 1) * 32 + lane, pair)
            else:
                put(regs, get(items, which) * 32 + lane, np.int64(result[row, column]))
    return 0


@jit
def element(raw, part, kind, unsigned):
    """An element of A or B as float64, which holds every integer and float of the kinds exactly."""
    if kind == TF32:
        return np.float64(f32_of(np.uint32(raw & 0xFFFFE000)))  # tf32 has 10 bits after the point
    if kind == F16:
        return widen((raw >> (16 * part)) & 0xFFFF, HALF)
    if kind == BF16:
        return widen((raw >> (16 * part)) & 0xFFFF, BFLOAT)
    if kind == F64:
        return f64_of(np.uint64(raw))
    if kind == BIT:
        return np.float64((raw >> part) & 1)
    if kind == INT4:
        four = (raw >> (4 * part)) & 15
        return np.float64(four if unsigned or four < 8 else four - 16)
    if kind == PACKED_E2M1:
        return small_value((raw >> (4 * part)) & 15, kind)
    byte = (raw >> (8 * part)) & 0xFF
    if kind >= E2M3:
        return small_value(code_in(byte, kind), kind)
    if kind == INT8:
        return np.float64(byte if unsigned else spread(byte, 1))
    return quarter_value(byte, kind == E5M2)


@jit
def chain(x, a, b, row, column, depth, kind, half, flags, raw):
    """D[row, column]: the element of C, to which the products are added one by one."""
    if kind == F64:
        total = f64_of(np.uint64(raw))
        for k in range(depth):
            total = fma64(a[row, k], b[k, column], total)
        return u64_of(total)
    if kind in (INT8, INT4, BIT):
        count = spread(raw, 4)
        for k in range(depth):
            both = np.int64(a[row, k] * b[k, column])
            if flags & BIT_XOR:
                both = np.int64(a[row, k] + b[k, column]) - 2 * both
            count += both
        if flags & isa.SAT:
            count = clamp(count, np.int64(isa.S32))
        return np.uint64(count & 0xFFFFFFFF)
    acc = np.float32(widen(raw, HALF)) if half & 1 else f32_of(np.uint32(raw & 0xFFFFFFFF))
    for k in range(depth):
        acc = fma32(np.float32(a[row, k]), np.float32(b[k, column]), acc)
    if half & 2:
        return np.uint64(exact(x, isa.FABS, u64_of(np.float64(acc)), 0, 0, HALF, isa.RN))
    return np.uint64(0x7FFFFFFF) if acc != acc else np.uint64(u32_of(acc))
