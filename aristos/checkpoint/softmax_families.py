"""Recipes of models whose router takes a softmax. Each names the model's own code in transformers 5.24."""

from __future__ import annotations

from typing import Any

from .options import MOST, Options
from .pieces import Piece
from .recipe import (
    ACTIVATIONS,
    Block,
    after_dense,
    by_step,
    each,
    experts,
    family,
    fused,
    gated,
    groups,
    layers,
    named,
    shared,
)

MLP = ("mlp.",)
SPARSE = ("block_sparse_moe.", "mlp.")


@family("mixtral", hidden_act="silu")
def mixtral(o: Options) -> dict[int, Block]:
    """models/mixtral: softmax, k best, renormalised."""
    o.ignore("router_jitter_noise")  # in training alone
    sizes = o.size("intermediate_size"), o.size("num_local_experts", "num_experts"), o.size("num_experts_per_tok")
    parts = (experts(*SPARSE), named("router", *(base + "gate.weight" for base in SPARSE)))
    block = Block(gated(o, *sizes, score="softmax", renormalize=True), parts, SPARSE)
    return dict.fromkeys(layers(o), block)


@family("minimax", hidden_act="silu")
def minimax(o: Options) -> dict[int, Block]:
    """models/minimax (MiniMax-Text-01): as Mixtral; the attention's factors are the decoder's."""
    o.ignore("mlp_alpha_factor", "mlp_beta_factor")
    o.only(shared_intermediate_size=0)
    o.ignore("shared_moe_mode")  # of a shared expert, which there is none of
    return mixtral(o)


@family("olmoe", "flex_olmo", hidden_act="silu", norm_topk_prob=False)
def olmoe(o: Options) -> dict[int, Block]:
    """models/olmoe, models/flex_olmo: softmax, k best; renormalised if the model says so."""
    sizes = o.size("intermediate_size"), o.size("num_experts", "num_local_experts"), o.size("num_experts_per_tok")
    router: dict[str, Any] = {"score": "softmax", "renormalize": o.flag("norm_topk_prob")}
    block = Block(gated(o, *sizes, **router), (experts(*MLP), named("router", "mlp.gate.weight")))
    return dict.fromkeys(layers(o), block)


def qwen(o: Options, renormalize: bool, with_shared: bool) -> Block:
    """models/qwen2_moe and its kin: softmax, k best; a shared expert with a gate of its own."""
    o.ignore("intermediate_size")  # of dense layers
    sizes = o.size("moe_intermediate_size"), o.size("num_experts", "num_local_experts"), o.size("num_experts_per_tok")
    options = gated(o, *sizes, score="softmax", renormalize=renormalize)
    parts = [experts(*MLP), named("router", "mlp.gate.weight")]
    if with_shared:
        options |= {"shared_ffn": o.size("shared_expert_intermediate_size"), "shared_sigmoid": True}
        parts += [shared("mlp.shared_expert."), named("shared_sigmoid", "mlp.shared_expert_gate.weight", row=True)]
    return Block(options, tuple(parts))


STEPS: dict[str, Any] = {"decoder_sparse_step": 1, "hidden_act": "silu"}


@family("qwen2_moe", norm_topk_prob=False, **STEPS)
def qwen2_moe(o: Options) -> dict[int, Block]:
    """models/qwen2_moe."""
    return dict.fromkeys(by_step(o), qwen(o, o.flag("norm_topk_prob"), True))


@family("qwen3_moe", norm_topk_prob=False, **STEPS)
def qwen3_moe(o: Options) -> dict[int, Block]:
    """models/qwen3_moe."""
    return dict.fromkeys(by_step(o), qwen(o, o.flag("norm_topk_prob"), False))


@family("mellum", norm_topk_prob=True, first_k_dense_replace=0, hidden_act="silu")
def mellum(o: Options) -> dict[int, Block]:
    """models/mellum: as Qwen3-MoE, in the layers that mlp_layer_types calls sparse."""
    return dict.fromkeys(after_dense(o), qwen(o, o.flag("norm_topk_prob"), False))


