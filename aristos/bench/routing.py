"""Routings for benchmarks: generated routings of a known skew, and recorded routings from a file.

Generators return `ids [S, k]` int64, distinct within a token; `combine_weights` draws `weights [S, k]` float32 that sum
to one. For a trace without expert ids the error lists the keys of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..primitives import npz

Ids = NDArray[np.int64]
Weights = NDArray[np.float32]

GENERATORS = ("uniform", "zipf", "one")
MOST_COUNTED = 100_000  # the most tokens that are made from recorded counts
LARGEST_ID = 65535
ZIPF = 1.2  # default exponent of `zipf`


def _drawn(rng: np.random.Generator, tokens: int, top_k: int, log_weights: NDArray[np.float64]) -> Ids:
    """ids [tokens, k] drawn without replacement by the given log odds [E] (Gumbel's trick)."""
    keys = log_weights + rng.gumbel(size=(tokens, log_weights.size))
    best = np.argpartition(-keys, min(top_k, log_weights.size - 1), axis=1)[:, :top_k]
    order = np.argsort(-np.take_along_axis(keys, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1).astype(np.int64)


def combine_weights(rng: np.random.Generator, ids: Ids) -> Weights:
    """weights [S, k]: positive, their sum one in every token; zero for choices not taken."""
    weights = rng.uniform(0.5, 1.5, ids.shape) * (ids >= 0)
    return (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)).astype(np.float32)


def uniform(rng: np.random.Generator, tokens: int, experts: int, top_k: int) -> Ids:
    """ids [tokens, k], every expert equally likely."""
    return _drawn(rng, tokens, top_k, np.zeros(experts))


def zipf(rng: np.random.Generator, tokens: int, experts: int, top_k: int, exponent: float = ZIPF) -> Ids:
    """ids [tokens, k], expert e with odds 1 / (e + 1)^exponent. With a contiguous placement, rank 0 is the busiest."""
    return _drawn(rng, tokens, top_k, -exponent * np.log(np.arange(1, experts + 1)))


def one(rng: np.random.Generator, tokens: int, experts: int, top_k: int, local: int) -> Ids:
    """ids [tokens, k], all among the first `local` experts, which rank 0 holds.

    If k is larger than `local`, the other choices are -1, which means not taken.
    """
    ids = np.full((tokens, top_k), -1, np.int64)
    taken = min(top_k, local)
    ids[:, :taken] = _drawn(rng, tokens, taken, np.zeros(local))
    return ids


def generate(name: str, rng: np.random.Generator, tokens: int, experts: int, top_k: int, local: int) -> Ids:
    """ids [tokens, top_k] by the generator called `name`. local: the number of experts of rank 0.

    Raises InputError for other names.
    """
    if name == "uniform":
        return uniform(rng, tokens, experts, top_k)
    if name == "zipf":
        return zipf(rng, tokens, experts, top_k)
    if name == "one":
        return one(rng, tokens, experts, top_k, local)
    raise InputError(f"routing must be one of {', '.join(GENERATORS)}, got {name!r}")


@dataclass(frozen=True)
class Trace:
    """A recorded routing of T tokens in L layers. ids: [T, L, k] as in the file. weights: [T, L, k] float32.

    lengths: [N] numbers of tokens of the sequences."""

    path: str
    ids: NDArray[np.integer]
    weights: Weights
    lengths: NDArray[np.int64]

    @property
    def experts(self) -> int:
        """Number of experts: the largest id plus one."""
        return int(self.ids.max()) + 1

    @property
    def layers(self) -> int:
        return self.ids.shape[1]

    @property
    def top_k(self) -> int:
        return self.ids.shape[2]

    def at(self, tokens: NDArray[np.integer], layer: int) -> tuple[Ids, Weights]:
        """The routing of some tokens in one layer: ids [S, k] and weights [S, k]."""
        return self.ids[tokens, layer].astype(np.int64), np.ascontiguousarray(self.weights[tokens, layer])

    def prefill(self, rank: int, world: int, tokens: int, batch: int) -> NDArray[np.int64]:
        """Indices [tokens] of the tokens of `rank` in prefill batch number `batch`.

        They are consecutive tokens of the trace, which holds whole sequences one after another. After the trace's last
        token comes its first one again."""
        start = (batch * world + rank) * tokens
        return (start + np.arange(tokens)) % len(self.ids)

    def decode(self, rank: int, world: int, step: int) -> NDArray[np.int64]:
        """Indices of the tokens of `rank` in decode step `step`: one token of each of its sequences that has not ended.

        Sequence n belongs to rank n mod world.
        """
        starts = np.concatenate(([0], np.cumsum(self.lengths)[:-1]))
        mine = np.arange(rank, len(self.lengths), world)
        alive = mine[self.lengths[mine] > step]
        return (starts[alive] + step).astype(np.int64)


def load(path: str) -> Trace:
    """Read a trace. Raises InputError for a file that holds none.

    The file holds `expert_ids` [tokens, layers, k], and perhaps `gate_weight` or `gate_weight_1e4` of that shape, and
    `seq_lens`. Or it holds `counts` [sequences, layers, experts], how many choices of a sequence each expert got, and
    `tokens` [sequences], the lengths of the sequences."""
    arrays = npz.load(path, "the routing trace")
    if "expert_ids" not in arrays and {"counts", "tokens"} <= set(arrays):
        arrays = _of_counts(path, arrays["counts"], arrays["tokens"])
    ids = _checked_ids(path, arrays)
    return Trace(path, ids, _checked_weights(path, arrays, ids), _checked_lengths(path, arrays, len(ids)))


def _of_counts(path: str, counts: NDArray[Any], tokens: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a trace whose sequences have exactly these counts.

    The trace ends with the last whole sequence within MOST_COUNTED tokens.

    It is unknown which token of a sequence chose an expert. So the choices of a sequence are sorted by expert, in a
    drawn order of experts, and dealt to its tokens in turn. In this way no token gets an expert twice.
    """
    integers = np.issubdtype(counts.dtype, np.integer) and np.issubdtype(tokens.dtype, np.integer)
    if not integers or counts.ndim != 3 or tokens.shape != counts.shape[:1] or counts.size == 0 or tokens.min() < 1:
        raise InputError(
            f"{path} needs counts, integers [sequences, layers, experts], and tokens, integers above 0 [sequences]; "
            f"it holds counts {counts.dtype} {list(counts.shape)}, tokens {tokens.dtype} {list(tokens.shape)}"
        )
    first = max(1, int(np.searchsorted(np.cumsum(tokens, dtype=np.float64), MOST_COUNTED, side="right")))
    counts, lengths = counts[:first].astype(np.int64), tokens[:first].astype(np.int64)
    top_k, rest = divmod(int(counts[0, 0].sum()), int(lengths[0]))
    if rest or (counts.sum(axis=2) != top_k * lengths[:, None]).any() or top_k < 1:
        raise InputError(
            f"{path}: the counts of every sequence and layer must sum to its tokens times k, with the same k in all"
        )
    if counts.min() < 0 or (counts.max(axis=(1, 2)) > lengths).any():
        raise InputError(f"{path}: a count must be in 0..tokens of its sequence, got {counts.min()}..{counts.max()}")
    rng = np.random.default_rng(0)
    parts = []
    for each, length in zip(counts, lengths):
        orders = [rng.permutation(counts.shape[2]) for _ in each]
        layers = [np.repeat(order, count[order]).reshape(top_k, length).T for order, count in zip(orders, each)]
        parts.append(np.stack(layers, axis=1).astype(np.uint16))  # [tokens, layers, k]
    return {"expert_ids": np.concatenate(parts), "seq_lens": lengths}


def _checked_ids(path: str, arrays: dict[str, NDArray[Any]]) -> NDArray[np.integer]:
    ids = arrays.get("expert_ids")
    if ids is None or ids.ndim != 3 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"{path} must hold expert_ids, integers [tokens, layers, k]; it holds "
            + (", ".join(f"{key} {value.dtype} {list(value.shape)}" for key, value in arrays.items()) or "no array")
        )
    low, high = int(ids.min()), int(ids.max())
    if low < -1 or not 0 <= high <= LARGEST_ID:
        raise InputError(f"{path}: expert_ids must be 0..{LARGEST_ID}, or -1 for a choice not taken, got {low}..{high}")
    ordered = np.sort(ids, axis=2)
    twice = ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any(axis=2)
    if twice.any():
        token, layer = (int(i) for i in np.argwhere(twice)[0])
        raise InputError(
            f"{path}: expert_ids must be distinct within a token, got {ids[token, layer].tolist()} for token {token} "
            f"in layer {layer}"
        )
    return ids


def _checked_weights(path: str, arrays: dict[str, NDArray[Any]], ids: NDArray[np.integer]) -> Weights:
    key = next((key for key in ("gate_weight_1e4", "gate_weight") if key in arrays), None)
    if key is None:
        return np.full(ids.shape, 1 / ids.shape[2], np.float32)
    given = arrays[key]
    if given.shape != ids.shape or given.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: {key} must be numbers with the shape of expert_ids {ids.shape}, got {given.dtype} {given.shape}"
        )
    with np.errstate(over="ignore"):  # infinities raise an error below
        weights = given.astype(np.float32) * np.float32(1e-4 if key == "gate_weight_1e4" else 1)
    if not np.isfinite(weights).all():
        raise InputError(f"{path}: {key} must be finite in float32, got {given[~np.isfinite(weights)][0]}")
    return weights


def _checked_lengths(path: str, arrays: dict[str, NDArray[Any]], tokens: int) -> NDArray[np.int64]:
    lengths = arrays.get("seq_lens", np.array([tokens]))
    if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer):
        raise InputError(f"{path}: seq_lens must be integers [sequences], got {lengths.dtype} {list(lengths.shape)}")
    if (lengths < 0).any():
        raise InputError(f"{path}: seq_lens must be at least 0, got {lengths.min()}")
    total = sum(lengths.tolist())  # Python integers, because a sum that wraps around could be right by chance
    if total != tokens:
        raise InputError(f"{path}: seq_lens must sum to {tokens} tokens, got {total}")
    return lengths.astype(np.int64)


def busiest_over_mean(rows: NDArray[np.integer]) -> float:
    """Rows of the busiest rank over the mean of all ranks; 1 means perfect balance. rows: [W]."""
    mean = rows.mean()
    return float(rows.max() / mean) if mean else 1.0
