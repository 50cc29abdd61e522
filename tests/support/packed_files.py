"""Tensors of packed weights for small model directories, written word by word, and the weights that they stand for.

Nothing here comes from the readers: words are made of Python integers, weights are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from model_files import OLMOE, arrays

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
PACKED = {**OLMOE, "hidden_size": 128, "intermediate_size": 64, "num_experts": 2, "num_hidden_layers": 1}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each nibble of a word

DEEPSEEK_V4 = {  # fp4 experts, fp8 elsewhere
    "model_type": "deepseek_v4",
    "hidden_size": 128,
    "moe_intermediate_size": 64,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 1,
    "num_hash_layers": 0,
    "n_shared_experts": 1,
    "expert_dtype": "fp4",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}

Written = tuple[dict[str, np.ndarray], np.ndarray]  # tensors by the name after the projection's; weights [out, in]


def words(codes: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """[..., n] codes -> [..., ceil(n bits / 32)] int32, the first code in the lowest bits."""
    each = 32 // bits
    flat = codes.reshape(-1, codes.shape[-1])
    found = np.zeros((len(flat), -(-codes.shape[-1] // each)), np.int64)
    for row, line in zip(found, flat):
        for at, code in enumerate(line):
            slot = order.index(at % each) if order else at % each
            row[at // each] += int(code) << (bits * slot)
    return found.astype(np.uint32).view(np.int32).reshape(*codes.shape[:-1], -1)


def grouped(values: np.ndarray, depth: int) -> np.ndarray:
    """[groups, out] -> [depth, out] float64: each k gets the value of its group."""
    size = depth // len(values)
    return np.stack([np.asarray(values[k // size], np.float64) for k in range(depth)])


def integers(rng: Any, out: int, depth: int, bits: int, group: int, dtype: Any = np.float16) -> tuple[np.ndarray, ...]:
    """Random (codes [depth, out], zero points [groups, out] from 1 on, scales [groups, out], weights [out, in])."""
    groups = depth // group if group else 1
    codes = rng.integers(0, 1 << bits, (depth, out))
    zeros = rng.integers(1, 1 << bits, (groups, out))
    scales = rng.uniform(0.01, 0.1, (groups, out)).astype(dtype)
    return codes, zeros, scales, (grouped(scales, depth) * (codes - grouped(zeros, depth))).T


def gptq(bits: int = 4, group: int = 32, sym: bool = False, offset: int = 1, dtype: Any = np.float16) -> Callable:
    """Tensors of GPTQ; offset: what the format subtracts from zero points."""

    def write(rng: Any, out: int, depth: int) -> Written:
        codes, zeros, scales, weights = integers(rng, out, depth, bits, group, dtype)
        if sym:
            zeros = np.full_like(zeros, 1 << (bits - 1))
            weights = (grouped(scales, depth) * (codes - (1 << (bits - 1)))).T
        tensors = {
            "qweight": words(codes.T, bits).T,
            "qzeros": words(zeros - offset, bits),
            "scales": scales,
            "g_idx": np.array([k // (group or depth) for k in range(depth)], np.int32),
        }
        return tensors, weights

    return write


def awq(group: int = 32) -> Callable:
    def write(rng: Any, out: int, depth: int) -> Written:
        codes, zeros, scales, weights = integers(rng, out, depth, 4, group)
        packed = {"qweight": words(codes, 4, AWQ_ORDER), "qzeros": words(zeros, 4, AWQ_ORDER)}
        return {**packed, "scales": scales}, weights

    return write


def pack_quantized(bits: int = 4, group: int = 32, zeros: str = "", dtype: Any = ml_dtypes.bfloat16) -> Callable:
    """Tensors of compressed-tensors. zeros: how zero points are stored, "words" or "int8"; "" if there are none."""

    def write(rng: Any, out: int, depth: int) -> Written:
        codes, points, scales, weights = integers(rng, out, depth, bits, group, dtype)
        tensors = {
            "weight_packed": words(codes.T, bits),
            "weight_scale": scales.T,
            "weight_shape": np.array([out, depth], np.int64),
        }
        middle = 1 << (bits - 1)
        if zeros == "words":
            tensors["weight_zero_point"] = words(points, bits).T
        elif zeros == "int8":
            tensors["weight_zero_point"] = (points - middle).T.astype(np.int8)
        else:
            weights = (grouped(scales, depth) * (codes - middle)).T
        return tensors, weights

    return write


def mxfp4_pack(rng: Any, out: int, depth: int) -> Written:
    """Tensors of compressed-tensors' mxfp4-pack-quantized."""
    stored, exponents, weights = fp4(rng, out, depth)
    return {"weight_packed": stored, "weight_scale": exponents}, weights


