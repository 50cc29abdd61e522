"""A Qwen3-MoE-shaped decoder for training, in NumPy: everything but the experts, forward and backward by hand.

Parameters have the names and shapes of a published checkpoint; matrices are [out, in]. Every function works on one
sequence of fixed length, so that its bits depend neither on the batch nor on the number of ranks. H: width; T: tokens
of a sequence; n: heads; d: size of a head, n d = H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Params = dict[str, Array]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. ffn: width of an expert; one expert makes the model dense."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    length: int = 256
    experts: int = 16
    top_k: int = 2
    ffn: int = 256
    vocabulary: int = 256
    theta: float = 10000.0
    eps: float = 1e-6

    @property
    def size(self) -> int:
        """Columns of a head."""
        return self.hidden // self.heads


def first_params(shape: Shape, seed: int) -> Params:
    """Random parameters outside the experts, the same on every rank."""
    rng = np.random.default_rng([seed, 1])
    h = shape.hidden

    def drawn(*dims: int, scale: float) -> Array:
        return rng.standard_normal(dims, np.float32) * np.float32(scale)

    found = {"model.embed_tokens.weight": drawn(shape.vocabulary, h, scale=0.02)}
    for layer in range(shape.layers):
        p = f"model.layers.{layer}."
        for name in PROJECTIONS:
            scale = h**-0.5 / ((2 * shape.layers) ** 0.5 if name == "o_proj" else 1)
            found[f"{p}self_attn.{name}.weight"] = drawn(h, h, scale=scale)
        for name in ("q_norm", "k_norm"):
            found[f"{p}self_attn.{name}.weight"] = np.ones(shape.size, np.float32)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{p}{name}.weight"] = np.ones(h, np.float32)
    found["model.norm.weight"] = np.ones(h, np.float32)
    found["lm_head.weight"] = drawn(shape.vocabulary, h, scale=h**-0.5)
    return found


# ---- parts, each with its backward -----------------------------------------------------------------------------------


def rms(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """(x / root mean square over the last axis * weight, 1 / root mean square)."""
    scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps))
    return x * scale * weight, scale


def rms_backward(dy: Array, x: Array, weight: Array, scale: Array) -> tuple[Array, Array]:
    """(dx, dweight) of `rms`."""
    along = dy * weight
    mean = np.mean(along * x, axis=-1, keepdims=True)
    dweight = (dy * x * scale).reshape(-1, len(weight)).sum(axis=0)
    return scale * (along - x * scale * scale * mean), dweight


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embeddings of x [n, T, d]; with -sin, their backward."""
    half = x.shape[-1] // 2
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin


