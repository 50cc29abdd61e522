"""The factors of tcgen05.mma with .block_scale: D = (A times its scale factors) (B times its scale factors) + D.

A row of A, or a column of B, has a factor for each block of 16 or 32 elements. The factors lie in tensor memory: those
of row r in lane r % 32 of column r // 32, next to each other from the byte that the instruction descriptor names. All
four parts of 32 lanes must hold the same factors. A product and its two factors are multiplied exactly, and each sum is
rounded once to float32. With .cta_group::2 both blocks hold the factors of all of B. Sources: the PTX ISA, "Block
Scaling"; for the column of a row CUTLASS, tmem_sf_frg of mma_traits_sm100.hpp.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from .bits import f32_of, load32, store32, u32_of
from .matrix import E4M3, E5M2
from .small_floats import E2M1, E2M3, E3M2, PACKED_E2M1, scale_value
from .tensor_memory import BAD_SCALES, COLUMNS, COPIES_DIFFER, EVERY_PART, LANES, table_of, usable, wrong

MX_KIND, MX4_KIND, NV4_KIND = 4, 5, 6  # kinds of products, after those of tensor_product.py
FACTORS_SHIFT = 4  # place in FLAGS of the factors of a row: 1, 2 or 4
BY_EXPONENT = 1 << 23  # bit of the instruction descriptor: factors are of UE8M0, not of UE4M3
# bits of the descriptor that must be 0, those for sparse A and for a depth of 96 included; bit 12 only from MX4_KIND on
RESERVED = 0x8700104F
TURNED_A, TURNED_B = 1 << 15, 1 << 16


@jit
def float_kind(code, turned):
    """The kind of elements (matrix.py) of a code in an instruction descriptor; -1 if there is none.

    turned: whether the operand is transposed, which only elements of 8 bits can be.
    """
    if code == 0 or code == 1:
        return E4M3 if code == 0 else E5M2
    if turned or code == 2 or code > 5:
        return -1
    return E2M3 if code == 3 else (E3M2 if code == 4 else E2M1)


@jit
def scaled_kinds(kind, shape, each):
    """The kinds of elements of A and B, as a pair; -1 for what the instruction, or the machine, lacks.

    shape: the instruction descriptor. each: the factors of a row.
    """
    if kind == MX_KIND:
        if shape & RESERVED & ~0x1000 or not shape & BY_EXPONENT:
            return -1, -1
        return float_kind((shape >> 7) & 7, shape & TURNED_A), float_kind((shape >> 10) & 7, shape & TURNED_B)
    if shape & (RESERVED | TURNED_A | TURNED_B) or (shape >> 7) & 7 != 1 or (shape >> 10) & 3 != 1:
        return -1, -1
    if not shape & BY_EXPONENT and (kind == MX4_KIND or each != 4):
        return -1, -1
    return PACKED_E2M1, PACKED_E2M1


@jit
def scaled_fits(rows, n, sides):
    """Whether the machine has a scaled product of so many rows and columns. It lacks the one of 128 rows in a pair."""
    return rows == LANES * sides and 8 * sides <= n <= 256 and n % (8 * sides) == 0


@jit
def take_factors(x, thread, block, at, first, each, count, exponents, used, n, number, pc, out):
    """Read the factors of `count` rows of A, or columns of B, into out[k, row]. Returns whether this was possible.

    at: their address in the block's tensor memory. first: the byte of a row's first factor. used, n: the first column
    of D and the number of its columns. number: the agent that reads.
    """
    table, column, columns = table_of(x, block), at & 0xFFFF, (count + 31) >> 5
    meets_d = used < column + columns and column < used + n
    if (at >> 16) & 127 or first % each or first + each > 4 or meets_d:
        wrong(x, thread, pc, BAD_SCALES)
        return False
    if not usable(x, thread, block, table, column, columns, number, EVERY_PART, pc):
        return False
    for row in range(count):
        cell = table + ((row & 31) * COLUMNS + column + (row >> 5)) * 4
        word = np.int64(load32(cell)) >> (8 * first)
        for copy in range(1, 4):
            other = np.int64(load32(cell + copy * 32 * COLUMNS * 4)) >> (8 * first)
            if (word ^ other) & ((1 << 8 * each) - 1):
                wrong(x, thread, pc, COPIES_DIFFER)
                return False
        for k in range(each):
            byte = (word >> (8 * k)) & 255
            if not exponents and byte > 127:
                wrong(x, thread, pc, BAD_SCALES)
                return False
            out[k, row] = scale_value(byte, exponents)
    return True


@jit
def row_of_scaled(cells, a, b, row, n, depth, each, adds, sign, factors_a, factors_b):
    """A row of D, in float32.

    The product of two elements and two factors has at most 12 bits, and a sum at most 24. So float64 is wide enough:
    its rounding of a sum, followed by that to float32, gives the same as one rounding.
    """
    total = np.zeros(256, np.float32)
    if adds:
        for column in range(n):
            total[column] = f32_of(np.uint32(load32(cells + 4 * column)))
    for k in range(depth):
        block = k * each // depth
        factor = np.float64(a[k, row]) * factors_a[block, row] * sign
        for column in range(n):
            product = factor * (np.float64(b[k, column]) * factors_b[block, column])
            total[column] = np.float32(np.float64(total[column]) + product)
    for column in range(n):
        value = total[column]
        store32(cells + 4 * column, np.uint64(0x7FFFFFFF) if value != value else np.uint64(u32_of(value)))
