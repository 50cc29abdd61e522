"""Targets that read model directories with packed experts: one for each form of packed weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from folders import fill, fresh, in_model, parsed
from packed_files import DEEPSEEK_V4

from aristos.checkpoint import Checkpoint
from aristos.errors import AristosError


def model(data: bytes) -> None:
    """Read a model directory whose experts are packed: the type, one expert as it is stored, and one expanded."""
    with fresh("model") as folder:
        fill(folder, parsed(data), in_model)
        found = Checkpoint(folder)
        for number in found.layers[:2]:
            for read in (
                lambda n: found.weight_type(n),
                lambda n: found.arrays(n, 1, packed=True),
                lambda n: found.arrays(n, 0),
            ):
                with contextlib.suppress(AristosError):
                    read(number)


def seeds() -> dict[str, tuple[bytes, ...]]:
    """OLMoEs for each form of packed weights. All bytes of data are equal, and are a usable number in every dtype."""
    config = {
        "model_type": "olmoe",
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "norm_topk_prob": False,
    }
    matrices = {"gate": (32, 64), "up": (32, 64), "down": (64, 32)}
    integers = {"bits": 4, "group_size": 32}
    words = {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}}
    floats = {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32, "type": "float"}}
    rows = {"weights": {"num_bits": 8, "strategy": "channel"}}
    # form -> (quantization_config, tensors of a matrix [o, i]: name -> dtype and shape)
    forms: dict[str, list[tuple[Any, Callable[[int, int], Any]]]] = {
        "gptq": [({"quant_method": "gptq", "sym": False, **integers}, lambda o, i: {
            "qweight": ("I32", [i // 8, o]), "qzeros": ("I32", [i // 32, o // 8]), "scales": ("F16", [i // 32, o]),
        })],
        "awq": [({"quant_method": "awq", "version": "gemm", **integers}, lambda o, i: {
            "qweight": ("I32", [i, o // 8]), "qzeros": ("I32", [i // 32, o // 8]), "scales": ("F16", [i // 32, o]),
        })],
        "compressed": [
            ({"quant_method": "compressed-tensors", "config_groups": {"a": words}}, lambda o, i: {
                "weight_packed": ("I32", [o, i // 8]), "weight_scale": ("BF16", [o, i // 32]),
                "weight_zero_point": ("I32", [o // 8, i // 32]),
            }),
            ({"quant_method": "compressed-tensors", "config_groups": {"a": floats}}, lambda o, i: {
                "weight_packed": ("U8", [o, i // 2]), "weight_scale": ("U8", [o, i // 32]),
            }),
            ({"quant_method": "compressed-tensors", "config_groups": {"a": rows}}, lambda o, i: {
                "weight": ("I8", [o, i]), "weight_scale": ("F32", [o, 1]), "weight_zero_point": ("I8", [o, 1]),
            }),
        ],
        "fp8": [({"quant_method": "fp8", "activation_scheme": "dynamic"}, lambda o, i: {
            "weight": ("F8_E4M3", [o, i]), "weight_scale_inv": ("F32", [1, 1]),
        })],
        "bitsandbytes": [({"quant_method": "bitsandbytes", "load_in_8bit": True}, lambda o, i: {
            "weight": ("I8", [o, i]), "SCB": ("F32", [o]),
        })],
    }  # fmt: skip
    found = {}
    for form, each_form in forms.items():
        files = []
        for quantization, tensors in each_form:
            p, shapes = "model.layers.0.mlp.", {"model.layers.0.mlp.gate.weight": ("F32", [2, 64])}
            for e in range(2):
                for name, (out, depth) in matrices.items():
                    each = tensors(out, depth)
                    shapes |= {f"{p}experts.{e}.{name}_proj.{end}": its for end, its in each.items()}
            files.append({"config.json": {**config, "quantization_config": quantization}, **one_file(shapes)})
        found[form] = tuple(json.dumps(each).encode() for each in files)
    oss = {
        "model_type": "gpt_oss",
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 1,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    p = "model.layers.0.mlp."
    shapes = {
        p + "router.weight": ("F32", [2, 64]),
        p + "router.bias": ("F32", [2]),
        p + "experts.gate_up_proj_blocks": ("U8", [2, 64, 2, 16]),
        p + "experts.gate_up_proj_scales": ("U8", [2, 64, 2]),
        p + "experts.gate_up_proj_bias": ("F32", [2, 64]),
        p + "experts.down_proj_blocks": ("U8", [2, 64, 1, 16]),
        p + "experts.down_proj_scales": ("U8", [2, 64, 1]),
        p + "experts.down_proj_bias": ("F32", [2, 64]),
    }
    found["mxfp4"] = (json.dumps({"config.json": oss, **one_file(shapes)}).encode(),)
    deepseek = {**DEEPSEEK_V4, "hidden_size": 64, "moe_intermediate_size": 32}
    p = "layers.0.ffn."
    shapes = {p + "gate.weight": ("F32", [2, 64]), p + "gate.bias": ("F32", [2])}
    for name, (out, depth) in {"w1": (32, 64), "w3": (32, 64), "w2": (64, 32)}.items():
        for e in range(2):
            shapes[f"{p}experts.{e}.{name}.weight"] = ("I8", [out, depth // 2])
            shapes[f"{p}experts.{e}.{name}.scale"] = ("F8_E8M0", [out, depth // 32])
        shapes[f"{p}shared_experts.{name}.weight"] = ("F8_E4M3", [out, depth])
        shapes[f"{p}shared_experts.{name}.scale"] = ("F8_E8M0", [1, 1])
    return found | {"fp4": (json.dumps({"config.json": deepseek, **one_file(shapes)}).encode(),)}


def one_file(shapes: dict[str, Any]) -> dict[str, Any]:
    """A safetensors file of tensors by (dtype, shape)."""
    sizes = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2}
    found, at = {}, 0
    for name, (kind, shape) in shapes.items():
        end = at + sizes.get(kind, 1) * int(np.prod(shape))
        found[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
        at = end
    return {"model.safetensors": {"header": found, "zeros": at, "byte": 0x3C}}
