"""The k expert ids and k combine weights of a token, from its router scores, for each score of `config.SCORES`.

All arithmetic is float32. Every value depends on its own token alone, not on other tokens of the call. A new score
needs its code in config.py, and functions of its name here and in _reference_parts.py. If experts can be chosen by the
score with groups or with a bias (`config.BIASED`), it also needs a branch in `values`.
"""

import math

import numpy as np

from kernel_cache.compile import jit

from ...config import BIASED, GROUP_SCORES, LEAST_SUM, SCORES, SPARSEMIXER_WIDTH, Router
from ...primitives import memory as mem
from .activations import ONE, exp, logistic, softplus
from .branches import implementations, unrolled

ZERO, HALF, FAR = np.float32(0), np.float32(0.5), np.float32(-20)
SMALL, WIDTH = np.float32(LEAST_SUM), np.float32(SPARSEMIXER_WIDTH)
UNLIKE = np.float32(-np.inf)
RARE = np.float32(2.0**-40)  # if a sum of softmax shares is smaller, LEAST_SUM and the range of `exp` change results
SOFTMAX, SIGMOID = SCORES["softmax"], SCORES["sigmoid"]
if set(BIASED) != {"softmax", "sigmoid", "sqrtsoftplus"}:
    raise ImportError(f"config.BIASED names {', '.join(BIASED)}: extend `values`")
SUM_TOP2 = GROUP_SCORES["sum_top2"]
GROUPS_SHIFT, KEPT_SHIFT, GROUP_SCORE_SHIFT = 8, 16, 24  # first bits of a rule's fields; bits 0 to 7: score


def rule(router: Router) -> int:
    """A router's score and groups as one word, which kernels get."""
    groups = router.groups << GROUPS_SHIFT | router.topk_groups << KEPT_SHIFT
    return SCORES[router.score] | groups | GROUP_SCORES[router.group_score] << GROUP_SCORE_SHIFT


def job_words(router: Router) -> dict[str, int]:
    """The words of a job that say how a router scores."""
    return {
        "score": rule(router),
        "renormalize": router.renormalize,
        "scale": int(np.float32(router.scale).view(np.int32)),
    }


@jit
def top_k(row, experts, k, ids, weights):
    """Find the k largest of row[experts], in descending order. Of equal values, the one with the lowest id comes first.

    The ids are written to ids[k], the values to weights[k]. The function repeats the loop of `insert`, because calling
    `insert` for each expert would cost more than the comparison.
    """
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
def insert(e, value, k, ids, weights):
    """Insert expert e into the k best experts so far, if its value is larger than the smallest of their values.

    Of equal values, the value that was inserted first stays first. Callers insert experts in order of their ids.
    """
    if ids[k - 1] >= 0 and not value > weights[k - 1]:
        return
    j = k - 1
    while j > 0 and (ids[j - 1] < 0 or value > weights[j - 1]):
        ids[j] = ids[j - 1]
        weights[j] = weights[j - 1]
        j -= 1
    ids[j] = e
    weights[j] = value


# ---- scores: functions of one signature, which replace the k chosen scores of a token by combine weights
#
# row: [experts] float32, all scores of the token; they may be overwritten. largest: the largest of all scores, or if
# weights are renormalized, the largest of the scores that can be chosen. weights: [k] float32, at first the k chosen
# scores. renormalize: whether the weights shall add up to one.


@jit
def softmax(row, experts, largest, renormalize, weights, k):
    """Set the weights to shares of the softmax over all experts, or if renormalized, over the k choices."""
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
    """Set the weights to shares of the softmax over the k choices."""
    divide(weights, k, exponentials(weights, k, largest))


@jit
def sigmoid(row, experts, largest, renormalize, weights, k):
    """Set the weights to the logistic function of the k scores."""
    for j in range(k):
        weights[j] = logistic(weights[j])
    if renormalize:
        divide_by_sum(weights, k)


@jit
def root_softplus(x):
    """sqrt(log(1 + e^x)). Far below zero, e^(x / 2) takes its place, because e^x can be too small for float32."""
    return exp(HALF * x) if x < FAR else math.sqrt(softplus(x))


@jit
def sqrtsoftplus(row, experts, largest, renormalize, weights, k):
    """Set the weights to the square root of log(1 + e^s) for each of the k scores s."""
    for j in range(k):
        weights[j] = root_softplus(weights[j])
    if renormalize:
        divide_by_sum(weights, k)


@jit
def sparsemixer(row, experts, largest, renormalize, weights, k):
    """Set each weight to the choice's share of a softmax over some of the experts.

    An expert takes part if no earlier choice is this expert, and if its score is close to the choice's score.
    """
    for j in range(k - 1, -1, -1):
        best, taken, total = weights[j], 0, ZERO
        for i in range(j):
            # counts earlier choices with the same score; experts with larger scores are all earlier choices
            taken += weights[i] == best
        for e in range(experts):
            below = best - row[e]
            if below == ZERO and taken > 0:
                taken -= 1
            elif below >= ZERO and below <= WIDTH * max(abs(row[e]), best):
                total += exp(-below)
        weights[j] = ONE / total


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


@jit
def sum_of(weights, k):
    """The sum of k weights, in order."""
    total = ZERO
    for j in range(k):
        total += weights[j]
    return total


@jit
def divide_by_sum(weights, k):
    """Divide k weights by their sum, plus a small number because the sum may be zero."""
    divide(weights, k, sum_of(weights, k) + SMALL)


