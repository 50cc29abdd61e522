"""Parts of the reference that its gradients need too: activations, scores and routing in float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import config
from .config import MoEConfig
from .errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FAR = -40.0  # below this x, 1 + e^x is 1 in float64
erf = np.vectorize(math.erf, otypes=[np.float64])


def relu(x: Floats) -> Floats:
    return np.maximum(x, 0.0)


def gelu(x: Floats) -> Floats:
    """x Phi(x) with the error function, not one of its approximations."""
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def gelu_tanh(x: Floats) -> Floats:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Floats) -> Floats:
    """x sigmoid(x). The sigmoid is computed by tanh, because exp(-x) overflows for large negative x."""
    return x * 0.5 * (1.0 + np.tanh(0.5 * x))


def swiglu_oai(x: Floats) -> Floats:
    """x sigmoid(1.702 x), which gpt-oss applies to the gate's product."""
    return x * 0.5 * (1.0 + np.tanh(0.5 * 1.702 * x))


def relu2(x: Floats) -> Floats:
    return np.maximum(x, 0.0) ** 2


ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {name: globals()[name] for name in config.ACTIVATIONS}


def gated(activation: str, limit: float | None, g: Floats, u: Floats, after: bool = False) -> Floats:
    """act(g) * u, for the products g = x·gate and u = x·up; swiglu_oai multiplies by u + 1.

    after: `MoEConfig.limit_after`.
    """
    bound = np.inf if limit is None else limit
    u = np.clip(u, -bound, bound) + config.ACTIVATIONS[activation].shift
    act = ACTIVATIONS[activation]
    return np.minimum(act(g), bound) * u if after else act(np.minimum(g, bound)) * u


def softmax(scores: Floats) -> Floats:
    """Softmax over the last axis, shifted by its largest entry."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def softmax_weights(scores: Floats, ids: Ints, renormalize: bool) -> Floats:
    """[S, k]: the softmax over all experts, at the experts `ids` [S, k]. scores: [S, E].

    With `renormalize` the weights are the softmax over the k scores alone, which keeps the digits of small weights.
    """
    return softmax_topk_weights(scores, ids, True) if renormalize else at(softmax(scores), ids)


def softmax_topk_weights(scores: Floats, ids: Ints, renormalize: bool) -> Floats:
    """The softmax over only the experts `ids`. Its sum is one, renormalized or not."""
    return softmax(at(scores, ids))


def at(values: Floats, ids: Ints) -> Floats:
    return np.take_along_axis(values, ids, axis=1)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^-x). Below zero it is computed as e^x / (1 + e^x), which keeps digits of small values."""
    power = np.exp(-np.abs(x))
    return np.where(x < 0, power, 1.0) / (1.0 + power)


def sqrtsoftplus(x: Floats) -> Floats:
    """sqrt(log(1 + e^x)). Below FAR it is e^(x / 2) to all digits, and e^(x / 2) underflows at smaller x than e^x."""
    return np.where(x < FAR, np.exp(0.5 * np.minimum(x, 0.0)), np.sqrt(np.logaddexp(0.0, np.maximum(x, FAR))))


def normalized(weights: Floats, renormalize: bool) -> Floats:
    """weights [S, k], divided by their sum if `renormalize`."""
    return weights / (weights.sum(axis=1, keepdims=True) + config.LEAST_SUM) if renormalize else weights


def sigmoid_weights(scores: Floats, ids: Ints, renormalize: bool) -> Floats:
    return normalized(sigmoid(at(scores, ids)), renormalize)


def sqrtsoftplus_weights(scores: Floats, ids: Ints, renormalize: bool) -> Floats:
    return normalized(sqrtsoftplus(at(scores, ids)), renormalize)


def sparsemixer_weights(scores: Floats, ids: Ints, renormalize: bool) -> Floats:
    """[S, k]: each choice's share of a softmax over some of the experts that no earlier choice took.

    They are the experts with scores near the choice's own; `Router` says which scores are near.
    """
    rest, found = scores.copy(), np.zeros(ids.shape)
    for j in range(ids.shape[1]):
        best = np.take_along_axis(scores, ids[:, j : j + 1], axis=1)
        close = best - scores <= config.SPARSEMIXER_WIDTH * np.maximum(np.abs(scores), best)
        shares = softmax(np.where(close, rest, -np.inf))
        found[:, j] = np.take_along_axis(shares, ids[:, j : j + 1], axis=1)[:, 0]
        np.put_along_axis(rest, ids[:, j : j + 1], -np.inf, axis=1)
    return found


