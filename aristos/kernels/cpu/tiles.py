"""Products of bfloat16 by AMX tiles. Operands are tiles: for each group of rows, two tiles of up to 16 rows.

Rows are cut into groups of nearly equal size, at most 32 each. A tile holds, for each block of 32 k, 16 rows of 64
bytes: STEP bytes, whole cache lines. Sums stay in tiles over KC, and wait in the L1 cache between passes. The tile unit
adds the products of a sum in its own fixed order of k, which does not depend on the rows.
"""

import numpy as np
from numba.extending import overload

from ...primitives import memory as mem
from ...primitives.compile import inlined, jit
from . import micro_kernels
from .convert import round_bfloat16
from .elements import WIDTH
from .micro_kernels import STEP, SUMS

KC = 256  # k a pass: a panel's part of 16 KiB stays in the L1 cache
AHEAD_GROUPS = 3  # with fewer groups of rows, the hardware's prefetcher does better alone
ROW = STEP // 16  # bytes of a row of a tile
NO_SHAPE = -1


def configure(shapes):
    """Load the shapes of the eight tiles from 64 bytes at the address `shapes`."""


def release():
    """Give up the tiles: an idle core need not keep them."""


def tile_sums(a, below, b, sums, steps, carry, ahead, pace, upper, lower):
    """sums[i, :32] (+)= A[i, :32 * steps] x panel for `upper` rows at `a` and `lower` rows at a + below.

    sums: address of rows of 32 sums; adds to them if `carry` is nonzero. Each block of k prefetches `pace` bytes.
    """
    right = _widened(b, STEP * steps).reshape(steps, 2, 16, 16, 2)  # block of k, half, pair, column, k
    for i in range(upper + lower):
        first = a + ROW * i if i < upper else a + below + ROW * (i - upper)
        out = mem.floats(sums + SUMS * i, WIDTH)
        total = out.copy() if carry else np.zeros(WIDTH, np.float32)
        for step in range(steps):
            left = _widened(first + STEP * step, WIDTH)
            for k in range(WIDTH):
                total += left[k] * right[step, :, k // 2, :, k % 2].reshape(WIDTH)
        out[:] = total


def _widened(addr, n):
    return (mem.bits16(addr, n).astype(np.uint32) << np.uint32(16)).view(np.float32)


_both, _upper_alone = micro_kernels.tile_kernel(2), micro_kernels.tile_kernel(1)
overload(configure)(lambda shapes: lambda shapes: micro_kernels.configure(shapes))
overload(release)(lambda: lambda: micro_kernels.release())


@overload(tile_sums)
def _tile_sums(a, below, b, sums, steps, carry, ahead, pace, upper, lower):
    def run(a, below, b, sums, steps, carry, ahead, pace, upper, lower):
        if lower > 0:
            _both(a, below, b, sums, steps, carry, ahead, pace, upper, lower)
        else:
            _upper_alone(a, below, b, sums, steps, carry, ahead, pace, upper, lower)

    return run


@jit
def shape_tiles(upper, lower, shapes):
    """Load the shapes of tiles for `upper` and `lower` rows, unless they are loaded. shapes: address of 72 bytes.

    Its last word holds what is loaded: NO_SHAPE before the first call.
    """
    wanted = 17 * upper + lower
    if mem.load(shapes + 64) == wanted:
        return
    below = max(lower, 1)  # a tile of no rows is an error of the processor
    mem.store(shapes, 1)  # palette
    mem.store(shapes + 8, 0)
    for i in range(4):  # 64 bytes a row, for eight tiles
        mem.store(shapes + 16 + 8 * i, 0x0040004000400040 if i < 2 else 0)
    rows = upper | upper << 8 | below << 16 | below << 24 | upper << 32 | below << 40 | 16 << 48 | 16 << 56
    mem.store(shapes + 48, rows)
    mem.store(shapes + 56, 0)
    mem.store(shapes + 64, wanted)
    configure(shapes)


@jit
def group_rows(m, g, groups):
    """(rows, rows of the upper tile) of group g of m rows."""
    rows = m // groups + (1 if g < m % groups else 0)
    return rows, rows if rows <= 16 else (rows + 1) // 2


@inlined
def operand_size(element, rows, columns):
    """Bytes of an operand of `rows` rows."""
    return (rows + 31) // 32 * 2 * STEP * ((columns + WIDTH - 1) // WIDTH)


@jit
def pack_operand(element, m, x, columns, a):
    """Prepare m rows of `columns` elements. x: address of an array of row addresses; a: of the operand."""
    groups, steps = (m + 31) // 32, (columns + WIDTH - 1) // WIDTH
    whole = columns // WIDTH
    i = 0
    for g in range(groups):
        rows, upper = group_rows(m, g, groups)
        for r in range(rows):
            place = a + ROW * r if r < upper else a + STEP * steps + ROW * (r - upper)
            source = mem.load(x + 8 * (i + r))
            for step in range(whole):
                mem.copy_row(place + STEP * step, source + ROW * step, ROW)
            if whole < steps:
                rest = columns - WIDTH * whole
                mem.copy_row(place + STEP * whole, source + ROW * whole, 2 * rest)
                mem.bits16(place + STEP * whole + 2 * rest, WIDTH - rest)[:] = 0
        i += rows
        a += 2 * STEP * steps


@jit
def round_operand(element, m, sums, j, columns, a, spare):
    """Round 32 sums of m rows to elements and store them as columns j.. of an operand of `columns` columns."""
    groups, steps = (m + 31) // 32, (columns + WIDTH - 1) // WIDTH
    for g in range(groups):
        rows, upper = group_rows(m, g, groups)
        place = a + STEP * (j // WIDTH)
        for r in range(rows):
            if r == upper:
                place += STEP * steps - ROW * upper
            round_bfloat16(place + ROW * r, sums, WIDTH)
            sums += SUMS
        a += 2 * STEP * steps


@jit
def panel_sums(element, m, a, depth, panel, sums, carry, ahead, spare):
    """sums[m, 32] (+)= operand x panel for k below `depth`; adds to the sums if `carry` is nonzero.

    a: address of the operand; panel: of the panel at the operand's first k; sums: of m rows of 32; ahead: address of
    the next panel, of which each group of rows prefetches its share; spare: of the shapes of tiles.
    """
    groups, steps = (m + 31) // 32, (depth + WIDTH - 1) // WIDTH
    pace = ((2 * STEP + groups - 1) // groups + 63) // 64 * 64
    if groups < AHEAD_GROUPS:
        ahead, pace = panel, 0
    for k0 in range(0, depth, KC):
        here = k0 // WIDTH
        count = min(KC // WIDTH, steps - here)
        left, out = a + STEP * here, sums
        for g in range(groups):
            rows, upper = group_rows(m, g, groups)
            shape_tiles(upper, rows - upper, spare)
            right = panel + 2 * STEP * here
            tile_sums(left, STEP * steps, right, out, count, carry, ahead, pace, upper, rows - upper)
            ahead += pace * count
            left += 2 * STEP * steps
            out += SUMS * rows
        carry = 1
