"""The gradients of `reference.moe` in float64 NumPy (`reference.backward`), slow and obvious.

L is any loss with dL/dy = dy. Names are those of `reference.py`; dz is the derivative of L with respect to z:

    dw[t,j]  = <dy[t], f_e(x[t])>, e = ids[t,j]                        0 for a choice not taken
    df_e     = w[t,j] dy[t]                                            of the tokens t that chose e at j
    dh       = df down^T, ddown = h^T df, ddown_bias = sum of df
    du, dg   = dh times the derivatives of h; dup = x^T du, dgate = x^T dg, and biases: their sums
    dx[t]    = sum over j of (du up^T + dg gate^T), and the router's, the shared expert's and identity experts' parts
    ds       = dw times the derivatives of the weights, + dlogits; drouter = x^T ds, dx += ds router^T

The choice of experts has no derivative, and neither has an array that only decides the choice (select_bias). A limit
passes gradients of values up to and at the limit. For "sparsemixer" the set of close experts counts as constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import _reference_parts as parts
from . import config
from ._reference_parts import Floats, Ints, at, sigmoid, softmax
from .config import MoEConfig
from .errors import InputError

Arrays = dict[str, Floats]


def relu_slope(x: Floats) -> Floats:
    return (x > 0).astype(np.float64)


def gelu_slope(x: Floats) -> Floats:
    """Phi(x) + x phi(x)."""
    cdf = 0.5 * (1.0 + parts.erf(x / math.sqrt(2.0)))
    return cdf + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def gelu_tanh_slope(x: Floats) -> Floats:
    scale, cube = math.sqrt(2.0 / math.pi), 0.044715
    t = np.tanh(scale * (x + cube * x**3))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * scale * (1.0 + 3 * cube * x * x)


def silu_slope(x: Floats) -> Floats:
    s = sigmoid(x)
    return s + x * s * (1.0 - s)


def swiglu_oai_slope(x: Floats) -> Floats:
    s = sigmoid(1.702 * x)
    return s + 1.702 * x * s * (1.0 - s)


def relu2_slope(x: Floats) -> Floats:
    return 2.0 * np.maximum(x, 0.0)


SLOPES: dict[str, Callable[[Floats], Floats]] = {name: globals()[f"{name}_slope"] for name in config.ACTIVATIONS}


def gated_slopes(cfg: MoEConfig, g: Floats, u: Floats) -> tuple[Floats, Floats, Floats]:
    """(h, dh/dg, dh/du) of h = `reference.gated`."""
    bound = math.inf if cfg.limit is None else cfg.limit
    factor = np.clip(u, -bound, bound) + config.ACTIVATIONS[cfg.activation].shift
    act, slope = parts.ACTIVATIONS[cfg.activation], SLOPES[cfg.activation]
    if cfg.limit_after:
        value, by_g = np.minimum(act(g), bound), slope(g) * (act(g) <= bound)
    else:
        value, by_g = act(np.minimum(g, bound)), slope(np.minimum(g, bound)) * (g <= bound)
    return value * factor, by_g * factor, value * (np.abs(u) <= bound)


class Expert(NamedTuple):
    """One expert's outputs y [M, H] and gradients: dx [M, H], and those of the expert's arrays, by name."""

    y: Floats
    dx: Floats
    arrays: Arrays


def expert(cfg: MoEConfig, x: Floats, dy: Floats, one: Arrays) -> Expert:
    """The gradients of one expert. x, dy: [M, H]. one: the expert's up, down, and gate and biases if it has them."""
    up, down = one["up"], one["down"]
    u = x @ up + one.get("up_bias", 0.0)
    dh, arrays = dy @ down.T, {}
    if cfg.gated:
        g = x @ one["gate"] + one.get("gate_bias", 0.0)
        h, by_g, by_u = gated_slopes(cfg, g, u)
        dg, du = dh * by_g, dh * by_u
        dx = du @ up.T + dg @ one["gate"].T
        arrays["gate"], arrays["gate_bias"] = x.T @ dg, dg.sum(axis=0)
    else:
        h, du = parts.ACTIVATIONS[cfg.activation](u), dh * SLOPES[cfg.activation](u)
        dx = du @ up.T
    arrays |= {"up": x.T @ du, "down": h.T @ dy, "up_bias": du.sum(axis=0), "down_bias": dy.sum(axis=0)}
    return Expert(h @ down + one.get("down_bias", 0.0), dx, {name: arrays[name] for name in one})


# ---- the router: for each kind of score, dL/dscores from dw = dL/dw of the k weights w


