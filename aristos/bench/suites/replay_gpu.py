"""Suite `replay` on GPUs: a recorded routing is replayed as on CPUs, by the fused layer and by an unfused chain.

Phases and steps are those of the suite on CPUs (`suites/replay.py`). Each step is one call with the routing of one
recorded layer. Its ids and weights are on the GPU. Each step is captured in CUDA graphs:

    aristos graph   MoE(backend="cuda"), one launch of the graph
    chain ...       the unfused chains of suite `layer` with the same routing

These take turns, step by step, with cold caches (`clock.py`). `against chain` compares whole passes. Outputs of some
tokens of every step are checked against the float64 oracle, before and after all passes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...models import with_max_tokens
from ...results import Table
from ..context import ERROR_AND_CHECK, Column, Context, Result, Sheet, counted, ratio_columns, time_columns
from ..gpu.calls import Played, sample
from ..gpu.clock import BenchGpu, ratio_values
from ..gpu.rival import Rival, rival_or_why
from ..measure import Statistics, gathered, no_gc, rotated
from ..registry import gpu_suite
from ..routing import busiest_over_mean
from ..workload import Call, Workload
from .layer_gpu import GRAPH, Rivals, compared, fastest, verdict
from .replay import MOST_PASSES, MOST_STEPS, most_tokens, step_call

CHECKED = 4  # tokens per step that the oracle computes

COLUMNS = (
    Column("phase", "phase"),
    Column("steps", "steps", "d"),
    Column("tokens_per_step", "tokens\na step", ".0f"),
    Column("busiest_median", "busiest rank / mean\nmedian", ".2f"),
    Column("busiest_most", "most", ".2f"),
    Column("what", "what"),
    *time_columns("us", ".1f", "p95", "p99"),
    Column("tokens_per_s", "tokens/s", ",.0f"),
    *ratio_columns("speedup", "against\nchain", ".2f"),
    Column("passes", "passes", "d"),
    Column("used", "made of"),
    *ERROR_AND_CHECK,
)


@dataclass
class GpuPhase:
    """One phase. times: name -> [world, step, pass] seconds.

    layers: [step] the recorded layer. tokens: [step] how many tokens all ranks have. rows: [step, world] how many rows
    each rank's experts compute.
    """

    name: str
    steps: list[Rivals]
    layers: list[int]
    tokens: np.ndarray
    rows: np.ndarray
    times: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def used(self) -> dict[str, str]:
        """How each chain computes, by name."""
        chains = [(name, chain.used) for step in self.steps for name, chain in step.chains.items()]
        names = dict.fromkeys(name for name, _ in chains)
        return {name: " or ".join(dict.fromkeys(used for other, used in chains if other == name)) for name in names}

    def check(self) -> None:
        """Check every step. Collective."""
        for step in self.steps:
            step.check()

    @property
    def errors(self) -> dict[str, float]:
        """The largest error of each name."""
        return {name: max(step.worst[name] for step in self.steps) for name in self.steps[0].worst}


@gpu_suite(
    "replay", "a recorded routing (--routing FILE.npz), against the unfused chain", order=80, share=3.0, default=False
)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    assert ctx.trace is not None  # the command line is refused without a trace
    shape, trace = ctx.shape(), ctx.trace
    prefill = min(shape.tokens[-1], len(trace.ids))
    most = most_tokens(trace, prefill, ctx.world.size)
    work = Workload(ctx.world, with_max_tokens(shape.cfg, most), ctx.options.seed)
    ctx.report("weights", 0.0)
    weights = work.weights()
    moe = work.layer("fused", None, weights, backend="cuda")
    rival, notes = rival_or_why(gpu, work, weights)
    del weights
    sheet = Sheet(f"replay on {gpu.device.name}: {trace.path}, {shape}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    done = []
    for i, name in enumerate(MOST_STEPS):
        ctx.report(name, i / len(MOST_STEPS))
        phase = _phase(ctx, gpu, work, moe, name, prefill, rival)
        _play(ctx, gpu, phase, ctx.left() / (len(MOST_STEPS) - i))
        phase.check()
        sheet.records += _records(work, phase)
        done.append(phase)
    if rival is not None:
        rival.close()
    moe.close()
    sheet.notes.append(f"{counted(trace.layers, 'recorded layer')} in turn, {counted(len(trace.lengths), 'sequence')}")
    sheet.notes += notes
    return Result(sheet.ok, [sheet], [_table(ctx, phase, notes) for phase in done], [done[0].steps[0].played.ran])


def _phase(
    ctx: Context, gpu: BenchGpu, work: Workload, moe: Any, name: str, prefill: int, rival: Rival | None
) -> GpuPhase:
    """Make all steps of a phase on the GPU, captured and checked.

    One call of the oracle covers all steps, so that it generates the weights of each expert once."""
    assert ctx.trace is not None
    count = MOST_STEPS[name]
    made = [step_call(work, ctx.trace, name, prefill, i, count) for i in range(count)]
    calls, layers = [call for call, _ in made], [layer for _, layer in made]
    few = [sample(call, CHECKED)[1] for call in calls]
    truth = work.oracle(_joined(few))
    cuts = np.cumsum([len(call.x) for call in few])[:-1]
    steps = []
    for i, (call, wanted) in enumerate(zip(calls, np.split(truth, cuts))):
        ctx.report(f"{name}, step {i + 1} of {count}", 0.0)
        steps.append(Rivals(Played(gpu, work, moe, call, CHECKED, wanted), rival))
    whole = set.intersection(*(set(step.chains) for step in steps))
    for step in steps:  # a chain that failed in a step is left out, because passes are compared
        step.chains = {what: chain for what, chain in step.chains.items() if what in whole}
    tokens = np.sum(ctx.world.allgather([len(call.x) for call in calls]), axis=0)
    rows = np.array([np.bincount(work.placement, step.played.rows, ctx.world.size) for step in steps])
    phase = GpuPhase(name, steps, layers, tokens, rows.astype(np.int64))
    phase.check()
    return phase


def _joined(calls: list[Call]) -> Call:
    """One call with the tokens of all calls."""
    parts = [(call.x, call.ids, call.weights) for call in calls]
    return Call(*(np.concatenate([part[i] for part in parts]) for i in range(3)))


def _play(ctx: Context, gpu: BenchGpu, phase: GpuPhase, seconds: float) -> None:
    """Time as many passes over all steps as fit `seconds`; the first one is warm-up."""
    names, world = list(phase.steps[0].calls), ctx.world
    passes: list[np.ndarray] = []  # [what, step] of this rank
    start, wanted = time.perf_counter(), 1 + (ctx.options.iters or MOST_PASSES)
    with no_gc(), gpu.here():
        while len(passes) < wanted:
            times = np.empty((len(names), len(phase.steps)))
            for i, step in enumerate(phase.steps):
                for name in rotated(names, len(passes)):
                    world.barrier()
                    times[names.index(name), i] = gpu.seconds(step.calls[name])
            passes.append(times)
            spent = world.largest(time.perf_counter() - start)
            left = spent * (len(passes) + 1) / len(passes) <= seconds
            if ctx.options.iters is None and len(passes) > 1 and not left:
                break
    each = gathered(world, np.stack(passes[1:], axis=-1))  # [what, step, world, pass]
    phase.times = dict(zip(names, np.moveaxis(each, 2, 1)))


def _records(work: Workload, phase: GpuPhase) -> list[dict[str, Any]]:
    skew = [busiest_over_mean(rows) for rows in phase.rows]
    wrong = [name for name in phase.used if not work.passes(phase.errors[name])]
    slowest = compared({name: times.max(axis=0) for name, times in phase.times.items()}, wrong)  # [step, pass]
    whole = {name: times.sum(axis=0) for name, times in slowest.items()}
    records = []
    for name, times in slowest.items():
        record = {
            "phase": phase.name,
            "steps": len(phase.steps),
            "tokens_per_step": float(phase.tokens.mean()),
            "busiest_median": float(np.median(skew)),
            "busiest_most": float(np.max(skew)),
            "what": name,
            **verdict(work, phase.errors[name], phase.used.get(name, "")),
        }
        records.append(record)
        if name in wrong:
            continue
        summary = Statistics.from_times(times.reshape(-1))
        record |= {
            **summary.values_in("us"),
            "tokens_per_s": float(phase.tokens.sum() / np.median(whole[name])),
            "passes": times.shape[1],
        }
        if name == GRAPH and (chain := fastest(whole)) is not None:
            record |= ratio_values("speedup", whole[name], chain)
    return records


def _table(ctx: Context, phase: GpuPhase, notes: list[str]) -> Table:
    """Raw times. `error` shows which times belong to wrong outputs."""
    names = list(phase.times)
    _, steps, passes = phase.times[names[0]].shape
    table = Table("replay", f"replay_{phase.name}_cuda", attributes={"trace": str(ctx.options.routing)})
    table.attributes["rival"] = "; ".join(notes)
    table.dim("what", names).dim("rank", np.arange(ctx.world.size)).dim("step", np.arange(steps))
    table.dim("pass", np.arange(passes))
    times = [phase.times[name] for name in names]
    table.add("call_time", ("what", "rank", "step", "pass"), times, "s", "one call on one rank, by events")
    table.add("tokens", "step", phase.tokens, "1", "tokens of all ranks")
    table.add("layer", "step", phase.layers, "1", "recorded layer whose routing the step has")
    table.add("rows", ("step", "rank"), phase.rows, "1", "rows the rank's experts compute")
    return table.add("error", "what", [phase.errors[name] for name in names], "1", "largest error against float64")
