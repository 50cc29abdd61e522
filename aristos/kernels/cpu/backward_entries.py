"""The kernels of a backward call as compiled functions, which the engine calls by address. See `entries.py`."""

from kernel_cache.compile import jit

from . import call_blocks as calls
from . import expert_backward, rounded_backward
from .convert import BFLOAT16, FLOAT32
from .entries import combine


@jit
def float32_kernels(kernel, block):
    """Run the kernel for an expert's rows [dy | x], or the kernel that combines rows of dx, on float32 rows."""
    if kernel == calls.COMBINE_TOKEN:
        combine(FLOAT32, block)
    else:
        expert_backward.store_rows(calls.backward_rows_at(block))
    return 0


@jit
def bfloat16_kernels(kernel, block):
    """Run the kernel for an expert's rows [dy | x] of bfloat16, or the kernel that combines float32 rows of dx."""
    if kernel == calls.COMBINE_TOKEN:
        combine(FLOAT32, block)
    else:
        rounded_backward.store_rows(calls.backward_rows_at(block))
    return 0


KERNELS = {FLOAT32: float32_kernels, BFLOAT16: bfloat16_kernels}
