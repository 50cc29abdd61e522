"""The kernels of an element type as one compiled function, which the engine calls by address.

In this way the engine's compiled code contains no arithmetic, and only the element types in use are compiled. A call
passes a kernel's number and the address of the kernel's block of arguments (`call_blocks.py`). `lowering.py` makes the
calls.
"""

from __future__ import annotations

from kernel_cache.compile import jit

from . import call_blocks as calls
from . import expert, gemm, rounded_expert
from .convert import BFLOAT16, FLOAT16, FLOAT32, SPLIT
from .target import FORMAT, ISA
from .tokens import combine_token, route_block, weigh_shared


@jit
def route(element, block):
    return route_block(element, calls.route_block_at(block))


@jit
def weigh(element, block):
    return weigh_shared(element, calls.weigh_shared_at(block))


@jit
def combine(element, block):
    combine_token(element, calls.combine_token_at(block))


@jit
def float32_kernels(kernel, block):
    """Run a kernel on float32 rows and weights. Returns its result, or 0 if it has none."""
    if kernel == calls.EXPERT_ROWS:
        expert.expert_rows(calls.expert_rows_at(block))
    elif kernel == calls.UP_COLUMNS:
        expert.up_columns(calls.up_columns_at(block))
    elif kernel == calls.DOWN_COLUMNS:
        expert.down_columns(calls.down_columns_at(block))
    elif kernel == calls.COMBINE_TOKEN:
        combine(FLOAT32, block)
    elif kernel == calls.PRODUCT:
        gemm.product(calls.product_at(block))
    elif kernel == calls.WEIGH_SHARED:
        return int(weigh(FLOAT32, block))
    else:
        return int(route(FLOAT32, block))
    return 0


@jit
def run_rounded(element, kernel, block):
    """Run a kernel of an element type that `rounded_expert` computes. Returns its result, or 0 if it has none."""
    rows = FLOAT32 if element == SPLIT else element
    if kernel == calls.EXPERT_ROWS:
        rounded_expert.expert_rows(element, calls.expert_rows_at(block))
    elif kernel == calls.UP_COLUMNS:
        rounded_expert.up_columns(element, calls.up_columns_at(block))
    elif kernel == calls.DOWN_COLUMNS:
        rounded_expert.down_columns(element, calls.down_columns_at(block))
    elif kernel == calls.COMBINE_TOKEN:
        combine(rows, block)
    elif kernel == calls.PRODUCT:
        rounded_expert.product(element, calls.product_at(block))
    elif kernel == calls.WEIGH_SHARED:
        return int(weigh(rows, block))
    else:
        return int(route(rows, block))
    return 0


@jit
def bfloat16_kernels(kernel, block):
    """Run a kernel on bfloat16 rows and weights. Returns its result, or 0 if it has none."""
    return run_rounded(BFLOAT16, kernel, block)


@jit
def float16_kernels(kernel, block):
    """Run a kernel on float16 rows and weights. Returns its result, or 0 if it has none."""
    return run_rounded(FLOAT16, kernel, block)


@jit
def split_kernels(kernel, block):
    """Run a kernel on float32 rows and split weights. Returns its result, or 0 if it has none."""
    return run_rounded(SPLIT, kernel, block)


@jit
def packed_kernels(kernel, block):
    """Run a kernel on float32 rows and packed weights. Returns its result, or 0 if it has none."""
    return run_rounded(FLOAT32, kernel, block)


# the functions by the code of an element type; with packed weights this is the code of the rows' type
if FORMAT:
    KERNELS = {FLOAT32: packed_kernels, BFLOAT16: bfloat16_kernels}
else:
    KERNELS = {FLOAT32: float32_kernels, BFLOAT16: bfloat16_kernels, FLOAT16: float16_kernels}
    if ISA == "amx":
        KERNELS[SPLIT] = split_kernels


def product_bytes(element: int, rows: int, depth: int) -> int:
    """Bytes of scratch for a matrix product of `rows` rows."""
    if element == FLOAT32 and not FORMAT:
        return gemm.packed_bytes(rows, depth)
    return rounded_expert.product_bytes(element, rows, depth)


def run_rows(element: int) -> tuple[int, int]:
    """(the most rows of a run, the number of rows below which a run waits while more can land), for an element type.

    AMX computes 128 rows in the time that reading the weights takes. Long runs therefore save time, and short runs wait
    for more rows. On other instruction sets, the copied rows of a longer run would not fit the L2 cache.
    """
    return (384, 192) if ISA == "amx" and element == BFLOAT16 else (192, 32)


def run_bytes(element: int, rows: int, few: int, hidden: int, ffn: int, gated: bool) -> tuple[int, int]:
    """(bytes of scratch memory, bytes of hidden activations).

    The first number is for a run of `rows` rows, the second one for a column-split run of `few` rows.
    """
    if element == FLOAT32 and not FORMAT:
        return expert.scratch_bytes(rows, hidden, gated), expert.activation_bytes(few, ffn, gated)
    run = rounded_expert.scratch_bytes(element, rows, hidden, ffn, gated)
    return run, rounded_expert.activation_bytes(element, few, ffn)
