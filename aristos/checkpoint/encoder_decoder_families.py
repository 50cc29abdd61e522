"""Recipes of encoder-decoder models. Each recipe names the model's code in transformers 5.24.

The decoder's layers are numbered after the encoder's.
"""

from __future__ import annotations

from typing import Any

from .options import Options
from .recipe import StoredLayer, family, named, options_of
from .stored_arrays import StoredArray


@family(
    "switch_transformers",
    dense_act_fn="relu",
    num_sparse_encoder_layers=3,
    num_sparse_decoder_layers=3,
    router_bias=False,
    is_gated_act=False,
    expert_capacity=64,
)
def switch(o: Options) -> dict[int, StoredLayer]:
    """models/switch_transformers: the best expert; ungated."""
    o.only(
        add_router_probs=False,
        router_dtype="float32",
        is_gated_act=False,
        feed_forward_proj="relu",
        router_type="tokens_masked",
    )
    o.ignore("router_jitter_noise", "router_ignore_padding_tokens", "encoder_sparse_step", "decoder_sparse_step")
    bias = o.flag("router_bias")
    sizes, capacity = (o.size("d_ff"), o.size("num_experts"), 1), o.size("expert_capacity")
    router: dict[str, Any] = {"score": "softmax", "renormalize": False, "capacity": capacity}
    options = options_of(o, *sizes, "dense_act_fn", hidden="d_model", gated=False, **router)
    note = "the capacity counts the tokens of a rank's call; the model's own code counts those of a sequence"
    stored_arrays = {
        "up": StoredArray("mlp.experts.expert_{e}.wi.weight"),
        "down": StoredArray("mlp.experts.expert_{e}.wo.weight"),
    }
    parts = [(stored_arrays,), named("router", "mlp.router.classifier.weight")]
    if bias:
        parts.append(named("router_bias", "mlp.router.classifier.bias"))
    encoder = o.depth("num_layers")
    decoder = encoder if o.get("num_decoder_layers") is None else o.depth("num_decoder_layers")
    found = {}
    for first, count, key, layer in (
        (0, encoder, "num_sparse_encoder_layers", "encoder.block.{n}.layer.1."),
        (encoder, decoder, "num_sparse_decoder_layers", "decoder.block.{n}.layer.2."),
    ):
        sparse = o.count(key)
        if sparse > count:
            o.refuse(f"{key} must be at most {count}, the number of layers, got {sparse}")
        step = count // sparse if sparse else count
        for i in range(count):
            if i % step == 1 or step == 1:
                found[first + i] = StoredLayer(options, tuple(parts), layer=layer, own=i, note=note)
    return found


@family(
    "nllb-moe",
    activation_function="relu",
    router_bias=False,
    second_expert_policy="all",
    encoder_sparse_step=4,
    decoder_sparse_step=4,
    moe_eval_capacity_token_fraction=1.0,
    moe_token_dropout=0.2,
)
def nllb(o: Options) -> dict[int, StoredLayer]:
    """models/nllb_moe: the two best experts, renormalised, times 1 - moe_token_dropout; ungated, with biases.

    In transformers 5.24 the model's layer has a fault: it sends all rows to experts 0 and 1. Its router and its experts
    are right.
    """
    o.only(second_expert_policy="all", router_dtype="float32")
    o.ignore("router_ignore_padding_tokens", "expert_capacity")  # they concern the capacity in training
    o.ignore("batch_prioritized_routing", "normalize_router_prob_before_dropping")  # without drops they do nothing
    if (fraction := o.number("moe_eval_capacity_token_fraction")) < 1:
        why = "because Aristos renormalises before it drops a choice"
        o.refuse(f"moe_eval_capacity_token_fraction must be at least 1, {why}, got {fraction:g}")
    dropout = o.number("moe_token_dropout")
    if dropout >= 1:
        o.refuse(f"moe_token_dropout must be below 1, got {dropout:g}")
    stored_arrays = {
        array: StoredArray(f"ffn.experts.expert_{{e}}.{name}.weight")
        for array, name in (("up", "fc1"), ("down", "fc2"))
    }
    stored_arrays |= {
        f"{array}_bias": StoredArray(stored.name.replace("weight", "bias")) for array, stored in stored_arrays.items()
    }
    parts = [(stored_arrays,), named("router", "ffn.router.classifier.weight")]
    if o.flag("router_bias"):
        parts.append(named("router_bias", "ffn.router.classifier.bias"))
    found, first = {}, 0
    for stack in ("encoder", "decoder"):
        sizes = o.size(f"{stack}_ffn_dim"), o.size("num_experts"), 2
        router: dict[str, Any] = {"score": "softmax", "renormalize": True, "scale": 1 - dropout}
        options = options_of(o, *sizes, "activation_function", hidden="d_model", gated=False, **router) | {"bias": True}
        count, step = o.depth(f"{stack}_layers"), o.count(f"{stack}_sparse_step")
        for i in range(count):
            if step and (i + 1) % step == 0:
                layer = f"{stack}.layers.{{n}}."
                found[first + i] = StoredLayer(options, tuple(parts), ("ffn.",), layer=layer, own=i)
        first += count
    return found
