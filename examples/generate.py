"""Generates text with experts on many ranks: a decoder in NumPy, whose MoE layers Aristos makes of a model directory.

    mpirun -n 2 python examples/generate.py MODEL_DIR --prompts '[[11, 7, 3], [5, 9]]'
    mpirun -n 2 python examples/generate.py --random DIR      # first makes a small model with random weights in DIR

MODEL_DIR is OLMoE- or Qwen3-MoE-shaped. Prompts are token ids, or texts (--text) for a model of bytes, such as
examples/train_lm.py makes. Sequence i belongs to rank i mod (number of ranks). A rank may have sequences of different
lengths, or none; it takes part in every call of the MoE. Everything outside the experts is computed sequence by
sequence, in shapes that do not depend on the other sequences. The MoE is batch invariant, so logits have equal bits on
any number of ranks.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each rank has one core, and sums have one order

import ml_dtypes
import numpy as np

import aristos
from aristos.checkpoint.safetensors import save

SHAPES = ("olmoe", "qwen3_moe")
SMALL = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "moe_intermediate_size": 48,
    "intermediate_size": 96,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "num_hidden_layers": 3,
    "mlp_only_layers": [1],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}


@dataclass
class Sequence:
    """A prompt and what was generated. keys, values: for each layer [past tokens, heads, head size].

    logits: those of the last step.
    """

    number: int
    tokens: list[int]
    keys: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    logits: np.ndarray | None = None
    done: bool = False


class Decoder:
    """An OLMoE- or Qwen3-MoE-shaped decoder on the ranks of comm. Weights outside the experts are on every rank."""

    def __init__(self, path: Path, comm: Any, max_tokens: int, dtype: str = "float32") -> None:
        self.checkpoint = aristos.Checkpoint(path, comm)
        options = self.checkpoint.options
        if self.checkpoint.model_type not in SHAPES:
            raise SystemExit(f"this decoder has the shapes of {', '.join(SHAPES)}, not of {self.checkpoint.model_type}")
        rope = options.get("rope_parameters") or options.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default" or options.get("use_sliding_window"):
            raise SystemExit("this decoder has only plain rotary embeddings and full attention")
        if (act := options.get("hidden_act", "silu")) != "silu":
            raise SystemExit(f"this decoder's dense layers have only hidden_act 'silu', not {act!r}")
        self.eps = options.get("rms_norm_eps", 1e-6)
        self.heads = options["num_attention_heads"]
        self.groups = options.get("num_key_value_heads") or self.heads
        self.size = options.get("head_dim") or options["hidden_size"] // self.heads
        self.clip = options.get("clip_qkv")
        theta = rope.get("rope_theta") or options.get("rope_theta") or 10000.0
        self.frequencies = theta ** (-np.arange(0, self.size, 2) / self.size)
        self.layers = options["num_hidden_layers"]
        self.moe_layer = {number: i for i, number in enumerate(self.checkpoint.layers)}
        self.eos = options.get("eos_token_id")
        self.tied = options.get("tie_word_embeddings", False)
        cfg = self.checkpoint.config(max_tokens=max_tokens, dtype=dtype)
        self.row = np.dtype(getattr(ml_dtypes, dtype, dtype))
        self.moe = aristos.MoE(cfg, comm, layers=len(self.moe_layer))

    def load(self) -> None:
        """Load this rank's experts of every layer, and the weights that every rank has. Collective."""
        with self.moe.together("the weights outside the experts"):  # a file may be damaged on only one node
            self.embedding = self.weight("model.embed_tokens.weight")
            self.head = self.embedding if self.tied else self.weight("lm_head.weight")
            self.norm = self.weight("model.norm.weight")
            self.blocks = [self.block(i) for i in range(self.layers)]
        for number, i in self.moe_layer.items():
            self.checkpoint.load(self.moe, layer=i, number=number)

    def weight(self, name: str) -> np.ndarray:
        return np.asarray(self.checkpoint.tensor(name), np.float32)

    def block(self, number: int) -> dict[str, np.ndarray]:
        """One layer's weights except its experts."""
        p = f"model.layers.{number}."
        found = {
            "first": self.weight(p + "input_layernorm.weight"),
            "second": self.weight(p + "post_attention_layernorm.weight"),
        }
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            found[name] = self.weight(f"{p}self_attn.{name}.weight")
            if self.checkpoint.has(f"{p}self_attn.{name}.bias"):
                raise SystemExit("this decoder has only attention without biases")
        if number not in self.moe_layer:
            found |= {name: self.weight(f"{p}mlp.{name}.weight") for name in ("gate_proj", "up_proj", "down_proj")}
        return found

    # ------------------------------------------------------------ one sequence at a time

    def rms(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.eps)) * weight

    def rotate(self, x: np.ndarray, start: int) -> np.ndarray:
        """x: [T, heads, size], rotated by positions start, start + 1, ..."""
        angles = np.outer(np.arange(start, start + len(x)), self.frequencies)
        cos, sin = (np.concatenate([f(angles)] * 2, axis=1).astype(np.float32)[:, None] for f in (np.cos, np.sin))
        half = self.size // 2
        return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin

    def attend(self, block: dict[str, np.ndarray], number: int, s: Sequence, x: np.ndarray) -> np.ndarray:
        """[T, H] -> [T, H]: grouped-query attention over the sequence's past and these tokens."""
        q, k, v = (x @ block[f"{name}_proj"].T for name in "qkv")
        if self.checkpoint.model_type == "olmoe":  # normalised before they are split into heads
            q, k = self.rms(q, block["q_norm"]), self.rms(k, block["k_norm"])
            if self.clip is not None:
                q, k, v = (np.clip(a, -self.clip, self.clip) for a in (q, k, v))
        q, k, v = (a.reshape(len(x), -1, self.size) for a in (q, k, v))
        if self.checkpoint.model_type == "qwen3_moe":
            q, k = self.rms(q, block["q_norm"]), self.rms(k, block["k_norm"])
        past = len(s.keys[number]) if number < len(s.keys) else 0
        q, k = self.rotate(q, past), self.rotate(k, past)
        if number == len(s.keys):
            s.keys.append(k)
            s.values.append(v)
        else:
            s.keys[number] = np.concatenate([s.keys[number], k])
            s.values[number] = np.concatenate([s.values[number], v])
        future = np.arange(past + len(x))[None, :] > np.arange(past, past + len(x))[:, None]
        out = np.empty_like(q)
        for h in range(self.heads):
            group = h * self.groups // self.heads
            scores = q[:, h] @ s.keys[number][:, group].T / np.float32(self.size**0.5)
            scores[future] = -np.inf
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, h] = scores / scores.sum(axis=1, keepdims=True) @ s.values[number][:, group]
        return out.reshape(len(x), -1) @ block["o_proj"].T

    # ------------------------------------------------------------ all of this rank's sequences

    def step(self, sequences: list[Sequence]) -> None:
        """Run every sequence's new tokens, and append the most likely next token to each sequence.

        Collective: ranks without sequences call it too.
        """
        states = [self.embedding[s.tokens[len(s.keys[0]) if s.keys else 0 :]] for s in sequences]
        for number, block in enumerate(self.blocks):
            states = [x + self.attend(block, number, s, self.rms(x, block["first"])) for s, x in zip(sequences, states)]
            inputs = [self.rms(x, block["second"]) for x in states]
            if number in self.moe_layer:
                rows = np.concatenate(inputs) if inputs else np.empty((0, self.embedding.shape[1]), np.float32)
                y = self.moe(rows.astype(self.row), layer=self.moe_layer[number]).astype(np.float32)
                ends = np.cumsum([len(x) for x in states])[:-1] if states else []
                outputs = np.split(y, ends) if states else []
            else:
                outputs = [self.dense(block, x) for x in inputs]
            states = [x + y for x, y in zip(states, outputs)]
        for s, x in zip(sequences, states):
            s.logits = self.rms(x[-1:], self.norm) @ self.head.T
            s.tokens.append(int(np.argmax(s.logits[0])))
            s.done = s.tokens[-1] in np.atleast_1d(self.eos if self.eos is not None else -1)

    def dense(self, block: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        gate = x @ block["gate_proj"].T
        return (gate / (1 + np.exp(-gate)) * (x @ block["up_proj"].T)) @ block["down_proj"].T


def generate(
    path: Path, prompts: list[list[int]], new: int, comm: Any = None, dtype: str = "float32"
) -> list[Sequence]:
    """Generate up to `new` tokens for each prompt. Returns this rank's sequences.

    prompts: token ids, the same on all ranks.
    """
    rank, world = (comm.rank, comm.size) if comm is not None else (0, 1)
    words = range(aristos.Checkpoint(path, comm).options["vocab_size"])
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, list) or not prompt or not all(type(t) is int and t in words for t in prompt):
            raise SystemExit(f"prompt {number} must be a list of token ids in 0..{len(words) - 1}, got {prompt!r}")
    most = max(sum(map(len, prompts[r::world])) for r in range(world))
    decoder = Decoder(path, comm, max(1, most), dtype)
    mine = [Sequence(i, list(prompts[i])) for i in range(rank, len(prompts), world)]
    with decoder.moe:
        decoder.load()
        for _ in range(new):
            running = [s for s in mine if not s.done]
            left = len(running) if comm is None else comm.allreduce(len(running))
            if not left:
                break
            decoder.step(running)
    return mine


