"""Routers of published models in float64 NumPy, each after the model's own code. They import nothing of the package.

Each takes router scores [S, E] (before any score function) and returns (ids [S, k], weights [S, k]), best first.
"""

from __future__ import annotations

import math

import numpy as np


def _top(values: np.ndarray, k: int) -> np.ndarray:
    """The columns of the k largest of each row, best first; of equal ones the lowest column comes first."""
    return np.array([sorted(range(len(row)), key=lambda e: (-row[e], e))[:k] for row in values])


def _at(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.stack([row[chosen] for row, chosen in zip(values, ids)])


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def deepseek_v2(logits, k, groups, kept, scale):
    """DeepseekV2TopkRouter, topk_method="group_limited_greedy" (transformers modeling_deepseek_v2.py)."""
    scores = _softmax(logits)
    best = scores.reshape(len(scores), groups, -1).max(2)
    masked = scores.copy()
    for row, chosen in zip(masked.reshape(len(scores), groups, -1), _top(best, kept)):
        row[[g for g in range(groups) if g not in chosen]] = 0.0
    ids = _top(masked, k)
    return ids, _at(masked, ids) * scale


def deepseek_v3(logits, bias, k, groups, kept, scale, norm):
    """Gate.forward of deepseek-ai/DeepSeek-V3 inference/model.py: sigmoid, bias, groups by their best two."""
    scores = 1 / (1 + np.exp(-logits))
    original = scores
    scores = scores + bias
    if groups > 1:
        grouped = scores.reshape(len(scores), groups, -1).copy()
        best = np.sort(grouped, 2)[:, :, -2:].sum(2)
        for row, chosen in zip(grouped, _top(best, kept)):
            row[[g for g in range(groups) if g not in chosen]] = -np.inf
        scores = grouped.reshape(scores.shape)
    ids = _top(scores, k)
    weights = _at(original, ids)
    if norm:
        weights = weights / (weights.sum(1, keepdims=True) + 1e-20)
    return ids, weights * scale


def deepseek_v4(logits, bias, k, scale):
    """DeepSeek-V4's router: the square root of softplus; a bias added for the choice only; normalized weights."""
    scores = np.sqrt(np.log1p(np.exp(logits)))
    ids = _top(scores + bias, k)
    weights = _at(scores, ids)
    return ids, weights / weights.sum(1, keepdims=True) * scale


def phimoe(logits, k=2, jitter=0.01):
    """sparsemixer of transformers modeling_phimoe.py, in evaluation. The second round does the same on the others.

    `make test-hf` compares it with that function, near ties and ties included.
    """
    masked, ids, weights = logits.copy(), [], []
    for _ in range(k):
        threshold, best = masked.max(1, keepdims=True), masked.argmax(1)
        factor = np.maximum(np.abs(logits), threshold)
        with np.errstate(invalid="ignore"):  # if all scores are 0, this is 0 / 0: NaN, which is not far
            far = (threshold - logits) / factor > 2 * jitter
        shares = _softmax(np.where(far, -np.inf, masked))
        ids.append(best)
        weights.append(shares[np.arange(len(best)), best])
        masked[np.arange(len(best)), best] = -np.inf
    return np.stack(ids, 1), np.stack(weights, 1)


def longcat(logits, bias, k, scale):
    """LongcatFlashTopkRouter: softmax over experts and identity experts; a bias for the choice only; not normalized."""
    scores = _softmax(logits)
    ids = _top(scores + bias, k)
    return ids, _at(scores, ids) * scale


def gshard_mask(ids: np.ndarray, experts: int, factor: float) -> np.ndarray:
    """[S, k] bool: which choices fit into their expert's buffer, by cumulative sums, as in Mesh TensorFlow's moe.py.

    The first choices of all tokens take places before the second ones.
    """
    count, k = ids.shape
    capacity = math.ceil(factor * count * k / experts)
    used, fits = np.zeros(experts), np.zeros(ids.shape, bool)
    for j in range(k):
        chosen = np.eye(experts)[ids[:, j]]
        place = (np.cumsum(chosen, 0) - chosen + used) * chosen
        fits[:, j] = place.sum(1) < capacity
        used += chosen.sum(0)
    return fits
