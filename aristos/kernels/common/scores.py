"""From a token's router scores to k expert ids and k combine weights, by the scores of `config.SCORES`.

All in float32. Every value depends on its own token alone, not on other tokens of the call. To add a score: its code in
config.py, a function here of that name and one in reference.py.
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


# ---- scores: functions of one signature, which replace a token's k largest scores by combine weights
#
# row: [experts] float32, all scores, may be overwritten; largest: the largest of them. weights: [k] float32, the k
# largest scores at first. renormalize: the weights' sum shall be one.


@jit
def softmax(row, experts, largest, renormalize, weights, k):
    """Shares of the softmax over all experts; renormalized, of that over the k."""
    if renormalize:
        divide(weights, k, exponentials(weights, k, largest))
        return
    for e in range(experts):
        row[e] = exp(row[e] - largest)
    total = ZERO
    for e in range(experts):
        total += row[e]
    exponentials(weights, k, largest)
    divide(weights, k, total)


@jit
def softmax_topk(row, experts, largest, renormalize, weights, k):
    """Shares of the softmax over the k."""
    divide(weights, k, exponentials(weights, k, largest))


@jit
def exponentials(weights, k, largest):
    """Replace k scores by e^(score - largest). Returns their sum."""
    total = ZERO
    for j in range(k):
        weights[j] = exp(weights[j] - largest)
        total += weights[j]
    return total


@jit
def divide(weights, k, total):
    """Divide k weights by `total`."""
    for j in range(k):
        weights[j] = weights[j] / total


FUNCTIONS = implementations(SCORES, globals())
weigh = jit(
    unrolled(
        "weigh",
        "row, experts, largest, renormalize, weights, k",
        "case(row, experts, largest, renormalize, weights, k)",
        FUNCTIONS,
        globals(),
    )
)


# ---- routing of one token


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
    weigh(mode, row, experts, largest, renormalize, weights, k)
    for j in range(k):
        weights[j] = weights[j] * scale
    return True
