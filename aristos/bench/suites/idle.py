"""Suite `idle`: the share of worker time without work, the spread of the slowest call, and what skew costs.

    idle        over all ranks, worker time without a runnable tile / (workers x time of the slowest rank's call). The
                worker time includes waits inside a call, and the time from a rank's own end to the slowest rank's end
    straggler   time of the slowest rank's call / its minimum over the run, at p50 and p95; the ECDFs are plots
    over even   time per row of the slowest rank's call / time per row of the same layer's evenly routed call in the
                same turn; the median of this ratio over turns. 1 means that skew costs nothing

The suite has routings of rising skew, one routing with tokens only on rank 0, and one with a late rank, where the last
rank sleeps for half the time of a call before its call. `--routing FILE.npz` adds prefill batches with the routing of a
trace's least, median and most skewed layer. The fused schedule is measured twice: with moves="tokens", which shows the
cost of the protocol, and with moves="auto", where a rank may compute its rows with the weights of a local peer. All
calls of all routings take turns. With "auto" a rank decides by the tokens that its peers had in the previous call. So
that the routing with tokens only on rank 0 is recognised, a call with one token on rank 0 precedes each call of this
routing and is timed with it. An untimed call with a token on each rank follows, so that other routings see usual peers.
The 2024 poster has these figures for the time of the collective. This suite has them for the layer's call, because the
fused schedule has no collective. Every output is checked against the float64 oracle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...models import with_max_tokens
from ...results import Table
from ..context import CALLS_TO_CHECK, Column, Context, Result, Sheet, counted
from ..disturbance import CORE_SHARE, mark
from ..measure import Statistics, gathered, in_turns, padded
from ..ran import of_layer
from ..registry import suite
from ..routing import Trace, busiest_over_mean
from ..workload import Call, Workload, execute

PATTERNS = ("uniform", "zipf", "one", "late rank")
ONE_SOURCE = "one source"  # only rank 0 has tokens
RECORDED = "recorded, layer "  # followed by the layer's number in the trace
LATE = 0.5  # how late the last rank starts, as a share of a call's time
FEWEST_TOKENS = 16
COST = 150  # the suite takes at least as long as this many uniform calls of every way
MOVES = {"fused": ("tokens", "auto"), "bulk": ("tokens",)}
IDLE = "workers' time without a runnable tile, until the rank's own call ends"
Way = tuple[str, str]  # (schedule, moves)

COLUMNS = (
    Column("pattern", "routing"),
    Column("rows", "rows", "d"),
    Column("busiest_over_mean computed_over_mean", "busiest\n/ mean", ".2f"),
    Column("schedule moves", "schedule,\nmoves"),
    Column("kept", "rows\nkept", ".0%"),
    Column("median_ms", "median\nms", ".2f"),
    Column("over_even", "over\neven", ".2f"),
    Column("idle", "idle", ".0%"),
    Column("straggler_p50 straggler_p95", "straggler\np50, p95", ".2f"),
    Column("speedup_over_bulk", "against\nbulk", ".2f"),
    *CALLS_TO_CHECK,
)


@dataclass
class PatternTimes:
    """One pattern.

    times, idle, core: way -> [world, iterations] seconds of calls, idle seconds in them, and the share of a core that
    each rank had. wait: way -> [world, world] mean seconds per call that a rank waited for a peer. kept: way -> share
    of the rows for other ranks' experts that did not move. computed: way -> [world] rows that a rank computed in the
    last call. rows: [world] rows for each rank's experts.
    """

    pattern: str
    tokens: int
    times: dict[Way, np.ndarray]
    idle: dict[Way, np.ndarray]
    core: dict[Way, np.ndarray]
    wait: dict[Way, np.ndarray]
    kept: dict[Way, float]
    computed: dict[Way, np.ndarray]
    rows: np.ndarray
    errors: dict[Way, float]
    right: bool


class Player:
    """Calls of every way on one input, and their statistics. late: seconds that this rank sleeps before a call."""

    def __init__(self, work: Workload, layers: dict[Way, Any], call: Call, pattern: str, late: float = 0.0) -> None:
        self.work, self.layers, self.call, self.pattern, self.late = work, layers, call, pattern, late
        self.out = np.empty_like(call.x)
        rank, alone = work.world.rank, pattern == ONE_SOURCE
        self.before = work.typed(work.call(int(rank == 0), "uniform", 0)) if alone else None
        self.after = work.typed(work.call(1, "uniform", 0)) if alone else None
        self.stats: dict[Way, dict[int, Any]] = {way: {} for way in layers}
        truth = work.oracle(call)
        self.outputs = {way: np.array(execute(layer, call)) for way, layer in layers.items()}
        self.errors = {way: work.error(y, truth) for way, y in self.outputs.items()}
        same = all(np.array_equal(y, next(iter(self.outputs.values()))) for y in self.outputs.values())
        self.right = work.world.every(same) and all(work.passes(e) for e in self.errors.values())

    def play(self, way: Way) -> None:
        """Make the timed call. If the pattern has a call `before`, it is made first and timed too."""
        if self.late:
            time.sleep(self.late)
        if self.before is not None:
            execute(self.layers[way], self.before)
        _, self._last = execute(self.layers[way], self.call, self.out, return_stats=True)

    def note(self, way: Way, i: int, elapsed: float) -> None:
        """Record the idle seconds of this rank's workers in iteration i, until the end of this rank's call.

        `idle_share` adds the time until the slowest rank's end."""
        s = self._last
        outside = s.workers * (elapsed - s.call_seconds)
        remote = sum(s.rows_to_peer) - s.rows_to_peer[self.work.world.rank]
        kept = sum(s.kept_rows_to_peer)
        rows = kept, remote, sum(s.rows_from_peer) + kept
        self.stats[way][i] = s.idle_seconds + outside, s.wait_seconds_by_peer, rows
        self.right &= np.array_equal(self.out, self.outputs[way])
        if self.after is not None:
            execute(self.layers[way], self.after)

    def measured(self, times: dict[Way, np.ndarray], core: dict[Way, np.ndarray]) -> PatternTimes:
        """The pattern's times on all ranks. Collective.

        times, core: way -> [world, iterations] seconds, and shares of cores."""
        world, stats = self.work.world, {way: list(each.values()) for way, each in self.stats.items()}
        last = {way: np.array(world.allgather(stats[way][-1][2])) for way in self.layers}  # [world, 3]
        moved = {way: each[:, :2].sum(axis=0) for way, each in last.items()}
        rows = np.bincount(self.work.placement, self.work.rows(self.work.routed(self.call)[0]), world.size)
        return PatternTimes(
            self.pattern,
            int(world.largest(len(self.call.x))),
            times,
            {way: gathered(world, np.array([s[0] for s in stats[way]])) for way in self.layers},
            core,
            {way: np.array(world.allgather(np.mean([s[1] for s in stats[way]], axis=0))) for way in self.layers},
            {way: float(kept / max(1, remote)) for way, (kept, remote) in moved.items()},
            {way: each[:, 2] for way, each in last.items()},
            rows.astype(np.int64),
            self.errors,
            world.every(self.right),
        )


