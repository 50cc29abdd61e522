"""Suite `layer` on cards: the fused layer, called and in a CUDA graph, against the unfused chain in a CUDA graph.

    aristos         MoE(backend="cuda") called on arrays of the card, four launches a call
    aristos graph   the same call captured once and replayed
    chain graph     `chain.py`: route, gather, cuBLAS an expert, scatter, captured once and replayed; one rank alone

All take turns on the same tokens and weights. `against chain` is graph against graph. With --routing, routing comes
from outside, and both check it instead of making it. A second sheet says what launching costs the host (`launch.py`).
It refuses to report a time of an output that the float64 oracle did not pass on some of the tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ...layer.device_arrays import KINDS
from ...results import Table
from ..context import CHECK, ERROR, VERDICTS, Column, Context, Result, Sheet, counted
from ..measure import Summary, gathered
from ..registry import on_cuda
from ..workload import Call, Workload
from .calls import Played, routed_call
from .clock import Gpu, OnCard, ratios
from .cublas import Cublas, cublas_or_why

CALLED, GRAPH, CHAIN = "aristos", "aristos graph", "chain graph"
LAUNCH_SHARE = 0.1  # of the time, for what launching costs

COLUMNS = (
    Column("tokens", "tokens\n/rank", "d"),
    Column("what", "what"),
    Column("median_us", "median\nus", ".1f"),
    Column("p95_us", "p95\nus", ".1f"),
    Column("tokens_per_s", "tokens/s", ",.0f"),
    Column("tflops_per_rank", "TFLOP/s\n/rank", ".1f"),
    Column("speedup", "against\nchain", ".2f"),
    Column("speedup_low", "5 %", ".2f"),
    Column("speedup_high", "95 %", ".2f"),
    Column("turns", "turns", "d"),
    ERROR,
    CHECK,
)


class Rivals:
    """One number of tokens: who computes the layer, and what each has made of it."""

    def __init__(self, gpu: Gpu, work: Workload, moe: Any, call: Call, blas: Cublas | None, room: Any) -> None:
        self.played = played = Played(gpu, work, moe, call)
        self.rows = played.rows
        self.calls: dict[str, Any] = {CALLED: played, GRAPH: played.graph()}
        self.outputs = {CALLED: played.y, GRAPH: played.y}
        if blas is not None and room is not None:
            self.calls[CHAIN], self.outputs[CHAIN] = chained(played, blas, room)

    def errors(self) -> dict[str, float]:
        """Of each, on some tokens, after a call on cleared outputs; collective."""
        return {name: self.played.error(call, self.outputs[name]) for name, call in self.calls.items()}


def room_of(gpu: Gpu, work: Workload, moe: Any, blas: Cublas | None, tokens: int) -> Any:
    """What the chains of a layer share (`chain.Room`); None where there is no chain: many ranks, or no cuBLAS."""
    if blas is None or work.world.size > 1:
        return None
    from .chain import Room  # needs a compiler

    return Room(gpu, work.cfg, KINDS[work.cfg.dtype], moe.packed_weights(), tokens)


def chained(played: Played, blas: Cublas, room: Any) -> tuple[Any, OnCard]:
    """(what queues the unfused chain of a call as a graph, its outputs)."""
    from .chain import Chain

    gpu, kind, given = played.gpu, played.kind, [array.at for array in played.routing.values()]
    out = OnCard(gpu, played.y.shape, kind)
    chain = Chain(gpu, played.work.cfg, kind, blas, room, played.x.at, out.at, played.count, played.rows, *given)
    chain()  # loads its kernels
    gpu.card.synchronize(gpu.stream)
    return partial(gpu.card.replay, gpu.card.graph(gpu.stream, chain), gpu.stream), out


@on_cuda("layer")
def run(ctx: Context, gpu: Gpu) -> Result:
    from . import launch  # needs a compiler

    shape = ctx.shape()
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    ctx.tell("weights", 0.0)
    moe = work.layer("fused", None, backend="cuda")
    blas, why = cublas_or_why(gpu)
    room = room_of(gpu, work, moe, blas, max(shape.tokens))
    sheet = Sheet(f"layer on {gpu.card.name}: {shape}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    done, launched = [], []
    for i, tokens in enumerate(shape.tokens):
        ctx.tell(f"{tokens} tokens", i / len(shape.tokens))
        rivals = Rivals(gpu, work, moe, routed_call(ctx, work, tokens), blas, room)
        before = rivals.errors()
        share = ctx.left() / (len(shape.tokens) - i)
        found = gpu.in_turns(rivals.calls, (1 - LAUNCH_SHARE) * share, ctx.options.warmup, ctx.options.iters)
        launches = launch.Launches(gpu, rivals.calls[CALLED], rivals.calls[GRAPH])
        overhead = launches.measure(LAUNCH_SHARE * share, ctx.options.iters)
        after = rivals.errors()  # the memory that was timed still gives what it gave
        launched.append((tokens, overhead, work.passes(max(after[CALLED], after[GRAPH]))))
        found = {name: gathered(ctx.world, t).max(axis=0) for name, t in found.items()}
        done.append((tokens, found))
        for name, times in found.items():
            error = max(before[name], after[name])
            sheet.records.append(_record(work, rivals, tokens, name, times, found.get(CHAIN), error))
    moe.close()
    if ctx.world.size > 1:
        sheet.notes.append(
            "the chain is for one rank; ranks that share a card are time-sliced, and their times mean little"
        )
    if why:
        sheet.notes.append(why)
    ok = all(record["check"] == VERDICTS[True] for record in sheet.records)
    return Result(ok, [sheet, launch.sheet(gpu, launched)], [_table(ctx, done), launch.table(launched)])


def _record(work: Workload, rivals: Rivals, tokens: int, name: str, times: np.ndarray, chain: np.ndarray | None,
            error: float) -> dict[str, Any]:  # fmt: skip
    summary, world = Summary.of(times), work.world.size
    record = {
        "tokens": tokens, "what": name, "median_us": summary.median * 1e6, "p95_us": summary.p95 * 1e6,
        "tokens_per_s": tokens * world / summary.median, "turns": len(times), "error": error,
        "tflops_per_rank": float(rivals.rows.sum()) * work.flops_per_row / world / summary.median / 1e12,
        "check": VERDICTS[work.passes(error)],
    }  # fmt: skip
    if name == GRAPH and chain is not None:
        record["speedup"], record["speedup_low"], record["speedup_high"] = ratios(times, chain)
    return record


def _table(ctx: Context, done: list[tuple[int, dict[str, np.ndarray]]]) -> Table:
    """Raw times of the slowest rank; the shorter ones end in NaN."""
    names = list(done[0][1])
    longest = max(len(t) for _, found in done for t in found.values())
    seconds = np.full((len(done), len(names), longest), np.nan)
    for i, (_, found) in enumerate(done):
        for j, name in enumerate(names):
            seconds[i, j, : len(found[name])] = found[name]
    table = Table("layer", "layer_cuda", attributes={"shape": str(ctx.shape())})
    table.dim("tokens", [tokens for tokens, _ in done], "1", "tokens per rank and call").dim("what", names)
    table.dim("turn", np.arange(longest))
    return table.add("call_time", ("tokens", "what", "turn"), seconds, "s", "one call, on the slowest rank")
