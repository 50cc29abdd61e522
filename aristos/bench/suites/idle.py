"""Suite `idle`: the share of worker time without work, and the spread of the slowest call.

    idle        over all ranks, worker time without a runnable tile / (workers x time of the slowest rank's call). It
                includes waits inside a call, and the time from a rank's own end to the slowest rank's end
    straggler   time of the slowest rank's call / its minimum over the run, at p50 and p95; the ECDFs are plots

Routings of rising skew, and one with a late rank: the last rank sleeps half a call before its own. Fused and bulk take
turns on equal inputs. The 2024 poster has these figures for the collective's time; here they are for the layer's call,
since the fused schedule has no collective. Every output is checked against the float64 oracle.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...results import Table
from ..context import CHECK, ERROR, VERDICTS, Column, Context, Result, Sheet, counted
from ..measure import Statistics, gathered, in_turns, iterations, padded
from ..registry import suite
from ..routing import busiest_over_mean
from ..workload import Call, Workload, execute

PATTERNS = ("uniform", "zipf", "one", "late rank")
LATE = 0.5  # of a call: how late the last rank starts
FEWEST_TOKENS = 16
COST = 120  # least time of the suite, in calls under uniform routing

COLUMNS = (
    Column("pattern", "routing"),
    Column("tokens", "tokens\n/rank", "d"),
    Column("busiest_over_mean", "busiest rank\n/ mean rows", ".2f"),
    Column("schedule", "schedule"),
    Column("median_ms", "median\nms", ".3f"),
    Column("idle", "idle", ".1%"),
    Column("straggler_p50", "straggler\np50", ".2f"),
    Column("straggler_p95", "straggler\np95", ".2f"),
    Column("speedup_over_bulk", "against\nbulk", ".2f"),
    Column("iterations", "calls", "d"),
    ERROR,
    CHECK,
)


@dataclass
class PatternTimes:
    """One pattern. times, idle: [schedule, world, iterations] seconds of calls, and idle seconds in them; wait:
    [schedule, world, world] mean seconds per call that a rank waited for a peer; rows: [world]."""

    pattern: str
    tokens: int
    times: np.ndarray
    idle: np.ndarray
    wait: np.ndarray
    rows: np.ndarray
    errors: list[float]
    right: bool


class Player:
    """Calls of every schedule on one input, and their stats. late: seconds that this rank sleeps before a call."""

    def __init__(self, work: Workload, layers: dict[str, Any], call: Call, late: float = 0.0) -> None:
        self.layers, self.call, self.late = layers, call, late
        self.out = np.empty_like(call.x)
        self.stats: dict[str, list[tuple[float, tuple[float, ...]]]] = {s: [] for s in layers}
        self.truth = work.oracle(call)
        self.outputs = {s: np.array(execute(layer, call)) for s, layer in layers.items()}
        self.errors = [work.error(y, self.truth) for y in self.outputs.values()]
        same = all(np.array_equal(y, next(iter(self.outputs.values()))) for y in self.outputs.values())
        self.right = work.world.every(same) and all(work.passes(e) for e in self.errors)

    def calls(self) -> dict[str, Any]:
        def one(schedule: str) -> Any:
            def play() -> None:
                if self.late:
                    time.sleep(self.late)
                _, self._last = execute(self.layers[schedule], self.call, self.out, return_stats=True)

            return play

        return {s: one(s) for s in self.layers}

    def note(self, schedule: str, i: int, elapsed: float) -> None:
        """Record the idle seconds of this rank's workers until the end of its own call; `idle_share` adds the rest."""
        s = self._last
        outside = s.workers * (elapsed - s.call_seconds)
        self.stats[schedule].append((s.idle_seconds + outside, s.wait_seconds_by_peer))
        self.right &= np.array_equal(self.out, self.outputs[schedule])