def _scattered(values: Floats, ids: Ints, columns: int) -> Floats:
    found = np.zeros((len(ids), columns))
    np.put_along_axis(found, ids, values, axis=1)
    return found


def by_softmax(p: Floats, dp: Floats) -> Floats:
    return p * (dp - (p * dp).sum(axis=1, keepdims=True))


def _by_shares(values: Floats, dw: Floats, renormalize: bool) -> Floats:
    """dL/dvalues from dw = dL/dw. The weights w are the values, or with `renormalize` each value's share of the sum."""
    if not renormalize:
        return dw
    total = values.sum(axis=1, keepdims=True) + config.LEAST_SUM
    return (dw - (dw * values / total).sum(axis=1, keepdims=True)) / total


def softmax_scores(scores: Floats, ids: Ints, renormalize: bool, dw: Floats) -> Floats:
    if renormalize:
        return softmax_topk_scores(scores, ids, True, dw)
    return by_softmax(softmax(scores), _scattered(dw, ids, scores.shape[1]))


def softmax_topk_scores(scores: Floats, ids: Ints, renormalize: bool, dw: Floats) -> Floats:
    return _scattered(by_softmax(softmax(at(scores, ids)), dw), ids, scores.shape[1])


def softmax_values(scores: Floats, d: Floats) -> Floats:
    return by_softmax(softmax(scores), d)


def sigmoid_values(scores: Floats, d: Floats) -> Floats:
    return d * sigmoid(scores) * sigmoid(-scores)


def sigmoid_scores(scores: Floats, ids: Ints, renormalize: bool, dw: Floats) -> Floats:
    chosen = at(scores, ids)
    return _scattered(sigmoid_values(chosen, _by_shares(sigmoid(chosen), dw, renormalize)), ids, scores.shape[1])


def sqrtsoftplus_values(scores: Floats, d: Floats) -> Floats:
    roots = parts.sqrtsoftplus(scores)
    far = scores < parts.FAR  # for these scores the derivative is that of e^(s / 2)
    return d * np.where(far, 0.5 * roots, sigmoid(scores) / np.where(far, 1.0, 2 * roots))


def sqrtsoftplus_scores(scores: Floats, ids: Ints, renormalize: bool, dw: Floats) -> Floats:
    chosen = at(scores, ids)
    shares = _by_shares(parts.sqrtsoftplus(chosen), dw, renormalize)
    return _scattered(sqrtsoftplus_values(chosen, shares), ids, scores.shape[1])


def sparsemixer_scores(scores: Floats, ids: Ints, renormalize: bool, dw: Floats) -> Floats:
    rest, found = scores.copy(), np.zeros_like(scores)
    for j in range(ids.shape[1]):
        chosen = ids[:, j : j + 1]
        best = at(scores, chosen)
        close = best - scores <= config.SPARSEMIXER_WIDTH * np.maximum(np.abs(scores), best)
        p = softmax(np.where(close, rest, -np.inf))
        found += by_softmax(p, _scattered(dw[:, j : j + 1], chosen, scores.shape[1]))
        np.put_along_axis(rest, chosen, -np.inf, axis=1)
    return found


SCORES: dict[str, Callable[[Floats, Ints, bool, Floats], Floats]] = {
    name: globals()[f"{name}_scores"] for name in config.SCORES
}
# by kind of score: a function that makes dL/dscores from dL/dvalues, where values are the weights of all experts
# (`parts.VALUES`)
VALUES: dict[str, Callable[[Floats, Floats], Floats]] = {name: globals()[f"{name}_values"] for name in config.BIASED}


def by_logits(cfg: MoEConfig, logits: ArrayLike, ids: ArrayLike, dw: ArrayLike) -> Floats:
    """dL/dlogits [S, columns], from dw = dL/dw [S, k] of the combine weights.

    logits: [S, columns], the scores with the router's bias. ids: [S, k], the chosen experts. Choices beyond the
    capacity are in ids too, and dw is 0 for them.
    """
    scores, scaled = np.asarray(logits, np.float64), np.asarray(dw, np.float64) * cfg.router.scale
    return SCORES[cfg.router.score](scores, np.asarray(ids, np.int64), cfg.router.renormalize, scaled)


# ---- the layer


