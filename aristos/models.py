"""Published models: their shapes (`MODELS`), and presets to measure (`PRESETS`), with five shapes for comparisons.

A preset keeps a model's number of experts, top-k, activation and routing rule, and divides its widths by `scale`,
so that the ratio of tokens to experts stays real on a laptop. Where the layer lacks a model's router or activation,
`note` names the substitute.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .config import Activation, MoEConfig, Router, whole
from .errors import InputError

DEFAULT = "olmoe-1b-7b"
ATTENTION = 4  # times hidden^2 parameters of a layer's attention: four square matrices


@dataclass(frozen=True)
class Model:
    """A published model's shape. hidden, ffn, experts, top_k: of an MoE layer. moe_layers: those of `layers`.

    source: where the numbers are published. shared: the total width of the experts of an MoE layer that every token
    uses. dense_ffn: the width of the feed-forward block in the other layers.
    """

    hidden: int
    ffn: int
    experts: int
    top_k: int
    moe_layers: int
    layers: int
    gated: bool
    source: str
    shared: int = 0
    dense_ffn: int = 0

    @property
    def expert(self) -> int:
        """Parameters of one expert of one layer."""
        return self._feed_forward(self.ffn)

    @property
    def dense(self) -> int:
        """Parameters outside the routed experts, embeddings and routers left out."""
        plain = (self.layers - self.moe_layers) * self._feed_forward(self.dense_ffn)
        return ATTENTION * self.hidden**2 * self.layers + self.moe_layers * self._feed_forward(self.shared) + plain

    def _feed_forward(self, width: int) -> int:
        return (3 if self.gated else 2) * self.hidden * width


MODELS: dict[str, Model] = {
    "mixtral-8x7b": Model(4096, 14336, 8, 2, 32, 32, True, "mistralai/Mixtral-8x7B-v0.1 config.json"),
    "mixtral-8x22b": Model(6144, 16384, 8, 2, 56, 56, True, "mistral-community/Mixtral-8x22B-v0.1 config.json"),
    "deepseek-moe-16b": Model(
        2048, 1408, 64, 6, 27, 28, True, "deepseek-ai/deepseek-moe-16b-base config.json", 2816, 10944
    ),
    "deepseek-v2-lite": Model(2048, 1408, 64, 6, 26, 27, True, "deepseek-ai/DeepSeek-V2-Lite config.json", 2816, 10944),
    "deepseek-v2": Model(
        5120, 1536, 160, 6, 59, 60, True, "deepseek-ai/DeepSeek-V3 inference/configs/config_236B.json", 3072, 12288
    ),
    "deepseek-v3": Model(
        7168, 2048, 256, 8, 58, 61, True, "deepseek-ai/DeepSeek-V3 inference/configs/config_671B.json", 2048, 18432
    ),
    "kimi-k2": Model(7168, 2048, 384, 8, 60, 61, True, "MoonshotAI/Kimi-K2 README.md", 2048, 18432),
    "qwen3-30b-a3b": Model(2048, 768, 128, 8, 48, 48, True, "Qwen/Qwen3-30B-A3B config.json"),
    "qwen3-235b-a22b": Model(4096, 1536, 128, 8, 94, 94, True, "THUDM/slime scripts/models/qwen3-235B-A22B.sh"),
    "olmoe-1b-7b": Model(2048, 1024, 64, 8, 16, 16, True, "allenai/OLMoE-1B-7B-0924 config.json"),
    "gpt-oss-20b": Model(2880, 2880, 32, 4, 24, 24, True, "openai/gpt-oss-20b config.json"),
    "gpt-oss-120b": Model(2880, 2880, 128, 4, 36, 36, True, "openai/gpt-oss gpt_oss/torch/model.py"),
    "phi-3.5-moe": Model(4096, 6400, 16, 2, 32, 32, True, "microsoft/Phi-3.5-MoE-instruct config.json"),
    "switch-base-128": Model(768, 3072, 128, 1, 12, 24, False, "google/switch-base-128 config.json", 0, 3072),
    "dbrx": Model(6144, 10752, 16, 4, 40, 40, True, "databricks/dbrx model/config.json"),
    "llama-4-scout": Model(5120, 8192, 16, 1, 48, 48, True, "transformers 5.24.0 models/llama4 defaults", 8192),
    "glm-4.5-355b": Model(
        5120, 1536, 160, 8, 89, 92, True, "THUDM/slime scripts/models/glm4.5-355B-A32B.sh", 1536, 12288
    ),
    "minimax-m2": Model(3072, 1536, 256, 8, 62, 62, True, "THUDM/slime scripts/models/minimax-m2.sh"),
}


@dataclass(frozen=True)
class Preset:
    """A shape to measure. tokens: per rank and call, each measured. scale: default divisor of hidden and ffn."""

    hidden: int
    ffn: int
    experts: int
    top_k: int
    tokens: tuple[int, ...]
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    router: Router = field(default_factory=Router)
    limit: float | None = None
    scale: int = 1
    source: str = ""
    note: str = ""


def _compared(tokens: int, hidden: int, ffn: int, experts: int, top_k: int, source: str) -> Preset:
    return Preset(hidden, ffn, experts, top_k, (tokens,), activation="relu", gated=False, source=source)


def _published(name: str, scale: int, **options: Any) -> Preset:
    """The preset of a model of `MODELS`, with few and with many tokens."""
    m = MODELS[name]
    tokens = (16, 1024)
    return Preset(m.hidden, m.ffn, m.experts, m.top_k, tokens, gated=m.gated, scale=scale, source=m.source, **options)


_PLAIN = Router(renormalize=False)
_TOPK = Router(score="softmax_topk")
_SIGMOID = "softmax stands in for the model's sigmoid router"

PRESETS: dict[str, Preset] = {
    "a": _compared(1024, 1024, 4096, 8, 2, "comparison shape A: bound by arithmetic"),
    "b": _compared(4096, 128, 128, 8, 2, "comparison shape B: bound by communication"),
    "c": _compared(32, 512, 1024, 8, 2, "comparison shape C: few tokens"),
    "d": _compared(16, 2048, 512, 32, 8, "comparison shape D: decode, bound by reading weights"),
    "e": _compared(1024, 2048, 512, 32, 8, "comparison shape E: many small experts"),
    "olmoe-1b-7b": _published("olmoe-1b-7b", 4, router=_PLAIN),
    "qwen3-30b-a3b": _published("qwen3-30b-a3b", 4),
    "mixtral-8x7b": _published("mixtral-8x7b", 8),
    "deepseek-v2-lite": _published("deepseek-v2-lite", 4, router=_PLAIN),
    "deepseek-v3": _published("deepseek-v3", 16, router=Router(scale=2.5), note=_SIGMOID),
    "gpt-oss-20b": _published(
        "gpt-oss-20b",
        6,
        activation="swiglu_oai",
        bias=True,
        limit=7.0,
        router=_TOPK,
        note="without the bias of the model's router",
    ),
    "switch-base-128": _published("switch-base-128", 3, activation="relu", router=_PLAIN, note="no capacity limit"),
}


def listing() -> str:
    """One line a preset, for --help."""
    lines = []
    for name, p in PRESETS.items():
        shape = f"H {p.hidden}/{p.scale}" if p.scale > 1 else f"H {p.hidden}"
        shape += f" F {p.ffn}/{p.scale}" if p.scale > 1 else f" F {p.ffn}"
        source = p.source + (f"; {p.note}" if p.note else "")
        lines.append(f"  {name:18s}{shape} E {p.experts} k {p.top_k}  ({source})")
    return "\n".join(lines)


def matching(experts: int, top_k: int) -> str | None:
    """The first gated preset with these numbers, to name the model of a trace; None if there is none."""
    models = (name for name, p in PRESETS.items() if p.gated and (p.experts, p.top_k) == (experts, top_k))
    return next(models, None)


@dataclass(frozen=True)
class Shape:
    """A configuration to measure, the tokens per rank and call, and the source of the numbers."""

    name: str
    cfg: MoEConfig
    tokens: tuple[int, ...]
    source: str
    note: str

    def __str__(self) -> str:
        c = self.cfg
        gated = " gated" if c.gated else ""
        limit = "" if c.limit is None else f" limit {c.limit:g}"
        kind = c.dtype if c.precision == "highest" else f"{c.dtype} {c.precision}"
        return f"{self.name}: H {c.hidden} F {c.ffn} E {c.experts} k {c.top_k} {c.activation}{gated}{limit} {kind}"


def shape(
    name: str,
    world: int,
    *,
    scale: int | None = None,
    tokens: tuple[int, ...] | None = None,
    hidden: int | None = None,
    ffn: int | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    activation: Activation | None = None,
    dtype: str = "float32",
    precision: str = "highest",
) -> Shape:
    """The preset `name` for `world` ranks, with the user's numbers where given.

    Every rank gets at least one expert: the preset's number of experts is raised to `world`, a number given here is
    kept. Raises InputError for a name that is no preset, and for numbers that MoEConfig refuses.
    """
    if name not in PRESETS:
        raise InputError(f"name must be one of {', '.join(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    divisor = preset.scale if scale is None else whole("scale", scale)
    width = {"hidden": max(1, preset.hidden // divisor), "ffn": max(1, preset.ffn // divisor)}
    label = name if divisor == 1 else f"{name}/{divisor}"
    given = {"hidden": hidden, "ffn": ffn, "experts": experts, "top_k": top_k, "activation": activation}
    own = {**vars(preset), **width}
    changed = [key for key, value in given.items() if value is not None and value != own[key]]
    counts = preset.tokens if tokens is None else tokens
    if not counts:
        raise InputError(f"tokens must have an entry for each call to measure, got {counts!r}")
    cfg = MoEConfig(
        hidden=width["hidden"] if hidden is None else hidden,
        ffn=width["ffn"] if ffn is None else ffn,
        experts=max(preset.experts, world) if experts is None else experts,
        top_k=preset.top_k if top_k is None else top_k,
        activation=preset.activation if activation is None else activation,
        gated=preset.gated,
        limit=preset.limit,
        bias=preset.bias,
        dtype=dtype,
        precision=precision,
        max_tokens=max(counts),
        router=preset.router,
    )
    note = preset.note
    if experts is None and cfg.experts != preset.experts:
        note = "; ".join(filter(None, [note, f"{cfg.experts} experts instead of {preset.experts}: one a rank"]))
    if changed:
        note = "; ".join(filter(None, [note, f"not the model's: {', '.join(changed)}"]))
    return Shape(label, cfg, counts, preset.source, note)


def with_max_tokens(cfg: MoEConfig, tokens: int) -> MoEConfig:
    """`cfg` with max_tokens raised to at least `tokens`."""
    return replace(cfg, max_tokens=max(cfg.max_tokens, tokens))
