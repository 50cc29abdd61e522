"""What happens to whole tokens: router scores, top-k with its weights, and the weighted sum of expert outputs.

All in float32, every value from its own token alone, so that it does not matter who else is in the call.
"""

import numpy as np

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT
from ...primitives.compile import jit
from .activation import exp
from .gemm import narrow_rows
from .panels import LANES

SOFTMAX, SOFTMAX_TOPK = range(2)
SCORES = {"softmax": SOFTMAX, "softmax_topk": SOFTMAX_TOPK}
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
def top_k(row, experts, k, ids, weights):
    """The k largest of row[experts], falling, into ids[k], their values into weights[k]; ties to the lowest id."""
    for j in range(k):
        ids[j] = -1
    for e in range(experts):
        value = row[e]
        if ids[k - 1] >= 0 and not value > weights[k - 1]:
            continue
        j = k - 1
        while j > 0 and (ids[j - 1] < 0 or value > weights[j - 1]):
            ids[j] = ids[j - 1]
            weights[j] = weights[j - 1]
            j -= 1
        ids[j] = e
        weights[j] = value


@jit
def choose(row, experts, k, mode, renormalize, scale, ids, weights):
    """Scores of one token -> k ids and k combine weights; False if a score is not finite.

    row: [experts] float32, overwritten. ids: [k] int64, weights: [k] float32.
    """
    largest = row[0]
    finite = ZERO
    for e in range(experts):
        finite += row[e] * ZERO  # stays zero unless a score is infinite or NaN
        largest = max(largest, row[e])
    if finite != ZERO:
        return False
    top_k(row, experts, k, ids, weights)
    total = ZERO
    if mode == SOFTMAX:
        for e in range(experts):
            row[e] = exp(row[e] - largest)
        for e in range(experts):
            total += row[e]
    kept = ZERO
    for j in range(k):
        weights[j] = exp(weights[j] - largest)
        kept += weights[j]
    if mode == SOFTMAX_TOPK or renormalize:
        total = kept
    for j in range(k):
        weights[j] = weights[j] / total * scale
    return True


def route_bytes(tokens: int, panels: int) -> int:
    """Bytes of scratch that `route_block` needs for so many tokens: row addresses and scores."""
    return tokens * (2 * 8 + FLOAT * LANES * panels) + 64


@jit
def route_block(count, x, x_stride, hidden, router, panels, experts, k, score, renormalize, scale, ids, weights, out):
    """Scores, top-k and weights of `count` tokens; False if a score is not finite.

    x: address of rows, x_stride bytes apart; ids, weights: addresses of [count, k] int64 and float32; out: address of
    `route_bytes(count, panels)` bytes.
    """
    width = LANES * panels
    made = (out + 16 * count + 63) // 64 * 64
    scores(count, x, x_stride, hidden, router, panels, out, made)
    for i in range(count):
        row = mem.floats(made + FLOAT * width * i, experts)
        chosen = mem.words(ids + 8 * k * i, k)
        if not choose(row, experts, k, score, renormalize, scale, chosen, mem.floats(weights + FLOAT * k * i, k)):
            return False
    return True


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
