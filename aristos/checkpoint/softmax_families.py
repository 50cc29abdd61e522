"""Recipes of models whose router uses a softmax. Each recipe names the model's own code in transformers 5.24."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .options import MOST, Options, concerns
from .recipe import (
    ACTIVATIONS,
    StoredLayer,
    after_dense,
    by_groups,
    by_step,
    each,
    experts,
    family,
    fused,
    groups,
    layers,
    named,
    options_of,
    shared,
    usual_layer,
)
from .safetensors import shown
from .stored_arrays import StoredArray

MLP = ("mlp.",)
SPARSE = ("block_sparse_moe.", "mlp.")


@family("mixtral")
def mixtral(o: Options) -> dict[int, StoredLayer]:
    """models/mixtral: softmax, k best, renormalised."""
    o.ignore("router_jitter_noise")  # used only in training
    count = ("num_local_experts", "num_experts")
    layer = usual_layer(o, *SPARSE, ffn="intermediate_size", count=count, score="softmax", renormalize=True)
    return dict.fromkeys(layers(o), layer)


@family("minimax")
def minimax(o: Options) -> dict[int, StoredLayer]:
    """models/minimax (MiniMax-Text-01): as Mixtral; the factors for attention belong to the decoder."""
    o.ignore("mlp_alpha_factor", "mlp_beta_factor")
    o.only(shared_intermediate_size=0)
    o.ignore("shared_moe_mode")  # concerns a shared expert, which the model does not have
    return mixtral(o)


@family("arctic")
def arctic(o: Options) -> dict[int, StoredLayer]:
    """Snowflake Arctic (vllm-project/vllm models/arctic.py): as Mixtral in every moe_layer_frequency-th layer.

    The dense residual MLP reads another norm, so it is outside of the layer.
    """
    o.only(moe_token_dropping=False)
    o.ignore("moe_train_capacity_factor", "moe_eval_capacity_factor", "moe_min_capacity")  # options of dropping
    o.ignore("use_residual", "enable_expert_tensor_parallelism")
    if o.size("num_experts_per_tok") < 2:
        o.refuse(
            "num_experts_per_tok must be at least 2, because published code differs on a single expert's weight, got 1"
        )
    step = o.size("moe_layer_frequency")
    return {i: layer for i, layer in mixtral(o).items() if (i + 1) % step == 0}


@family("olmoe", "flex_olmo", norm_topk_prob=False)
def olmoe(o: Options) -> dict[int, StoredLayer]:
    """models/olmoe, models/flex_olmo: softmax, k best; renormalised if the model says so."""
    layer = usual_layer(o, ffn="intermediate_size", score="softmax", renormalize=o.flag("norm_topk_prob"))
    return dict.fromkeys(layers(o), layer)


def qwen(o: Options, renormalize: bool, with_shared: bool) -> StoredLayer:
    """models/qwen2_moe and similar models: softmax, k best; a shared expert with a sigmoid factor."""
    o.ignore("intermediate_size")  # a width of dense layers
    layer = usual_layer(o, score="softmax", renormalize=renormalize)
    if not with_shared:
        return layer
    options = {**layer.options, "shared_ffn": o.size("shared_expert_intermediate_size"), "shared_sigmoid": True}
    sigmoid = named("shared_sigmoid", "mlp.shared_expert_gate.weight", row=True)
    return replace(layer, options=options, parts=(*layer.parts, shared("mlp.shared_expert."), sigmoid))


STEPS: dict[str, Any] = {"decoder_sparse_step": 1}


@family("qwen2_moe", norm_topk_prob=False, **STEPS)
def qwen2_moe(o: Options) -> dict[int, StoredLayer]:
    """models/qwen2_moe."""
    return dict.fromkeys(by_step(o), qwen(o, o.flag("norm_topk_prob"), True))


@family("qwen3_moe", norm_topk_prob=False, **STEPS)
def qwen3_moe(o: Options) -> dict[int, StoredLayer]:
    """models/qwen3_moe."""
    return dict.fromkeys(by_step(o), qwen(o, o.flag("norm_topk_prob"), False))


@family("mellum", norm_topk_prob=True, first_k_dense_replace=0)
def mellum(o: Options) -> dict[int, StoredLayer]:
    """models/mellum: as Qwen3-MoE, in the layers that mlp_layer_types calls sparse."""
    return dict.fromkeys(after_dense(o), qwen(o, o.flag("norm_topk_prob"), False))


@family("qwen3_next", norm_topk_prob=True, **STEPS)
def qwen3_next(o: Options) -> dict[int, StoredLayer]:
    """models/qwen3_next."""
    return dict.fromkeys(by_step(o), qwen(o, o.flag("norm_topk_prob"), True))


@family("qwen3_5_moe_text", **STEPS)
def qwen3_5_moe(o: Options) -> dict[int, StoredLayer]:
    """models/qwen3_5_moe: always renormalised."""
    o.only(norm_topk_prob=True)
    return dict.fromkeys(by_step(o), qwen(o, True, True))


@family("qwen3_vl_moe_text", "qwen3_omni_moe_text", **STEPS)
def qwen3_vl_moe(o: Options) -> dict[int, StoredLayer]:
    """models/qwen3_vl_moe: always renormalised; experts are stored stacked, [in, out] in published files."""
    layer = qwen(o, True, False)
    o.only(norm_topk_prob=True)
    hub = fused("mlp.", in_out=True)
    layer = replace(layer, parts=((*layer.parts[0], hub), *layer.parts[1:]))
    return dict.fromkeys(by_step(o), layer)


def deepseek_layer(o: Options, router: dict[str, Any], *experts_keys: str) -> StoredLayer:
    """DeepSeek's layer: experts of width moe_intermediate_size, and n_shared_experts more that every token passes."""
    o.ignore("intermediate_size")  # a width of dense layers
    return usual_layer(o, count=experts_keys, shared_count=("n_shared_experts",), **router)


