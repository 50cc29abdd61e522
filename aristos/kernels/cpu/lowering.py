"""The CPU lowerings of `aristos.primitives.arithmetic`: calls of an element type's compiled kernels by address.

With NUMBA_DISABLE_JIT=1 the kernels themselves replace the names. The block of arguments is the first part of the
worker's scratch.
"""

from numba.extending import overload

from ...primitives import arithmetic
from ...primitives import memory as mem
from ...primitives.compile import config, jit
from . import expert, rounded_expert
from .convert import FLOAT32
from .entries import BLOCK_BYTES, COMBINE, DOWN, EXPERT, ROUTE, UP
from .tokens import combine_token, route_block


@jit
def call(kernels, kernel, block):
    """Run a kernel of the compiled function at address `kernels`; returns its result."""
    mem.call(kernels, block, block + 8, kernel, block, 0, 0, 0, 0)
    return mem.load(block)


@jit
def pass_on(block, i, value):
    """Write argument number i."""
    mem.store(block + 16 + 8 * i, value)


@jit
def pass_weights(block, i, weights):
    """Write the six addresses of an expert's weights, from argument i on."""
    up, gate, down, up_bias, gate_bias, down_bias = weights
    pass_on(block, i, up)
    pass_on(block, i + 1, gate)
    pass_on(block, i + 2, down)
    pass_on(block, i + 3, up_bias)
    pass_on(block, i + 4, gate_bias)
    pass_on(block, i + 5, down_bias)


@overload(arithmetic.route_block)
def _route_block(
    kernels, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, ids, weights, scratch
):
    def run(kernels, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, ids, weights, scratch):
        pass_on(scratch, 0, count)
        pass_on(scratch, 1, x)
        pass_on(scratch, 2, x_stride)
        pass_on(scratch, 3, hidden)
        pass_on(scratch, 4, router)
        pass_on(scratch, 5, experts)
        pass_on(scratch, 6, k)
        pass_on(scratch, 7, score)
        pass_on(scratch, 8, renormalize)
        pass_on(scratch, 9, scale)
        pass_on(scratch, 10, ids)
        pass_on(scratch, 11, weights)
        pass_on(scratch, 12, scratch + BLOCK_BYTES)
        return call(kernels, ROUTE, scratch) != 0

    return run


@overload(arithmetic.expert_rows)
def _expert_rows(kernels, rows, x, y, weights, activation, hidden, ffn, scratch, wire):
    def run(kernels, rows, x, y, weights, activation, hidden, ffn, scratch, wire):
        pass_on(scratch, 0, rows)
        pass_on(scratch, 1, x)
        pass_on(scratch, 2, y)
        pass_weights(scratch, 3, weights)
        pass_on(scratch, 9, activation)
        pass_on(scratch, 10, hidden)
        pass_on(scratch, 11, ffn)
        pass_on(scratch, 12, scratch + BLOCK_BYTES)
        pass_on(scratch, 13, wire)
        call(kernels, EXPERT, scratch)

    return run


@overload(arithmetic.up_columns)
def _up_columns(kernels, rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire):
    def run(kernels, rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire):
        pass_on(scratch, 0, rows)
        pass_on(scratch, 1, x)
        pass_on(scratch, 2, activations)
        pass_weights(scratch, 3, weights)
        pass_on(scratch, 9, activation)
        pass_on(scratch, 10, hidden)
        pass_on(scratch, 11, ffn)
        pass_on(scratch, 12, first)
        pass_on(scratch, 13, columns)
        pass_on(scratch, 14, scratch + BLOCK_BYTES)
        pass_on(scratch, 15, wire)
        call(kernels, UP, scratch)

    return run


@overload(arithmetic.down_columns)
def _down_columns(kernels, rows, activations, y, weights, ffn, first, last, scratch, wire):
    def run(kernels, rows, activations, y, weights, ffn, first, last, scratch, wire):
        pass_on(scratch, 0, rows)
        pass_on(scratch, 1, activations)
        pass_on(scratch, 2, y)
        pass_weights(scratch, 3, weights)
        pass_on(scratch, 9, ffn)
        pass_on(scratch, 10, first)
        pass_on(scratch, 11, last)
        pass_on(scratch, 12, scratch + BLOCK_BYTES)
        pass_on(scratch, 13, wire)
        call(kernels, DOWN, scratch)

    return run


@overload(arithmetic.combine_token)
def _combine_token(kernels, y, k, weights, rows, hidden, scratch):
    def run(kernels, y, k, weights, rows, hidden, scratch):
        pass_on(scratch, 0, y)
        pass_on(scratch, 1, k)
        pass_on(scratch, 2, weights)
        pass_on(scratch, 3, rows)
        pass_on(scratch, 4, hidden)
        pass_on(scratch, 5, scratch + BLOCK_BYTES)
        call(kernels, COMBINE, scratch)

    return run


def _plain_route_block(element, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, *rest):
    scale = mem.float_of_bits(scale)
    return route_block(element, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, *rest)


def _plain_combine_token(element, y, k, weights, rows, hidden, scratch):
    combine_token(element, y, k, mem.floats(weights, k), mem.words(rows, k), hidden, scratch)


def _plain_expert_rows(element, *rest):
    if element == FLOAT32:
        expert.expert_rows(*rest)
    else:
        rounded_expert.expert_rows(element, *rest)


def _plain_up_columns(element, *rest):
    if element == FLOAT32:
        expert.up_columns(*rest)
    else:
        rounded_expert.up_columns(element, *rest)


def _plain_down_columns(element, *rest):
    if element == FLOAT32:
        expert.down_columns(*rest[:-2], rest[-1])
    else:
        rounded_expert.down_columns(element, *rest)


if config.DISABLE_JIT:
    arithmetic.route_block = _plain_route_block
    arithmetic.combine_token = _plain_combine_token
    arithmetic.expert_rows = _plain_expert_rows
    arithmetic.up_columns = _plain_up_columns
    arithmetic.down_columns = _plain_down_columns
