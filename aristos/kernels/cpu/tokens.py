"""Whole tokens: router scores, and the weighted sum of expert outputs.

All sums are float32. Every value depends on its own token alone, not on other tokens of the call.
"""

import numpy as np

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT, LINE
from ...primitives.compile import jit
from ..common.scores import choose
from .convert import BFLOAT16, FLOAT32, float_of_half, round_row
from .gemm import block_product, pack_rows, packed_bytes
from .panels import LANES, padded
from .widened import widen_rows

ZERO = np.float32(0)


@jit
def scores(element, m, x, stride, hidden, router, experts, scratch, out):
    """out[m, experts rounded up to vectors] = x[m, hidden] router in float32; stride: bytes between rows of x.

    element: type of x. router: packed float32 panels; scratch: row addresses and packed rows.
    """
    from_x, to_out = scratch, scratch + 8 * m
    a = (scratch + 16 * m + LINE - 1) // LINE * LINE
    width = FLOAT * LANES * ((experts + LANES - 1) // LANES)
    for i in range(m):
        mem.store(from_x + 8 * i, x + stride * i)
        mem.store(to_out + 8 * i, out + width * i)
    if element == FLOAT32:
        pack_rows(m, from_x, hidden, a)
    else:
        widen_rows(element, m, from_x, hidden, a)
    block_product(m, a, hidden, router, experts, to_out)


def route_bytes(tokens: int, hidden: int, experts: int) -> int:
    """Bytes of scratch that `route_block` needs for `tokens` tokens: scores, row addresses and packed rows."""
    return tokens * (2 * 8 + FLOAT * padded(experts)) + packed_bytes(tokens, hidden) + 2 * LINE


@jit
def route_block(
    element, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, ids, weights, scratch
):
    """Scores, top-k and weights of `count` tokens; False if a score is not finite.

    x: address of rows of this element type, x_stride bytes apart; ids, weights: addresses of [count, k] int64 and
    float32; scratch: address of `route_bytes(count, hidden, experts)` bytes.
    """
    width = FLOAT * LANES * ((experts + LANES - 1) // LANES)
    made = (scratch + LINE - 1) // LINE * LINE
    scores(element, count, x, x_stride, hidden, router, experts, made + width * count, made)
    for i in range(count):
        row = mem.floats(made + width * i, experts)
        chosen = mem.words(ids + 8 * k * i, k)
        if not choose(row, experts, k, score, renormalize, scale, chosen, mem.floats(weights + FLOAT * k * i, k)):
            return False
    return True


@jit
def add_row(element, out, row, weight, n, first):
    """out[n] float32 = weight * row, plus out if not `first`. row: address of n elements of 16 bits."""
    sums, bits = mem.floats(out, n), mem.bits16(row, n)
    if element == BFLOAT16 and first:
        for i in range(n):
            sums[i] = weight * mem.float_of_bits(np.int64(bits[i]) << 16)
    elif element == BFLOAT16:
        for i in range(n):
            sums[i] += weight * mem.float_of_bits(np.int64(bits[i]) << 16)
    elif first:
        for i in range(n):
            sums[i] = weight * float_of_half(bits[i])
    else:
        for i in range(n):
            sums[i] += weight * float_of_half(bits[i])


@jit
def add_float32(out, row, weight, n, first):
    """As `add_row`, for a row of float32."""
    sums, values = mem.floats(out, n), mem.floats(row, n)
    if first:
        for i in range(n):
            sums[i] = weight * values[i]
    else:
        for i in range(n):
            sums[i] += weight * values[i]


@jit
def combine_token(element, y, k, weights, rows, hidden, scratch):
    """y[hidden] = sum over j of weights[j] * row j, in order of j, in float32; rounded once to the element type.

    y: address; weights: [k] float32; rows: [k] int64 addresses of rows, 0 for a choice not taken; scratch: address of
    `hidden` float32, unused for rows of float32.
    """
    sums = y if element == FLOAT32 else scratch
    first = True
    for j in range(k):
        if rows[j] == 0:
            continue
        if element == FLOAT32:
            add_float32(sums, rows[j], weights[j], hidden, first)
        else:
            add_row(element, sums, rows[j], weights[j], hidden, first)
        first = False
    if first:
        mem.floats(sums, hidden)[:] = ZERO
    if element != FLOAT32:
        round_row(element, y, sums, hidden)
