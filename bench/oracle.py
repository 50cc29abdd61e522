"""Makes a job: weights, tokens, routing, and the float64 results by which every peer is judged.

Only this module knows the right answers; a peer's process never sees them. The definition is aristos.reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jobs
import numpy as np
from jobs import Product, Shape
from numpy.typing import NDArray

from aristos import reference
from aristos.bench import routing
from aristos.config import MoEConfig

ZIPF = 1.2
TRACES = {
    "law": "deepseek_v2_lite_esft/law.npz",
    "translation": "deepseek_v2_lite_esft/translation.npz",
    "gpt-oss": "gpt_oss_20b/decode_traces.npz",
}


class Missing(Exception):
    """A trace that is not on this machine; the message says where it was looked for."""


@dataclass
class Truth:
    """ys: [rank] of [inputs, S, H] float64, the results; rows: [inputs, world] that each rank computes."""

    ys: list[NDArray[np.float64]]
    rows: NDArray[np.int64]

    def error(self, rank: int, i: int, y: NDArray[np.float32]) -> float:
        """The relative error of a rank's output for input i."""
        return reference.error(y, self.ys[rank][i])


def config(shape: Shape) -> MoEConfig:
    """The shape as a layer's configuration."""
    return MoEConfig(
        hidden=shape.hidden,
        ffn=shape.ffn,
        experts=shape.experts,
        top_k=shape.top_k,
        gated=shape.gated,
        activation="silu" if shape.gated else "relu",
        max_tokens=shape.tokens,
    )


def make(folder: Path, shape: Shape, world: int, seed: int, traces: Path) -> Truth:
    """Write the job of a shape into the folder. Raises Missing without its trace, ValueError for uneven experts."""
    if shape.experts % world:
        raise ValueError(f"experts must be a multiple of the {world} ranks, got {shape.experts} in {shape}")
    cfg = config(shape)
    tensors = reference.weights(cfg, seed)
    weights = {name: tensors[name] for name in ("up", "down", "gate") if name in tensors}
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    arrays: dict[str, NDArray] = dict(weights)
    each, ys = shape.experts // world, []
    rows = np.zeros((shape.inputs, world), np.int64)
    trace = _trace(shape, traces)
    for rank in range(world):
        xs, ids, scales, results = [], [], [], []
        for i in range(shape.inputs):
            rng = np.random.default_rng([seed, i, rank])
            x = rng.standard_normal((shape.tokens, shape.hidden), dtype=np.float32)
            chosen, scale = _routing(rng, shape, trace, rank, world, i)
            results.append(reference.moe(cfg, x, **wide, ids=chosen, weights=scale))
            rows[i] += np.bincount(chosen.ravel() // each, minlength=world)
            xs.append(x)
            ids.append(chosen)
            scales.append(scale)
        arrays |= {f"x-{rank}": np.stack(xs), f"ids-{rank}": np.stack(ids), f"weights-{rank}": np.stack(scales)}
        ys.append(np.stack(results))
    jobs.write(folder, shape, world, arrays | {"rows": rows})
    return Truth(ys, rows)


def make_product(folder: Path, product: Product, seed: int) -> Truth:
    """Write the job of a matrix product, for one rank."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((product.depth, product.columns), dtype=np.float32) * np.float32(product.depth**-0.5)
    xs = rng.standard_normal((product.inputs, product.rows, product.depth), dtype=np.float32)
    jobs.write(folder, product, 1, {"weight": weight, "x-0": xs})
    return Truth([xs.astype(np.float64) @ weight.astype(np.float64)], np.zeros((product.inputs, 1), np.int64))


def _trace(shape: Shape, traces: Path) -> routing.Trace | None:
    if shape.routing in ("uniform", "zipf"):
        return None
    if shape.routing not in TRACES:
        raise ValueError(f"routing must be one of uniform, zipf, {', '.join(TRACES)}, got {shape.routing!r}")
    path = traces / TRACES[shape.routing]
    if not path.exists():
        raise Missing(f"no trace {TRACES[shape.routing]} in {traces}")
    trace = routing.load(str(path))
    if (trace.experts, trace.top_k) != (shape.experts, shape.top_k):
        raise ValueError(f"{shape.routing} routes {trace.top_k} of {trace.experts} experts, got {shape}")
    return trace


def _routing(
    rng: np.random.Generator, shape: Shape, trace: routing.Trace | None, rank: int, world: int, i: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """ids [S, k] and weights [S, k] of a rank's input i; of a trace, consecutive tokens in its middle layer."""
    if trace is not None:
        return trace.at(trace.prefill(rank, world, shape.tokens, i), trace.layers // 2)
    if shape.routing == "zipf":
        ids = routing.zipf(rng, shape.tokens, shape.experts, shape.top_k, ZIPF)
    else:
        ids = routing.uniform(rng, shape.tokens, shape.experts, shape.top_k)
    return ids, routing.combine_weights(rng, ids)