@suite(
    "idle",
    "idle time and stragglers, fused against bulk, under skewed routing and with a late rank",
    order=70,
    share=3.0,
)
def run(ctx: Context) -> Result:
    shape = ctx.shape()
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    stacked = work.weights()
    layers = {s: work.layer(s, ctx.options.threads, stacked) for s in ctx.options.schedules}
    threads = next(iter(layers.values())).threads
    tokens = _affordable(ctx, work, layers, shape.tokens[-1])
    done: list[PatternTimes] = []
    for i, pattern in enumerate(PATTERNS):
        ctx.report(pattern, i / len(PATTERNS))
        late = 0.0
        if pattern == "late rank":
            usual = Statistics.of(done[0].times[0]).median
            late = LATE * usual if ctx.world.rank == ctx.world.size - 1 else 0.0
        # All rows go to rank 0, so there are fewer tokens: it gets as many rows as two ranks have in other patterns.
        count = max(1, 2 * tokens // max(2, ctx.world.size)) if pattern == "one" else tokens
        call = work.call(count, "uniform" if pattern == "late rank" else pattern, i)
        done.append(_measure(ctx, work, layers, call, pattern, late, ctx.left() / (len(PATTERNS) - i)))
    for layer in layers.values():
        layer.close()
    sheet = Sheet(
        f"idle by {ctx.world.transports}: {shape}, {counted(ctx.world.size, 'rank')} x {counted(threads, 'thread')}",
        COLUMNS,
    )
    for m in done:
        sheet.records += _records(work, m, list(layers), threads)
    return Result(all(m.right for m in done), [sheet], [_table(ctx, done, list(layers), threads)])


def _affordable(ctx: Context, work: Workload, layers: dict[str, Any], tokens: int) -> int:
    """`tokens`, or as many as fit the time unless --tokens was given. Collective."""
    if ctx.options.tokens is not None:
        return tokens
    call = work.call(tokens, "uniform", 0)
    seconds = sum(
        t[-1] for t in in_turns(ctx.world, {s: partial(execute, m, call) for s, m in layers.items()}, 2).values()
    )
    needed = COST / 2 * ctx.world.largest(seconds)
    return min(tokens, max(FEWEST_TOKENS, int(tokens * ctx.left() / needed)))


def _measure(
    ctx: Context, work: Workload, layers: dict[str, Any], call: Call, pattern: str, late: float, seconds: float
) -> PatternTimes:
    player = Player(work, layers, call, late)
    calls = player.calls()
    count = iterations(ctx.world, calls, 0.8 * seconds, warmup=ctx.options.warmup, asked=ctx.options.iters)
    times = in_turns(ctx.world, calls, count, player.note)
    idle = np.array([[i for i, _ in player.stats[s]] for s in layers])
    wait = np.array([np.mean([w for _, w in player.stats[s]], axis=0) for s in layers])
    return PatternTimes(
        pattern,
        len(call.x),
        gathered(ctx.world, np.array(list(times.values()))),
        gathered(ctx.world, idle),
        np.stack(ctx.world.allgather(wait), axis=1),
        np.bincount(work.placement, work.rows(work.routed(call)[0]), ctx.world.size).astype(np.int64),
        player.errors,
        ctx.world.every(player.right),
    )


def idle_share(times: np.ndarray, idle: np.ndarray, workers: int) -> np.ndarray:
    """Share of all workers' time that is idle, [iterations]. times, idle: [world, iterations] seconds of calls and
    idle seconds in them; workers: per rank."""
    slowest = times.max(axis=0)
    idle_total = idle + workers * (slowest - times)
    return idle_total.sum(axis=0) / (workers * len(times) * slowest)


def _records(work: Workload, m: PatternTimes, schedules: list[str], workers: int) -> list[dict[str, Any]]:
    records = []
    medians = {s: Statistics.of(t).median for s, t in zip(schedules, m.times)}
    for s, t, idle, error in zip(schedules, m.times, m.idle, m.errors):
        ratio = t.max(axis=0) / t.max(axis=0).min()
        p50, p95 = np.quantile(ratio, [0.5, 0.95])
        records.append(
            {
                "pattern": m.pattern,
                "tokens": m.tokens,
                "busiest_over_mean": busiest_over_mean(m.rows),
                "schedule": s,
                "median_ms": medians[s] * 1e3,
                "idle": float(np.median(idle_share(t, idle, workers))),
                "straggler_p50": float(p50),
                "straggler_p95": float(p95),
                "speedup_over_bulk": medians["bulk"] / medians[s] if "bulk" in medians else None,
                "iterations": t.shape[1],
                "error": error,
                "check": VERDICTS[m.right and work.passes(error)],
            }
        )
    return records


def _table(ctx: Context, done: list[PatternTimes], schedules: list[str], threads: int) -> Table:
    world = ctx.world.size
    times, idle = padded([[m.times for m in done], [m.idle for m in done]])
    table = Table("idle", attributes={"shape": str(ctx.shape()), "threads": threads, "late": LATE})
    table.dim("pattern", [m.pattern for m in done]).dim("schedule", schedules)
    table.dim("rank", np.arange(world)).dim("peer", np.arange(world)).dim("iteration", np.arange(times.shape[-1]))
    over = ("pattern", "schedule", "rank", "iteration")
    table.add("call_time", over, times, "s", "one layer call on one rank, a late start included")
    table.add("idle_time", over, idle, "s", "its workers' time without a runnable tile, until its own end")
    waits = ("pattern", "schedule", "rank", "peer")
    table.add("wait_time", waits, [m.wait for m in done], "s", "mean time a call that a rank waited for a peer")
    table.add("tokens", "pattern", [m.tokens for m in done], "1", "tokens per rank and call")
    table.add("rows", ("pattern", "rank"), [m.rows for m in done], "1", "rows the rank's experts compute a call")
    errors = [m.errors for m in done]
    return table.add("error", ("pattern", "schedule"), errors, "1", "largest relative error against float64")
