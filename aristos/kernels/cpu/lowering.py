"""The CPU lowerings of `aristos.primitives.arithmetic`. With NUMBA_DISABLE_JIT=1 the kernels replace the names."""

from numba.extending import overload

from ...primitives import arithmetic
from ...primitives.compile import config
from .expert import down_columns, expert_rows, up_columns
from .tokens import combine_token, route_block

if config.DISABLE_JIT:
    for _kernel in (route_block, expert_rows, up_columns, down_columns, combine_token):
        setattr(arithmetic, _kernel.__name__, _kernel)


@overload(arithmetic.route_block, inline="always")
def _route_block(count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, ids, weights, scratch):
    def run(count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, ids, weights, scratch):
        return route_block(
            count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, ids, weights, scratch
        )

    return run


@overload(arithmetic.expert_rows, inline="always")
def _expert_rows(rows, x, y, weights, activation, hidden, ffn, scratch, wire):
    return lambda rows, x, y, weights, activation, hidden, ffn, scratch, wire: expert_rows(
        rows, x, y, weights, activation, hidden, ffn, scratch, wire
    )


@overload(arithmetic.up_columns, inline="always")
def _up_columns(rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire):
    return lambda rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire: up_columns(
        rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire
    )


@overload(arithmetic.down_columns, inline="always")
def _down_columns(rows, activations, y, weights, ffn, first, last, wire):
    return lambda rows, activations, y, weights, ffn, first, last, wire: down_columns(
        rows, activations, y, weights, ffn, first, last, wire
    )


@overload(arithmetic.combine_token, inline="always")
def _combine_token(y, k, weights, rows, hidden):
    return lambda y, k, weights, rows, hidden: combine_token(y, k, weights, rows, hidden)
