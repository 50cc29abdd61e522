"""Outer products of float32: adds w[i] x[i]^T b[i] over rows i, in order, by the micro-kernels of `gemm`.

Every entry is one chain of fused multiply-adds in order of rows, so it depends only on the rows and their order. x is
transposed into packed rows, a few columns at a time; b is packed as panels.
"""

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT, LINE
from ..common.activations import ONE, ZERO
from .gemm import KC, PITCH, block, fetch, settle, stream, transpose, vectors_of
from .panels import LANES, NR, ROWS

MOST_OUTER = 1024  # most rows of a pass
TRANSPOSED = 128  # columns that are transposed at once: few enough to stay in the L2 cache
LARGE = 1 << 20  # least bytes of a matrix that is written past the caches, if it is written once
SIDE = 8  # rows and columns of a block that is transposed in registers
SOON = 4  # how many rows ahead to prefetch: rows lie far apart in the store, so the CPU cannot predict their addresses


def outer_bytes(rows, widest):
    """Bytes of scratch memory of `add_outer` for up to `rows` rows. widest: the larger number of columns of x and b."""
    transposed = PITCH * TRANSPOSED * -(-rows // KC)
    return FLOAT * NR * ROWS + 8 * (ROWS + TRANSPOSED) + 2 * LINE + transposed + FLOAT * rows * (widest + LANES)


@jit
def pass_rows(rows):
    """How many rows each pass over `rows` rows has: passes are nearly equal, in whole blocks of 32."""
    passes = max(1, (rows + MOST_OUTER - 1) // MOST_OUTER)
    return ((rows + passes - 1) // passes + 31) // 32 * 32


@jit
def past_caches(carry, once, nbytes):
    """Whether a matrix of gradients is written past the caches.

    once: nonzero if no later pass of this call adds to the matrix. nbytes: the bytes of the matrix.
    """
    return carry == 0 and once != 0 and nbytes >= LARGE


@jit
def fetch_row(m, rows, i, first, nbytes):
    """Prefetch `nbytes` bytes of row i of m rows, from byte `first` on. If there is no row i, do nothing.

    rows: the address of an array of row addresses.
    """
    if i < m:
        start = mem.load(rows + 8 * i) + first
        for line in range(0, nbytes, LINE):
            fetch(start + line)


@jit
def transpose_rows(m, x, first, columns, a):
    """Transpose `columns` columns, from column `first` on, of m rows of float32.

    x: the address of an array of row addresses. Each of the packed rows at `a` gets one column of all m rows.
    """
    for k0 in range(0, m, KC):
        transpose_block(min(KC, m - k0), x + 8 * k0, first, columns, a)
        a += PITCH * columns


@jit
def transpose_block(m, x, first, columns, a):
    """Do what `transpose_rows` does, for at most KC rows."""
    whole = columns // SIDE * SIDE
    for i in range(0, m // SIDE * SIDE, SIDE):
        for r in range(i + SIDE, i + 2 * SIDE):
            fetch_row(m, x, r, FLOAT * first, FLOAT * columns)
        for c in range(0, whole, SIDE):
            transpose(x + 8 * i, FLOAT * (first + c), a + PITCH * c + FLOAT * i, PITCH)
    for i in range(m):
        row = mem.floats(mem.load(x + 8 * i) + FLOAT * first, columns)
        for c in range(whole if i < m // SIDE * SIDE else 0, columns):
            mem.floats(a + PITCH * c + FLOAT * i, 1)[0] = row[c]


@jit
def pack_panels(m, rows, w, columns, panels):
    """Write m rows of `columns` float32 as panels of a matrix with m rows.

    rows: the address of an array of row addresses. w: the address of one factor for each row, or 0 for no factors.
    """
    whole = columns // NR * NR
    for i in range(m):
        fetch_row(m, rows, i + SOON, 0, FLOAT * columns)
        start = mem.load(rows + 8 * i)
        row = mem.floats(start, columns)
        weight = mem.floats(w, m)[i] if w != 0 else ONE
        for j in range(0, whole, NR):
            pack_panel(panels + FLOAT * (m * j + i * NR), start + FLOAT * j, weight)
        for j in range(whole, columns, NR):
            width = LANES * vectors_of(columns - j)
            n = min(width, columns - j)
            out = mem.floats(panels + FLOAT * (m * j + i * width), width)
            for k in range(n):
                out[k] = weight * row[j + k]
            for k in range(n, width):
                out[k] = ZERO


@jit
def pack_panel(to, source, weight):
    """Write a row of a whole panel: `weight` times NR float32."""
    out, row = mem.floats(to, NR), mem.floats(source, NR)
    for k in range(NR):
        out[k] = weight * row[k]


@jit
def add_transposed(m, rows, a, panels, columns, out, pitch, carry, past, sums, tables):
    """Add A^T B, summed over m rows in order, to out[rows, columns].

    a: the address of A transposed. panels: the address of the panels of B. pitch: the number of bytes between rows of
    out. carry: 0 if out is overwritten instead. Rows of out are computed in groups, as by `gemm.panel_rows`; while one
    group is computed, the next one is prefetched. past: whether groups are written past the caches. If so, each group
    is first computed in `sums`, which has space for one group. tables: the address of space for the addresses of ROWS
    rows of sums and of `rows` rows of out.
    """
    groups = (rows + ROWS - 1) // ROWS
    size = rows // groups
    larger = rows - size * groups
    apart, table = tables, tables + 8 * ROWS
    for i in range(ROWS):
        mem.store(apart + 8 * i, sums + FLOAT * NR * i)
    for i in range(rows):
        mem.store(table + 8 * i, out + pitch * i)
    for j in range(0, columns, NR):
        vectors = vectors_of(columns - j)
        i = 0
        for g in range(groups):
            n = size + 1 if g < larger else size
            to, at, left, panel, more = table + 8 * i, j, a + PITCH * i, panels + FLOAT * m * j, carry
            if past:
                to, at = apart, 0
            else:
                for r in range(i + n, min(rows, i + 2 * n)):
                    for line in range(0, FLOAT * LANES * vectors, LINE):
                        fetch(out + pitch * r + FLOAT * j + line)
            for k0 in range(0, m, KC):
                count = min(KC, m - k0)
                block(n + ROWS * (vectors - 1), left, panel, to, at, count, more, panel, 0)
                left += PITCH * rows
                panel += FLOAT * LANES * vectors * count
                more = 1
            if past:
                for r in range(n):
                    stream(out + pitch * (i + r) + FLOAT * j, sums + FLOAT * NR * r, vectors)
            i += n


@jit
def add_outer(m, x, begin, end, b, w, columns, out, carry, past, scratch):
    """Set out[begin:end, :columns] to the sum over m rows of w[i] x[i]^T b[i], plus out if `carry` is nonzero.

    m: at most MOST_OUTER. x, b: the addresses of arrays of row addresses. w: the address of m float32, or 0 for no
    factors. Rows of out have space for `columns` rounded up to vectors. past: see `add_transposed`. scratch: the
    address of `outer_bytes(m, the larger of end and columns)` bytes.
    """
    pitch = FLOAT * ((columns + LANES - 1) // LANES * LANES)
    sums = (scratch + LINE - 1) // LINE * LINE
    tables = sums + FLOAT * NR * ROWS
    a = (tables + 8 * (ROWS + TRANSPOSED) + LINE - 1) // LINE * LINE
    panels = a + PITCH * TRANSPOSED * ((m + KC - 1) // KC)
    pack_panels(m, b, w, columns, panels)
    for first in range(begin, end, TRANSPOSED):
        n = min(TRANSPOSED, end - first)
        transpose_rows(m, x, first, n, a)
        add_transposed(m, n, a, panels, columns, out + pitch * first, pitch, carry, past, sums, tables)
    if past:
        settle()


@jit
def add_rows(m, rows, w, n, out, carry):
    """Set out[n] to the sum of m rows in order, each times w[i] if w is not 0, plus out if `carry` is nonzero.

    rows: the address of an array of row addresses.
    """
    sums = mem.floats(out, n)
    if carry == 0:
        sums[:] = ZERO
    for i in range(m):
        row = mem.floats(mem.load(rows + 8 * i), n)
        weight = mem.floats(w, m)[i] if w != 0 else ONE
        for k in range(n):
            sums[k] += weight * row[k]
