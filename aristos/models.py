"""Published models' MoE layers as shapes to measure, and the five shapes the project compares itself on.

A preset keeps a model's number of experts, top-k, activation and routing rule, and divides its widths by `scale`,
so that the ratio of tokens to experts stays real while a laptop can run it. It refuses to claim a model's
arithmetic where the layer has no such router or activation: `note` then says what stands in.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .config import Activation, MoEConfig, Router

DEFAULT = "olmoe-1b-7b"


@dataclass(frozen=True)
class Preset:
    """hidden, ffn: as published. tokens: per rank and call, one measurement each. scale: default width divisor."""

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


_PLAIN = Router(renormalize=False)
_TOPK = Router(score="softmax_topk")
_SIGMOID = "softmax stands in for the model's sigmoid router"

PRESETS: dict[str, Preset] = {
    "a": _compared(1024, 1024, 4096, 8, 2, "comparison shape A: bound by arithmetic"),
    "b": _compared(4096, 128, 128, 8, 2, "comparison shape B: bound by communication"),
    "c": _compared(32, 512, 1024, 8, 2, "comparison shape C: few tokens"),
    "d": _compared(16, 2048, 512, 32, 8, "comparison shape D: decode, bound by reading weights"),
    "e": _compared(1024, 2048, 512, 32, 8, "comparison shape E: many small experts"),
    "olmoe-1b-7b": Preset(
        2048, 1024, 64, 8, (16, 1024), router=_PLAIN, scale=4, source="allenai/OLMoE-1B-7B-0924 config.json"
    ),
    "qwen3-30b-a3b": Preset(2048, 768, 128, 8, (16, 1024), scale=4, source="Qwen/Qwen3-30B-A3B config.json"),
    "mixtral-8x7b": Preset(4096, 14336, 8, 2, (16, 1024), scale=8, source="mistralai/Mixtral-8x7B-v0.1 config.json"),
    "deepseek-v2-lite": Preset(
        2048, 1408, 64, 6, (16, 1024), router=_PLAIN, scale=4, source="deepseek-ai/DeepSeek-V2-Lite config.json"
    ),
    "deepseek-v3": Preset(
        7168,
        2048,
        256,
        8,
        (16, 1024),
        router=Router(scale=2.5),
        scale=16,
        source="deepseek-ai/DeepSeek-V3 inference/configs/config_671B.json",
        note=_SIGMOID,
    ),
    "gpt-oss-20b": Preset(
        2880,
        2880,
        32,
        4,
        (16, 1024),
        activation="swiglu_oai",
        bias=True,
        limit=7.0,
        router=_TOPK,
        scale=6,
        source="openai/gpt-oss-20b config.json",
        note="without the bias of the model's router",
    ),
    "switch-base-128": Preset(
        768,
        3072,
        128,
        1,
        (16, 1024),
        activation="relu",
        gated=False,
        router=_PLAIN,
        scale=3,
        source="google/switch-base-128 config.json",
        note="no capacity limit",
    ),
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
    """The first model with these numbers, which a trace of it has; None if there is none."""
    models = (name for name, p in PRESETS.items() if p.gated and (p.experts, p.top_k) == (experts, top_k))
    return next(models, None)


@dataclass(frozen=True)
class Shape:
    """What is measured: a configuration, the tokens per rank and call, and where the numbers come from."""

    name: str
    cfg: MoEConfig
    tokens: tuple[int, ...]
    source: str
    note: str

    def __str__(self) -> str:
        c = self.cfg
        gated = " gated" if c.gated else ""
        limit = "" if c.limit is None else f" limit {c.limit:g}"
        return f"{self.name}: H {c.hidden} F {c.ffn} E {c.experts} k {c.top_k} {c.activation}{gated}{limit} {c.dtype}"


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
) -> Shape:
    """The preset `name` for `world` ranks, with the user's numbers in place of its own where given.

    Every rank gets at least one expert: experts of the preset's own are raised to `world`; a number the user gave
    is kept. Raises InputError for a combination that MoEConfig refuses.
    """
    preset = PRESETS[name]
    divisor = preset.scale if scale is None else scale
    width = {"hidden": max(1, preset.hidden // divisor), "ffn": max(1, preset.ffn // divisor)}
    label = name if divisor == 1 else f"{name}/{divisor}"
    given = {"hidden": hidden, "ffn": ffn, "experts": experts, "top_k": top_k, "activation": activation}
    own = {**vars(preset), **width}
    changed = [key for key, value in given.items() if value is not None and value != own[key]]
    counts = preset.tokens if tokens is None else tokens
    cfg = MoEConfig(
        hidden=hidden or width["hidden"],
        ffn=ffn or width["ffn"],
        experts=experts or max(preset.experts, world),
        top_k=top_k or preset.top_k,
        activation=activation or preset.activation,
        gated=preset.gated,
        limit=preset.limit,
        bias=preset.bias,
        dtype=dtype,
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
    return replace(cfg, max_tokens=max(cfg.max_tokens, tokens))
