"""The layer in float64 NumPy, slow and obvious. Every other implementation is checked against it.

It is a definition: one loop over experts, one over choices, without blocking, parallelism or float32. It is not fast,
shares no code with the implementations, and does not run across ranks.

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

Scores are float64 here and float32 in the layer, so two experts whose scores are closer than float32 rounding may
change places. To check only the arithmetic, pass the layer's own `ids` and `weights`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import config
from ._reference_backward import backward
from ._reference_parts import (
    ACTIVATIONS,
    SCORES,
    Floats,
    bias,
    floats,
    gated,
    route,
    scores_of,
    sigmoid,
    softmax,
    within_capacity,
)
from .config import MoEConfig
from .errors import InputError

__all__ = [
    "ACTIVATIONS",
    "SCORES",
    "backward",
    "error",
    "expert",
    "gated",
    "moe",
    "route",
    "scores_of",
    "shared_expert",
    "sigmoid",
    "softmax",
    "weights",
    "within_capacity",
]


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
    """One expert's outputs, in float64.

    Parameters
    ----------
    cfg : MoEConfig
        The layer.
    x : array [M, H]
        Rows.
    e : int
        The expert's id in 0..E-1.
    up : array [E, H, F]
        The up projections of all experts.
    down : array [E, F, H]
        The down projections of all experts.
    gate : array [E, H, F] or None, default None
        The gate projections of all experts, with cfg.gated.
    up_bias : array [E, F] or None, default None
        The biases of the up projections. None: zeros.
    gate_bias : array [E, F] or None, default None
        The biases of the gate projections. None: zeros.
    down_bias : array [E, H] or None, default None
        The biases of the down projections. None: zeros.

    Returns
    -------
    array [M, H], float64
        f_e(x).

    Raises
    ------
    InputError
        A shape that does not fit, an id out of range, or a gate that is missing or not wanted.
    """
    H, F, E = cfg.hidden, cfg.ffn, cfg.experts
    if not 0 <= e < E:
        raise InputError(f"e must be in 0..{E - 1}, got {e!r}")
    rows = floats("x", x, (None, H))
    h = rows @ floats("up", up, (E, H, F))[e] + bias("up_bias", up_bias, (E, F))[e]
    if cfg.gated:
        if gate is None:
            raise InputError("gate must be given for a gated config, got None")
        g = rows @ floats("gate", gate, (E, H, F))[e] + bias("gate_bias", gate_bias, (E, F))[e]
        h = gated(cfg.activation, cfg.limit, g, h, cfg.limit_after)
    else:
        if gate is not None or gate_bias is not None:
            raise InputError("gate and gate_bias must be None for a config with gated=False")
        h = ACTIVATIONS[cfg.activation](h)
    return h @ floats("down", down, (E, F, H))[e] + bias("down_bias", down_bias, (E, H))[e]


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
    """The shared expert's outputs, in float64. Its arrays are those of one expert with F = shared_ffn.

    Parameters
    ----------
    cfg : MoEConfig
        The layer, with a shared expert of width Fs = shared_ffn.
    x : array [M, H]
        Rows.
    shared_up : array [H, Fs]
        The shared expert's up projection.
    shared_down : array [Fs, H]
        The shared expert's down projection.
    shared_gate : array [H, Fs] or None, default None
        The shared expert's gate projection, with cfg.gated.
    shared_up_bias : array [Fs] or None, default None
        The bias of the up projection. None: zeros.
    shared_gate_bias : array [Fs] or None, default None
        The bias of the gate projection. None: zeros.
    shared_down_bias : array [H] or None, default None
        The bias of the down projection. None: zeros.
    shared_sigmoid : array [H] or None, default None
        The vector w of sigmoid(x·w), with cfg.shared_sigmoid.

    Returns
    -------
    array [M, H], float64
        f_shared(x), times sigmoid(x·w) with cfg.shared_sigmoid.

    Raises
    ------
    InputError
        A shape that does not fit, or an array that is missing or not wanted.
    """
    alone = replace(_plain(cfg), ffn=cfg.shared_ffn)
    given = {
        "up": shared_up,
        "gate": shared_gate,
        "down": shared_down,
        "up_bias": shared_up_bias,
        "gate_bias": shared_gate_bias,
        "down_bias": shared_down_bias,
    }
    arrays: dict[str, Any] = {name: np.asarray(array)[None] for name, array in given.items() if array is not None}
    y = expert(alone, x, 0, **arrays)
    if not cfg.shared_sigmoid:
        return y
    if shared_sigmoid is None:
        raise InputError("shared_sigmoid must be given for a config with shared_sigmoid=True, got None")
    scores = floats("x", x, (None, cfg.hidden)) @ floats("shared_sigmoid", shared_sigmoid, (cfg.hidden,))
    return y * sigmoid(scores)[:, None]


def _plain(cfg: MoEConfig) -> MoEConfig:
    """`cfg` with one expert, and without a shared one."""
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
    """The whole layer on the tokens of one rank, in float64.

    Parameters
    ----------
    cfg : MoEConfig
        The layer.
    x : array [..., H]
        Tokens.
    up : array [E, H, F]
        The up projections of all experts.
    down : array [E, F, H]
        The down projections of all experts.
    gate : array [E, H, F] or None, default None
        The gate projections of all experts, with cfg.gated.
    router : array [H, columns] or None, default None
        The router's weights. They are used if ids and weights are not given.
    router_bias : array [columns] or None, default None
        A bias that is added to the scores. None: zeros.
    select_bias : array [columns] or None, default None
        A bias for choosing only, see `Router`.
    up_bias : array [E, F] or None, default None
        The biases of the up projections. None: zeros.
    gate_bias : array [E, F] or None, default None
        The biases of the gate projections. None: zeros.
    down_bias : array [E, H] or None, default None
        The biases of the down projections. None: zeros.
    ids : array [..., n], integers, or None, default None
        The experts of each token, chosen by the caller, in -1..columns-1, for any n.
    weights : array [..., n] or None, default None
        The combine weights of `ids`.
    router_x : array [..., H] or None, default None
        What the router reads instead of x.
    **shared : array
        Arguments of `shared_expert`, with cfg.shared_ffn.

    Returns
    -------
    array [..., H], float64
        The outputs y.

    Raises
    ------
    InputError
        A shape that does not fit, an id out of range, an array that is missing or not wanted, or no router and no ids.

    Examples
    --------
    >>> import numpy as np
    >>> import aristos
    >>> cfg = aristos.MoEConfig(hidden=16, ffn=32, experts=4)
    >>> arrays = aristos.reference.weights(cfg)
    >>> x = np.random.default_rng(0).standard_normal((8, 16), dtype=np.float32)
    >>> with aristos.MoE(cfg) as layer:
    ...     layer.load(**arrays)
    ...     y = layer(x)
    >>> aristos.reference.error(y, aristos.reference.moe(cfg, x, **arrays)) < 1e-5
    True
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
        raise InputError(
            "router, or ids and weights together, must be given, got neither or only one of ids and weights"
        )
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
        factors = (np.where(choices == e, w, 0.0)).sum(axis=1)[tokens, None]  # the tokens' weights for that expert
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
    """Random weights of a layer, as keyword arguments of `moe` and `MoE.load`. Equal arguments give equal weights.

    Projections have standard deviation 1/sqrt(rows of the matrix), so that outputs stay near the size of the inputs.

    Parameters
    ----------
    cfg : MoEConfig
        The layer.
    seed : int, default 0
        The seed of NumPy's generator.

    Returns
    -------
    dict of str to array, float32
        router, up, down; gate with cfg.gated; up_bias, down_bias (and gate_bias) with cfg.bias. With cfg.shared_ffn the
        same arrays of the shared expert, named shared_up and so on, without the axis E. With cfg.shared_sigmoid,
        shared_sigmoid.
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
    """The relative error that the whole project uses: max abs(y - ref) / max abs(ref), over all entries, in float64.

    Parameters
    ----------
    y : array
        The array that is checked.
    ref : array
        The right values, of the same shape.

    Returns
    -------
    float
        The error. 0.0 for empty arrays; the absolute error if ref is all zero; infinite if y or ref is not finite, so
        that a NaN exceeds every bound.

    Raises
    ------
    InputError
        The shapes differ.
    """
    a, b = np.asarray(y, dtype=np.float64), np.asarray(ref, dtype=np.float64)
    if a.shape != b.shape:
        raise InputError(f"y must have the shape of ref {b.shape}, got {a.shape}")
    if a.size == 0:
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    return float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))
