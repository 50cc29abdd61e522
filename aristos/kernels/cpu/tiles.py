"""Products of bfloat16 by AMX tiles. An operand consists of tiles: two tiles of up to 16 rows for each group of rows.

Products of float32 are computed too (SPLIT). Each value is then the sum of two bfloat16, high + low, which have 16
significant bits together. The product of x and w is low(x) high(w) + high(x) high(w) + high(x) low(w). A tile of low
values follows each tile of high values. Denormals count as zeros. A value of 3.39e38 or more, or infinity, gives NaN.

Rows are cut into groups of nearly equal size, with at most 32 rows each. A tile is stored block by block, with 32 k
to a block and 64 bytes to a row. In a group both tiles have room for as many rows as the upper one has, so an operand
of few rows is small, and stays in the L1 cache. Sums of many rows stay in tiles during a pass over KC values of k, and
wait in the L1 cache between passes. The tile unit adds the products of a sum in its own fixed order of k, which does
not depend on the rows.
"""

import inspect

import numpy as np
from numba.extending import overload

from kernel_cache.compile import inlined, jit

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT
from ...primitives.intrinsics import forward
from . import micro_kernels
from .convert import SPLIT, round_bfloat16, split_block
from .elements import WIDTH
from .micro_kernels import NEAR, STEP, SUMS

KC = 256  # how many k a pass has (half as many for split values): a panel's part of 16 KiB stays in the L1 cache
WHOLE_GROUPS = 2  # with at most so many groups of rows, memory is the limit, and sums stay in tiles over all k
ROW = STEP // 16  # bytes of a row of a tile
NO_SHAPE = -1


def configure(shapes):
    """Load the shapes of the eight tiles from 64 bytes at the address `shapes`."""


def release():
    """Release the tiles, so that an idle core need not keep them."""


def tile_sums(a, below, b, sums, steps, carry, ahead, pace, upper, lower):
    """Set sums[i, :32] to A[i, :32 * steps] x panel, for `upper` rows at `a` and `lower` rows at a + below.

    sums: the address of rows of 32 sums. carry: nonzero if the products are added to these sums. For each block of k,
    the compiled kernel prefetches `pace` bytes from `ahead` on.
    """
    _sums(a, below, b, sums, steps, carry, upper, lower, 1, [(0, 0)])


def split_sums(a, below, b, sums, steps, carry, ahead, pace, upper, lower):
    """Do what `tile_sums` does, for split values."""
    _sums(a, below, b, sums, steps, carry, upper, lower, 2, [(1, 0), (0, 0), (0, 1)])


