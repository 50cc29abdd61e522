"""Whole tokens: router scores, and the weighted sum of expert outputs.

All in float32, and every value from its own token alone: other tokens of the call change nothing.
"""

import numpy as np

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT
from ...primitives.compile import jit
from .gemm import narrow_rows
from .panels import LANES

ZERO = np.float32(0)


@jit
def scores(m, x, stride, hidden, router, panels, rows, out):
    """out[m, panels * LANES] = x[m, hidden] x router; stride: bytes between rows of x; rows: 2 m words of scratch.

    router: packed in panels of LANES columns, zero columns at the end.
    """
    from_x, to_out = rows, rows + 8 * m
    width = FLOAT * panels * LANES
    for i in range(m):
        mem.store(from_x + 8 * i, x + stride * i)
        mem.store(to_out + 8 * i, out + width * i)
    narrow_rows(m, from_x, hidden, panels, router, to_out)


@jit
def combine_token(y, k, weights, rows, hidden):
    """y[hidden] = sum over j of weights[j] * row j, in order of j.

    y: address; weights: [k] float32; rows: [k] int64 addresses of rows, 0 for a choice not taken.
    """
    out = mem.floats(y, hidden)
    first = True
    for j in range(k):
        if rows[j] == 0:
            continue
        row = mem.floats(rows[j], hidden)
        w = weights[j]
        if first:
            for i in range(hidden):
                out[i] = w * row[i]
            first = False
        else:
            for i in range(hidden):
                out[i] += w * row[i]
    if first:
        for i in range(hidden):
            out[i] = ZERO
