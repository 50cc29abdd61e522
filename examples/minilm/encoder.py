"""all-MiniLM-L6-v2 in plain NumPy: token ids -> sentence embeddings, with the feed-forward layers left open.

The tokens of all sentences lie one after another in one array x: [S, H] float32, without padding; only attention
knows where sentences begin. `ffn(layer, x)` computes a feed-forward layer: `Encoder.dense_ffn`, or a
mixture of experts. This is not a general BERT: it has one model, one dtype and no gradients.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.special import erf

from .tokenizer import WordPiece

Array = NDArray[np.float32]
FFN = Callable[[int, Array], Array]


def gelu(x: Array) -> Array:
    return np.float32(0.5) * x * (1 + erf(x * np.float32(0.5**0.5)))


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


class Encoder:
    def __init__(self, folder: Path) -> None:
        """folder: as the Hugging Face hub lays a BERT model out (config.json, model.safetensors, vocab.txt)."""
        config = json.loads((folder / "config.json").read_text())
        self.hidden: int = config["hidden_size"]
        self.ffn: int = config["intermediate_size"]
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.eps: float = config["layer_norm_eps"]
        self.tokenize = WordPiece(folder / "vocab.txt")
        self._tensors: dict[str, Array] = load_file(folder / "model.safetensors")

    def embed(self, texts: Sequence[str], ffn: FFN | None = None) -> Array:
        """The embeddings of texts: [len(texts), H], of length one. If ffn is None, the model's own layers are used."""
        tokens = [self.tokenize(text) for text in texts]
        bounds = np.cumsum([0, *map(len, tokens)])
        x = self._embeddings(tokens)
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            x = self._norm(f"{name}.attention.output", x + self._attention(layer, x, bounds))
            x = self._norm(f"{name}.output", x + (ffn or self.dense_ffn)(layer, x))
        pooled = [x[start:end].mean(axis=0) for start, end in itertools.pairwise(bounds)]
        means = np.array(pooled, dtype=np.float32).reshape(-1, self.hidden)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def dense_ffn(self, layer: int, x: Array) -> Array:
        """x: [S, H] -> gelu(x up + up_bias) down + down_bias [S, H]."""
        up, up_bias, down, down_bias = self.ffn_weights(layer)
        return gelu(x @ up + up_bias) @ down + down_bias

    def ffn_weights(self, layer: int) -> tuple[Array, Array, Array, Array]:
        """up [H, F], up_bias [F], down [F, H], down_bias [H] of one layer."""
        name = f"encoder.layer.{layer}"
        up, down = f"{name}.intermediate.dense", f"{name}.output.dense"
        get = self._tensors.__getitem__
        return get(f"{up}.weight").T, get(f"{up}.bias"), get(f"{down}.weight").T, get(f"{down}.bias")

    def _embeddings(self, tokens: Sequence[Sequence[int]]) -> Array:
        ids = np.array([number for sentence in tokens for number in sentence], dtype=np.int64)
        positions = np.array([p for sentence in tokens for p in range(len(sentence))], dtype=np.int64)
        x = self._tensors["embeddings.word_embeddings.weight"][ids]
        x = x + self._tensors["embeddings.position_embeddings.weight"][positions]
        return self._norm("embeddings", x + self._tensors["embeddings.token_type_embeddings.weight"][0])

    def _attention(self, layer: int, x: Array, bounds: NDArray[np.int64]) -> Array:
        name = f"encoder.layer.{layer}.attention"
        width = self.hidden // self.heads
        q, k, v = (
            self._linear(f"{name}.self.{part}", x).reshape(len(x), self.heads, width).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        out = np.empty_like(x)
        for start, end in itertools.pairwise(bounds):
            scores = q[:, start:end] @ k[:, start:end].transpose(0, 2, 1) / np.float32(width**0.5)
            mixed = softmax(scores) @ v[:, start:end]
            out[start:end] = mixed.transpose(1, 0, 2).reshape(end - start, self.hidden)
        return self._linear(f"{name}.output.dense", out)

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]

    def _norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + np.float32(self.eps))
        return scaled * self._tensors[f"{name}.LayerNorm.weight"] + self._tensors[f"{name}.LayerNorm.bias"]
