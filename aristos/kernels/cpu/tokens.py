"""Whole tokens: router scores, and the weighted sum of expert outputs.

All sums are float32. Every value depends on its own token alone, not on other tokens of the call.
"""

import numpy as np
from numba.extending import overload

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT, LINE
from ..common.activations import logistic
from ..common.branches import by_code
from ..common.scores import choose
from . import micro_kernels
from .convert import BFLOAT16, FLOAT16, FLOAT32, round_row, widen_row
from .elements import WIDTH
from .gemm import block_product, pack_rows, packed_bytes
from .panels import LANES, padded
from .widened import widen_rows

ZERO = np.float32(0)


@jit
def scores(element, m, x, stride, hidden, router, experts, scratch, out):
    """Set out[m, experts rounded up to vectors] to x[m, hidden] router, in float32.

    element: the code of the type of x. stride: the number of bytes between rows of x. router: the address of packed
    float32 panels. scratch: the address of space for row addresses and packed rows.
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
def route_block(element, call):
    """Score tokens of this element type, and choose their experts and weights. Returns False if a score is not finite.

    call: a RouteBlock.
    """
    tokens, experts, k, pitch = call.tokens, call.experts, call.k, call.pitch
    width = FLOAT * LANES * ((experts + LANES - 1) // LANES)
    made = (call.scratch + LINE - 1) // LINE * LINE
    scores(element, tokens, call.x, call.x_stride, call.hidden, call.router, experts, made + width * tokens, made)
    for i in range(tokens):
        row = mem.floats(made + width * i, experts)
        if call.router_bias != 0:
            add(row, call.router_bias, experts)
        if call.logits != 0:
            mem.copy_row(call.logits + FLOAT * experts * i, made + width * i, FLOAT * experts)
        chosen, shares = mem.words(call.ids + 8 * pitch * i, k), mem.floats(call.weights + FLOAT * pitch * i, k)
        if not choose(row, experts, k, call.score, call.renormalize, call.scale, call.select_bias, chosen, shares):
            return False
    return True


@jit
def add(row, bias, n):
    """Add the n float32 at address `bias` to row[n]."""
    added = mem.floats(bias, n)
    for i in range(n):
        row[i] += added[i]


@jit
def weigh_shared(element, call):
    """Write each token's weight of the shared expert: logistic(x w) for a token x and the column w.

    Returns False if a product is not finite. call: a WeighShared.
    """
    tokens, width = call.tokens, FLOAT * LANES
    made = (call.scratch + LINE - 1) // LINE * LINE
    scores(element, tokens, call.x, call.x_stride, call.hidden, call.column, 1, made + width * tokens, made)
    for i in range(tokens):
        score = mem.floats(made + width * i, 1)[0]
        if score - score != ZERO:
            return False
        mem.floats(call.weights + FLOAT * call.pitch * i, 1)[0] = logistic(score)
    return True


def weighted_block(code, n, rows, weights, offset, sums):
    """Set 32 float32 at `sums` to the sum over i < n of weights[i] times 32 elements of row i, which have 16 bits.

    code: the code of the elements' type. n: at least 1. rows: the address of an array of n row addresses. weights: the
    address of n float32. offset: how many bytes of a row lie before the 32 elements. Each sum starts from zero and adds
    rows in order of i.
    """
    factors = mem.floats(weights, n)
    total = np.zeros(WIDTH, np.float32)
    values = np.empty(WIDTH, np.float32)
    for i in range(n):
        widen_row(code, values.ctypes.data, mem.load(rows + 8 * i) + offset, WIDTH)
        total += factors[i] * values
    mem.floats(sums, WIDTH)[:] = total


_weighted = {code: micro_kernels.weighted_rows(LANES, code == FLOAT16) for code in (BFLOAT16, FLOAT16)}
overload(weighted_block)(by_code(weighted_block, _weighted, globals()))


def combine_bytes(k: int) -> int:
    """Bytes of scratch of `combine_token` for k choices.

    The memory holds 32 sums, and for each choice that has a row the row's address, a copy of the row's end, the address
    of this copy, and the weight.
    """
    return k * (8 + FLOAT + 8 + 2 * WIDTH) + FLOAT * WIDTH + LINE


@jit
def combine_rows(element, y, k, weights, rows, hidden, scratch):
    """Do what `combine_token` does, for elements of 16 bits.

    Ends of rows are copied, because a block of 32 elements may reach beyond the end of a row.
    """
    sums = (scratch + LINE - 1) // LINE * LINE
    ends = sums + FLOAT * WIDTH
    taken_rows = ends + 2 * WIDTH * k
    row_ends = taken_rows + 8 * k
    taken_weights = row_ends + 8 * k
    whole = hidden // WIDTH * WIDTH
    factors, n = mem.floats(taken_weights, k), 0
    for j in range(k):
        if rows[j] != 0:
            mem.store(taken_rows + 8 * n, rows[j])
            if whole < hidden:
                mem.copy_row(ends + 2 * WIDTH * n, rows[j] + 2 * whole, 2 * (hidden - whole))
                mem.store(row_ends + 8 * n, ends + 2 * WIDTH * n)
            factors[n] = weights[j]
            n += 1
    if n == 0:
        mem.bits16(y, hidden)[:] = 0
        return
    for i in range(0, whole, WIDTH):
        weighted_block(element, n, taken_rows, taken_weights, 2 * i, sums)
        round_row(element, y + 2 * i, sums, WIDTH)
    if whole < hidden:
        weighted_block(element, n, row_ends, taken_weights, 0, sums)
        round_row(element, y + 2 * whole, sums, hidden - whole)


@jit
def add_float32(out, row, weight, n, first):
    """Set out[n] float32 to weight * row, plus out if not `first`. row: the address of n float32."""
    sums, values = mem.floats(out, n), mem.floats(row, n)
    if first:
        for i in range(n):
            sums[i] = weight * values[i]
    else:
        for i in range(n):
            sums[i] += weight * values[i]


@jit
def combine_token(element, call):
    """Write a token's output: the weighted sum of its choices' rows. call: a CombineToken.

    The sum is computed in float32 in the order of choices, and rounded once to the element type. For rows of float32
    the call's scratch is not used.
    """
    y, k, hidden = call.y, call.k, call.hidden
    weights, rows = mem.floats(call.weights, k), mem.words(call.rows, k)
    if element != FLOAT32:
        combine_rows(element, y, k, weights, rows, hidden, call.scratch)
        return
    first = True
    for j in range(k):
        if rows[j] != 0:
            add_float32(y, rows[j], weights[j], hidden, first)
            first = False
    if first:
        mem.floats(y, hidden)[:] = ZERO
