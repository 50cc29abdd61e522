"""Options as frozen dataclasses. Every error quotes the refused value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from kernel_cache.errors import quoted

from .errors import InputError
from .row_types import ROW_TYPES
from .weight_types import PACKED_ROWS, WeightType, packed


class ActivationRule(NamedTuple):
    """An activation.

    code: its number in kernels. gate_only: whether the layer must be gated. shift: a number that is added to u = x·up
    before the activated gate multiplies u.
    """

    code: int
    gate_only: bool = False
    shift: float = 0.0


# kernels/common and _reference_parts.py have a function of each name
ACTIVATIONS: dict[str, ActivationRule] = {
    "relu": ActivationRule(0),
    "gelu": ActivationRule(1),
    "gelu_tanh": ActivationRule(2),
    "silu": ActivationRule(3),
    "swiglu_oai": ActivationRule(4, gate_only=True, shift=1.0),
    "relu2": ActivationRule(5),
}
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "swiglu_oai", "relu2"]


class ScoreRule(NamedTuple):
    """A kind of score.

    code: its number in kernels. valued: whether it gives every expert a weight, chosen or not, so that groups and
    experts with a select_bias can be compared. jumps: whether weights jump at some scores, so that the rounding of a
    score can change weights much.
    """

    code: int
    valued: bool = False
    jumps: bool = False


# kernels/common and _reference_parts.py have a function of each name
SCORE_RULES: dict[str, ScoreRule] = {
    "softmax": ScoreRule(0, valued=True),
    "softmax_topk": ScoreRule(1),
    "sigmoid": ScoreRule(2, valued=True),
    "sqrtsoftplus": ScoreRule(3, valued=True),
    "sparsemixer": ScoreRule(4, jumps=True),
}
SCORES: dict[str, int] = {name: rule.code for name, rule in SCORE_RULES.items()}
BIASED: tuple[str, ...] = tuple(name for name, rule in SCORE_RULES.items() if rule.valued)
Score = Literal["softmax", "softmax_topk", "sigmoid", "sqrtsoftplus", "sparsemixer"]
ValuedScore = Literal["softmax", "sigmoid", "sqrtsoftplus"]
# a group's value: the largest weight of its experts, or the sum of their two largest
GROUP_SCORES: dict[str, int] = {"max": 0, "sum_top2": 1}
GroupScore = Literal["max", "sum_top2"]
WEIGHTS_ON: tuple[str, ...] = ("output", "input")
FLAGS: tuple[str, ...] = ("gated", "bias", "shared_sigmoid", "limit_after")
MOST_GROUPS = 63  # most groups: a set of groups is one word
SPARSEMIXER_WIDTH = 0.02  # twice the jitter of Phi-3.5-MoE
LEAST_SUM = 1e-20  # added to the sum of k weights before they are divided by it, as in DeepSeek-V3's code
PRECISIONS: tuple[str, ...] = ("highest", "high")
BACKENDS: tuple[str, ...] = ("cpu", "cuda")
LEVELS: tuple[int | str, ...] = (1, 2, "auto")  # levels of the wire between nodes
MOVES: tuple[str, ...] = ("auto", "tokens", "experts")  # what crosses between the ranks of a node
MOST_EXPERTS = 1 << 20  # most experts of a layer, and most ranks: tables have an entry for each
MOST_THREADS = 4096  # most workers of a rank
LARGEST = (1 << 40) - 1  # the largest size, so that products of sizes fit 64 bits
OVERDUE = 10  # absent_timeout is by default this many times timeout


def whole(name: str, value: object, most: int = LARGEST, wanted: str = "a positive int below 2**40") -> int:
    """`value` as an int. Raises InputError unless it is an integer of Python or NumPy in 1..most.

    wanted: what the message says that the value must be.
    """
    number = int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else 0
    if not 1 <= number <= most:
        raise InputError(f"{name} must be {wanted}, got {quoted(value)}")
    return number


def real(value: object) -> float:
    """`value`, a number of Python or NumPy, as a float: NaN if it is anything else, infinity if it is too large."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def boolean(name: str, value: object) -> bool:
    """`value` as a bool; raises InputError unless it is a boolean of Python or NumPy."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, got {quoted(value)}")
    return bool(value)


def _one_of(name: str, value: object, choices: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {quoted(value)}")
    return str(value)


def _normalize(options: object, **values: object) -> None:
    """Set fields of a frozen dataclass, so that equal options have equal text, which ranks compare."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def checked_limit(activation: str, gated: bool, limit: object) -> float | None:
    """`limit` as a float or None; raises InputError for an activation or limit that needs gated=True."""
    if ACTIVATIONS[activation].gate_only and not gated:
        raise InputError(f"activation={quoted(activation)} requires gated=True, got gated=False")
    if limit is None:
        return None
    number = real(limit)
    if not 1e-37 < number < 3.4e38:
        raise InputError(f"limit must be None or a positive number within the range of float32, got {quoted(limit)}")
    if not gated:
        raise InputError(f"limit requires gated=True, got limit={quoted(limit)} with gated=False")
    return number


