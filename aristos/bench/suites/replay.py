"""Suite `replay`: a recorded routing, replayed in prefill batches, decode steps and small calls, fused against bulk.

    prefill   every rank has consecutive tokens of the trace, whole sequences one after another
    decode    every rank has one token of each of its unfinished sequences; token counts differ between ranks
              and steps
    call_N    every rank has N consecutive tokens of the trace: the latency of calls of 1, 16 and 256 tokens

A step is one layer call with the routing of one recorded layer. Recorded layers follow each other, and all use the
weights of one layer of the preset's width. A pass runs all steps, and every step of every pass is timed. Every output
is checked against the float64 oracle. Generated routings are measured by the suite `idle`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...models import with_max_tokens
from ...results import Table
from ..context import ERROR_AND_CHECK, Column, Context, Result, Sheet, counted, time_columns
from ..disturbance import CORE_SHARE, mark
from ..measure import Statistics, in_order, rotated
from ..ran import of_layer
from ..registry import suite
from ..routing import Trace, busiest_over_mean
from ..workload import Call, Workload, execute

CALL = "call_"  # followed by a rank's number of tokens
MOST_STEPS = {"prefill": 26, "decode": 104, "call_1": 104, "call_16": 104, "call_256": 52}
FEWEST_STEPS = 4
MOST_PASSES = 50

COLUMNS = (
    Column("phase", "phase"),
    Column("steps", "steps", "d"),
    Column("tokens_per_step", "tokens\na step", ".0f"),
    Column("busiest_median", "busiest\nrank /\nmean\nmedian", ".2f"),
    Column("busiest_most", "most", ".2f"),
    Column("schedule", "schedule"),
    *time_columns("ms", ".3f", "p95", "p99"),
    Column("tokens_per_s", "tokens/s", ",.0f"),
    Column("speedup_over_bulk", "against\nbulk", ".2f"),
    *ERROR_AND_CHECK,
)


@dataclass
class Phase:
    """The measurements of one phase.

    times: [schedule, world, step, pass] seconds of calls. core: in the same arrangement, the share of its core that
    each rank had. tokens: [step] tokens of all ranks. rows: [step, world] rows that each rank's experts compute.
    layers: [step] number of the recorded layer. errors: the largest error of each schedule. right: whether all outputs
    are right.
    """

    name: str
    times: np.ndarray
    core: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray
    layers: np.ndarray
    errors: list[float]
    right: bool


@suite(
    "replay",
    "a recorded routing (--routing FILE.npz): prefill batches, decode steps, calls of 1, 16, 256 tokens",
    order=80,
    share=3.0,
    default=False,
)
def run(ctx: Context) -> Result:
    assert ctx.trace is not None  # the command line is refused without a trace
    shape = ctx.shape()
    prefill = min(shape.tokens[-1], len(ctx.trace.ids))
    most = most_tokens(ctx.trace, prefill, ctx.world.size)
    work = Workload(ctx.world, with_max_tokens(shape.cfg, most), ctx.options.seed)
    stacked = work.weights()
    layers = {s: work.layer(s, ctx.options.threads, stacked, moves=ctx.options.moves) for s in ctx.options.schedules}
    done = []
    for i, name in enumerate(MOST_STEPS):
        ctx.report(name, i / len(MOST_STEPS))
        done.append(_phase(ctx, work, layers, ctx.trace, name, prefill, ctx.left() / (len(MOST_STEPS) - i)))
    call = work.typed(step_call(work, ctx.trace, "call_1", prefill, 0, 1)[0])
    ran = [of_layer(layer, (call.x, execute(layer, call)), work.cfg) for layer in layers.values()]
    for layer in layers.values():
        layer.close()
    sheet = Sheet(f"replay: {ctx.trace.path}, {shape}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    for phase in done:
        sheet.records += _records(work, phase, list(layers))
    sheet.notes.append(
        f"{counted(ctx.trace.layers, 'recorded layer')} in turn, {counted(len(ctx.trace.lengths), 'sequence')}"
    )
    return Result(all(p.right for p in done), [sheet], [_table(ctx, p, list(layers)) for p in done], ran)


def most_tokens(trace: Trace, prefill: int, world: int) -> int:
    """The most tokens of a rank in any step."""
    return max(prefill, -(-len(trace.lengths) // world), *(_tokens(trace, name, prefill) for name in MOST_STEPS))


def _tokens(trace: Trace, name: str, prefill: int) -> int:
    """The number of a rank's consecutive tokens in a step: the one in the phase's name, or else `prefill`."""
    return min(int(name.removeprefix(CALL)), len(trace.ids)) if name.startswith(CALL) else prefill


def step_call(work: Workload, trace: Trace, name: str, prefill: int, step: int, steps: int) -> tuple[Call, int]:
    """(this rank's call in a step, the recorded layer whose routing the call has)."""
    layer = step % trace.layers
    rank, world = work.world.rank, work.world.size
    if name != "decode":
        return work.recorded(trace, trace.prefill(rank, world, _tokens(trace, name, prefill), step), layer), layer
    position = step * (int(trace.lengths.max()) - 1) // max(1, steps)
    return work.recorded(trace, trace.decode(rank, world, position), layer), layer


def _phase(
    ctx: Context, work: Workload, layers: dict[str, Any], trace: Trace, name: str, prefill: int, seconds: float
) -> Phase:
    """Check every step, then time as many passes as fit `seconds`."""
    steps = MOST_STEPS[name]
    start = time.perf_counter()
    calls: list[Call] = []
    outputs: list[dict[str, np.ndarray]] = []
    recorded: list[int] = []
    errors = dict.fromkeys(layers, 0.0)
    right = True
    while len(calls) < steps:
        call, layer = step_call(work, trace, name, prefill, len(calls), steps)
        call = work.typed(call)
        truth = work.oracle(call)
        out = {s: np.array(execute(moe, call)) for s, moe in layers.items()}
        for s, y in out.items():
            errors[s] = max(errors[s], work.error(y, truth))
            right &= np.array_equal(y, next(iter(out.values())))
        calls.append(call)
        outputs.append(out)
        recorded.append(layer)
        each = ctx.world.largest(time.perf_counter() - start) / len(calls)
        steps = min(steps, max(FEWEST_STEPS, int(0.5 * seconds / each)))
    left = ctx.world.bcast(seconds - (time.perf_counter() - start))
    times, core, same = _play(ctx, layers, calls, outputs, left)
    rows = np.array([np.bincount(work.placement, work.rows(work.routed(c)[0]), ctx.world.size) for c in calls])
    right = ctx.world.every(right and same) and all(work.passes(e) for e in errors.values())
    tokens = np.sum(ctx.world.allgather([len(c.x) for c in calls]), axis=0)
    return Phase(name, times, core, tokens, rows.astype(np.int64), np.array(recorded), list(errors.values()), right)


def _play(
    ctx: Context, layers: dict[str, Any], calls: list[Call], outputs: list[dict[str, np.ndarray]], seconds: float
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Run passes over all calls, as many as --iters asks for or fit into `seconds`; the first of several is warm-up.

    Returns ([schedule, world, step, pass] seconds, shares of cores in the same arrangement, whether the timed outputs
    equal the checked outputs bit by bit).
    """
    passes: list[np.ndarray] = []
    cores: list[np.ndarray] = []
    buffers = [np.empty_like(c.x) for c in calls]
    play: dict[str, Any] = {
        named(i, s): partial(execute, moe, calls[i], buffers[i]) for i in range(len(calls)) for s, moe in layers.items()
    }
    wrong: list[str] = []

    def compare(name: str, _: int, elapsed: float) -> None:
        i, schedule = name.split()
        if not np.array_equal(buffers[int(i)], outputs[int(i)][schedule]):
            wrong.append(name)

    start, wanted = time.perf_counter(), ctx.options.iters or MOST_PASSES
    while len(passes) < wanted:
        order = [(named(i, s), 0) for i in range(len(calls)) for s in rotated(list(layers), len(passes))]
        taken = in_order(ctx.world, play, order, compare)
        for kept, found in ((passes, taken), (cores, taken.core)):
            whole = [[found[named(i, s)][:, 0] for i in range(len(calls))] for s in layers]
            kept.append(np.moveaxis(np.array(whole), 1, -1))  # [schedule, world, step]
        spent = ctx.world.bcast(time.perf_counter() - start)
        if ctx.options.iters is None and spent * (len(passes) + 1) / len(passes) > seconds:
            break
    if len(passes) > 1:
        passes, cores = passes[1:], cores[1:]  # the first pass is warm-up
    return np.stack(passes, axis=-1), np.stack(cores, axis=-1), not wrong


def named(step: int, schedule: str) -> str:
    """The name of a step's call of a schedule."""
    return f"{step} {schedule}"


def _records(work: Workload, phase: Phase, schedules: list[str]) -> list[dict[str, Any]]:
    flat = {s: t.reshape(len(t), -1) for s, t in zip(schedules, phase.times)}
    summaries = {s: Statistics.from_times(t) for s, t in flat.items()}
    skew = [busiest_over_mean(rows) for rows in phase.rows]
    records = []
    for s, error, had in zip(schedules, phase.errors, phase.core):
        total = float(flat[s].max(axis=0).sum()) / phase.times.shape[-1]
        records.append(
            {
                "phase": phase.name,
                "steps": len(phase.tokens),
                "tokens_per_step": float(phase.tokens.mean()),
                "busiest_median": float(np.median(skew)),
                "busiest_most": float(np.max(skew)),
                "schedule": s,
                **summaries[s].values_in("ms"),
                "tokens_per_s": float(phase.tokens.sum()) / total,
                "speedup_over_bulk": summaries["bulk"].median / summaries[s].median if "bulk" in summaries else None,
                "passes": phase.times.shape[-1],
                **work.verdict(error, phase.right),
                **mark(had.reshape(len(had), -1)),
            }
        )
    return records


def _table(ctx: Context, phase: Phase, schedules: list[str]) -> Table:
    _, world, steps, passes = phase.times.shape
    table = Table("replay", f"replay_{phase.name}", attributes={"trace": str(ctx.options.routing)})
    table.dim("schedule", schedules).dim("rank", np.arange(world)).dim("step", np.arange(steps))
    table.dim("pass", np.arange(passes))
    table.add("call_time", ("schedule", "rank", "step", "pass"), phase.times, "s", "one layer call on one rank")
    table.add("core_share", ("schedule", "rank", "step", "pass"), phase.core, "1", CORE_SHARE)
    table.add("tokens", "step", phase.tokens, "1", "tokens of all ranks")
    table.add("layer", "step", phase.layers, "1", "recorded layer whose routing the step has")
    table.add("rows", ("step", "rank"), phase.rows, "1", "rows the rank's experts compute")
    return table.add("error", "schedule", phase.errors, "1", "largest relative error against float64")
