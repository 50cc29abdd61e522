"""One expert on a run of rows: y = act(x up + b1) [* (x gate + bg)] down + b2, chunk by chunk over F.

The hidden activations of a chunk stay in the cache. The output rows carry the second GEMM's sums between chunks in
float32, so every output is one chain of fused multiply-adds in k order, whichever rows are computed together.
"""

from ...primitives import memory as mem
from ...primitives import wire as mpi
from ...primitives.buffers import FLOAT
from ...primitives.compile import jit
from .elementwise import activate, multiply
from .gemm import KC, panel_rows
from .panels import NR

FC = 512  # columns of F a chunk


def scratch_bytes(rows, gated):
    """Bytes of scratch for up to `rows` rows: row addresses, and a chunk of hidden activations (two when gated)."""
    return rows * (2 * 8 + (2 if gated else 1) * FC * FLOAT) + 64


@jit
def fill_rows(m, c, jc, source, n):
    """C[i, jc:jc+n] = n float32 at `source`, for m rows: a chain of sums starts from the bias."""
    for i in range(m):
        mem.copy_row(mem.load(c + 8 * i) + FLOAT * jc, source, FLOAT * n)


@jit
def hidden_chunk(m, x, up, gate, up_bias, gate_bias, code, hidden, f0, columns, pitch, h, g, wire):
    """h[m, columns] = act(...) for columns f0.. of F; rows lie `pitch` columns apart; g: the gate's buffer."""
    for k0 in range(0, hidden, KC):
        count = min(KC, hidden - k0)
        for j in range(0, columns, NR):
            mpi.tend(wire)
            offset = FLOAT * ((f0 + j) * hidden + k0 * NR)  # panel (f0 + j) / NR, row k0
            carry = k0
            if up_bias != 0:
                if k0 == 0:
                    fill_rows(m, h, j, up_bias + FLOAT * (f0 + j), NR)
                carry = 1
            panel_rows(m, x, k0, up + offset, h, j, count, carry, up + offset + FLOAT * NR * hidden)
            if gate != 0:
                carry = k0
                if gate_bias != 0:
                    if k0 == 0:
                        fill_rows(m, g, j, gate_bias + FLOAT * (f0 + j), NR)
                    carry = 1
                panel_rows(m, x, k0, gate + offset, g, j, count, carry, gate + offset + FLOAT * NR * hidden)
    activate_rows(m, gate != 0, code, columns, pitch, h, g)


@jit
def activate_rows(m, gated, code, columns, pitch, h, g):
    """h = act(h), or act(g) * h when gated, for m rows of `columns`, `pitch` columns apart: in one pass if they
    are contiguous.
    """
    rows, n = (1, m * columns) if columns == pitch else (m, columns)
    for i in range(rows):
        row = mem.load(h + 8 * i)
        if gated:
            gate_row = mem.load(g + 8 * i)
            activate(code, gate_row, n)
            multiply(code, row, gate_row, n)
        else:
            activate(code, row, n)


@jit
def row_addresses(m, table, first, pitch):
    """Write m row addresses at `table`: rows `pitch` float32 apart, the first at `first`."""
    for i in range(m):
        mem.store(table + 8 * i, first + FLOAT * pitch * i)


@jit
def up_columns(m, x, activations, weights, code, hidden, ffn, f0, columns, tables, wire):
    """Columns f0.. of act(x up + b1) [* (x gate + bg)] for m rows: one worker's share of a column-split run.

    activations: buffer for m rows of F padded to NR, twice when gated; tables: 2 m words of scratch.
    The sums and their order are those of `expert_rows`.
    """
    pitch = (ffn + NR - 1) // NR * NR
    row_addresses(m, tables, activations + FLOAT * f0, pitch)
    row_addresses(m, tables + 8 * m, activations + FLOAT * (pitch * m + f0), pitch)
    up, gate, _, up_bias, gate_bias, _ = weights
    hidden_chunk(m, x, up, gate, up_bias, gate_bias, code, hidden, f0, columns, pitch, tables, tables + 8 * m, wire)


@jit
def down_columns(m, activations, y, weights, ffn, first, last, tables, wire):
    """Columns first..last of h down + b2 for m rows, after `up_columns` has computed all of h."""
    pitch = (ffn + NR - 1) // NR * NR
    row_addresses(m, tables, activations, pitch)
    down, down_bias = weights[2], weights[5]
    for j in range(first, last, NR):
        mpi.tend(wire)
        if down_bias != 0:
            fill_rows(m, y, j, down_bias + FLOAT * j, NR)
        for k0 in range(0, ffn, KC):
            carry = 1 if down_bias != 0 else k0
            panel = down + FLOAT * (j * ffn + k0 * NR)
            panel_rows(m, tables, k0, panel, y, j, min(KC, ffn - k0), carry, panel + FLOAT * NR * ffn)


@jit
def expert_rows(m, x, y, weights, code, hidden, ffn, scratch, wire):
    """Run one expert on m rows.

    x, y: addresses of arrays of m row addresses; rows of x hold `hidden` float32, rows of y have space for `hidden`
    rounded up to NR. weights: addresses (up, gate, down, up_bias, gate_bias, down_bias) of this expert's packed panels
    and of its biases padded to NR, 0 for absent tensors. scratch: `scratch_bytes(m, gated)` bytes, 64-byte aligned.
    wire: address of the wire that `wire.tend` serves between panels, or 0.
    """
    h = scratch
    g = h + 8 * m
    chunk = (g + 8 * m + 63) // 64 * 64
    pitch = min(FC, (ffn + NR - 1) // NR * NR)
    row_addresses(m, h, chunk, pitch)
    row_addresses(m, g, chunk + FLOAT * pitch * m, pitch)
    up, gate, down, up_bias, gate_bias, down_bias = weights
    carry = 0
    if down_bias != 0:
        for j in range(0, hidden, NR):
            fill_rows(m, y, j, down_bias + FLOAT * j, NR)
        carry = 1
    for f0 in range(0, ffn, FC):
        count = min(FC, ffn - f0)
        columns = (count + NR - 1) // NR * NR
        hidden_chunk(m, x, up, gate, up_bias, gate_bias, code, hidden, f0, columns, pitch, h, g, wire)
        for j in range(0, hidden, NR):
            mpi.tend(wire)
            panel = down + FLOAT * (j * ffn + f0 * NR)
            panel_rows(m, h, 0, panel, y, j, count, carry, panel + FLOAT * NR * ffn)
        carry = 1
