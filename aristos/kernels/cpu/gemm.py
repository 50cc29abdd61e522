"""Products C = A B of packed rows and packed panels. This module chooses the micro-kernel for rows and columns.

Rows of A may lie anywhere. They are copied once into *packed rows*: blocks of KC columns, [K / KC][rows][PITCH bytes].
So the micro-kernel needs one address for all its rows, and rows that were 4 KiB apart do not share a set of the L1
cache. Weights are packed as panels of B when a layer is loaded (`panels`). Rows of C are found through arrays of row
addresses.
"""

import numpy as np
from numba.extending import overload

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT, LINE
from ...primitives.intrinsics import forward
from ..common.branches import by_code
from . import micro_kernels
from .micro_kernels import NEAR
from .panels import BARE, LANES, NR, ROWS, VECTORS
from .target import ISA

KC = 512  # columns of a block of packed rows: a micro-kernel's rows stay in L1, and a run's rows in L2
PITCH = FLOAT * KC + LINE  # bytes between packed rows
AHEAD_GROUPS = 2  # the next panel is prefetched only if a panel serves at least this many groups of rows

_kernels = {
    rows + ROWS * (vectors - 1): micro_kernels.micro_kernel(rows, vectors, PITCH, LANES)
    for vectors in range(VECTORS, 0, -1)
    for rows in range(ROWS, 0, -1)
}


def block(code, a, b, c, jc, count, carry, ahead, pace):
    """Set C[i, jc:jc+width] to A[i, :count] x panel; if `carry` is nonzero, add to C instead.

    code: rows + ROWS * (vectors - 1), for 1 to ROWS rows and panels of 1 to VECTORS vectors. a: the address of the
    first packed row. b: the address of the panel's first row. c: the address of an array of row addresses. jc: the
    first column of C that is computed. count: the number of k. For each k the compiled kernel prefetches at `ahead`,
    and then adds `pace` bytes to `ahead`.
    """
    width, rows = LANES * (1 + (code - 1) // ROWS), 1 + (code - 1) % ROWS
    panel = mem.floats(b, count * width).reshape(count, width)
    for i in range(rows):
        left = mem.floats(a + PITCH * i, count)
        out = mem.floats(mem.load(c + 8 * i) + FLOAT * jc, width)
        total = out.copy() if carry else np.zeros(width, np.float32)
        for k in range(count):
            total += left[k] * panel[k]
        out[:] = total


overload(block)(by_code(block, _kernels, globals()))


def fetch(address):
    """Prefetch the cache line at `address`, which will be read soon."""


overload(fetch)(forward(fetch, micro_kernels.fetch))


def stream(target, source, vectors):
    """Copy vectors of float32, which are not read soon, past the caches. target: an address aligned to vectors."""
    mem.copy_row(target, source, FLOAT * LANES * vectors)


def settle():
    """Order the stores of `stream` before all later stores of this thread."""


overload(stream)(forward(stream, micro_kernels.stream(LANES)))
overload(settle)(forward(settle, micro_kernels.settle(not ISA.startswith("neon"))))


def transpose(rows, offset, to, pitch):
    """Transpose 8 x 8 words of 4 bytes, which begin at byte `offset` of eight rows.

    Column c goes to the 32 bytes at `to` + c * `pitch`. rows: the address of an array of eight row addresses.
    """
    block = np.stack([mem.bits32(mem.load(rows + 8 * i) + offset, 8) for i in range(8)])
    for c in range(8):
        mem.bits32(to + pitch * c, 8)[:] = block[:, c]


overload(transpose)(forward(transpose, micro_kernels.transpose))


def packed_bytes(rows, columns):
    """Bytes of `rows` packed rows of `columns` float32."""
    return rows * PITCH * -(-columns // KC)


@jit
def pack_rows(m, x, columns, a):
    """Copy m rows of `columns` float32 into packed rows at `a`. x: the address of an array of row addresses."""
    for k0 in range(0, columns, KC):
        nbytes = FLOAT * min(KC, columns - k0)
        for i in range(m):
            mem.copy_row(a, mem.load(x + 8 * i) + FLOAT * k0, nbytes)
            a += PITCH


@jit
def vectors_of(columns):
    """How many vectors a panel has that starts `columns` columns before the end of a matrix."""
    return min(VECTORS, (columns + LANES - 1) // LANES)


@jit
def panel_rows(m, vectors, a, b, c, jc, count, carry, ahead):
    """Do what `block` does for any number m of rows, in groups of nearly equal size of at most ROWS rows.

    ahead: the address of the next panel. If there are at least AHEAD_GROUPS groups, each prefetches its share of that
    panel. With fewer groups, memory delivers a panel faster than it is used, so prefetching the next one would cost
    more than it saves. The kernel then prefetches its own panel. With at most BARE rows it prefetches the same line of
    the panel for every k, which leaves the reading of the panel to the CPU's own prefetchers.
    """
    groups = (m + ROWS - 1) // ROWS
    size = m // groups
    larger = m - size * groups
    pace = (FLOAT * LANES * vectors + groups - 1) // groups
    if groups < AHEAD_GROUPS:
        ahead, pace = (b, 0) if m <= BARE else (b + NEAR, FLOAT * LANES * vectors)
    i = 0
    for g in range(groups):
        rows = size + 1 if g < larger else size
        code = rows + ROWS * (vectors - 1)
        block(code, a + PITCH * i, b, c + 8 * i, jc, count, carry, ahead + g * pace * count, pace)
        i += rows


@jit
def block_product(m, a, depth, b, columns, c):
    """Set C[m, columns] to the product of packed rows of `depth` columns and packed panels [depth, columns].

    a: the address of the packed rows. b: the address of the panels. c: the address of an array of row addresses. Rows
    of C have space for whole vectors.
    """
    for k0 in range(0, depth, KC):
        for j in range(0, columns, NR):
            vectors = vectors_of(columns - j)
            width = LANES * vectors
            panel = b + FLOAT * (j * depth + k0 * width)
            panel_rows(m, vectors, a, panel, c, j, min(KC, depth - k0), k0, panel + FLOAT * width * depth)
        a += PITCH * m


@jit
def product(call):
    """Pack rows of float32, and do what `block_product` does. call: a Product; its scratch holds the packed rows."""
    pack_rows(call.rows, call.x, call.depth, call.scratch)
    block_product(call.rows, call.scratch, call.depth, call.panels, call.columns, call.y)
