"""One expert on a run of rows: y = act(x up + b1) [* (x gate + bg)] down + b2, chunk by chunk over F.

The hidden activations of a chunk never leave the cache; the output rows carry the second GEMM's sums between chunks in
float32, so every output is one chain of fused multiply-adds in k order whatever the rows share a call with.
"""

from ... import memory as mem
from ...compile import jit
from .activation import activate, multiply
from .gemm import FLOAT, KC, panel_rows
from .llvm import NR

FC = 512  # columns of F a chunk


def scratch_bytes(rows, gated):
    """Bytes of scratch for up to `rows` rows: row addresses, and a chunk of hidden activations (two when gated)."""
    return rows * (2 * 8 + (2 if gated else 1) * FC * FLOAT) + 64


@jit
def fill_rows(m, c, jc, source, n):
    """C[i, jc:jc+n] = n float32 at `source`, for m rows: a bias is where a chain of sums starts."""
    for i in range(m):
        mem.copy_row(mem.load(c + 8 * i) + FLOAT * jc, source, FLOAT * n)


@jit
def hidden_chunk(m, x, up, gate, up_bias, gate_bias, code, hidden, f0, columns, pitch, h, g):
    """h[m, columns] = act(...) for columns f0.. of F; rows lie `pitch` columns apart; g: the gate projection's."""
    for k0 in range(0, hidden, KC):
        count = min(KC, hidden - k0)
        for j in range(0, columns, NR):
            offset = FLOAT * ((f0 + j) * hidden + k0 * NR)  # panel (f0 + j) / NR, row k0
            carry = k0
            if up_bias != 0:
                if k0 == 0:
                    fill_rows(m, h, j, up_bias + FLOAT * (f0 + j), NR)
                carry = 1
            panel_rows(m, x, k0, up + offset, h, j, count, carry)
            if gate != 0:
                carry = k0
                if gate_bias != 0:
                    if k0 == 0:
                        fill_rows(m, g, j, gate_bias + FLOAT * (f0 + j), NR)
                    carry = 1
                panel_rows(m, x, k0, gate + offset, g, j, count, carry)
    activate_rows(m, gate != 0, code, columns, pitch, h, g)


@jit
def activate_rows(m, gated, code, columns, pitch, h, g):
    """h = act(h), or act(g) * h when gated, for m rows of `columns`, `pitch` columns apart: in one go where they
    touch.
    """
    rows, n = (1, m * columns) if columns == pitch else (m, columns)
    for i in range(rows):
        row = mem.load(h + 8 * i)
        if gated:
            gate_row = mem.load(g + 8 * i)
            activate(code, gate_row, n)
            multiply(row, gate_row, n)
        else:
            activate(code, row, n)


@jit
def expert_rows(m, x, y, up, gate, down, up_bias, gate_bias, down_bias, code, hidden, ffn, scratch):
    """Run one expert on m rows.

    x, y: addresses of arrays of m row addresses; rows of x hold `hidden` float32, rows of y have room for `hidden`
    rounded up to NR. up, gate, down: packed panels of this expert (gate 0 if not gated); biases: padded to NR, 0 if
    none.
    scratch: `scratch_bytes(m, gated)` bytes, 64-byte aligned.
    """
    h = scratch
    g = h + 8 * m
    chunk = (g + 8 * m + 63) // 64 * 64
    pitch = min(FC, (ffn + NR - 1) // NR * NR)
    for i in range(m):
        mem.store(h + 8 * i, chunk + FLOAT * pitch * i)
        mem.store(g + 8 * i, chunk + FLOAT * pitch * (m + i))
    carry = 0
    if down_bias != 0:
        for j in range(0, hidden, NR):
            fill_rows(m, y, j, down_bias + FLOAT * j, NR)
        carry = 1
    for f0 in range(0, ffn, FC):
        count = min(FC, ffn - f0)
        columns = (count + NR - 1) // NR * NR
        hidden_chunk(m, x, up, gate, up_bias, gate_bias, code, hidden, f0, columns, pitch, h, g)
        for j in range(0, hidden, NR):
            panel_rows(m, h, 0, down + FLOAT * (j * ffn + f0 * NR), y, j, count, carry)
        carry = 1
