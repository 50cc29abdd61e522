"""Rows times packed panels: chooses the micro-kernel for each group of rows. No activation, no tiling over F.

Weights are packed once into panels of NR columns, [panels, K, NR], padded with zero columns. Rows of A and of C are
found through arrays of row addresses, so rows from several sources need no copy.
"""

import numpy as np
from numba.extending import overload

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT
from ...primitives.compile import jit
from . import llvm
from .panels import LANES, NR, ROWS, VECTORS

KC = 1024  # k per pass: the block of A that a pass reads stays in the L2 cache
AHEAD_GROUPS = 4  # the next panel is prefetched only if a panel serves at least so many groups of rows

_kernels = [llvm.micro_kernel(i + 1, VECTORS) for i in range(6)]
_narrow = [llvm.micro_kernel(i + 1, 1, stride=LANES) for i in range(6)]


def block(rows, a, ka, b, c, jc, count, carry, ahead, pace):
    """C[i, jc:jc+NR] (+)= A[i, ka:ka+count] x panel, for 1 to 6 rows; adds to C if `carry` is nonzero.

    a, c: addresses of arrays of row addresses; b: address of the panel at ka; jc: first column of C.
    For each k it prefetches the cache line at `ahead`, which advances by `pace` bytes.
    """
    _plain_block(rows, a, ka, b, c, jc, count, carry, NR)


def narrow_block(rows, a, ka, b, c, jc, count, carry, ahead, pace):
    """`block` with panels of LANES columns, for a router's few experts."""
    _plain_block(rows, a, ka, b, c, jc, count, carry, LANES)


def _plain_block(rows, a, ka, b, c, jc, count, carry, width):
    panel = mem.floats(b, count * width).reshape(count, width)
    for i in range(rows):
        left = mem.floats(mem.load(a + 8 * i) + FLOAT * ka, count)
        out = mem.floats(mem.load(c + 8 * i) + FLOAT * jc, width)
        total = out.copy() if carry else np.zeros(width, np.float32)
        for k in range(count):
            total += left[k] * panel[k]
        out[:] = total


def _choose(kernels):
    one, two, three, four, five, six = kernels

    def implementation(rows, a, ka, b, c, jc, count, carry, ahead, pace):
        if rows == 6:
            six(a, ka, b, c, jc, count, carry, ahead, pace)
        elif rows == 5:
            five(a, ka, b, c, jc, count, carry, ahead, pace)
        elif rows == 4:
            four(a, ka, b, c, jc, count, carry, ahead, pace)
        elif rows == 3:
            three(a, ka, b, c, jc, count, carry, ahead, pace)
        elif rows == 2:
            two(a, ka, b, c, jc, count, carry, ahead, pace)
        else:
            one(a, ka, b, c, jc, count, carry, ahead, pace)

    return implementation


overload(block)(lambda rows, a, ka, b, c, jc, count, carry, ahead, pace: _choose(_kernels))
overload(narrow_block)(lambda rows, a, ka, b, c, jc, count, carry, ahead, pace: _choose(_narrow))


@jit
def panel_rows(m, a, ka, b, c, jc, count, carry, ahead):
    """`block` for any number of rows: m is cut into groups of nearly equal size, at most ROWS each.

    ahead: address of the next panel; each group prefetches its share of it, if there are enough groups (with few,
    memory delivers a panel faster than it is used, and prefetching costs more than it saves).
    """
    groups = (m + ROWS - 1) // ROWS
    size = m // groups
    larger = m - size * groups
    pace = (FLOAT * NR + groups - 1) // groups
    if groups < AHEAD_GROUPS:
        ahead, pace = b, 0
    i = 0
    for g in range(groups):
        rows = size + 1 if g < larger else size
        block(rows, a + 8 * i, ka, b, c + 8 * i, jc, count, carry, ahead + g * pace * count, pace)
        i += rows


@jit
def narrow_rows(m, a, k, panels, b, c):
    """C[m, panels * LANES] = A[m, k] x narrow panels; a, c: addresses of arrays of row addresses."""
    for j in range(panels):
        i = 0
        while i < m:
            rows = min(6, m - i)
            narrow_block(rows, a + 8 * i, 0, b + FLOAT * j * k * LANES, c + 8 * i, j * LANES, k, 0, b, 0)
            i += rows
