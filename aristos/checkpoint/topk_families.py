"""Recipes of models that use a softmax over the k best logits.

Each recipe names the model's code in transformers 5.24.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .options import Options
from .recipe import StoredLayer, after_dense, family, fused, layers, named, options_of, shared, usual_layer


@family("gpt_oss", "openai_privacy_filter", swiglu_limit=7.0, swiglu_alpha=1.702)
def gpt_oss(o: Options) -> dict[int, StoredLayer]:
    """models/gpt_oss: biases everywhere; gate and up alternate, or are halves in models/openai_privacy_filter."""
    o.only(swiglu_alpha=1.702, experts_per_token=o.get("num_experts_per_tok"))
    o.ignore("hidden_act")  # it is silu in files, but the experts have another activation
    halves = o.config.get("model_type") == "openai_privacy_filter"
    plain = fused("mlp.", in_out=True, interleaved=not halves)
    packed = {array: replace(stored, in_out=False, form="mxfp4") for array, stored in plain.items()}
    biases = {
        f"{array}_bias": replace(stored, name=f"{stored.name}_bias", in_out=False) for array, stored in plain.items()
    }
    sizes = o.size("intermediate_size"), o.size("num_local_experts", "num_experts"), o.size("num_experts_per_tok")
    options = options_of(o, *sizes, activation="swiglu_oai", score="softmax_topk")
    options |= {"bias": True, "limit": o.number("swiglu_limit")}
    parts = (
        (plain,) if halves else (plain, packed),
        (biases,),
        named("router", "mlp.router.weight"),
        named("router_bias", "mlp.router.bias"),
    )
    return dict.fromkeys(layers(o), StoredLayer(options, parts))


def granite(o: Options) -> StoredLayer:
    """models/granitemoe: the k best logits, softmax over these; input_linear holds gate and up."""
    o.ignore("logits_scaling", "residual_multiplier", "embedding_multiplier")  # outside the layer
    sizes = o.size("intermediate_size"), o.size("num_local_experts"), o.size("num_experts_per_tok")
    base = "block_sparse_moe."
    ways = (fused(base, "input_linear.weight", "output_linear.weight"), fused(base))
    router = named("router", base + "router.layer.weight", base + "router.weight")
    return StoredLayer(options_of(o, *sizes, score="softmax_topk"), (ways, router), (base,))


@family("granitemoe")
def granitemoe(o: Options) -> dict[int, StoredLayer]:
    """models/granitemoe."""
    return dict.fromkeys(layers(o), granite(o))


@family("granitemoehybrid", shared_intermediate_size=1024)
@family("granitemoeshared", "granitemoe_swa")
def granitemoeshared(o: Options) -> dict[int, StoredLayer]:
    """models/granitemoeshared, granitemoehybrid, _swa: the decoder adds shared_mlp, which is part of the layer here."""
    layer, width = granite(o), o.count("shared_intermediate_size")
    parts = (*layer.parts, shared("shared_mlp.")) if width else layer.parts
    options = {**layer.options, "shared_ffn": width}
    return dict.fromkeys(layers(o), StoredLayer(options, parts, (*layer.scopes, "shared_mlp.")))


@family("jetmoe", activation_function="silu")
def jetmoe(o: Options) -> dict[int, StoredLayer]:
    """models/jetmoe: as Granite, with a bias that is added to the output.

    Here every expert has that bias, which gives the same output, because the weights sum to one.
    """
    ffn = o.size(o.first("ffn_hidden_size", "intermediate_size"))
    sizes = ffn, o.size("moe_num_experts", "num_local_experts")
    top_k = o.size("moe_top_k", "num_experts_per_tok")
    options = options_of(o, *sizes, top_k, "activation_function", score="softmax_topk") | {"bias": True}
    o.only(bias=True, glu=True)
    parts = (
        (fused("mlp.", "input_linear.weight", "output_linear.weight"),),
        named("router", "mlp.router.layer.weight"),
        named("down_bias", "mlp.bias"),
    )
    return dict.fromkeys(layers(o), StoredLayer(options, parts))


@family("aria_text", moe_num_shared_experts=2)
def aria(o: Options) -> dict[int, StoredLayer]:
    """models/aria: the k best logits, softmax over these; fc1 and fc2 are [in, out]; routed experts are always silu."""
    o.only(hidden_act="silu", mlp_bias=False)
    o.ignore("moe_z_loss_coeff", "moe_aux_loss_coeff")
    ffn = o.size(o.first("intermediate_size", "moe_intermediate_size"))
    options = options_of(o, ffn, o.size("moe_num_experts"), o.size("moe_topk"), score="softmax_topk")
    ways = (fused("mlp.", "experts.fc1.weight", "experts.fc2.weight", in_out=True), fused("mlp.", in_out=True))
    parts = [ways, named("router", "mlp.router.weight")]
    if count := o.optional_count("moe_num_shared_experts"):
        options["shared_ffn"] = ffn * count
        parts.append(shared("mlp.shared_experts."))
    return dict.fromkeys(layers(o), StoredLayer(options, tuple(parts)))


@family(
    "cohere2_moe",
    expert_selection_fn="softmax",
    shared_expert_combination_strategy="average",
    first_k_dense_replace=0,
    norm_topk_prob=True,
)
def cohere2_moe(o: Options) -> dict[int, StoredLayer]:
    """models/cohere2_moe: the k best logits, softmax or sigmoid over these; the mean or sum with a shared expert."""
    o.ignore("prefix_dense_intermediate_size", "prefix_dense_sliding_window_pattern")
    sigmoid = o.word("expert_selection_fn", {"softmax": False, "sigmoid": True})
    renormalize = o.flag("norm_topk_prob")
    router: dict[str, Any] = {"score": "sigmoid", "renormalize": renormalize} if sigmoid else {"score": "softmax_topk"}
    count = o.optional_count("num_shared_experts")
    mean = o.word("shared_expert_combination_strategy", {"sum": False, "average": True}) and count > 0
    if mean:
        router["scale"] = 0.5
    names: dict[str, Any] = {"ffn": "intermediate_size", "shared_count": ("num_shared_experts",)}
    layer = usual_layer(o, count=("num_experts",), **names, **router)
    return dict.fromkeys(after_dense(o), replace(layer, shared_factor=0.5 if mean else 1.0))