@family("qwen3_next", norm_topk_prob=True, **STEPS)
def qwen3_next(o: Options) -> dict[int, Block]:
    """models/qwen3_next."""
    return dict.fromkeys(by_step(o), qwen(o, o.flag("norm_topk_prob"), True))


@family("qwen3_5_moe_text", **STEPS)
def qwen3_5_moe(o: Options) -> dict[int, Block]:
    """models/qwen3_5_moe: always renormalised, every layer."""
    o.only(norm_topk_prob=True)
    return dict.fromkeys(by_step(o), qwen(o, True, True))


@family("qwen3_vl_moe_text", "qwen3_omni_moe_text", **STEPS)
def qwen3_vl_moe(o: Options) -> dict[int, Block]:
    """models/qwen3_vl_moe: always renormalised; experts are stored stacked, [in, out] in published files."""
    block = qwen(o, True, False)
    o.only(norm_topk_prob=True)
    hub = fused("mlp.", turned=True)
    block = Block(block.options, ((*block.parts[0], hub), *block.parts[1:]))
    return dict.fromkeys(by_step(o), block)


@family("deepseek_v2", hidden_act="silu", routed_scaling_factor=1.0, first_k_dense_replace=0, topk_method="greedy")
def deepseek_v2(o: Options) -> dict[int, Block]:
    """models/deepseek_v2: softmax, k best, of the best groups by topk_method; norm_topk_prob is not read."""
    o.only(scoring_func="softmax", mlp_bias=False, moe_layer_freq=1)
    o.ignore("norm_topk_prob", "intermediate_size", "aux_loss_alpha", "seq_aux")
    limited = o.word("topk_method", {"greedy": False, "group_limited_greedy": True})
    o.ignore("n_group", "topk_group")
    router: dict[str, Any] = {"score": "softmax", "renormalize": False, "scale": o.number("routed_scaling_factor")}
    if limited:
        o.size("n_group")
    ffn = o.size("moe_intermediate_size")
    options = gated(o, ffn, o.size("n_routed_experts"), o.size("num_experts_per_tok"), **router)
    if limited:
        options["router"] |= groups(o, "max")
    parts = [experts(*MLP), named("router", "mlp.gate.weight")]
    if count := o.count("n_shared_experts"):
        options["shared_ffn"] = ffn * count
        parts.append(shared("mlp.shared_experts."))
    return dict.fromkeys(after_dense(o), Block(options, tuple(parts)))


@family("mistral4", hidden_act="silu", routed_scaling_factor=1.0, first_k_dense_replace=0, norm_topk_prob=True)
def mistral4(o: Options) -> dict[int, Block]:
    """models/mistral4: softmax; groups valued by their two best; renormalised if the model says so."""
    o.ignore("intermediate_size")
    ffn = o.size("moe_intermediate_size")
    router: dict[str, Any] = {
        "score": "softmax", "renormalize": o.flag("norm_topk_prob"), "scale": o.number("routed_scaling_factor"),
        **groups(o, "sum_top2"),
    }  # fmt: skip
    options = gated(o, ffn, o.size("n_routed_experts", "num_local_experts"), o.size("num_experts_per_tok"), **router)
    parts = [experts(*MLP), named("router", "mlp.gate.weight")]
    if count := o.count("n_shared_experts"):
        options["shared_ffn"] = ffn * count
        parts.append(shared("mlp.shared_experts."))
    return dict.fromkeys(after_dense(o), Block(options, tuple(parts)))


