"""Problems of published models on measured machines: shapes and links become the numbers of Equation 1.

A step is training (forward, backward twice as long) or inference (forward). What a machine can do comes from a file of
`aristos topo --measure`, schema `aristos-links/1`. It refuses to guess a machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..topology.links import MIB, SHARE, Links
from ..topology.links import problem as of_machine
from .moving import Moving, compare
from .problem import Infeasible, Problem, count, parse

ITEM = 2  # bytes of a value on the wire and of a weight: bfloat16
STATE = 16  # bytes a parameter in training: weight and gradient in bfloat16; master weight and two moments in float32
ATTENTION = 4  # times hidden^2 parameters of a layer's attention: four square matrices


@dataclass(frozen=True)
class Model:
    """hidden, ffn, experts, top_k: of an MoE layer. moe_layers of layers have experts. source: where it says so.

    shared: the width of an MoE layer's experts that every token uses, together. dense_ffn: of a layer without experts.
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

    @property
    def expert(self) -> int:
        """Parameters of one expert of one layer."""
        return self._feed_forward(self.ffn)

    @property
    def dense(self) -> int:
        """Parameters outside the routed experts, embeddings and routers left out."""
        plain = (self.layers - self.moe_layers) * self._feed_forward(self.dense_ffn)
        return ATTENTION * self.hidden**2 * self.layers + self.moe_layers * self._feed_forward(self.shared) + plain

    def _feed_forward(self, width: int) -> int:
        return (3 if self.gated else 2) * self.hidden * width


MODELS: dict[str, Model] = {
    "mixtral-8x7b": Model(4096, 14336, 8, 2, 32, 32, True, "mistralai/Mixtral-8x7B-v0.1 config.json"),
    "mixtral-8x22b": Model(6144, 16384, 8, 2, 56, 56, True, "mistral-community/Mixtral-8x22B-v0.1 config.json"),
    "deepseek-moe-16b": Model(
        2048, 1408, 64, 6, 27, 28, True, "deepseek-ai/deepseek-moe-16b-base config.json", 2816, 10944
    ),
    "deepseek-v2-lite": Model(2048, 1408, 64, 6, 26, 27, True, "deepseek-ai/DeepSeek-V2-Lite config.json", 2816, 10944),
    "deepseek-v2": Model(
        5120, 1536, 160, 6, 59, 60, True, "deepseek-ai/DeepSeek-V3 configs/config_236B.json", 3072, 12288
    ),
    "deepseek-v3": Model(
        7168, 2048, 256, 8, 58, 61, True, "deepseek-ai/DeepSeek-V3 configs/config_671B.json", 2048, 18432
    ),
    "kimi-k2": Model(7168, 2048, 384, 8, 60, 61, True, "MoonshotAI/Kimi-K2 README.md", 2048, 18432),
    "qwen3-30b-a3b": Model(2048, 768, 128, 8, 48, 48, True, "Qwen/Qwen3-30B-A3B config.json"),
    "qwen3-235b-a22b": Model(4096, 1536, 128, 8, 94, 94, True, "THUDM/slime scripts/models/qwen3-235B-A22B.sh"),
    "olmoe-1b-7b": Model(2048, 1024, 64, 8, 16, 16, True, "allenai/OLMoE-1B-7B-0924 config.json"),
    "gpt-oss-20b": Model(2880, 2880, 32, 4, 24, 24, True, "openai/gpt-oss-20b config.json"),
    "gpt-oss-120b": Model(2880, 2880, 128, 4, 36, 36, True, "openai/gpt-oss gpt_oss/torch/model.py"),
    "phi-3.5-moe": Model(4096, 6400, 16, 2, 32, 32, True, "microsoft/Phi-3.5-MoE-instruct config.json"),
    "switch-base-128": Model(768, 3072, 128, 1, 12, 24, False, "google/switch-base-128 config.json", 0, 3072),
    "dbrx": Model(6144, 10752, 16, 4, 40, 40, True, "databricks/dbrx model/config.json"),
    "llama-4-scout": Model(5120, 8192, 16, 1, 48, 48, True, "transformers 5.24.0 models/llama4 defaults", 8192),
    "glm-4.5-355b": Model(
        5120, 1536, 160, 8, 89, 92, True, "THUDM/slime scripts/models/glm4.5-355B-A32B.sh", 1536, 12288
    ),
    "minimax-m2": Model(3072, 1536, 256, 8, 62, 62, True, "THUDM/slime scripts/models/minimax-m2.sh"),
}


def build(model: Model, tokens: int, links: Links, inference: bool = False) -> Problem:
    """The problem of a model on a machine. tokens: that each device brings to a layer.

    Costs are MFLOP, rates MFLOP a us. Raises InputError where the links do not know something, Infeasible where a
    device has no room for what every device holds, the parameters outside the experts.
    """
    tokens = count("tokens", tokens, 1)
    bytes_each = ITEM if inference else STATE
    machine = of_machine(links, model.expert * model.moe_layers * bytes_each, model.dense * bytes_each)
    _check_room(model, links, bytes_each)
    for device in machine["devices"]:
        device["memory"] = min(device["memory"], model.experts)
    passes = 1 if inference else 3
    return parse(
        {
            "experts": model.experts,
            "layer_cost": tokens * model.top_k * 2 * model.expert / 1e6,
            "payload_mib": tokens * model.top_k * model.hidden * ITEM / MIB,
            "crossings": 2 if inference else 4,
            "stages": passes * model.moe_layers * links.n,
            "gradient_mib": 0.0 if inference else model.dense * ITEM / MIB,
            **machine,
        }
    )


def _check_room(model: Model, links: Links, bytes_each: int) -> None:
    """Raise Infeasible where the parameters outside the experts alone are too much for a device."""
    needs = model.dense * bytes_each
    rooms = [int(device.memory_bytes * SHARE) for device in links.devices if device.memory_bytes is not None]
    short = [i for i, room in enumerate(rooms) if room < needs]
    if not short:
        return
    expert = model.expert * model.moe_layers * bytes_each
    held = sum(min(model.experts, (room - needs) // expert) for room in rooms if room >= needs)
    missing = sum(-((rooms[i] - needs) // expert) for i in short) + max(0, model.experts - held)
    worst = min(short, key=rooms.__getitem__)
    name = f"{links.hosts[worst]}:{links.devices[worst].label or worst}"
    raise Infeasible(
        missing,
        f"device {worst} ({name}) has {rooms[worst] / 1e9:.3g} GB for parameters ({SHARE} of its memory), and those"
        f" outside the experts, which every device holds, need {needs / 1e9:.3g} GB at {bytes_each} bytes each;"
        f" {len(short)} of {links.n} devices have too little",
    )


def moving(model: Model, tokens: int, group: int) -> Moving:
    """Whether tokens or weights are less to move in a group of so many devices."""
    return compare(tokens, model.hidden, model.ffn, model.experts, model.top_k, model.gated, group, ITEM)
