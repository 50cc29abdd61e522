"""Whole tokens: router scores, and the weighted sum of expert outputs.

All in float32. Every value depends on its own token alone, not on other tokens of the call.
"""

import numpy as np

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT, LINE
from ...primitives.compile import jit
from ..common.scores import choose
from .gemm import packed_bytes, product
from .panels import LANES, padded

ZERO = np.float32(0)


@jit
def scores(m, x, stride, hidden, router, experts, scratch, out):
    """out[m, experts rounded up to vectors] = x[m, hidden] router; stride: bytes between rows of x.

    router: packed panels; scratch: row addresses and packed rows.
    """
    from_x, to_out = scratch, scratch + 8 * m
    a = (scratch + 16 * m + LINE - 1) // LINE * LINE
    width = FLOAT * LANES * ((experts + LANES - 1) // LANES)
    for i in range(m):
        mem.store(from_x + 8 * i, x + stride * i)
        mem.store(to_out + 8 * i, out + width * i)
    product(m, from_x, hidden, router, experts, to_out, a)


def route_bytes(tokens: int, hidden: int, experts: int) -> int:
    """Bytes of scratch that `route_block` needs for `tokens` tokens: scores, row addresses and packed rows."""
    return tokens * (2 * 8 + FLOAT * padded(experts)) + packed_bytes(tokens, hidden) + 2 * LINE


@jit
def route_block(count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, ids, weights, scratch):
    """Scores, top-k and weights of `count` tokens; False if a score is not finite.

    x: address of rows, x_stride bytes apart; ids, weights: addresses of [count, k] int64 and float32; scratch: address
    of `route_bytes(count, hidden, experts)` bytes.
    """
    width = FLOAT * LANES * ((experts + LANES - 1) // LANES)
    made = (scratch + LINE - 1) // LINE * LINE
    scores(count, x, x_stride, hidden, router, experts, made + width * count, made)
    for i in range(count):
        row = mem.floats(made + width * i, experts)
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
