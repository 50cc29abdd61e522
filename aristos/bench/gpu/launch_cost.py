"""The time that the host needs to launch a layer's call, the call's graph, and an empty kernel.

    call                  MoE(x, out=y): the host's checks and four launches
    call, graph           the same call, captured once and replayed
    empty kernel          a kernel of one block with the persistent kernel's two arguments, launched the same way
    empty kernel, graph   the same, captured once and replayed

By the host's clock and on an empty stream, `queued` is the time until the launch returns, `done` the time until the
stream has finished. `done` of an empty kernel is a lower bound for any call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ...kernels.cuda.catalogue import Kernel
from ...kernels.cuda.compiler import cuda, types
from ...results import Table
from ..context import CHECK, VERDICTS, Column, Sheet
from ..measure import padded
from .clock import BenchGpu

CALL, CALL_GRAPH, EMPTY, EMPTY_GRAPH = "call", "call, graph", "empty kernel", "empty kernel, graph"

COLUMNS = (
    Column("tokens", "tokens\n/rank", "d"),
    Column("what", "what"),
    Column("queued_us", "queued\nus", ".2f"),
    Column("queued_p95_us", "p95\nus", ".2f"),
    Column("done_us", "done\nus", ".2f"),
    Column("done_p95_us", "p95\nus", ".2f"),
    Column("turns", "turns", "d"),
    CHECK,
)


@cuda.jit
def nothing(job, state):
    return  # numba-cuda cannot compile a body that is only a docstring


NOTHING = Kernel("empty", nothing, (types.int64,) * 2, 32, 0, 1)


class Launches:
    """Host times of the four launches. call, graph: functions that queue a layer's call and its graph."""

    def __init__(self, gpu: BenchGpu, call: Callable[[], object], graph: Callable[[], object]) -> None:
        self.gpu = gpu
        empty = partial(gpu.launch, NOTHING, 1, 0, 0, 0)
        self.calls: dict[str, Callable[[], object]] = {
            CALL: call,
            CALL_GRAPH: graph,
            EMPTY: empty,
            EMPTY_GRAPH: gpu.graph(empty),
        }

    def once(self, call: Callable[[], object]) -> tuple[float, float]:
        """(seconds until `call` was queued, seconds until the stream had finished it)."""
        start = time.perf_counter()
        call()
        queued = time.perf_counter() - start
        self.gpu.device.synchronize(self.gpu.stream)
        return queued, time.perf_counter() - start

    def measure(self, seconds: float, asked: int | None) -> dict[str, np.ndarray]:
        """Time the four launches in turns. Returns name -> [2, turns]: seconds until queued, seconds until done.

        asked: the number of turns; None for as many as fit `seconds`. Collective.
        """
        return self.gpu.in_turns(self.calls, seconds, 1, asked, clock=self.once)


def sheet(gpu: BenchGpu, done: list[tuple[int, dict[str, np.ndarray], bool]]) -> Sheet:
    """The table for the reader. done: for each call (tokens, times, whether the outputs were right afterwards)."""
    shown = Sheet(f"launching on {gpu.device.name}, by the host's clock", COLUMNS)
    for tokens, found, right in done:
        for name, times in found.items():
            record: dict[str, Any] = {"tokens": tokens, "what": name, "turns": times.shape[1], "check": VERDICTS[right]}
            for key, each in zip(("queued", "done"), times):
                middle, high = np.quantile(each, [0.5, 0.95]) * 1e6
                record |= {f"{key}_us": float(middle), f"{key}_p95_us": float(high)}
            shown.records.append(record)
    return shown


def table(done: list[tuple[int, dict[str, np.ndarray], bool]]) -> Table:
    """Raw times of this rank."""
    names = list(done[0][1])
    seconds = padded([[found[name] for name in names] for _, found, _ in done])
    made = Table("layer", "launch_cuda")
    made.dim("tokens", [tokens for tokens, *_ in done], "1", "tokens per rank and call").dim("what", names)
    made.dim("until", ["queued", "done"]).dim("turn", np.arange(seconds.shape[-1]))
    return made.add("time", ("tokens", "what", "until", "turn"), seconds, "s", "by the host's clock")