@family("gpt_oss", "openai_privacy_filter", swiglu_limit=7.0, swiglu_alpha=1.702)
def gpt_oss(o: Options) -> dict[int, Block]:
    """models/gpt_oss: biases everywhere; gate and up alternate, or are halves in models/openai_privacy_filter."""
    o.only(swiglu_alpha=1.702, experts_per_token=o.get("num_experts_per_tok"))
    o.ignore("hidden_act")  # says silu and is not it
    halves = o.config.get("model_type") == "openai_privacy_filter"
    base = "mlp.experts."
    plain = fused("mlp.", turned=True, interleaved=not halves)
    packed = {
        "gate": Piece(base + "gate_up_proj", stacked=True, outputs="even", mxfp4=True),
        "up": Piece(base + "gate_up_proj", stacked=True, outputs="odd", mxfp4=True),
        "down": Piece(base + "down_proj", stacked=True, mxfp4=True),
    }
    first, second = ("first", "second") if halves else ("even", "odd")
    biases = {
        "gate_bias": Piece(base + "gate_up_proj_bias", stacked=True, outputs=first),
        "up_bias": Piece(base + "gate_up_proj_bias", stacked=True, outputs=second),
        "down_bias": Piece(base + "down_proj_bias", stacked=True),
    }
    options = {
        "hidden": o.size("hidden_size"), "ffn": o.size("intermediate_size"), "bias": True, "gated": True,
        "experts": o.size("num_local_experts", "num_experts"), "top_k": o.size("num_experts_per_tok"),
        "activation": "swiglu_oai", "limit": o.number("swiglu_limit"), "router": {"score": "softmax_topk"},
    }  # fmt: skip
    parts = (
        (plain,) if halves else (plain, packed), (biases,),
        named("router", "mlp.router.weight"), named("router_bias", "mlp.router.bias"),
    )  # fmt: skip
    return dict.fromkeys(layers(o), Block(options, parts))


def granite(o: Options) -> Block:
    """models/granitemoe: the k best logits, softmax over these; input_linear holds gate and up."""
    o.ignore("logits_scaling", "residual_multiplier", "embedding_multiplier")  # outside the layer
    sizes = o.size("intermediate_size"), o.size("num_local_experts"), o.size("num_experts_per_tok")
    base = "block_sparse_moe."
    ways = (fused(base, "input_linear.weight", "output_linear.weight"), fused(base))
    router = named("router", base + "router.layer.weight", base + "router.weight")
    return Block(gated(o, *sizes, score="softmax_topk"), (ways, router), (base,))


@family("granitemoe", hidden_act="silu")
def granitemoe(o: Options) -> dict[int, Block]:
    """models/granitemoe."""
    return dict.fromkeys(layers(o), granite(o))


@family("granitemoehybrid", hidden_act="silu", shared_intermediate_size=1024)
@family("granitemoeshared", "granitemoe_swa", hidden_act="silu")
def granitemoeshared(o: Options) -> dict[int, Block]:
    """models/granitemoeshared, granitemoehybrid, _swa: the decoder adds shared_mlp; it is part of the layer here."""
    block, width = granite(o), o.count("shared_intermediate_size")
    parts = (*block.parts, shared("shared_mlp.")) if width else block.parts
    options = {**block.options, "shared_ffn": width}
    return dict.fromkeys(layers(o), Block(options, parts, (*block.scopes, "shared_mlp.")))


@family("jetmoe", activation_function="silu")
def jetmoe(o: Options) -> dict[int, Block]:
    """models/jetmoe: as Granite, and a bias of the output, which is every expert's here: the weights sum to one."""
    ffn = o.size(o.first("ffn_hidden_size", "intermediate_size"))
    sizes = ffn, o.size("moe_num_experts", "num_local_experts")
    top_k = o.size("moe_top_k", "num_experts_per_tok")
    options = gated(o, *sizes, top_k, "activation_function", score="softmax_topk") | {"bias": True}
    o.only(bias=True, glu=True)
    parts = (
        (fused("mlp.", "input_linear.weight", "output_linear.weight"),),
        named("router", "mlp.router.layer.weight"), named("down_bias", "mlp.bias"),
    )  # fmt: skip
    return dict.fromkeys(layers(o), Block(options, parts))


@family("aria_text", hidden_act="silu")
def aria(o: Options) -> dict[int, Block]:
    """models/aria: the k best logits, softmax over these; fc1 and fc2 are [in, out]; routed experts are always silu."""
    o.only(hidden_act="silu", mlp_bias=False)
    o.ignore("moe_z_loss_coeff", "moe_aux_loss_coeff")
    ffn = o.size(o.first("intermediate_size", "moe_intermediate_size"))
    options = gated(o, ffn, o.size("moe_num_experts"), o.size("moe_topk"), score="softmax_topk")
    ways = (fused("mlp.", "experts.fc1.weight", "experts.fc2.weight", turned=True), fused("mlp.", turned=True))
    parts = [ways, named("router", "mlp.router.weight")]
    if count := o.count("moe_num_shared_experts"):
        options["shared_ffn"] = ffn * count
        parts.append(shared("mlp.shared_experts."))
    return dict.fromkeys(layers(o), Block(options, tuple(parts)))


