"""A layer's arrays are found by the names and layouts of several families. Quantised arrays have the right values."""

from __future__ import annotations

import itertools
import tracemalloc

import cases
import ml_dtypes
import numpy as np
import pytest
from model_files import OLMOE, E, F, H, arrays, fused_fp8, olmoe, write

import aristos
from aristos.errors import CheckpointError


def one(tmp_path, config, tensors, expert=1):
    return aristos.Checkpoint(write(tmp_path, config, tensors)).arrays(0, expert)


def test_stacked_and_fused_names(tmp_path):
    """The names are those that transformers 5 keeps in memory, not the published ones."""
    config = {**OLMOE, "num_hidden_layers": 1}
    wide, narrow = arrays(E, 2 * F, H), arrays(E, H, F)
    p = "model.layers.0.mlp."
    tensors = {
        p + "experts.gate_up_proj": wide,
        p + "experts.down_proj": narrow,
        p + "gate.weight": arrays(E, H),
    }
    got = one(tmp_path, config, tensors)
    assert np.array_equal(got["gate"], wide[1, :F])
    assert np.array_equal(got["up"], wide[1, F:])
    assert np.array_equal(got["down"], narrow[1])


def test_interleaved_and_transposed(tmp_path):
    config = {
        "model_type": "gpt_oss",
        "hidden_size": H,
        "intermediate_size": F,
        "num_local_experts": E,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
    }
    wide, narrow, bias = arrays(E, H, 2 * F), arrays(E, F, H), arrays(E, 2 * F)
    p = "model.layers.0.mlp."
    tensors = {
        p + "experts.gate_up_proj": wide,
        p + "experts.down_proj": narrow,
        p + "experts.gate_up_proj_bias": bias,
        p + "experts.down_proj_bias": arrays(E, H),
        p + "router.weight": arrays(E, H),
        p + "router.bias": arrays(E),
    }
    got = one(tmp_path, config, tensors)
    assert np.array_equal(got["gate"], wide[1, :, 0::2].T)
    assert np.array_equal(got["up"], wide[1, :, 1::2].T)
    assert np.array_equal(got["up_bias"], bias[1, 1::2])
    assert np.array_equal(got["down"], narrow[1].T)


def test_flat_experts_with_mixed_orders(tmp_path):
    config = {
        "model_type": "dbrx",
        "d_model": H,
        "n_layers": 1,
        "ffn_config": {"ffn_hidden_size": F, "moe_num_experts": E, "moe_top_k": 2, "moe_normalize_expert_weights": 1},
    }
    w1, v1, w2 = (arrays(E * F, H) + i for i in range(3))
    p = "transformer.blocks.0.ffn."
    tensors = {
        p + "experts.mlp.w1": w1,
        p + "experts.mlp.v1": v1,
        p + "experts.mlp.w2": w2,
        p + "router.layer.weight": arrays(E, H),
    }
    got = one(tmp_path, config, tensors)
    assert np.array_equal(got["gate"], w1[F : 2 * F])
    assert np.array_equal(got["up"], v1[F : 2 * F])
    assert np.array_equal(got["down"], w2[F : 2 * F].T)


def test_a_text_model_inside_a_composite_one(tmp_path):
    inner = {
        "model_type": "qwen3_vl_moe_text",
        "hidden_size": H,
        "moe_intermediate_size": F,
        "num_experts": E,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
    }
    config = {"model_type": "qwen3_vl_moe", "text_config": inner, "vision_config": {"moe_like": 3}}
    p = "model.language_model.layers.0.mlp."
    wide, narrow = arrays(E, H, 2 * F), arrays(E, F, H)  # published files are [in, out]
    tensors = {
        p + "experts.gate_up_proj": wide,
        p + "experts.down_proj": narrow,
        p + "gate.weight": arrays(E, H),
        "mtp.layers.0.mlp.gate.weight": arrays(E, H),
    }
    got = one(tmp_path, config, tensors)
    assert np.array_equal(got["up"], wide[1, :, F:].T)
    assert np.array_equal(got["down"], narrow[1].T)


