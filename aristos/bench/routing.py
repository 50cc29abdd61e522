"""Where tokens go: made-up routings with a known skew, and recorded ones from a file.

Generators give `ids [S, k]` int64, distinct in a token, and `weights [S, k]` float32 that sum to one. It refuses to
guess: a trace without expert ids is an error that says which keys it has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Ids = NDArray[np.int64]
Weights = NDArray[np.float32]

GENERATORS = ("uniform", "zipf", "one")


def _drawn(rng: np.random.Generator, tokens: int, top_k: int, log_weights: NDArray[np.float64]) -> Ids:
    """k experts a token without replacement, with the given log odds (Gumbel's trick)."""
    keys = log_weights + rng.gumbel(size=(tokens, log_weights.size))
    return np.argsort(-keys, axis=1, kind="stable")[:, :top_k].astype(np.int64)


def combine_weights(rng: np.random.Generator, ids: Ids) -> Weights:
    """Positive weights that sum to one in every token; nothing for choices not taken."""
    weights = rng.uniform(0.5, 1.5, ids.shape) * (ids >= 0)
    return (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)).astype(np.float32)


def uniform(rng: np.random.Generator, tokens: int, experts: int, top_k: int) -> Ids:
    """Every expert equally likely."""
    return _drawn(rng, tokens, top_k, np.zeros(experts))


def zipf(rng: np.random.Generator, tokens: int, experts: int, top_k: int, exponent: float = 1.0) -> Ids:
    """Expert e with odds 1 / (e + 1)^exponent: under a contiguous placement rank 0 is the busiest."""
    return _drawn(rng, tokens, top_k, -exponent * np.log(np.arange(1, experts + 1)))


def one(rng: np.random.Generator, tokens: int, experts: int, top_k: int, local: int) -> Ids:
    """Every row to rank 0, which holds the first `local` experts; choices beyond them are not taken (-1)."""
    ids = np.full((tokens, top_k), -1, np.int64)
    taken = min(top_k, local)
    ids[:, :taken] = _drawn(rng, tokens, taken, np.zeros(local))
    return ids


def generate(name: str, rng: np.random.Generator, tokens: int, experts: int, top_k: int, local: int) -> Ids:
    """ids [tokens, top_k] by the generator's name; local: experts of rank 0."""
    if name == "uniform":
        return uniform(rng, tokens, experts, top_k)
    if name == "zipf":
        return zipf(rng, tokens, experts, top_k)
    if name == "one":
        return one(rng, tokens, experts, top_k, local)
    raise InputError(f"routing must be one of {', '.join(GENERATORS)}, got {name!r}")


@dataclass(frozen=True)
class Trace:
    """A recorded routing. ids: [T, L, k] as in the file; weights: [T, L, k] float32; lengths: [N] tokens a sequence."""

    path: str
    ids: NDArray[np.integer]
    weights: Weights
    lengths: NDArray[np.int64]

    @property
    def experts(self) -> int:
        """Experts the trace names: the largest id and all below it."""
        return int(self.ids.max()) + 1

    @property
    def layers(self) -> int:
        return self.ids.shape[1]

    @property
    def top_k(self) -> int:
        return self.ids.shape[2]

    def at(self, tokens: NDArray[np.integer], layer: int) -> tuple[Ids, Weights]:
        """Routing of some tokens in one layer: ids [S, k] and weights [S, k]."""
        return self.ids[tokens, layer].astype(np.int64), np.ascontiguousarray(self.weights[tokens, layer])

    def prefill(self, rank: int, world: int, tokens: int, batch: int) -> NDArray[np.int64]:
        """Indices of the `tokens` that `rank` brings to prefill batch number `batch`: a run of the trace, which
        holds whole sequences one after the other; it starts again at its end."""
        start = (batch * world + rank) * tokens
        return (start + np.arange(tokens)) % len(self.ids)

    def decode(self, rank: int, world: int, step: int) -> NDArray[np.int64]:
        """Indices of the tokens of decode step `step` on `rank`: one of each of its sequences that has not ended.

        Sequences are dealt out to ranks in turn.
        """
        starts = np.concatenate(([0], np.cumsum(self.lengths)[:-1]))
        mine = np.arange(rank, len(self.lengths), world)
        alive = mine[self.lengths[mine] > step]
        return (starts[alive] + step).astype(np.int64)


def load(path: str) -> Trace:
    """Read a trace: `expert_ids` [tokens, layers, k], and where present `gate_weight` or `gate_weight_1e4` of that
    shape and `seq_lens`. Raises InputError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as why:
        raise InputError(f"cannot read the routing trace {path}: {why}") from why
    ids = arrays.get("expert_ids")
    if ids is None or ids.ndim != 3 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"{path} must hold expert_ids, integers [tokens, layers, k]; it holds "
            + ", ".join(f"{key} {value.dtype} {list(value.shape)}" for key, value in arrays.items())
        )
    if "gate_weight_1e4" in arrays:
        weights = arrays["gate_weight_1e4"].astype(np.float32) * np.float32(1e-4)
    elif "gate_weight" in arrays:
        weights = arrays["gate_weight"].astype(np.float32)
    else:
        weights = np.full(ids.shape, 1 / ids.shape[2], np.float32)
    lengths = np.asarray(arrays.get("seq_lens", [len(ids)]), np.int64)
    if weights.shape != ids.shape or lengths.sum() != len(ids):
        raise InputError(
            f"{path}: weights must have the shape of expert_ids {ids.shape}, got {weights.shape}, and seq_lens must "
            f"sum to {len(ids)} tokens, got {lengths.sum()}"
        )
    return Trace(path, ids, weights, lengths)


def busiest_over_mean(rows: NDArray[np.integer]) -> float:
    """Rows of the busiest rank over the mean of all ranks; 1 is perfect balance."""
    mean = rows.mean()
    return float(rows.max() / mean) if mean else 1.0