@dataclass(frozen=True)
class Router:
    """How the scores of a token become k expert ids and k combine weights.

    The scores are s = x Wr + router_bias. `select_bias`, a bias for choosing only, is added to the weights when experts
    and groups are compared. Of experts (or groups) with equal values, the lowest id wins.

    Parameters
    ----------
    score : str, default "softmax"
        The rule that makes weights of scores:

        - "softmax": the softmax over all experts, at the k largest s (Mixtral, OLMoE, Qwen).
        - "softmax_topk": the softmax over the k largest s (gpt-oss, Granite).
        - "sigmoid": 1 / (1 + e^-s) at the k largest (DeepSeek-V3).
        - "sqrtsoftplus": sqrt(log(1 + e^s)) at the k largest (DeepSeek-V4).
        - "sparsemixer": each choice is the best of the experts that earlier choices left. Its weight is its share of a
          softmax over these experts, without every expert i for which s - s_i exceeds 0.02 max(abs(s_i), s), where s is
          the score of the choice (Phi-3.5-MoE, arXiv:2409.12136).
    renormalize : bool, default True
        Divide the k weights by their sum plus 1e-20. It has no effect with "sparsemixer", nor with "softmax_topk",
        whose weights sum to one.
    scale : float, default 1.0
        A factor on every combine weight.
    groups : int, default 0
        How many groups of equal size the experts form, at most 63. 0: no groups.
    topk_groups : int, default 0
        With groups, experts are chosen only from this many of the best groups.
    group_score : str, default "max"
        The value by which groups are compared: "max", their largest weight (DeepSeek-V2), or "sum_top2", the sum of
        their two largest weights (DeepSeek-V3).
    capacity_factor : float or None, default None
        A rank sends at most ceil(capacity_factor * S * k / E) of its S tokens to an expert: first choices token by
        token, then second choices, and so on. `Routing.dropped` is the number of choices that were dropped; their ids
        are -1. None: no limit.
    weight_on : str, default "output"
        "output": an expert's output is multiplied by the weight. "input", for k = 1: the expert gets the token times
        the weight, and its output is not weighted (Llama 4).
    capacity : int or None, default None
        The most choices that a rank sends to an expert (`expert_capacity` of Switch Transformers). At most one of
        `capacity` and `capacity_factor` may be given.

    Raises
    ------
    InputError
        A value out of its range, or options that exclude one another.

    Source
    ------
    Capacity: GShard, arXiv:2006.16668; Switch Transformers, arXiv:2101.03961.

    Examples
    --------
    >>> import aristos
    >>> deepseek_v3 = aristos.Router("sigmoid", groups=8, topk_groups=4, group_score="sum_top2", scale=2.5)
    >>> deepseek_v3.renormalize
    True
    """

    score: Score = "softmax"
    renormalize: bool = True
    scale: float = 1.0
    groups: int = 0
    topk_groups: int = 0
    group_score: GroupScore = "max"
    capacity_factor: float | None = None
    weight_on: Literal["output", "input"] = "output"
    capacity: int | None = None

    def __post_init__(self) -> None:
        scale = real(self.scale)
        if not abs(scale) < 3.4e38:
            raise InputError(f"scale must be a finite number within the range of float32, got {quoted(self.scale)}")
        factor = self.capacity_factor
        if factor is not None and not 0 < real(factor) < 1e9:
            raise InputError(f"capacity_factor must be None or a positive number below 1e9, got {quoted(factor)}")
        if self.capacity is not None:
            if factor is not None:
                raise InputError(
                    f"give capacity or capacity_factor, not both, got {quoted(self.capacity)} and {quoted(factor)}"
                )
            _normalize(self, capacity=whole("capacity", self.capacity, wanted="None or a positive int below 2**40"))
        _normalize(
            self,
            score=_one_of("score", self.score, SCORES),
            renormalize=boolean("renormalize", self.renormalize),
            scale=scale,
            group_score=_one_of("group_score", self.group_score, GROUP_SCORES),
            capacity_factor=None if factor is None else real(factor),
            weight_on=_one_of("weight_on", self.weight_on, WEIGHTS_ON),
        )
        self._check_groups()

    def _check_groups(self) -> None:
        if self.groups == 0 and self.topk_groups == 0 and not isinstance(self.groups, bool):
            if self.group_score != "max":
                raise InputError(f"group_score={quoted(self.group_score)} requires groups, got groups=0")
            _normalize(self, groups=0, topk_groups=0)
            return
        groups = whole("groups", self.groups, MOST_GROUPS, f"0 or an int in 1..{MOST_GROUPS}")
        kept = whole("topk_groups", self.topk_groups, groups, f"an int in 1..groups ({groups})")
        if self.score not in BIASED:
            raise InputError(f"groups require one of the scores {', '.join(BIASED)}, got score={quoted(self.score)}")
        _normalize(self, groups=groups, topk_groups=kept)