@family("deepseek", first_k_dense_replace=0, moe_layer_freq=1, norm_topk_prob=False, scoring_func="softmax")
def deepseek(o: Options) -> dict[int, StoredLayer]:
    """DeepSeek-MoE-16B (vllm-project/vllm models/deepseek.py): softmax, k best; renormalised if the model says so."""
    o.only(scoring_func="softmax", mlp_bias=False)
    o.ignore("aux_loss_alpha", "seq_aux")
    layer = deepseek_layer(o, {"score": "softmax", "renormalize": o.flag("norm_topk_prob")}, "n_routed_experts")
    return dict.fromkeys(after_dense(o), layer)


@family("deepseek_v2", routed_scaling_factor=1.0, first_k_dense_replace=0, topk_method="greedy", n_shared_experts=2)
def deepseek_v2(o: Options) -> dict[int, StoredLayer]:
    """models/deepseek_v2: softmax, k best, of the best groups if topk_method says so; norm_topk_prob is ignored."""
    o.only(scoring_func="softmax", mlp_bias=False, moe_layer_freq=1)
    o.ignore("aux_loss_alpha", "seq_aux")
    limited = o.word("topk_method", {"greedy": False, "group_limited_greedy": True})
    o.ignore("n_group", "topk_group")
    router: dict[str, Any] = {"score": "softmax", "renormalize": False, "scale": o.number("routed_scaling_factor")}
    if limited:
        o.size("n_group")
        router |= groups(o, "max")
    note = ""
    if o.flag("norm_topk_prob"):
        note = "norm_topk_prob is true: Aristos ignores it, as transformers does; the model's own code renormalises"
    layer = deepseek_layer(o, router, "n_routed_experts")
    return dict.fromkeys(after_dense(o), replace(layer, note=note))


@family("mistral4", routed_scaling_factor=1.0, first_k_dense_replace=0, norm_topk_prob=True, n_shared_experts=1)
def mistral4(o: Options) -> dict[int, StoredLayer]:
    """models/mistral4: softmax; groups valued by the sum of their two best; renormalised if the model says so."""
    layer = deepseek_layer(o, by_groups(o, "softmax"), "n_routed_experts", "num_local_experts")
    return dict.fromkeys(after_dense(o), layer)


@family("jamba", expert_layer_period=2, expert_layer_offset=1)
def jamba(o: Options) -> dict[int, StoredLayer]:
    """models/jamba: softmax, k best, not renormalised; every expert_layer_period-th layer."""
    names: dict[str, Any] = {"ffn": "intermediate_size", "count": ("num_experts",), "gate": ("router.weight",)}
    layer = usual_layer(o, "feed_forward.", **names, score="softmax", renormalize=False)
    period, offset = o.size("expert_layer_period"), o.count("expert_layer_offset")
    return {i: layer for i in layers(o) if i % period == offset}


