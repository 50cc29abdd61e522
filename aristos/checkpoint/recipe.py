"""What a family's recipe returns for an MoE layer, functions that recipes share, and the registry of families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .options import Options
from .safetensors import shown
from .stored_arrays import Part, StoredArray

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
LAYERS = "layers.{n}."
SHARED = (  # names of a shared expert's tensors of gate, up and down
    ("gate_proj", "up_proj", "down_proj"),
    ("w1", "w3", "w2"),
    ("gate_up_proj", "gate_up_proj", "down_proj"),
    ("input_linear", "input_linear", "output_linear"),
)


@dataclass(frozen=True)
class StoredLayer:
    """One MoE layer of a model, as its directory stores it.

    options: those of MoEConfig, without max_tokens, dtype and precision; "router" holds Router's options. parts: the
    layer's arrays, each with alternatives. layer: the beginning of the layer's names, with {n} for the layer's number.
    scopes: the beginnings, after `layer`, of the names of all tensors of the layer. problem: why Aristos cannot run
    this layer; empty if it can. note: how the layer differs from the model's own code, or what a call needs.
    shared_factor: a power of two by which the shared expert's output is multiplied. router_factor: a factor by which
    the router is multiplied, if the parts have "router_scale". late: how many of the last experts have separate tensors
    ("late_up" and so on) and are always chosen.

    Parts may have further arrays: "table" [V, k], the experts of each token id, which replaces choosing by scores;
    "expert_scale" [E] or [1], by which an expert's output is multiplied; "router_scale" [H], by which the router's
    input is multiplied, and "router_norm" [H], by which the layer's input has already been multiplied.
    """

    options: Mapping[str, Any]
    parts: tuple[Part, ...]
    scopes: tuple[str, ...] = ("mlp.",)
    layer: str = LAYERS
    unused: tuple[str, ...] = ()  # tensors that may exist, but on which no value of the layer depends
    own: int | None = None  # the layer's number in names, if the model numbers several stacks from 0
    problem: str = ""
    note: str = ""
    shared_factor: float = 1.0
    router_factor: float = 1.0
    late: int = 0


Build = Callable[[Options], dict[int, StoredLayer]]


@dataclass(frozen=True)
class Family:
    """The recipe of one or more values of model_type. defaults: values of options that config.json may leave out."""

    build: Build
    defaults: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {}
# by model_type: why Aristos has no recipe for such a model
REFUSED = {
    "doge": "product keys choose among thousands of experts of one neuron each",
    "zaya": "its router is a network with a state from the layer before, and may skip the layer",
    "grok-1": "published code differs on its router: whether scores are capped, and whether weights are renormalised",
}


def family(*names: str, **defaults: Any) -> Callable[[Build], Build]:
    """Decorate a recipe: register it for these values of model_type. The default of hidden_act is "silu"."""

    def register(build: Build) -> Build:
        for name in names:
            FAMILIES[name] = Family(build, {"hidden_act": "silu", **defaults})
        return build

    return register


# ---------------------------------------------------------------- which layers


def layers(o: Options, key: str = "num_hidden_layers") -> range:
    """The numbers of all layers of the model."""
    return range(o.depth(key))


def by_step(o: Options) -> list[int]:
    """Qwen's rule: every decoder_sparse_step-th layer that mlp_only_layers does not name."""
    step, plain = o.size("decoder_sparse_step"), set(o.numbers("mlp_only_layers") or [])
    return [i for i in layers(o) if i not in plain and (i + 1) % step == 0]


def after_dense(o: Options, key: str = "first_k_dense_replace") -> list[int]:
    """The layers that mlp_layer_types does not call dense.

    Without that option: the layers that a list in moe_layer_freq marks; or every moe_layer_freq-th layer after the
    first ones, which are dense and whose number is the option `key`.
    """
    kinds = o.get("mlp_layer_types")
    freq = o.get("moe_layer_freq")
    if kinds is not None:
        o.ignore(key)
        return [i for i, kind in enumerate(kinds_of_layers(o, "dense", "sparse", "moe")) if kind != "dense"]
    if isinstance(freq, list):
        o.ignore(key)
        flags = o.flags("moe_layer_freq") or []
        if len(flags) < len(layers(o)):
            o.refuse(f"moe_layer_freq must have 0 or 1 for each of the {len(layers(o))} layers, got {len(flags)}")
        return [i for i in layers(o) if flags[i]]
    step = 1 if freq is None else o.size("moe_layer_freq")
    return [i for i in layers(o) if i >= o.count(key) and i % step == 0]


def kinds_of_layers(o: Options, *known: str) -> list[str]:
    """mlp_layer_types, a word of `known` for each layer.

    Entries after these belong to layers that predict further tokens, and are left out.
    """
    kinds, count = o.get("mlp_layer_types"), len(layers(o))
    if not isinstance(kinds, list) or len(kinds) < count or not all(kind in known for kind in kinds):
        o.refuse(f"mlp_layer_types must say {' or '.join(known)} for each of {count} layers, got {shown(kinds)}")
    return kinds[:count]


# ---------------------------------------------------------------- where the arrays are


