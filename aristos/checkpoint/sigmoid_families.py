"""Recipes of models whose router uses a sigmoid or sqrt(softplus).

Each recipe names the model's code in transformers 5.24.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from .options import MOST_LAYERS, Options
from .recipe import (
    StoredLayer,
    after_dense,
    by_groups,
    each,
    experts,
    family,
    fused,
    kinds_of_layers,
    layers,
    named,
    options_of,
    shared,
    usual_layer,
    w123,
)
from .safetensors import shown
from .stored_arrays import LATE, StoredArray

MLP = ("mlp.",)
SPARSE = ("block_sparse_moe.", "mlp.")
CORRECTION = "gate.e_score_correction_bias"
TABLE = "the layer's experts are chosen by a table of token ids: give each call the ids and weights of Checkpoint.route"
LATE_NOTE = (
    "the last {late} experts are the model's shared ones, which every token uses: use placement= to give every rank a"
    " copy"
    " of them; otherwise the ranks that hold them have most of the work"
)
DEEP: dict[str, Any] = {"routed_scaling_factor": 1.0, "norm_topk_prob": True}
V3: dict[str, Any] = {**DEEP, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4}


def corrected(
    o: Options,
    *bases: str,
    norm: str = "norm_topk_prob",
    scale: str = "routed_scaling_factor",
    group: tuple[str, str] = ("n_group", "topk_group"),
    **names: tuple[str, ...],
) -> StoredLayer:
    """DeepSeek-V3's router: sigmoid scores; experts of the best groups are chosen with a bias.

    Weights are computed without the bias, and scaled. names: further arguments of `usual_layer`.
    """
    if o.get("scoring_func") not in (None, "sigmoid", "noaux_tc"):  # dots.llm1 has the method's name here
        o.only(scoring_func="sigmoid")
    o.only(topk_method="noaux_tc", mlp_bias=False, moe_router_use_sigmoid=True)
    o.ignore("intermediate_size", "aux_loss_alpha", "seq_aux")
    o.only(moe_router_activation_func="sigmoid", score_function="sigmoid", moe_router_enable_expert_bias=True)
    usual: dict[str, Any] = {
        "count": ("n_routed_experts", "num_experts", "num_local_experts"),
        "bias": (CORRECTION,),
        "shared_count": ("n_shared_experts", "num_shared_experts"),
        **by_groups(o, "sigmoid", norm, scale, *group),
    }
    return usual_layer(o, *bases, **usual | names)


@family("deepseek_v3", "kimi_k2", "deepseek_v32", n_shared_experts=1, **V3)
@family("glm4_moe", "glm4v_moe_text", n_shared_experts=1, **DEEP)
@family("glm4_moe_lite", n_shared_experts=1, **{**DEEP, "routed_scaling_factor": 1.8})
@family("glm_moe_dsa", n_shared_experts=1, **{**DEEP, "routed_scaling_factor": 2.5})
@family("dots1", **{**DEEP, "norm_topk_prob": False})
def deepseek_v3(o: Options) -> dict[int, StoredLayer]:
    """models/deepseek_v3, glm4_moe, dots1, deepseek_v32, glm4_moe_lite, glm_moe_dsa; Kimi K2 has DeepSeek-V3's code."""
    layer = corrected(o)
    if o.get("first_k_dense_replace") is None and o.get("mlp_layer_types") is None:
        o.refuse("first_k_dense_replace or mlp_layer_types must say which layers are MoE, got neither")
    return dict.fromkeys(after_dense(o), layer)


@family("solar_open", n_shared_experts=1, **DEEP)
def solar_open(o: Options) -> dict[int, StoredLayer]:
    """models/solar_open: as DeepSeek-V3, but every layer is MoE."""
    o.only(first_k_dense_replace=0)
    return dict.fromkeys(layers(o), corrected(o))


@family("exaone_moe", first_k_dense_replace=1, num_shared_experts=1, **{**DEEP, "routed_scaling_factor": 2.5})
def exaone_moe(o: Options) -> dict[int, StoredLayer]:
    """models/exaone_moe: as DeepSeek-V3, but the bias can be a tensor of `mlp` instead of `mlp.gate`."""
    o.ignore("is_moe_layer")
    layer = corrected(o, bias=("e_score_correction_bias", CORRECTION))
    return dict.fromkeys(after_dense(o), layer)