def random_model(path: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write a model directory with random weights. options: the model's config.json."""
    rng = np.random.default_rng(seed)
    h, size = options["hidden_size"], options["head_dim"]
    olmoe = options["model_type"] == "olmoe"
    q, k = size * options["num_attention_heads"], size * options["num_key_value_heads"]
    expert = options["intermediate_size"] if olmoe else options["moe_intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (options["vocab_size"], h),
        "lm_head.weight": (options["vocab_size"], h),
        "model.norm.weight": (h,),
    }
    for n in range(options["num_hidden_layers"]):
        p = f"model.layers.{n}."
        shapes |= {p + "input_layernorm.weight": (h,), p + "post_attention_layernorm.weight": (h,)}
        for name, shape in (("q_proj", (q, h)), ("k_proj", (k, h)), ("v_proj", (k, h)), ("o_proj", (h, q))):
            shapes[f"{p}self_attn.{name}.weight"] = shape
        shapes[p + "self_attn.q_norm.weight"] = (q if olmoe else size,)
        shapes[p + "self_attn.k_norm.weight"] = (k if olmoe else size,)
        dense = n in options.get("mlp_only_layers", [])
        width = options["intermediate_size"] if dense else expert
        bases = ["mlp."] if dense else [f"mlp.experts.{e}." for e in range(options["num_experts"])]
        for base in bases:
            for name, shape in (("gate_proj", (width, h)), ("up_proj", (width, h)), ("down_proj", (h, width))):
                shapes[f"{p}{base}{name}.weight"] = shape
        if not dense:
            shapes[p + "mlp.gate.weight"] = (options["num_experts"], h)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(options, indent=1))
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        tensors[name] = values / np.float32(shape[-1] ** 0.5) if len(shape) > 1 else 1 + np.float32(0.1) * values
    save(path / "model.safetensors", tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", help="a model directory")
    parser.add_argument("--random", type=Path, metavar="DIR", help="make a small model with random weights there")
    parser.add_argument("--prompts", type=json.loads, help="token ids of each sequence, as JSON (default: 5 random)")
    parser.add_argument("--text", action="append", help="a prompt for a model of bytes; may be repeated")
    parser.add_argument("--new", type=int, default=16, help="tokens to generate for each (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of experts")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="file for tokens and last logits of each sequence")
    asked = parser.parse_args()
    path = asked.random or asked.model
    if path is None:
        parser.error("give a model directory, or --random DIR")
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if asked.random is not None and comm.rank == 0:
        random_model(path, SMALL)
    comm.Barrier()
    if asked.text is not None:
        if not aristos.Checkpoint(path, comm).options.get("byte_level"):
            parser.error(
                f"--text is for a model of bytes (examples/train_lm.py), and {path} has a tokenizer of its own"
            )
        asked.prompts = [list(text.encode()) for text in asked.text]
    if asked.prompts is None:
        size = aristos.Checkpoint(path, comm).options["vocab_size"]
        rng = np.random.default_rng(1)
        asked.prompts = [rng.integers(0, size, n).tolist() for n in (3, 11, 1, 6, 8)]
    mine = generate(path, asked.prompts, asked.new, comm, asked.dtype)
    every = comm.gather([(s.number, s.tokens, s.logits) for s in mine])
    if comm.rank == 0:
        found = sorted((s for rank in every for s in rank), key=lambda s: s[0])
        for number, tokens, _ in found:
            prompt = asked.prompts[number]
            if asked.text is not None:
                print(f"--- text {number}\n{bytes(tokens).decode(errors='replace')}")
            else:
                print(f"sequence {number}: {prompt} -> {tokens[len(prompt) :]}")
        if asked.out is not None:
            np.savez(
                asked.out,
                **{f"tokens_{number}": tokens for number, tokens, _ in found},
                **{f"logits_{number}": logits for number, _, logits in found},
            )


if __name__ == "__main__":
    main()
