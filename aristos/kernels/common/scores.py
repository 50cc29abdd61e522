"""From a token's router scores to k expert ids and k combine weights, by the scores of `config.SCORES`.

All in float32. Every value depends on its own token alone, not on other tokens of the call. To add a score: its code in
config.py, a function here and its case in `reference.route`.
"""

import numpy as np

from ...config import SCORES
from ...primitives.compile import jit
from .activations import exp
from .branches import implementations, unrolled

ZERO = np.float32(0)


@jit
def top_k(row, experts, k, ids, weights):
    """Write the k largest of row[experts] in falling order: ids[k], and values to weights[k]. Ties: lowest id first."""
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
def softmax(row, experts, largest, kept, renormalize):
    """The divisor of the weights: the sum over all experts, or over the k kept if they are renormalized."""
    if renormalize:
        return kept
    total = ZERO
    for e in range(experts):
        row[e] = exp(row[e] - largest)
    for e in range(experts):
        total += row[e]
    return total


@jit
def softmax_topk(row, experts, largest, kept, renormalize):
    """The divisor of the weights: the sum over the k kept."""
    return kept


FUNCTIONS = implementations(SCORES, globals())
divisor = jit(
    unrolled(
        "divisor",
        "row, experts, largest, kept, renormalize",
        "return case(row, experts, largest, kept, renormalize)",
        FUNCTIONS,
        globals(),
    )
)


@jit
def choose(row, experts, k, mode, renormalize, scale, ids, weights):
    """Scores of one token -> k ids and k combine weights; False if a score is not finite.

    row: [experts] float32, overwritten. mode: a code of `config.SCORES`. ids: [k] int64, weights: [k] float32.
    """
    largest = row[0]
    finite = ZERO
    for e in range(experts):
        finite += row[e] * ZERO  # stays zero unless a score is infinite or NaN
        largest = max(largest, row[e])
    if finite != ZERO:
        return False
    top_k(row, experts, k, ids, weights)
    kept = ZERO
    for j in range(k):
        weights[j] = exp(weights[j] - largest)
        kept += weights[j]
    total = divisor(mode, row, experts, largest, kept, renormalize)
    for j in range(k):
        weights[j] = weights[j] / total * scale
    return True
