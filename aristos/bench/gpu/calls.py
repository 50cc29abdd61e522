"""A layer's call on a card: tokens and routing are made on the host, lie on the card, and are checked against float64.

What every suite on cards plays: the call itself (`Played`), queued launch by launch or captured in a CUDA graph. It
refuses to time anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ...layer.device_arrays import KINDS
from ..context import Context
from ..workload import NEAR_TIE, Call, Workload
from .clock import Gpu, OnCard

CHECKED = 64  # tokens of a call that the oracle computes


def rounded(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 with the values that rows of a kind hold; tf32 rounds what it multiplies, not what it is given."""
    from ...kernels.cuda.pack import narrow, widen

    return values if kind == "tf32" else widen(narrow(values, kind), kind)


def settled(work: Workload, count: int, kind: str) -> np.ndarray:
    """x: [count, H] float32 with a kind's values, whose routing is no near tie: float32 and float64 then agree."""
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
    """The call with the values that rows on the card hold."""
    return replace(call, x=rounded(call.x, KINDS[work.cfg.dtype]))


def routed_call(ctx: Context, work: Workload, count: int, usual: str = "router") -> Call:
    """A call of `count` tokens on this rank, routed as --routing says; without it, in the `usual` way."""
    if ctx.trace is not None:
        where = ctx.trace.prefill(ctx.world.rank, ctx.world.size, count, 0)
        return held(work, work.recorded(ctx.trace, where, ctx.trace.layers // 2))
    how = ctx.options.routing or usual
    if how == "router":
        return Call(settled(work, count, KINDS[work.cfg.dtype]))
    return held(work, work.call(count, how, count))


def sample(call: Call, most: int = CHECKED) -> tuple[np.ndarray, Call]:
    """(numbers of at most so many of a call's tokens, spread over it; the call of these alone)."""
    count = len(call.x)
    some = np.unique(np.linspace(0, max(0, count - 1), min(most, count)).astype(np.int64))
    if call.ids is None or call.weights is None:
        return some, Call(call.x[some])
    return some, Call(call.x[some], call.ids[some], call.weights[some])


class Played:
    """One call of a layer with its arrays on the card; collective to make. rows: [E] that each expert gets.

    most: tokens that are checked. truth: what the oracle says of them, [tokens, H], where it was asked before.
    """

    def __init__(self, gpu: Gpu, work: Workload, moe: Any, call: Call, most: int = CHECKED,
                 truth: np.ndarray | None = None) -> None:  # fmt: skip
        from ...kernels.cuda.pack import narrow

        self.gpu, self.work, self.moe, self.kind = gpu, work, moe, KINDS[work.cfg.dtype]
        raw = call.x if self.kind == "tf32" else narrow(call.x, self.kind)
        self.x, self.y = gpu.array(raw, self.kind), OnCard(gpu, raw.shape, self.kind)
        self.routing: dict[str, OnCard] = {}
        if call.ids is not None and call.weights is not None:
            self.routing = {"ids": gpu.array(call.ids), "weights": gpu.array(call.weights)}
        self.count, self.rows = len(call.x), work.rows(work.routed(call)[0])
        self.some, few = sample(call, most)
        self.truth = work.oracle(few) if truth is None else truth

    def __call__(self) -> None:
        """Queue the call."""
        self.moe(self.x, out=self.y, **self.routing)

    def graph(self) -> Callable[[], None]:
        """What queues the call as a graph, captured after a call outside one, which allocates. Collective."""
        gpu = self.gpu
        with gpu.here():
            self()
            self.moe.synchronize()
            return partial(gpu.card.replay, gpu.card.graph(gpu.stream, self), gpu.stream)

    def error(self, call: Callable[[], object] | None = None, out: OnCard | None = None) -> float:
        """The largest error on any rank after the call, or another that writes to `out`, on cleared outputs."""
        gpu, out = self.gpu, out or self.y
        if out.nbytes:
            gpu.card.clear(out.at, out.nbytes, gpu.stream)
        with gpu.here():
            self.work.world.barrier()
            (call or self)()
            gpu.card.synchronize(gpu.stream)
        found = self.now(out)
        self.moe.synchronize()
        return found

    def now(self, out: OnCard | None = None) -> float:
        """The largest error on any rank of what lies in the outputs."""
        from ...kernels.cuda.pack import widen

        return self.work.error(widen((out or self.y).get(), self.kind)[self.some], self.truth)