@family("mimo_v2_flash", **DEEP)
def mimo(o: Options) -> dict[int, StoredLayer]:
    """models/mimo_v2_flash: as DeepSeek-V3, without a shared expert; the first layer is dense."""
    layer = corrected(o)
    if o.get("mlp_layer_types") is None and o.get("moe_layer_freq") is None:
        return {i: layer for i in layers(o) if i > 0}
    return dict.fromkeys(after_dense(o), layer)


@family("kimi_linear", first_k_dense_replace=1, moe_renormalize=True, routed_scaling_factor=2.446, num_shared_experts=1)
def kimi_linear(o: Options) -> dict[int, StoredLayer]:
    """models/kimi_linear: as DeepSeek-V3 with other names."""
    layer = corrected(
        o,
        *SPARSE,
        count=("num_experts",),
        top_k=("num_experts_per_token", "num_experts_per_tok"),
        norm="moe_renormalize",
        group=("num_expert_group", "topk_group"),
    )
    o.only(use_grouped_topk=True)
    return dict.fromkeys(after_dense(o), layer)


@family(
    "bailing_hybrid",
    first_k_dense_replace=2,
    moe_renormalize=True,
    routed_scaling_factor=2.5,
    num_expert_group=8,
    topk_group=4,
    num_shared_experts=1,
)
def bailing(o: Options) -> dict[int, StoredLayer]:
    """models/bailing_hybrid (Ling 3.0): as DeepSeek-V3 with other names."""
    o.ignore("kda_safe_gate", "layer_group_size")
    layer = corrected(
        o,
        count=("num_experts",),
        top_k=("num_experts_per_token", "num_experts_per_tok"),
        norm="moe_renormalize",
        group=("num_expert_group", "topk_group"),
        bias=("gate.expert_bias", CORRECTION),
    )
    return dict.fromkeys(after_dense(o), layer)


@family("hy_v3", first_k_dense_replace=1, router_scaling_factor=2.826, route_norm=True, num_shared_experts=1)
def hy_v3(o: Options) -> dict[int, StoredLayer]:
    """models/hy_v3: as DeepSeek-V3 with other names; the first layer is dense."""
    o.ignore("enable_moe_fp32_combine")
    layer = corrected(
        o,
        count=("num_experts",),
        norm="route_norm",
        scale="router_scaling_factor",
        shared_names=("shared_mlp.", "shared_experts."),
        gate=("router.gate.weight", "gate.weight"),
        bias=("expert_bias", "e_score_correction_bias"),
    )
    return dict.fromkeys(after_dense(o), layer)


@family("afmoe", num_dense_layers=1, route_scale=1.0, route_norm=True, score_func="sigmoid", num_shared_experts=2)
def afmoe(o: Options) -> dict[int, StoredLayer]:
    """models/afmoe (Trinity): DeepSeek-V3's router without groups, with other names."""
    o.only(score_func="sigmoid", route_norm=True, num_expert_groups=1, num_limited_groups=1, n_group=1, topk_group=1)
    layer = corrected(
        o,
        count=("num_experts",),
        norm="route_norm",
        scale="route_scale",
        gate=("router.gate.weight",),
        bias=("expert_bias",),
    )
    return dict.fromkeys(after_dense(o, "num_dense_layers"), layer)


@family("lfm2_moe", num_dense_layers=2, norm_topk_prob=True, routed_scaling_factor=1.0, use_expert_bias=True)
def lfm2_moe(o: Options) -> dict[int, StoredLayer]:
    """models/lfm2_moe: sigmoid scores. Experts are chosen with a bias; weights are renormalised and scaled.

    The model's code adds 1e-6 to the sum by which it divides weights. Its activation is always silu.
    """
    o.only(hidden_act="silu")
    o.ignore("intermediate_size", *(key for key in o.config if key.startswith("block_")))
    layer = usual_layer(
        o,
        "feed_forward.",
        count=("num_experts",),
        bias=("expert_bias",) if o.flag("use_expert_bias") else (),
        score="sigmoid",
        renormalize=o.flag("norm_topk_prob"),
        scale=o.number("routed_scaling_factor"),
    )
    return dict.fromkeys(after_dense(o, "num_dense_layers"), layer)