@family("dbrx")
def dbrx(o: Options) -> dict[int, StoredLayer]:
    """models/dbrx: softmax, k best, divided by their 1-norm; all experts' rows follow each other, down is [in, out]."""
    inner = o.get("ffn_config")
    if not isinstance(inner, dict):
        o.refuse(f"ffn_config must be a JSON object, got {shown(inner)}")
    f = Options(inner, o.where, {"ffn_act_fn": {"name": "silu"}})
    act = f.get("ffn_act_fn")
    name = act.get("name") if isinstance(act, dict) else None
    if not isinstance(name, str) or name not in ACTIVATIONS or set(act) != {"name"}:
        o.refuse(f"ffn_act_fn must have only a name, one of {', '.join(ACTIVATIONS)}, got {shown(act)}")
    f.ignore("moe_normalize_expert_weights")
    norm = inner.get("moe_normalize_expert_weights", 1)  # null: not normalised
    if norm not in (None, 1):
        o.refuse(f"moe_normalize_expert_weights must be null or 1, got {shown(norm)}")
    f.ignore("moe_jitter_eps", "moe_loss_weight", "hidden_size", "uniform_expert_assignment")
    f.only(uniform_expert_assignment=False)
    sizes = f.size("ffn_hidden_size"), f.size("moe_num_experts"), f.size("moe_top_k")
    how: dict[str, Any] = {"score": "softmax", "renormalize": norm == 1}
    options = options_of(o, *sizes, activation=ACTIVATIONS[name], hidden="d_model", **how)
    f.refuse_unknown("dbrx")
    base = "ffn.experts.mlp."
    flat = {
        "gate": StoredArray(base + "w1", flat=True),
        "up": StoredArray(base + "v1", flat=True),
        "down": StoredArray(base + "w2", flat=True, in_out=True),
    }
    layer = StoredLayer(options, ((flat,), named("router", "ffn.router.layer.weight")), ("ffn.",), "blocks.{n}.")
    return dict.fromkeys(layers(o, "n_layers"), layer)


@family("phimoe", router_jitter_noise=0.01)
def phimoe(o: Options) -> dict[int, StoredLayer]:
    """models/phimoe: sparsemixer, two experts."""
    o.only(router_jitter_noise=0.01, num_experts_per_tok=2)
    o.ignore("input_jitter_noise")
    names: dict[str, Any] = {"count": ("num_local_experts",), "gate": ("gate.weight", "router.weight")}
    layer = usual_layer(o, *SPARSE, ffn="intermediate_size", **names, score="sparsemixer", renormalize=False)
    return dict.fromkeys(layers(o), layer)


@family(
    "ernie4_5_moe",
    moe_layer_interval=1,
    moe_layer_start_index=1,
    moe_layer_end_index=-1,
    moe_norm_min=1e-12,
    moe_num_shared_experts=2,
)
def ernie(o: Options) -> dict[int, StoredLayer]:
    """models/ernie4_5_moe: softmax, renormalised; a bias takes part in the choice, not in the weights."""
    o.only(use_bias=False, moe_gate="topk", moe_use_aux_free=True)
    o.ignore("intermediate_size", "moe_group", "moe_capacity")
    if o.number("moe_norm_min") > 1e-6:
        o.refuse(
            "moe_norm_min must be at most 1e-6, because Aristos has no lower bound for sums of weights, got"
            f" {o.number('moe_norm_min')}"
        )
    layer = usual_layer(
        o,
        count=("moe_num_experts", "num_experts"),
        top_k=("moe_k", "num_experts_per_tok"),
        shared_count=("moe_num_shared_experts",),
        score="softmax",
        renormalize=True,
    )
    statics = ("mlp.moe_statics.e_score_correction_bias", "mlp.gate.moe_statics.e_score_correction_bias")
    layer = replace(layer, parts=(*layer.parts, named("select_bias", *statics, row=True)))
    start, interval = o.count("moe_layer_start_index"), o.size("moe_layer_interval")
    last = o.get("moe_layer_end_index")
    every = layers(o)
    end = len(every) - 1 if last in (None, -1) else o.count("moe_layer_end_index")
    return {i: layer for i in every if (i + 1) % interval == 0 and start <= i <= end}


