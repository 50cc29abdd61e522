"""What a training run leaves: curves, and a model directory whose tensors have the names of published checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from aristos.checkpoint.safetensors import save

from .decoder import Params, Shape


class Curves:
    """Losses, validation losses, rows by expert and tokens a second of every step."""

    def __init__(self, shape: Shape, steps: int) -> None:
        self.loss, self.validation, self.speed = (np.full(steps, np.nan) for _ in range(3))
        self.loads = np.zeros((steps, shape.layers, shape.experts), np.int64)

    def add(self, step: int, loss: float, loads: np.ndarray, speed: float) -> None:
        self.loss[step], self.loads[step], self.speed[step] = loss, loads, speed

    def validated(self, step: int, loss: float) -> None:
        self.validation[step] = loss

    def last_validated(self) -> float:
        known = self.validation[np.isfinite(self.validation)]
        return float(known[-1]) if len(known) else float("nan")

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        aside = path.with_name(f".{path.name}.{os.getpid()}.npz")
        np.savez_compressed(aside, **vars(self))
        os.replace(aside, path)

    def read(self, path: Path, steps: int) -> None:
        """Take the first `steps` steps of a file that `write` made, or all if it has fewer."""
        if not path.exists():
            return
        with np.load(path) as file:
            for name, values in vars(self).items():
                count = min(steps, len(values), len(file[name]))
                values[:count] = file[name][:count]


def write(path: Path, shape: Shape, params: Params, moe: Any, comm: Any) -> None:
    """Rank 0 writes config.json and bfloat16 weights, Qwen3-MoE-shaped; others send their experts. Collective."""
    tensors: dict[str, np.ndarray] = {name: value.astype(ml_dtypes.bfloat16) for name, value in params.items()}
    rank = 0 if comm is None else comm.rank
    for layer in range(shape.layers):
        mine = moe.params(layer)
        part = {e: {n: mine[n][i] for n in ("gate", "up", "down")} for i, e in enumerate(moe.placement.mine(rank))}
        every = [part] if comm is None else comm.gather(part)
        p = f"model.layers.{layer}.mlp."
        for e, arrays in sorted((item for held in every or [] for item in held.items()), key=lambda item: item[0]):
            for name, array in arrays.items():
                tensors[f"{p}experts.{e}.{name}_proj.weight"] = np.ascontiguousarray(array.T).astype(ml_dtypes.bfloat16)
        tensors[f"{p}gate.weight"] = np.ascontiguousarray(mine["router"].T).astype(ml_dtypes.bfloat16)
    if rank:
        return
    options = {
        "model_type": "qwen3_moe",
        "hidden_size": shape.hidden,
        "moe_intermediate_size": shape.ffn,
        "intermediate_size": shape.ffn,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "norm_topk_prob": True,
        "num_hidden_layers": shape.layers,
        "mlp_only_layers": [],
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.size,
        "vocab_size": shape.vocabulary,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta,
        "hidden_act": "silu",
        "max_position_embeddings": shape.length,
        "torch_dtype": "bfloat16",
        "byte_level": True,
    }
    path.mkdir(parents=True, exist_ok=True)
    save(path / "model.safetensors", tensors)
    (path / "config.json").write_text(json.dumps(options, indent=1))