@family("minimax_m2", scoring_func="sigmoid")
def minimax_m2(o: Options) -> dict[int, StoredLayer]:
    """models/minimax_m2: DeepSeek-V3's router without groups and without a scale."""
    o.only(scoring_func="sigmoid", use_routing_bias=True, shared_intermediate_size=0)
    o.ignore("router_jitter_noise", "mtp_transformer_layers", "num_mtp_modules", "shared_moe_mode")
    names: dict[str, Any] = {"count": ("num_local_experts",), "bias": ("e_score_correction_bias",)}
    layer = usual_layer(o, *SPARSE, ffn="intermediate_size", **names, score="sigmoid", renormalize=True)
    return dict.fromkeys(layers(o), layer)


@family("minimax_m3_vl_text", swiglu_alpha=1.702, swiglu_limit=7.0, routed_scaling_factor=2.0)
def minimax_m3(o: Options) -> dict[int, StoredLayer]:
    """models/minimax_m3_vl: MiniMax-M2's router, with scaled weights. All experts have gpt-oss's activation."""
    o.only(swiglu_alpha=1.702)
    o.ignore("hidden_act", "router_jitter_noise", "dense_intermediate_size")
    layer = usual_layer(
        o,
        *SPARSE,
        ffn="intermediate_size",
        count=("num_local_experts",),
        bias=(CORRECTION, "e_score_correction_bias"),
        activation="swiglu_oai",
        score="sigmoid",
        renormalize=True,
        scale=o.number("routed_scaling_factor"),
    )
    own = {"limit": o.number("swiglu_limit"), "shared_ffn": o.size("shared_intermediate_size")}
    parts = (*layer.parts, shared(*(base + "shared_experts." for base in SPARSE)))
    return dict.fromkeys(after_dense(o), replace(layer, options={**layer.options, **own}, parts=parts))


@family("step3p5", moe_router_scaling_factor=1.0)
def step3p7(o: Options) -> dict[int, StoredLayer]:
    """models/step3p7: DeepSeek-V3's router without groups. Some layers clamp after the activation."""
    o.only(mlp_bias=False, moe_router_activation="sigmoid", norm_expert_weight=True, use_moe_router_bias=True)
    o.ignore("intermediate_size", "need_fp32_gate", "swiglu_limits", "swiglu_limits_shared")
    how: dict[str, Any] = {"score": "sigmoid", "renormalize": True, "scale": o.number("moe_router_scaling_factor")}
    ffn = o.size("moe_intermediate_size")
    experts_of = o.size("n_routed_experts", "moe_num_experts", "num_local_experts")
    options = options_of(o, ffn, experts_of, o.size("num_experts_per_tok", "moe_top_k"), **how)
    options["shared_ffn"] = o.size("share_expert_dim", "share_expert_dims")
    stacked = {array: StoredArray(f"moe.{array}_proj.weight", stacked=True) for array in ("gate", "up", "down")}
    parts = (
        (*experts(*MLP), stacked),
        named("router", "moe.gate.weight", "mlp.gate.weight"),
        named("select_bias", "moe.router_bias", "mlp." + CORRECTION),
        shared("share_expert.", "mlp.shared_experts."),
    )
    listed = _listed(o, "moe_layers_enum")
    if o.get("mlp_layer_types") is not None:
        chosen_layers = after_dense(o)
    else:
        chosen_layers = [i for i in layers(o) if (i >= 3 if listed is None else i in listed)]
    found = {}
    limits = [_limits(o, key) for key in ("swiglu_limits", "swiglu_limits_shared")]
    for i in chosen_layers:
        routed, beside = (limit[i] if limit else None for limit in limits)
        chosen, problem = dict(options), ""
        if routed is not None:
            chosen |= {"limit": routed, "limit_after": True}
        if beside != routed:
            problem = f"the shared expert's limit ({beside}) differs from the routed experts' ({routed})"
        found[i] = StoredLayer(chosen, parts, ("mlp.", "moe.", "share_expert."), problem=problem)
    return found


