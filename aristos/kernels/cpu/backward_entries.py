"""The kernels of a backward call as compiled functions, which the engine calls by address: see `entries.py`."""

from kernel_cache.compile import jit

from . import expert_backward, rounded_backward
from .convert import BFLOAT16, FLOAT32
from .entries import COMBINE, argument, combine


@jit
def float32_kernels(kernel, block):
    """Run a kernel on float32 rows: that of an expert's rows [dy | x], or the one that combines rows of dx."""
    a = block
    if kernel == COMBINE:
        combine(FLOAT32, block)
    else:
        expert_backward.store_rows(
            argument(a, 0), argument(a, 1), argument(a, 2), argument(a, 3), argument(a, 4), argument(a, 5),
            argument(a, 6), argument(a, 7), argument(a, 8), argument(a, 9), argument(a, 10), argument(a, 11),
        )  # fmt: skip
    return 0


@jit
def bfloat16_kernels(kernel, block):
    """The same, where the values of rows and weights are bfloat16."""
    a = block
    if kernel == COMBINE:
        combine(FLOAT32, block)
    else:
        rounded_backward.store_rows(
            argument(a, 0), argument(a, 1), argument(a, 2), argument(a, 3), argument(a, 4), argument(a, 5),
            argument(a, 6), argument(a, 7), argument(a, 8), argument(a, 9), argument(a, 10), argument(a, 11),
        )  # fmt: skip
    return 0


KERNELS = {FLOAT32: float32_kernels, BFLOAT16: bfloat16_kernels}
