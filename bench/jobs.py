"""The jobs of the comparison: the shapes, and one shape's weights, inputs, routing and float64 results.

All peers get the same job. Routing is computed once, in float64, and given to every peer. Two inputs with two routings
alternate, so that no call finds the rows of the call before in its caches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aristos import reference
from aristos.config import MoEConfig

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

INPUTS = 2


@dataclass(frozen=True)
class Shape:
    """tokens: S per rank; hidden: H; ffn: F; experts: E over all ranks; top_k: k."""

    name: str
    tokens: int
    hidden: int
    ffn: int
    experts: int
    top_k: int

    def __str__(self) -> str:
        return f"{self.tokens}/{self.hidden}/{self.ffn}/{self.experts}/{self.top_k}"

    def flops(self, rows: int) -> int:
        """Floating-point operations of both GEMMs for `rows` rows, without combine."""
        return 4 * rows * self.hidden * self.ffn


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("A", 1024, 1024, 4096, 8, 2),
        Shape("B", 4096, 128, 128, 8, 2),
        Shape("C", 32, 512, 1024, 8, 2),
        Shape("D", 16, 2048, 512, 32, 8),
        Shape("E", 1024, 2048, 512, 32, 8),
    )
}


def parse_shape(text: str) -> Shape:
    """A shape by its letter in SHAPES or as tokens/H/F/E/k. Raises ValueError for other texts."""
    if text in SHAPES:
        return SHAPES[text]
    try:
        numbers = [int(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != 5 or min(numbers) < 1:
        raise ValueError(f"a shape must be one of {', '.join(SHAPES)} or tokens/H/F/E/k, got {text!r}")
    if numbers[4] > numbers[3]:
        raise ValueError(f"top_k must be at most experts, got {text!r}")
    return Shape(text, *numbers)


@dataclass
class Job:
    """One shape on one rank. Experts are placed contiguously, E / world on each rank.

    xs, ys: INPUTS arrays [S, H] (ys float64: the results); ids, weights: INPUTS arrays [S, k];
    up: [E, H, F] and down: [E, F, H] for all experts; local: the slice of experts this rank holds;
    rows: [INPUTS, world] rows each rank computes.
    """

    shape: Shape
    cfg: MoEConfig
    up: Floats
    down: Floats
    local: slice
    xs: list[Floats] = field(default_factory=list)
    ids: list[Ints] = field(default_factory=list)
    weights: list[Floats] = field(default_factory=list)
    ys: list[NDArray[np.float64]] = field(default_factory=list)
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def busiest_flops(self) -> NDArray[np.float64]:
        """[INPUTS] operations of the rank with most rows, which bound the call however well it overlaps."""
        return np.array([self.shape.flops(int(most)) for most in self.rows.max(axis=1)], dtype=np.float64)


def make_job(comm: Any, shape: Shape, seed: int) -> Job:
    """The job of a shape on this rank. Collective. Raises ValueError if experts is no multiple of the ranks."""
    world, rank = comm.size, comm.rank
    if shape.experts % world:
        raise ValueError(f"experts must be a multiple of the {world} ranks, got {shape.experts} in {shape}")
    cfg = MoEConfig(
        hidden=shape.hidden,
        ffn=shape.ffn,
        experts=shape.experts,
        top_k=shape.top_k,
        activation="relu",
        max_tokens=shape.tokens,
    )
    tensors = reference.weights(cfg, seed)
    each = shape.experts // world
    job = Job(shape, cfg, tensors["up"], tensors["down"], slice(rank * each, (rank + 1) * each))
    wide = {name: tensors[name].astype(np.float64) for name in ("router", "up", "down")}
    for i in range(INPUTS):
        rng = np.random.default_rng([seed, i, rank])
        x = rng.standard_normal((shape.tokens, shape.hidden), dtype=np.float32)
        ids, fine = reference.route(cfg, x, wide["router"])
        weights = fine.astype(np.float32)
        job.xs.append(x)
        job.ids.append(ids)
        job.weights.append(weights)
        job.ys.append(reference.moe(cfg, x, up=wide["up"], down=wide["down"], ids=ids, weights=weights))
    sent = np.array([np.bincount(ids.ravel() // each, minlength=world) for ids in job.ids], dtype=np.int64)
    job.rows = np.zeros_like(sent)
    comm.Allreduce(sent, job.rows)
    return job
