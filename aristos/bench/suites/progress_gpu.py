"""Suite `progress` on cards: does a call need the host while it runs, and what does it cost the host?

On CPUs the question is who moves what was put while the target computes (`suites/progress.py`). On a card blocks move
rows themselves; between nodes a thread of the host, the proxy, calls MPI for them. So, of a burst of calls, each a CUDA
graph,

    host waits      the host waits for the burst
    host computes   it multiplies matrices meanwhile, on the threads that BLAS has, and leaves the card alone

and how much longer the host takes for the same work beside a burst than without one. On one node there is no proxy, and
a note says that nothing of it was measured: times then show only that nobody waits for the host. It refuses to time an
output that the float64 oracle did not pass.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ...results import Table
from ..context import CHECK, ERROR, VERDICTS, Column, Context, Result, Sheet, counted
from ..gpu.calls import Played, routed_call
from ..gpu.clock import Gpu, ratios
from ..measure import gathered, no_gc, padded
from ..registry import gpu_suite
from ..workload import Workload

WAITS, COMPUTES, ALONE = "host waits", "host computes", "host alone"
CALLS = 20  # of a burst
MATRIX = 256  # rows of what the host multiplies
FEWEST, MOST = 5, 50  # bursts of each

COLUMNS = (
    Column("tokens", "tokens\n/rank", "d"),
    Column("waits_us", "host waits\nus", ".1f"),
    Column("computes_us", "host computes\nus", ".1f"),
    Column("slowdown", "of a call:\nslow-down", ".1%"),
    Column("slowdown_low", "5 %", ".1%"),
    Column("slowdown_high", "95 %", ".1%"),
    Column("host_slowdown", "of the host:\nslow-down", ".1%"),
    Column("host_slowdown_low", "5 %", ".1%"),
    Column("host_slowdown_high", "95 %", ".1%"),
    Column("turns", "turns", "d"),
    ERROR,
    CHECK,
)


class Work:
    """What the host computes: products of one matrix, as many as last about as long as a burst."""

    def __init__(self) -> None:
        self.matrix = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), np.float32)
        self.out, self.rounds = np.empty_like(self.matrix), 1

    def __call__(self) -> float:
        """Seconds it took."""
        start = time.perf_counter()
        for _ in range(self.rounds):
            np.matmul(self.matrix, self.matrix, out=self.out)
        return time.perf_counter() - start

    def fit(self, seconds: float) -> None:
        """Take as many rounds as fit the time, one at least."""
        self.rounds = 1
        one = min(self() for _ in range(5))
        self.rounds = max(1, int(seconds / max(one, 1e-7)))


class Bursts:
    """Bursts of one call, and the host's work beside them."""

    def __init__(self, gpu: Gpu, graph: Any) -> None:
        self.gpu, self.graph, self.work = gpu, graph, Work()

    def burst(self, beside: bool) -> tuple[float, float]:
        """(seconds of a call, by events; of the host's work)."""
        before, after = self.gpu.events
        self.gpu.world.barrier()
        self.gpu.card.record(before, self.gpu.stream)
        for _ in range(CALLS):
            self.graph()
        self.gpu.card.record(after, self.gpu.stream)
        spent = self.work() if beside else 0.0
        return self.gpu.card.elapsed(before, after) / CALLS, spent

    def measure(self, seconds: float, asked: int | None) -> dict[str, np.ndarray]:
        """[2, turns] of the calls, host waiting and computing; of the host's work, alone and beside a burst."""
        world = self.gpu.world
        with no_gc(), self.gpu.here():
            once, _ = self.burst(False)
            self.work.fit(CALLS * world.largest(once))
            start = time.perf_counter()
            self.burst(True)
            one = 3 * world.largest(time.perf_counter() - start)
            count = asked or int(min(MOST, max(FEWEST, seconds / max(one, 1e-6))))
            calls, host = np.empty((2, count)), np.empty((2, count))
            for i in range(count):
                for beside in (i % 2 == 0, i % 2 == 1):
                    call, spent = self.burst(beside)
                    calls[int(beside), i] = call
                    if beside:
                        host[1, i] = spent
                world.barrier()
                host[0, i] = self.work()
        return {"calls": calls, "host": host}


@gpu_suite(
    "progress", "a burst of calls beside a busy host, and what the burst costs the host", order=40, default=False
)
def run(ctx: Context, gpu: Gpu) -> Result:
    shape = ctx.shape()
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    ctx.tell("weights", 0.0)
    moe = work.layer("fused", None, backend="cuda")
    sheet = Sheet(f"progress on {gpu.card.name}: {shape}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    done = []
    for i, tokens in enumerate(shape.tokens):
        ctx.tell(f"{tokens} tokens", i / len(shape.tokens))
        played = Played(gpu, work, moe, routed_call(ctx, work, tokens))
        graph = played.graph()
        errors = [played.error(graph)]
        found = Bursts(gpu, graph).measure(ctx.left() / (len(shape.tokens) - i), ctx.options.iters)
        errors += [played.now(), played.error(graph)]
        found = {name: gathered(ctx.world, t) for name, t in found.items()}  # [2, world, turns]
        done.append((tokens, found))
        sheet.records.append(_record(work, tokens, found, max(errors)))
    moe.close()
    sheet.notes.append(f"bursts of {CALLS} calls; the host multiplies [{MATRIX}, {MATRIX}] matrices for about as long")
    if ctx.world.nodes.single:
        sheet.notes.append("one node: no thread of the host moves rows here, so what the proxy takes was not measured")
    return Result(sheet.ok, [sheet], [_table(ctx, done)])


def _record(work: Workload, tokens: int, found: dict[str, np.ndarray], error: float) -> dict[str, Any]:
    calls, host = (found[name].max(axis=1) for name in ("calls", "host"))
    record: dict[str, Any] = {
        "tokens": tokens, "waits_us": float(np.median(calls[0])) * 1e6, "computes_us": float(np.median(calls[1])) * 1e6,
        "host_alone_us": float(np.median(host[0])) * 1e6, "turns": calls.shape[1], "error": error,
        "check": VERDICTS[work.passes(error)],
    }  # fmt: skip
    for name, each in (("slowdown", calls), ("host_slowdown", host)):
        middle, low, high = (ratio - 1 for ratio in ratios(each[0], each[1]))
        record |= {name: middle, f"{name}_low": low, f"{name}_high": high}
    return record


def _table(ctx: Context, done: list[tuple[int, dict[str, np.ndarray]]]) -> Table:
    """Raw times of every rank."""
    calls, host = (padded([found[name] for _, found in done]) for name in ("calls", "host"))
    table = Table("progress", "progress_cuda", attributes={"shape": str(ctx.shape()), "calls": CALLS})
    table.dim("tokens", [tokens for tokens, _ in done], "1", "tokens per rank and call")
    table.dim("host", [WAITS, COMPUTES]).dim("beside", [ALONE, COMPUTES])
    table.dim("rank", np.arange(ctx.world.size)).dim("turn", np.arange(calls.shape[-1]))
    table.add("call_time", ("tokens", "host", "rank", "turn"), calls, "s", "one call of a burst, by events")
    return table.add("host_time", ("tokens", "beside", "rank", "turn"), host, "s", "the host's work")