def fp4(rng: Any, out: int, depth: int) -> tuple[np.ndarray, ...]:
    """(bytes of two codes [out, in / 2], exponents [out, in / 32], weights [out, in]) of mxfp4."""
    stored = rng.integers(0, 256, (out, depth // 2)).astype(np.uint8)
    exponents = rng.integers(110, 140, (out, depth // 32)).astype(np.uint8)
    weights = np.zeros((out, depth))
    for row in range(out):
        for k in range(depth):
            code = int(stored[row, k // 2]) >> 4 * (k % 2) & 15
            weights[row, k] = E2M1[code & 7] * (-1) ** (code >> 3) * 2.0 ** (int(exponents[row, k // 32]) - 127)
    return stored, exponents, weights


def fp8(rng: Any, out: int, depth: int) -> np.ndarray:
    """Random codes of e4m3 that are numbers."""
    return rng.uniform(-400, 400, (out, depth)).astype(ml_dtypes.float8_e4m3fn)


def fp8_blocks(rng: Any, out: int, depth: int) -> Written:
    codes = fp8(rng, out, depth)
    scales = rng.uniform(0.01, 0.1, (-(-out // 128), -(-depth // 128))).astype(np.float32)
    each = [[float(scales[o // 128, k // 128]) for k in range(depth)] for o in range(out)]
    return {"weight": codes, "weight_scale_inv": scales}, codes.astype(np.float64) * each


def fp8_rows(dtype: Any = ml_dtypes.bfloat16, shape: Callable = lambda out: (out, 1)) -> Callable:
    """Tensors of compressed-tensors' float-quantized: one scale for each output, or one for all."""

    def write(rng: Any, out: int, depth: int) -> Written:
        codes = fp8(rng, out, depth)
        scales = rng.uniform(0.01, 0.1, shape(out)).astype(dtype)
        each = np.broadcast_to(scales.astype(np.float64).reshape(-1, 1), (out, depth))
        return {"weight": codes, "weight_scale": scales}, codes.astype(np.float64) * each

    return write


def int8(group: int = 0, zeros: bool = False) -> Callable:
    """Tensors of compressed-tensors' int-quantized."""

    def write(rng: Any, out: int, depth: int) -> Written:
        codes, points, scales, weights = integers(rng, out, depth, 8, group, np.float32)
        tensors = {"weight": (codes.T - 128).astype(np.int8), "weight_scale": scales.T}
        if zeros:
            tensors["weight_zero_point"] = (points.T - 128).astype(np.int8)
        else:
            weights = (grouped(scales, depth) * (codes - 128)).T
        return tensors, weights

    return write


def bitsandbytes(rng: Any, out: int, depth: int) -> Written:
    codes, largest = rng.integers(-128, 128, (out, depth)).astype(np.int8), rng.uniform(1, 2, out).astype(np.float32)
    scales = (largest / np.float32(127)).astype(np.float64)
    return {"weight": codes, "SCB": largest}, codes * scales[:, None]


@dataclass(frozen=True)
class Case:
    """write: the tensors of one matrix. config: quantization_config. type: the arguments of `aristos.packed`."""

    write: Callable
    config: Mapping[str, Any]
    type: tuple[str, Mapping[str, Any]]


def _gptq(config: Mapping[str, Any], bits: int, group: int, zeros: bool, **how: Any) -> Case:
    base = {"quant_method": "gptq", "bits": bits, "group_size": group or -1, "sym": not zeros, "desc_act": False}
    write = gptq(bits, group, not zeros, **how)
    scale = np.dtype(how.get("dtype", np.float16)).name
    return Case(write, {**base, **config}, (f"int{bits}", {"group": group, "scale": scale, "zeros": zeros}))


def _compressed(write: Callable, kind: tuple[str, Mapping[str, Any]], form: str, **weights: Any) -> Case:
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": weights}}}
    return Case(write, config, kind)


AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
CASES: dict[str, Case] = {
    "gptq": _gptq({}, 4, 32, True),
    "gptq symmetric": _gptq({}, 4, 64, False, dtype=ml_dtypes.bfloat16),
    "gptq 8 bits": _gptq({}, 8, 32, True),
    "gptq 8 bits symmetric by column": _gptq({}, 8, 0, False),
    "gptq second version": _gptq({"checkpoint_format": "gptq_v2"}, 4, 32, True, offset=0),
    "awq": Case(awq(), {**AWQ, "group_size": 32}, ("int4", {"group": 32, "scale": "float16", "zeros": True})),
    "awq by column": Case(awq(0), {**AWQ, "group_size": -1}, ("int4", {"group": 0, "scale": "float16", "zeros": True})),
    "int4 in words": _compressed(
        pack_quantized(), ("int4", {"group": 32, "scale": "bfloat16"}), "pack-quantized",
        num_bits=4, strategy="group", group_size=32, symmetric=True, type="int",
    ),
    "int4 with zero points in words": _compressed(
        pack_quantized(zeros="words"), ("int4", {"group": 32, "scale": "bfloat16", "zeros": True}), "pack-quantized",
        num_bits=4, strategy="group", group_size=32, symmetric=False, type="int",
    ),
    "int4 with zero points in bytes": _compressed(
        pack_quantized(group=64, zeros="int8", dtype=np.float32),
        ("int4", {"group": 64, "scale": "float32", "zeros": True}), "pack-quantized",
        num_bits=4, strategy="group", group_size=64, symmetric=False, type="int",
    ),
    "int8 in words": _compressed(
        pack_quantized(8, 0), ("int8", {"group": 0, "scale": "bfloat16"}), "pack-quantized", num_bits=8,
        strategy="channel", symmetric=True, type="int",
    ),
    "mxfp4 in bytes": _compressed(
        mxfp4_pack, ("mxfp4", {}), "mxfp4-pack-quantized", num_bits=4, strategy="group", group_size=32, type="float"
    ),
    "int8": _compressed(int8(), ("int8", {}), "int-quantized", num_bits=8, strategy="channel", type="int"),
    "int8 in groups": _compressed(
        int8(32, zeros=True), ("int8", {"group": 32, "zeros": True}), "int-quantized", num_bits=8, strategy="group",
        group_size=32, symmetric=False, type="int",
    ),
    "fp8 by row": _compressed(
        fp8_rows(), ("fp8", {"group": 0, "scale": "bfloat16"}), "float-quantized", num_bits=8, strategy="channel",
        type="float",
    ),
    "fp8 whole": _compressed(
        fp8_rows(np.float32, lambda out: (1,)), ("fp8", {"group": 0}), "float-quantized", num_bits=8, strategy="tensor",
        type="float",
    ),
    "fp8 in blocks": Case(fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8", {})),
    "bitsandbytes": Case(bitsandbytes, {"quant_method": "bitsandbytes", "load_in_8bit": True}, ("int8", {})),
}  # fmt: skip


def olmoe(
    case: Case, config: Mapping[str, Any] = PACKED
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[Any, np.ndarray]]:
    """(config, tensors, weights [out, in] by (expert, name)) of an OLMoE-shaped model whose experts are packed."""
    rng = np.random.default_rng(7)
    h, f, experts = config["hidden_size"], config["intermediate_size"], config["num_experts"]
    p = "model.layers.0.mlp."
    tensors, weights = {p + "gate.weight": arrays(experts, h)}, {}
    for e in range(experts):
        for name, (out, depth) in {"gate": (f, h), "up": (f, h), "down": (h, f)}.items():
            found, weights[e, name] = case.write(rng, out, depth)
            tensors |= {f"{p}experts.{e}.{name}_proj.{end}": array for end, array in found.items()}
    return {**config, "quantization_config": dict(case.config)}, tensors, weights
