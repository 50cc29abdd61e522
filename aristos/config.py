"""Options as frozen dataclasses. Every error quotes the refused value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from .errors import InputError


class ActivationRule(NamedTuple):
    """code: the activation's number in kernels. gate_only: whether the layer must be gated. shift: a number added to
    the product that the gate multiplies.
    """

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
# by name, a router score's number in kernels; kernels/common and reference.py have a function for each name
SCORES: dict[str, int] = {"softmax": 0, "softmax_topk": 1}
Score = Literal["softmax", "softmax_topk"]
DTYPES: tuple[str, ...] = ("float32", "tf32", "bfloat16", "float16")
NARROW = ("bfloat16", "float16")  # dtypes of two bytes
PRECISIONS: tuple[str, ...] = ("highest", "high")
BACKENDS: tuple[str, ...] = ("cpu", "cuda")
MOST_THREADS = 4096  # of a rank
LARGEST = (1 << 40) - 1  # of a size: its products fit 64 bits
OVERDUE = 10  # a peer in user code is waited for this many times the timeout


def whole(name: str, value: object, most: int = LARGEST, wanted: str = "a positive int below 2**40") -> int:
    """`value` as an int; raises InputError unless it is an integer of Python or NumPy in 1..most. wanted: its text."""
    number = int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else 0
    if not 1 <= number <= most:
        raise InputError(f"{name} must be {wanted}, got {value!r}")
    return number


def real(value: object) -> float:
    """`value`, a number of Python or NumPy, as a float; NaN for anything else, infinity for one that is too large."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def boolean(name: str, value: object) -> bool:
    """`value` as a bool; raises InputError unless it is a boolean of Python or NumPy."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _one_of(name: str, value: object, choices: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return str(value)


def _normalize(options: object, **values: object) -> None:
    """Set fields of a frozen dataclass: equal options have equal text, which ranks compare."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def checked_limit(activation: str, gated: bool, limit: object) -> float | None:
    """`limit` as a float or None; raises InputError for an activation or limit that needs gated=True."""
    if ACTIVATIONS[activation].gate_only and not gated:
        raise InputError(f"activation={activation!r} requires gated=True, got gated=False")
    if limit is None:
        return None
    number = real(limit)
    if not 1e-37 < number < 3.4e38:
        raise InputError(f"limit must be None or a positive number within the range of float32, got {limit!r}")
    if not gated:
        raise InputError(f"limit requires gated=True, got limit={limit!r} with gated=False")
    return number


@dataclass(frozen=True)
class Router:
    """How the scores of a token become k expert ids and k combine weights.

    score: "softmax" takes the softmax over all experts and then the k largest; "softmax_topk" takes the k
        largest scores and then the softmax over those k.
    renormalize: divide the k weights by their sum (no effect with "softmax_topk", whose weights sum to one).
    scale: factor on every combine weight.
    Of equal scores, the lowest expert id wins. Raises InputError.
    """

    score: Score = "softmax"
    renormalize: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        scale = real(self.scale)
        if not abs(scale) < 3.4e38:
            raise InputError(f"scale must be a finite number within the range of float32, got {self.scale!r}")
        _normalize(
            self,
            score=_one_of("score", self.score, SCORES),
            renormalize=boolean("renormalize", self.renormalize),
            scale=scale,
        )


@dataclass(frozen=True)
class MoEConfig:
    """Shape and arithmetic of one MoE layer, equal on all ranks.

    hidden: H, width of a token. ffn: F, width inside an expert. experts: E over the whole EP group.
    top_k: experts for each token. gated: act(x·gate) * (x·up) instead of act(x·up).
    activation: "swiglu_oai" is gpt-oss's, g * sigmoid(1.702 g) * (u + 1) for g = x·gate and u = x·up; it needs gated.
    limit: with gated, clamps g to at most limit and u to -limit..limit before the activation.
    bias: biases on all projections. max_tokens: most tokens one rank brings to one call.
    dtype: of rows and of the experts' arithmetic; "tf32" is float32 whose products use 10 fraction bits, on tensor
    cores. On CPUs: float32, bfloat16, float16.
    precision: "high" allows products of float32 by three products of bfloat16, with 16 significant bits of rows, hidden
    activations and weights: outputs within 2e-5 of the largest one. Only CPUs with AMX gain by it and do so; all others
    compute as with "highest".
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
    precision: str = "highest"

    def __post_init__(self) -> None:
        sizes = {name: whole(name, getattr(self, name)) for name in ("hidden", "ffn", "experts", "top_k", "max_tokens")}
        _normalize(
            self,
            **sizes,
            activation=_one_of("activation", self.activation, ACTIVATIONS),
            gated=boolean("gated", self.gated),
            bias=boolean("bias", self.bias),
            dtype=_one_of("dtype", self.dtype, DTYPES),
            precision=_one_of("precision", self.precision, PRECISIONS),
        )
        _normalize(self, limit=checked_limit(self.activation, self.gated, self.limit))
        if not isinstance(self.router, Router):
            raise InputError(f"router must be an aristos.Router, got {self.router!r}")
        if self.precision != "highest" and self.dtype != "float32":
            raise InputError(f"precision={self.precision!r} requires dtype='float32', got dtype={self.dtype!r}")
        if self.top_k > self.experts:
            raise InputError(f"top_k must be at most experts ({self.experts}), got {self.top_k}")
