"""Suite `layer`: the whole layer, one-sided and fused, against the same layer with collectives ("bulk").

Both schedules take turns on the same weights and tokens with the same kernels, and must give equal bits. The columns,
for the slowest rank over iterations:

    tokens/s             tokens of all ranks / median
    of peak              GFLOP/s per rank over multiply-adds in registers, on all workers at once. GFLOP/s: 2 H F (3 if
                         gated, else 2) rows / ranks / median; router and combine are not counted
    overlap efficiency   T_experts / median. T_experts: the time of the busiest rank's experts alone, on local rows, by
                         the layer's own kernels and workers in one compiled loop. 1 means that all communication is
                         hidden behind arithmetic. What is missing from 1 is routing, copies, waits and imbalance. The
                         efficiency is above 1 where other ranks compute rows of the busiest rank (`MoE(moves="auto")`)

A sentence below the table says what limits each call most, see `limit`. JSON also has p99, GFLOP/s and the limits. In
the 2025 paper, overlap efficiency is something else: T(2 ranks) / T(N ranks) under weak scaling. That needs several
runs. Every output is checked against the float64 oracle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ...results import Table
from .. import bounds
from ..context import CALLS_TO_CHECK, VERDICTS, Column, Context, Result, Sheet, counted, time_columns
from ..disturbance import CORE_SHARE, mark
from ..measure import Statistics, Times, in_turns, padded
from ..ran import of_layer
from ..registry import suite
from ..routing import busiest_over_mean
from ..workload import Call, Workload, execute, routed_call

ALONE = "experts alone"
COLUMNS = (
    Column("tokens", "tokens\n/rank", "d"),
    Column("busiest_over_mean", "busiest\nrank /\nmean\nrows", ".2f"),
    Column("schedule", "schedule"),
    *time_columns("ms", ".3f", "p95"),
    Column("tokens_per_s", "tokens/s", ",.0f"),
    Column("share_of_peak", "of FMA\npeak", ".0%"),
    Column("overlap_efficiency", "overlap\neffi-\nciency", ".0%"),
    Column("speedup_over_bulk", "against\nbulk", ".2f"),
    *CALLS_TO_CHECK,
)


@dataclass
class LayerTimes:
    """The times of one token count. imbalance: rows of the busiest rank over the mean.

    reading: the least seconds in which the busiest rank can read its experts' weights from memory. times: schedule ->
    [world, iterations] seconds. core: each rank's share of a core, arranged like times. alone: times of the experts
    alone. rows: [E] rows of each expert, over all ranks. peak: [world] GFLOP/s of multiply-adds in registers."""

    tokens: int
    imbalance: float
    reading: float
    times: Times
    alone: np.ndarray
    errors: dict[str, float]
    same_bits: bool
    rows: np.ndarray
    peak: np.ndarray
    records: list[dict[str, Any]] = field(default_factory=list)


@suite(
    "layer", "the whole layer, fused against bulk: times, tokens/s, GFLOP/s, overlap efficiency", order=60, share=3.0
)
def run(ctx: Context) -> Result:
    shape = ctx.shape()
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    stacked = work.weights()
    layers = {s: work.layer(s, ctx.options.threads, stacked, moves=ctx.options.moves) for s in ctx.options.schedules}
    try:
        bandwidth = bounds.weight_bandwidth(ctx.world, next(iter(layers.values())).threads)
        done = []
        for i, tokens in enumerate(shape.tokens):
            ctx.report(f"{tokens} tokens", i / len(shape.tokens))
            call = work.typed(routed_call(ctx, work, tokens))
            ran = [of_layer(layer, (call.x, execute(layer, call)), work.cfg) for layer in layers.values()]
            done.append(_measure(ctx, work, layers, call, ctx.left() / (len(shape.tokens) - i), bandwidth))
    finally:
        for layer in layers.values():
            layer.close()
    threads = next(iter(layers.values())).threads
    sheet = Sheet(
        f"layer by {ctx.world.transports}: {shape}, {counted(ctx.world.size, 'rank')} x {counted(threads, 'thread')}",
        COLUMNS,
    )
    sheet.records = [record for m in done for record in m.records]
    best = float(np.max([m.peak.mean() for m in done]))
    sheet.notes += [_sentence(m.tokens, m.records) for m in done]
    sheet.notes.append(f"FMA peak measured between the calls: {best:.1f} GFLOP/s per rank, all workers at once")
    return Result(sheet.ok, [sheet], [_table(ctx, work, done, threads)], ran)


def _measure(
    ctx: Context, work: Workload, layers: dict[str, Any], call: Call, seconds: float, bandwidth: float
) -> LayerTimes:
    truth = work.oracle(call)
    outputs = {s: np.array(execute(layer, call)) for s, layer in layers.items()}
    errors = {s: work.error(y, truth) for s, y in outputs.items()}
    threads = next(iter(layers.values())).threads
    rows = work.rows(work.routed(call)[0])
    before = bounds.peak(ctx.world, threads)
    out = np.empty_like(call.x)
    # The last output of the timed loop must equal the output that was checked against the oracle.
    calls: dict[str, Any] = {s: partial(execute, layer, call, out) for s, layer in layers.items()}
    calls[ALONE] = alone = bounds.ExpertPhase(work, next(iter(layers.values())), rows)
    count = ctx.iterations(calls, 0.8 * seconds)
    wrong: list[str] = []

    def compare(name: str, i: int, elapsed: float) -> None:
        if i == count - 1 and name != ALONE and not np.array_equal(out, outputs[name]):
            wrong.append(name)

    times = in_turns(ctx.world, calls, count, compare)
    alone.close()
    after = bounds.peak(ctx.world, threads)
    first = next(iter(outputs.values()))
    same = ctx.world.every(not wrong and all(np.array_equal(first, y) for y in outputs.values()))
    peak = np.array(ctx.world.allgather((before + after) / 2))
    each = np.bincount(work.placement, rows, ctx.world.size)
    reading = ctx.world.allgather(work.expert_bytes * int((rows[work.local] > 0).sum()) / bandwidth)
    imbalance, busiest = busiest_over_mean(each), int(each.argmax())
    measured = LayerTimes(len(call.x), imbalance, reading[busiest], times, times.pop(ALONE), errors, same, rows, peak)
    measured.records = [_record(work, measured, s) for s in layers]
    return measured


def limit(call: float, alone: float, imbalance: float, reading: float, arithmetic: float) -> str:
    """The strongest limit of a call of `call` seconds.

    It is "communication" or "imbalance", whichever costs more, if that is at least a tenth of the call. Else it is
    "weights' bytes" if reading the experts' weights takes longer than their arithmetic, and at most 1.25 times as long
    as the experts alone. Else it is "arithmetic".

    alone, reading, arithmetic: seconds of the busiest rank's experts alone, of reading their weights from memory, and
    of their arithmetic at the peak. imbalance: that rank's rows over the mean.
    """
    saved = {"communication": call - alone, "imbalance": min(alone, call) * (1 - 1 / imbalance)}
    most = max(saved, key=lambda name: saved[name])
    if saved[most] >= call / 10:
        return most
    return "weights' bytes" if arithmetic < reading <= alone / 0.8 else "arithmetic"


def _sentence(tokens: int, records: list[dict[str, Any]]) -> str:
    """A sentence with the limit of a call of each schedule."""

    def words(record: dict[str, Any]) -> str:
        factor = f", {record['busiest_over_mean']:.2f}x" if record["limit"] == "imbalance" else ""
        return f"{record['schedule']} is limited by {record['limit']}{factor}"

    return f"{counted(tokens, 'token')} per rank: {'; '.join(map(words, records))}"


def _record(work: Workload, m: LayerTimes, schedule: str) -> dict[str, Any]:
    summary = Statistics.from_times(m.times[schedule])
    world = work.world.size
    rate = float(m.rows.sum()) * work.flops_per_row / world / summary.median / 1e9
    busiest = float(np.median(m.alone, axis=1).max())
    bulk = Statistics.from_times(m.times["bulk"]).median if "bulk" in m.times else None
    arithmetic = m.imbalance * float(m.rows.sum()) * work.flops_per_row / world / float(m.peak.mean()) / 1e9
    return {
        "tokens": m.tokens,
        "busiest_over_mean": m.imbalance,
        "limit": limit(summary.median, busiest, m.imbalance, m.reading, arithmetic),
        "schedule": schedule,
        **summary.values_in("ms"),
        "tokens_per_s": m.tokens * world / summary.median,
        "gflops_per_rank": rate,
        "share_of_peak": rate / float(m.peak.mean()),
        "overlap_efficiency": busiest / summary.median,
        "speedup_over_bulk": bulk / summary.median if bulk else None,
        "iterations": summary.iterations,
        "error": m.errors[schedule],
        "same_bits": m.same_bits,
        "check": VERDICTS[work.passes(m.errors[schedule]) and m.same_bits],
        **mark(m.times.core[schedule], m.times[schedule]),
    }


def _table(ctx: Context, work: Workload, done: list[LayerTimes], threads: int) -> Table:
    """Raw times."""
    schedules = list(done[0].times)
    seconds = padded([[m.times[s] for s in schedules] for m in done])
    alone = padded([m.alone for m in done])
    table = Table(
        "layer", attributes={"shape": str(ctx.shape()), "threads": threads, "flops_per_row": work.flops_per_row}
    )
    table.dim("tokens", [m.tokens for m in done], "1", "tokens per rank and call").dim("schedule", schedules)
    table.dim("rank", np.arange(ctx.world.size)).dim("iteration", np.arange(seconds.shape[-1]))
    table.dim("expert", np.arange(work.cfg.experts))
    table.add("call_time", ("tokens", "schedule", "rank", "iteration"), seconds, "s", "one layer call on one rank")
    core = padded([[m.times.core[s] for s in schedules] for m in done])
    table.add("core_share", ("tokens", "schedule", "rank", "iteration"), core, "1", CORE_SHARE)
    table.add("experts_time", ("tokens", "rank", "iteration"), alone, "s", "the same rows' arithmetic alone")
    table.add("rows", ("tokens", "expert"), [m.rows for m in done], "1", "rows of each expert over all ranks")
    table.add("peak", ("tokens", "rank"), [m.peak for m in done], "GFLOP/s", "multiply-adds in registers")
    errors = [[m.errors[s] for s in schedules] for m in done]
    return table.add("error", ("tokens", "schedule"), errors, "1", "largest relative error against float64")
