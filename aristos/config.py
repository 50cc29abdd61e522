"""Options as frozen dataclasses. Every error quotes the refused value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from .errors import InputError


class ActivationRule(NamedTuple):
    """code: the activation's number in kernels. gate_only: whether the layer must be gated. shift: what is added to the
    product that the gate multiplies."""

    code: int
    gate_only: bool = False
    shift: float = 0.0


# kernels/common and reference.py have a function of each name
ACTIVATIONS: dict[str, ActivationRule] = {
    "relu": ActivationRule(0),
    "gelu": ActivationRule(1),
    "gelu_tanh": ActivationRule(2),
    "silu": ActivationRule(3),
    "swiglu_oai": ActivationRule(4, gate_only=True, shift=1.0),
}
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "swiglu_oai"]
SCORES: dict[str, int] = {"softmax": 0, "softmax_topk": 1}  # by name, a router score's number in kernels
DTYPES: tuple[str, ...] = ("float32", "tf32", "bfloat16", "float16")
NARROW = ("bfloat16", "float16")  # dtypes of two bytes
BACKENDS: tuple[str, ...] = ("cpu", "cuda")
MOST_THREADS = 4096  # of a rank
OVERDUE = 10  # a peer in user code is waited for this many times the timeout


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 40:
        raise InputError(f"{name} must be a positive int, got {value!r}")


def _boolean(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {value!r}")


def _one_of(name: str, value: object, choices: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def checked_limit(activation: str, gated: bool, limit: object) -> float | None:
    """`limit` as a float or None; raises InputError for an activation or limit that needs gated=True."""
    if ACTIVATIONS[activation].gate_only and not gated:
        raise InputError(f"activation={activation!r} requires gated=True, got gated=False")
    if limit is None:
        return None
    ok = isinstance(limit, int | float | np.floating | np.integer) and not isinstance(limit, bool)
    if ok and isinstance(limit, np.generic):
        limit = float(limit)  # first: as a float16, the bound 3.4e38 below would overflow
    if not ok or not 1e-37 < limit < 3.4e38:  # type: ignore[operator]
        raise InputError(f"limit must be None or a positive number within the range of float32, got {limit!r}")
    if not gated:
        raise InputError(f"limit requires gated=True, got limit={limit!r} with gated=False")
    return float(limit)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Router:
    """How the scores of a token become k expert ids and k combine weights.

    score: "softmax" takes the softmax over all experts and then the k largest; "softmax_topk" takes the k
        largest scores and then the softmax over those k.
    renormalize: divide the k weights by their sum (no effect with "softmax_topk", whose weights sum to one).
    scale: factor on every combine weight.
    Of equal scores, the lowest expert id wins. Raises InputError.
    """

    score: Literal["softmax", "softmax_topk"] = "softmax"
    renormalize: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        _one_of("score", self.score, SCORES)
        _boolean("renormalize", self.renormalize)
        ok = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not ok or not abs(self.scale) < 3.4e38:
            raise InputError(f"scale must be a finite number, got {self.scale!r}")
        object.__setattr__(self, "scale", float(self.scale))  # equal configurations look equal


@dataclass(frozen=True)
class MoEConfig:
    """Shape and arithmetic of one MoE layer, equal on all ranks.

    hidden: H, width of a token. ffn: F, width inside an expert. experts: E over the whole EP group.
    top_k: experts for each token. gated: act(x·gate) * (x·up) instead of act(x·up).
    activation: "swiglu_oai" is gpt-oss's, g * sigmoid(1.702 g) * (u + 1) for g = x·gate and u = x·up; it needs gated.
    limit: with gated, clamps g to at most limit and u to -limit..limit before the activation.
    bias: biases on all projections. max_tokens: most tokens one rank brings to one call.
    dtype: of rows and of the experts' arithmetic; "tf32" is float32 whose products use 10 fraction bits, on tensor
    cores. CPUs compute in float32 only.
    router: see `Router`. Raises InputError.
    """

    hidden: int
    ffn: int
    experts: int
    top_k: int = 2
    activation: Activation = "gelu"
    gated: bool = False
    limit: float | None = None
    bias: bool = False
    dtype: str = "float32"
    max_tokens: int = 4096
    router: Router = field(default_factory=Router)

    def __post_init__(self) -> None:
        for name in ("hidden", "ffn", "experts", "top_k", "max_tokens"):
            if isinstance(getattr(self, name), np.integer):
                object.__setattr__(self, name, int(getattr(self, name)))
            _positive(name, getattr(self, name))
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("dtype", self.dtype, DTYPES)
        _boolean("gated", self.gated)
        _boolean("bias", self.bias)
        object.__setattr__(self, "limit", checked_limit(self.activation, self.gated, self.limit))
        object.__setattr__(self, "activation", str(self.activation))
        object.__setattr__(self, "dtype", str(self.dtype))
        if not isinstance(self.router, Router):
            raise InputError(f"router must be an aristos.Router, got {self.router!r}")
        if self.top_k > self.experts:
            raise InputError(f"top_k must be at most experts ({self.experts}), got {self.top_k}")
