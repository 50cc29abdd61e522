"""Packed weights of a model directory: formats compared with weights that `packed_files` computes, and refusals."""

from __future__ import annotations

import tracemalloc

import cases
import ml_dtypes
import numpy as np
import packed_files
import pytest
from model_files import OLMOE, arrays, fused_fp8, write
from model_files import olmoe as plain
from packed_files import CASES, Case, olmoe

import aristos
import aristos.reference
from aristos.errors import CheckpointError
from aristos.weight_types import packed

EXPERT = "model.layers.0.mlp.experts.1.up_proj."


def opened(folder, case, change=None, **quantization):
    """The checkpoint of a case, with tensors and quantization_config changed."""
    config, tensors, _ = olmoe(case)
    config["quantization_config"] |= quantization
    if change is not None:
        change(tensors)
    return aristos.Checkpoint(write(folder, config, tensors))


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_format(tmp_path, name):
    config, tensors, weights = olmoe(case := CASES[name])
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors, shards=2))
    kind = packed(case.type[0], **case.type[1])
    assert checkpoint.weight_type(0) == kind
    for e in range(2):
        stored, expanded = checkpoint.arrays(0, e, packed=True), checkpoint.arrays(0, e)
        for array in ("up", "gate", "down"):
            assert stored[array].type == kind
            assert np.array_equal(stored[array].dequantised(), weights[e, array].T)
            assert np.array_equal(expanded[array], weights[e, array].astype(np.float32))


