"""For each of `config.SCORES`: a function that turns gradients of combine weights into gradients of router scores.

A function handles one token. The choice of experts counts as constant. Exponentials are float32; products and sums are
float64. If a score has no function of its name here, importing this module fails.
"""

import numpy as np

from kernel_cache.compile import jit

from ...config import LEAST_SUM, SCORES, SPARSEMIXER_WIDTH
from .activations import exp, logistic
from .branches import implementations, unrolled
from .scores import FAR, root_softplus

_f = np.float32
LEAST, WIDTH = np.float64(LEAST_SUM), np.float64(SPARSEMIXER_WIDTH)
ZERO, ONE, TWO = np.float64(0), np.float64(1), np.float64(2)


# ---- functions of one signature. From dw[k], the gradients of the combine weights, they compute the gradients of the
# scores, and add them to out[experts].
#
# row: [experts] float32 scores. ids: [k] int64, the chosen experts, also those beyond the capacity. scale: the factor
# of the weights. 1 - share is computed as the sum of the other shares: if a share is nearly 1, a difference would lose
# digits.


@jit
def lead(values, dw, k, j, rest):
    """The sum over all shares i of share i * (dw[j] - dw[i]), times the sum of all values.

    values: [k] float64; shares are proportional to them. rest: the sum of the values of further shares, whose dw is 0.
    """
    found = np.float64(dw[j]) * rest
    for i in range(k):
        found += values[i] * (np.float64(dw[j]) - dw[i])
    return found


@jit
def softmax_slopes(row, experts, renormalize, ids, dw, k, scale, out):
    """The slopes of the score softmax. If renormalized, the weights are the softmax over the k choices."""
    if renormalize:
        softmax_topk_slopes(row, experts, renormalize, ids, dw, k, scale, out)
        return
    largest = row[0]
    for e in range(experts):
        largest = max(largest, row[e])
    powers, values = np.empty(experts, np.float64), np.empty(k, np.float64)
    for e in range(experts):
        powers[e] = exp(row[e] - largest)
    for j in range(k):
        values[j] = powers[ids[j]]
        powers[ids[j]] = ZERO
    rest, total, mean = ZERO, ZERO, ZERO
    for e in range(experts):
        rest += powers[e]
    for j in range(k):
        total += values[j]
        mean += dw[j] * values[j]
    total += rest
    for e in range(experts):
        out[e] -= _f(scale * mean / total * powers[e] / total)
    for j in range(k):
        out[ids[j]] += _f(scale * lead(values, dw, k, j, rest) / total * values[j] / total)


@jit
def softmax_topk_slopes(row, experts, renormalize, ids, dw, k, scale, out):
    largest = row[ids[0]]
    for j in range(k):
        largest = max(largest, row[ids[j]])
    values, total = np.empty(k, np.float64), ZERO
    for j in range(k):
        values[j] = exp(row[ids[j]] - largest)
        total += values[j]
    for j in range(k):
        out[ids[j]] += _f(scale * lead(values, dw, k, j, ZERO) / total * values[j] / total)


@jit
def sigmoid_slopes(row, experts, renormalize, ids, dw, k, scale, out):
    values = np.empty(k, np.float64)
    for j in range(k):
        values[j] = logistic(row[ids[j]])
    total = sum_of(values, k)
    for j in range(k):
        back = lead(values, dw, k, j, LEAST) / total / total if renormalize else np.float64(dw[j])
        out[ids[j]] += _f(scale * back * values[j] * logistic(-row[ids[j]]))


@jit
def sqrtsoftplus_slopes(row, experts, renormalize, ids, dw, k, scale, out):
    values = np.empty(k, np.float64)
    for j in range(k):
        values[j] = root_softplus(row[ids[j]])
    total = sum_of(values, k)
    for j in range(k):
        slope = values[j] / TWO if row[ids[j]] < FAR else logistic(row[ids[j]]) / (TWO * values[j])
        back = lead(values, dw, k, j, LEAST) / total / total if renormalize else np.float64(dw[j])
        out[ids[j]] += _f(scale * back * slope)


@jit
def sum_of(values, k):
    """The number by which k values are divided to renormalize them."""
    total = LEAST
    for j in range(k):
        total += values[j]
    return total


@jit
def sparsemixer_slopes(row, experts, renormalize, ids, dw, k, scale, out):
    """The slopes of the score sparsemixer. The set of experts whose scores are close enough counts as constant."""
    powers = np.empty(experts, np.float64)
    for j in range(k):
        best, rest = row[ids[j]], ZERO
        for e in range(experts):
            powers[e] = close_power(row, e, best, ids, j)
        powers[ids[j]] = ZERO  # the choice's own power, 1, is not part of the rest
        for e in range(experts):
            rest += powers[e]
        back = scale * dw[j] / (ONE + rest)
        for e in range(experts):
            out[e] -= _f(back * powers[e] / (ONE + rest))
        out[ids[j]] += _f(back * rest / (ONE + rest))


@jit
def close_power(row, e, best, ids, j):
    """e^(row[e] - best) if e is no earlier choice and row[e] is close to `best`, the score of choice j; else 0."""
    for i in range(j):
        if ids[i] == e:
            return ZERO
    below = np.float64(best) - row[e]
    return np.float64(exp(_f(-below))) if below <= WIDTH * max(abs(row[e]), best) else ZERO


FUNCTIONS = implementations({f"{name}_slopes": code for name, code in SCORES.items()}, globals())
_arguments = "row, experts, renormalize, ids, dw, k, scale, out"
score_slopes = jit(unrolled("score_slopes", _arguments, f"case({_arguments})", FUNCTIONS, globals()))
