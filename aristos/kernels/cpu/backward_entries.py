"""The kernels of a backward call as one compiled function, which the engine calls by address: see `entries.py`."""

from ...primitives.compile import jit
from .convert import FLOAT32
from .entries import COMBINE, argument, combine
from .expert_backward import store_rows


@jit
def backward_kernels(kernel, block):
    """Run a kernel on float32 rows: that of an expert's rows [dy | x], or the one that combines rows of dx."""
    a = block
    if kernel == COMBINE:
        combine(FLOAT32, block)
    else:
        store_rows(
            argument(a, 0), argument(a, 1), argument(a, 2), argument(a, 3), argument(a, 4), argument(a, 5),
            argument(a, 6), argument(a, 7), argument(a, 8), argument(a, 9), argument(a, 10),
        )  # fmt: skip
    return 0