@dataclass(frozen=True)
class MoEConfig:
    """Shape and arithmetic of one MoE layer, equal on all ranks.

    Parameters
    ----------
    hidden : int
        H, the width of a token.
    ffn : int
        F, the width inside an expert.
    experts : int
        E, the number of experts over the whole EP group.
    top_k : int, default 2
        k, the number of experts for each token.
    activation : str, default "gelu"
        One of "relu", "gelu", "gelu_tanh", "silu", "swiglu_oai" and "relu2". "swiglu_oai" is that of gpt-oss,
        g * sigmoid(1.702 g) * (u + 1) for g = x·gate and u = x·up; it needs gated. "relu2" is max(x, 0) squared.
    gated : bool, default False
        Whether an expert computes act(x·gate) * (x·up) instead of act(x·up).
    limit : float or None, default None
        With gated, g = x·gate is clamped to at most `limit`, and u = x·up to -limit..limit, before the activation.
    bias : bool, default False
        Whether all projections have biases.
    dtype : str, default "float32"
        The type of rows and of the experts' arithmetic: "float32", "bfloat16" or "float16"; on GPUs also "tf32",
        float32 whose products use 10 fraction bits, on tensor cores.
    max_tokens : int, default 4096
        The most tokens that one rank brings to one call.
    router : Router, default Router()
        How experts are chosen.
    precision : str, default "highest"
        "high" allows products of float32 to be made of three products of bfloat16, with 16 significant bits of rows,
        hidden activations and weights. Errors of outputs are within 2e-5 of the largest output. Only CPUs with AMX do
        this, because only they gain by it; all others compute as with "highest".
    identity_experts : int, default 0
        How many identity experts there are. They return the token itself (LongCat). Their ids are E, E + 1 and so on.
        The router has a column for each of them.
    shared_ffn : int, default 0
        The width of the shared expert, which every rank has and every token passes; 0: there is none. Several shared
        experts count as one expert with their summed width. Activation, gate, limit and biases are those of the other
        experts. The shared expert's output is added to those of the chosen experts.
    shared_sigmoid : bool, default False
        Whether the shared expert's output is multiplied by sigmoid(x·w) for a vector w (Qwen2-MoE).
    limit_after : bool, default False
        With limit, whether act(g) is clamped instead of g (Step-3.7).
    weight_dtype : str, WeightType or None, default None
        The type in which experts' matrices stay packed: "fp8", "int8", "int4", "mxfp4", or a type that `aristos.packed`
        makes. Packed weights need CPUs and rows of float32 or bfloat16, and cannot be trained. None: matrices have the
        rows' type.
    levels : int or str, default 1
        Levels of the wire between nodes. With 1, a token crosses to every rank of another node that holds one of its
        experts; with 2, it crosses once to that node. "auto" is 2 where a probe finds that it works, and 1 elsewhere.
        Results do not depend on the levels. Two levels need CPUs and nodes of consecutive ranks; within one node
        nothing changes. With schedule="bulk" the all-to-all has the two levels: within each node, then between nodes.
    combine : str, default "rows"
        What comes back from another node: with "rows" the output of each expert, with "sums" one row for each token,
        the weighted sum of the outputs of the node's experts. "sums" needs levels=2 and schedule="fused", and cannot be
        trained. The sums are rounded to the rows' type, so bits depend on which experts share a node.

    Raises
    ------
    InputError
        A value out of its range, or options that exclude one another.

    Examples
    --------
    >>> import aristos
    >>> mixtral = aristos.MoEConfig(hidden=4096, ffn=14336, experts=8, activation="silu", gated=True, dtype="bfloat16")
    >>> mixtral.top_k, mixtral.columns, mixtral.packed
    (2, 8, None)
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
    identity_experts: int = 0
    shared_ffn: int = 0
    shared_sigmoid: bool = False
    limit_after: bool = False
    weight_dtype: str | WeightType | None = None
    levels: int | str = 1
    combine: str = "rows"

    @property
    def packed(self) -> WeightType | None:
        """`weight_dtype` as a WeightType; None if experts' matrices have the rows' type."""
        return self.weight_dtype if isinstance(self.weight_dtype, WeightType) else None

    @property
    def columns(self) -> int:
        """How many columns the router has: experts, then identity experts."""
        return self.experts + self.identity_experts

    def __post_init__(self) -> None:
        sizes = {name: whole(name, getattr(self, name)) for name in ("hidden", "ffn", "top_k", "max_tokens")}
        sizes["experts"] = whole("experts", self.experts, MOST_EXPERTS, f"a positive int of at most {MOST_EXPERTS}")
        _normalize(
            self,
            **sizes,
            activation=_one_of("activation", self.activation, ACTIVATIONS),
            **{name: boolean(name, getattr(self, name)) for name in FLAGS},
            dtype=_one_of("dtype", self.dtype, ROW_TYPES),
            precision=_one_of("precision", self.precision, PRECISIONS),
        )
        _normalize(self, limit=checked_limit(self.activation, self.gated, self.limit))
        if not isinstance(self.router, Router):
            raise InputError(f"router must be an aristos.Router, got {quoted(self.router)}")
        if self.precision != "highest" and self.dtype != "float32":
            raise InputError(f"precision={self.precision!r} requires dtype='float32', got dtype={self.dtype!r}")
        for name, most in (("identity_experts", MOST_EXPERTS), ("shared_ffn", LARGEST)):
            value = getattr(self, name)
            if value != 0 or isinstance(value, bool):
                _normalize(self, **{name: whole(name, value, most, f"0 or a positive int of at most {most}")})
        self._check_flags()
        self._check_packed()
        if self.top_k > self.columns:
            named = "experts + identity_experts" if self.identity_experts else "experts"
            raise InputError(f"top_k must be at most {named} ({self.columns}), got {self.top_k}")
        self._check_router()

    def _check_flags(self) -> None:
        """Raise InputError for an option about something that the layer does not have."""
        if self.shared_sigmoid and not self.shared_ffn:
            raise InputError("shared_sigmoid=True requires a shared expert, got shared_ffn=0")
        if self.limit_after and self.limit is None:
            raise InputError("limit_after=True requires a limit, got limit=None")
        if isinstance(self.levels, bool) or self.levels not in LEVELS:
            raise InputError(f"levels must be 1, 2 or 'auto', got {quoted(self.levels)}")
        if not isinstance(self.combine, str) or self.combine not in ("rows", "sums"):
            raise InputError(f"combine must be 'rows' or 'sums', got {quoted(self.combine)}")
        if self.combine == "sums" and self.levels != 2:
            raise InputError(f"combine='sums' needs levels=2, got {self.levels!r}: set levels, or leave combine out")
        if self.combine == "sums" and self.router.weight_on == "input":
            raise InputError("combine='sums' needs weight_on='output', got weight_on='input': leave combine out")

    def _check_packed(self) -> None:
        """Replace the name of a type of packed weights by the type. Raises InputError if it does not fit this layer."""
        if self.weight_dtype is None:
            return
        kind = self.weight_dtype
        if not (isinstance(kind, WeightType) and kind.packed):
            kind = packed(kind)  # type: ignore[arg-type]
        _normalize(self, weight_dtype=kind)
        if self.dtype not in PACKED_ROWS:
            wanted = " or ".join(PACKED_ROWS)
            raise InputError(f"weight_dtype={kind.name!r} requires rows of {wanted}, got dtype={self.dtype!r}")
        if self.precision != "highest":
            raise InputError(f"weight_dtype={kind.name!r} requires precision='highest', got {self.precision!r}")
        for name in ("hidden", "ffn", "shared_ffn"):
            if kind.columns == 1 and kind.group and getattr(self, name) % kind.group:
                raise InputError(
                    f"{name} must be a multiple of {kind.group}, the group of {kind.name}, got {getattr(self, name)}:"
                    " aristos.packed takes other groups"
                )

    def _check_router(self) -> None:
        """Raise InputError for a router that this layer cannot have."""
        router, k = self.router, self.top_k
        if router.weight_on == "input" and k != 1:
            raise InputError(f"weight_on='input' requires top_k=1, got top_k={k}: use weight_on='output'")
        if self.identity_experts:
            for name, value in (
                ("groups", router.groups),
                ("capacity_factor", router.capacity_factor),
                ("capacity", router.capacity),
                ("weight_on='input'", router.weight_on == "input"),
            ):
                if value:
                    raise InputError(
                        f"identity_experts must be 0 for a router with {name}, got {self.identity_experts}"
                    )
        if router.groups:
            self._check_groups(router.groups, router.topk_groups)

    def _check_groups(self, groups: int, kept: int) -> None:
        size = self.experts // groups
        if self.experts % groups:
            raise InputError(f"experts must be a multiple of groups={groups}, got {self.experts}")
        if self.router.group_score == "sum_top2" and size < 2:
            raise InputError(
                f"group_score='sum_top2' requires groups of at least 2 experts, got {size} in each of {groups} groups"
            )
        if self.top_k > kept * size:
            raise InputError(
                f"top_k must be at most {kept * size}, the experts in topk_groups={kept} groups, got {self.top_k}"
            )


def without_capacity(cfg: MoEConfig) -> MoEConfig:
    """`cfg` without its capacity, so that ids also name choices beyond it. Weights do not depend on the capacity."""
    return replace(cfg, router=replace(cfg.router, capacity=None, capacity_factor=None))