@suite(
    "idle",
    "idle time, stragglers and the cost of skewed routing and of a late rank, for fused and bulk calls",
    order=70,
    share=3.0,
)
def run(ctx: Context) -> Result:
    shape, world = ctx.shape(), ctx.world
    most = shape.tokens[-1]
    work = Workload(world, with_max_tokens(shape.cfg, min(2, world.size) * most), ctx.options.seed)
    stacked = work.weights()
    ways = [(schedule, moves) for schedule in ctx.options.schedules for moves in MOVES[schedule]]
    layers = {way: work.layer(way[0], ctx.options.threads, stacked, moves=way[1]) for way in ways}
    threads = next(iter(layers.values())).threads
    tokens, usual = _affordable(ctx, work, layers, most)
    patterns = [*PATTERNS, ONE_SOURCE, *_recorded(ctx)]
    players = []
    for i, pattern in enumerate(patterns):
        ctx.report(pattern, 0.5 * i / len(patterns))
        late = LATE * usual * (pattern == "late rank" and world.rank == world.size - 1)
        players.append(Player(work, layers, work.typed(_call(work, pattern, tokens, i, ctx.trace)), pattern, late))
    done = _measure(ctx, players, ways)
    ran = [of_layer(layer, (players[0].call.x, players[0].out), work.cfg) for layer in layers.values()]
    for layer in layers.values():
        layer.close()
    sheet = Sheet(
        f"idle by {world.transports}: {shape}, {counted(world.size, 'rank')} x {counted(threads, 'thread')}", COLUMNS
    )
    for m in done:
        sheet.records += _records(work, m, done[0], threads)
    return Result(all(m.right for m in done), [sheet], [_table(ctx, done, ways, threads)], ran)