def each(
    base: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj", form: str = ""
) -> dict[str, StoredArray]:
    """A tensor for each expert and projection, in nn.Linear's order, or the tensors of a form in `packed.FORMS`."""
    names = {"gate": gate, "up": up, "down": down}
    return {
        array: StoredArray(f"{base}experts.{{e}}.{name}.weight", form=form) for array, name in names.items() if name
    }


def w123(base: str, form: str = "") -> dict[str, StoredArray]:
    """The same as `each`, with Mixtral's names."""
    return each(base, "w1", "w3", "w2", form)


def fused(
    base: str,
    wide: str = "experts.gate_up_proj",
    narrow: str = "experts.down_proj",
    in_out: bool = False,
    interleaved: bool = False,
) -> dict[str, StoredArray]:
    """Stacked experts with gate and up in one tensor, as halves (gate first), or as alternating outputs."""
    gate, up = ("even", "odd") if interleaved else ("first", "second")
    return {
        "gate": StoredArray(base + wide, stacked=True, outputs=gate, in_out=in_out),
        "up": StoredArray(base + wide, stacked=True, outputs=up, in_out=in_out),
        "down": StoredArray(base + narrow, stacked=True, in_out=in_out),
    }


def experts(*bases: str) -> Part:
    """The usual ways to store gated experts, with names that begin with one of the bases."""
    return tuple(way(base) for base in bases for way in (each, w123, fused))


def named(array: str, *names: str, **how: Any) -> Part:
    """One array, stored under the first of these names that exists."""
    return tuple({array: StoredArray(name, **how)} for name in names)


def shared(*bases: str) -> Part:
    """A shared expert: three linear layers, or gate and up fused."""

    def stored(base: str, gate: str, up: str, down: str) -> dict[str, StoredArray]:
        first, second = ("first", "second") if gate == up else ("all", "all")
        return {
            "shared_gate": StoredArray(f"{base}{gate}.weight", outputs=first),
            "shared_up": StoredArray(f"{base}{up}.weight", outputs=second),
            "shared_down": StoredArray(f"{base}{down}.weight"),
        }

    return tuple(stored(base, *names) for base in bases for names in SHARED)


# ---------------------------------------------------------------- options


def options_of(
    o: Options,
    ffn: int,
    experts: int,
    top_k: int,
    act: str = "hidden_act",
    *,
    activation: str = "",
    hidden: str = "hidden_size",
    gated: bool = True,
    **router: Any,
) -> dict[str, Any]:
    """Options of a layer of experts without biases.

    act: the key of the activation, which is not read if `activation` is given. hidden: the key of the layer's width.
    router: options of `Router`.
    """
    return {
        "hidden": o.size(hidden),
        "ffn": ffn,
        "experts": experts,
        "top_k": top_k,
        "gated": gated,
        "activation": activation or o.word(act, ACTIVATIONS),
        "router": router,
    }


def usual_layer(
    o: Options,
    *bases: str,
    ffn: str = "moe_intermediate_size",
    count: tuple[str, ...] = ("num_experts", "num_local_experts"),
    top_k: tuple[str, ...] = ("num_experts_per_tok",),
    gate: tuple[str, ...] = ("gate.weight",),
    bias: tuple[str, ...] = (),
    shared_count: tuple[str, ...] = (),
    shared_names: tuple[str, ...] = ("shared_experts.",),
    **others: Any,
) -> StoredLayer:
    """A layer of gated experts, stored in one of the usual ways, and of shared experts of the same width.

    bases: beginnings of all names; "mlp." if there are none. ffn, count, top_k, shared_count: keys of options. gate,
    bias, shared_names: ends of the names of the router, of its "select_bias" if there is one, and of shared experts.
    others: further arguments of `options_of`.
    """
    bases = bases or ("mlp.",)

    def names(ends: tuple[str, ...]) -> list[str]:
        return [base + end for base in bases for end in ends]

    width = o.size(ffn)
    options = options_of(o, width, o.size(*count), o.size(*top_k), **others)
    parts = [experts(*bases), named("router", *names(gate))]
    if bias:
        parts.append(named("select_bias", *names(bias)))
    if shared_count and (number := o.optional_count(*shared_count)):
        options["shared_ffn"] = width * number
        parts.append(shared(*names(shared_names)))
    return StoredLayer(options, tuple(parts), bases)


def groups(o: Options, kind: str, count: str = "n_group", kept: str = "topk_group") -> dict[str, Any]:
    """Options of a router that first chooses groups of experts; {} if all experts are one group."""
    for key in (count, kept):
        if key in o.config and o.config[key] is None and o.defaults.get(key, 1) != 1:
            o.refuse(f"{key} must be a number, because the model's default is {o.defaults[key]}, got null")
    many = o.count(count)
    if many <= 1:
        o.ignore(kept)
        return {}
    return {"groups": many, "topk_groups": o.size(kept), "group_score": kind}


def by_groups(
    o: Options, score: str, norm: str = "norm_topk_prob", scale: str = "routed_scaling_factor", *group: str
) -> dict[str, Any]:
    """A router whose weights are renormalised or not, and scaled. Groups are chosen by their two best experts."""
    return {
        "score": score,
        "renormalize": o.flag(norm),
        "scale": o.number(scale),
        **groups(o, "sum_top2", *group),
    }
