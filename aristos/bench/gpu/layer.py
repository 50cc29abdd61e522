"""Suite `layer` on cards: the fused layer, called and in a CUDA graph, against the unfused chain in a CUDA graph.

    aristos         MoE(backend="cuda") called on arrays of the card, four launches a call
    aristos graph   the same call captured once and replayed
    chain graph     `chain.py`: route, gather, cuBLAS an expert, scatter, captured once and replayed; one rank alone

All take turns on the same tokens and weights. `against chain` is graph against graph. It refuses to report a time of
an output that the float64 oracle did not pass on some of the tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ...device_arrays import KINDS
from ...errors import EnvironmentProblem
from ...results import Table
from ..context import CHECK, ERROR, VERDICTS, Column, Context, Result, Sheet, counted
from ..measure import Summary, gathered
from ..registry import on_cuda
from ..workload import NEAR_TIE, Call, Workload
from .clock import Gpu, OnCard, ratios
from .cublas import Cublas

CALLED, GRAPH, CHAIN = "aristos", "aristos graph", "chain graph"
CHECKED = 64  # tokens that the oracle computes

COLUMNS = (
    Column("tokens", "tokens\n/rank", "d"),
    Column("what", "what"),
    Column("median_us", "median\nus", ".1f"),
    Column("p95_us", "p95\nus", ".1f"),
    Column("tokens_per_s", "tokens/s", ",.0f"),
    Column("tflops_per_rank", "TFLOP/s\n/rank", ".1f"),
    Column("speedup", "against\nchain", ".2f"),
    Column("speedup_low", "5 %", ".2f"),
    Column("speedup_high", "95 %", ".2f"),
    Column("turns", "turns", "d"),
    ERROR,
    CHECK,
)


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


class Rivals:
    """One number of tokens: who computes the layer, and what each has made of it."""

    def __init__(self, gpu: Gpu, work: Workload, moe: Any, count: int, blas: Cublas | None) -> None:
        from ...kernels.cuda.pack import narrow

        self.gpu, self.work, self.moe, self.kind = gpu, work, moe, KINDS[work.cfg.dtype]
        self.values = settled(work, count, self.kind)
        raw = self.values if self.kind == "tf32" else narrow(self.values, self.kind)
        self.x, self.y = gpu.array(raw, self.kind), OnCard(gpu, raw.shape, self.kind)
        self.rows = work.rows(work.routed(Call(self.values))[0])
        self.calls: dict[str, Any] = {CALLED: self._call}
        self.outputs = {CALLED: self.y}
        with gpu.here():
            self._call()  # what a first call allocates cannot be captured
            moe.synchronize()
            self.calls[GRAPH] = partial(gpu.card.replay, gpu.card.graph(gpu.stream, self._call), gpu.stream)
        self.outputs[GRAPH] = self.y
        if blas is not None and work.world.size == 1:
            self._add_chain(blas, count)

    def _call(self) -> None:
        self.moe(self.x, out=self.y)

    def _add_chain(self, blas: Cublas, count: int) -> None:
        from .chain import Chain

        gpu, out = self.gpu, OnCard(self.gpu, self.y.shape, self.kind)
        chain = Chain(
            gpu, self.work.cfg, self.kind, self.moe.device_weights(), blas, self.x.at, out.at, count, self.rows
        )
        chain()  # loads its kernels
        gpu.card.synchronize(gpu.stream)
        self.calls[CHAIN] = partial(gpu.card.replay, gpu.card.graph(gpu.stream, chain), gpu.stream)
        self.outputs[CHAIN] = out

    def errors(self) -> dict[str, float]:
        """Of each, on some tokens, after a call on cleared outputs; collective."""
        from ...kernels.cuda.pack import widen

        count = len(self.values)
        some = np.unique(np.linspace(0, count - 1, min(CHECKED, count)).astype(np.int64))
        truth, found = self.work.oracle(Call(self.values[some])), {}
        for name, call in self.calls.items():
            out = self.outputs[name]
            self.gpu.card.clear(out.at, out.nbytes, self.gpu.stream)
            with self.gpu.here():
                self.work.world.barrier()
                call()
                self.gpu.card.synchronize(self.gpu.stream)
            found[name] = self.work.error(widen(out.get(), self.kind)[some], truth)
        self.moe.synchronize()
        return found


@on_cuda("layer")
def run(ctx: Context, gpu: Gpu) -> Result:
    shape = ctx.shape()
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    ctx.tell("weights", 0.0)
    moe = work.layer("fused", None, backend="cuda")
    blas, why = None, ""
    try:
        blas = Cublas(gpu)
    except EnvironmentProblem as missing:
        why = str(missing)
    sheet = Sheet(f"layer on {gpu.card.name}: {shape}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    done = []
    for i, tokens in enumerate(shape.tokens):
        ctx.tell(f"{tokens} tokens", i / len(shape.tokens))
        rivals = Rivals(gpu, work, moe, tokens, blas)
        before = rivals.errors()
        found = gpu.in_turns(rivals.calls, ctx.left() / (len(shape.tokens) - i), ctx.options.warmup, ctx.options.iters)
        after = rivals.errors()  # the memory that was timed still gives what it gave
        found = {name: gathered(ctx.world, t).max(axis=0) for name, t in found.items()}
        done.append((tokens, found))
        for name, times in found.items():
            error = max(before[name], after[name])
            sheet.records.append(_record(work, rivals, tokens, name, times, found.get(CHAIN), error))
    moe.close()
    if ctx.world.size > 1:
        sheet.notes.append(
            "the chain is for one rank; ranks that share a card are time-sliced, and their times mean little"
        )
    if why:
        sheet.notes.append(why)
    ok = all(record["check"] == VERDICTS[True] for record in sheet.records)
    return Result(ok, [sheet], [_table(ctx, done)])


def _record(work: Workload, rivals: Rivals, tokens: int, name: str, times: np.ndarray, chain: np.ndarray | None,
            error: float) -> dict[str, Any]:  # fmt: skip
    summary, world = Summary.of(times), work.world.size
    record = {
        "tokens": tokens, "what": name, "median_us": summary.median * 1e6, "p95_us": summary.p95 * 1e6,
        "tokens_per_s": tokens * world / summary.median, "turns": len(times), "error": error,
        "tflops_per_rank": float(rivals.rows.sum()) * work.flops_per_row / world / summary.median / 1e12,
        "check": VERDICTS[work.passes(error)],
    }  # fmt: skip
    if name == GRAPH and chain is not None:
        record["speedup"], record["speedup_low"], record["speedup_high"] = ratios(times, chain)
    return record


def _table(ctx: Context, done: list[tuple[int, dict[str, np.ndarray]]]) -> Table:
    """Raw times of the slowest rank; the shorter ones end in NaN."""
    names = list(done[0][1])
    longest = max(len(t) for _, found in done for t in found.values())
    seconds = np.full((len(done), len(names), longest), np.nan)
    for i, (_, found) in enumerate(done):
        for j, name in enumerate(names):
            seconds[i, j, : len(found[name])] = found[name]
    table = Table("layer", "layer_cuda", attributes={"shape": str(ctx.shape())})
    table.dim("tokens", [tokens for tokens, _ in done], "1", "tokens per rank and call").dim("what", names)
    table.dim("turn", np.arange(longest))
    return table.add("call_time", ("tokens", "what", "turn"), seconds, "s", "one call, on the slowest rank")
