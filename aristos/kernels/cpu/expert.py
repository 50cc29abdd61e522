"""One expert on a run of rows: y = h down + b2, chunk by chunk over F.

h = act(x up + b1), or act(x gate + bg) * (x up + b1) if there is a gate. The hidden activations of a chunk stay in the
cache. Between chunks the output rows hold the sums of the product with `down` in float32. So every output is one chain
of fused multiply-adds in order of k, whichever rows are computed together.
"""

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives import taped
from ...primitives import wire as mpi
from ...primitives.buffers import FLOAT, LINE
from .elementwise import activate, multiply
from .gemm import KC, PITCH, pack_rows, packed_bytes, panel_rows, vectors_of
from .panels import LANES, NR

FC = 480  # columns of F in a chunk: whole panels of every width, at most KC


def scratch_bytes(rows, hidden, gated):
    """Bytes of scratch memory for `rows` rows: addresses, packed rows, and a chunk of hidden activations.

    If gated, there is a second chunk for the gate.
    """
    return rows * 2 * 8 + LINE + packed_bytes(rows, hidden) + (2 if gated else 1) * rows * PITCH


def activation_bytes(rows, ffn, gated):
    """Bytes of all hidden activations of a column-split run: chunks of packed rows, then the gate's chunks."""
    return (2 if gated else 1) * rows * PITCH * -(-ffn // FC)


@jit
def line_bytes(columns):
    """Bytes of `columns` float32, in whole lines."""
    return (FLOAT * columns + LINE - 1) // LINE * LINE


def hidden_bytes(ffn, gated):
    """Bytes of a row's products with up, and with gate if gated, as `keep_hidden` writes them."""
    return (2 if gated else 1) * (-(-FLOAT * ffn // LINE) * LINE)


@jit
def keep_hidden(m, kept, f0, columns, ffn, gated, h, g):
    """Copy columns f0.. of the products of m rows with up and gate to the rows' places on the tape.

    kept: the address of an array of m entries of the tape (`primitives/taped.py`). h, g: the addresses of arrays of row
    addresses, for the products with up and with gate.
    """
    for i in range(m):
        entry = mem.load(kept + 8 * i)
        if taped.kept_of(entry) & taped.HIDDEN:
            place = taped.place_of(entry) + FLOAT * f0
            mem.copy_row(place, mem.load(h + 8 * i), FLOAT * columns)
            if gated:
                mem.copy_row(place + line_bytes(ffn), mem.load(g + 8 * i), FLOAT * columns)


@jit
def fill_rows(m, c, jc, source, n):
    """Set C[i, jc:jc+n] to n float32 at `source`, for m rows. Sums then start from the bias."""
    for i in range(m):
        mem.copy_row(mem.load(c + 8 * i) + FLOAT * jc, source, FLOAT * n)


@jit
def hidden_chunk(m, a, up, gate, up_bias, gate_bias, code, hidden, ffn, f0, columns, h, g, wire, kept):
    """Compute h[m, columns], the hidden activations of columns f0.. of F.

    a: the address of packed rows of x. h, g: the addresses of arrays of row addresses, for the activations and for the
    gate. kept: the address of an array of entries of the tape (`primitives/taped.py`), or 0.
    """
    for k0 in range(0, hidden, KC):
        count = min(KC, hidden - k0)
        block = a + PITCH * m * (k0 // KC)
        for j in range(0, columns, NR):
            mpi.tend(wire)
            vectors = vectors_of(ffn - f0 - j)
            width = LANES * vectors
            offset, after = FLOAT * ((f0 + j) * hidden + k0 * width), FLOAT * width * hidden
            carry = k0
            if up_bias != 0:
                if k0 == 0:
                    fill_rows(m, h, j, up_bias + FLOAT * (f0 + j), width)
                carry = 1
            panel_rows(m, vectors, block, up + offset, h, j, count, carry, up + offset + after)
            if gate != 0:
                carry = k0
                if gate_bias != 0:
                    if k0 == 0:
                        fill_rows(m, g, j, gate_bias + FLOAT * (f0 + j), width)
                    carry = 1
                panel_rows(m, vectors, block, gate + offset, g, j, count, carry, gate + offset + after)
    if kept != 0:
        keep_hidden(m, kept, f0, (columns + LANES - 1) // LANES * LANES, ffn, gate != 0, h, g)
    activate_rows(m, gate != 0, code, columns, h, g)


@jit
def activate_rows(m, gated, code, columns, h, g):
    """Set h to act(h), or to act(g) * h when gated, for m rows of `columns` columns."""
    for i in range(m):
        row = mem.load(h + 8 * i)
        if gated:
            gate_row = mem.load(g + 8 * i)
            activate(code, gate_row, columns)
            multiply(code, row, gate_row, columns)
        else:
            activate(code, row, columns)


@jit
def row_addresses(m, table, first):
    """Write the addresses of m packed rows at `table`."""
    for i in range(m):
        mem.store(table + 8 * i, first + PITCH * i)


@jit
def up_columns(call):
    """Compute some columns of the hidden activations: a worker's share of a column-split run.

    call: an UpColumns. activations: the address of `activation_bytes(rows, ffn, gated)` bytes. scratch: the address of
    `scratch_bytes(rows, hidden, gated)` bytes. A share lies within one chunk of F. Sums add the same products in the
    same order as in `expert_rows`.
    """
    m, ffn, f0, weights = call.rows, call.ffn, call.first, call.weights
    h = call.scratch
    g = h + 8 * m
    a = (g + 8 * m + LINE - 1) // LINE * LINE
    chunks = (ffn + FC - 1) // FC
    first = call.activations + PITCH * m * (f0 // FC) + FLOAT * (f0 % FC)
    row_addresses(m, h, first)
    row_addresses(m, g, first + PITCH * m * chunks)
    pack_rows(m, call.x, call.hidden, a)
    hidden_chunk(
        m, a, weights.up, weights.gate, weights.up_bias, weights.gate_bias, call.activation, call.hidden, ffn, f0,
        call.columns, h, g, call.wire, call.kept,
    )  # fmt: skip


@jit
def down_columns(call):
    """Compute columns first..last of h down + b2, after `up_columns` has computed all of h. call: a DownColumns.

    last: must be the end of a panel. The call's scratch memory is not used.
    """
    m, y, ffn, down, down_bias = call.rows, call.y, call.ffn, call.weights.down, call.weights.down_bias
    for j in range(call.first, call.last, NR):
        mpi.tend(call.wire)
        vectors = vectors_of(call.last - j)
        width = LANES * vectors
        if down_bias != 0:
            fill_rows(m, y, j, down_bias + FLOAT * j, width)
        for f0 in range(0, ffn, FC):
            carry = 1 if down_bias != 0 else f0
            panel = down + FLOAT * (j * ffn + f0 * width)
            chunk = call.activations + PITCH * m * (f0 // FC)
            panel_rows(m, vectors, chunk, panel, y, j, min(FC, ffn - f0), carry, panel + FLOAT * width * ffn)


@jit
def expert_rows(call):
    """Run one expert on rows. call: an ExpertRows.

    Rows of x hold `hidden` float32. Rows of y have space for `hidden` rounded up to vectors. weights: the addresses of
    packed panels, and of biases padded to vectors. scratch: the address of `scratch_bytes(rows, hidden, gated)` bytes,
    64-byte aligned.
    """
    m, y, code, hidden, ffn = call.rows, call.y, call.activation, call.hidden, call.ffn
    wire, kept = call.wire, call.kept
    h = call.scratch
    g = h + 8 * m
    a = (g + 8 * m + LINE - 1) // LINE * LINE
    chunk = a + PITCH * m * ((hidden + KC - 1) // KC)
    row_addresses(m, h, chunk)
    row_addresses(m, g, chunk + PITCH * m)
    pack_rows(m, call.x, hidden, a)
    up, gate, down, up_bias, gate_bias, down_bias = call.weights
    carry = 0
    if down_bias != 0:
        fill_rows(m, y, 0, down_bias, (hidden + LANES - 1) // LANES * LANES)
        carry = 1
    for f0 in range(0, ffn, FC):
        count = min(FC, ffn - f0)
        columns = (count + LANES - 1) // LANES * LANES
        hidden_chunk(m, a, up, gate, up_bias, gate_bias, code, hidden, ffn, f0, columns, h, g, wire, kept)
        for j in range(0, hidden, NR):
            mpi.tend(wire)
            vectors = vectors_of(hidden - j)
            panel = down + FLOAT * (j * ffn + f0 * LANES * vectors)
            panel_rows(m, vectors, chunk, panel, y, j, count, carry, panel + FLOAT * LANES * vectors * ffn)
        carry = 1