def _listed(o: Options, key: str) -> set[int] | None:
    """Numbers of layers, as a list or, in published files, as a text "3,4,5"; None if the key does not exist."""
    value = o.get(key)
    if not isinstance(value, str):
        return None if value is None else set(o.numbers(key) or [])
    words = [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() and len(word) < 9 for word in words):
        o.refuse(f"{key} must be layer numbers separated by commas, got {shown(value)}")
    return {int(word) for word in words}


def _limits(o: Options, key: str) -> list[float | None]:
    """The limit of every layer, None for null or 0; empty if the option does not exist."""
    value, count = o.get(key), len(layers(o))
    if value is None:
        return []
    good = isinstance(value, list) and len(value) >= count
    if not good or not all(n is None or (isinstance(n, int | float) and 0 <= n < math.inf) for n in value):
        o.refuse(f"{key} must have null or a number of at least 0 for each of {count} layers, got {shown(value)}")
    return [float(n) if n else None for n in value]


@family("llama4_text", interleave_moe_layer_step=1)
def llama4(o: Options) -> dict[int, StoredLayer]:
    """models/llama4: the experts with the largest logits are chosen. Tensors of experts are stored [in, out].

    The sigmoid of an expert's logit multiplies the expert's input, not its output.
    """
    o.only(for_llm_compressor=False)
    o.ignore("router_jitter_noise", "intermediate_size_mlp", "for_llm_compressor")
    how: dict[str, Any] = {"score": "sigmoid", "renormalize": False, "weight_on": "input"}
    ffn, base = o.size("intermediate_size"), "feed_forward."
    options = options_of(o, ffn, o.size("num_local_experts"), o.size("num_experts_per_tok"), **how)
    options["shared_ffn"] = ffn
    parts = (
        (fused(base, in_out=True), each(base)),
        named("router", base + "router.weight"),
        shared(base + "shared_expert."),
    )
    step = o.size("interleave_moe_layer_step")
    listed = o.numbers("moe_layers")
    chosen = None if listed is None else set(listed)
    layer = StoredLayer(options, parts, (base,))
    return {i: layer for i in layers(o) if (i in chosen if chosen is not None else (i + 1) % step == 0)}


@family(
    "deepseek_v4",
    routed_scaling_factor=1.5,
    scoring_func="sqrtsoftplus",
    num_hash_layers=3,
    swiglu_limit=10.0,
    n_shared_experts=1,
)
def deepseek_v4(o: Options) -> dict[int, StoredLayer]:
    """models/deepseek_v4: sqrt(softplus) scores. Weights are renormalised and scaled.

    Experts are chosen with a bias, but in the first layers by a table of token ids.
    """
    o.only(norm_topk_prob=True, mlp_bias=False, topk_method="noaux_tc")
    stored = o.word("expert_dtype", {"fp4": "fp4", "fp8": ""}) if o.get("expert_dtype") is not None else ""
    o.ignore("router_jitter_noise", "o_groups", "hc_mult", "topk_method")
    score = o.word("scoring_func", {"sqrtsoftplus": "sqrtsoftplus", "sigmoid": "sigmoid", "softmax": "softmax"})
    how: dict[str, Any] = {"score": score, "renormalize": True, "scale": o.number("routed_scaling_factor")}
    names: dict[str, Any] = {"count": ("n_routed_experts",), "shared_count": ("n_shared_experts",)}
    bases = ("ffn.", "mlp.")
    layer = usual_layer(o, *bases, ffn=o.first("moe_intermediate_size", "intermediate_size"), **names, **how)
    layer = replace(layer, options={**layer.options, "limit": o.number("swiglu_limit")})
    parts = (tuple(w123(base, stored) for base in bases), *layer.parts[1:]) if stored else layer.parts
    biased = named("select_bias", "ffn.gate.bias", *(base + CORRECTION for base in bases))
    chosen = replace(layer, parts=(*parts, biased))
    table = named("table", *(base + "gate.tid2eid" for base in bases))
    looked_up = replace(layer, parts=(*parts, table), note=TABLE)
    hashed = o.count("num_hash_layers")
    kinds = None if o.get("mlp_layer_types") is None else kinds_of_layers(o, "moe", "hash_moe")
    by_table = (i < hashed if kinds is None else kinds[i] == "hash_moe" for i in layers(o))
    return {i: looked_up if table else chosen for i, table in enumerate(by_table)}


