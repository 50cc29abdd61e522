"""Suite `idle` on cards: how much of the blocks' time finds nothing to do, and how far the slowest call strays.

    idle        over all ranks, time that blocks of the persistent kernel waited for something to do / (blocks x time of
                the slowest rank's call), as on CPUs (`suites/idle.py`): waits inside a call, and what lies between a
                rank's own call and the slowest rank's end
    straggler   time of the slowest rank's call / its minimum over the run, at p50 and p95

under routings of rising skew and, where there are several ranks, with one that comes late: the last one's host waits
half a call before its own. A block counts its waits by the card's global timer, which on some cards moves by the
microsecond. Calls are launches of a CUDA graph, timed by events. Launching and the router's kernels, which run before
there are such blocks, are no idle time here. It refuses to time an output that the float64 oracle did not pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...engine import words
from ...results import Table
from ..context import CHECK, ERROR, VERDICTS, Column, Context, Result, Sheet, counted
from ..measure import Summary, gathered
from ..registry import on_cuda
from ..routing import busiest_over_mean
from ..suites.idle import LATE, PATTERNS, idle_share
from ..workload import Workload
from .calls import Played, held
from .clock import Gpu

GRAPH = "aristos graph"

COLUMNS = (
    Column("pattern", "routing"),
    Column("tokens", "tokens\n/rank", "d"),
    Column("busiest_over_mean", "busiest rank\n/ mean rows", ".2f"),
    Column("blocks", "blocks\n/rank", "d"),
    Column("median_us", "median\nus", ".1f"),
    Column("idle", "idle", ".1%"),
    Column("idle_p95", "p95", ".1%"),
    Column("straggler_p50", "straggler\np50", ".2f"),
    Column("straggler_p95", "straggler\np95", ".2f"),
    Column("turns", "turns", "d"),
    ERROR,
    CHECK,
)


@dataclass
class Player:
    """Calls of one routing. late: seconds that this rank's host waits before its own; idle: of each timed turn."""

    played: Played
    pattern: str
    late: float = 0.0
    idle: list[float] = field(default_factory=list)
    blocks: int = 0
    errors: list[float] = field(default_factory=list)
    times: np.ndarray = field(default_factory=lambda: np.empty(0))
    lost: np.ndarray = field(default_factory=lambda: np.empty(0))

    def call(self, graph: Callable[[], None]) -> Callable[[], None]:
        """What is timed."""
        gpu = self.played.gpu

        def late() -> None:
            gpu.card.synchronize(gpu.stream)  # the clock runs from here
            end = time.perf_counter() + self.late
            while time.perf_counter() < end:
                pass
            graph()

        return late if self.late else graph

    def note(self, name: str, turn: int) -> None:
        """Read what the blocks counted in the call that has ended; a late start is idle time, as on CPUs."""
        if turn >= 0:
            self.idle.append(idle_seconds(self.played) + self.blocks * self.late)

    def measure(self, ctx: Context, seconds: float) -> None:
        """Check, time and check again; collective."""
        gpu, played = self.played.gpu, self.played
        graph = played.graph()
        self.errors.append(played.error(graph))
        with gpu.here():
            _, stats = played.moe(played.x, out=played.y, return_stats=True, **played.routing)
        self.blocks = stats.workers
        found = gpu.in_turns(
            {GRAPH: self.call(graph)}, 0.9 * seconds, ctx.options.warmup, ctx.options.iters, self.note
        )  # fmt: skip
        self.errors += [played.now(), played.error(graph)]
        self.times = gathered(ctx.world, found[GRAPH])
        self.lost = gathered(ctx.world, np.array(self.idle))


def idle_seconds(played: Played) -> float:
    """What this rank's blocks waited in the last call, summed over blocks."""
    runtime = played.moe._alive()
    runtime.read_all(played.gpu.stream)
    counters = runtime.counted.counters(runtime.state[runtime.counted.first :])
    return float(counters[words.N_IDLE]) * 1e-9


@on_cuda("idle")
def run(ctx: Context, gpu: Gpu) -> Result:
    shape, world = ctx.shape(), ctx.world
    work = Workload(world, shape.cfg, ctx.options.seed)
    ctx.tell("weights", 0.0)
    moe = work.layer("fused", None, backend="cuda")
    tokens = shape.tokens[-1]
    done: list[Player] = []
    patterns = [name for name in PATTERNS if world.size > 1 or name in ("uniform", "zipf")]
    for i, pattern in enumerate(patterns):
        ctx.tell(pattern, i / len(patterns))
        # all to one would take as many times longer as there are ranks: rank 0 gets the rows of two
        count = max(1, 2 * tokens // max(2, world.size)) if pattern == "one" else tokens
        call = held(work, work.call(count, "uniform" if pattern == "late rank" else pattern, i))
        player = Player(Played(gpu, work, moe, call), pattern)
        if pattern == "late rank" and world.rank == world.size - 1:
            player.late = LATE * Summary.of(done[0].times).median
        player.measure(ctx, ctx.left() / (len(patterns) - i))
        done.append(player)
    moe.close()
    sheet = Sheet(f"idle on {gpu.card.name}: {shape}, {counted(world.size, 'rank')}", COLUMNS)
    sheet.records = [_record(work, player) for player in done]
    if world.size == 1:
        sheet.notes.append("one rank: nobody is late, and all rows are its own whatever the routing")
    sheet.notes.append("launching and the router's kernels are no idle time here")
    ok = all(record["check"] == VERDICTS[True] for record in sheet.records)
    return Result(ok, [sheet], [_table(ctx, work, done)])


def _record(work: Workload, player: Player) -> dict[str, Any]:
    slowest, error = player.times.max(axis=0), max(player.errors)
    share = idle_share(player.times, player.lost, player.blocks)
    p50, p95 = np.quantile(slowest / slowest.min(), [0.5, 0.95])
    rows = np.bincount(work.placement, player.played.rows, work.world.size)
    return {
        "pattern": player.pattern, "tokens": player.played.count, "busiest_over_mean": busiest_over_mean(rows),
        "blocks": player.blocks, "median_us": Summary.of(player.times).median * 1e6, "idle": float(np.median(share)),
        "idle_p95": float(np.quantile(share, 0.95)), "straggler_p50": float(p50), "straggler_p95": float(p95),
        "turns": len(slowest), "error": error, "check": VERDICTS[work.passes(error)],
    }  # fmt: skip


def _table(ctx: Context, work: Workload, done: list[Player]) -> Table:
    """Raw times of every rank; the shorter ones end in NaN."""
    world, longest = ctx.world.size, max(player.times.shape[1] for player in done)
    both = np.full((2, len(done), world, longest), np.nan)
    for i, player in enumerate(done):
        for j, each in enumerate((player.times, player.lost)):
            both[j, i, :, : each.shape[1]] = each
    table = Table("idle", "idle_cuda", attributes={"shape": str(ctx.shape()), "late": LATE})
    table.dim("pattern", [player.pattern for player in done]).dim("rank", np.arange(world))
    table.dim("turn", np.arange(longest))
    over = ("pattern", "rank", "turn")
    table.add("call_time", over, both[0], "s", "one call on one rank, a late start included, by events")
    table.add("idle_time", over, both[1], "s", "its blocks' time without anything to do, summed over blocks")
    table.add("blocks", "pattern", [player.blocks for player in done], "1", "blocks of the persistent kernel on a rank")
    rows = [np.bincount(work.placement, player.played.rows, world).astype(np.int64) for player in done]
    return table.add("rows", ("pattern", "rank"), rows, "1", "rows the rank's experts compute a call")