def oss(h=64, f=96, experts=2):
    """(config, tensors, weights [out, in] by (expert, name)) of gpt-oss's shape; rows of gate and up alternate."""
    rng, p = np.random.default_rng(3), "model.layers.0.mlp."
    config = {
        "model_type": "gpt_oss",
        "hidden_size": h,
        "intermediate_size": f,
        "num_local_experts": experts,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 1,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    tensors = {p + "router.weight": arrays(experts, h), p + "router.bias": arrays(experts)}
    weights = {}
    for name, out, depth in (("gate_up", 2 * f, h), ("down", h, f)):
        found = [packed_files.fp4(rng, out, depth) for _ in range(experts)]
        base = f"{p}experts.{name}_proj_"
        tensors[base + "blocks"] = np.stack([codes.reshape(out, depth // 32, 16) for codes, _, _ in found])
        tensors[base + "scales"] = np.stack([exponents for _, exponents, _ in found])
        tensors[base + "bias"] = arrays(experts, out)
        for e, (_, _, whole) in enumerate(found):
            parts = {"down": whole} if name == "down" else {"gate": whole[0::2], "up": whole[1::2]}
            weights |= {(e, part): values for part, values in parts.items()}
    return config, tensors, weights


def test_gpt_oss(tmp_path):
    config, tensors, weights = oss()
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    assert checkpoint.weight_type(0) == packed("mxfp4")
    stored = checkpoint.arrays(0, 1, packed=True)
    for name in ("up", "gate", "down"):
        assert np.array_equal(stored[name].dequantised(), weights[1, name].T)
    assert np.array_equal(stored["up_bias"], checkpoint.arrays(0, 1)["up_bias"])
    tensors["model.layers.0.mlp.experts.down_proj_scales"][1, 3, 2] = 255
    checkpoint = aristos.Checkpoint(write(tmp_path / "nan", config, tensors))
    with pytest.raises(CheckpointError, match=r"down_proj_scales' has a scale of nan for group 2 of output 3"):
        checkpoint.arrays(0, 1, packed=True)


def deepseek_v4(h=128, f=64, experts=2):
    """(config, tensors, weights [out, in] by (expert, name)) as DeepSeek-V4 has them: fp4 experts, fp8 elsewhere."""
    rng, p = np.random.default_rng(4), "layers.0.ffn."
    sizes = {"hidden_size": h, "moe_intermediate_size": f, "n_routed_experts": experts}
    config = {**packed_files.DEEPSEEK_V4, **sizes}
    tensors, weights = {p + "gate.weight": arrays(experts, h), p + "gate.bias": arrays(experts)}, {}
    for array, name, out, depth in (("gate", "w1", f, h), ("up", "w3", f, h), ("down", "w2", h, f)):
        for e in range(experts):
            codes, exponents, weights[e, array] = packed_files.fp4(rng, out, depth)
            tensors[f"{p}experts.{e}.{name}.weight"] = codes.view(np.int8)
            tensors[f"{p}experts.{e}.{name}.scale"] = exponents.view(ml_dtypes.float8_e8m0fnu)
        codes, scale = packed_files.fp8(rng, out, depth), np.array([[0.25]]).astype(ml_dtypes.float8_e8m0fnu)
        tensors |= {f"{p}shared_experts.{name}.weight": codes, f"{p}shared_experts.{name}.scale": scale}
        weights["shared", array] = codes.astype(np.float64) * 0.25
    return config, tensors, weights


def test_deepseek_v4(tmp_path):
    """Experts of fp4 stay packed or are expanded. The shared expert is fp8, and its scales have another name."""
    config, tensors, weights = deepseek_v4()
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    assert checkpoint.problem(0) == ""
    assert checkpoint.weight_type(0) == packed("mxfp4")
    for e in range(2):
        stored, expanded = checkpoint.arrays(0, e, packed=True), checkpoint.arrays(0, e)
        for array in ("up", "gate", "down"):
            assert np.array_equal(stored[array].dequantised(), weights[e, array].T)
            assert np.array_equal(expanded[array], weights[e, array].astype(np.float32))
    cfg = checkpoint.config(max_tokens=4, dtype="bfloat16", weight_dtype="mxfp4")
    assert (cfg.router.score, cfg.router.scale, cfg.shared_ffn, cfg.packed) == (
        "sqrtsoftplus",
        1.5,
        64,
        packed("mxfp4"),
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("experts.1.w3.weight", np.zeros((64, 128), np.int8), r"experts\.1\.w3\.weight' must have shape \[64, 64\]"),
        ("experts.1.w3.scale", np.ones((64, 4), np.float32), r"experts\.1\.w3\.scale' must have dtype U8 or F8_E8M0"),
        ("experts.0.w2.scale", np.ones((128, 3), np.uint8), r"experts\.0\.w2\.scale' must have shape \[128, 2\]"),
    ],
)
def test_tensors_of_deepseek_v4_that_do_not_fit(tmp_path, name, value, words):
    config, tensors, _ = deepseek_v4()
    tensors["layers.0.ffn." + name] = value
    with pytest.raises(CheckpointError, match=words):
        aristos.Checkpoint(write(tmp_path, config, tensors)).check(0)


def test_fp8_in_one_tensor_of_gate_and_up(tmp_path):
    """Blocks at the edge may be partial, but no block may belong to both gate and up."""
    config, tensors = fused_fp8(160, 128, 3)
    checkpoint = aristos.Checkpoint(write(tmp_path / "whole", config, tensors))
    assert checkpoint.weight_type(0) == packed("fp8")
    stored, expanded = checkpoint.arrays(0, 2, packed=True), checkpoint.arrays(0, 2)
    for name in ("up", "gate", "down"):
        assert np.array_equal(stored[name].dequantised().T, expanded[name])
    checkpoint = aristos.Checkpoint(write(tmp_path / "shared", *fused_fp8(160, 96, 3)))
    checkpoint.arrays(0, 2)
    with pytest.raises(
        CheckpointError, match=r"blocks of \[128, 128\], none of which has .* up: load the layer without weight_dtype"
    ):
        checkpoint.weight_type(0)


def test_blocks_at_the_edge_are_partial(tmp_path):
    config = {**packed_files.PACKED, "hidden_size": 160, "intermediate_size": 130}
    config, tensors, weights = olmoe(CASES["fp8 in blocks"], config)
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    for name, found in checkpoint.arrays(0, 1, packed=True).items():
        assert np.array_equal(found.dequantised(), weights[1, name].T)


def test_plain_weights_have_no_type(tmp_path):
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, plain()))
    assert checkpoint.weight_type(0) is None
    with pytest.raises(CheckpointError, match="the experts' weights must be packed"):
        checkpoint.arrays(0, 0, packed=True)


def test_nothing_is_expanded(tmp_path):
    """Reading never has as many values of four bytes in memory as there are codes of one byte."""
    config = {**packed_files.PACKED, "hidden_size": 256, "intermediate_size": 256}
    config, tensors, _ = olmoe(CASES["awq"], config)
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    checkpoint.arrays(0, 0, packed=True)
    tracemalloc.start()
    found = checkpoint.arrays(0, 1, packed=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    codes = sum(each.codes.size for each in found.values())
    assert peak < 2.5 * codes, (peak, codes)


def reference(weights, tensors, x):
    """The layer's output in float64, with the weights that the tensors stand for."""
    w = {name: np.stack([weights[e, name].T for e in range(2)]) for name in ("gate", "up", "down")}
    cfg = aristos.MoEConfig(
        hidden=128, ffn=64, experts=2, top_k=2, activation="silu", gated=True, router=aristos.Router(renormalize=True)
    )
    router = tensors["model.layers.0.mlp.gate.weight"].astype(np.float64).T
    return aristos.reference.moe(cfg, x.astype(np.float64), router=router, **w)


FORMATS = [  # each format compiles its own kernels
    *("gptq", "awq", "int4 in words"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mxfp4 in bytes", "int8 in groups", "fp8 in blocks")),
]


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_keeps_weights_as_they_are_stored(tmp_path, name):
    config, tensors, weights = olmoe(CASES[name])
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    x = arrays(9, 128)
    want = reference(weights, tensors, x)
    for weight_dtype, kind in (("file", checkpoint.weight_type(0)), (None, None)):
        cfg = checkpoint.config(max_tokens=9, weight_dtype=weight_dtype)
        assert cfg.weight_dtype == kind
        with cases.MoE(cfg, threads=1) as moe:
            checkpoint.load(moe, layer=0, number=0)
            assert np.abs(moe(x) - want).max() < 1e-5 * np.abs(want).max()
            assert not moe.summary().weight_errors.any()  # nothing was quantised


@pytest.mark.ranks(2)
def test_each_rank_reads_its_experts_as_they_are_stored(comm, tmp_path):
    """Outputs have the bits of one rank, whether rows travel or weights are read in place."""
    folder = comm.bcast(tmp_path, 0)
    if comm.rank == 0:
        config, tensors, _ = olmoe(CASES["gptq"])
        write(folder, config, tensors)
    comm.Barrier()
    checkpoint = aristos.Checkpoint(folder)
    cfg = checkpoint.config(max_tokens=9, weight_dtype="file")
    x = arrays(9, 128)
    with cases.MoE(cfg, threads=1) as moe:
        checkpoint.load(moe, layer=0, number=0)
        want = np.array(moe(x))
    for moves in ("tokens", "experts"):
        with cases.MoE(cfg, comm, threads=1, moves=moves) as moe:
            checkpoint.load(moe, layer=0, number=0)
            assert cases.same(moe(x), want)
            assert not moe.summary().weight_errors.any()


@pytest.mark.slow  # int8 compiles modules of its own
def test_a_plain_file_is_quantised_when_a_type_is_given(tmp_path):
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, plain()))
    assert checkpoint.config(weight_dtype="file").weight_dtype is None
    with cases.MoE(checkpoint.config(max_tokens=9, weight_dtype="int8"), threads=1) as moe:
        checkpoint.load(moe, layer=0, number=0)
        assert 0 < moe.summary().weight_errors[0] < 0.01


def test_shared_experts_stay_packed_too(tmp_path):
    config, tensors, _ = olmoe(CASES["gptq"])
    config |= {
        "model_type": "qwen2_moe",
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "decoder_sparse_step": 1,
    }
    del config["intermediate_size"]
    rng, p = np.random.default_rng(1), "model.layers.0.mlp."
    for name, out, depth in (("gate", 64, 128), ("up", 64, 128), ("down", 128, 64)):
        found, _ = CASES["gptq"].write(rng, out, depth)
        tensors |= {f"{p}shared_expert.{name}_proj.{end}": array for end, array in found.items()}
    tensors[p + "shared_expert_gate.weight"] = arrays(1, 128)
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    cfg = checkpoint.config(max_tokens=9, weight_dtype="file")
    assert cfg.shared_ffn == 64
    with cases.MoE(cfg, threads=1) as moe:
        checkpoint.load(moe, layer=0, number=0)
        assert not moe.summary().weight_errors.any()
        kept = moe(arrays(9, 128))
    with cases.MoE(checkpoint.config(max_tokens=9), threads=1) as moe:
        checkpoint.load(moe, layer=0, number=0)
        expanded = moe(arrays(9, 128))
    assert np.abs(kept - expanded).max() < 1e-5 * np.abs(expanded).max()


def test_layers_that_are_left_plain_are_plain(tmp_path):
    config, tensors, _ = olmoe(CASES["awq"])
    config["num_hidden_layers"] = 2
    two = {**config, "num_hidden_layers": 2}
    del two["quantization_config"]
    tensors |= {name: array for name, array in plain(config=two).items() if ".1.mlp" in name}
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    assert checkpoint.layers == (0, 1)
    assert [checkpoint.weight_type(n) is None for n in (0, 1)] == [False, True]


# ---- what is refused -----------------------------------------------------------------------------------------------


def put(name, value):
    """A function that changes a tensor of expert 1. value: (place, entry), a whole tensor, or None to remove it."""

    def change(tensors):
        if isinstance(value, tuple):
            tensors[EXPERT + name] = tensors[EXPERT + name].copy()
            tensors[EXPERT + name][value[0]] = value[1]
        elif value is None:
            del tensors[EXPERT + name]
        else:
            tensors[EXPERT + name] = value

    return change


HALF = np.float16


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("gptq", put("scales", ((1, 3), np.nan)), "up_proj.scales' has a scale of nan for group 1 of output 3"),
        (
            "gptq",
            put("scales", ((0, 2), 0)),
            "scale of 0.0 for group 0 of output 2, but scales must be finite and not ze",
        ),
        ("awq", put("scales", ((2, 0), np.inf)), "has a scale of inf for group 2 of output 0"),
        ("gptq", put("scales", np.ones((3, 64), HALF)), "up_proj.scales' must have shape [4, 64], as config.json says"),
        ("gptq", put("scales", np.ones((4, 64), np.int32)), "must have dtype F16 or BF16 or F32, got I32"),
        ("gptq", put("qweight", np.zeros((8, 64), np.int32)), "up_proj.qweight' must have shape [16, 64]"),
        ("gptq", put("qzeros", None), "has no tensor 'model.layers.0.mlp.experts.1.up_proj.qzeros'"),
        (
            "gptq",
            put("qzeros", (slice(None), -1)),
            "stores 15 as a zero point, which some readers of this format take as 0 and others as 16",
        ),
        (
            "gptq symmetric",
            put("qzeros", (slice(None), 0)),
            "zero point 1, but quantization_config says sym, for which i",
        ),
        ("gptq", put("g_idx", (slice(0, 2), [1, 0])), "up_proj.g_idx' says that groups do not follow each other (act"),
        ("awq", put("qzeros", np.zeros((4, 16), np.int32)), "up_proj.qzeros' must have shape [4, 8]"),
        ("awq", put("qweight", np.zeros((128, 8), np.float32)), "up_proj.qweight' must have dtype I32, got F32"),
        (
            "int4 in words",
            put("weight_scale", np.ones((64, 3), np.float32)),
            "has 3 groups for 128 inputs, but quantizatio",
        ),
        ("int4 in words", put("weight_scale", ((3, 1), 0)), "up_proj.weight_scale' has a scale of 0.0 for group 1 of"),
        ("int4 in words", put("weight_packed", np.zeros((64, 10), np.int32)), "shape [64, 16] or [64, 32] for 4 or 8"),
        ("int4 in words", put("weight_shape", np.array([64, 120])), "says [64, 120], but config.json says [64, 128]"),
        (
            "int4 in words",
            put("weight_g_idx", np.arange(128, dtype=np.int32)[::-1] // 32),
            "weight_g_idx' says that groups do not",
        ),
        (
            "int4 with zero points in bytes",
            put("weight_zero_point", ((0, 0), 8)),
            "weight_zero_point' has zero points of more than 4 bits",
        ),
        ("int4 with zero points in words", put("weight_zero_point", np.zeros((9, 4), np.int32)), "must have shape [8"),
        ("mxfp4 in bytes", put("weight_scale", ((5, 1), 255)), "weight_scale' has a scale of nan for group 1 of outp"),
        ("int8 in groups", put("weight_zero_point", np.zeros((64, 3), np.int8)), "dtype I8 and shape [64, 4], as the"),
        ("int8 in groups", put("weight_scale", np.ones((64, 3), np.float32)), "must have shape"),
        ("fp8 by row", put("weight_scale", ((7, 0), 0)), "weight_scale' has a scale of 0.0 for group 0 of output 7"),
        ("fp8 in blocks", put("weight", ((3, 4), np.nan)), "up_proj.weight' cannot be used: codes of fp8 must be num"),
        ("fp8 in blocks", put("weight_scale_inv", ((0, 0), 1e37)), "up_proj.weight' cannot be used: scales times"),
        ("fp8 in blocks", put("weight_scale_inv", None), "has dtype F8_E4M3 and no scales"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, case, change, words):
    checkpoint = opened(tmp_path, CASES[case], change)
    with pytest.raises(CheckpointError) as error:
        checkpoint.arrays(0, 1, packed=True)
    assert words in str(error.value)
    assert "model.safetensors" in str(error.value) or "has no tensor" in words


def test_an_unset_order_of_groups_is_the_order_of_k(tmp_path):
    """compressed-tensors writes -1 for each k if the order is not set."""
    unset = put("weight_g_idx", np.full(128, -1, np.int32))
    opened(tmp_path, CASES["int4 in words"], unset).arrays(0, 1, packed=True)


def test_gptq_without_the_order_of_groups(tmp_path):
    opened(tmp_path / "in order", CASES["gptq"], put("g_idx", None)).arrays(0, 1)
    checkpoint = opened(tmp_path / "act-order", CASES["gptq"], put("g_idx", None), desc_act=True)
    with pytest.raises(CheckpointError, match=r"up_proj\.qweight' has no g_idx, but quantization_config says desc_act"):
        checkpoint.check(0)


def test_a_group_that_does_not_divide_is_refused(tmp_path):
    config, tensors, _ = olmoe(CASES["gptq"], {**packed_files.PACKED, "hidden_size": 160})
    config["quantization_config"]["group_size"] = 128
    with pytest.raises(CheckpointError, match=r"must have a multiple of 128 inputs, .*, got 160"):
        aristos.Checkpoint(write(tmp_path, config, tensors)).check(0)


def test_experts_of_several_types_are_refused(tmp_path):
    case = CASES["int4 in words"]

    def plain_down(tensors):
        found, _ = packed_files.pack_quantized(8, 32)(np.random.default_rng(1), 128, 64)
        for e in range(2):
            tensors |= {f"model.layers.0.mlp.experts.{e}.down_proj.{end}": array for end, array in found.items()}

    checkpoint = opened(tmp_path / "arrays", case, plain_down)
    checkpoint.arrays(0, 1)
    with pytest.raises(CheckpointError, match=r"weights of several types \(up int4 with .*down int8 with"):
        checkpoint.weight_type(0)
    found, _ = packed_files.pack_quantized(8, 32)(np.random.default_rng(1), 64, 128)
    checkpoint = opened(
        tmp_path / "experts", case, lambda t: t.update({EXPERT + end: array for end, array in found.items()})
    )
    checkpoint.arrays(0, 0, packed=True)
    with pytest.raises(
        CheckpointError, match=r"experts\.1\.up_proj\.weight_packed' has type int8 with .* the layer have type int4"
    ):
        checkpoint.arrays(0, 1, packed=True)


@pytest.mark.parametrize(
    ("case", "quantization", "words"),
    [
        ("gptq", {"bits": 3}, "has bits 3, but Aristos reads only 4, 8"),
        ("gptq", {"bits": "4"}, "has bits '4', but Aristos reads only 4, 8"),
        ("gptq", {"group_size": 48}, "has group_size 48, but Aristos reads only -1, 0, 32, 64, 128"),
        ("gptq", {"group_size": [1]}, "has group_size [1], but Aristos reads only"),
        (
            "gptq",
            {"checkpoint_format": "marlin"},
            "has checkpoint_format 'marlin', but Aristos reads only 'gptq', 'gptq_v2'",
        ),
        ("gptq", {"is_marlin_format": True}, "has is_marlin_format"),
        ("awq", {"bits": 8}, "has bits 8, but Aristos reads only 4"),
        ("awq", {"version": "gemv"}, "has version 'gemv', but Aristos reads only 'gemm'"),
        ("awq", {"zero_point": False}, "has zero_point False, but Aristos reads only True"),
        ("int8", {"format": "marlin-24"}, "has format 'marlin-24', but Aristos reads only 'pack-quantized', "),
        (
            "int8",
            {"config_groups": {"a": {"weights": {"num_bits": 3}}}},
            "'a' has num_bits 3, but Aristos reads only 4, 8",
        ),
        ("int8", {"config_groups": {"a": {"weights": {"strategy": "token"}}}}, "'a' has strategy 'token'"),
        ("int8", {"config_groups": {"a": {"weights": {"type": "float", "num_bits": 4}}}}, "has floats of 4 bits"),
        (
            "int8",
            {"config_groups": {"a": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 16}}}},
            "'a' has group_size 16",
        ),
        ("int8", {"config_groups": {"a": {"format": "nvfp4-pack-quantized", "weights": {}}}}, "format 'nvfp4-pack-qu"),
    ],
)
def test_declared_options_that_aristos_does_not_read_are_refused(tmp_path, case, quantization, words):
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path, CASES[case], **quantization)
    assert words in str(error.value)
    assert "config.json: quantization_config" in str(error.value)