@family("jamba", hidden_act="silu", expert_layer_period=2, expert_layer_offset=1)
def jamba(o: Options) -> dict[int, Block]:
    """models/jamba: softmax, k best, not renormalised; every expert_layer_period-th layer."""
    base = "feed_forward."
    sizes = o.size("intermediate_size"), o.size("num_experts"), o.size("num_experts_per_tok")
    block = Block(
        gated(o, *sizes, score="softmax", renormalize=False),
        (experts(base), named("router", base + "router.weight")), (base,),
    )  # fmt: skip
    period, offset = o.size("expert_layer_period"), o.count("expert_layer_offset")
    return {i: block for i in layers(o) if i % period == offset}


@family("dbrx")
def dbrx(o: Options) -> dict[int, Block]:
    """models/dbrx: softmax, k best, over their 1-norm; all experts' rows follow each other, down is [in, out]."""
    inner = o.get("ffn_config")
    if not isinstance(inner, dict):
        o.refuse("ffn_config must be an object")
    f = Options(inner, o.where, {"ffn_act_fn": {"name": "silu"}})
    act = f.get("ffn_act_fn")
    name = act.get("name") if isinstance(act, dict) else None
    if not isinstance(name, str) or name not in ACTIVATIONS or set(act) != {"name"}:
        o.refuse(f"ffn_act_fn is {str(act)[:80]}; Aristos has a name of {', '.join(ACTIVATIONS)} alone")
    f.ignore("moe_normalize_expert_weights")
    norm = inner.get("moe_normalize_expert_weights", 1)  # null is none
    if norm not in (None, 1):
        o.refuse(f"moe_normalize_expert_weights is {str(norm)[:80]}; Aristos has null and 1")
    f.ignore("moe_jitter_eps", "moe_loss_weight", "hidden_size", "uniform_expert_assignment")
    f.only(uniform_expert_assignment=False)
    options = {
        "hidden": o.size("d_model"), "ffn": f.size("ffn_hidden_size"), "experts": f.size("moe_num_experts"),
        "top_k": f.size("moe_top_k"), "gated": True, "activation": ACTIVATIONS[name],
        "router": {"score": "softmax", "renormalize": norm == 1},
    }  # fmt: skip
    f.refuse_unknown("dbrx")
    base = "ffn.experts.mlp."
    flat = {
        "gate": Piece(base + "w1", flat=True), "up": Piece(base + "v1", flat=True),
        "down": Piece(base + "w2", flat=True, turned=True),
    }  # fmt: skip
    block = Block(options, ((flat,), named("router", "ffn.router.layer.weight")), ("ffn.",), "blocks.{n}.")
    return dict.fromkeys(layers(o, "n_layers"), block)


@family("phimoe", hidden_act="silu", router_jitter_noise=0.01)
def phimoe(o: Options) -> dict[int, Block]:
    """models/phimoe: sparsemixer, two experts."""
    o.only(router_jitter_noise=0.01, num_experts_per_tok=2)
    o.ignore("input_jitter_noise")
    sizes = o.size("intermediate_size"), o.size("num_local_experts"), o.size("num_experts_per_tok")
    names = [base + name for base in SPARSE for name in ("gate.weight", "router.weight")]
    block = Block(
        gated(o, *sizes, score="sparsemixer", renormalize=False), (experts(*SPARSE), named("router", *names)), SPARSE
    )
    return dict.fromkeys(layers(o), block)


