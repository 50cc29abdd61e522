"""Runs in the environment `transformers`: writes reduced models of many families, and what their MoE blocks compute.

`python tests/hf/models.py FOLDER [FAMILY ...]` writes FOLDER/FAMILY by `save_pretrained`: random weights in shards. It
also writes FOLDER/FAMILY.npz, which has arrays of each MoE block under the name of its module: x [T, H] and y [T, H]
and, if the router returns ids and weights, `dense` [T, E], the weight of every expert. If there is no model, the npz
has only `failed`, the reason.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

TOKENS = 40
COMMON: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8, "num_local_experts": 8,
    "n_routed_experts": 8, "num_experts_per_tok": 3, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "sliding_window": 16, "first_k_dense_replace": 1, "n_group": 4,
    "topk_group": 2,
}  # fmt: skip
SHARED = {"shared_expert_intermediate_size": 40}
SPARSE = ["dense", "sparse", "sparse"]
INDEXER = {"index_head_dim": 16, "index_n_heads": 2}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

# family -> options beside COMMON. "text_config" has the options of the text model inside a composite one
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "olmoe": {"norm_topk_prob": False},
    "qwen2_moe": {**SHARED, "norm_topk_prob": False},
    "qwen3_moe": {"norm_topk_prob": True, "mlp_only_layers": [1]},
    "qwen3_next": {**SHARED, **LINEAR, "norm_topk_prob": True},
    "deepseek_v2": {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.7, "n_shared_experts": 2},
    "deepseek_v3": {"routed_scaling_factor": 2.5, "n_shared_experts": 1, "norm_topk_prob": True},
    "glm4_moe": {"routed_scaling_factor": 1.5, "n_shared_experts": 1, "norm_topk_prob": True},
    "dots1": {"routed_scaling_factor": 2.5, "n_shared_experts": 2, "norm_topk_prob": True},
    "gpt_oss": {"swiglu_limit": 0.7},
    "gpt_oss_mxfp4": {"swiglu_limit": 0.7},
    "granitemoe": {},
    "granitemoe_swa": {"shared_intermediate_size": 40},
    "mellum": {"mlp_layer_types": SPARSE},
    "jamba": {
        "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
        "mamba_d_state": 4, "mamba_d_conv": 2, "mamba_expand": 2, "use_mamba_kernels": False,
    },
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 3, "hidden_size": 64},
    },
    "phimoe": {"num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 3, "moe_num_shared_experts": 2, "moe_layer_start_index": 1},
    "llama4_text": {"num_experts_per_tok": 1, "intermediate_size_mlp": 80, "interleave_moe_layer_step": 2},
    "switch_transformers": {
        "d_model": 64, "d_kv": 16, "d_ff": 48, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4,
        "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2, "expert_capacity": 4,
    },
    "flex_olmo": {"norm_topk_prob": False},
    "minimax": {"layer_types": ["full_attention"] * 3, "block_size": 16},
    "minimax_m2": {},
    "qwen3_5_moe_text": {**SHARED, **LINEAR},
    "deepseek_v32": {"mlp_layer_types": SPARSE, "n_shared_experts": 1, "routed_scaling_factor": 2.5, **INDEXER},
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe", "moe"], "swiglu_limit": 0.5},
    "glm4_moe_lite": {"n_shared_experts": 1, "routed_scaling_factor": 1.8},
    "glm_moe_dsa": {"mlp_layer_types": SPARSE, "n_shared_experts": 1, "routed_scaling_factor": 2.5, **INDEXER},
    "kimi_linear": {"num_shared_experts": 1, "routed_scaling_factor": 2.446},
    "bailing_hybrid": {"num_shared_experts": 1, "routed_scaling_factor": 2.5},
    "hunyuan_v1_moe": {"moe_topk": [3, 3, 3]},
    "hy_v3": {"num_shared_experts": 1, "router_scaling_factor": 2.826},
    "step3p7": {
        "text_config": {
            "share_expert_dim": 40, "mlp_layer_types": SPARSE, "swiglu_limits": [0.0, 0.0, 0.5],
            "swiglu_limits_shared": [0.0, 0.0, 0.5], "moe_router_scaling_factor": 1.5,
        },
        "vision_config": {
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56, "mlp_ratio": 2.0,
        },
    },
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "full_attention"]},
    "afmoe": {"num_shared_experts": 2, "num_dense_layers": 1, "route_scale": 1.3},
    "mimo_v2_flash": {},
    "mistral4": {"head_dim": 24, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "cohere2_moe": {"num_shared_experts": 1},
    "granitemoeshared": {"shared_intermediate_size": 40},
    "granitemoehybrid": {"shared_intermediate_size": 40, "layer_types": ["attention"] * 3},
    "jetmoe": {"num_experts_per_tok": 2, "kv_channels": 16, "num_key_value_heads": 4},
    "aria_text": {"moe_num_experts": 8, "moe_topk": 3, "moe_num_shared_experts": 2},
    "nllb-moe": {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2,
        "router_bias": True,
    },
    "longcat_flash": {
        "num_layers": 2, "zero_expert_num": 4, "expert_ffn_hidden_size": 48, "ffn_hidden_size": 80, "moe_topk": 3,
    },
    "gemma4_text": {"enable_moe_block": True, "top_k_experts": 2},
    "nemotron_h": {"n_shared_experts": 1, "moe_shared_expert_intermediate_size": 40},
    "openai_privacy_filter": {"swiglu_limit": 0.7},
    "exaone_moe": {"num_shared_experts": 1, "routed_scaling_factor": 2.5},
    "minimax_m3_vl_text": {
        "shared_intermediate_size": 40, "dense_intermediate_size": 80, "swiglu_limit": 0.7,
    },
    "qwen3_vl_moe_text": {},
    "solar_open": {"n_shared_experts": 1},
    "inkling_text": {},
    "doge": {"is_moe": True},
    "zaya": {"num_experts_per_tok": 1},
    "glm4v_moe_text": {"n_shared_experts": 1},
}  # fmt: skip
GENERATED = ("olmoe", "qwen3_moe")  # families for which examples/generate.py is tested too
PROMPTS = [[11, 7, 3], [5], [9, 8, 7, 6, 5, 4, 3], [100, 101], [64, 32, 16, 8]]
NEW = 12
BLOCK = re.compile(
    r"(MoE|Moe|SparseMoeBlock|SparseMLP|DbrxFFN|TextMoe|MoEBlock|MoELayer|GptOssMLP|PrivacyFilterMLP"
    r"|Gemma4TextDecoderLayer)$"
)
ROUTER = re.compile(r"(Router|Gate|Gating)$")


def config_of(family: str, options: dict[str, Any]) -> Any:
    """The family's config, with `options` and the reduced sizes in COMMON that it knows."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    default = kind()
    known = {**default.to_dict(), **getattr(kind, "attribute_map", {})}
    renamed = getattr(kind, "attribute_map", {})
    chosen = {key: value for key, value in COMMON.items() if key in known and key not in renamed}
    for key, mapped in renamed.items():
        if key in COMMON and mapped not in options and key not in options:
            chosen[mapped] = COMMON[key]
    layers = options.get("num_hidden_layers", COMMON["num_hidden_layers"])
    for key in ("layer_types", "mlp_layer_types", "swiglu_limits", "compress_ratios"):
        if isinstance(known.get(key), list) and key not in options and key in known:
            chosen[key] = list(known[key])[:layers]
    return kind(**{**chosen, **copy.deepcopy(options)})


