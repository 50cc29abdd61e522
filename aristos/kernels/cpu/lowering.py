"""The CPU lowerings of `aristos.primitives.arithmetic`: calls of an element type's compiled kernels by address.

With NUMBA_DISABLE_JIT=1 they run as plain Python, and so do the kernels. The block of arguments is the first part of
the worker's scratch.
"""

from collections.abc import Callable

from numba.extending import overload

from kernel_cache.compile import config, jit, warm_up

from ...primitives import arithmetic
from ...primitives import memory as mem
from ..by_isa import module
from .entries import BACKWARD, BLOCK_BYTES, COMBINE, DOWN, EXPERT, ROUTE, SIGNATURE, UP, WEIGH

_plain: list[Callable[[int, int], int]] = []  # in plain Python: the functions that handles count


def handle(isa: str, element: int) -> int:
    """The job's word KERNELS: the address of the kernels of an ISA and an element type; in plain Python a number."""
    return handle_of(module("entries", isa).KERNELS[element])


def handle_of(kernels) -> int:
    """The job's word KERNELS for one compiled function of kernels."""
    if config.DISABLE_JIT:
        _plain.append(kernels)
        return len(_plain) - 1
    warm_up([(kernels, SIGNATURE)])
    found = kernels.overloads[SIGNATURE]
    return int(found.library.get_pointer_to_function(found.fndesc.llvm_func_name))


@jit
def call_compiled(kernels, kernel, block):
    """Run a kernel of the compiled function at address `kernels`; returns its result."""
    mem.call(kernels, block, block + 8, kernel, block, 0, 0, 0, 0)
    return mem.load(block)


def _call_plain(kernels, kernel, block):
    return _plain[kernels](kernel, block)


call = _call_plain if config.DISABLE_JIT else call_compiled


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
    kernels, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, router_bias, select_bias,
    ids, weights, pitch, logits, scratch,
):  # fmt: skip
    def run(
        kernels, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, router_bias, select_bias,
        ids, weights, pitch, logits, scratch,
    ):  # fmt: skip
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
        pass_on(scratch, 10, router_bias)
        pass_on(scratch, 11, select_bias)
        pass_on(scratch, 12, ids)
        pass_on(scratch, 13, weights)
        pass_on(scratch, 14, pitch)
        pass_on(scratch, 15, logits)
        pass_on(scratch, 16, scratch + BLOCK_BYTES)
        return call(kernels, ROUTE, scratch) != 0

    return run


@overload(arithmetic.weigh_shared)
def _weigh_shared(kernels, count, x, x_stride, hidden, column, weights, pitch, scratch):
    def run(kernels, count, x, x_stride, hidden, column, weights, pitch, scratch):
        pass_on(scratch, 0, count)
        pass_on(scratch, 1, x)
        pass_on(scratch, 2, x_stride)
        pass_on(scratch, 3, hidden)
        pass_on(scratch, 4, column)
        pass_on(scratch, 5, weights)
        pass_on(scratch, 6, pitch)
        pass_on(scratch, 7, scratch + BLOCK_BYTES)
        return call(kernels, WEIGH, scratch) != 0

    return run


@overload(arithmetic.weigh_row)
def _weigh_row(kernels, y, weight, x, hidden, scratch):
    def run(kernels, y, weight, x, hidden, scratch):
        pass_on(scratch, 0, y)
        pass_on(scratch, 1, 1)
        pass_on(scratch, 2, weight)
        pass_on(scratch, 3, scratch + 16 + 8 * 6)  # a table of one row: the argument after the last
        pass_on(scratch, 4, hidden)
        pass_on(scratch, 5, scratch + BLOCK_BYTES)
        pass_on(scratch, 6, x)
        call(kernels, COMBINE, scratch)

    return run


@overload(arithmetic.expert_rows)
def _expert_rows(kernels, rows, x, y, weights, activation, hidden, ffn, scratch, wire, kept):
    def run(kernels, rows, x, y, weights, activation, hidden, ffn, scratch, wire, kept):
        pass_on(scratch, 0, rows)
        pass_on(scratch, 1, x)
        pass_on(scratch, 2, y)
        pass_weights(scratch, 3, weights)
        pass_on(scratch, 9, activation)
        pass_on(scratch, 10, hidden)
        pass_on(scratch, 11, ffn)
        pass_on(scratch, 12, scratch + BLOCK_BYTES)
        pass_on(scratch, 13, wire)
        pass_on(scratch, 14, kept)
        call(kernels, EXPERT, scratch)

    return run


@overload(arithmetic.backward_rows)
def _backward_rows(kernels, rows, x, y, places, scalars, weights, activation, hidden, ffn, scratch, wire, kept):
    def run(kernels, rows, x, y, places, scalars, weights, activation, hidden, ffn, scratch, wire, kept):
        pass_on(scratch, 0, rows)
        pass_on(scratch, 1, x)
        pass_on(scratch, 2, y)
        pass_on(scratch, 3, places)
        pass_on(scratch, 4, scalars)
        pass_on(scratch, 5, weights)
        pass_on(scratch, 6, activation)
        pass_on(scratch, 7, hidden)
        pass_on(scratch, 8, ffn)
        pass_on(scratch, 9, scratch + BLOCK_BYTES)
        pass_on(scratch, 10, wire)
        pass_on(scratch, 11, kept)
        call(kernels, BACKWARD, scratch)

    return run


@overload(arithmetic.up_columns)
def _up_columns(kernels, rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire, kept):
    def run(kernels, rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire, kept):
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
        pass_on(scratch, 16, kept)
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


if config.DISABLE_JIT:
    for _typed in (
        _route_block, _weigh_shared, _weigh_row, _expert_rows, _backward_rows, _up_columns, _down_columns,
        _combine_token,
    ):  # fmt: skip
        _types = [None] * _typed.__code__.co_argcount
        setattr(arithmetic, _typed.__name__[1:], _typed(*_types))