@pytest.mark.parametrize(
    ("case", "declared"),
    [
        (CASES["fp8 in blocks"], {"activation_scheme": "dynamic"}),
        (CASES["int8"], {"config_groups": {"a": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}}}),
    ],
)
def test_declared_quantisation_of_inputs_is_noted(tmp_path, case: Case, declared):
    assert opened(tmp_path / "plain", case).note(0) == ""
    assert "declares quantised inputs" in opened(tmp_path / "declared", case, **declared).note(0)


def test_a_load_warns_once_of_inputs_that_are_not_quantised(tmp_path, recwarn):
    for folder, declared, count in (("plain", {}, 0), ("declared", {"activation_scheme": "dynamic"}, 1)):
        checkpoint = opened(tmp_path / folder, CASES["fp8 in blocks"], **declared)
        with cases.MoE(checkpoint.config(max_tokens=9), threads=1) as moe:
            checkpoint.load(moe, layer=0, number=0)
            checkpoint.load_experts(moe, layer=0, number=0)
        said = [str(each.message) for each in recwarn if "declares quantised inputs" in str(each.message)]
        assert len(said) == count
    assert str(tmp_path / "declared" / "config.json") in said[0]


def test_scales_of_float8_are_read_as_float32(tmp_path):
    """DeepSeek's models have scales of this type, ue8m0."""
    case = CASES["fp8 in blocks"]

    def rounded(tensors):
        for name in tensors:
            if name.endswith("_inv"):
                tensors[name] = tensors[name].astype(ml_dtypes.float8_e8m0fnu)

    checkpoint = opened(tmp_path, case, rounded)
    assert checkpoint.weight_type(0) == packed("fp8")
    assert np.array_equal(checkpoint.arrays(0, 1, packed=True)["up"].dequantised().T, checkpoint.arrays(0, 1)["up"])
