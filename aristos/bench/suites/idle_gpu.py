"""Suite `idle` on GPUs: the share of the blocks' time without work, and the spread of the slowest call.

    idle        over all ranks, time that blocks of the persistent kernel waited for work / (blocks x time of the
                slowest rank's call). As on CPUs (`suites/idle.py`) it includes waits inside a call, and the time from a
                rank's own end to the slowest rank's end
    straggler   time of the slowest rank's call / its minimum over the run, at p50 and p95

The suite has routings of rising skew and, with several ranks, one with a late rank, whose host waits half a call before
its own. A block measures its waits by the GPU's global timer, which on some GPUs has steps of a microsecond. Calls are
launches of a CUDA graph, timed by events. Launches and the router's kernels, which run before the persistent kernel, do
not count as idle. Every output is checked against the float64 oracle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...engine import words
from ...results import Table
from ..context import TURNS_TO_CHECK, Column, Context, Result, Sheet, counted
from ..gpu.calls import Played
from ..gpu.clock import BenchGpu
from ..measure import Statistics, gathered, padded
from ..registry import gpu_suite
from ..routing import busiest_over_mean
from ..workload import Workload
from .idle import LATE, PATTERNS, idle_share, stragglers

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
    *TURNS_TO_CHECK,
)


@dataclass
class GpuPlayer:
    """Calls of one routing. late: seconds that this rank's host waits before a call.

    idle: idle seconds of each timed turn.
    times, lost: [world, turns] seconds of calls, and idle seconds in them."""

    played: Played
    pattern: str
    late: float = 0.0
    idle: list[float] = field(default_factory=list)
    blocks: int = 0
    errors: list[float] = field(default_factory=list)
    times: np.ndarray = field(default_factory=lambda: np.empty(0))
    lost: np.ndarray = field(default_factory=lambda: np.empty(0))

    def call(self, graph: Callable[[], None]) -> Callable[[], None]:
        """The function that is timed."""
        gpu = self.played.gpu

        def late() -> None:
            gpu.device.synchronize(gpu.stream)  # the timed interval starts here, when the stream is empty
            end = time.perf_counter() + self.late
            while time.perf_counter() < end:
                pass
            graph()

        return late if self.late else graph

    def note(self, name: str, turn: int) -> None:
        """Record the idle time of the call that has ended. A late start counts as idle time, as on CPUs."""
        if turn >= 0:
            self.idle.append(idle_seconds(self.played) + self.blocks * self.late)

    def measure(self, ctx: Context, seconds: float) -> None:
        """Check, time and check again. Collective."""
        gpu, played = self.played.gpu, self.played
        graph = played.graph()
        self.errors.append(played.error(graph))
        with gpu.here():
            _, stats = played.moe(played.x, out=played.y, return_stats=True, **played.routing)
        self.blocks = stats.workers
        found = gpu.in_turns({GRAPH: self.call(graph)}, 0.9 * seconds, ctx.options.warmup, ctx.options.iters, self.note)
        self.errors += [played.now(), played.error(graph)]
        self.times = gathered(ctx.world, found[GRAPH])
        self.lost = gathered(ctx.world, np.array(self.idle))


def idle_seconds(played: Played) -> float:
    """Seconds that this rank's blocks waited in the last call, summed over blocks."""
    runtime = played.moe.runtime
    runtime.read_all()
    counters = runtime.counted.counters(runtime.state[runtime.counted.first :])
    return float(counters[words.N_IDLE]) * 1e-9


@gpu_suite("idle", "time that blocks wait for work, and stragglers", order=70, share=3.0)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    shape, world = ctx.shape(), ctx.world
    work = Workload(world, shape.cfg, ctx.options.seed)
    ctx.report("weights", 0.0)
    moe = work.layer("fused", None, backend="cuda")
    tokens = shape.tokens[-1]
    done: list[GpuPlayer] = []
    patterns = [name for name in PATTERNS if world.size > 1 or name in ("uniform", "zipf")]
    for i, pattern in enumerate(patterns):
        ctx.report(pattern, i / len(patterns))
        # if all rows go to rank 0, ranks have fewer tokens: rank 0 gets as many rows as two ranks have in other
        # patterns
        count = max(1, 2 * tokens // max(2, world.size)) if pattern == "one" else tokens
        call = work.call(count, "uniform" if pattern == "late rank" else pattern, i)
        player = GpuPlayer(Played(gpu, work, moe, call), pattern)
        if pattern == "late rank" and world.rank == world.size - 1:
            player.late = LATE * Statistics.from_times(done[0].times).median
        player.measure(ctx, ctx.left() / (len(patterns) - i))
        done.append(player)
    moe.close()
    sheet = Sheet(f"idle on {gpu.device.name}: {shape}, {counted(world.size, 'rank')}", COLUMNS)
    sheet.records = [_record(work, player) for player in done]
    if world.size == 1:
        sheet.notes.append("one rank: there is no late rank, and all rows are its own with any routing")
    sheet.notes.append("launches and the router's kernels do not count as idle")
    return Result(sheet.ok, [sheet], [_table(ctx, work, done)], [done[0].played.ran])


def _record(work: Workload, player: GpuPlayer) -> dict[str, Any]:
    share = idle_share(player.times, player.lost, player.blocks)
    rows = np.bincount(work.placement, player.played.rows, work.world.size)
    return {
        "pattern": player.pattern,
        "tokens": player.played.count,
        "busiest_over_mean": busiest_over_mean(rows),
        "blocks": player.blocks,
        "median_us": Statistics.from_times(player.times).median * 1e6,
        "idle": float(np.median(share)),
        "idle_p95": float(np.quantile(share, 0.95)),
        **stragglers(player.times),
        "turns": player.times.shape[1],
        **work.verdict(max(player.errors)),
    }


def _table(ctx: Context, work: Workload, done: list[GpuPlayer]) -> Table:
    """Raw times of every rank."""
    world = ctx.world.size
    times, lost = padded([[player.times for player in done], [player.lost for player in done]])
    table = Table("idle", "idle_cuda", attributes={"shape": str(ctx.shape()), "late": LATE})
    table.dim("pattern", [player.pattern for player in done]).dim("rank", np.arange(world))
    table.dim("turn", np.arange(times.shape[-1]))
    over = ("pattern", "rank", "turn")
    table.add("call_time", over, times, "s", "one call on one rank, a late start included, by events")
    table.add("idle_time", over, lost, "s", "time that the rank's blocks waited for work, summed over blocks")
    table.add("blocks", "pattern", [player.blocks for player in done], "1", "blocks of the persistent kernel on a rank")
    rows = [np.bincount(work.placement, player.played.rows, world).astype(np.int64) for player in done]
    return table.add("rows", ("pattern", "rank"), rows, "1", "rows that the rank's experts compute in a call")