SCORES: dict[str, Callable[[Floats, Ints, bool], Floats]] = {
    name: globals()[f"{name}_weights"] for name in config.SCORES
}
# by kind of score: a function for the weights of all experts, chosen or not. select_bias is added to these weights, and
# `losses.sequence` uses them
VALUES: dict[str, Callable[[Floats], Floats]] = {name: globals()[name] for name in config.BIASED}


def in_kept_groups(cfg: MoEConfig, values: Floats) -> NDArray[np.bool_]:
    """[S, E]: whether an expert is in one of its token's best groups. Ties: the lowest group. values: [S, E]."""
    groups = values.reshape(len(values), cfg.router.groups, cfg.columns // cfg.router.groups)
    order = np.sort(groups, axis=2)[:, :, ::-1]
    best = order[:, :, 0] if cfg.router.group_score == "max" else order[:, :, 0] + order[:, :, 1]
    kept = np.argsort(-best, axis=1, kind="stable")[:, : cfg.router.topk_groups]
    found = np.zeros(best.shape, bool)
    np.put_along_axis(found, kept, True, axis=1)
    return np.repeat(found, groups.shape[2], axis=1)


def within_capacity(cfg: MoEConfig, ids: Ints) -> Ints:
    """ids [S, k] of one rank's tokens, with -1 in place of choices beyond an expert's capacity; see `Router`."""
    factor, capacity = cfg.router.capacity_factor, cfg.router.capacity
    if factor is not None:
        capacity = math.ceil(factor * len(ids) * cfg.top_k / cfg.experts)
    if capacity is None:
        return ids
    left, found = np.full(cfg.experts, capacity), ids.copy()
    for j in range(ids.shape[1]):
        for t, e in enumerate(ids[:, j]):
            left[e] -= 1
            if left[e] < 0:
                found[t, j] = -1
    return found


def scores_of(cfg: MoEConfig, x: ArrayLike, router: ArrayLike, router_bias: ArrayLike | None = None) -> Floats:
    """Router scores [S, columns]: x Wr + router_bias. x: [S, H], router: [H, columns]."""
    scores = floats("x", x, (None, cfg.hidden)) @ floats("router", router, (cfg.hidden, cfg.columns))
    return scores + bias("router_bias", router_bias, (cfg.columns,))


def route(
    cfg: MoEConfig,
    x: ArrayLike,
    router: ArrayLike,
    router_bias: ArrayLike | None = None,
    select_bias: ArrayLike | None = None,
) -> tuple[Ints, Floats]:
    """The router's choices for the tokens of one rank, in float64.

    The k experts are chosen by score, not by softmax, because a softmax may round two different scores to one
    probability. With a bias for choosing, they are chosen by weight plus bias. Of experts with equal values, the one
    with the lowest id wins. Columns are the E experts, then the identity experts.

    Parameters
    ----------
    cfg : MoEConfig
        The layer.
    x : array [S, H]
        Tokens.
    router : array [H, columns]
        The router's weights.
    router_bias : array [columns] or None, default None
        A bias that is added to the scores. None: zeros.
    select_bias : array [columns] or None, default None
        A bias for choosing only: it is added to the weights when experts are compared, see `Router`.

    Returns
    -------
    ids : array [S, k], int64
        The chosen experts, best first. A choice beyond the capacity has the id -1.
    weights : array [S, k], float64
        Combine weights.

    Raises
    ------
    InputError
        A shape that does not fit, a score that is not finite, or a select_bias with a score that does not allow it.
    """
    scores = scores_of(cfg, x, router, router_bias)
    if not np.isfinite(scores).all():
        token = int(np.argmin(np.isfinite(scores).all(axis=1)))
        raise InputError(
            f"router scores must be finite, got {scores[token].tolist()} for token {token}: check x and router"
        )
    values = scores
    if select_bias is not None or (cfg.router.groups and cfg.router.group_score == "sum_top2"):
        if cfg.router.score not in VALUES:
            raise InputError(f"select_bias requires a score of {', '.join(VALUES)}, got {cfg.router.score!r}")
        values = VALUES[cfg.router.score](scores) + bias("select_bias", select_bias, (cfg.columns,))
    if cfg.router.groups:
        values = np.where(in_kept_groups(cfg, values), values, -np.inf)
    ids = np.argsort(-values, axis=1, kind="stable")[:, : cfg.top_k].astype(np.int64)
    weights = SCORES[cfg.router.score](scores, ids, cfg.router.renormalize) * cfg.router.scale
    return within_capacity(cfg, ids), weights


def floats(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> Floats:
    array = np.asarray(value, dtype=np.float64)
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape))
    if not fits:
        raise InputError(f"{name} must have shape {shape}, got {array.shape}")
    return array


def bias(name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> Floats:
    return np.zeros(shape) if value is None else floats(name, value, shape)
