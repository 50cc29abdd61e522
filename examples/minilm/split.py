"""A trained feed-forward layer split into experts: groups of neurons, and a router that predicts which are needed.

A hidden neuron adds gelu(x up_i + up_bias_i) down_i to the output, so any partition of the neurons is a partition
of the layer into a sum of experts f_e, exact as long as all of them run:

    dense(x) = down_bias + sum over e of f_e(x)

An expert that is left out is replaced by its mean m_e over the tokens that leave it out. Expert e therefore has
the bias -m_e, and the rest of the sum, `rest` = down_bias + sum over e of m_e, is added once, outside the experts,
whichever of them run. No expert may have down_bias itself, because a token need not choose that expert.

Nothing is trained: neurons are grouped by the tokens that activate them, routers are least-squares fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .encoder import Array, Encoder, gelu

RIDGE = 30.0  # pulls router columns towards zero; between 1 and 100 it hardly matters
PASSES = 2  # router and means depend on each other; after two passes they hardly change


@dataclass(frozen=True)
class Split:
    """One layer as E experts of F/E neurons, in the shapes `aristos.MoE.load` takes.

    up [E, H, F/E], up_bias [E, F/E], down [E, F/E, H], down_bias [E, H], rest [H]; router [H, E] and offset [E]
    predict from x the logarithm of how far each f_e(x) lies from m_e.
    """

    up: Array
    up_bias: Array
    down: Array
    down_bias: Array
    rest: Array
    router: Array
    offset: Array

    def choose(self, x: Array, k: int) -> NDArray[np.int64]:
        """x: [S, H] -> ids [S, k] of the k experts with the largest predicted contribution, best first."""
        return largest(x @ self.router + self.offset, k)


def fit(encoder: Encoder, texts: Sequence[str], experts: int, top_k: int) -> tuple[list[Split], int]:
    """Split every layer on the activations of `texts`; returns the splits and the number of tokens they were fitted on.

    The texts pass through the encoder once. A layer is split when they reach it, and passes on the output of its top_k
    experts. So later layers are fitted on the inputs that they will really get.
    """
    splits: list[Split] = []

    def split_and_go_on(layer: int, x: Array) -> Array:
        split, y = split_layer(x, *encoder.ffn_weights(layer), experts, top_k)
        splits.append(split)
        return y

    encoder.embed(texts, split_and_go_on)
    return splits, sum(len(encoder.tokenize(text)) for text in texts)


def split_layer(
    x: Array, up: Array, up_bias: Array, down: Array, down_bias: Array, experts: int, top_k: int
) -> tuple[Split, Array]:
    """x: [T, H], up: [H, F], down: [F, H] -> the split, and the layer's output [T, H] with top_k experts on."""
    fired = gelu(x @ up + up_bias)
    # The square root keeps a few very large activations from deciding everything.
    groups = balanced_clusters(np.sqrt(np.maximum(fired, 0)).T, experts)
    outputs = np.stack([fired[:, group] @ down[group] for group in groups])  # [E, T, H]
    means = outputs.mean(axis=1)
    for _ in range(PASSES):
        distance = np.linalg.norm(outputs - means[:, None], axis=2).T
        router, offset = least_squares(x, np.log(distance + np.float32(1e-6)))
        chosen = largest(x @ router + offset, top_k)
        on = np.zeros(distance.shape, dtype=bool)
        np.put_along_axis(on, chosen, True, axis=1)
        # An expert that every token chooses is never left out; its mean is never used.
        means = np.stack([f[~used].mean(axis=0) if not used.all() else 0 * f[0] for f, used in zip(outputs, on.T)])
    split = Split(
        up=np.stack([up[:, group] for group in groups]),
        up_bias=np.stack([up_bias[group] for group in groups]),
        down=np.stack([down[group] for group in groups]),
        down_bias=-means,
        rest=down_bias + means.sum(axis=0),
        router=router,
        offset=offset,
    )
    return split, np.einsum("te,eth->th", on.astype(np.float32), outputs - means[:, None]) + split.rest


def balanced_clusters(features: Array, clusters: int, rounds: int = 12, seed: int = 0) -> list[NDArray[np.int64]]:
    """features: [N, D] -> `clusters` index arrays of N/clusters rows each: k-means by cosine, with equal sizes."""
    rows = np.ascontiguousarray(features)
    unit = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + np.float32(1e-12))
    members = np.array_split(np.random.default_rng(seed).permutation(len(unit)), clusters)
    for _ in range(rounds):
        centres = np.stack([unit[group].sum(axis=0) for group in members])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True) + np.float32(1e-12)
        members = fill_equally(unit @ centres.T)
    return members


def fill_equally(likeness: Array) -> list[NDArray[np.int64]]:
    """likeness: [N, C] -> C groups of N/C rows: the most alike pairs first, until a group is full."""
    rows, columns = likeness.shape
    group = np.full(rows, -1)
    free = np.full(columns, rows // columns)
    for pair in np.argsort(-likeness, axis=None, kind="stable"):
        row, column = divmod(int(pair), columns)
        if group[row] < 0 and free[column] > 0:
            group[row] = column
            free[column] -= 1
    return [np.nonzero(group == column)[0] for column in range(columns)]


def least_squares(x: Array, target: Array) -> tuple[Array, Array]:
    """x: [T, H], target: [T, E] -> router [H, E], offset [E], so that x router + offset is near target."""
    centre, level = x.mean(axis=0), target.mean(axis=0)
    a = (x - centre).astype(np.float64)
    router = np.linalg.solve(a.T @ a + RIDGE * np.eye(a.shape[1]), a.T @ (target - level)).astype(np.float32)
    return router, level - centre @ router


def largest(scores: Array, k: int) -> NDArray[np.int64]:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64)
