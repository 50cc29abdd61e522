"""Counts and times of one call, and totals over many calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine import words
from ..substrate.counters import Tables
from .counting import add_call, dropped_rows


@dataclass(frozen=True)
class CallStats:
    """Counts and times of one call on one rank. Seconds are sums over its workers, except `call_seconds`.

    Counts of rows and bytes leave out a shared expert's rows. On a GPU, whose workers are blocks, only idle_seconds is
    measured, because reading the clock around every command costs time. The other sums over workers are zero there
    before `timeline(True)`.

    Attributes
    ----------
    rank : int
        This rank.
    world : int
        W, the number of ranks.
    workers : int
        Workers of this rank.
    epoch : int
        The serial number of the call.
    layer : int
        The layer that was called.
    tokens : int
        S, the tokens that this rank brought.
    schedule : str
        "fused" or "bulk".
    isa : str or None
        The instruction set of this rank's kernels; None on a GPU.
    rows_to_peer : tuple of W ints
        Rows of this rank's tokens for the experts of each rank, this rank included.
    tiles_to_peer : tuple of W ints
        Tiles in which those rows were sent.
    logical_bytes_to_peer : tuple of W ints
        Bytes of those rows, counting one row for each routed (token, choice) pair.
    moved_bytes_to_peer : tuple of W ints
        Bytes that crossed from this rank to each rank.
    rows_from_peer : tuple of W ints
        Rows of each rank's tokens for this rank's experts.
    call_seconds : float
        Seconds of the whole call.
    route_seconds : float
        Time to score tokens, choose experts and pack rows; on a GPU, the time of the router's kernels.
    dispatch_seconds : float
        Time to copy rows to ranks, or to hand them to the wire.
    compute_seconds : float
        Time in experts.
    combine_seconds : float
        Time to add the outputs of each token.
    wire_seconds : float
        Time to serve peers on other nodes (puts, flushes, arrived words) between two commands. If a worker
        serves them because it has no command, that time is in idle_seconds instead.
    wait_seconds : float
        Idle time in which a worker waited for a peer.
    wait_seconds_by_peer : tuple of W floats
        `wait_seconds` for each peer.
    idle_seconds : float
        Time without a runnable tile, for any reason.
    expert_rows : tuple of E ints
        Rows of this rank's tokens for each expert.
    kept_rows_to_peer : tuple of W ints
        The part of rows_to_peer that stayed, which means that these rows were computed here with that local peer's
        weights. No rank counts them in rows_from_peer.
    dropped_rows : int
        Choices beyond the capacity.
    not_finite : int or None
        In float16, how many of this rank's tokens have an infinite or NaN output. A value above 65504 becomes infinite,
        whether it is an output or a hidden activation. None for other types, and for outputs in GPU memory.
    publish_seconds : float
        On a GPU, seconds in which workers publish results of steps.
    lock_seconds : float
        On a GPU, seconds in which workers wait for the rank's lock in order to publish.
    polls : int
        The number of workers' idle polls.
    """

    rank: int
    world: int
    workers: int
    epoch: int
    layer: int
    tokens: int
    schedule: str
    isa: str | None
    rows_to_peer: tuple[int, ...]
    tiles_to_peer: tuple[int, ...]
    logical_bytes_to_peer: tuple[int, ...]
    moved_bytes_to_peer: tuple[int, ...]
    rows_from_peer: tuple[int, ...]
    call_seconds: float
    route_seconds: float
    dispatch_seconds: float
    compute_seconds: float
    combine_seconds: float
    wire_seconds: float
    wait_seconds: float
    wait_seconds_by_peer: tuple[float, ...]
    idle_seconds: float
    expert_rows: tuple[int, ...]
    kept_rows_to_peer: tuple[int, ...]
    dropped_rows: int = 0
    not_finite: int | None = None
    publish_seconds: float = 0.0
    lock_seconds: float = 0.0
    polls: int = 0

    @property
    def balance(self) -> float:
        """The most rows that an expert gets from this rank, divided by the mean; 1 if all get equally many, or none."""
        return float(_balance(np.array(self.expert_rows)))

    @property
    def other_seconds(self) -> float:
        """The engine's own time: seconds in which workers are neither in kernels, nor at the wire, nor idle.

        Time in kernels is the sum of the seconds of routing, dispatch, compute and combine.
        """
        inside = self.route_seconds + self.dispatch_seconds + self.compute_seconds + self.combine_seconds
        return self.call_seconds * self.workers - inside - self.wire_seconds - self.idle_seconds


@dataclass(frozen=True)
class MessageClass:
    """Puts of one transport in one class of sizes, and the sum of their seconds.

    A worker that has other work flushes late on purpose, so that the next batch gets larger. So the seconds, latency
    and bandwidth of "rma" describe batches, not the network. `python -m aristos.bench put` measures the network.

    Attributes
    ----------
    transport : str
        "shm": a message is a tile or bundle of rows, and its time is the time of the copy. "rma": a message is a batch
        (announcement, rows, outputs and their records), and its time lasts from its puts to the end of its flush.
    up_to_bytes : float
        The largest message of the class; infinite for the last.
    count : int
        The number of messages.
    bytes : int
        The bytes of all messages.
    seconds : float
        The sum of the messages' times over all ranks.
    mean_latency_seconds : float
        seconds / count.
    bandwidth_bytes_per_second : float
        bytes / seconds.
    straggler_seconds : float
        The difference between the slowest and the fastest rank's sum of times in this class.
    """

    transport: str
    up_to_bytes: float
    count: int
    bytes: int
    seconds: float
    mean_latency_seconds: float
    bandwidth_bytes_per_second: float
    straggler_seconds: float


@dataclass(frozen=True)
class Summary:
    """Totals over all calls of an object and all ranks. As text it is a table.

    Attributes
    ----------
    calls : int
        The number of calls of the object.
    rows : int
        Rows for experts, without those of a shared expert.
    call_seconds : float
        Seconds of the calls on the slowest rank.
    compute_seconds : float
        Seconds that the workers of all ranks spent in experts.
    wire_seconds : float
        Seconds in which the workers of all ranks served peers on other nodes between two commands.
    idle_seconds : float
        Seconds in which the workers of all ranks had no runnable tile.
    messages : tuple of MessageClass
        Puts by transport and size.
    wait_seconds : array [W, W], float64
        How long rank i waited for rank j, at [i, j].
    expert_rows : array [layers, E], int64
        The number of rows that each expert has got.
    dropped_rows : int
        Choices beyond the capacity.
    weight_errors : array [layers], float64
        The relative error of packed weights that were given as plain arrays: the root of the sum of the errors'
        squares, divided by the root of the sum of the weights' squares. 0 for layers without such weights.
    """

    calls: int
    rows: int
    call_seconds: float
    compute_seconds: float
    wire_seconds: float
    idle_seconds: float
    messages: tuple[MessageClass, ...]
    wait_seconds: np.ndarray
    expert_rows: np.ndarray
    dropped_rows: int
    weight_errors: np.ndarray

    @property
    def balance(self) -> np.ndarray:
        """For each layer the most rows of an expert, divided by the mean: 1 if all experts got equally many."""
        return _balance(self.expert_rows)

    def __str__(self) -> str:
        lines = [
            f"calls: {self.calls}, rows: {self.rows}, {self.call_seconds:.4f} s on the slowest rank;"
            f" workers: {self.compute_seconds:.4f} s in experts, {self.wire_seconds:.4f} s at the wire,"
            f" {self.idle_seconds:.4f} s idle",
            f"{'transport':<10}{'up to B':>10}{'count':>10}{'MB':>12}{'mean us':>10}{'GB/s':>8}{'max-min s':>12}",
        ]
        for m in self.messages:
            lines.append(
                f"{m.transport:<10}{m.up_to_bytes:>10.0f}{m.count:>10}{m.bytes / 1e6:>12.3f}"
                f"{m.mean_latency_seconds * 1e6:>10.2f}{m.bandwidth_bytes_per_second / 1e9:>8.2f}"
                f"{m.straggler_seconds:>12.6f}"
            )
        for layer, (rows, balance) in enumerate(zip(self.expert_rows, self.balance)):
            if rows.any():
                lines.append(f"layer {layer}: expert {rows.argmax()} got the most rows, {balance:.2f} times the mean")
        for layer, error in enumerate(self.weight_errors):
            if error:
                lines.append(f"layer {layer}: packing has changed the weights by {error:.2e} of their size")
        lines.append("seconds that each rank (line) waited for each rank (column):")
        lines += ["  " + " ".join(f"{s:9.4f}" for s in row) for row in self.wait_seconds]
        return "\n".join(lines)


def _balance(rows: np.ndarray) -> np.ndarray:
    """For rows [..., E] the largest number of each E, divided by their mean; 1 if all are zero."""
    mean = rows.mean(axis=-1)
    return np.divide(rows.max(axis=-1), mean, out=np.ones_like(mean, np.float64), where=mean > 0)


def kept_by_peer(job: np.ndarray, state: np.ndarray) -> tuple[int, ...]:
    """For each rank, how many rows for its experts were computed here in the call that has just ended."""
    held, computed = int(job[words.HELD]), int(job[words.COMPUTED])
    records = job[job[words.FOREIGN] :][: words.FOREIGN_WORDS * (computed - held)].reshape(-1, words.FOREIGN_WORDS)
    rows = state[words.staying(job, held) :][: computed - held]
    return tuple(int(n) for n in np.bincount(records[:, 1], rows, int(job[words.WORLD])))


def not_finite(y: np.ndarray | None) -> int | None:
    """How many rows of float16 outputs have a value that is not finite; None for other types.

    If a hidden activation is not finite, its token's output is not finite either.
    """
    if y is None or y.dtype != np.float16:
        return None
    exponents = y.reshape(-1, y.shape[-1]).view(np.uint16) & np.uint16(0x7C00)
    return int((exponents == 0x7C00).any(axis=1).sum())


def call_stats(
    job: np.ndarray,
    state: np.ndarray,
    tables: Tables,
    *,
    schedule: str,
    seconds: float,
    y: np.ndarray | None,
    isa: str | None = None,
) -> CallStats:
    """The stats of the call that has just ended.

    seconds: how long the whole call took. y: its output; None for an output in GPU memory.
    """
    counted = state[tables.first :]
    n = tables.counters(counted).tolist()
    rank = int(job[words.RANK])
    row_bytes = int(job[words.ROW_BYTES])
    by_expert = np.zeros(job[words.EXPERTS] - job[words.IDENTITY], np.int64)
    rows, shared = add_call(job, state, 0, np.zeros(0, np.int64), by_expert)
    rows_to = tuple(int(r) - shared * (p == rank) for p, r in enumerate(tables.peers(counted, words.T_ROWS_TO)))
    wait = tables.wait(counted, rank)
    return CallStats(
        rank=rank,
        world=int(job[words.WORLD]),
        workers=int(job[words.WORKERS]),
        epoch=int(job[words.EPOCH]),
        layer=int(job[words.LAYER]),
        tokens=int(job[words.TOKENS]),
        schedule=schedule,
        isa=isa,
        rows_to_peer=rows_to,
        tiles_to_peer=tuple(int(t) for t in tables.peers(counted, words.T_TILES_TO)),
        logical_bytes_to_peer=tuple(r * row_bytes for r in rows_to),
        moved_bytes_to_peer=tuple(int(r) * row_bytes for r in tables.peers(counted, words.T_MOVED_TO)),
        rows_from_peer=tuple(
            int(r) - shared * (p == rank) for p, r in enumerate(tables.peers(counted, words.T_ROWS_FROM))
        ),
        call_seconds=seconds,
        route_seconds=(n[words.N_ROUTE] + n[words.N_PACK]) * 1e-9,
        dispatch_seconds=n[words.N_DISPATCH] * 1e-9,
        compute_seconds=n[words.N_EXPERT] * 1e-9,
        combine_seconds=n[words.N_COMBINE] * 1e-9,
        wire_seconds=n[words.N_WIRE] * 1e-9,
        wait_seconds=float(wait.sum()),
        wait_seconds_by_peer=tuple(float(w) for w in wait),
        idle_seconds=n[words.N_IDLE] * 1e-9,
        expert_rows=tuple(by_expert.tolist()),
        kept_rows_to_peer=kept_by_peer(job, state),
        dropped_rows=dropped_rows(job, state, rows),
        not_finite=not_finite(y),
        publish_seconds=(n[words.N_PUBLISH] - n[words.N_LOCK]) * 1e-9,
        lock_seconds=n[words.N_LOCK] * 1e-9,
        polls=n[words.N_POLLS],
    )


class Totals:
    """Adds up the calls of one layer object on one rank."""

    def __init__(self, layers: int, experts: int) -> None:
        self.calls = 0
        self.dropped = self.shared = 0
        self.expert_rows = np.zeros((layers, experts), np.int64)
        self.seconds = 0.0
        self.words: np.ndarray | None = None
        self._tables: Tables | None = None
        self._old: list[dict[str, Any]] = []

    def add(self, job: np.ndarray, state: np.ndarray, tables: Tables, seconds: float) -> None:
        """Add the call that has just ended."""
        if self._tables is not tables:  # the engine has grown, so first keep the counts of its earlier layout
            if self.words is not None:
                self._old.append(self._plain())
            self._tables = tables
            self.words = np.zeros(state.size - tables.first, np.int64)
        self.calls += 1
        self.seconds += seconds
        rows, shared = add_call(job, state, tables.first, self.words, self.expert_rows[job.item(words.LAYER)])
        self.dropped += dropped_rows(job, state, rows)
        self.shared += shared

    def _plain(self) -> dict[str, Any]:
        tables, counted = self._tables, self.words
        assert tables is not None
        assert counted is not None
        return {
            "counters": tables.counters(counted),
            "rows": int(tables.peers(counted, words.T_ROWS_TO).sum()),
            "wait": tables.peers(counted, words.T_PEER_WAIT) * 1e-9,
        }

    def share(self, rank: int, world: int) -> dict[str, Any]:
        """This rank's contribution to a summary."""
        parts = [*self._old, *([self._plain()] if self.words is not None else [])]
        wait = sum((p["wait"] for p in parts), np.zeros(world))
        wait[rank] = 0.0
        return {
            "calls": self.calls,
            "seconds": self.seconds,
            "rows": sum(p["rows"] for p in parts) - self.shared,
            "counters": sum((p["counters"] for p in parts), np.zeros(words.COUNTER_WORDS, np.int64)),
            "wait": wait,
            "expert_rows": self.expert_rows,
            "dropped": self.dropped,
        }