def backward(
    cfg: MoEConfig,
    x: ArrayLike,
    dy: ArrayLike,
    *,
    ids: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    router_x: ArrayLike | None = None,
    dlogits: ArrayLike | None = None,
    **arrays: Any,
) -> Arrays:
    """Gradients of L = sum(dy * moe(cfg, x, ...)) + sum(dlogits * logits), in float64.

    Parameters
    ----------
    cfg : MoEConfig
        The layer.
    x : array [S, H]
        Tokens.
    dy : array [S, H]
        dL/dy.
    ids : array [S, n], integers, or None, default None
        The experts of each token, chosen by the caller, with `weights`.
    weights : array [S, n] or None, default None
        The combine weights of `ids`.
    router_x : array [S, H] or None, default None
        What the router reads instead of x.
    dlogits : array [S, columns] or None, default None
        The gradient of a further loss with respect to the router's logits, which is added to the gradient of L.
    **arrays : array
        The layer's arrays, as `reference.moe` takes them.

    Returns
    -------
    dict of str to array, float64
        By name, the gradient with respect to "x" and to each array, of the same shape. Also "weights" if ids and
        weights were given, and "router_x" if router_x was given. select_bias has no gradient.

    Raises
    ------
    InputError
        A shape that does not fit.
    """
    rows, back = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    if rows.ndim != 2 or rows.shape[1:] != (cfg.hidden,) or back.shape != rows.shape:
        raise InputError(f"x and dy must have shape [S, {cfg.hidden}], got {rows.shape} and {back.shape}")
    given: Arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items() if array is not None}
    router = {name: given[name] for name in ("router", "router_bias", "select_bias") if name in given}
    by = rows if router_x is None else np.asarray(router_x, np.float64)
    outside = ids is not None and weights is not None
    chosen: Ints
    if ids is not None and weights is not None:
        chosen, w = np.asarray(ids, np.int64), np.asarray(weights, np.float64)
    else:
        chosen, w = parts.route(cfg, by, **router)
    found = {name: np.zeros_like(array) for name, array in given.items() if name != "select_bias"}
    found["x"] = np.zeros_like(rows)
    dw = np.zeros_like(w)
    experts = {name: given[name] for name in expert_names(cfg) if name in given}
    for e in range(cfg.experts):
        t, j = np.nonzero(chosen == e)
        if not len(t):
            continue
        factor, one = w[t, j][:, None], {name: array[e] for name, array in experts.items()}
        if cfg.router.weight_on == "input":
            part = expert(cfg, factor * rows[t], back[t], one)
            dw[t, j] = (part.dx * rows[t]).sum(axis=1)
            np.add.at(found["x"], t, factor * part.dx)
        else:
            part = expert(cfg, rows[t], factor * back[t], one)
            dw[t, j] = (part.y * back[t]).sum(axis=1)
            np.add.at(found["x"], t, part.dx)
        for name, array in part.arrays.items():
            found[name][e] = array
    identity = chosen >= cfg.experts
    dw += np.where(identity, (rows * back).sum(axis=1, keepdims=True), 0.0)
    found["x"] += np.where(identity, w, 0.0).sum(axis=1, keepdims=True) * back
    if cfg.shared_ffn:
        _shared(cfg, rows, back, given, found)
    if outside:
        return found | {"weights": dw}
    scores = parts.scores_of(cfg, by, given["router"], given.get("router_bias"))
    taken = parts.route(config.without_capacity(cfg), by, **router)[0]
    ds = by_logits(cfg, scores, taken, dw) + (0.0 if dlogits is None else np.asarray(dlogits, np.float64))
    found["router"] = by.T @ ds
    if "router_bias" in found:
        found["router_bias"] = ds.sum(axis=0)
    if router_x is None:
        found["x"] += ds @ given["router"].T
    else:
        found["router_x"] = ds @ given["router"].T
    return found


def expert_names(cfg: MoEConfig) -> list[str]:
    """Names of the arrays of an expert."""
    names = ["up", "gate", "down"] if cfg.gated else ["up", "down"]
    return names + [f"{name}_bias" for name in names]


def _shared(cfg: MoEConfig, rows: Floats, back: Floats, given: Arrays, found: Arrays) -> None:
    """Write the gradients of the shared expert's arrays into `found`, and add its part of dL/dx to found["x"]."""
    one = {name: given[f"shared_{name}"] for name in expert_names(cfg) if f"shared_{name}" in given}
    factor = np.ones((len(rows), 1))
    if cfg.shared_sigmoid:
        factor = sigmoid(rows @ given["shared_sigmoid"])[:, None]
    part = expert(cfg, rows, factor * back, one)
    found["x"] += part.dx
    for name, array in part.arrays.items():
        found[f"shared_{name}"] = array
    if cfg.shared_sigmoid:
        dscore = (part.y * back).sum(axis=1) * (factor * (1 - factor))[:, 0]
        found["shared_sigmoid"] = rows.T @ dscore
        found["x"] += dscore[:, None] * given["shared_sigmoid"]
