"""Presets to measure (`PRESETS`): shapes of published models (`MODELS`, see model_table.py), and five more.

A preset keeps a model's number of experts, top-k, activation and routing rule, and divides its widths by `scale`,
so that the ratio of tokens to experts is realistic on a laptop. If the layer lacks something of a model, `note` names
it. `reduced` makes a layer of any model of the table at a fraction of its width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .config import Activation, MoEConfig, Router, whole
from .errors import InputError
from .model_table import MODELS, Model

__all__ = ["DEFAULT", "MODELS", "PRESETS", "Model", "Preset", "Shape", "listing", "matching", "reduced", "shape"]

DEFAULT = "olmoe-1b-7b"


@dataclass(frozen=True)
class Preset:
    """A shape to measure, of a published model or of a comparison.

    Parameters
    ----------
    hidden : int
        H of the model.
    ffn : int
        F of the model.
    experts : int
        E of the model.
    top_k : int
        k of the model.
    tokens : tuple of int
        Numbers of tokens that a rank brings to a call; each number is measured.
    activation : str, default "silu"
        See `MoEConfig`.
    gated : bool, default True
        See `MoEConfig`.
    bias : bool, default False
        See `MoEConfig`.
    router : Router, default Router()
        See `MoEConfig`.
    limit : float or None, default None
        See `MoEConfig`.
    scale : int, default 1
        The divisor of hidden and ffn, unless a caller gives another one.
    source : str, default ""
        Where the numbers are published.
    note : str, default ""
        What the layer lacks of the model.
    """

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


def _published(name: str, scale: int, note: str = "") -> Preset:
    """The preset of a model of the table, for few and for many tokens, without the shared expert and the capacity."""
    m = MODELS[name]
    kept = {key: value for key, value in m.options.items() if key in ("activation", "bias", "limit")}
    return Preset(**_layer(m), **kept, tokens=(16, 1024), scale=scale, source=m.source, note=note)


def _layer(m: Model) -> dict[str, Any]:
    """The fields of a model that presets and configurations have too."""
    same = {key: getattr(m, key) for key in ("hidden", "ffn", "experts", "top_k", "gated")}
    return {**same, "router": Router(**m.router)}


PRESETS: dict[str, Preset] = {
    "a": _compared(1024, 1024, 4096, 8, 2, "comparison shape A: bound by arithmetic"),
    "b": _compared(4096, 128, 128, 8, 2, "comparison shape B: bound by communication"),
    "c": _compared(32, 512, 1024, 8, 2, "comparison shape C: few tokens"),
    "d": _compared(16, 2048, 512, 32, 8, "comparison shape D: decode, bound by reading weights"),
    "e": _compared(1024, 2048, 512, 32, 8, "comparison shape E: many small experts"),
    "olmoe-1b-7b": _published("olmoe-1b-7b", 4),
    "qwen3-30b-a3b": _published("qwen3-30b-a3b", 4),
    "mixtral-8x7b": _published("mixtral-8x7b", 8),
    "deepseek-v2-lite": _published("deepseek-v2-lite", 4, "without shared experts"),
    "deepseek-v3": _published("deepseek-v3", 16, "without the shared expert"),
    "gpt-oss-20b": _published("gpt-oss-20b", 6),
    "switch-base-128": _published("switch-base-128", 3, "no capacity limit"),
}


def listing() -> str:
    """The presets, for --help.

    Returns
    -------
    str
        One line for each preset.
    """
    lines = []
    for name, p in PRESETS.items():
        shape = f"H {p.hidden}/{p.scale}" if p.scale > 1 else f"H {p.hidden}"
        shape += f" F {p.ffn}/{p.scale}" if p.scale > 1 else f" F {p.ffn}"
        source = p.source + (f"; {p.note}" if p.note else "")
        lines.append(f"  {name:18s}{shape} E {p.experts} k {p.top_k}  ({source})")
    return "\n".join(lines)


def matching(experts: int, top_k: int) -> str | None:
    """The name of the preset for the model of a trace.

    Parameters
    ----------
    experts : int
        E of the trace.
    top_k : int
        k of the trace.

    Returns
    -------
    str or None
        The first gated preset with these numbers; None if there is none.
    """
    models = (name for name, p in PRESETS.items() if p.gated and (p.experts, p.top_k) == (experts, top_k))
    return next(models, None)


@dataclass(frozen=True)
class Shape:
    """A configuration to measure. `str` of it does not name the dtype.

    Attributes
    ----------
    name : str
        The name of the preset, with the divisor.
    cfg : MoEConfig
        The layer.
    tokens : tuple of int
        Numbers of tokens that a rank brings to a call; each number is measured.
    source : str
        Where the numbers are published.
    note : str
        How the configuration differs from the model.
    """

    name: str
    cfg: MoEConfig
    tokens: tuple[int, ...]
    source: str
    note: str

    def __str__(self) -> str:
        c = self.cfg
        gated = " gated" if c.gated else ""
        limit = "" if c.limit is None else f" limit {c.limit:g}"
        levels = " two levels" if c.levels == 2 else ""
        return f"{self.name}: H {c.hidden} F {c.ffn} E {c.experts} k {c.top_k} {c.activation}{gated}{limit}{levels}"


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
    """A preset for a number of ranks, with the user's numbers where given.

    Parameters
    ----------
    name : str
        A name of `PRESETS`.
    world : int
        W, the number of ranks. Every rank gets at least one expert: the preset's number of experts is raised to
        `world`.
    scale : int or None, default None
        The divisor of hidden and ffn. None: the preset's divisor.
    tokens : tuple of int, or None, default None
        Numbers of tokens that a rank brings to a call; each number is measured. None: the preset's.
    hidden : int or None, default None
        H. None: the preset's, divided.
    ffn : int or None, default None
        F. None: the preset's, divided.
    experts : int or None, default None
        E, even if it is below `world`. None: the preset's.
    top_k : int or None, default None
        k. None: the preset's.
    activation : str or None, default None
        See `MoEConfig`. None: the preset's.
    dtype : str, default "float32"
        See `MoEConfig`.
    precision : str, default "highest"
        See `MoEConfig`.

    Returns
    -------
    Shape
        The configuration, and how it differs from the model.

    Raises
    ------
    InputError
        A name that is no preset, or numbers that MoEConfig refuses.

    Examples
    --------
    >>> import aristos
    >>> print(aristos.models.shape("mixtral-8x7b", world=2, tokens=(64,)))
    mixtral-8x7b/8: H 512 F 1792 E 8 k 2 silu gated
    """
    if name not in PRESETS:
        raise InputError(f"name must be one of {', '.join(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    divisor = preset.scale if scale is None else whole("scale", scale)
    width = {"hidden": max(1, preset.hidden // divisor), "ffn": max(1, preset.ffn // divisor)}
    label = name if divisor == 1 else f"{name}/{divisor}"
    given = {"hidden": hidden, "ffn": ffn, "experts": experts, "top_k": top_k, "activation": activation}
    given = {key: value for key, value in given.items() if value is not None}
    own = {**vars(preset), **width}
    changed = [key for key, value in given.items() if value != own[key]]
    counts = preset.tokens if tokens is None else tokens
    if not counts:
        raise InputError(f"tokens must have at least one number of tokens, got {counts!r}")
    whole_groups = preset.router.groups or 1
    own["experts"] = -(-max(preset.experts, world) // whole_groups) * whole_groups
    kept = ("hidden", "ffn", "experts", "top_k", "activation", "gated", "limit", "bias", "router")
    options = {key: own[key] for key in kept} | given
    cfg = MoEConfig(**options, dtype=dtype, precision=precision, max_tokens=max(counts))
    note = preset.note
    if experts is None and cfg.experts != preset.experts:
        note = "; ".join(filter(None, [note, f"{cfg.experts} experts instead of {preset.experts}: one for each rank"]))
    if changed:
        note = "; ".join(filter(None, [note, f"changed from the model: {', '.join(changed)}"]))
    return Shape(label, cfg, counts, preset.source, note)


def reduced(name: str, scale: int = 16, **given: Any) -> MoEConfig:
    """A layer of a published model with all widths divided.

    Parameters
    ----------
    name : str
        A name of `MODELS`.
    scale : int, default 16
        The divisor of H, F and the width of the shared expert.
    **given : object
        Options of MoEConfig that replace the model's.

    Returns
    -------
    MoEConfig
        The configuration.

    Raises
    ------
    InputError
        A name that is not in the table, a model that Aristos cannot run, or options that MoEConfig refuses.
    """
    if name not in MODELS:
        raise InputError(f"name must be one of {', '.join(MODELS)}, got {name!r}")
    m, divisor = MODELS[name], whole("scale", scale)
    if not m.buildable:
        raise InputError(f"name must be a model that Aristos can run, got {name}: {m.lacking}")
    widths = {"hidden": m.hidden, "ffn": m.ffn, "shared_ffn": m.shared}
    divided = {key: max(1, width // divisor) for key, width in widths.items() if width}
    return MoEConfig(**{**_layer(m), **m.options, **divided, **given})


def with_max_tokens(cfg: MoEConfig, tokens: int) -> MoEConfig:
    """A configuration with space for a number of tokens.

    Parameters
    ----------
    cfg : MoEConfig
        The configuration.
    tokens : int
        Tokens that a rank brings to a call.

    Returns
    -------
    MoEConfig
        `cfg` with max_tokens raised to at least `tokens`.
    """
    return replace(cfg, max_tokens=max(cfg.max_tokens, tokens))