def _recorded(ctx: Context) -> list[str]:
    """The patterns of a trace: the layers whose busiest expert has the fewest, the median and the most rows."""
    if ctx.trace is None:
        return []
    by_layer = enumerate(np.moveaxis(ctx.trace.ids, 1, 0))
    busiest = {layer: np.bincount(ids[ids >= 0]).max() for layer, ids in by_layer if (ids >= 0).any()}
    order = sorted(busiest, key=lambda layer: busiest[layer])
    return [f"{RECORDED}{layer}" for layer in dict.fromkeys((order[0], order[len(order) // 2], order[-1]))]


def _call(work: Workload, pattern: str, tokens: int, key: int, trace: Trace | None = None) -> Call:
    """This rank's call. Where one rank has all rows or tokens, it has as many as two ranks have in other patterns."""
    if trace is not None and pattern.startswith(RECORDED):
        batch = trace.prefill(work.world.rank, work.world.size, tokens, 0)
        return work.recorded(trace, batch, int(pattern.removeprefix(RECORDED)))
    both = 2 * tokens // max(2, work.world.size)
    if pattern == "one":
        return work.call(max(1, both), "one", key)
    if pattern == ONE_SOURCE:
        return work.call(min(2, work.world.size) * tokens * (work.world.rank == 0), "uniform", key)
    return work.call(tokens, "zipf" if pattern == "zipf" else "uniform", key)


def _affordable(ctx: Context, work: Workload, layers: dict[Way, Any], tokens: int) -> tuple[int, float]:
    """(tokens per rank, about how many seconds a call takes). Without --tokens, only as many tokens as fit the time.

    Collective.
    """
    call = work.typed(work.call(tokens, "uniform", 0))
    taken = in_turns(ctx.world, {str(way): partial(execute, m, call) for way, m in layers.items()}, 2)
    seconds = float(np.sum([t[:, -1] for t in taken.values()], axis=0).max())
    fits = tokens
    if ctx.options.tokens is None:
        fits = min(tokens, max(FEWEST_TOKENS, int(tokens * ctx.left() / (COST * seconds))))
    return fits, seconds / len(layers) * fits / tokens


def _measure(ctx: Context, players: list[Player], ways: list[Way]) -> list[PatternTimes]:
    """Time all calls of all patterns in turns. Collective."""
    of: dict[str, tuple[Player, Way]] = {f"{p.pattern}, {way}": (p, way) for p in players for way in ways}
    calls: dict[str, Callable[[], object]] = {name: partial(p.play, way) for name, (p, way) in of.items()}
    ctx.report("in turns", 0.5)
    count = ctx.iterations(calls, 0.8 * ctx.left())
    times = in_turns(ctx.world, calls, count, lambda name, i, elapsed: of[name][0].note(of[name][1], i, elapsed))

    def of_each(kept: dict[str, np.ndarray], p: Player) -> dict[Way, np.ndarray]:
        return {way: kept[f"{p.pattern}, {way}"] for way in ways}

    return [p.measured(of_each(times, p), of_each(times.core, p)) for p in players]


def idle_share(times: np.ndarray, idle: np.ndarray, workers: int) -> np.ndarray:
    """The idle share of all workers' time, [iterations].

    times, idle: [world, iterations] seconds of calls, and idle seconds in them. workers: number per rank."""
    slowest = times.max(axis=0)
    idle_total = idle + workers * (slowest - times)
    return idle_total.sum(axis=0) / (workers * len(times) * slowest)


def stragglers(times: np.ndarray) -> dict[str, float]:
    """The values of a record about the slowest rank's time over its least one. times: [world, iterations] seconds."""
    slowest = times.max(axis=0)
    return dict(zip(("straggler_p50", "straggler_p95"), np.quantile(slowest / slowest.min(), [0.5, 0.95]).tolist()))


def over_even(times: np.ndarray, even: np.ndarray, rows: int, even_rows: int) -> float:
    """The slowest rank's time per row over that of the same turn's evenly routed call; the median over turns.

    times, even: [world, iterations] seconds. rows, even_rows: rows of all ranks in a call of either kind.
    """
    ratio = times.max(axis=0) / even.max(axis=0)
    return float(np.median(ratio)) * even_rows / max(1, rows)


def _records(work: Workload, m: PatternTimes, even: PatternTimes, workers: int) -> list[dict[str, Any]]:
    """The records of a pattern. even: the pattern that it is compared with."""
    records = []
    bulk = next((Statistics.from_times(t).median for (schedule, _), t in m.times.items() if schedule == "bulk"), None)
    for way, t in m.times.items():
        median = Statistics.from_times(t).median
        records.append(
            {
                "pattern": m.pattern,
                "tokens": m.tokens,
                "rows": int(m.rows.sum()),
                "busiest_over_mean": busiest_over_mean(m.rows),
                "schedule": way[0],
                "moves": way[1],
                "kept": m.kept[way],
                "computed_over_mean": busiest_over_mean(m.computed[way]),
                "median_ms": median * 1e3,
                "over_even": over_even(t, even.times[way], int(m.rows.sum()), int(even.rows.sum())),
                "idle": float(np.median(idle_share(t, m.idle[way], workers))),
                **stragglers(t),
                "speedup_over_bulk": None if bulk is None else bulk / median,
                "iterations": t.shape[1],
                **work.verdict(m.errors[way], m.right),
                **mark(m.core[way], t),
            }
        )
    return records


def _table(ctx: Context, done: list[PatternTimes], ways: list[Way], threads: int) -> Table:
    """Raw times; NaN for the ways that were not measured."""
    world = ctx.world.size
    schedules, moves = (list(dict.fromkeys(way[i] for way in ways)) for i in range(2))

    def of(values: str) -> list[Any]:
        """[pattern][schedule][moves] of a field of `PatternTimes`."""
        return [[[getattr(m, values).get((s, way)) for way in moves] for s in schedules] for m in done]

    times, idle, core = padded([of("times"), of("idle"), of("core")])
    table = Table("idle", attributes={"shape": str(ctx.shape()), "threads": threads, "late": LATE})
    table.dim("pattern", [m.pattern for m in done]).dim("schedule", schedules).dim("moves", moves)
    table.dim("rank", np.arange(world)).dim("peer", np.arange(world)).dim("iteration", np.arange(times.shape[-1]))
    way = ("pattern", "schedule", "moves")
    call = (*way, "rank", "iteration")
    table.add("call_time", call, times, "s", "one layer call on one rank, a late start included")
    table.add("idle_time", call, idle, "s", IDLE)
    table.add("core_share", call, core, "1", CORE_SHARE)
    waits = padded(of("wait"))
    table.add("wait_time", (*way, "rank", "peer"), waits, "s", "mean time in a call that a rank waited for a peer")
    table.add("tokens", "pattern", [m.tokens for m in done], "1", "tokens per rank and call, the most of any rank")
    table.add("rows", ("pattern", "rank"), [m.rows for m in done], "1", "rows for the rank's experts in a call")
    kept, errors = (np.array(of(name), float) for name in ("kept", "errors"))
    table.add("kept", way, kept, "1", "share of the rows for other ranks' experts that did not move")
    computed = padded([of("computed")])[0]
    table.add("computed", (*way, "rank"), computed, "1", "rows that a rank computed in the last call")
    return table.add("error", way, errors, "1", "largest relative error against float64")
