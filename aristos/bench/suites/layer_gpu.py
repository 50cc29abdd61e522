"""Suite `layer` on GPUs: the fused layer, called and in a CUDA graph, against the unfused chain in a CUDA graph.

    aristos         MoE(backend="cuda") called on arrays of the GPU, four launches per call
    aristos graph   the same call, captured once and replayed
    chain graph     `chain.py`: route, gather, cuBLAS per expert, scatter, captured once and replayed; one rank only
    chain, NCCL     the same on several ranks, with NCCL's all-to-all there and back, in one graph
    chain, MPI      the same in three graphs, with MPI_Alltoallv through the hosts' memory between them

All take turns on the same tokens and weights. `against chain` compares graphs, with the fastest chain. With --routing
ids and weights come from outside, and every contender checks them instead of routing. A second sheet shows the host's
cost of a launch (`launch_cost.py`). Outputs of some tokens are checked against the float64 oracle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ...results import Table
from ...row_types import KINDS
from ..context import CHECK, ERROR, VERDICTS, Column, Context, Result, Sheet, counted
from ..gpu.alltoall import Nccl, Staged, nccl_or_why
from ..gpu.calls import Played, routed_call
from ..gpu.clock import BenchGpu, GpuArray, ratios
from ..gpu.cublas import Cublas, cublas_or_why
from ..measure import Statistics, gathered, padded
from ..registry import gpu_suite
from ..workload import Call, Workload

CALLED, GRAPH = "aristos", "aristos graph"
CHAINS = CHAIN, CHAIN_NCCL, CHAIN_MPI = "chain graph", "chain, NCCL", "chain, MPI"
LAUNCH_SHARE = 0.1  # of the time, for the cost of launches

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


class Rivals:
    """Contenders for one token count, and their outputs. Making them is collective."""

    def __init__(self, gpu: BenchGpu, work: Workload, moe: Any, call: Call, rival: Rival | None) -> None:
        self.played = played = Played(gpu, work, moe, call)
        self.rows = played.rows
        self.calls: dict[str, Any] = {CALLED: played, GRAPH: played.graph()}
        self.outputs = {CALLED: played.y, GRAPH: played.y}
        for name, (chain, out) in rival.chains(played).items() if rival is not None else ():
            self.calls[name], self.outputs[name] = chain, out

    def errors(self) -> dict[str, float]:
        """The error of each on some tokens, after a call on cleared outputs. Collective."""
        return {name: self.played.error(call, self.outputs[name]) for name, call in self.calls.items()}


@dataclass
class Rival:
    """What makes the unfused chains of a layer: cuBLAS, shared buffers, and the all-to-alls by name."""

    gpu: BenchGpu
    work: Workload
    blas: Cublas
    buffers: Any
    exchanges: dict[str, Nccl | None]
    staged: list[Staged] = field(default_factory=list)

    def chains(self, played: Played) -> dict[str, tuple[Any, GpuArray]]:
        """Name -> (a function that runs the chain of a call by graphs, its outputs). Collective."""
        return {name: self._chain(played, exchange) for name, exchange in self.exchanges.items()}

    def _chain(self, played: Played, exchange: Nccl | None) -> tuple[Any, GpuArray]:
        from ..gpu import chain, rank_chain

        gpu, work, given = self.gpu, self.work, [array.at for array in played.routing.values()]
        out = GpuArray(gpu, played.y.shape, played.kind)
        of = gpu, work.cfg, played.kind, self.blas, self.buffers, played.x.at, out.at, played.count
        if work.world.size == 1:
            alone = chain.LocalChain(*of, played.rows, *given)
            alone()  # loads the kernels
            gpu.device.synchronize(gpu.stream)
            return partial(gpu.device.replay, gpu.device.graph(gpu.stream, alone), gpu.stream), out
        row_bytes = played.x.dtype.itemsize * work.cfg.hidden
        if exchange is None:
            self.staged.append(Staged(gpu, rank_chain.most_bytes(played.counts, work.placement, row_bytes)))
        shared = rank_chain.RankChain(*of, played.counts, exchange or self.staged[-1], *given)
        shared()
        gpu.device.synchronize(gpu.stream)
        return shared.graph(), out

    def close(self) -> None:
        """Free what moves rows between ranks: the chains cannot run again. Collective."""
        for each in (*self.exchanges.values(), *self.staged):
            if each is not None:
                each.close()


def rival_or_why(gpu: BenchGpu, work: Workload, moe: Any, tokens: int) -> tuple[Rival | None, list[str]]:
    """(what makes the chains, reasons why some are missing); None without cuBLAS. Collective."""
    blas, why = cublas_or_why(gpu)
    if not work.world.every(blas is not None) or blas is None:
        return None, [why or "another rank has no cuBLAS"]
    from ..gpu import chain, rank_chain  # need a compiler

    of = gpu, work.cfg, KINDS[work.cfg.dtype], moe.packed_weights(), tokens
    if work.world.size == 1:
        return Rival(gpu, work, blas, chain.LocalBuffers(*of), {CHAIN: None}), []
    nccl, why = nccl_or_why(gpu)
    exchanges = ({CHAIN_NCCL: nccl} if nccl is not None else {}) | {CHAIN_MPI: None}
    return Rival(gpu, work, blas, rank_chain.RankBuffers(*of, work.placement), exchanges), [why] if why else []


def fastest(times: dict[str, np.ndarray]) -> np.ndarray | None:
    """The times of the chain with the smallest median; None without chains. times: by name."""
    chains = [times[name] for name in CHAINS if name in times]
    return min(chains, key=lambda each: float(np.median(each)), default=None)


@gpu_suite(
    "layer",
    "called and in a CUDA graph; against an unfused chain in a CUDA graph; the host's cost of a launch",
    order=60,
    share=3.0,
)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    from ..gpu import launch_cost  # needs a compiler

    shape = ctx.shape()
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    ctx.report("weights", 0.0)
    moe = work.layer("fused", None, backend="cuda")
    rival, why = rival_or_why(gpu, work, moe, max(shape.tokens))
    sheet = Sheet(f"layer on {gpu.device.name}: {shape}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    done, launched = [], []
    for i, tokens in enumerate(shape.tokens):
        ctx.report(f"{tokens} tokens", i / len(shape.tokens))
        rivals = Rivals(gpu, work, moe, routed_call(ctx, work, tokens), rival)
        before = rivals.errors()
        share = ctx.left() / (len(shape.tokens) - i)
        found = gpu.in_turns(rivals.calls, (1 - LAUNCH_SHARE) * share, ctx.options.warmup, ctx.options.iters)
        launches = launch_cost.Launches(gpu, rivals.calls[CALLED], rivals.calls[GRAPH])
        overhead = launches.measure(LAUNCH_SHARE * share, ctx.options.iters)
        after = rivals.errors()  # the timed graphs must still give right outputs
        launched.append((tokens, overhead, work.passes(max(after[CALLED], after[GRAPH]))))
        found = {name: gathered(ctx.world, t).max(axis=0) for name, t in found.items()}
        done.append((tokens, found))
        for name, times in found.items():
            error = max(before[name], after[name])
            sheet.records.append(_record(work, rivals, tokens, name, times, fastest(found), error))
    if rival is not None:
        rival.close()
    moe.close()
    if ctx.world.size > 1:
        sheet.notes.append("ranks that share a GPU are time-sliced, and their times mean little")
    sheet.notes += why
    return Result(
        sheet.ok,
        [sheet, launch_cost.sheet(gpu, launched)],
        [_table(ctx, done), launch_cost.table(launched)],
        [rivals.played.ran],
    )


def _record(work: Workload, rivals: Rivals, tokens: int, name: str, times: np.ndarray, chain: np.ndarray | None,
            error: float) -> dict[str, Any]:  # fmt: skip
    summary, world = Statistics.of(times), work.world.size
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
    """Raw times of the slowest rank."""
    names = list(done[0][1])
    seconds = padded([[found[name] for name in names] for _, found in done])
    table = Table("layer", "layer_cuda", attributes={"shape": str(ctx.shape())})
    table.dim("tokens", [tokens for tokens, _ in done], "1", "tokens per rank and call").dim("what", names)
    table.dim("turn", np.arange(seconds.shape[-1]))
    return table.add("call_time", ("tokens", "what", "turn"), seconds, "s", "one call, on the slowest rank")