FUNCTIONS = implementations(SCORES, globals())
_arguments = "row, experts, largest, renormalize, weights, k"
weigh = jit(unrolled("weigh", _arguments, f"case({_arguments})", FUNCTIONS, globals()))


# ---- groups, and a bias for choosing only
#
# total: the result of `values`. If it is ZERO, the row itself has the values that are compared.


@jit
def values(code, row, experts, largest):
    """Replace all scores of a token by the weights that their experts have before the choice. Returns ZERO.

    code: the code of one of `config.BIASED`. For SOFTMAX the function keeps the scores, and returns the sum by which
    `value` divides.
    """
    total = ZERO
    if code == SOFTMAX:
        for e in range(experts):
            total += exp(row[e] - largest)
    elif code == SIGMOID:
        for e in range(experts):
            row[e] = logistic(row[e])
    else:
        for e in range(experts):
            row[e] = root_softplus(row[e])
    return total


@jit
def value(row, bias, e, largest, total):
    """The value by which expert e is compared with others. bias: [experts], or empty."""
    found = exp(row[e] - largest) / total if total > ZERO else row[e]
    return found + bias[e] if len(bias) > 0 else found


@jit
def group_value(row, bias, first, size, score, largest, total):
    """The best value of experts first..first + size; if `score` is SUM_TOP2, the sum of their two best values."""
    best, second = UNLIKE, UNLIKE
    for e in range(first, first + size):
        found = value(row, bias, e, largest, total)
        if found > best:
            second = best
            best = found
        elif found > second:
            second = found
    return best + second if score == SUM_TOP2 else best


@jit
def kept_groups(row, bias, groups, kept, size, score, largest, total):
    """The `kept` best of `groups` groups, as bits. A group is one of them if fewer than `kept` other groups beat it."""
    found = 0
    for g in range(groups):
        mine, beaten = group_value(row, bias, g * size, size, score, largest, total), 0
        for other in range(groups):
            if other != g:
                theirs = group_value(row, bias, other * size, size, score, largest, total)
                beaten += theirs > mine or (theirs == mine and other < g)
        if beaten < kept:
            found |= 1 << g
    return found


@jit
def top_k_of_groups(row, bias, experts, groups, found, k, ids, weights, largest, total):
    """Do what `top_k` does, for the values of the experts in the groups whose bits `found` has.

    groups: the number of groups. It is 0 if there are no groups; then all experts can be chosen.
    """
    for j in range(k):
        ids[j] = -1
    size = experts // groups if groups > 0 else experts
    for e in range(experts):
        if groups == 0 or found >> (e // size) & 1 != 0:
            insert(e, value(row, bias, e, largest, total), k, ids, weights)


@jit
def choose_by_rule(row, experts, largest, k, rule, renormalize, bias, ids, weights):
    """Do what `choose` does if there are groups or a bias, but leave the scale out."""
    code, groups = rule & 0xFF, rule >> GROUPS_SHIFT & 0xFF
    kept, score = rule >> KEPT_SHIFT & 0xFF, rule >> GROUP_SCORE_SHIFT
    by_score = len(bias) == 0 and score != SUM_TOP2  # raw scores have the order of weights, without ties by rounding
    total = ZERO if by_score else values(code, row, experts, largest)
    found = kept_groups(row, bias, groups, kept, experts // groups, score, largest, total) if groups > 0 else 0
    top_k_of_groups(row, bias, experts, groups, found, k, ids, weights, largest, total)
    if by_score:
        best = weights[0] if renormalize else largest
        weigh(code, row, experts, best, renormalize, weights, k)
        return
    for j in range(k):
        weights[j] = exp(row[ids[j]] - largest) / total if total > ZERO else row[ids[j]]
    if renormalize:
        if total > ZERO and sum_of(weights, k) < RARE:
            softmax_of(row, ids, weights, k)
        else:
            divide_by_sum(weights, k)


@jit
def softmax_of(row, ids, weights, k):
    """Set the weights to the softmax over only the k choices.

    This is needed if a bias excludes the best experts: shares of the softmax over all experts would then lose digits.
    """
    best = row[ids[0]]
    for j in range(k):
        weights[j] = row[ids[j]]
        best = max(best, weights[j])
    divide(weights, k, exponentials(weights, k, best))


# ---- routing of one token


@jit
def choose(row, experts, k, rule, renormalize, scale, bias, ids, weights):
    """Choose k experts by the scores of one token, and write their ids and combine weights.

    Returns False if a score is not finite. row: [experts] float32, the scores; they are overwritten. rule: the result
    of `rule` for the router. bias: the address of [experts] float32 that are added to the weights when experts are
    compared, or 0. ids: [k] int64. weights: [k] float32.
    """
    largest = row[0]
    finite = ZERO
    for e in range(experts):
        finite += row[e] * ZERO  # stays zero unless a score is infinite or NaN
        largest = max(largest, row[e])
    if finite != ZERO:
        return False
    if rule > 0xFF or bias != 0:
        added = mem.floats(bias, experts if bias != 0 else 0)
        choose_by_rule(row, experts, largest, k, rule, renormalize, added, ids, weights)
    else:
        top_k(row, experts, k, ids, weights)
        weigh(rule, row, experts, largest, renormalize, weights, k)
    for j in range(k):
        weights[j] = weights[j] * scale
    return True
