"""The CPU lowerings of `aristos.primitives.arithmetic`. With NUMBA_DISABLE_JIT=1 the kernels replace the names."""

from numba.extending import overload

from ...primitives import arithmetic
from ...primitives.buffers import FLOAT
from ...primitives.compile import config, jit
from . import expert, rounded_expert
from .convert import FLOAT32
from .tokens import combine_token, route_block


def run_bytes(element: int, rows: int, few: int, hidden: int, ffn: int, gated: bool) -> tuple[int, int]:
    """Bytes of scratch for a run of `rows` rows, and of hidden activations for a column-split run of `few` rows."""
    if element == FLOAT32:
        return expert.scratch_bytes(rows, hidden, gated), expert.activation_bytes(few, ffn, gated)
    run = rounded_expert.scratch_bytes(element, rows, hidden, ffn, gated)
    return max(run, FLOAT * hidden), rounded_expert.activation_bytes(element, few, ffn)


@jit
def expert_rows(element, rows, x, y, weights, activation, hidden, ffn, scratch, wire):
    if element == FLOAT32:
        expert.expert_rows(rows, x, y, weights, activation, hidden, ffn, scratch, wire)
    else:
        rounded_expert.expert_rows(element, rows, x, y, weights, activation, hidden, ffn, scratch, wire)


@jit
def up_columns(element, rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire):
    if element == FLOAT32:
        expert.up_columns(rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire)
    else:
        rounded_expert.up_columns(
            element, rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire
        )


@jit
def down_columns(element, rows, activations, y, weights, ffn, first, last, scratch, wire):
    if element == FLOAT32:
        expert.down_columns(rows, activations, y, weights, ffn, first, last, wire)
    else:
        rounded_expert.down_columns(element, rows, activations, y, weights, ffn, first, last, scratch, wire)


if config.DISABLE_JIT:
    for _kernel in (route_block, expert_rows, up_columns, down_columns, combine_token):
        setattr(arithmetic, _kernel.__name__, _kernel)


@overload(arithmetic.route_block, inline="always")
def _route_block(
    element, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, ids, weights, scratch
):
    def run(element, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, ids, weights, scratch):
        return route_block(
            element, count, x, x_stride, hidden, router, experts, k, score, renormalize, scale, ids, weights, scratch
        )

    return run


@overload(arithmetic.expert_rows, inline="always")
def _expert_rows(element, rows, x, y, weights, activation, hidden, ffn, scratch, wire):
    return lambda element, rows, x, y, weights, activation, hidden, ffn, scratch, wire: expert_rows(
        element, rows, x, y, weights, activation, hidden, ffn, scratch, wire
    )


@overload(arithmetic.up_columns, inline="always")
def _up_columns(element, rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire):
    def run(element, rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire):
        return up_columns(
            element, rows, x, activations, weights, activation, hidden, ffn, first, columns, scratch, wire
        )

    return run


@overload(arithmetic.down_columns, inline="always")
def _down_columns(element, rows, activations, y, weights, ffn, first, last, scratch, wire):
    return lambda element, rows, activations, y, weights, ffn, first, last, scratch, wire: down_columns(
        element, rows, activations, y, weights, ffn, first, last, scratch, wire
    )


@overload(arithmetic.combine_token, inline="always")
def _combine_token(element, y, k, weights, rows, hidden, scratch):
    return lambda element, y, k, weights, rows, hidden, scratch: combine_token(
        element, y, k, weights, rows, hidden, scratch
    )
