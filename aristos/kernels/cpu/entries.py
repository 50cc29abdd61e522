"""The kernels of an element type as one compiled function, which the engine calls by address.

So the engine's compiled code contains no arithmetic, and only the element types in use are compiled. A call passes a
kernel's number and the address of its arguments, a block of words: result, error, then the arguments in order.
`lowering.py` writes them.
"""

from __future__ import annotations

from numba import types

from kernel_cache.compile import jit

from ...primitives import memory as mem
from . import expert, gemm, rounded_expert
from .convert import BFLOAT16, FLOAT16, FLOAT32, SPLIT
from .target import ISA
from .tokens import combine_token, route_block, weigh_shared

ROUTE, EXPERT, UP, DOWN, COMBINE, PRODUCT, WEIGH, BACKWARD = range(8)  # the last: see backward_entries.py
BLOCK_BYTES = 192  # of a block of arguments: whole cache lines
SIGNATURE = types.int64, types.int64


@jit
def argument(block, i):
    """Word number i of the arguments."""
    return mem.load(block + 16 + 8 * i)


@jit
def weights_at(block, i):
    """The six addresses of an expert's weights, from argument i on."""
    return (
        argument(block, i), argument(block, i + 1), argument(block, i + 2),
        argument(block, i + 3), argument(block, i + 4), argument(block, i + 5),
    )  # fmt: skip


@jit
def route(element, block):
    a = block
    return route_block(
        element, argument(a, 0), argument(a, 1), argument(a, 2), argument(a, 3), argument(a, 4), argument(a, 5),
        argument(a, 6), argument(a, 7), argument(a, 8), mem.float_of_bits(argument(a, 9)), argument(a, 10),
        argument(a, 11), argument(a, 12), argument(a, 13), argument(a, 14), argument(a, 15), argument(a, 16),
    )  # fmt: skip


@jit
def weigh(element, block):
    a = block
    return weigh_shared(
        element, argument(a, 0), argument(a, 1), argument(a, 2), argument(a, 3), argument(a, 4), argument(a, 5),
        argument(a, 6), argument(a, 7),
    )  # fmt: skip


@jit
def combine(element, block):
    a = block
    k = argument(a, 1)
    weights, rows = mem.floats(argument(a, 2), k), mem.words(argument(a, 3), k)
    combine_token(element, argument(a, 0), k, weights, rows, argument(a, 4), argument(a, 5))


@jit
def float32_kernels(kernel, block):
    """Run a kernel on float32 rows and weights; returns its result, 0 if it has none."""
    a = block
    if kernel == EXPERT:
        expert.expert_rows(
            argument(a, 0), argument(a, 1), argument(a, 2), weights_at(a, 3), argument(a, 9), argument(a, 10),
            argument(a, 11), argument(a, 12), argument(a, 13), argument(a, 14),
        )  # fmt: skip
    elif kernel == UP:
        expert.up_columns(
            argument(a, 0), argument(a, 1), argument(a, 2), weights_at(a, 3), argument(a, 9), argument(a, 10),
            argument(a, 11), argument(a, 12), argument(a, 13), argument(a, 14), argument(a, 15), argument(a, 16),
        )  # fmt: skip
    elif kernel == DOWN:
        expert.down_columns(
            argument(a, 0), argument(a, 1), argument(a, 2), weights_at(a, 3), argument(a, 9), argument(a, 10),
            argument(a, 11), argument(a, 13),
        )  # fmt: skip
    elif kernel == COMBINE:
        combine(FLOAT32, block)
    elif kernel == PRODUCT:
        gemm.product(
            argument(a, 0), argument(a, 1), argument(a, 2), argument(a, 3), argument(a, 4), argument(a, 5),
            argument(a, 6),
        )  # fmt: skip
    elif kernel == WEIGH:
        return int(weigh(FLOAT32, block))
    else:
        return int(route(FLOAT32, block))
    return 0


@jit
def run_rounded(element, kernel, block):
    a = block
    rows = FLOAT32 if element == SPLIT else element
    if kernel == EXPERT:
        rounded_expert.expert_rows(
            element, argument(a, 0), argument(a, 1), argument(a, 2), weights_at(a, 3), argument(a, 9), argument(a, 10),
            argument(a, 11), argument(a, 12), argument(a, 13), argument(a, 14),
        )  # fmt: skip
    elif kernel == UP:
        rounded_expert.up_columns(
            element, argument(a, 0), argument(a, 1), argument(a, 2), weights_at(a, 3), argument(a, 9), argument(a, 10),
            argument(a, 11), argument(a, 12), argument(a, 13), argument(a, 14), argument(a, 15), argument(a, 16),
        )  # fmt: skip
    elif kernel == DOWN:
        rounded_expert.down_columns(
            element, argument(a, 0), argument(a, 1), argument(a, 2), weights_at(a, 3), argument(a, 9), argument(a, 10),
            argument(a, 11), argument(a, 12), argument(a, 13),
        )  # fmt: skip
    elif kernel == COMBINE:
        combine(rows, block)
    elif kernel == PRODUCT:
        rounded_expert.product(
            element, argument(a, 0), argument(a, 1), argument(a, 2), argument(a, 3), argument(a, 4), argument(a, 5),
            argument(a, 6),
        )  # fmt: skip
    elif kernel == WEIGH:
        return int(weigh(rows, block))
    else:
        return int(route(rows, block))
    return 0


@jit
def bfloat16_kernels(kernel, block):
    """Run a kernel on bfloat16 rows and weights; returns its result, 0 if it has none."""
    return run_rounded(BFLOAT16, kernel, block)


@jit
def float16_kernels(kernel, block):
    """Run a kernel on float16 rows and weights; returns its result, 0 if it has none."""
    return run_rounded(FLOAT16, kernel, block)


@jit
def split_kernels(kernel, block):
    """Run a kernel on float32 rows and split weights; returns its result, 0 if it has none."""
    return run_rounded(SPLIT, kernel, block)


KERNELS = {FLOAT32: float32_kernels, BFLOAT16: bfloat16_kernels, FLOAT16: float16_kernels}
if ISA == "amx":
    KERNELS[SPLIT] = split_kernels


def product_bytes(element: int, rows: int, depth: int) -> int:
    """Bytes of scratch for a matrix product of `rows` rows."""
    return gemm.packed_bytes(rows, depth) if element == FLOAT32 else rounded_expert.product_bytes(element, rows, depth)


def run_rows(element: int) -> tuple[int, int]:
    """(most rows of a run, rows that a run waits for if more can land) of an element type.

    Tiles compute 128 rows in the time in which they read the weights: so longer runs pay, and short ones wait. The
    copied rows of a longer run of another type leave the L2 cache.
    """
    return (384, 192) if ISA == "amx" and element == BFLOAT16 else (192, 32)


def run_bytes(element: int, rows: int, few: int, hidden: int, ffn: int, gated: bool) -> tuple[int, int]:
    """Bytes of scratch for a run of `rows` rows, and of hidden activations for a column-split run of `few` rows."""
    if element == FLOAT32:
        return expert.scratch_bytes(rows, hidden, gated), expert.activation_bytes(few, ffn, gated)
    run = rounded_expert.scratch_bytes(element, rows, hidden, ffn, gated)
    return run, rounded_expert.activation_bytes(element, few, ffn)
