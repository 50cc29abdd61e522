"""A layer's call on a GPU, whose inputs are made on the host and whose outputs are checked against float64.

Every suite on GPUs that calls a layer runs a `Played`: a call that is queued launch by launch or as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...row_types import BY_KIND, KINDS
from ..ran import Ran, of_gpu_layer
from ..workload import Call, Workload
from .clock import BenchGpu, GpuArray

CHECKED = 64  # tokens per call that the oracle computes


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
        with self.gpu.here():
            return self.gpu.graph(self)

    def error(self, call: Callable[[], object] | None = None, out: GpuArray | None = None) -> float:
        """Clear `out`, run `call`, which writes `out`, and return the largest error on any rank. Collective.

        By default `call` is this call, and `out` its outputs."""
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