def composite(family: str, options: dict[str, Any]) -> Any:
    """A config with a text model of the common sizes inside."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    text = type(CONFIG_MAPPING[family]().text_config).model_type
    inner = config_of(text, options["text_config"]).to_dict()
    return CONFIG_MAPPING[family](**{**options, "text_config": inner})


def randomise(model: Any) -> None:
    """Draw weights that are large enough to avoid near ties in routing. Routers' biases and buffers are not zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or "inv_freq" in name:
                continue
            if tensor.ndim > 1 and "norm" not in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5)
            elif re.search(r"bias|statics", name):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif re.search(r"router.*scale|pre_feedforward_layernorm_2|global_scale", name):  # gemma4's, inkling's
                tensor.copy_(1 + 0.3 * torch.randn(tensor.shape, generator=generator))
        for name, tensor in model.named_buffers():
            if name.endswith("tid2eid"):  # three different experts of eight
                for row in tensor:
                    row.copy_(torch.randperm(COMMON["n_routed_experts"], generator=generator)[: len(row)])


def dense_of(output: Any, experts: int, factor: float) -> np.ndarray | None:
    """[T, E] weights times factor, from a router's (logits, weights, ids) in any order; None for other outputs."""
    found = [t for t in output if isinstance(t, torch.Tensor)] if isinstance(output, tuple) else []
    ids = [t for t in found if not t.is_floating_point() and t.ndim == 2]
    if len(ids) != 1 or ids[0].shape[1] >= experts:
        return None
    weights = [t for t in found if t.is_floating_point() and t.shape == ids[0].shape]
    if len(weights) != 1:
        return None
    dense = np.zeros((len(ids[0]), experts), np.float32)
    np.put_along_axis(dense, ids[0].numpy(), weights[0].float().numpy(), axis=1)
    return dense * factor


