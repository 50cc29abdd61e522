"""Published MoE models: sizes, router, experts and source of each model, and what Aristos lacks for it.

A source names a file, such as a config.json or a script, or a directory of transformers. The sizes from a directory are
its defaults in transformers 5.24.0. "unchecked" in a source: a size does not come from it. 0 layers: not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ATTENTION = 4  # a layer's attention has this many times hidden^2 parameters: four square matrices


@dataclass(frozen=True)
class Model:
    """A published model's shape.

    Parameters
    ----------
    hidden : int
        H of an MoE layer.
    ffn : int
        F of an MoE layer.
    experts : int
        E of an MoE layer.
    top_k : int
        k of an MoE layer.
    moe_layers : int
        The number of MoE layers; 0: not known.
    layers : int
        The number of all layers; 0: not known.
    gated : bool
        See `MoEConfig`.
    source : str
        Where the numbers are published.
    shared : int, default 0
        The total width of the shared experts of an MoE layer; 0: it has none.
    dense_ffn : int, default 0
        The width of the feed-forward block in the other layers.
    family : str, default ""
        The recipe: a value of model_type that `aristos.Checkpoint` reads; empty if there is none.
    router : mapping, default {}
        Options of `Router`.
    options : mapping, default {}
        Further options of `MoEConfig`.
    lacking : str, default ""
        What Aristos lacks for the model; empty if it lacks nothing.
    outside : bool, default False
        Whether the layer nevertheless runs if the caller brings ids and weights.
    """

    hidden: int
    ffn: int
    experts: int
    top_k: int
    moe_layers: int
    layers: int
    gated: bool
    source: str
    shared: int = 0
    dense_ffn: int = 0
    family: str = ""
    router: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    lacking: str = ""
    outside: bool = False

    @property
    def expert(self) -> int:
        """How many parameters one expert of one layer has."""
        return self._feed_forward(self.ffn)

    @property
    def dense(self) -> int:
        """How many parameters are outside the routed experts, without embeddings and routers."""
        plain = (self.layers - self.moe_layers) * self._feed_forward(self.dense_ffn)
        return ATTENTION * self.hidden**2 * self.layers + self.moe_layers * self._feed_forward(self.shared) + plain

    def _feed_forward(self, width: int) -> int:
        return (3 if self.gated else 2) * self.hidden * width

    @property
    def buildable(self) -> bool:
        """Whether a layer of this shape can be made."""
        return not self.lacking or self.outside


RENORMALISED: dict[str, Any] = {"score": "softmax", "renormalize": True}
PLAIN: dict[str, Any] = {"score": "softmax", "renormalize": False}
TOPK: dict[str, Any] = {"score": "softmax_topk"}
SIGMOID: dict[str, Any] = {"score": "sigmoid", "renormalize": True}
V3 = {**SIGMOID, "scale": 2.5, "groups": 8, "topk_groups": 4, "group_score": "sum_top2"}
SILU: dict[str, Any] = {"activation": "silu"}
GATED_SHARED: dict[str, Any] = {**SILU, "shared_sigmoid": True}
OAI: dict[str, Any] = {"activation": "swiglu_oai", "limit": 7.0}


def _row(
    shape: tuple[int, int, int, int, int, int],
    source: str,
    family: str,
    router: Mapping[str, Any],
    options: Mapping[str, Any] = SILU,
    *,
    shared: int = 0,
    dense: int = 0,
    gated: bool = True,
    lacking: str = "",
    outside: bool = False,
) -> Model:
    """A row of the table. shape: hidden, ffn, experts, top_k, MoE layers, layers."""
    return Model(*shape, gated, source, shared, dense, family, router, options, lacking, outside)


def _scaled(scale: float) -> dict[str, Any]:
    return {**SIGMOID, "scale": scale}


MODELS: dict[str, Model] = {
    "mixtral-8x7b": _row(
        (4096, 14336, 8, 2, 32, 32), "mistralai/Mixtral-8x7B-v0.1 config.json", "mixtral", RENORMALISED,
    ),
    "mixtral-8x22b": _row(
        (6144, 16384, 8, 2, 56, 56), "mistral-community/Mixtral-8x22B-v0.1 config.json", "mixtral", RENORMALISED
    ),
    "olmoe-1b-7b": _row((2048, 1024, 64, 8, 16, 16), "allenai/OLMoE-1B-7B-0924 config.json", "olmoe", PLAIN),
    "flex-olmo": _row((4096, 11008, 7, 5, 32, 32), "transformers models/flex_olmo", "flex_olmo", PLAIN),
    "qwen1.5-moe-a2.7b": _row(
        (2048, 1408, 60, 4, 24, 24), "Qwen/Qwen1.5-MoE-A2.7B config.json", "qwen2_moe", PLAIN, GATED_SHARED, shared=5632
    ),
    "qwen2-57b-a14b": _row(
        (3584, 2560, 64, 8, 28, 28), "Qwen/Qwen2-57B-A14B config.json", "qwen2_moe", PLAIN, GATED_SHARED, shared=20480
    ),
    "qwen3-30b-a3b": _row((2048, 768, 128, 8, 48, 48), "Qwen/Qwen3-30B-A3B config.json", "qwen3_moe", RENORMALISED),
    "qwen3-235b-a22b": _row(
        (4096, 1536, 128, 8, 94, 94), "THUDM/slime scripts/models/qwen3-235B-A22B.sh", "qwen3_moe", RENORMALISED
    ),
    "qwen3-next-80b-a3b": _row(
        (2048, 512, 512, 10, 48, 48), "THUDM/slime scripts/models/qwen3-next-80B-A3B.sh", "qwen3_next", RENORMALISED,
        GATED_SHARED, shared=512,
    ),
    "qwen3.5-35b-a3b": _row(
        (2048, 512, 256, 8, 40, 40), "THUDM/slime scripts/models/qwen3.5-35B-A3B.sh", "qwen3_5_moe_text", RENORMALISED,
        GATED_SHARED, shared=512,
    ),
    "deepseek-moe-16b": _row(
        (2048, 1408, 64, 6, 27, 28), "deepseek-ai/deepseek-moe-16b-base config.json", "deepseek", PLAIN, shared=2816,
        dense=10944
    ),
    "deepseek-v2-lite": _row(
        (2048, 1408, 64, 6, 26, 27), "deepseek-ai/DeepSeek-V2-Lite config.json", "deepseek_v2", PLAIN, shared=2816,
        dense=10944,
    ),
    "deepseek-v2": _row(
        (5120, 1536, 160, 6, 59, 60), "deepseek-ai/DeepSeek-V3 inference/configs/config_236B.json", "deepseek_v2",
        {**PLAIN, "scale": 16.0, "groups": 8, "topk_groups": 3, "group_score": "max"}, shared=3072, dense=12288,
    ),
    "deepseek-v3": _row(
        (7168, 2048, 256, 8, 58, 61), "deepseek-ai/DeepSeek-V3 inference/configs/config_671B.json", "deepseek_v3", V3,
        shared=2048, dense=18432,
    ),
    "deepseek-v4-flash": _row(
        (4096, 2048, 256, 6, 43, 43), "transformers models/deepseek_v4", "deepseek_v4",
        {"score": "sqrtsoftplus", "renormalize": True, "scale": 1.5}, {**SILU, "limit": 10.0}, shared=2048,
    ),
    "kimi-k2": _row(
        (7168, 2048, 384, 8, 60, 61), "MoonshotAI/Kimi-K2 README.md", "kimi_k2", _scaled(2.827), shared=2048,
        dense=18432
    ),
    "moonlight-16b-a3b": _row(
        (2048, 1408, 64, 6, 26, 27), "THUDM/slime scripts/models/moonlight.sh", "deepseek_v3", _scaled(2.446),
        shared=2816, dense=11264,
    ),
    "kimi-linear-48b": _row(
        (2304, 1024, 256, 8, 26, 27), "transformers models/kimi_linear", "kimi_linear", _scaled(2.446), shared=1024,
        dense=9216,
    ),
    "glm-4.5-355b": _row(
        (5120, 1536, 160, 8, 89, 92), "THUDM/slime scripts/models/glm4.5-355B-A32B.sh", "glm4_moe", _scaled(2.5),
        shared=1536, dense=12288,
    ),
    "glm-4.5-air-106b": _row(
        (4096, 1408, 128, 8, 45, 46), "THUDM/slime scripts/models/glm4.5-106B-A12B.sh", "glm4_moe", _scaled(1.0),
        shared=1408, dense=10944,
    ),
    "glm-4.7-flash": _row(
        (2048, 1536, 64, 4, 46, 47), "THUDM/slime scripts/models/glm4.7-30B-A3B.sh", "glm4_moe_lite", _scaled(1.8),
        shared=1536, dense=10240,
    ),
    "glm-5": _row(
        (6144, 2048, 256, 8, 75, 78), "THUDM/slime scripts/models/glm5-744B-A40B.sh", "glm_moe_dsa", _scaled(2.5),
        shared=2048, dense=12288,
    ),
    "dots.llm1": _row(
        (4096, 1408, 128, 6, 61, 62), "rednote-hilab/dots.llm1.base config.json; layers unchecked", "dots1",
        _scaled(2.5), shared=2816, dense=10944,
    ),
    "minimax-text-01": _row(
        (6144, 9216, 32, 2, 0, 0), "transformers models/minimax; unchecked", "minimax", RENORMALISED,
    ),
    "minimax-m2": _row((3072, 1536, 256, 8, 62, 62), "THUDM/slime scripts/models/minimax-m2.sh", "minimax_m2", SIGMOID),
    "minimax-m3": _row(
        (6144, 3072, 128, 4, 60, 60), "transformers models/minimax_m3_vl", "minimax_m3_vl_text", _scaled(2.0), OAI,
        shared=3072,
    ),
    "ling-3.0-flash": _row(
        (2560, 768, 512, 8, 40, 42), "transformers models/bailing_hybrid", "bailing_hybrid", V3, shared=768, dense=6144
    ),
    "hunyuan-large": _row(
        (6400, 18304, 16, 1, 0, 0), "tencent/Tencent-Hunyuan-Large config.json", "hunyuan", PLAIN, shared=18304
    ),
    "hunyuan-a13b": _row(
        (4096, 3072, 64, 8, 32, 32), "transformers models/hunyuan_v1_moe; unchecked", "hunyuan_v1_moe", RENORMALISED,
        shared=3072,
    ),
    "hy3": _row(
        (4096, 1536, 192, 8, 79, 80), "transformers models/hy_v3", "hy_v3", _scaled(2.826), shared=1536, dense=13312
    ),
    "ernie-4.5-21b-a3b": _row(
        (2560, 1536, 64, 6, 0, 0), "transformers models/ernie4_5_moe", "ernie4_5_moe", RENORMALISED, shared=3072
    ),
    "step-3.7-flash": _row(
        (4096, 1280, 288, 8, 42, 45), "transformers models/step3p7", "step3p5", SIGMOID, shared=1280, dense=11264,
        lacking="in two layers the limits of the shared expert and of the routed experts differ", outside=True,
    ),
    "gpt-oss-20b": _row(
        (2880, 2880, 32, 4, 24, 24), "openai/gpt-oss-20b config.json", "gpt_oss", TOPK, {**OAI, "bias": True},
    ),
    "gpt-oss-120b": _row(
        (2880, 2880, 128, 4, 36, 36), "openai/gpt-oss gpt_oss/torch/model.py", "gpt_oss", TOPK, {**OAI, "bias": True}
    ),
    "phi-3.5-moe": _row(
        (4096, 6400, 16, 2, 32, 32), "microsoft/Phi-3.5-MoE-instruct config.json", "phimoe",
        {"score": "sparsemixer", "renormalize": False},
    ),
    "llama-4-scout": _row(
        (5120, 8192, 16, 1, 48, 48), "transformers models/llama4", "llama4_text",
        {"score": "sigmoid", "renormalize": False, "weight_on": "input"}, shared=8192,
    ),
    "grok-1": _row((6144, 32768, 8, 2, 0, 0), "xai-org/grok-1 run.py", "", PLAIN, {"activation": "gelu_tanh"}),
    "arctic": _row((7168, 4864, 128, 2, 0, 0), "Snowflake/snowflake-arctic-base config.json", "arctic", RENORMALISED),
    "dbrx": _row((6144, 10752, 16, 4, 40, 40), "databricks/dbrx model/config.json", "dbrx", RENORMALISED),
    "jamba-mini": _row((4096, 14336, 16, 2, 16, 32), "ai21labs/Jamba-v0.1 config.json", "jamba", PLAIN, dense=14336),
    "granite-3.0-1b-a400m": _row(
        (1024, 512, 32, 8, 0, 0), "ibm-granite/granite-3.0-1b-a400m-base config.json", "granitemoe", TOPK
    ),
    "jetmoe-8b": _row(
        (2048, 5632, 8, 2, 24, 24), "jetmoe/jetmoe-8b config.json", "jetmoe", TOPK, {**SILU, "bias": True},
    ),
    "aria": _row((2560, 1664, 64, 6, 0, 0), "transformers models/aria; unchecked", "aria_text", TOPK, shared=3328),
    "switch-base-128": _row(
        (768, 3072, 128, 1, 12, 24), "google/switch-base-128 config.json", "switch_transformers", PLAIN,
        {"activation": "relu"}, dense=3072, gated=False,
    ),
    "nllb-moe-54b": _row(
        (2048, 8192, 128, 2, 12, 48), "facebook/nllb-moe-54b config.json", "nllb-moe", {**RENORMALISED, "scale": 0.8},
        {"activation": "relu", "bias": True}, gated=False, dense=8192,
    ),
    "openmoe-8b": _row(
        (2048, 8192, 32, 2, 0, 0), "OrionZheng/openmoe-8b config.json", "", {**PLAIN, "capacity_factor": 2.0},
    ),
    "longcat-flash": _row(
        (6144, 2048, 512, 12, 28, 28), "transformers models/longcat_flash", "longcat_flash", {**PLAIN, "scale": 6.0},
        {**SILU, "identity_experts": 256},
    ),
    "lfm2-8b-a1b": _row((2048, 1792, 32, 4, 0, 0), "transformers models/lfm2_moe", "lfm2_moe", SIGMOID),
    "trinity-mini": _row((2048, 1408, 64, 6, 0, 0), "transformers models/afmoe", "afmoe", SIGMOID, shared=2816),
    "mimo-v2-flash": _row(
        (4096, 2048, 256, 8, 47, 48), "transformers models/mimo_v2_flash", "mimo_v2_flash", SIGMOID, dense=16384
    ),
    "mistral-4": _row(
        (4096, 2048, 128, 4, 36, 36), "transformers models/mistral4", "mistral4", RENORMALISED, shared=2048
    ),
    "cohere2-moe": _row((8192, 22528, 8, 2, 40, 40), "transformers models/cohere2_moe", "cohere2_moe", TOPK),
    "gemma-4-moe": _row(
        (2304, 704, 128, 8, 0, 0), "transformers models/gemma4; unchecked", "gemma4_text", RENORMALISED,
        {"activation": "gelu_tanh"},
    ),
    "zaya1": _row(
        (2048, 2048, 16, 1, 0, 0), "transformers models/zaya", "", PLAIN,
        lacking="its router is a network with a state from the layer before, and may skip the layer", outside=True,
    ),
    "inkling": _row(
        (6144, 3072, 258, 8, 0, 0), "transformers models/inkling; with its two shared experts", "inkling_text",
        _scaled(8.0),
    ),
    "nemotron-3-nano": _row(
        (2688, 1856, 128, 6, 0, 0), "transformers models/nemotron_h; unchecked", "nemotron_h", _scaled(2.5),
        {"activation": "relu2"}, shared=3712, gated=False,
    ),
    "openai-privacy-filter": _row(
        (640, 640, 128, 4, 8, 8), "transformers models/openai_privacy_filter", "openai_privacy_filter", TOPK,
        {**OAI, "bias": True},
    ),
    "doge": _row(
        (1024, 1, 16384, 64, 0, 0), "transformers models/doge", "", RENORMALISED,
        lacking="product keys choose among experts of one neuron, which are padded to 16", outside=True,
    ),
    "switchhead": _row(
        (512, 64, 4, 2, 0, 0), "RobertCsordas/switchhead switchhead/switchhead.py; unchecked", "", SIGMOID,
        lacking="its experts are single matrices of attention",
    ),
}  # fmt: skip
