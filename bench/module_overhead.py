"""Times a call of an experts module of transformers beside a call of its layer: one token, in microseconds.

    PYTHONPATH=. PEERS/bin/python bench/module_overhead.py

PEERS is .venv/peers/transformers, which `make test-hf` makes. The layer is tiny (H 64, F 32, 8 experts, k 8), so that
it stays in the caches. Module and layer are called in turns, ten times each.
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded
import numpy as np
import torch
from transformers import AutoConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

import aristos.integrations.transformers as ours
from aristos.integrations.masters import as_numpy
from aristos.integrations.training import layers_of

HIDDEN, FFN, EXPERTS = 64, 32, 8
TURNS, TURN = 300, 10  # turns, and calls in each


def experts_module(dtype: torch.dtype) -> Any:
    """An experts module with random weights."""
    config = AutoConfig.for_model(
        "qwen3_moe", hidden_size=HIDDEN, moe_intermediate_size=FFN, num_experts=EXPERTS, num_experts_per_tok=EXPERTS
    )
    config._experts_implementation = "aristos"
    module = Qwen3MoeExperts(config).to(dtype).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02).requires_grad_(False)
    return module


def seconds(dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Time calls. Returns the seconds of each call of the module, and of each call of its layer."""
    module = experts_module(dtype)
    x, ids, weights = torch.randn(1, HIDDEN).to(dtype), torch.arange(EXPERTS)[None], torch.rand(1, EXPERTS).to(dtype)
    module(x, ids, weights)  # makes the layer
    (layer,) = layers_of(module).values()
    arrays = as_numpy(x), ids.numpy(), weights.float().numpy()
    ways = (lambda: module(x, ids, weights)), (lambda: layer.moe(*arrays))
    found: tuple[list[float], list[float]] = [], []
    for _ in range(TURNS):
        for way, times in zip(ways, found, strict=True):
            for _ in range(TURN):
                begun = time.perf_counter()
                way()
                times.append(time.perf_counter() - begun)
    ours.close(module)
    return np.array(found[0]), np.array(found[1])


def main() -> None:
    torch.set_grad_enabled(False)
    ours.options(max_tokens=1, threads=1)
    print(f"{'':10s}{'':>12s}{'module':>9s}{'layer':>9s}{'overhead':>10s}")
    for dtype in (torch.float32, torch.bfloat16):
        module, layer = seconds(dtype)
        for name, share in (("best", 0.0), ("first tenth", 0.1), ("median", 0.5)):
            whole, alone = 1e6 * np.quantile(module, share), 1e6 * np.quantile(layer, share)
            print(f"{str(dtype)[6:]:10s}{name:>12s}{whole:9.1f}{alone:9.1f}{whole - alone:10.1f}")


if __name__ == "__main__":
    main()