@family(
    "ernie4_5_moe", hidden_act="silu", moe_layer_interval=1, moe_layer_start_index=1, moe_layer_end_index=-1,
    moe_norm_min=1e-12,
)  # fmt: skip
def ernie(o: Options) -> dict[int, Block]:
    """models/ernie4_5_moe: softmax, chosen with a bias, weights without it, renormalised."""
    o.only(use_bias=False, moe_gate="topk", moe_use_aux_free=True)
    o.ignore("intermediate_size", "moe_group", "moe_capacity")
    if o.number("moe_norm_min") > 1e-6:
        o.refuse(f"moe_norm_min is {o.number('moe_norm_min')}; Aristos has no least sum of weights")
    ffn = o.size("moe_intermediate_size")
    options = gated(o, ffn, o.size("moe_num_experts", "num_experts"), o.size("moe_k", "num_experts_per_tok"),
                    score="softmax", renormalize=True)  # fmt: skip
    statics = ("mlp.moe_statics.e_score_correction_bias", "mlp.gate.moe_statics.e_score_correction_bias")
    parts = [experts(*MLP), named("router", "mlp.gate.weight"), named("select_bias", *statics, row=True)]
    if count := o.count("moe_num_shared_experts"):
        options["shared_ffn"] = ffn * count
        parts.append(shared("mlp.shared_experts."))
    start, interval = o.count("moe_layer_start_index"), o.size("moe_layer_interval")
    last = o.get("moe_layer_end_index")
    every = layers(o)
    end = len(every) - 1 if last in (None, -1) else o.count("moe_layer_end_index")
    block = Block(options, tuple(parts))
    return {i: block for i in every if (i + 1) % interval == 0 and start <= i <= end}


@family("hunyuan_v1_moe", hidden_act="silu")
def hunyuan(o: Options) -> dict[int, Block]:
    """models/hunyuan_v1_moe: softmax, k best, renormalised; sizes may be lists by layer."""
    o.only(mlp_bias=False, moe_drop_tokens=False, use_mixed_mlp_moe=True)
    beside = o.get("num_shared_expert", "num_shared_experts")
    if beside is not None and any(n != 1 for n in (beside if isinstance(beside, list) else [beside])):
        o.refuse(f"num_shared_expert is {str(beside)[:80]}; Aristos has 1 for this model")
    o.ignore("dense_list", "moe_layer_num_skipped", "moe_random_routing_dropped_token", "group_limited_greedy")
    o.only(group_limited_greedy=False, norm_topk_prob=True, routed_scaling_factor=1.0)
    o.only(moe_layer_num_skipped=0)

    def of(layer: int, *keys: str) -> int:
        if isinstance(o.get(*keys), list):
            numbers = o.numbers(o.first(*keys)) or []
            if layer >= len(numbers) or not 1 <= numbers[layer] <= MOST:
                o.refuse(f"{keys[0]} must have an int in 1..{MOST} for every layer, got {str(numbers)[:80]}")
            return numbers[layer]
        return o.size(*keys)

    blocks = {}
    for i in layers(o):
        ffn = of(i, o.first("moe_intermediate_size", "intermediate_size"))
        options = gated(o, ffn, of(i, "num_experts"), of(i, "moe_topk", "num_experts_per_tok"),
                        score="softmax", renormalize=True)  # fmt: skip
        options["shared_ffn"] = o.size("intermediate_size")
        parts = (experts(*MLP), named("router", "mlp.gate.wg.weight"), shared("mlp.shared_mlp."))
        blocks[i] = Block(options, parts)
    return blocks


@family("cohere2_moe", hidden_act="silu", expert_selection_fn="softmax", shared_expert_combination_strategy="average",
        first_k_dense_replace=0, norm_topk_prob=True)  # fmt: skip
def cohere2_moe(o: Options) -> dict[int, Block]:
    """models/cohere2_moe: the k best logits, softmax or sigmoid over these; the mean or sum with a shared expert."""
    o.ignore("prefix_dense_intermediate_size", "prefix_dense_sliding_window_pattern")
    sigmoid = o.word("expert_selection_fn", {"softmax": False, "sigmoid": True})
    renormalize = o.flag("norm_topk_prob")
    router: dict[str, Any] = {"score": "sigmoid", "renormalize": renormalize} if sigmoid else {"score": "softmax_topk"}
    ffn, count = o.size("intermediate_size"), o.count("num_shared_experts")
    mean = o.word("shared_expert_combination_strategy", {"sum": False, "average": True}) and count > 0
    if mean:
        router["scale"] = 0.5
    options = gated(o, ffn, o.size("num_experts"), o.size("num_experts_per_tok"), **router)
    parts = [experts(*MLP), named("router", "mlp.gate.weight")]
    if count:
        options["shared_ffn"] = ffn * count
        parts.append(shared("mlp.shared_experts."))
    block = Block(options, tuple(parts), shared_factor=0.5 if mean else 1.0)
    return dict.fromkeys(after_dense(o), block)


