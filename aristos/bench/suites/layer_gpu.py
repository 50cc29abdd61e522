"""Suite `layer` on GPUs: the fused layer, called and in a CUDA graph, against the unfused chain in a CUDA graph.

    aristos         MoE(backend="cuda") called on arrays of the GPU, four launches per call
    aristos graph   the same call, captured once and replayed
    chain graph     `torch_layer.py`: PyTorch's router, top-k, sort, grouped products and combine; one rank only
    chain, NCCL     the same on several ranks, with NCCL's all-to-all there and back, in one graph
    chain, MPI      the same in three graphs, with MPI_Alltoallv through the hosts' memory between them

All take turns on the same tokens and weights. `against chain` compares the layer's graph with the fastest chain. A
chain whose outputs are wrong is not timed. With --routing, ids and weights come from outside, and the layer checks them
instead of routing. A second sheet shows the host's cost of a launch (`launch_cost.py`). Outputs of some tokens are
checked against the float64 oracle.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...results import Table
from ..context import ERROR_AND_CHECK, VERDICTS, WRONG_RIVAL, Column, Context, Result, Sheet, counted, ratio_columns
from ..gpu.calls import Played
from ..gpu.clock import BenchGpu, ratio_values
from ..gpu.rival import CHAINS, Rival, rival_or_why
from ..measure import Statistics, gathered, padded
from ..registry import gpu_suite
from ..workload import Workload, routed_call

CALLED, GRAPH = "aristos", "aristos graph"
LAUNCH_SHARE = 0.1  # the share of the suite's time for measuring the cost of launches

COLUMNS = (
    Column("tokens", "tokens\n/rank", "d"),
    Column("what", "what"),
    Column("median_us", "median\nus", ".1f"),
    Column("p95_us", "p95\nus", ".1f"),
    Column("tokens_per_s", "tokens/s", ",.0f"),
    Column("tflops_per_rank", "TFLOP/s\n/rank", ".1f"),
    *ratio_columns("speedup", "against\nchain", ".2f"),
    Column("turns", "turns", "d"),
    Column("used", "made of"),
    *ERROR_AND_CHECK,
)


class Rivals:
    """The ways of one call that are compared: the layer's graph and the chains. Making a `Rivals` is collective.

    called: whether the plain call of the layer is compared too. worst: name -> largest error that `check` has found.
    """

    def __init__(self, played: Played, rival: Rival | None, called: bool = False) -> None:
        self.played, self.work = played, played.work
        self.chains = rival.chains(played) if rival is not None else {}
        self.own: dict[str, Any] = ({CALLED: played} if called else {}) | {GRAPH: played.graph()}
        self.worst: dict[str, float] = {}

    @property
    def calls(self) -> dict[str, Any]:
        """Functions that launch the call, by name."""
        return self.own | {name: chain.call for name, chain in self.chains.items()}

    @property
    def wrong(self) -> list[str]:
        """Names of the chains whose outputs are wrong."""
        return [name for name in self.chains if not self.work.passes(self.worst[name])]

    def check(self) -> None:
        """Run each call on cleared outputs, and keep in `worst` its largest error on some tokens. Collective."""
        for name, call in self.calls.items():
            out = self.chains[name].out if name in self.chains else self.played.y
            self.worst[name] = max(self.worst.get(name, 0.0), self.played.error(call, out))

    def verdict(self, name: str) -> dict[str, Any]:
        """Error and check of the call `name`, and for a chain how it computes."""
        return verdict(self.work, self.worst[name], self.chains[name].used if name in self.chains else "")


def verdict(work: Workload, error: float, used: str) -> dict[str, Any]:
    """The part of a record that says whether outputs were right. used: how a chain computes, '' for the layer."""
    if not used:
        return work.verdict(error)
    return {"error": error, "check": VERDICTS[True] if work.passes(error) else WRONG_RIVAL, "used": used}


def compared(times: dict[str, np.ndarray], wrong: Iterable[str]) -> dict[str, np.ndarray]:
    """Times by name. Those of wrong rivals are NaN."""
    return {name: np.full_like(t, np.nan) if name in wrong else t for name, t in times.items()}


def fastest(times: dict[str, np.ndarray]) -> np.ndarray | None:
    """The times of the chain with the smallest median; None without chains.

    times: by name; NaN means not to compare.
    """
    chains = [times[name] for name in CHAINS if name in times and not np.isnan(times[name]).any()]
    return min(chains, key=lambda each: float(np.median(each)), default=None)


@gpu_suite(
    "layer",
    "the layer, called and in a CUDA graph, against an unfused chain in a CUDA graph; the host's cost of a launch",
    order=60,
    share=3.0,
)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    from ..gpu import launch_cost  # needs a compiler

    shape = ctx.shape()
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    ctx.report("weights", 0.0)
    weights = work.weights()
    moe = work.layer("fused", None, weights, backend="cuda")
    rival, notes = rival_or_why(gpu, work, weights)
    del weights
    sheet = Sheet(f"layer on {gpu.device.name}: {shape}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    done, launched = [], []
    for i, tokens in enumerate(shape.tokens):
        ctx.report(f"{tokens} tokens", i / len(shape.tokens))
        rivals = Rivals(Played(gpu, work, moe, routed_call(ctx, work, tokens)), rival, called=True)
        rivals.check()
        share = ctx.left() / (len(shape.tokens) - i)
        found = gpu.in_turns(rivals.calls, (1 - LAUNCH_SHARE) * share, ctx.options.warmup, ctx.options.iters)
        launches = launch_cost.Launches(gpu, rivals.calls[CALLED], rivals.calls[GRAPH])
        overhead = launches.measure(LAUNCH_SHARE * share, ctx.options.iters)
        rivals.check()  # the timed graphs must still give right outputs
        launched.append((tokens, overhead, work.passes(max(rivals.worst[CALLED], rivals.worst[GRAPH]))))
        found = compared({name: gathered(ctx.world, t).max(axis=0) for name, t in found.items()}, rivals.wrong)
        done.append((tokens, found))
        for name, times in found.items():
            sheet.records.append(_record(work, rivals, tokens, name, times, fastest(found)))
    if rival is not None:
        rival.close()
    moe.close()
    if ctx.world.size > 1:
        sheet.notes.append("ranks that share a GPU are time-sliced, and their times mean little")
    sheet.notes += notes
    return Result(
        sheet.ok,
        [sheet, launch_cost.sheet(gpu, launched)],
        [_table(ctx, done, notes), launch_cost.table(launched)],
        [rivals.played.ran],
    )


def _record(
    work: Workload, rivals: Rivals, tokens: int, name: str, times: np.ndarray, chain: np.ndarray | None
) -> dict[str, Any]:
    record = {"tokens": tokens, "what": name, **rivals.verdict(name)}
    if name in rivals.wrong:
        return record
    summary, world = Statistics.from_times(times), work.world.size
    record |= {
        **summary.values_in("us"),
        "tokens_per_s": tokens * world / summary.median,
        "turns": len(times),
        "tflops_per_rank": float(rivals.played.rows.sum()) * work.flops_per_row / world / summary.median / 1e12,
    }
    if name == GRAPH and chain is not None:
        record |= ratio_values("speedup", times, chain)
    return record


def _table(ctx: Context, done: list[tuple[int, dict[str, np.ndarray]]], notes: list[str]) -> Table:
    """Raw times of the slowest rank."""
    names = list(dict.fromkeys(name for _, found in done for name in found))
    missing = np.full(1, np.nan)
    seconds = padded([[found.get(name, missing) for name in names] for _, found in done])
    table = Table("layer", "layer_cuda", attributes={"shape": str(ctx.shape()), "rival": "; ".join(notes)})
    table.dim("tokens", [tokens for tokens, _ in done], "1", "tokens per rank and call").dim("what", names)
    table.dim("turn", np.arange(seconds.shape[-1]))
    return table.add("call_time", ("tokens", "what", "turn"), seconds, "s", "one call, on the slowest rank")
