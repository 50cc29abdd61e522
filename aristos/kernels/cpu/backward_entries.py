"""The kernels of a backward call as compiled functions, which the engine calls by address: see `entries.py`."""

from ...primitives.compile import jit
from .convert import BFLOAT16, FLOAT32
from .entries import COMBINE, argument, combine
from .expert_backward import store_rows


@jit
def run(element, kernel, block):
    a = block
    if kernel == COMBINE:
        combine(FLOAT32, block)
    else:
        store_rows(
            element, argument(a, 0), argument(a, 1), argument(a, 2), argument(a, 3), argument(a, 4), argument(a, 5),
            argument(a, 6), argument(a, 7), argument(a, 8), argument(a, 9), argument(a, 10), argument(a, 11),
        )  # fmt: skip
    return 0


@jit
def float32_kernels(kernel, block):
    """Run a kernel on float32 rows: that of an expert's rows [dy | x], or the one that combines rows of dx."""
    return run(FLOAT32, kernel, block)


@jit
def bfloat16_kernels(kernel, block):
    """The same, where the forward call's rows, which its tape keeps, have bfloat16."""
    return run(BFLOAT16, kernel, block)


KERNELS = {FLOAT32: float32_kernels, BFLOAT16: bfloat16_kernels}