def gemma(norm=1.0):
    """(config, tensors) of a layer of Gemma 4's shape. norm: the first value of the norm of the experts' input."""
    config = {
        "model_type": "gemma4_text",
        "hidden_size": H,
        "intermediate_size": 7,
        "moe_intermediate_size": F,
        "num_experts": E,
        "top_k_experts": 2,
        "num_hidden_layers": 1,
        "enable_moe_block": True,
        "rms_norm_eps": 1e-6,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    p = "model.layers.0."
    tensors = {
        p + "experts.gate_up_proj": 0.3 * arrays(E, 2 * F, H),
        p + "experts.down_proj": 0.3 * arrays(E, H, F),
        p + "router.proj.weight": 3 * arrays(E, H),
        p + "router.scale": 1 + 0.1 * arrays(H),
        p + "router.per_expert_scale": 2 + np.arange(E, dtype=np.float32),
        p + "pre_feedforward_layernorm_2.weight": np.linspace(norm, 2, H, dtype=np.float32),
    }
    return config, tensors


def test_norms_of_router_and_experts_are_folded(tmp_path):
    """In Gemma 4 the router reads residual / rms * scale / sqrt(H), and the experts read residual / rms * norm."""
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


def inkling(published):
    """(config, tensors) of a layer of Inkling's shape, with two shared experts. published: with the hub's names."""
    config = {
        "model_type": "inkling_text",
        "hidden_size": H,
        "moe_intermediate_size": F,
        "n_routed_experts": E,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
        "mlp_layer_types": ["sparse"],
        "route_scale": 1.5,
    }
    wide, narrow = 0.3 * arrays(E + 2, 2, F, H), 0.3 * arrays(E + 2, H, F)  # gate, then up
    alternating = wide.swapaxes(1, 2).reshape(E + 2, 2 * F, H)
    p = "model.llm.layers.0.mlp." if published else "model.layers.0.mlp."
    tensors = {p + "gate.weight": arrays(E + 2, H), p + "gate.global_scale": np.array([3], np.float32)}
    tensors[p + ("gate.bias" if published else "gate.e_score_correction_bias")] = np.linspace(5, -5, E, dtype="f4")
    if published:
        tensors |= {
            p + "experts.w13_weight": alternating[:E],
            p + "experts.w2_weight": narrow[:E],
            p + "shared_experts.shared_w13_weight": alternating[E:],
            p + "shared_experts.shared_w2_weight": narrow[E:],
        }
    else:
        tensors |= {
            p + "experts.gate_up_proj": wide[:E].reshape(E, 2 * F, H),
            p + "experts.down_proj": narrow[:E],
            p + "shared_experts.gate_proj": wide[E:, 0],
            p + "shared_experts.up_proj": wide[E:, 1],
            p + "shared_experts.down_proj": narrow[E:],
        }
    return config, tensors, wide, narrow


@pytest.mark.parametrize("published", [True, False])
def test_shared_experts_that_share_a_sum_of_weights_are_the_last_experts(tmp_path, published):
    config, tensors, wide, narrow = inkling(published)
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    for e in (1, E, E + 1):
        got = checkpoint.arrays(0, e)
        assert np.array_equal(got["gate"], wide[e, 0])
        assert np.array_equal(got["up"], wide[e, 1])
        assert np.array_equal(got["down"], 3 * narrow[e])
    x = arrays(7, H)
    with cases.MoE(checkpoint.config(max_tokens=7), threads=1) as moe:
        checkpoint.load(moe, layer=0, number=0)
        _, routing = moe(x, return_routing=True)
    scores = 1 / (1 + np.exp(-x.astype(np.float64) @ arrays(E + 2, H).T))
    for row, ids, weights in zip(scores, routing.ids, routing.weights):
        chosen = [*np.argsort(-(row[:E] + np.linspace(5, -5, E)))[:2], E, E + 1]
        assert sorted(ids) == sorted(chosen)
        assert np.allclose(weights, 1.5 * row[ids] / row[chosen].sum(), rtol=1e-5)


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
        (
            np.array([[2.0, 3.0], [0.0, 1.0]], np.float32),
            "a scale of 0.0 at [1, 0], but scales must be finite and not zero",
        ),
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
    """(config, tensors) of a layer of gpt-oss's shape in mxfp4. The bytes of scales are from low to high."""
    config = {
        "model_type": "gpt_oss",
        "hidden_size": h,
        "intermediate_size": f,
        "num_local_experts": experts,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 1,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    rng = np.random.default_rng(3)
    p = "model.layers.0.mlp."
    return config, {
        p + "experts.gate_up_proj_blocks": rng.integers(0, 256, (experts, 2 * f, h // 32, 16)).astype(np.uint8),
        p + "experts.gate_up_proj_scales": rng.integers(low, high, (experts, 2 * f, h // 32)).astype(np.uint8),
        p + "experts.gate_up_proj_bias": arrays(experts, 2 * f).astype(ml_dtypes.bfloat16),
        p + "experts.down_proj_blocks": rng.integers(0, 256, (experts, h, f // 32, 16)).astype(np.uint8),
        p + "experts.down_proj_scales": rng.integers(low, high, (experts, h, f // 32)).astype(np.uint8),
        p + "experts.down_proj_bias": arrays(experts, h).astype(ml_dtypes.bfloat16),
        p + "router.weight": arrays(experts, h),
        p + "router.bias": arrays(experts),
    }


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
        (254, 3, 1.5 * 2.0**127),
        (254, 4, None),
        (254, 11, -1.5 * 2.0**127),
        (254, 15, None),
        (253, 5, 3 * 2.0**126),
        (253, 6, None),
        (252, 7, 6 * 2.0**125),
        (0, 1, 2.0**-128),
        (1, 7, 6 * 2.0**-126),
    ],
)
def test_mxfp4_at_the_ends_of_float32(tmp_path, scale, code, value):
    """A scale of E8M0 may be 2^127. Its product with a code of E2M1 that is 2 or more exceeds float32."""
    config, tensors = oss(64, 32, 2)
    tensors[SCALES][1, 4, 1], tensors[BLOCKS][1, 4, 1] = scale, 0
    tensors[BLOCKS][1, 4, 1, 2] = code << 4
    if value is None:
        words = r"model\.safetensors: tensor '.*gate_up_proj_blocks' has a value at \[4, 37\] .* too large for float32"
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
    with pytest.raises(CheckpointError, match=r"up_proj\.weight' has a value at \[129, 130\] .* too large for float32"):
        one(tmp_path / "bad", config, tensors)


@pytest.mark.parametrize("form", [oss, fused_fp8])
def test_a_quantised_expert_is_read_once(tmp_path, form):
    """Reading needs memory for one expert in float32, although one tensor holds gate and up.

    The values have the expert's own scales.
    """
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