def cross_entropy(logits: Array, targets: NDArray[np.integer]) -> tuple[float, Array]:
    """(sum over tokens of -log p(target), its gradient by the logits). logits: [T, V]; targets: [T]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True)
    rows = np.arange(len(targets))
    losses = np.log(total[:, 0].astype(np.float64)) - shifted[rows, targets]
    p /= total
    p[rows, targets] -= 1
    return float(losses.sum()), p


class Decoder:
    """Forward and backward of one sequence: the parts between the calls of the MoE layers.

    `attend` is the attention part of a block; then the caller adds the MoE's output for the rows that it returned. What
    backward needs is kept in a `Saved` list, with one entry for each block.
    """

    def __init__(self, shape: Shape, params: Params) -> None:
        self.shape, self.params = shape, params
        angles = np.outer(np.arange(shape.length), shape.theta ** (-np.arange(0, shape.size, 2) / shape.size))
        self.cos, self.sin = (np.concatenate([f(angles)] * 2, axis=1).astype(np.float32) for f in (np.cos, np.sin))
        self.future = np.triu(np.ones((shape.length, shape.length), bool), 1)

    def embed(self, tokens: NDArray[np.integer]) -> Array:
        """x [T, H] of a sequence's tokens [T]."""
        return self.params["model.embed_tokens.weight"][tokens]

    def attend(self, layer: int, x: Array) -> tuple[Array, Array, dict[str, Any]]:
        """(x after attention, the rows [T, H] for the block's MoE, what backward needs). x: [T, H]."""
        p, shape = f"model.layers.{layer}.", self.shape
        kept: dict[str, Any] = {"x": x}
        kept["normed"], kept["scale"] = rms(x, self.params[p + "input_layernorm.weight"], shape.eps)
        for name in "qkv":
            made = kept["normed"] @ self.params[f"{p}self_attn.{name}_proj.weight"].T
            kept[name] = np.ascontiguousarray(made.reshape(len(x), shape.heads, shape.size).swapaxes(0, 1))  # [n, T, d]
        for name in "qk":
            weight = self.params[f"{p}self_attn.{name}_norm.weight"]
            normed, kept[f"{name}_scale"] = rms(kept[name], weight, shape.eps)
            kept[f"{name}_turned"] = rotate(normed, self.cos, self.sin)
        scores = kept["q_turned"] @ kept["k_turned"].swapaxes(1, 2) / np.float32(shape.size**0.5)
        scores[:, self.future] = -np.inf
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        kept["p"] = scores / scores.sum(axis=2, keepdims=True)
        kept["mixed"] = np.ascontiguousarray((kept["p"] @ kept["v"]).swapaxes(0, 1)).reshape(len(x), -1)
        kept["after"] = x + kept["mixed"] @ self.params[f"{p}self_attn.o_proj.weight"].T
        rows, kept["second_scale"] = rms(kept["after"], self.params[p + "post_attention_layernorm.weight"], shape.eps)
        return kept["after"], rows, kept

    def attend_backward(self, layer: int, dx: Array, drows: Array, kept: dict[str, Any], grads: Params) -> Array:
        """Return the gradient by x, and add those by the parameters to `grads`.

        dx: the gradient by x after the block. drows: that by the rows for the MoE.
        """
        p, shape = f"model.layers.{layer}.", self.shape
        name = p + "post_attention_layernorm.weight"
        back, dweight = rms_backward(drows, kept["after"], self.params[name], kept["second_scale"])
        grads[name] += dweight
        dx = dx + back
        grads[f"{p}self_attn.o_proj.weight"] += dx.T @ kept["mixed"]
        dmixed = (dx @ self.params[f"{p}self_attn.o_proj.weight"]).reshape(len(dx), shape.heads, shape.size)
        dmixed = np.ascontiguousarray(dmixed.swapaxes(0, 1))
        dp = dmixed @ kept["v"].swapaxes(1, 2)
        dscores = kept["p"] * (dp - (dp * kept["p"]).sum(axis=2, keepdims=True)) / np.float32(shape.size**0.5)
        heads = {"v": kept["p"].swapaxes(1, 2) @ dmixed}
        heads["q"] = dscores @ kept["k_turned"]
        heads["k"] = dscores.swapaxes(1, 2) @ kept["q_turned"]
        for letter in "qk":
            name = f"{p}self_attn.{letter}_norm.weight"
            turned = rotate(heads[letter], self.cos, -self.sin)
            heads[letter], dweight = rms_backward(turned, kept[letter], self.params[name], kept[f"{letter}_scale"])
            grads[name] += dweight
        dnormed = np.zeros_like(dx)
        for letter in "qkv":
            name = f"{p}self_attn.{letter}_proj.weight"
            made = np.ascontiguousarray(heads[letter].swapaxes(0, 1)).reshape(len(dx), -1)
            grads[name] += made.T @ kept["normed"]
            dnormed += made @ self.params[name]
        name = p + "input_layernorm.weight"
        back, dweight = rms_backward(dnormed, kept["x"], self.params[name], kept["scale"])
        grads[name] += dweight
        return dx + back

    def head(self, x: Array, targets: NDArray[np.integer], tokens: int, grads: Params | None) -> tuple[float, Array]:
        """(sum of the sequence's losses, gradient by x [T, H] of the mean loss over `tokens` tokens).

        Adds the parameters' gradients to `grads`. If `grads` is None, only the loss is right.
        """
        normed, scale = rms(x, self.params["model.norm.weight"], self.shape.eps)
        weight = self.params["lm_head.weight"]
        loss, dlogits = cross_entropy(normed @ weight.T, targets)
        if grads is None:
            return loss, x
        dlogits /= np.float32(tokens)
        grads["lm_head.weight"] += dlogits.T @ normed
        dx, dweight = rms_backward(dlogits @ weight, x, self.params["model.norm.weight"], scale)
        grads["model.norm.weight"] += dweight
        return loss, dx

    def embed_backward(self, tokens: NDArray[np.integer], dx: Array, grads: Params) -> None:
        """Add the embedding's gradient, token by token in the order of the sequence."""
        np.add.at(grads["model.embed_tokens.weight"], tokens, dx)