def _sums(a, below, b, sums, steps, carry, upper, lower, parts, products):
    """Do what `tile_sums` and `split_sums` do, in plain Python.

    products: pairs (part of A, part of the panel), in the order in which they are multiplied. Part 0 has the high
    values.
    """
    right = _widened(b, parts * STEP * steps).reshape(steps, parts, 2, 16, 16, 2)  # block, part, half, pair, column, k
    tile = ROW * upper
    for i in range(upper + lower):
        first = a + ROW * i if i < upper else a + below + ROW * (i - upper)
        out = mem.floats(sums + SUMS * i, WIDTH)
        total = out.copy() if carry else np.zeros(WIDTH, np.float32)
        for step in range(steps):
            for part, other in products:
                left = _widened(first + tile * (parts * step + part), WIDTH)
                for k in range(WIDTH):
                    total += left[k] * right[step, other, :, k // 2, :, k % 2].reshape(WIDTH)
        out[:] = total


def _widened(addr, n):
    return (mem.bits16(addr, n).astype(np.uint32) << np.uint32(16)).view(np.float32)


def by_rows(function, kernel):
    """An implementation for `overload(function)`: it calls kernel(2) if there are lower tiles, else kernel(1).

    The last argument of `function`, `lower`, is the number of rows of the lower tiles.
    """
    names = ", ".join(inspect.signature(function).parameters)
    scope = {"both": kernel(2), "upper_alone": kernel(1), "__name__": __name__}
    branches = f"if lower > 0:\n            both({names})\n        else:\n            upper_alone({names})"
    exec(f"def {function.__name__}({names}):\n    def run({names}):\n        {branches}\n    return run", scope)
    return scope[function.__name__]


overload(configure)(forward(configure, micro_kernels.configure))
overload(release)(forward(release, micro_kernels.release))
overload(tile_sums)(by_rows(tile_sums, micro_kernels.tile_kernel))
overload(split_sums)(by_rows(split_sums, lambda down: micro_kernels.tile_kernel(down, 2)))


@jit
def shape_tiles(upper, lower, shapes):
    """Load the shapes of tiles for `upper` and `lower` rows, unless these shapes are loaded already.

    shapes: the address of 72 bytes. The last word says which shapes are loaded; before the first call it is NO_SHAPE.
    """
    wanted = 17 * upper + lower
    if mem.load(shapes + 64) == wanted:
        return
    below = max(lower, 1)  # the processor raises a fault for the shape of a tile without rows
    mem.store(shapes, 1)  # palette
    mem.store(shapes + 8, 0)
    for i in range(4):  # eight tiles have rows of 64 bytes
        mem.store(shapes + 16 + 8 * i, 0x0040004000400040 if i < 2 else 0)
    rows = upper | upper << 8 | below << 16 | below << 24 | upper << 32 | below << 40 | 16 << 48 | 16 << 56
    mem.store(shapes + 48, rows)
    mem.store(shapes + 56, 0)
    mem.store(shapes + 64, wanted)
    configure(shapes)


@jit
def group_rows(m, g, groups):
    """(number of rows, number of rows of the upper tile) of group g, if m rows form `groups` groups."""
    rows = m // groups + (1 if g < m % groups else 0)
    return rows, rows if rows <= 16 else (rows + 1) // 2


@inlined
def step_bytes(element, rows):
    """Bytes of a block of 32 k of a tile of `rows` rows."""
    return 2 * ROW * rows if element == SPLIT else ROW * rows


@inlined
def operand_size(element, rows, columns):
    """Bytes of an operand of `rows` rows."""
    return (rows + 31) // 32 * 2 * step_bytes(element, 16) * ((columns + WIDTH - 1) // WIDTH)


@inlined
def depth_of(element, rows):
    """How many packed rows `panel_sums` reads of a matrix of `rows` rows, including the zeros behind them."""
    return (rows + WIDTH - 1) // WIDTH * WIDTH


@jit
def pack_split_row(place, step, source, columns):
    """Write a row of `columns` float32 into an operand.

    place: the address of the row's first high values. step: the bytes of a block of k.
    """
    for k in range(0, columns, WIDTH):
        split_block(place, place + step // 2, source + FLOAT * k, min(WIDTH, columns - k))
        place += step


@jit
def pack_row(place, step, source, columns):
    """Write a row of `columns` bfloat16 into an operand.

    place: the address of the row in its first block. step: the bytes of a block of k.
    """
    whole = columns // WIDTH
    for n in range(whole):
        mem.copy_row(place + step * n, source + ROW * n, ROW)
    if columns > WIDTH * whole:
        rest = columns - WIDTH * whole
        mem.copy_row(place + step * whole, source + ROW * whole, 2 * rest)
        mem.bits16(place + step * whole + 2 * rest, WIDTH - rest)[:] = 0


@jit
def pack_operand(element, m, x, columns, a):
    """Write m rows of `columns` elements into an operand.

    x: the address of an array of row addresses. a: the address of the operand.
    """
    groups = (m + 31) // 32
    i = 0
    for g in range(groups):
        rows, upper = group_rows(m, g, groups)
        step = step_bytes(element, upper)
        tile = step * ((columns + WIDTH - 1) // WIDTH)
        for r in range(rows):
            place = a + ROW * r if r < upper else a + tile + ROW * (r - upper)
            if element == SPLIT:
                pack_split_row(place, step, mem.load(x + 8 * (i + r)), columns)
            else:
                pack_row(place, step, mem.load(x + 8 * (i + r)), columns)
        i += rows
        a += 2 * tile


@jit
def round_operand(element, m, sums, j, columns, a, spare):
    """Round or split 32 sums of each of m rows, and store them as columns j.. of an operand of `columns` columns."""
    groups = (m + 31) // 32
    for g in range(groups):
        rows, upper = group_rows(m, g, groups)
        step = step_bytes(element, upper)
        tile = step * ((columns + WIDTH - 1) // WIDTH)
        place = a + step * (j // WIDTH)
        for r in range(rows):
            if r == upper:
                place += tile - ROW * upper
            if element == SPLIT:
                split_block(place + ROW * r, place + ROW * (r + upper), sums, WIDTH)
            else:
                round_bfloat16(place + ROW * r, sums, WIDTH)
            sums += SUMS
        a += 2 * tile


@jit
def block_place(m, columns, a, i, block):
    """The address of block number `block`, of 32 k, of row i in an operand of m rows of bfloat16."""
    groups = (m + 31) // 32
    for g in range(groups):
        rows, upper = group_rows(m, g, groups)
        tile = ROW * upper * ((columns + WIDTH - 1) // WIDTH)
        if i < rows:
            break
        i -= rows
        a += 2 * tile
    return a + ROW * upper * block + (ROW * i if i < upper else tile + ROW * (i - upper))


@jit
def part_sums(element, m, a, first, steps, right, sums, count, carry, ahead, pace, spare):
    """Do a part of `panel_sums`: `count` blocks of k from `first` on. Returns the address that is prefetched next.

    steps: how many blocks of k the operand has. right: the address of the panel at block `first`.
    """
    groups = (m + 31) // 32
    for g in range(groups):
        rows, upper = group_rows(m, g, groups)
        step = step_bytes(element, upper)
        left = a + step * first
        shape_tiles(upper, rows - upper, spare)
        if element == SPLIT:
            split_sums(left, step * steps, right, sums, count, carry, ahead, pace, upper, rows - upper)
        else:
            tile_sums(left, step * steps, right, sums, count, carry, ahead, pace, upper, rows - upper)
        ahead += pace * count
        a += 2 * step * steps
        sums += SUMS * rows
    return ahead


@jit
def panel_sums(element, m, a, depth, panel, sums, carry, ahead, spare):
    """Set sums[m, 32] to operand x panel for k below `depth`; if `carry` is nonzero, add to the sums.

    a: the address of the operand. panel: the address of the panel at the operand's first k. sums: the address of m rows
    of 32 sums. ahead: the address of the next panel, of which each group of rows prefetches its share. A single
    group prefetches its own panel instead, NEAR bytes ahead: it waits for memory, and a whole panel ahead may be too
    much for the L2 cache. spare: the address of the shapes of tiles, see `shape_tiles`.
    """
    groups, steps = (m + 31) // 32, (depth + WIDTH - 1) // WIDTH
    step = step_bytes(element, 16)  # bytes of 16 columns of a panel, for a block of k
    pace = ((2 * step + groups - 1) // groups + 63) // 64 * 64
    most = steps if groups <= WHOLE_GROUPS else KC * STEP // (WIDTH * step)  # blocks of k in a pass
    if groups == 1:
        ahead = panel + NEAR
    for here in range(0, steps, most):
        count = min(most, steps - here)
        right = panel + 2 * step * here
        ahead = part_sums(element, m, a, here, steps, right, sums, count, carry, ahead, pace, spare)
        carry = 1