def gemma4(layer: Any, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, y) of the experts in a layer of models/gemma4, which has no module for its block; see the layer's forward."""
    flat = residual[0]
    _, weights, ids = layer.router(flat)
    x = layer.pre_feedforward_layernorm_2(flat)
    return x[None], layer.experts(x, ids, weights)


def nllb(block: Any, x: torch.Tensor) -> torch.Tensor:
    """What a block of models/nllb_moe should compute: the sum of weights times experts' outputs, with its dropout.

    NllbMoeExperts of transformers 5.24 uses the mask of each token's first expert as ids, so that all rows go to
    experts 0 and 1.
    """
    _, weights, _ = block.router(x[0])
    experts = block.experts
    found = [experts[f"expert_{e}"](x[0]) * weights[:, e : e + 1] for e in range(block.num_experts)]
    return sum(found) * (1 - experts.moe_token_dropout)


def run(block: Any, x: torch.Tensor, found: dict[str, np.ndarray], name: str) -> tuple[torch.Tensor, Any]:
    """(x, y) of a block. If the block chooses experts by token ids, these are added to `found`."""
    kind = type(block).__name__
    if kind == "Gemma4TextDecoderLayer":
        return gemma4(block, x)
    if kind == "NllbMoeSparseMLP":
        return x, nllb(block, x)
    if getattr(block, "is_hash", False):
        tokens = torch.arange(TOKENS)[None] * 3 % COMMON["vocab_size"]
        found[f"{name}.tokens"] = tokens[0].numpy()
        return x, block(x.clone(), tokens)
    return x, block(x.clone())


def blocks(model: Any) -> dict[str, np.ndarray]:
    """The arrays of every MoE block, and the blocks' names under `names`."""
    found: dict[str, np.ndarray] = {}
    names = []
    c = model.config.get_text_config()
    width = getattr(c, "hidden_size", None) or c.d_model
    generator = torch.Generator().manual_seed(3)
    for name, module in model.named_modules():
        held = any("xpert" in n or "input_linear" in n for n, _ in module.named_parameters())
        if not BLOCK.search(type(module).__name__) or not held:
            continue
        if any(name.startswith(other + ".") for other in names):
            continue
        x = torch.randn((1, TOKENS, width), generator=generator)
        routed: list[Any] = []
        hooks = [
            m.register_forward_hook(lambda _m, _i, out, routed=routed: routed.append(out))
            for m in module.modules()
            if ROUTER.search(type(m).__name__)
        ]
        with torch.no_grad():
            x, y = run(module, x, found, name)
        for hook in hooks:
            hook.remove()
        y = y[0] if isinstance(y, tuple) else y
        beside = getattr(model.get_submodule(name.rpartition(".")[0]), "shared_mlp", None)
        if beside is not None:  # in models/granitemoeshared the decoder adds the shared expert
            with torch.no_grad():
                y = y + beside(x)
        found[f"{name}.x"], found[f"{name}.y"] = x[0].numpy(), y.reshape(TOKENS, width).numpy()
        experts = max(getattr(c, k, 0) or 0 for k in ("num_experts", "num_local_experts", "n_routed_experts"))
        experts += getattr(c, "zero_expert_num", 0) or 0
        # these models scale weights after the router: by k, by a factor, or by 0.5 for the mean with a shared expert
        scales = {
            "openai_privacy_filter": "num_experts_per_tok",
            "step3p5": "moe_router_scaling_factor",
            "minimax_m3_vl_text": "routed_scaling_factor",
        }
        factor = 0.5 if c.model_type == "cohere2_moe" else getattr(c, scales.get(c.model_type, ""), 1.0)
        dense = dense_of(routed[0], experts, factor) if routed else None
        if dense is not None:
            if c.model_type == "gemma4_text":  # the scale of an expert goes to its down projection
                dense /= module.router.per_expert_scale.detach().numpy()
            if c.model_type == "inkling_text":  # so does the global scale; shared experts are the last columns
                dense = np.concatenate([dense, routed[0][3].float().numpy()], axis=1)
                dense /= module.gate.global_scale.detach().numpy()
            found[f"{name}.dense"] = dense
        names.append(name)
    found["names"] = np.array(names)
    return found