def _messages(counters: np.ndarray, transport: str, first: int) -> list[MessageClass]:
    """The size classes of one transport that hold a message. counters: [W, COUNTER_WORDS]."""
    found = []
    for size in range(words.SIZE_CLASSES):
        count, nbytes, ns = counters[:, first + 3 * size : first + 3 * size + 3].T
        if count.sum():
            seconds = ns.sum() * 1e-9
            found.append(
                MessageClass(
                    transport=transport,
                    up_to_bytes=256.0 * 4**size if size < words.SIZE_CLASSES - 1 else float("inf"),
                    count=int(count.sum()),
                    bytes=int(nbytes.sum()),
                    seconds=float(seconds),
                    mean_latency_seconds=float(seconds / count.sum()),
                    bandwidth_bytes_per_second=float(nbytes.sum() / seconds) if seconds else 0.0,
                    straggler_seconds=float((ns.max() - ns.min()) * 1e-9),
                )
            )
    return found


def summarize(shares: list[dict[str, Any]]) -> Summary:
    """The summary of all ranks' shares, in rank order."""
    counters = np.array([s["counters"] for s in shares])
    squares = sum(s["squares"] for s in shares)
    return Summary(
        calls=shares[0]["calls"],
        rows=sum(s["rows"] for s in shares),
        call_seconds=max(s["seconds"] for s in shares),
        compute_seconds=float(counters[:, words.N_EXPERT].sum() * 1e-9),
        wire_seconds=float(counters[:, words.N_WIRE].sum() * 1e-9),
        idle_seconds=float(counters[:, words.N_IDLE].sum() * 1e-9),
        messages=(*_messages(counters, "shm", words.N_LOCAL_PUTS), *_messages(counters, "rma", words.N_REMOTE_PUTS)),
        wait_seconds=np.array([s["wait"] for s in shares]),
        expert_rows=sum(s["expert_rows"] for s in shares),
        dropped_rows=sum(s["dropped"] for s in shares),
        weight_errors=np.sqrt(squares[:, 0] / np.where(squares[:, 1] > 0, squares[:, 1], 1)),
    )
