"""From the gradient of a token's k combine weights to that of its router scores, for each score of `config.SCORES`.

The choice of experts counts as given. Terms are float32, sums float64, so that a token's values depend on that token
alone. A score without a function of its name here fails when this module is imported.
"""

import numpy as np

from ...config import LEAST_SUM, SCORES, SPARSEMIXER_WIDTH
from ...primitives.compile import jit
from .activations import exp, logistic
from .branches import implementations, unrolled
from .scores import root_softplus

_f = np.float32
LEAST, WIDTH = np.float64(LEAST_SUM), np.float64(SPARSEMIXER_WIDTH)
ZERO, ONE, TWO = np.float64(0), np.float64(1), np.float64(2)


# ---- functions of one signature: add to out[experts] what comes from dw[k], the gradient by the unscaled weights.
#
# row: [experts] float32 scores. ids: [k] int64 as chosen, those beyond the capacity too. scale: the weights' factor.


@jit
def softmax_slopes(row, experts, renormalize, ids, dw, k, scale, out):
    """Renormalized, the weights are the softmax over the k."""
    if renormalize:
        softmax_topk_slopes(row, experts, renormalize, ids, dw, k, scale, out)
        return
    largest = row[0]
    for e in range(experts):
        largest = max(largest, row[e])
    total = ZERO
    for e in range(experts):
        total += exp(row[e] - largest)
    mean = ZERO
    for j in range(k):
        mean += dw[j] * exp(row[ids[j]] - largest) / total
    for e in range(experts):
        out[e] -= _f(scale * mean * exp(row[e] - largest) / total)
    for j in range(k):
        out[ids[j]] += _f(scale * dw[j] * exp(row[ids[j]] - largest) / total)


@jit
def softmax_topk_slopes(row, experts, renormalize, ids, dw, k, scale, out):
    largest = row[ids[0]]
    for j in range(k):
        largest = max(largest, row[ids[j]])
    total, mean = ZERO, ZERO
    for j in range(k):
        power = np.float64(exp(row[ids[j]] - largest))
        total += power
        mean += dw[j] * power
    for j in range(k):
        out[ids[j]] += _f(scale * (dw[j] - mean / total) * exp(row[ids[j]] - largest) / total)


@jit
def sigmoid_slopes(row, experts, renormalize, ids, dw, k, scale, out):
    values = np.empty(k, np.float64)
    for j in range(k):
        values[j] = logistic(row[ids[j]])
    total, mean = shares(values, renormalize, dw, k)
    for j in range(k):
        out[ids[j]] += _f(scale * (dw[j] - mean) / total * values[j] * logistic(-row[ids[j]]))


@jit
def sqrtsoftplus_slopes(row, experts, renormalize, ids, dw, k, scale, out):
    values = np.empty(k, np.float64)
    for j in range(k):
        values[j] = root_softplus(row[ids[j]])
    total, mean = shares(values, renormalize, dw, k)
    for j in range(k):
        slope = logistic(row[ids[j]]) / (TWO * values[j]) if values[j] > ZERO else ZERO
        out[ids[j]] += _f(scale * (dw[j] - mean) / total * slope)


@jit
def shares(values, renormalize, dw, k):
    """(what the k values are divided by, mean of dw by these shares)."""
    if not renormalize:
        return ONE, ZERO
    total, mean = LEAST, ZERO
    for j in range(k):
        total += values[j]
    for j in range(k):
        mean += dw[j] * values[j] / total
    return total, mean


@jit
def sparsemixer_slopes(row, experts, renormalize, ids, dw, k, scale, out):
    """Which experts are close enough to take part counts as given."""
    for j in range(k):
        best, total = row[ids[j]], ZERO
        for e in range(experts):
            total += close_power(row, e, best, ids, j)
        for e in range(experts):
            out[e] -= _f(scale * dw[j] / total * close_power(row, e, best, ids, j) / total)
        out[ids[j]] += _f(scale * dw[j] / total)


@jit
def close_power(row, e, best, ids, j):
    """e^(score - best) of an expert of the rest that is close to the best score of choice j, else 0."""
    for i in range(j):
        if ids[i] == e:
            return ZERO
    below = np.float64(best) - row[e]
    return np.float64(exp(_f(-below))) if below <= WIDTH * max(abs(row[e]), best) else ZERO


FUNCTIONS = implementations({f"{name}_slopes": code for name, code in SCORES.items()}, globals())
_arguments = "row, experts, renormalize, ids, dw, k, scale, out"
score_slopes = jit(unrolled("score_slopes", _arguments, f"case({_arguments})", FUNCTIONS, globals()))