@family("switch_transformers", dense_act_fn="relu", num_sparse_encoder_layers=3, num_sparse_decoder_layers=3,
        router_bias=False, is_gated_act=False, expert_capacity=64)  # fmt: skip
def switch(o: Options) -> dict[int, Block]:
    """models/switch_transformers: the best expert; ungated. Decoder layers are numbered after the encoder's."""
    o.only(
        add_router_probs=False,
        router_dtype="float32",
        is_gated_act=False,
        feed_forward_proj="relu",
        router_type="tokens_masked",
    )
    o.ignore("router_jitter_noise", "router_ignore_padding_tokens", "encoder_sparse_step", "decoder_sparse_step")
    bias = o.flag("router_bias")
    options: dict[str, Any] = {
        "hidden": o.size("d_model"), "ffn": o.size("d_ff"), "experts": o.size("num_experts"), "top_k": 1,
        "gated": False, "activation": o.word("dense_act_fn", ACTIVATIONS),
        "router": {"score": "softmax", "renormalize": False},
    }  # fmt: skip
    options["router"]["capacity"] = o.size("expert_capacity")
    note = "the capacity counts the tokens of a rank's call; the model's own code counts those of a sequence"
    pieces = {"up": Piece("mlp.experts.expert_{e}.wi.weight"), "down": Piece("mlp.experts.expert_{e}.wo.weight")}
    parts = [(pieces,), named("router", "mlp.router.classifier.weight")]
    if bias:
        parts.append(named("router_bias", "mlp.router.classifier.bias"))
    encoder = o.size("num_layers")
    decoder = encoder if o.get("num_decoder_layers") is None else o.size("num_decoder_layers")
    blocks = {}
    for first, count, key, layer in (
        (0, encoder, "num_sparse_encoder_layers", "encoder.block.{n}.layer.1."),
        (encoder, decoder, "num_sparse_decoder_layers", "decoder.block.{n}.layer.2."),
    ):
        sparse = o.count(key)
        if sparse > count:
            o.refuse(f"{key} is {sparse}, but there are {count} layers")
        step = count // sparse if sparse else count
        for i in range(count):
            if i % step == 1 or step == 1:
                blocks[first + i] = Block(options, tuple(parts), layer=layer, own=i, note=note)
    return blocks


@family("longcat_flash", hidden_act="silu", routed_scaling_factor=6.0, zero_expert_num=256, router_bias=False)
def longcat(o: Options) -> dict[int, Block]:
    """models/longcat_flash: softmax over experts and identity experts, chosen with a bias, not renormalised."""
    o.only(router_bias=False, zero_expert_type="identity", norm_topk_prob=False)
    o.ignore("ffn_hidden_size", "intermediate_size", "moe_intermediate_size")
    ffn = o.size(o.first("expert_ffn_hidden_size", "moe_intermediate_size"))
    options = gated(o, ffn, o.size("n_routed_experts"), o.size("moe_topk", "num_experts_per_tok"),
                    score="softmax", renormalize=False, scale=o.number("routed_scaling_factor"))  # fmt: skip
    options["identity_experts"] = o.count("zero_expert_num")
    parts = (
        (each("mlp."),), named("router", "mlp.router.classifier.weight"),
        named("select_bias", "mlp.router.e_score_correction_bias"),
    )  # fmt: skip
    first, identity = options["experts"], options["identity_experts"]
    names = (f"mlp.experts.{e}.{name}_proj.weight" for e in range(first, first + identity) for name in ("gate", "up"))
    return dict.fromkeys(layers(o, "num_layers"), Block(options, parts, unused=tuple(names)))
