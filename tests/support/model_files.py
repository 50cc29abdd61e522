"""Small model directories for tests: an independent writer of safetensors files, and an OLMoE-shaped model."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import aristos

WORDS = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "uint8": "U8",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
    "float8_e8m0fnu": "F8_E8M0",
}


def pack(header: Any, data: bytes) -> bytes:
    """The bytes of a file with this header.

    header: bytes, which are written as they are, or a value to write as JSON.
    """
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def header_of(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """(header, data) of a file with these tensors, one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": WORDS[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return header, data


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], shards: int = 1) -> Path:
    """Write a model directory.

    If there are several shards, tensors are dealt to them in turn, and there is an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        (folder / "model.safetensors").write_bytes(pack(*header_of(tensors)))
        return folder
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    where = {name: files[i % shards] for i, name in enumerate(tensors)}
    for file in files:
        own = {name: array for name, array in tensors.items() if where[name] == file}
        (folder / file).write_bytes(pack(*header_of(own)))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


OLMOE = {
    "model_type": "olmoe",
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "num_attention_heads": 4,
    "router_aux_loss_coef": 0.01,
    "rope_theta": 10000.0,
}

E, H, F = OLMOE["num_experts"], OLMOE["hidden_size"], OLMOE["intermediate_size"]


def of(folder: Path, config: Mapping[str, Any]) -> aristos.Checkpoint:
    """The Checkpoint of a directory that has no tensors."""
    (folder / "config.json").write_text(json.dumps(config))
    return aristos.Checkpoint(folder)


def arrays(*shape: int) -> np.ndarray:
    """Random normal values from a fixed seed."""
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def olmoe(dtype: str = "float32", config: Mapping[str, Any] = OLMOE) -> dict[str, np.ndarray]:
    """Tensors of an OLMoE-shaped model by name, with random values from a fixed seed."""
    rng = np.random.default_rng(5)
    h, f = config["hidden_size"], config["intermediate_size"]
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    tensors = {"model.embed_tokens.weight": rng.standard_normal((7, h)).astype(kind)}
    for n in range(config["num_hidden_layers"]):
        p = f"model.layers.{n}."
        tensors[p + "self_attn.q_proj.weight"] = rng.standard_normal((h, h)).astype(kind)
        tensors[p + "mlp.gate.weight"] = rng.standard_normal((config["num_experts"], h)).astype(kind)
        for e in range(config["num_experts"]):
            for name, shape in (("gate", (f, h)), ("up", (f, h)), ("down", (h, f))):
                values = 0.3 * rng.standard_normal(shape)
                tensors[f"{p}mlp.experts.{e}.{name}_proj.weight"] = values.astype(kind)
    return tensors


def fused_fp8(h: int, f: int, experts: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, tensors) of OLMoE's shape with stacked fp8 experts, gate and up in one tensor."""
    config = {
        **OLMOE,
        "hidden_size": h,
        "intermediate_size": f,
        "num_experts": experts,
        "num_hidden_layers": 1,
        "quantization_config": {"quant_method": "fp8"},
    }
    p = "model.layers.0.mlp."
    tensors = {p + "gate.weight": arrays(experts, h)}
    for name, shape in (("gate_up_proj", (experts, 2 * f, h)), ("down_proj", (experts, h, f))):
        tensors[p + "experts." + name] = arrays(*shape).astype(ml_dtypes.float8_e4m3fn)
        scales = np.arange(1, experts + 1, dtype=np.float32)[:, None, None]
        tensors[f"{p}experts.{name}_scale_inv"] = np.tile(scales, (1, -(-shape[1] // 128), -(-shape[2] // 128)))
    return config, tensors


def stacked(tensors: Mapping[str, np.ndarray], layer: int, experts: int) -> dict[str, np.ndarray]:
    """One layer's weights for `aristos.reference`, [in, out] in float32."""
    p = f"model.layers.{layer}.mlp."
    found = {
        name: np.stack(
            [np.asarray(tensors[f"{p}experts.{e}.{name}_proj.weight"], np.float32).T for e in range(experts)]
        )
        for name in ("gate", "up", "down")
    }
    return {**found, "router": np.asarray(tensors[p + "gate.weight"], np.float32).T}
