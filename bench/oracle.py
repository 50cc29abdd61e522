"""Makes a job: weights, tokens, routing, and the float64 results by which every peer is judged.

Only this module knows the right answers; a peer's process never sees them. The definition is aristos.reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jobs
import ml_dtypes
import numpy as np
from jobs import Product, Shape, Step
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
    """A trace is not on this machine. The message says where it was expected."""


@dataclass
class Truth:
    """The right results. ys: by rank, [inputs, S, H] float64. rows: [inputs, world], the rows that a rank computes."""

    ys: list[NDArray[np.float64]]
    rows: NDArray[np.int64]

    def error(self, rank: int, i: int, y: NDArray[np.float32]) -> float:
        """The relative error of a rank's output for input i."""
        return reference.error(y, self.ys[rank][i])


@dataclass
class StepTruth:
    """The right results of a step. parts: by input and rank, the step's arrays (see `jobs.flat`). rows: as in Truth."""

    parts: list[list[list[NDArray[np.float32]]]]
    rows: NDArray[np.int64]

    def error(self, rank: int, i: int, y: NDArray[np.float32]) -> float:
        """The largest of the relative errors of a rank's arrays for input i."""
        wanted = self.parts[i][rank]
        ends = np.cumsum([part.size for part in wanted])
        if y.size != ends[-1]:
            return float("inf")
        return max(reference.error(a, b.reshape(-1)) for a, b in zip(np.split(y, ends[:-1]), wanted))


def config(shape: Shape) -> MoEConfig:
    """The shape as a layer's configuration."""
    return MoEConfig(
        hidden=shape.hidden,
        ffn=shape.ffn,
        experts=shape.experts,
        top_k=shape.top_k,
        gated=shape.gated,
        activation="silu" if shape.gated or isinstance(shape, Step) else "relu",
        max_tokens=shape.tokens,
    )


def make(folder: Path, shape: Shape, world: int, seed: int, traces: Path) -> Truth:
    """Write the job of a shape into the folder. Returns the right results.

    Raises Missing if the shape's trace is not there, ValueError if ranks cannot hold equally many experts.
    """
    if shape.experts % world:
        raise ValueError(f"experts must be a multiple of the {world} ranks, got {shape.experts} in {shape}")
    cfg = config(shape)
    tensors = coded(cfg, shape.weights, seed) if shape.weights else reference.weights(cfg, seed)
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
            if shape.weights:  # with bfloat16 inputs, only weights and arithmetic cause errors
                x, scale = _rounded(x), _rounded(scale)
            results.append(reference.moe(cfg, x, **wide, ids=chosen, weights=scale))
            rows[i] += np.bincount(chosen.ravel() // each, minlength=world)
            xs.append(x)
            ids.append(chosen)
            scales.append(scale)
        arrays |= {f"x-{rank}": np.stack(xs), f"ids-{rank}": np.stack(ids), f"weights-{rank}": np.stack(scales)}
        ys.append(np.stack(results))
    jobs.write(folder, shape, world, arrays | {"rows": rows})
    return Truth(ys, rows)


def coded(cfg: MoEConfig, kind: str, seed: int) -> dict[str, NDArray[np.float32]]:
    """Weights that are codes times scales: up, gate [E, H, F] and down [E, F, H], exact in bfloat16.

    A column has one scale: a power of two, which for int4 is multiplied by 1 to 1.875 in steps of 1/8. In each group of
    k (a column for int8, jobs.GROUP for int4) at least one code is the largest possible. So a peer that quantises by
    group or column to symmetric codes gets these codes back.
    """
    most = jobs.CODES[kind]
    rng = np.random.default_rng([seed, most])
    shapes = {"up": (cfg.hidden, cfg.ffn), "gate": (cfg.hidden, cfg.ffn), "down": (cfg.ffn, cfg.hidden)}
    found = {}
    for name, (depth, columns) in shapes.items():
        if name == "gate" and not cfg.gated:
            continue
        group = depth if kind == "int8" else jobs.GROUP
        found[name] = np.empty((cfg.experts, depth, columns), np.float32)
        for weight in found[name]:
            codes = rng.standard_normal((depth // group, group, columns), np.float32) * np.float32(most / 3)
            np.clip(np.rint(codes, out=codes), -most, most, out=codes)
            at = rng.integers(group, size=(depth // group, 1, columns))
            np.put_along_axis(codes, at, most * rng.choice(np.float32([-1, 1]), at.shape), axis=1)
            steps = rng.integers(8, size=columns) / 8 if kind == "int4" else 0
            power = np.floor(np.log2(3 / (most * depth**0.5))) + rng.integers(-1, 2, columns)
            weight[...] = codes.reshape(depth, columns) * ((1 + steps) * np.exp2(power)).astype(np.float32)
    return found


def make_step(folder: Path, shape: Step, world: int, seed: int) -> StepTruth:
    """Write the job of a training step. All arrays have bfloat16 values, so that both dtypes have the same results."""
    cfg = config(shape)
    tensors = reference.weights(cfg, seed)
    weights = {name: _rounded(tensors[name]) for name in ("up", "gate", "down") if name in tensors}
    each, every = shape.experts // world, shape.inputs
    columns: dict[str, list[NDArray]] = {name: [] for name in ("x", "ids", "weights", "dy")}
    parts: list[list[list[NDArray[np.float32]]]] = []
    rows = np.zeros((every, world), np.int64)
    for i in range(every):
        drawn: dict[str, list[NDArray]] = {name: [] for name in columns}
        for rank in range(world):
            rng = np.random.default_rng([seed, i, rank])
            ids, scales = _routing(rng, shape, None, rank, world, i)
            x, dy = (rng.standard_normal((shape.tokens, shape.hidden), dtype=np.float32) for _ in range(2))
            for name, array in (("x", _rounded(x)), ("ids", ids), ("weights", _rounded(scales)), ("dy", _rounded(dy))):
                drawn[name].append(array)
            rows[i] += np.bincount(ids.ravel() // each, minlength=world)
        x, ids, scales, dy = (np.concatenate(drawn[name]) for name in columns)
        found = reference.backward(cfg, x, dy, ids=ids, weights=scales, **weights)
        parts.append(
            [
                [found[name][rank * shape.tokens :][: shape.tokens].astype(np.float32) for name in ("x", "weights")]
                + [found[name][rank * each :][:each].astype(np.float32) for name in weights]
                for rank in range(world)
            ]
        )
        for name in columns:
            columns[name].append(np.stack(drawn[name]))
    arrays = {
        f"{name}-{rank}": np.stack([one[rank] for one in columns[name]]) for name in columns for rank in range(world)
    }
    jobs.write(folder, shape, world, {**weights, **arrays, "rows": rows})
    return StepTruth(parts, rows)


def _rounded(array: NDArray) -> NDArray[np.float32]:
    """Values of bfloat16, as float32."""
    rounded: NDArray[np.float32] = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    return rounded


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
    """ids [S, k] and weights [S, k] of a rank's input i. From a trace: consecutive tokens of its middle layer."""
    if trace is not None:
        return trace.at(trace.prefill(rank, world, shape.tokens, i), trace.layers // 2)
    if shape.routing == "zipf":
        ids = routing.zipf(rng, shape.tokens, shape.experts, shape.top_k, ZIPF)
    else:
        ids = routing.uniform(rng, shape.tokens, shape.experts, shape.top_k)
    return ids, routing.combine_weights(rng, ids)
