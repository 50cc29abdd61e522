"""Whole tokens: router scores, and the weighted sum of expert outputs.

All in float32. Every value depends on its own token alone, not on other tokens of the call.
"""

import numpy as np

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT
from ...primitives.compile import jit
from ..common.scores import choose
from .gemm import narrow_rows
from .panels import LANES

ZERO = np.float32(0)


@jit
def scores(m, x, stride, hidden, router, panels, rows, out):
    """out[m, panels * LANES] = x[m, hidden] router; stride: bytes between rows of x; rows: 2 m words of scratch.

    router: packed in panels of LANES columns, zero columns at the end.
    """
    from_x, to_out = rows, rows + 8 * m
    width = FLOAT * panels * LANES
    for i in range(m):
        mem.store(from_x + 8 * i, x + stride * i)
        mem.store(to_out + 8 * i, out + width * i)
    narrow_rows(m, from_x, hidden, panels, router, to_out)


def route_bytes(tokens: int, panels: int) -> int:
    """Bytes of scratch that `route_block` needs for `count` tokens: row addresses and scores."""
    return tokens * (2 * 8 + FLOAT * LANES * panels) + 64


@jit
def route_block(count, x, x_stride, hidden, router, panels, experts, k, score, renormalize, scale, ids, weights, out):
    """Scores, top-k and weights of `count` tokens; False if a score is not finite.

    x: address of rows, x_stride bytes apart; ids, weights: addresses of [count, k] int64 and float32; out: address of
    `route_bytes(count, panels)` bytes.
    """
    width = LANES * panels
    made = (out + 16 * count + 63) // 64 * 64
    scores(count, x, x_stride, hidden, router, panels, out, made)
    for i in range(count):
        row = mem.floats(made + FLOAT * width * i, experts)
        chosen = mem.words(ids + 8 * k * i, k)
        if not choose(row, experts, k, score, renormalize, scale, chosen, mem.floats(weights + FLOAT * k * i, k)):
            return False
    return True


@jit
def combine_token(y, k, weights, rows, hidden):
    """y[hidden] = sum over j of weights[j] * row j, in order of j.

    y: address; weights: [k] float32; rows: [k] int64 addresses of rows, 0 for a choice not taken.
    """
    out = mem.floats(y, hidden)
    first = True
    for j in range(k):
        if rows[j] == 0:
            continue
        row = mem.floats(rows[j], hidden)
        w = weights[j]
        if first:
            for i in range(hidden):
                out[i] = w * row[i]
            first = False
        else:
            for i in range(hidden):
                out[i] += w * row[i]
    if first:
        for i in range(hidden):
            out[i] = ZERO
