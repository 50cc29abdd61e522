"""Checkpoint: which layers and options a directory has, what is refused by name, and what reaches the layer."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import tracemalloc

import cases
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import OLMOE, olmoe, stacked, write

import aristos
from aristos.checkpoint.options import Options
from aristos.checkpoint.recipe import FAMILIES
from aristos.errors import CheckpointError, InputError, MismatchError, PeerInputError

E, H, F = OLMOE["num_experts"], OLMOE["hidden_size"], OLMOE["intermediate_size"]


def test_a_directory_gives_its_layers_and_configuration(tmp_path):
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, olmoe(), shards=3))
    assert checkpoint.model_type == "olmoe"
    assert checkpoint.layers == (0, 1)
    cfg = checkpoint.config(max_tokens=8, dtype="bfloat16")
    assert (cfg.hidden, cfg.ffn, cfg.experts, cfg.top_k, cfg.gated, cfg.activation) == (H, F, E, 2, True, "silu")
    assert (cfg.dtype, cfg.max_tokens, cfg.router) == ("bfloat16", 8, aristos.Router(renormalize=True))
    assert checkpoint.configs(max_tokens=8, dtype="bfloat16") == [cfg, cfg]
    assert checkpoint.options["rope_theta"] == 10000.0
    assert checkpoint.has("model.embed_tokens.weight")
    assert not checkpoint.has("lm_head.weight")
    assert np.array_equal(checkpoint.tensor("model.embed_tokens.weight"), olmoe()["model.embed_tokens.weight"])
    got = checkpoint.arrays(1, 3)
    assert np.array_equal(got["down"], olmoe()["model.layers.1.mlp.experts.3.down_proj.weight"])


def test_nothing_but_the_options_is_read_at_first(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OLMOE))
    checkpoint = aristos.Checkpoint(tmp_path)  # no tensors at all
    assert checkpoint.config().experts == E
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors"):
        checkpoint.check(0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "quokka"}, "model_type 'quokka' is not known"),
        ({"model_type": None}, "has no model_type"),
        ({"model_type": ["olmoe"]}, "has no model_type"),
        ({"router_warmth": 2}, "option 'router_warmth' (here 2) is not known for olmoe"),
        ({"moe_expert_skip": False}, "option 'moe_expert_skip'"),
        ({"experts_per_token": 3}, "option 'experts_per_token'"),
        ({"moe_token_drop": True}, "option 'moe_token_drop'"),
        ({"num_local_experts": 4}, "num_experts is 5 and num_local_experts is 4, but they name one option"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"num_experts": None}, "it has no num_experts"),
        ({"num_experts": -1}, "num_experts must be an int of at least 1"),
        ({"num_experts_per_tok": "two"}, "num_experts_per_tok must be an int"),
        ({"num_experts": True}, "num_experts must be an int"),
        ({"norm_topk_prob": 1}, "norm_topk_prob must be true or false"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method 'awq'"),
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
        ({"model_type": "switch_transformers", "num_sparse_decoder_layers": 5}, "is 5, but there are 4 layers"),
        ({"model_type": "hy_v3", "mlp_layer_types": [["sparse"]] * 4}, "mlp_layer_types must say dense or sparse or"),
        ({"model_type": "hy_v3", "mlp_layer_types": ["sparse"] * 3}, "mlp_layer_types must say dense or sparse or"),
        ({"model_type": "deepseek_v4", "mlp_layer_types": ["moe", "tree"] * 2}, "must say moe or hash_moe for each of"),
        ({"model_type": "mimo_v2_flash", "moe_layer_freq": [0, 1]}, "must have 0 or 1 for each of the 4 layers, got 2"),
        ({"model_type": "mimo_v2_flash", "moe_layer_freq": [0, 1, 1, 2]}, "must be a list of 0 and 1"),
        ({"model_type": "hy_v3", "moe_layer_freq": 0}, "moe_layer_freq must be an int of at least 1"),
        ({"model_type": "deepseek_v3", "first_k_dense_replace": 0, "n_group": None}, "n_group is null"),
        ({"model_type": "deepseek_v2", "topk_method": "group_limited_greedy"}, "it has no n_group"),
        (
            {"model_type": "dbrx", "ffn_config": {**dict.fromkeys(
                ("ffn_hidden_size", "moe_num_experts", "moe_top_k"), 2), "ffn_act_fn": {"name": ["silu"]}}},
            "ffn_act_fn is {'name': ['silu']}",
        ),
    ],
)  # fmt: skip
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
        ("ernie4_5_moe", "moe_num_shared_experts", 2), ("aria_text", "moe_num_shared_experts", 2),
        ("nllb-moe", "moe_token_dropout", 0.2),
        ("nllb-moe", "encoder_sparse_step", 4), ("nllb-moe", "decoder_sparse_step", 4),
    ],
)  # fmt: skip
def test_an_option_that_is_left_out_is_the_family_s(tmp_path, family, key, value):
    """The values are those of transformers 5.24, models/*/configuration_*.py; files may leave them out."""
    sizes = {name: 16 for name in SIZES if name != key}
    sizes |= {"moe_topk": 16, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
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
            CheckpointError, match=r"config\.json: layer 0 cannot be made .*top_k must be at most .*, got 6"
        ):
            ask()
    assert "got 6" in checkpoint.problem(0)
    with pytest.raises(InputError, match="max_tokens must be"):
        of(tmp_path, OLMOE).config(max_tokens=0)


def test_a_shared_expert_that_config_json_does_not_name_is_refused(tmp_path):
    config = {
        "model_type": "granitemoeshared", "hidden_size": H, "intermediate_size": F, "num_local_experts": E,
        "num_experts_per_tok": 2, "num_hidden_layers": 1,
    }  # fmt: skip
    p = "model.layers.0."
    tensors = {
        p + "block_sparse_moe.input_linear.weight": arrays(E, 2 * F, H),
        p + "block_sparse_moe.output_linear.weight": arrays(E, H, F),
        p + "block_sparse_moe.router.layer.weight": arrays(E, H),
    }
    aristos.Checkpoint(write(tmp_path / "plain", config, tensors)).check(0)
    tensors[p + "shared_mlp.input_linear.weight"] = arrays(2 * F, H)
    with pytest.raises(CheckpointError, match=r"shared_mlp\.input_linear.* layer 0 has none: .* n_shared_exp"):
        aristos.Checkpoint(write(tmp_path / "shared", config, tensors)).check(0)


def test_no_shared_expert_is_null_or_zero(tmp_path):
    """Left out, their number is the family's; then files without them are not whole."""
    for value in (None, 0):
        assert of(tmp_path, {**DEEP, "n_shared_experts": value}).config().shared_ffn == 0
    left_out = {key: value for key, value in DEEP.items() if key != "n_shared_experts"}
    assert of(tmp_path, left_out).config().shared_ffn == DEEP["moe_intermediate_size"]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("doge", "product keys"),
        ("zaya", "router is a network"),
        ("inkling_text", "one sum"),
        ("grok-1", "code differs"),
    ],
)
def test_a_model_that_is_known_not_to_run_is_refused_with_the_reason(tmp_path, kind, why):
    for config in ({"model_type": kind}, {"model_type": "outer", "text_config": {"model_type": kind}}):
        with pytest.raises(CheckpointError, match=rf"config\.json: model_type '{kind}' is not supported: .*{why}"):
            of(tmp_path, config)


def test_options_of_other_parts_are_let_through(tmp_path):
    more = {
        "rope_scaling": {"factor": 2}, "attention_bias": False, "torch_dtype": "bfloat16", "some_moe_option": None,
        "output_router_logits": True, "moe_z_loss_coeff": 0.1, "num_local_experts": OLMOE["num_experts"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({**OLMOE, **more}))
    aristos.Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.layers.1.mlp.experts.4.up_proj.weight"), "no tensor 'model.layers.1.mlp.experts.4.up"),
        (lambda t: t.pop("model.layers.1.mlp.gate.weight"), "model.layers.1.mlp.gate.weight"),
        (
            lambda t: t.update({"model.layers.1.mlp.experts.0.up_proj.weight": np.zeros((F, H + 1), np.float32)}),
            f"must have shape [{F}, {H}], as config.json says, got [{F}, {H + 1}]",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.experts.0.up_proj.bias": np.zeros(F, np.float32)}),
            "'model.layers.1.mlp.experts.0.up_proj.bias' is not known for a olmoe",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.gate.weight": np.zeros((E, H), np.int8)}),
            "has dtype I8 and no scales",
        ),
        (lambda t: t.update({"model.layers.1.mlp.gate.weight": np.zeros((E, H), np.uint8)}), "U8; weights must"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, change, words):
    tensors = olmoe()
    change(tensors)
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, tensors))
    checkpoint.check(0)
    with pytest.raises(CheckpointError) as error:
        checkpoint.check(1)
    assert words in str(error.value)


def test_numbers_of_layers_and_experts_are_checked(tmp_path):
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, olmoe()))
    for number in (2, -1, True, "1"):
        with pytest.raises(InputError, match=r"number must be of Checkpoint\.layers"):
            checkpoint.check(number)
    with pytest.raises(InputError, match="expert must be an int"):
        checkpoint.arrays(0, E)


def test_layers_that_differ_have_configurations_of_their_own(tmp_path):
    config = {
        "model_type": "hunyuan_v1_moe", "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_experts": 4, "moe_topk": [1, 2], "hidden_act": "silu",
    }  # fmt: skip
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
    "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32,
    "num_experts_per_tok": 4, "experts_per_token": 4, "num_hidden_layers": 24, "hidden_act": "silu",
    "swiglu_limit": 7.0, "router_aux_loss_coef": 0.9, "layer_types": ["sliding_attention"] * 24,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
}  # fmt: skip
DBRX = {
    "model_type": "dbrx", "d_model": 6144, "n_layers": 40, "attn_config": {"clip_qkv": 8}, "router_aux_loss_coef": 0.05,
    "ffn_config": {
        "ffn_hidden_size": 10752, "moe_jitter_eps": 0, "moe_loss_weight": 0.05, "moe_num_experts": 16, "moe_top_k": 4,
    },
}  # fmt: skip


def of(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return aristos.Checkpoint(tmp_path)


def test_published_options_of_deepseek_v3(tmp_path):
    checkpoint = of(tmp_path, DEEP)
    assert checkpoint.layers == tuple(range(3, 61))
    assert checkpoint.quantisation == "fp8"
    r = dict(checkpoint._blocks[3].options["router"])
    assert r == {
        "score": "sigmoid", "renormalize": True, "scale": 2.5, "groups": 8, "topk_groups": 4, "group_score": "sum_top2",
    }  # fmt: skip
    of(tmp_path, {**DEEP, "model_type": "dots1", "scoring_func": "noaux_tc"})
    for change in ({"scoring_func": "softmax"}, {"topk_method": "greedy"}, {"n_group": 8, "topk_group": None}):
        with pytest.raises(CheckpointError, match=r"scoring_func|topk_method|topk_group"):
            of(tmp_path, {**DEEP, **change})


def test_published_options_of_gpt_oss(tmp_path):
    cfg = of(tmp_path, OSS).config()
    assert (cfg.activation, cfg.limit, cfg.bias, cfg.router.score) == ("swiglu_oai", 7.0, True, "softmax_topk")
    with pytest.raises(CheckpointError, match="experts_per_token is 2"):
        of(tmp_path, {**OSS, "experts_per_token": 2})


def test_published_options_of_dbrx(tmp_path):
    """The norm's default is 1; null is none."""
    assert of(tmp_path, DBRX).config().router.renormalize
    none = {**DBRX["ffn_config"], "moe_normalize_expert_weights": None}
    assert not of(tmp_path, {**DBRX, "ffn_config": none}).config().router.renormalize
    with pytest.raises(CheckpointError, match="moe_normalize_expert_weights is 2"):
        of(tmp_path, {**DBRX, "ffn_config": {**none, "moe_normalize_expert_weights": 2}})


def test_published_options_of_hunyuan_large(tmp_path):
    """One expert has its probability as weight; model_type hunyuan_v1_moe divides it by itself."""
    config = {
        "model_type": "hunyuan", "hidden_size": 6400, "intermediate_size": 18304, "num_experts": 16, "moe_topk": 1,
        "num_hidden_layers": 64, "num_shared_expert": 1, "use_mixed_mlp_moe": True, "moe_drop_tokens": False,
        "capacity_factor": 1.0, "hidden_act": "silu", "moe_random_routing_dropped_token": False, "use_cla": True,
    }  # fmt: skip
    assert not of(tmp_path, config).config().router.renormalize
    assert of(tmp_path, {**config, "moe_topk": 2}).config().router.renormalize
    assert of(tmp_path, {**config, "model_type": "hunyuan_v1_moe"}).config().router.renormalize
    with pytest.raises(CheckpointError, match="moe_drop_tokens is True"):
        of(tmp_path, {**config, "moe_drop_tokens": True})


def test_published_options_of_deepseek_moe_16b(tmp_path):
    config = {
        "model_type": "deepseek", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "num_hidden_layers": 28, "norm_topk_prob": False, "scoring_func": "softmax",
        "aux_loss_alpha": 0.001, "seq_aux": True, "hidden_act": "silu",
    }  # fmt: skip
    checkpoint = of(tmp_path, config)
    cfg = checkpoint.config()
    assert checkpoint.layers == tuple(range(1, 28))
    assert (cfg.ffn, cfg.experts, cfg.top_k, cfg.shared_ffn) == (1408, 64, 6, 2816)
    assert cfg.router == aristos.Router(renormalize=False)
    assert of(tmp_path, {**config, "norm_topk_prob": True}).config().router.renormalize


def test_published_options_of_arctic(tmp_path):
    config = {
        "model_type": "arctic", "hidden_size": 7168, "intermediate_size": 4864, "num_local_experts": 128,
        "num_experts_per_tok": 2, "num_hidden_layers": 4, "moe_layer_frequency": 2, "moe_token_dropping": False,
        "moe_train_capacity_factor": 1, "moe_eval_capacity_factor": 1, "moe_min_capacity": 0, "use_residual": True,
    }  # fmt: skip
    checkpoint = of(tmp_path, config)
    assert checkpoint.layers == (1, 3)
    assert checkpoint.config().router == aristos.Router(renormalize=True)
    for change in ({"moe_token_dropping": True}, {"num_experts_per_tok": 1}, {"moe_layer_frequency": None}):
        with pytest.raises(CheckpointError, match="|".join(change)):
            of(tmp_path, {**config, **change})


def test_what_transformers_ignores_and_the_model_s_code_does_not_is_noted(tmp_path):
    config = {
        "model_type": "deepseek_v2", "hidden_size": 16, "moe_intermediate_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "num_hidden_layers": 1, "norm_topk_prob": True,
    }  # fmt: skip
    assert "transformers ignores it" in of(tmp_path, config).note(0)
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
        ({"model_type": "switch_transformers", "num_layers": 4, "num_sparse_encoder_layers": 2,
          "num_sparse_decoder_layers": 1}, (1, 3, 5)),
    ],
)  # fmt: skip
def test_which_layers_are_moe(tmp_path, change, layers):
    sizes = dict.fromkeys(
        ("hidden_size", "intermediate_size", "moe_intermediate_size", "num_experts", "n_routed_experts", "d_model",
         "d_ff", "num_local_experts", "moe_num_experts", "moe_shared_expert_intermediate_size"), 8,
    )  # fmt: skip
    keys = {
        "jamba": {"moe_intermediate_size", "n_routed_experts"}, "llama4_text": {"moe_intermediate_size"},
        "switch_transformers": {"intermediate_size", "moe_intermediate_size"},
    }  # fmt: skip
    unread = keys.get(change["model_type"], set())
    config = {**{k: v for k, v in sizes.items() if k not in unread}, "num_experts_per_tok": 1, "moe_k": 1,
              "num_hidden_layers": 6, **change}  # fmt: skip
    build = FAMILIES[change["model_type"]]
    assert tuple(build.build(Options(config, tmp_path, build.defaults))) == layers


# ---- where arrays lie: one expert's values, by names and layouts of several families -------------------------------


def one(tmp_path, config, tensors, expert=1):
    return aristos.Checkpoint(write(tmp_path, config, tensors)).arrays(0, expert)


def arrays(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_stacked_and_fused_names(tmp_path):
    """What transformers 5 keeps in memory, beside the published names."""
    config = {**OLMOE, "num_hidden_layers": 1}
    wide, narrow = arrays(E, 2 * F, H), arrays(E, H, F)
    p = "model.layers.0.mlp."
    tensors = {
        p + "experts.gate_up_proj": wide, p + "experts.down_proj": narrow, p + "gate.weight": arrays(E, H),
    }  # fmt: skip
    got = one(tmp_path, config, tensors)
    assert np.array_equal(got["gate"], wide[1, :F])
    assert np.array_equal(got["up"], wide[1, F:])
    assert np.array_equal(got["down"], narrow[1])


def test_interleaved_and_transposed(tmp_path):
    config = {
        "model_type": "gpt_oss", "hidden_size": H, "intermediate_size": F, "num_local_experts": E,
        "num_experts_per_tok": 2, "num_hidden_layers": 1, "hidden_act": "silu",
    }  # fmt: skip
    wide, narrow, bias = arrays(E, H, 2 * F), arrays(E, F, H), arrays(E, 2 * F)
    p = "model.layers.0.mlp."
    tensors = {
        p + "experts.gate_up_proj": wide, p + "experts.down_proj": narrow, p + "experts.gate_up_proj_bias": bias,
        p + "experts.down_proj_bias": arrays(E, H), p + "router.weight": arrays(E, H), p + "router.bias": arrays(E),
    }  # fmt: skip
    got = one(tmp_path, config, tensors)
    assert np.array_equal(got["gate"], wide[1, :, 0::2].T)
    assert np.array_equal(got["up"], wide[1, :, 1::2].T)
    assert np.array_equal(got["up_bias"], bias[1, 1::2])
    assert np.array_equal(got["down"], narrow[1].T)


def test_flat_experts_with_mixed_orders(tmp_path):
    config = {
        "model_type": "dbrx", "d_model": H, "n_layers": 1,
        "ffn_config": {"ffn_hidden_size": F, "moe_num_experts": E, "moe_top_k": 2, "moe_normalize_expert_weights": 1},
    }  # fmt: skip
    w1, v1, w2 = (arrays(E * F, H) + i for i in range(3))
    p = "transformer.blocks.0.ffn."
    tensors = {
        p + "experts.mlp.w1": w1, p + "experts.mlp.v1": v1, p + "experts.mlp.w2": w2,
        p + "router.layer.weight": arrays(E, H),
    }  # fmt: skip
    got = one(tmp_path, config, tensors)
    assert np.array_equal(got["gate"], w1[F : 2 * F])
    assert np.array_equal(got["up"], v1[F : 2 * F])
    assert np.array_equal(got["down"], w2[F : 2 * F].T)


def test_a_text_model_inside_a_composite_one(tmp_path):
    inner = {
        "model_type": "qwen3_vl_moe_text", "hidden_size": H, "moe_intermediate_size": F, "num_experts": E,
        "num_experts_per_tok": 2, "num_hidden_layers": 1,
    }  # fmt: skip
    config = {"model_type": "qwen3_vl_moe", "text_config": inner, "vision_config": {"moe_like": 3}}
    p = "model.language_model.layers.0.mlp."
    wide, narrow = arrays(E, H, 2 * F), arrays(E, F, H)  # published files are [in, out]
    tensors = {
        p + "experts.gate_up_proj": wide, p + "experts.down_proj": narrow, p + "gate.weight": arrays(E, H),
        "mtp.layers.0.mlp.gate.weight": arrays(E, H),
    }  # fmt: skip
    got = one(tmp_path, config, tensors)
    assert np.array_equal(got["up"], wide[1, :, F:].T)
    assert np.array_equal(got["down"], narrow[1].T)


def gemma(norm=1.0):
    """(config, tensors) of a layer of Gemma 4's shape; norm: of the experts' input, first value."""
    config = {
        "model_type": "gemma4_text", "hidden_size": H, "intermediate_size": 7, "moe_intermediate_size": F,
        "num_experts": E, "top_k_experts": 2, "num_hidden_layers": 1, "enable_moe_block": True, "rms_norm_eps": 1e-6,
        "num_kv_shared_layers": 0, "use_double_wide_mlp": False, "hidden_activation": "gelu_pytorch_tanh",
    }  # fmt: skip
    p = "model.layers.0."
    tensors = {
        p + "experts.gate_up_proj": 0.3 * arrays(E, 2 * F, H), p + "experts.down_proj": 0.3 * arrays(E, H, F),
        p + "router.proj.weight": 3 * arrays(E, H), p + "router.scale": 1 + 0.1 * arrays(H),
        p + "router.per_expert_scale": 2 + np.arange(E, dtype=np.float32),
        p + "pre_feedforward_layernorm_2.weight": np.linspace(norm, 2, H, dtype=np.float32),
    }  # fmt: skip
    return config, tensors


def test_norms_of_router_and_experts_are_folded(tmp_path):
    """Gemma 4: the router reads residual / rms * scale / sqrt(H), the experts residual / rms * norm."""
    _, t = gemma()
    t = {name.removeprefix("model.layers.0."): array for name, array in t.items()}
    checkpoint = aristos.Checkpoint(write(tmp_path, *gemma()))
    assert np.array_equal(checkpoint.arrays(0, 3)["down"], 5 * t["experts.down_proj"][3])
    residual = arrays(6, H).astype(np.float64)
    normed = residual / np.sqrt((residual**2).mean(1, keepdims=True) + 1e-6)
    scores = normed * t["router.scale"] / np.sqrt(H) @ t["router.proj.weight"].T
    x = (normed * t["pre_feedforward_layernorm_2.weight"]).astype(np.float32)
    with cases.MoE(checkpoint.config(max_tokens=6), threads=1) as moe:
        checkpoint.load(moe, layer=0, number=0)
        y, routing = moe(x, return_routing=True)
    assert np.allclose(routing.logits, scores, rtol=1e-4, atol=1e-5)
    wanted = np.zeros((6, H))
    for row, out in zip(range(6), wanted):
        chosen = np.argsort(-scores[row])[:2]
        powers = np.exp(scores[row, chosen])
        for e, weight in zip(chosen, powers / powers.sum()):
            gate, up = np.split(x[row] @ t["experts.gate_up_proj"][e].T.astype(np.float64), 2)
            gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
            out += weight * (2 + e) * (t["experts.down_proj"][e] @ (gelu * up))
    assert np.abs(y - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_norm_that_cannot_be_folded_is_refused(tmp_path):
    checkpoint = aristos.Checkpoint(write(tmp_path, *gemma(norm=0.0)))
    with (
        cases.MoE(checkpoint.config(max_tokens=6), threads=1) as moe,
        pytest.raises(CheckpointError, match=r"layernorm_2\.weight' has 0 at 0: the router cannot be computed"),
    ):
        checkpoint.load(moe, layer=0, number=0)


def hashed(table):
    """(config, tensors) of a layer of DeepSeek-V4's shape that chooses by a table of token ids."""
    config = {
        "model_type": "deepseek_v4", "hidden_size": H, "moe_intermediate_size": F, "n_routed_experts": E,
        "num_experts_per_tok": 2, "num_hidden_layers": 1, "n_shared_experts": 0, "mlp_layer_types": ["hash_moe"],
    }  # fmt: skip
    p = "layers.0.ffn."
    tensors = {p + "gate.weight": arrays(E, H), p + "gate.tid2eid": table}
    for e, (array, shape) in itertools.product(range(E), (("w1", (F, H)), ("w3", (F, H)), ("w2", (H, F)))):
        tensors[f"{p}experts.{e}.{array}.weight"] = 0.3 * arrays(*shape) + e / 10
    return config, tensors


def test_a_layer_that_chooses_by_a_table_of_token_ids(tmp_path):
    table = np.array([[0, 1], [4, 2], [3, 0]])
    checkpoint = aristos.Checkpoint(write(tmp_path, *hashed(table)))
    assert checkpoint.problem(0) == ""
    assert "Checkpoint.route" in checkpoint.note(0)
    x, tokens = arrays(4, H), np.array([2, 0, 1, 1])
    ids, weights = checkpoint.route(0, x, tokens)
    assert ids.tolist() == table[tokens].tolist()
    for row, chosen, got in zip(x, ids, weights):
        scores = [math.sqrt(math.log1p(math.exp(float(row @ arrays(E, H)[e])))) for e in chosen]
        assert got.tolist() == pytest.approx([1.5 * v / sum(scores) for v in scores], rel=1e-5)
    with cases.MoE(checkpoint.config(max_tokens=4), threads=1) as moe:
        checkpoint.load(moe, layer=0, number=0)
        assert np.isfinite(moe(x, ids=ids, weights=weights)).all()
        with pytest.raises(InputError, match="router"):
            moe(x)
    for wrong, words in (
        ((x, np.array([0, 0, 0, 3])), r"tokens must be in 0\.\.2, got 0 to 3"),
        ((x, tokens[:3]), "tokens must be 4 token ids"), ((x, tokens / 2), "ints, one for each row of x, got float64"),
        ((x[:, 1:], tokens), r"x must have shape \[S, 24\]"), ((x.astype("f8"), tokens), "x must have dtype"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            checkpoint.route(0, *wrong)
    with pytest.raises(InputError, match="layer 0 has a router that chooses by scores"):
        aristos.Checkpoint(write(tmp_path / "olmoe", OLMOE, olmoe())).route(0, x, tokens)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (np.array([[0, 5]] * 3), r"gate\.tid2eid' must have experts in 0\.\.4, got 0 to 5"),
        (np.array([[0, 1, 2]] * 3), r"must have ints of shape \[token ids, 2\], got int64 \[3, 3\]"),
        (np.zeros((3, 2), np.float32), "got float32"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, table, words):
    checkpoint = aristos.Checkpoint(write(tmp_path, *hashed(table)))
    with pytest.raises(CheckpointError, match=words):
        checkpoint.route(0, arrays(2, H), np.array([0, 1]))


# ---- quantised weights ---------------------------------------------------------------------------------------------

BLOCKED = {**OLMOE, "hidden_size": 160, "intermediate_size": 130, "num_experts": 2, "num_hidden_layers": 1}


def test_fp8_with_block_scales(tmp_path):
    config = {**BLOCKED, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    tensors = olmoe(config=config)
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    quantised = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    scale = np.array([[2.0, 3.0], [5.0, 7.0]], np.float32)
    tensors |= {name: quantised, name + "_scale_inv": scale}
    got = one(tmp_path, config, tensors)["up"]
    for i, j in itertools.product((0, 127, 128, 129), (0, 127, 128, 159)):
        assert got[i, j] == float(quantised[i, j]) * scale[i // 128, j // 128]
    assert got.shape == (130, 160)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (np.array([[2.0, 3.0], [5.0, np.nan]], np.float32), "has a scale of nan at [1, 1]"),
        (np.array([[2.0, np.inf], [5.0, 1.0]], np.float32), "has a scale of inf at [0, 1]"),
        (np.ones((2, 3), np.float32), "must have shape [2, 2]"),
        (np.ones((2, 2), np.int8), "has dtype I8; scales must be F32, BF16, F16, F8_E8M0"),
    ],
)
def test_wrong_scales_are_refused_by_name(tmp_path, scale, words):
    config = {**BLOCKED, "quantization_config": {"quant_method": "fp8"}}
    tensors = olmoe(config=config)
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    tensors |= {name: tensors[name].astype(ml_dtypes.float8_e4m3fn), name + "_scale_inv": scale}
    with pytest.raises(CheckpointError) as error:
        one(tmp_path, config, tensors)
    assert words in str(error.value)
    assert "up_proj.weight_scale_inv" in str(error.value)


@pytest.mark.parametrize(
    ("method", "name", "scale", "divisor"),
    [
        ("compressed-tensors", "weight_scale", (130, 1), 1),
        ("compressed-tensors", "weight_scale", (1,), 1),
        ("bitsandbytes", "SCB", (130,), 127),
    ],
)
def test_int8_with_scales(tmp_path, method, name, scale, divisor):
    config = {**BLOCKED, "quantization_config": {"quant_method": method, "load_in_8bit": True}}
    tensors = olmoe(config=config)
    base = "model.layers.0.mlp.experts.1.up_proj."
    values = np.arange(-60, 70, dtype=np.int8).reshape(130, 1) * np.ones((1, 160), np.int8)
    scales = np.linspace(1, 2, 130 if 130 in scale else 1, dtype=np.float32).reshape(scale)
    tensors |= {base + "weight": values, base + name: scales}
    got = one(tmp_path, config, tensors)["up"]
    for i in (0, 7, 129):
        expected = float(values[i, 0]) * float(scales.reshape(-1)[i if 130 in scale else 0]) / divisor
        assert got[i, 3] == pytest.approx(expected, rel=1e-6)


def oss(h, f, experts, low=100, high=150):
    """(config, tensors) of a layer of gpt-oss's shape in mxfp4, scales of bytes from low up to high."""
    config = {
        "model_type": "gpt_oss", "hidden_size": h, "intermediate_size": f, "num_local_experts": experts,
        "num_experts_per_tok": 1, "num_hidden_layers": 1, "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    rng = np.random.default_rng(3)
    p = "model.layers.0.mlp."
    return config, {
        p + "experts.gate_up_proj_blocks": rng.integers(0, 256, (experts, 2 * f, h // 32, 16)).astype(np.uint8),
        p + "experts.gate_up_proj_scales": rng.integers(low, high, (experts, 2 * f, h // 32)).astype(np.uint8),
        p + "experts.gate_up_proj_bias": arrays(experts, 2 * f).astype(ml_dtypes.bfloat16),
        p + "experts.down_proj_blocks": rng.integers(0, 256, (experts, h, f // 32, 16)).astype(np.uint8),
        p + "experts.down_proj_scales": rng.integers(low, high, (experts, h, f // 32)).astype(np.uint8),
        p + "experts.down_proj_bias": arrays(experts, h).astype(ml_dtypes.bfloat16),
        p + "router.weight": arrays(experts, h), p + "router.bias": arrays(experts),
    }  # fmt: skip


BLOCKS, SCALES = (f"model.layers.0.mlp.experts.gate_up_proj_{part}" for part in ("blocks", "scales"))


def test_mxfp4(tmp_path):
    h, f, experts = 64, 32, 2
    config, tensors = oss(h, f, experts)
    blocks, scales = tensors[BLOCKS], tensors[SCALES]
    got = one(tmp_path, config, tensors)
    codes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    for row, column in itertools.product((0, 5, 31), (0, 1, 33, 63)):
        for name, odd in (("gate", 0), ("up", 1)):
            byte = int(blocks[1, 2 * row + odd, column // 32, column % 32 // 2])
            code = byte & 15 if column % 2 == 0 else byte >> 4
            scale = 2.0 ** (int(scales[1, 2 * row + odd, column // 32]) - 127)
            assert got[name][row, column] == codes[code & 7] * (-1 if code & 8 else 1) * scale
    assert got["gate"].shape == (f, h)
    assert got["down"].shape == (h, f)
    tensors[SCALES] = np.full_like(scales, 255)
    with pytest.raises(CheckpointError, match="gate_up_proj_scales' has a scale of nan"):
        one(tmp_path / "nan", config, tensors)


@pytest.mark.parametrize(
    ("scale", "code", "value"),
    [
        (254, 3, 1.5 * 2.0**127), (254, 4, None), (254, 11, -1.5 * 2.0**127), (254, 15, None), (253, 5, 3 * 2.0**126),
        (253, 6, None), (252, 7, 6 * 2.0**125), (0, 1, 2.0**-128), (1, 7, 6 * 2.0**-126),
    ],
)  # fmt: skip
def test_mxfp4_at_the_ends_of_float32(tmp_path, scale, code, value):
    """E8M0 goes to 2^127; with 2 or more from E2M1 the product is no float32."""
    config, tensors = oss(64, 32, 2)
    tensors[SCALES][1, 4, 1], tensors[BLOCKS][1, 4, 1] = scale, 0
    tensors[BLOCKS][1, 4, 1, 2] = code << 4
    if value is None:
        words = r"model\.safetensors: tensor '.*gate_up_proj_blocks' has a value at \[4, 37\] .* beyond float32"
        with pytest.raises(CheckpointError, match=words):
            one(tmp_path, config, tensors)
    else:
        assert one(tmp_path, config, tensors)["gate"][2, 37] == value


def test_fp8_beyond_float32_is_refused(tmp_path):
    config = {**BLOCKED, "quantization_config": {"quant_method": "fp8"}}
    tensors = olmoe(config=config)
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    values = np.ones((130, 160), ml_dtypes.float8_e4m3fn)
    scale = np.array([[1, 1], [1, 2e36]], np.float32)
    tensors |= {name: values, name + "_scale_inv": scale}
    assert one(tmp_path / "good", config, tensors)["up"][129, 130] == np.float32(2e36)
    values[129, 130] = 448
    with pytest.raises(CheckpointError, match=r"up_proj\.weight' has a value at \[129, 130\] .* beyond float32"):
        one(tmp_path / "bad", config, tensors)


def fused_fp8(h, f, experts):
    """(config, tensors) of OLMoE's shape with stacked fp8 experts, gate and up in one tensor."""
    config = {**OLMOE, "hidden_size": h, "intermediate_size": f, "num_experts": experts, "num_hidden_layers": 1,
              "quantization_config": {"quant_method": "fp8"}}  # fmt: skip
    p = "model.layers.0.mlp."
    tensors = {p + "gate.weight": arrays(experts, h)}
    for name, shape in (("gate_up_proj", (experts, 2 * f, h)), ("down_proj", (experts, h, f))):
        tensors[p + "experts." + name] = arrays(*shape).astype(ml_dtypes.float8_e4m3fn)
        scales = np.arange(1, experts + 1, dtype=np.float32)[:, None, None]
        tensors[f"{p}experts.{name}_scale_inv"] = np.tile(scales, (1, -(-shape[1] // 128), -(-shape[2] // 128)))
    return config, tensors


@pytest.mark.parametrize("form", [oss, fused_fp8])
def test_a_quantised_expert_is_read_once(tmp_path, form):
    """Memory for one expert in float32, although one tensor holds gate and up; and the values of its own scales."""
    h, f, experts = 256, 192, 3
    config, tensors = form(h, f, experts)
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    got = checkpoint.arrays(0, 1)
    if form is fused_fp8:
        stored = tensors["model.layers.0.mlp.experts.gate_up_proj"].astype(np.float32)
        assert np.array_equal(got["gate"], 2 * stored[1, :f])
        assert np.array_equal(got["up"], 2 * stored[1, f:])
    assert np.shares_memory(got["gate"].base, got["up"].base)
    del got
    tracemalloc.start()
    found = checkpoint.arrays(0, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = 4 * 3 * h * f
    assert peak < 1.15 * size, (peak / size, found.keys())


# ---- loading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loaded_layer_computes_the_model(tmp_path, dtype):
    tensors = olmoe(dtype)
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, tensors, shards=2))
    cfg = checkpoint.config(max_tokens=16)
    x = cases.tokens(cfg, 16, 1)
    with cases.MoE(cfg, layers=2, threads=1) as moe:
        for layer, number in enumerate(checkpoint.layers):
            checkpoint.load(moe, layer=layer, number=number)
        for layer, number in enumerate(checkpoint.layers):
            cases.check(cfg, stacked(tensors, number, E), x, {}, moe(x, layer=layer))


def test_a_layer_of_another_configuration_is_refused(tmp_path):
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, olmoe()))
    with cases.MoE(aristos.MoEConfig(H, F, E, 1, "silu", True), threads=1) as moe:
        with pytest.raises(CheckpointError, match=r"does not fit layer 0 .*top_k 1 and 2"):
            checkpoint.load(moe, layer=0, number=0)
        with pytest.raises(InputError, match=r"no weights|missing|lacks"):
            moe(cases.tokens(moe.cfg, 2, 1))


def test_a_bias_that_is_not_finite_is_refused_by_file_and_tensor(tmp_path):
    config = {
        "model_type": "minimax_m2", "hidden_size": H, "intermediate_size": F, "num_local_experts": E,
        "num_experts_per_tok": 2, "num_hidden_layers": 1,
    }  # fmt: skip
    p = "model.layers.0.block_sparse_moe."
    tensors = {
        p + "experts.gate_up_proj": arrays(E, 2 * F, H), p + "experts.down_proj": arrays(E, H, F),
        p + "gate.weight": arrays(E, H), p + "e_score_correction_bias": arrays(E),
    }  # fmt: skip
    tensors[p + "e_score_correction_bias"][3] = np.nan
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    with (
        cases.MoE(checkpoint.config(max_tokens=4), threads=1) as moe,
        pytest.raises(CheckpointError, match=r"model\.safetensors: tensor '.*correction_bias' has nan at 3"),
    ):
        checkpoint.load(moe, layer=0, number=0)


def test_a_load_keeps_one_expert_beside_the_packed_ones(tmp_path):
    config = {**OLMOE, "hidden_size": 256, "intermediate_size": 256, "num_experts": 16, "num_hidden_layers": 1}
    checkpoint = aristos.Checkpoint(write(tmp_path, config, olmoe(config=config)))
    cfg = checkpoint.config(max_tokens=4)
    one_expert = 3 * 4 * 256 * 256
    with cases.MoE(cfg, threads=1) as moe:
        checkpoint.load(moe, layer=0, number=0)  # imports, compiled code
        tracemalloc.start()
        checkpoint.load(moe, layer=0, number=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        packed = moe.packed_weights(0).nbytes
    assert peak < packed + 2 * one_expert, (peak, packed, one_expert)


@pytest.mark.ranks(3, timeout=60)
def test_ranks_open_a_directory_or_refuse_it_together(comm, tmp_path):
    """One rank's own folder, as on a node with a disk of its own, is damaged; nobody waits for it."""
    good = write(tmp_path / "good", OLMOE, olmoe())
    assert aristos.Checkpoint(good, comm).config(max_tokens=4).experts == E
    for text, words in (
        (None, "config.json cannot be read"), ("{", "config.json is not JSON"),
        (json.dumps({**OLMOE, "model_type": "quokka"}), "model_type 'quokka' is not known"),
    ):  # fmt: skip
        bad = tmp_path / "bad"
        bad.mkdir(exist_ok=True)
        if text is not None:
            (bad / "config.json").write_text(text)
        for broken in (1, 2):
            kind = CheckpointError if comm.rank == broken else PeerInputError
            with pytest.raises(kind, match=words) as error:
                aristos.Checkpoint(bad if comm.rank == broken else good, comm)
            assert "bad" in str(error.value)
            assert comm.rank == broken or f"rank {broken} cannot open its model directory" in str(error.value)
    other = write(tmp_path / "other", {**OLMOE, "norm_topk_prob": False}, olmoe())
    with pytest.raises(MismatchError, match=r"ranks 0 and 2 have different config\.json"):
        aristos.Checkpoint(other if comm.rank == 2 else good, comm)
    with pytest.raises((InputError, PeerInputError), match="path must be that of a model directory, got 3"):
        aristos.Checkpoint(3 if comm.rank == 0 else good, comm)


@pytest.mark.ranks(2)
def test_ranks_load_their_experts_and_refuse_together(comm):
    import shutil
    import tempfile
    from pathlib import Path

    folder = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None, 0))
    tensors = olmoe("bfloat16")
    if comm.rank == 0:
        write(folder, OLMOE, tensors, shards=3)
    comm.Barrier()
    try:
        checkpoint = aristos.Checkpoint(folder)
        cfg = checkpoint.config(max_tokens=8)
        x = cases.tokens(cfg, 5 + comm.rank, 3 + comm.rank)
        with cases.MoE(cfg, comm, threads=1) as moe:
            checkpoint.load(moe, layer=0, number=1)
            cases.check(cfg, stacked(tensors, 1, E), x, {}, moe(x))
            broken = aristos.Checkpoint(folder)
            broken._directory.where["model.layers.0.mlp.experts.0.up_proj.weight"] = "model.safetensors"
            if comm.rank == 1:
                broken = checkpoint
            with pytest.raises((CheckpointError, PeerInputError), match=r"model\.safetensors|rank 0 refused layer 0"):
                broken.load(moe, layer=0, number=0)
            checkpoint.load(moe, layer=0, number=0)
            cases.check(cfg, stacked(tensors, 0, E), x, {}, moe(x))
            if comm.rank == 1:  # an error that nobody foresaw
                checkpoint._checked = lambda number: 1 // 0
            with pytest.raises((ZeroDivisionError, PeerInputError), match=r"integer.*by zero"):
                checkpoint.load(moe, layer=0, number=0)
    finally:
        comm.Barrier()
        if comm.rank == 0:
            shutil.rmtree(folder)


SIZES = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "num_experts", "n_routed_experts", "d_model", "d_ff",
    "num_local_experts", "moe_num_experts", "moe_shared_expert_intermediate_size", "num_experts_per_tok", "moe_k",
    "moe_topk", "num_experts_per_token", "num_hidden_layers", "num_layers", "n_layers",
    "shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size", "expert_ffn_hidden_size",
    "n_shared_experts", "ffn_hidden_size",
)  # fmt: skip
WORDS = (
    "mlp_layer_types", "moe_layer_freq", "mlp_only_layers", "decoder_sparse_step", "swiglu_limit", "swiglu_limits",
    "n_group", "topk_group", "routed_scaling_factor", "hidden_act", "norm_topk_prob", "moe_layers", "layers_block_type",
    "hybrid_override_pattern", "ffn_config", "expert_layer_offset", "moe_layers_enum", "quantization_config",
    "num_sparse_encoder_layers", "zero_expert_num", "first_k_dense_replace", "num_shared_expert", "expert_capacity",
    "moe_layer_end_index", "moe_norm_min", "interleave_moe_layer_step", "num_hash_layers", "text_config",
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS + SIZES), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.dictionaries(st.sampled_from(WORDS + SIZES), VALUES, max_size=4))
def test_options_of_any_kind_are_read_or_refused(tmp_path_factory, family, change):
    """No other error than a refusal, and no work by the word of a file."""
    path = tmp_path_factory.getbasetemp() / "options"
    path.mkdir(exist_ok=True)
    config = {**dict.fromkeys(SIZES, 4), "model_type": family, "ffn_config": dict.fromkeys(SIZES, 4), **change}
    (path / "config.json").write_text(json.dumps(config))
    with contextlib.suppress(CheckpointError):
        checkpoint = aristos.Checkpoint(path)
        for number in checkpoint.layers[:3]:
            checkpoint.problem(number)


def test_the_number_of_layers_is_bounded(tmp_path):
    with pytest.raises(CheckpointError, match="num_hidden_layers must be an int of at least 1 and at most"):
        of(tmp_path, {**OLMOE, "num_hidden_layers": 2**50})
