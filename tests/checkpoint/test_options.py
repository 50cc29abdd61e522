"""Options of config.json: what is read, what is refused by name, and the options of published files."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import OLMOE, of

import aristos
from aristos.checkpoint.options import Options
from aristos.checkpoint.recipe import FAMILIES
from aristos.errors import CheckpointError, InputError

SIZES = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "num_experts", "n_routed_experts", "d_model", "d_ff",
    "num_local_experts", "moe_num_experts", "moe_shared_expert_intermediate_size", "num_experts_per_tok", "moe_k",
    "moe_topk", "num_experts_per_token", "num_hidden_layers", "num_layers", "n_layers",
    "shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size", "expert_ffn_hidden_size",
    "n_shared_experts", "ffn_hidden_size", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim",
    "top_k_experts",
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "quokka"}, "model_type 'quokka' is not known"),
        ({"model_type": None}, "must have a model_type"),
        ({"model_type": ["olmoe"]}, "must have a model_type"),
        ({"router_warmth": 2}, "option 'router_warmth' (here 2) is not known for olmoe"),
        ({"moe_expert_skip": False}, "option 'moe_expert_skip'"),
        ({"experts_per_token": 3}, "option 'experts_per_token'"),
        ({"moe_token_drop": True}, "option 'moe_token_drop'"),
        ({"num_local_experts": 4}, "num_experts is 5 and num_local_experts is 4, but both name the same option"),
        ({"hidden_act": "mish"}, "hidden_act must be one of silu"),
        ({"num_experts": None}, " is missing, but this model needs it"),
        ({"num_experts": -1}, "num_experts must be an int of at least 1"),
        ({"num_experts_per_tok": "two"}, "num_experts_per_tok must be an int"),
        ({"num_experts": True}, "num_experts must be an int"),
        ({"norm_topk_prob": 1}, "norm_topk_prob must be true or false"),
        (
            {"quantization_config": {"quant_method": "hqq"}},
            "quant_method 'hqq', but Aristos reads only fp8, mxfp4, gptq, awq, ",
        ),
        ({"quantization_config": 3}, "quant_method None"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [True, 128]}}, "two positive ints"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"strategy": "block", "block_structure": [64, 64]}}},
                }
            },
            "'group_0' has block_structure [64, 64]",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, change, words):
    (tmp_path / "config.json").write_text(json.dumps({**OLMOE, **change}))
    with pytest.raises(CheckpointError) as error:
        aristos.Checkpoint(tmp_path)
    assert words in str(error.value)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "step3p5", "swiglu_limits": 3}, "swiglu_limits must have null or a number"),
        ({"model_type": "step3p5", "swiglu_limits": [0.5, 0.5]}, "swiglu_limits must have null or a number"),
        ({"model_type": "step3p5", "swiglu_limits_shared": ["a"] * 4}, "swiglu_limits_shared must have null or a num"),
        ({"model_type": "step3p5", "moe_layers_enum": "1,x,3"}, "moe_layers_enum must be layer numbers"),
        ({"model_type": "step3p5", "moe_layers_enum": 3}, "moe_layers_enum must be a list of ints"),
        (
            {"model_type": "switch_transformers", "num_sparse_decoder_layers": 5},
            "must be at most 4, the number of layers, got 5",
        ),
        ({"model_type": "hy_v3", "mlp_layer_types": [["sparse"]] * 4}, "mlp_layer_types must say dense or sparse or"),
        ({"model_type": "hy_v3", "mlp_layer_types": ["sparse"] * 3}, "mlp_layer_types must say dense or sparse or"),
        ({"model_type": "deepseek_v4", "mlp_layer_types": ["moe", "tree"] * 2}, "must say moe or hash_moe for each of"),
        ({"model_type": "mimo_v2_flash", "moe_layer_freq": [0, 1]}, "must have 0 or 1 for each of the 4 layers, got 2"),
        ({"model_type": "mimo_v2_flash", "moe_layer_freq": [0, 1, 1, 2]}, "must be a list of 0 and 1"),
        ({"model_type": "hy_v3", "moe_layer_freq": 0}, "moe_layer_freq must be an int of at least 1"),
        (
            {"model_type": "deepseek_v3", "first_k_dense_replace": 0, "n_group": None},
            "n_group must be a number, because the model's default is",
        ),
        ({"model_type": "gpt_oss", "swiglu_limit": 10**400}, "swiglu_limit must be a number of at least 0, got 1000"),
        ({"model_type": "gpt_oss", "swiglu_limit": float("inf")}, "swiglu_limit must be a number of at least 0, got i"),
        (
            {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy"},
            "n_group is missing, but this model needs it",
        ),
        (
            {
                "model_type": "dbrx",
                "ffn_config": {
                    **dict.fromkeys(("ffn_hidden_size", "moe_num_experts", "moe_top_k"), 2),
                    "ffn_act_fn": {"name": ["silu"]},
                },
            },
            "ffn_act_fn must have only a name, one of ",
        ),
    ],
)
def test_options_of_wrong_kinds_are_refused(tmp_path, change, words):
    sizes = dict.fromkeys(SIZES, 4)
    build = FAMILIES[change["model_type"]]
    with pytest.raises(CheckpointError) as error:
        build.build(Options({**sizes, **change}, tmp_path / "config.json", build.defaults))
    assert words in str(error.value)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("deepseek_v3", "routed_scaling_factor", 2.5), ("deepseek_v3", "n_group", 8), ("deepseek_v3", "topk_group", 4),
        ("deepseek_v32", "routed_scaling_factor", 2.5), ("glm4_moe", "routed_scaling_factor", 1.0),
        ("glm4_moe_lite", "routed_scaling_factor", 1.8), ("glm_moe_dsa", "routed_scaling_factor", 2.5),
        ("dots1", "norm_topk_prob", False), ("exaone_moe", "routed_scaling_factor", 2.5),
        ("kimi_linear", "routed_scaling_factor", 2.446), ("bailing_hybrid", "num_expert_group", 8),
        ("bailing_hybrid", "topk_group", 4), ("bailing_hybrid", "routed_scaling_factor", 2.5),
        ("hy_v3", "router_scaling_factor", 2.826), ("minimax_m3_vl_text", "routed_scaling_factor", 2.0),
        ("longcat_flash", "routed_scaling_factor", 6.0), ("longcat_flash", "zero_expert_num", 256),
        ("granitemoehybrid", "shared_intermediate_size", 1024), ("switch_transformers", "expert_capacity", 64),
        ("deepseek_v4", "swiglu_limit", 10.0), ("deepseek_v4", "routed_scaling_factor", 1.5),
        *((family, "n_shared_experts", 1) for family in (
            "deepseek_v3", "deepseek_v32", "deepseek_v4", "glm4_moe", "glm4v_moe_text", "glm4_moe_lite", "glm_moe_dsa",
            "solar_open", "mistral4", "exaone_moe", "kimi_linear", "bailing_hybrid", "hy_v3",
        )),
        ("deepseek_v2", "n_shared_experts", 2), ("afmoe", "n_shared_experts", 2),
        ("inkling_text", "route_scale", 8.0), ("inkling_text", "n_shared_experts", 2),
        ("ernie4_5_moe", "moe_num_shared_experts", 2), ("aria_text", "moe_num_shared_experts", 2),
        ("nllb-moe", "moe_token_dropout", 0.2),
        ("nllb-moe", "encoder_sparse_step", 4), ("nllb-moe", "decoder_sparse_step", 4),
    ],
)  # fmt: skip
def test_an_option_that_is_left_out_has_the_default_of_its_family(tmp_path, family, key, value):
    """The values are those of transformers 5.24, models/*/configuration_*.py; files may leave them out."""
    sizes = {name: 16 for name in SIZES if name != key}
    config = {**sizes, "num_layers": 4, "num_hidden_layers": 2, "first_k_dense_replace": 0}
    build = FAMILIES[family]
    blocks = [build.build(Options(c, tmp_path, build.defaults)) for c in (config, {**config, key: value})]
    assert blocks[0] == blocks[1]
    other = build.build(Options({**config, key: value * 2 if value else True}, tmp_path, build.defaults))
    assert other != blocks[0]


def test_options_that_contradict_each_other_are_refused_by_file(tmp_path):
    checkpoint = of(tmp_path, {**OLMOE, "num_experts_per_tok": 6})
    for ask in (checkpoint.config, lambda: checkpoint.check(0)):
        with pytest.raises(
            CheckpointError, match=r"config\.json: the options of layer 0 do not fit .*top_k must be at most .*, got 6"
        ):
            ask()
    assert "got 6" in checkpoint.problem(0)
    with pytest.raises(InputError, match="max_tokens must be"):
        of(tmp_path, OLMOE).config(max_tokens=0)


def test_null_and_zero_mean_no_shared_expert(tmp_path):
    """A file that leaves the option out has as many shared experts as its family does by default."""
    for value in (None, 0):
        assert of(tmp_path, {**DEEP, "n_shared_experts": value}).config().shared_ffn == 0
    left_out = {key: value for key, value in DEEP.items() if key != "n_shared_experts"}
    assert of(tmp_path, left_out).config().shared_ffn == DEEP["moe_intermediate_size"]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("doge", "product keys"),
        ("zaya", "router is a network"),
        ("grok-1", "code differs"),
    ],
)
def test_a_model_that_is_known_not_to_run_is_refused_with_the_reason(tmp_path, kind, why):
    for config in ({"model_type": kind}, {"model_type": "outer", "text_config": {"model_type": kind}}):
        with pytest.raises(CheckpointError, match=rf"config\.json: model_type '{kind}' is not supported: .*{why}"):
            of(tmp_path, config)


def test_options_of_other_parts_are_let_through(tmp_path):
    more = {
        "rope_scaling": {"factor": 2},
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "some_moe_option": None,
        "output_router_logits": True,
        "moe_z_loss_coeff": 0.1,
        "num_local_experts": OLMOE["num_experts"],
    }
    (tmp_path / "config.json").write_text(json.dumps({**OLMOE, **more}))
    aristos.Checkpoint(tmp_path)


def test_layers_that_differ_have_configurations_of_their_own(tmp_path):
    config = {
        "model_type": "hunyuan_v1_moe",
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_experts": 4,
        "moe_topk": [1, 2],
        "hidden_act": "silu",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = aristos.Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"layers 0 and 1 differ \(top_k 1 and 2\): use configs"):
        checkpoint.config()
    assert [cfg.top_k for cfg in checkpoint.configs()] == [1, 2]


# ---- options as published files have them --------------------------------------------------------------------------

DEEP = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "n_group": 8,
    "topk_group": 4, "moe_layer_freq": 1, "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "ep_size": 1,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "hidden_act": "silu", "attention_bias": False, "kv_lora_rank": 512, "rope_scaling": {"type": "yarn"},
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    },
}  # fmt: skip


OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "experts_per_token": 4,
    "num_hidden_layers": 24,
    "hidden_act": "silu",
    "swiglu_limit": 7.0,
    "router_aux_loss_coef": 0.9,
    "layer_types": ["sliding_attention"] * 24,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
}


DBRX = {
    "model_type": "dbrx",
    "d_model": 6144,
    "n_layers": 40,
    "attn_config": {"clip_qkv": 8},
    "router_aux_loss_coef": 0.05,
    "ffn_config": {
        "ffn_hidden_size": 10752,
        "moe_jitter_eps": 0,
        "moe_loss_weight": 0.05,
        "moe_num_experts": 16,
        "moe_top_k": 4,
    },
}


def test_published_options_of_deepseek_v3(tmp_path):
    checkpoint = of(tmp_path, DEEP)
    assert checkpoint.layers == tuple(range(3, 61))
    assert checkpoint.quantisation == "fp8"
    r = dict(checkpoint._layers[3].options["router"])
    assert r == {
        "score": "sigmoid",
        "renormalize": True,
        "scale": 2.5,
        "groups": 8,
        "topk_groups": 4,
        "group_score": "sum_top2",
    }
    of(tmp_path, {**DEEP, "model_type": "dots1", "scoring_func": "noaux_tc"})
    for change in ({"scoring_func": "softmax"}, {"topk_method": "greedy"}, {"n_group": 8, "topk_group": None}):
        with pytest.raises(CheckpointError, match=r"scoring_func|topk_method|topk_group"):
            of(tmp_path, {**DEEP, **change})


def test_published_options_of_gpt_oss(tmp_path):
    cfg = of(tmp_path, OSS).config()
    assert (cfg.activation, cfg.limit, cfg.bias, cfg.router.score) == ("swiglu_oai", 7.0, True, "softmax_topk")
    with pytest.raises(CheckpointError, match="experts_per_token must be 4 for this model, got 2"):
        of(tmp_path, {**OSS, "experts_per_token": 2})


def test_published_options_of_dbrx(tmp_path):
    """The norm's default is 1; null means that there is no norm."""
    assert of(tmp_path, DBRX).config().router.renormalize
    none = {**DBRX["ffn_config"], "moe_normalize_expert_weights": None}
    assert not of(tmp_path, {**DBRX, "ffn_config": none}).config().router.renormalize
    with pytest.raises(CheckpointError, match="moe_normalize_expert_weights must be null or 1, got 2"):
        of(tmp_path, {**DBRX, "ffn_config": {**none, "moe_normalize_expert_weights": 2}})


def test_published_options_of_hunyuan_large(tmp_path):
    """With k = 1 the weight is the expert's probability. With model_type hunyuan_v1_moe it is renormalized, so 1."""
    config = {
        "model_type": "hunyuan",
        "hidden_size": 6400,
        "intermediate_size": 18304,
        "num_experts": 16,
        "moe_topk": 1,
        "num_hidden_layers": 64,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "moe_drop_tokens": False,
        "capacity_factor": 1.0,
        "hidden_act": "silu",
        "moe_random_routing_dropped_token": False,
        "use_cla": True,
    }
    assert not of(tmp_path, config).config().router.renormalize
    assert of(tmp_path, {**config, "moe_topk": 2}).config().router.renormalize
    assert of(tmp_path, {**config, "model_type": "hunyuan_v1_moe"}).config().router.renormalize
    with pytest.raises(CheckpointError, match="moe_drop_tokens must be False for this model, got True"):
        of(tmp_path, {**config, "moe_drop_tokens": True})


def test_published_options_of_deepseek_moe_16b(tmp_path):
    config = {
        "model_type": "deepseek",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "num_hidden_layers": 28,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "aux_loss_alpha": 0.001,
        "seq_aux": True,
        "hidden_act": "silu",
    }
    checkpoint = of(tmp_path, config)
    cfg = checkpoint.config()
    assert checkpoint.layers == tuple(range(1, 28))
    assert (cfg.ffn, cfg.experts, cfg.top_k, cfg.shared_ffn) == (1408, 64, 6, 2816)
    assert cfg.router == aristos.Router(renormalize=False)
    assert of(tmp_path, {**config, "norm_topk_prob": True}).config().router.renormalize


def test_published_options_of_arctic(tmp_path):
    config = {
        "model_type": "arctic",
        "hidden_size": 7168,
        "intermediate_size": 4864,
        "num_local_experts": 128,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "moe_layer_frequency": 2,
        "moe_token_dropping": False,
        "moe_train_capacity_factor": 1,
        "moe_eval_capacity_factor": 1,
        "moe_min_capacity": 0,
        "use_residual": True,
    }
    checkpoint = of(tmp_path, config)
    assert checkpoint.layers == (1, 3)
    assert checkpoint.config().router == aristos.Router(renormalize=True)
    for change in ({"moe_token_dropping": True}, {"num_experts_per_tok": 1}, {"moe_layer_frequency": None}):
        with pytest.raises(CheckpointError, match="|".join(change)):
            of(tmp_path, {**config, **change})


def test_an_option_that_transformers_ignores_but_the_models_own_code_uses_is_noted(tmp_path):
    config = {
        "model_type": "deepseek_v2",
        "hidden_size": 16,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
        "norm_topk_prob": True,
    }
    assert "Aristos ignores it, as transformers does" in of(tmp_path, config).note(0)
    assert of(tmp_path, {**config, "norm_topk_prob": False}).note(0) == ""


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({"model_type": "nllb-moe", "encoder_layers": 4, "decoder_layers": 6, "encoder_sparse_step": 2,
          "decoder_sparse_step": 3, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}, (1, 3, 6, 9)),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [1], "decoder_sparse_step": 1}, (0, 2, 3, 4, 5)),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, (1, 3, 5)),
        ({"model_type": "jamba", "expert_layer_period": 2, "expert_layer_offset": 1}, (1, 3, 5)),
        ({"model_type": "mimo_v2_flash", "moe_layer_freq": [0, 1, 0, 1, 1, 0]}, (1, 3, 4)),
        ({"model_type": "hy_v3", "mlp_layer_types": ["dense", "dense", *["sparse"] * 4]}, (2, 3, 4, 5)),
        ({"model_type": "llama4_text", "interleave_moe_layer_step": 2}, (1, 3, 5)),
        ({"model_type": "llama4_text", "moe_layers": [0, 5]}, (0, 5)),
        ({"model_type": "ernie4_5_moe", "moe_layer_interval": 2, "moe_layer_end_index": 4}, (1, 3)),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "ME*EM-"}, (1, 3)),
        ({"model_type": "step3p5", "share_expert_dim": 8}, (3, 4, 5)),
        ({"model_type": "step3p5", "share_expert_dim": 8, "moe_layers_enum": "1, 4"}, (1, 4)),
        ({"model_type": "switch_transformers", "num_layers": 4, "num_sparse_encoder_layers": 2,
          "num_sparse_decoder_layers": 1}, (1, 3, 5)),
    ],
)  # fmt: skip
def test_which_layers_are_moe(tmp_path, change, layers):
    sizes = dict.fromkeys(
        (
            "hidden_size",
            "intermediate_size",
            "moe_intermediate_size",
            "num_experts",
            "n_routed_experts",
            "d_model",
            "d_ff",
            "num_local_experts",
            "moe_num_experts",
            "moe_shared_expert_intermediate_size",
        ),
        8,
    )
    keys = {
        "jamba": {"moe_intermediate_size", "n_routed_experts"},
        "llama4_text": {"moe_intermediate_size"},
        "switch_transformers": {"intermediate_size", "moe_intermediate_size"},
    }
    unread = keys.get(change["model_type"], set())
    config = {
        **{k: v for k, v in sizes.items() if k not in unread},
        "num_experts_per_tok": 1,
        "moe_k": 1,
        "num_hidden_layers": 6,
        **change,
    }
    build = FAMILIES[change["model_type"]]
    assert tuple(build.build(Options(config, tmp_path, build.defaults))) == layers


# ---- options of any kind -------------------------------------------------------------------------------------------

WORDS = (
    "mlp_layer_types", "moe_layer_freq", "mlp_only_layers", "decoder_sparse_step", "swiglu_limit", "swiglu_limits",
    "n_group", "topk_group", "routed_scaling_factor", "hidden_act", "norm_topk_prob", "moe_layers", "layers_block_type",
    "hybrid_override_pattern", "ffn_config", "expert_layer_offset", "moe_layers_enum", "quantization_config",
    "num_sparse_encoder_layers", "zero_expert_num", "first_k_dense_replace", "num_shared_expert", "expert_capacity",
    "moe_layer_end_index", "moe_norm_min", "interleave_moe_layer_step", "num_hash_layers", "text_config",
    "per_layer_config", "enable_moe_block", "moe_token_dropout", "encoder_sparse_step", "moe_layer_frequency",
)  # fmt: skip


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS + SIZES), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.dictionaries(st.sampled_from(WORDS + SIZES), VALUES, max_size=4))
def test_options_of_any_kind_are_read_or_refused(tmp_path_factory, family, change):
    """The reader raises nothing but a refusal, and no number in a file makes it work for long."""
    path = tmp_path_factory.getbasetemp() / "options"
    path.mkdir(exist_ok=True)
    config = {**dict.fromkeys(SIZES, 4), "model_type": family, "ffn_config": dict.fromkeys(SIZES, 4), **change}
    (path / "config.json").write_text(json.dumps(config))
    with contextlib.suppress(CheckpointError):
        checkpoint = aristos.Checkpoint(path)
        for number in checkpoint.layers[:3]:
            checkpoint.problem(number)


def test_numbers_of_layers_and_experts_are_bounded(tmp_path):
    assert "must have at most 65536 experts, got 65537" in of(tmp_path, {**OLMOE, "num_experts": 65537}).problem(0)
    assert of(tmp_path, {**OLMOE, "num_experts": 65536}).config().experts == 65536
    for count in (2**50, 4097):
        with pytest.raises(CheckpointError, match="num_hidden_layers must be an int of at least 1 and at most 4096"):
            of(tmp_path, {**OLMOE, "num_hidden_layers": count})
    assert len(of(tmp_path, {**OLMOE, "num_hidden_layers": 4096}).layers) == 4096
