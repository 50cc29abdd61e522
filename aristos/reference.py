"""The layer in float64 NumPy, slow and obvious: every other implementation is checked against it.

A definition, not an implementation: one loop over experts, one over choices, no blocking, no parallelism, no
float32. It is not fast, shares no code with the implementations, and does not run across ranks.

    s     = x Wr + router_bias                                         scores, [S, E]
    h_e   = act(x up_e + up_bias_e)                                    ungated
    h_e   = act(x gate_e + gate_bias_e) * (x up_e + up_bias_e)         gated; see `gated` for limits, swiglu_oai
    f_e   = h_e down_e + down_bias_e                                   one expert, [S, H]
    f_e   = x                                                          identity experts, ids from E up
    y[t]  = sum over j of w[t,j] f_{ids[t,j]}(x[t])                    a choice of id -1 adds nothing
    y[t]  = f_{ids[t,0]}(w[t,0] x[t])                                  weight_on="input"
    y[t] += f_shared(x[t])                                             shared_ffn
    y[t] += sigmoid(x[t] shared_sigmoid) f_shared(x[t])                shared_sigmoid

`backward` has the gradients (`_reference_backward.py`).

Scores are float64 here and float32 in the layer, so two experts closer than float32 rounding may change
places. A check of the arithmetic alone passes the layer's own `ids` and `weights`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import config
from .config import MoEConfig
from .errors import InputError

if TYPE_CHECKING:
    from ._reference_backward import backward as backward

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def relu(x: Floats) -> Floats:
    return np.maximum(x, 0.0)


def gelu(x: Floats) -> Floats:
    """x Phi(x) with the error function, not one of its approximations."""
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def gelu_tanh(x: Floats) -> Floats:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Floats) -> Floats:
    """x sigmoid(x); sigmoid through tanh, because exp(-x) overflows for large negative x."""
    return x * 0.5 * (1.0 + np.tanh(0.5 * x))


def swiglu_oai(x: Floats) -> Floats:
    """x sigmoid(1.702 x): applied to the gate's product in gpt-oss."""
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
    """Of the experts `ids`, the softmax over all; scores [S, E], ids [S, k] -> [S, k].

    Divided by their sum they are the softmax over the k, which keeps the digits of small ones.
    """
    return softmax_topk_weights(scores, ids, True) if renormalize else _at(softmax(scores), ids)


def softmax_topk_weights(scores: Floats, ids: Ints, renormalize: bool) -> Floats:
    """The softmax over the experts `ids` alone; its sum is one in any case."""
    return softmax(_at(scores, ids))