def greedy(model: Any) -> list[list[int]]:
    """Each prompt and the most likely tokens after it, up to the end of text."""
    sequences = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        for _ in range(NEW):
            with torch.no_grad():
                logits = model(torch.tensor([tokens])).logits[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] == model.config.eos_token_id:
                break
        sequences.append(tokens)
    return sequences


def sparsemixer() -> dict[str, np.ndarray]:
    """Scores [S, E] (as x), and the weights and ids that models/phimoe's own function computes from them in evaluation.

    Most scores are within the function's width of the best one. Rows of small ints have ties, and in one row all scores
    are equal.
    """
    from transformers.models.phimoe.modeling_phimoe import sparsemixer as mix

    generator = torch.Generator().manual_seed(5)
    near = torch.randn((200, 8), generator=generator) * 0.02 + torch.randn((200, 1), generator=generator)
    tied = torch.randint(-2, 3, (60, 8), generator=generator).float()
    logits = torch.cat([near, tied, torch.zeros((1, 8)), torch.randn((40, 8), generator=generator)])
    weights, ids = mix(logits, jitter_eps=0.01, training=False)
    return {f"sparsemixer.{key}": value.numpy() for key, value in (("x", logits), ("weights", weights), ("ids", ids))}


def packed(model: Any) -> dict[str, torch.Tensor]:
    """Random mxfp4 experts of models/gpt_oss by name, as published. The model gets the values of their codes."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(9)
    found = {}
    for name, weight in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = weight.shape
            codes = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator).to(torch.uint8)
            scales = torch.randint(121, 126, codes.shape[:3], generator=generator).to(torch.uint8)
            with torch.no_grad():
                weight.copy_(convert_moe_packed_tensors(codes, scales, dtype=torch.float32))
            found |= {f"{name}_blocks": codes, f"{name}_scales": scales}
    return found


def save_packed(folder: Path, model: Any, found: dict[str, torch.Tensor]) -> None:
    """Write `folder` as `save_pretrained` does, with these tensors for the experts' weights."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if f"{name}_blocks" not in found}
    save_file(kept | found, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))


def make(folder: Path, family: str, options: dict[str, Any]) -> None:
    """Write one family's directory and arrays."""
    kind = family.removesuffix("_mxfp4")
    config = (composite if "text_config" in options else config_of)(kind, options)
    config.dtype = torch.float32
    try:
        model = transformers.AutoModelForCausalLM.from_config(config)
    except ValueError:
        try:
            model = transformers.AutoModelForSeq2SeqLM.from_config(config)
        except ValueError:
            model = transformers.AutoModel.from_config(config)
    model = model.float().eval()
    randomise(model)
    if kind != family:
        save_packed(folder / family, model, packed(model))
    else:
        model.save_pretrained(folder / family, max_shard_size="150KB")
    found = blocks(model)
    if family == "phimoe":
        found |= sparsemixer()
    if family in GENERATED:
        found["generated"] = np.array(json.dumps({"prompts": PROMPTS, "new": NEW, "tokens": greedy(model)}))
    np.savez(folder / f"{family}.npz", **found)


def main(argv: list[str]) -> int:
    torch.set_num_threads(1)
    folder = Path(argv[0])
    folder.mkdir(parents=True, exist_ok=True)
    for family in argv[1:] or FAMILIES:
        try:
            make(folder, family, FAMILIES[family])
            print(f"{family}: written", flush=True)
        except Exception as error:
            np.savez(folder / f"{family}.npz", failed=np.array(f"{type(error).__name__}: {error}"))
            print(f"{family}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            if len(argv) > 1:
                traceback.print_exc()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