@family("hunyuan", "hunyuan_v1_moe")
def hunyuan(o: Options) -> dict[int, StoredLayer]:
    """models/hunyuan_v1_moe: softmax, k best, renormalised; sizes may be lists by layer.

    Hunyuan-Large (model_type hunyuan; vllm-project/vllm models/hunyuan_v1.py) does not renormalise a single expert.
    """
    large = o.config.get("model_type") == "hunyuan"
    o.ignore("capacity_factor")  # an option of dropping
    o.only(mlp_bias=False, moe_drop_tokens=False, use_mixed_mlp_moe=True)
    beside = o.get("num_shared_expert", "num_shared_experts")
    if beside is not None and any(n != 1 for n in (beside if isinstance(beside, list) else [beside])):
        o.refuse(f"num_shared_expert must be 1 for this model, got {shown(beside)}")
    o.ignore("dense_list", "moe_layer_num_skipped", "moe_random_routing_dropped_token", "group_limited_greedy")
    o.only(group_limited_greedy=False, norm_topk_prob=True, routed_scaling_factor=1.0)
    o.only(moe_layer_num_skipped=0)

    def of(layer: int, *keys: str) -> int:
        if isinstance(o.get(*keys), list):
            numbers = o.numbers(o.first(*keys)) or []
            if layer >= len(numbers) or not 1 <= numbers[layer] <= MOST:
                o.refuse(f"{keys[0]} must have an int in 1..{MOST} for every layer, got {shown(numbers)}")
            return numbers[layer]
        return o.size(*keys)

    found = {}
    for i in layers(o):
        ffn = of(i, o.first("moe_intermediate_size", "intermediate_size"))
        top_k = of(i, "moe_topk", "num_experts_per_tok")
        renormalize = top_k > 1 or not large
        options = options_of(o, ffn, of(i, "num_experts"), top_k, score="softmax", renormalize=renormalize)
        options["shared_ffn"] = o.size("intermediate_size")
        parts = (experts(*MLP), named("router", "mlp.gate.wg.weight"), shared("mlp.shared_mlp."))
        found[i] = StoredLayer(options, parts)
    return found


@family("longcat_flash", routed_scaling_factor=6.0, zero_expert_num=256, router_bias=False)
def longcat(o: Options) -> dict[int, StoredLayer]:
    """models/longcat_flash: softmax over experts and identity experts, chosen with a bias, not renormalised."""
    o.only(router_bias=False, zero_expert_type="identity", norm_topk_prob=False)
    o.ignore("ffn_hidden_size", "intermediate_size", "moe_intermediate_size")
    ffn = o.size(o.first("expert_ffn_hidden_size", "moe_intermediate_size"))
    sizes = ffn, o.size("n_routed_experts"), o.size("moe_topk", "num_experts_per_tok")
    scale = o.number("routed_scaling_factor")
    options = options_of(o, *sizes, score="softmax", renormalize=False, scale=scale)
    options["identity_experts"] = o.count("zero_expert_num")
    parts = (
        (each("mlp."),),
        named("router", "mlp.router.classifier.weight"),
        named("select_bias", "mlp.router.e_score_correction_bias"),
    )
    first, identity = options["experts"], options["identity_experts"]
    names = (f"mlp.experts.{e}.{name}_proj.weight" for e in range(first, first + identity) for name in ("gate", "up"))
    return dict.fromkeys(layers(o, "num_layers"), StoredLayer(options, parts, unused=tuple(names)))


@family("gemma4_text", hidden_activation="gelu_pytorch_tanh", enable_moe_block=False)
def gemma4(o: Options) -> dict[int, StoredLayer]:
    """models/gemma4: softmax, k best, renormalised. Each expert's scale is multiplied into its down projection.

    Router and experts read two norms of one tensor, which differ only in their weights. The router is multiplied by the
    quotient of the weights, so that both read the experts' input (pre_feedforward_layernorm_2).
    """
    o.ignore("intermediate_size", "use_double_wide_mlp", "num_kv_shared_layers")  # the dense layer, attention
    own = o.get("per_layer_config")
    for options in own.values() if isinstance(own, dict) else ():
        if not isinstance(options, dict) or any(map(concerns, options)):
            o.refuse(
                f"per_layer_config must be left out: Aristos has one configuration for all layers, got {shown(own)}"
            )
    if not o.flag("enable_moe_block"):
        return {}
    sizes = o.size("moe_intermediate_size"), o.size("num_experts"), o.size("top_k_experts")
    options = options_of(o, *sizes, "hidden_activation", score="softmax", renormalize=True)
    parts = (
        (fused(""),),
        named("router", "router.proj.weight"),
        named("router_scale", "router.scale"),
        named("router_norm", "pre_feedforward_layernorm_2.weight"),
        named("expert_scale", "router.per_expert_scale"),
    )
    layer = StoredLayer(options, parts, ("experts.", "router."), router_factor=options["hidden"] ** -0.5)
    return dict.fromkeys(layers(o), layer)