def _at(values: Floats, ids: Ints) -> Floats:
    return np.take_along_axis(values, ids, axis=1)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^-x), or e^x / (1 + e^x) below zero: it keeps its digits however small it is."""
    power = np.exp(-np.abs(x))
    return np.where(x < 0, power, 1.0) / (1.0 + power)


def sqrtsoftplus(x: Floats) -> Floats:
    """sqrt(log(1 + e^x))."""
    return np.sqrt(np.logaddexp(0.0, x))


def normalized(weights: Floats, renormalize: bool) -> Floats:
    """weights [S, k], divided by their sum if `renormalize`."""
    return weights / (weights.sum(axis=1, keepdims=True) + config.LEAST_SUM) if renormalize else weights


def sigmoid_weights(scores: Floats, ids: Ints, renormalize: bool) -> Floats:
    return normalized(sigmoid(_at(scores, ids)), renormalize)


def sqrtsoftplus_weights(scores: Floats, ids: Ints, renormalize: bool) -> Floats:
    return normalized(sqrtsoftplus(_at(scores, ids)), renormalize)


def sparsemixer_weights(scores: Floats, ids: Ints, renormalize: bool) -> Floats:
    """For each choice, its share of the softmax over those of the rest that are close to it; see `Router`."""
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
# by score, the weights of all experts before the choice: what a bias for choosing is added to
VALUES: dict[str, Callable[[Floats], Floats]] = {name: globals()[name] for name in config.BIASED}


def in_kept_groups(cfg: MoEConfig, values: Floats) -> NDArray[np.bool_]:
    """values: [S, E] -> [S, E], whether an expert lies in one of its token's best groups; ties: the lowest group."""
    groups = values.reshape(len(values), cfg.router.groups, cfg.columns // cfg.router.groups)
    order = np.sort(groups, axis=2)[:, :, ::-1]
    best = order[:, :, 0] if cfg.router.group_score == "max" else order[:, :, 0] + order[:, :, 1]
    kept = np.argsort(-best, axis=1, kind="stable")[:, : cfg.router.topk_groups]
    found = np.zeros(best.shape, bool)
    np.put_along_axis(found, kept, True, axis=1)
    return np.repeat(found, groups.shape[2], axis=1)


def within_capacity(cfg: MoEConfig, ids: Ints) -> Ints:
    """ids [S, k] of one rank's tokens, with -1 for choices beyond an expert's capacity; see `Router`."""
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
    scores = _floats("x", x, (None, cfg.hidden)) @ _floats("router", router, (cfg.hidden, cfg.columns))
    return scores + _bias("router_bias", router_bias, (cfg.columns,))


def route(
    cfg: MoEConfig,
    x: ArrayLike,
    router: ArrayLike,
    router_bias: ArrayLike | None = None,
    select_bias: ArrayLike | None = None,
) -> tuple[Ints, Floats]:
    """x: [S, H], router: [H, columns] -> ids [S, k] int64, best first, and combine weights [S, k] float64.

    columns: E and the identity experts. The k experts are chosen by score, not by softmax, which may round two
    different scores to one probability; with a bias for choosing ([columns]) they are chosen by weight plus bias. Equal
    values go to the lowest id. A choice beyond the capacity has the id -1. Raises InputError for a score that is not
    finite.
    """
    scores = scores_of(cfg, x, router, router_bias)
    if not np.isfinite(scores).all():
        token = int(np.argmin(np.isfinite(scores).all(axis=1)))
        raise InputError(f"router scores must be finite, got {scores[token].tolist()} for token {token}")
    values = scores
    if select_bias is not None or (cfg.router.groups and cfg.router.group_score == "sum_top2"):
        if cfg.router.score not in VALUES:
            raise InputError(f"select_bias requires a score of {', '.join(VALUES)}, got {cfg.router.score!r}")
        values = VALUES[cfg.router.score](scores) + _bias("select_bias", select_bias, (cfg.columns,))
    if cfg.router.groups:
        values = np.where(in_kept_groups(cfg, values), values, -np.inf)
    ids = np.argsort(-values, axis=1, kind="stable")[:, : cfg.top_k].astype(np.int64)
    weights = SCORES[cfg.router.score](scores, ids, cfg.router.renormalize) * cfg.router.scale
    return within_capacity(cfg, ids), weights


def expert(
    cfg: MoEConfig,
    x: ArrayLike,
    e: int,
    *,
    up: ArrayLike,
    down: ArrayLike,
    gate: ArrayLike | None = None,
    up_bias: ArrayLike | None = None,
    gate_bias: ArrayLike | None = None,
    down_bias: ArrayLike | None = None,
) -> Floats:
    """x: [M, H] -> f_e(x) [M, H] float64. Weights as `moe` takes them; a bias of None is zero. e: in 0..E-1."""
    H, F, E = cfg.hidden, cfg.ffn, cfg.experts
    if not 0 <= e < E:
        raise InputError(f"e must be in 0..{E - 1}, got {e!r}")
    rows = _floats("x", x, (None, H))
    h = rows @ _floats("up", up, (E, H, F))[e] + _bias("up_bias", up_bias, (E, F))[e]
    if cfg.gated:
        if gate is None:
            raise InputError("gate must be given for a gated config, got None")
        g = rows @ _floats("gate", gate, (E, H, F))[e] + _bias("gate_bias", gate_bias, (E, F))[e]
        h = gated(cfg.activation, cfg.limit, g, h, cfg.limit_after)
    else:
        if gate is not None or gate_bias is not None:
            raise InputError("gate and gate_bias must be None for a config with gated=False")
        h = ACTIVATIONS[cfg.activation](h)
    return h @ _floats("down", down, (E, F, H))[e] + _bias("down_bias", down_bias, (E, H))[e]


def shared_expert(
    cfg: MoEConfig,
    x: ArrayLike,
    *,
    shared_up: ArrayLike,
    shared_down: ArrayLike,
    shared_gate: ArrayLike | None = None,
    shared_up_bias: ArrayLike | None = None,
    shared_gate_bias: ArrayLike | None = None,
    shared_down_bias: ArrayLike | None = None,
    shared_sigmoid: ArrayLike | None = None,
) -> Floats:
    """x: [M, H] -> the shared expert's output [M, H] float64. Arrays: as of one expert with F = shared_ffn."""
    alone = replace(_plain(cfg), ffn=cfg.shared_ffn)
    given = {
        "up": shared_up, "gate": shared_gate, "down": shared_down, "up_bias": shared_up_bias,
        "gate_bias": shared_gate_bias, "down_bias": shared_down_bias,
    }  # fmt: skip
    arrays: dict[str, Any] = {name: np.asarray(array)[None] for name, array in given.items() if array is not None}
    y = expert(alone, x, 0, **arrays)
    if not cfg.shared_sigmoid:
        return y
    if shared_sigmoid is None:
        raise InputError("shared_sigmoid must be given for a config with shared_sigmoid=True, got None")
    scores = _floats("x", x, (None, cfg.hidden)) @ _floats("shared_sigmoid", shared_sigmoid, (cfg.hidden,))
    return y * sigmoid(scores)[:, None]


def _plain(cfg: MoEConfig) -> MoEConfig:
    """`cfg` with one expert and no shared one."""
    one = {"experts": 1, "top_k": 1, "identity_experts": 0, "shared_ffn": 0, "shared_sigmoid": False}
    return replace(cfg, router=config.Router(), **one)  # type: ignore[arg-type]


def moe(
    cfg: MoEConfig,
    x: ArrayLike,
    *,
    up: ArrayLike,
    down: ArrayLike,
    gate: ArrayLike | None = None,
    router: ArrayLike | None = None,
    router_bias: ArrayLike | None = None,
    select_bias: ArrayLike | None = None,
    up_bias: ArrayLike | None = None,
    gate_bias: ArrayLike | None = None,
    down_bias: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    router_x: ArrayLike | None = None,
    **shared: Any,
) -> Floats:
    """x: [..., H] -> y [..., H] float64. shared: arguments of `shared_expert`, with cfg.shared_ffn.

    up, gate: [E, H, F]; down: [E, F, H]; router: [H, columns], router_bias, select_bias: [columns], see `route`;
    up_bias, gate_bias: [E, F]; down_bias: [E, H]. ids [..., n] integers in -1..columns-1 and weights [..., n] route
    from outside, for any n; without them `router` routes, by router_x [..., H] if it is given. Raises InputError for a
    shape that does not fit, an id out of range, or no routing at all.
    """
    xs = np.asarray(x, dtype=np.float64)
    if xs.shape[-1:] != (cfg.hidden,):
        raise InputError(f"x must have shape [..., {cfg.hidden}], got {list(xs.shape)}")
    lead, rows = xs.shape[:-1], xs.reshape(-1, cfg.hidden)
    if ids is None and weights is None and router is not None:
        by = rows if router_x is None else np.asarray(router_x, dtype=np.float64).reshape(rows.shape)
        chosen = route(cfg, by, router, router_bias, select_bias)
        ids, weights = (each.reshape(*lead, cfg.top_k) for each in chosen)
    if ids is None or weights is None:
        raise InputError("give router, or ids and weights together")
    choices, w = np.asarray(ids), np.asarray(weights, dtype=np.float64)
    if choices.ndim == 0 or choices.shape[:-1] != lead or (choices.size and choices.dtype.kind not in "iu"):
        raise InputError(f"ids must be integers of shape {[*lead, 'n']}, got {choices.dtype} {list(choices.shape)}")
    if w.shape != choices.shape:
        raise InputError(f"weights must have the shape of ids {list(choices.shape)}, got {list(w.shape)}")
    n = choices.shape[-1]
    choices, w = choices.reshape(len(rows), n), w.reshape(len(rows), n)
    if choices.size and (choices.min() < -1 or choices.max() >= cfg.columns):
        raise InputError(f"ids must lie in -1..{cfg.columns - 1}, got {choices.min()}..{choices.max()}")
    tensors: dict[str, Any] = {"up": up, "down": down, "gate": gate}
    biases: dict[str, Any] = {"up_bias": up_bias, "gate_bias": gate_bias, "down_bias": down_bias}
    y = np.zeros_like(rows)
    for e in range(cfg.experts):
        tokens = np.nonzero((choices == e).any(axis=1))[0]
        if len(tokens) == 0:
            continue
        factors = (np.where(choices == e, w, 0.0)).sum(axis=1)[tokens, None]  # of that expert's choice in each token
        if cfg.router.weight_on == "input":
            y[tokens] += expert(cfg, factors * rows[tokens], e, **tensors, **biases)
        else:
            y[tokens] += factors * expert(cfg, rows[tokens], e, **tensors, **biases)
    y += np.where(choices >= cfg.experts, w, 0.0).sum(axis=1, keepdims=True) * rows  # identity experts
    if cfg.shared_ffn:
        y += shared_expert(cfg, rows, **shared)
    elif shared:
        raise InputError(f"{next(iter(shared))} must be left out for a config with shared_ffn=0")
    return y.reshape(xs.shape)


def weights(cfg: MoEConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random float32 weights for `cfg`, equal for equal (cfg, seed): keyword arguments of `moe` and `MoE.load`.

    Keys: router, up, down; gate with cfg.gated; up_bias, down_bias (and gate_bias) with cfg.bias; the same with
    `shared_` before them, without E in front, with cfg.shared_ffn, and shared_sigmoid. Projections
    have standard deviation 1/sqrt(rows summed over), so that outputs stay near the size of the inputs.
    """
    rng = np.random.default_rng(seed)
    H, F, E = cfg.hidden, cfg.ffn, cfg.experts

    def normal(shape: tuple[int, ...], scale: float) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    made = {
        "router": normal((H, cfg.columns), H**-0.5),
        "up": normal((E, H, F), H**-0.5),
        "down": normal((E, F, H), F**-0.5),
    }
    if cfg.gated:
        made["gate"] = normal((E, H, F), H**-0.5)
    if cfg.bias:
        made["up_bias"] = normal((E, F), 0.1)
        made["down_bias"] = normal((E, H), 0.1)
        if cfg.gated:
            made["gate_bias"] = normal((E, F), 0.1)
    if cfg.shared_ffn:
        one = weights(replace(_plain(cfg), ffn=cfg.shared_ffn), seed + 1)
        made |= {f"shared_{name}": array[0] for name, array in one.items() if name != "router"}
    if cfg.shared_sigmoid:
        made["shared_sigmoid"] = normal((H,), H**-0.5)
    return made


def error(y: ArrayLike, ref: ArrayLike) -> float:
    """The project's one relative error: max |y - ref| / max |ref|, over all entries, in float64.

    0.0 for empty arrays; the absolute error if ref is all zero; infinite if y or ref is not finite, so that a NaN
    exceeds every bound. Raises InputError if the shapes differ.
    """
    a, b = np.asarray(y, dtype=np.float64), np.asarray(ref, dtype=np.float64)
    if a.shape != b.shape:
        raise InputError(f"y must have the shape of ref {b.shape}, got {a.shape}")
    if a.size == 0:
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    return float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))


def _floats(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> Floats:
    array = np.asarray(value, dtype=np.float64)
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape))
    if not fits:
        raise InputError(f"{name} must have shape {shape}, got {array.shape}")
    return array


def _bias(name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> Floats:
    return np.zeros(shape) if value is None else _floats(name, value, shape)


def __getattr__(name: str) -> Any:
    if name == "backward":
        return import_module("._reference_backward", __package__).backward
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
