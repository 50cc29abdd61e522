"""A layer's call on a GPU, whose inputs are made on the host and whose outputs are checked against float64.

Every suite on GPUs runs a `Played`, which is a call that is queued launch by launch or captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ...row_types import BY_KIND, KINDS
from ..context import Context
from ..ran import Ran, of_gpu_layer
from ..workload import NEAR_TIE, Call, Workload
from .clock import BenchGpu, GpuArray

CHECKED = 64  # tokens per call that the oracle computes


def rounded(values: np.ndarray, kind: str) -> np.ndarray:
    """Values rounded to a kind's rows, as float32. Rows of tf32 stay float32, because tf32 rounds only factors of
    products."""
    from ...kernels.cuda.pack import narrow, widen

    return widen(narrow(values, kind), kind) if BY_KIND[kind].rounds else values


def settled(work: Workload, count: int, kind: str) -> np.ndarray:
    """Draw x: [count, H] float32, rounded to a kind.

    The router's scores of x have no near ties, so that float32 and float64 route alike.
    """
    x = rounded(work.tokens(count, count), kind)
    rng, k = np.random.default_rng(work.world.rank), work.cfg.top_k
    while count and k < work.cfg.experts:
        scores = -np.sort(-(x.astype(np.float64) @ work.router), axis=1)
        close = np.flatnonzero(scores[:, k - 1] - scores[:, k] < NEAR_TIE)
        if not len(close):
            break
        x[close] = rounded(rng.standard_normal((len(close), x.shape[1]), np.float32), kind)
    return x


def held(work: Workload, call: Call) -> Call:
    """The same call with x rounded to the type of rows on the GPU."""
    return replace(call, x=rounded(call.x, KINDS[work.cfg.dtype]))


def routed_call(ctx: Context, work: Workload, count: int, usual: str = "router") -> Call:
    """A call of `count` tokens on this rank, routed as --routing says, or without that option as `usual` says."""
    if ctx.trace is not None:
        where = ctx.trace.prefill(ctx.world.rank, ctx.world.size, count, 0)
        return held(work, work.recorded(ctx.trace, where, ctx.trace.layers // 2))
    how = ctx.options.routing or usual
    if how == "router":
        return Call(settled(work, count, KINDS[work.cfg.dtype]))
    return held(work, work.call(count, how, count))


def sample(call: Call, most: int = CHECKED) -> tuple[np.ndarray, Call]:
    """(indices of at most `most` tokens, spread over the call; the call with these tokens alone)."""
    count = len(call.x)
    some = np.unique(np.linspace(0, max(0, count - 1), min(most, count)).astype(np.int64))
    if call.ids is None or call.weights is None:
        return some, Call(call.x[some])
    return some, Call(call.x[some], call.ids[some], call.weights[some])


class Played:
    """One call of a layer with its arrays on the GPU. Making one is collective.

    counts: [W, E] rows of each rank for each expert; rows: [E] their sums over ranks.

    most: number of tokens to check. truth: [tokens, H] the oracle's outputs of these tokens, if already known.
    """

    def __init__(
        self, gpu: BenchGpu, work: Workload, moe: Any, call: Call, most: int = CHECKED, truth: np.ndarray | None = None
    ) -> None:
        from ...kernels.cuda.pack import narrow

        self.gpu, self.work, self.moe, self.kind = gpu, work, moe, KINDS[work.cfg.dtype]
        raw = narrow(call.x, self.kind) if BY_KIND[self.kind].rounds else call.x
        self.x, self.y = gpu.array(raw, self.kind), GpuArray(gpu, raw.shape, self.kind)
        self.routing: dict[str, GpuArray] = {}
        if call.ids is not None and call.weights is not None:
            self.routing = {"ids": gpu.array(call.ids), "weights": gpu.array(call.weights)}
        self.count, self.counts = len(call.x), work.counts(work.routed(call)[0])
        self.rows = self.counts.sum(axis=0)
        self.some, few = sample(call, most)
        self.truth = work.oracle(few) if truth is None else truth

    @property
    def ran(self) -> Ran:
        """The kernels that ran in the call."""
        return of_gpu_layer(self.gpu, self.moe, (self.x, self.y), self.work.cfg)

    def __call__(self) -> None:
        """Queue the call."""
        self.moe(self.x, out=self.y, **self.routing)

    def graph(self) -> Callable[[], None]:
        """A function that launches the call as a graph. A plain call, which allocates, runs before the capture.

        Collective.
        """
        gpu = self.gpu
        with gpu.here():
            self()
            self.moe.synchronize()
            return partial(gpu.device.replay, gpu.device.graph(gpu.stream, self), gpu.stream)

    def error(self, call: Callable[[], object] | None = None, out: GpuArray | None = None) -> float:
        """The largest error on any rank of the outputs that `call`, by default this call, writes to `out`.

        The outputs are cleared before the call. Collective."""
        gpu, out = self.gpu, out or self.y
        if out.nbytes:
            gpu.device.clear(out.at, out.nbytes, gpu.stream)
        with gpu.here():
            self.work.world.barrier()
            (call or self)()
            gpu.device.synchronize(gpu.stream)
        found = self.now(out)
        self.moe.synchronize()
        return found

    def now(self, out: GpuArray | None = None) -> float:
        """The largest error on any rank of the present outputs. Collective."""
        from ...kernels.cuda.pack import widen

        return self.work.error(widen((out or self.y).get(), self.kind)[self.some], self.truth)
