"""Suite `progress` on GPUs: whether a call needs the host while it runs, and the host's cost of a call.

On CPUs the suite times MPI puts while the target computes (`suites/progress.py`). On a GPU blocks move rows themselves;
between nodes the host's proxy thread calls MPI for them. The suite times a burst of calls, each a CUDA graph, while the

    host waits      for the burst
    host computes   matrix products, on BLAS's threads, without using the GPU

and how much longer the host's work takes beside a burst. On one node there is no proxy thread, so its cost is not
measured, and a note says so. The times then show only that no block waits for the host. Every output is checked against
the float64 oracle.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ...results import Table
from ..context import TURNS_TO_CHECK, Column, Context, Result, Sheet, counted, ratio_columns
from ..gpu.calls import Played
from ..gpu.clock import BenchGpu, ratio_values
from ..measure import gathered, no_gc, padded
from ..registry import gpu_suite
from ..workload import Workload, routed_call

WAITS, COMPUTES, ALONE = "host waits", "host computes", "host alone"
CALLS = 20  # per burst
MATRIX = 256  # rows and columns of the host's matrix
FEWEST, MOST = 5, 50  # limits on the number of bursts of each kind

COLUMNS = (
    Column("tokens", "tokens\n/rank", "d"),
    Column("waits_us", "host waits\nus", ".1f"),
    Column("computes_us", "host computes\nus", ".1f"),
    *ratio_columns("slowdown", "of a call:\nslow-down", ".1%"),
    *ratio_columns("host_slowdown", "of the host:\nslow-down", ".1%"),
    *TURNS_TO_CHECK,
)


class HostWork:
    """The host's work: matrix products that together last about as long as a burst."""

    def __init__(self) -> None:
        self.matrix = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), np.float32)
        self.out, self.rounds = np.empty_like(self.matrix), 1

    def __call__(self) -> float:
        """Do the work. Returns its seconds."""
        start = time.perf_counter()
        for _ in range(self.rounds):
            np.matmul(self.matrix, self.matrix, out=self.out)
        return time.perf_counter() - start

    def fit(self, seconds: float) -> None:
        """Set the rounds that fit `seconds`, at least one."""
        self.rounds = 1
        one = min(self() for _ in range(5))
        self.rounds = max(1, int(seconds / max(one, 1e-7)))


class Bursts:
    """Bursts of one call, and the host's work beside them."""

    def __init__(self, gpu: BenchGpu, graph: Any) -> None:
        self.gpu, self.graph, self.work = gpu, graph, HostWork()

    def burst(self, beside: bool) -> tuple[float, float]:
        """Run a burst. Returns (seconds per call, by events; seconds of the host's work, 0 if not `beside`)."""
        before, after = self.gpu.events
        self.gpu.world.barrier()
        self.gpu.device.record(before, self.gpu.stream)
        for _ in range(CALLS):
            self.graph()
        self.gpu.device.record(after, self.gpu.stream)
        spent = self.work() if beside else 0.0
        return self.gpu.device.elapsed(before, after) / CALLS, spent

    def measure(self, seconds: float, asked: int | None) -> dict[str, np.ndarray]:
        """Measure "calls" and "host", each [2, turns] seconds. Collective.

        "calls" are calls while the host waits, and while it computes. "host" is the host's work alone, and beside a
        burst."""
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
def run(ctx: Context, gpu: BenchGpu) -> Result:
    shape = ctx.shape()
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    ctx.report("weights", 0.0)
    moe = work.layer("fused", None, backend="cuda")
    sheet = Sheet(f"progress on {gpu.device.name}: {shape}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    done = []
    for i, tokens in enumerate(shape.tokens):
        ctx.report(f"{tokens} tokens", i / len(shape.tokens))
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
        sheet.notes.append("one node: there is no proxy thread, so its cost was not measured")
    return Result(sheet.ok, [sheet], [_table(ctx, done)], [played.ran])


def _record(work: Workload, tokens: int, found: dict[str, np.ndarray], error: float) -> dict[str, Any]:
    calls, host = (found[name].max(axis=1) for name in ("calls", "host"))
    record: dict[str, Any] = {
        "tokens": tokens,
        "waits_us": float(np.median(calls[0])) * 1e6,
        "computes_us": float(np.median(calls[1])) * 1e6,
        "host_alone_us": float(np.median(host[0])) * 1e6,
        "turns": calls.shape[1],
        **work.verdict(error),
    }
    for name, each in (("slowdown", calls), ("host_slowdown", host)):
        record |= {key: ratio - 1 for key, ratio in ratio_values(name, each[0], each[1]).items()}
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