@family("nemotron_h", mlp_hidden_act="relu2", routed_scaling_factor=1.0, norm_topk_prob=True)
def nemotron_h(o: Options) -> dict[int, StoredLayer]:
    """models/nemotron_h: DeepSeek-V3's router; ungated experts with relu(x)^2 and a shared one of another width."""
    o.only(mlp_bias=False, moe_latent_size=None)
    o.ignore(
        "intermediate_size", "n_groups", "moe_shared_expert_overlap", "use_bias", "use_conv_bias", "n_shared_experts"
    )
    kinds = o.get(o.first("layers_block_type", "hybrid_override_pattern"))
    if isinstance(kinds, str):
        kinds = ["moe" if letter == "E" else "other" for letter in kinds]
    if not isinstance(kinds, list):
        o.refuse("layers_block_type or hybrid_override_pattern must say which layers are MoE, got neither")
    count = o.depth("num_hidden_layers") if o.get("num_hidden_layers") else min(len(kinds), MOST_LAYERS)
    sizes = o.size("moe_intermediate_size"), o.size("n_routed_experts"), o.size("num_experts_per_tok")
    options = options_of(o, *sizes, "mlp_hidden_act", gated=False, **by_groups(o, "sigmoid"))
    options["shared_ffn"] = o.size("moe_shared_expert_intermediate_size")
    base = "mixer."
    stacked = {array: StoredArray(f"{base}experts.{array}_proj", stacked=True) for array in ("up", "down")}
    both = {f"shared_{array}": StoredArray(f"{base}shared_experts.{array}_proj.weight") for array in ("up", "down")}
    parts = (
        (each(base, gate=""), stacked),
        named("router", base + "gate.weight"),
        named("select_bias", base + CORRECTION),
        (both,),
    )
    layer = StoredLayer(options, parts, (base,))
    return {i: layer for i, kind in enumerate(kinds[:count]) if kind == "moe"}


@family("inkling_text", n_shared_experts=2, route_scale=8.0, shared_expert_sink=True)
def inkling(o: Options) -> dict[int, StoredLayer]:
    """models/inkling: sigmoid scores and a bias. The weights of routed and shared experts are divided by one sum.

    So here the shared experts are the last experts, and a bias makes every token choose them. In published files the
    outputs of gate and up alternate.
    """
    o.only(shared_expert_sink=True)
    o.ignore("intermediate_size", "rms_norm_eps_moe_gate")  # the first is of dense layers, the second has no effect
    late = o.size("n_shared_experts")
    how: dict[str, Any] = {"score": "sigmoid", "renormalize": True, "scale": o.number("route_scale")}
    sizes = o.size("moe_intermediate_size"), o.size("n_routed_experts") + late, o.size("num_experts_per_tok") + late
    base = "mlp.shared_experts."
    both = fused(base, "shared_w13_weight", "shared_w2_weight", interleaved=True)
    apart = {name: StoredArray(f"{base}{name}_proj", stacked=True) for name in ("gate", "up", "down")}
    of_late = tuple({LATE + name: stored for name, stored in way.items()} for way in (apart, both))
    parts = (
        (fused("mlp."), fused("mlp.", "experts.w13_weight", "experts.w2_weight", interleaved=True)),
        of_late,
        named("router", "mlp.gate.weight"),
        named("select_bias", "mlp." + CORRECTION, "mlp.gate.bias"),
        named("expert_scale", "mlp.gate.global_scale"),
    )
    layer = StoredLayer(options_of(o, *sizes, **how), parts, late=late, note=LATE_NOTE.format(late=late))
    return dict.fromkeys(after_dense(o), layer)
