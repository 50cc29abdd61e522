"""Suite `plan` on GPUs: runs the planner's groups and its baselines, and compares a stage with its prediction.

The ranks are on one node, one GPU each, and no link is slowed. Two measurements come first: alpha and beta of copies
between GPUs, one copy at a time, and each GPU's rate for one product, all GPUs at once. A GPU may hold all experts;
with four GPUs or more, it may hold half of them. The plan is for inference, so there is no all-reduce. Every distinct
partition becomes one layer per group, MoE(backend="cuda") with that plan, captured in a CUDA graph. The layers take
turns on the same tokens:

    stage       time of the slowest rank's call, by events; predicted: pi + C of the slowest group
    speedup     time of this partition's stage over that of the planned one, turn by turn

A stage is not split into experts and waits, because the kernel overlaps them. Every output is checked against the
float64 oracle.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import numpy as np

from ...errors import InputError
from ...planner import Problem
from ...results import Table
from ...row_types import KINDS
from ...transport.ipc import IpcWindow
from ..context import TURNS_TO_CHECK, Column, Context, Result, Sheet, counted, ratio_columns
from ..gpu.calls import Played
from ..gpu.clock import BenchGpu, ratio_values
from ..measure import Statistics, gathered
from ..registry import gpu_suite
from ..workload import Workload, routed_call
from .plan import MIB, Entry, Links, devices, entries_of, stated

SIZES = (4096, 16 << 20)  # bytes of the copies that give alpha and beta
TURNS = 10  # how often each measurement for the problem is made
MOST_ROWS = 1024  # rows of the product that gives a rate

COLUMNS = (
    Column("plan", "plan"),
    Column("groups", "groups"),
    Column("predicted_pi_us", "pi\nus", ".1f"),
    Column("predicted_comm_us", "C\nus", ".1f"),
    Column("predicted_us", "stage,\npredicted us", ".1f"),
    Column("measured_us", "stage,\nmeasured us", ".1f"),
    Column("ratio", "measured /\npredicted", ".2f"),
    *ratio_columns("speedup", "planned,\nspeed-up", ".2f"),
    *TURNS_TO_CHECK,
)


def usual(gpu: BenchGpu, call: Any) -> float:
    """Seconds of a call, the median of several."""
    return float(np.median([gpu.seconds(call) for _ in range(TURNS + 1)][1:]))


def links(gpu: BenchGpu) -> Links:
    """The latency and bandwidth of copies from GPU to GPU, as means of both directions. Collective."""
    world, device = gpu.world, gpu.device
    window = IpcWindow(world.comm, device, SIZES[-1])
    source, mine = gpu.allocate(SIZES[-1]), np.zeros((2, world.size))
    for origin in range(world.size):  # one at a time
        for p in range(world.size):
            if origin == world.rank and p != origin:
                few, many = (usual(gpu, partial(device.copy, window.base[p], source, n, gpu.stream)) for n in SIZES)
                mine[:, p] = few * 1e6, max(0.0, many - few) * 1e6 * MIB / (SIZES[1] - SIZES[0])
        world.barrier()
    window.close()
    gpu.free(source)
    both = np.stack(world.allgather(mine), axis=1)  # [2, from, to]
    both = (both + both.swapaxes(1, 2)) / 2
    return both[0], both[1]


def rate(gpu: BenchGpu, work: Workload, tokens: int) -> float:
    """This GPU's MFLOP per us in a product with as many rows as an expert has, measured on all GPUs at once.

    Collective.
    """
    from ...kernels.cuda.gemm import tile_for
    from .gemm_gpu import OURS, Products

    cfg, kind = work.cfg, KINDS[work.cfg.dtype]
    rows = max(1, min(MOST_ROWS, tokens * cfg.top_k * work.world.size // cfg.experts))
    columns = cfg.ffn * (2 if cfg.gated else 1)
    product = Products(gpu, kind, 1, cfg.hidden, columns, None, rows)
    gpu.world.barrier()
    seconds = usual(gpu, product.calls(rows, tile_for(kind, rows, gpu.device.target))[OURS])
    return 2.0 * rows * cfg.hidden * columns / seconds / 1e12


def problem_of(ctx: Context, gpu: BenchGpu, work: Workload, tokens: int) -> Problem:
    """The planner's problem for these GPUs, from measurements. Equal on every rank. Collective."""
    from ...kernels.cuda.tile import BYTES

    experts, n, of_copies = work.cfg.experts, ctx.world.size, links(gpu)
    memory = experts if n < 4 else -(-experts // 2)
    of_ranks = devices(ctx.world.allgather(rate(gpu, work, tokens)), memory, [0] * n)
    return stated(work, tokens, BYTES[KINDS[work.cfg.dtype]], of_copies, 0, of_ranks)


class Running:
    """One partition's layer in this rank's group, and its call as a graph. Collective."""

    def __init__(self, gpu: BenchGpu, work: Workload, entry: Entry, call: Any, truth: Any, stack: Any) -> None:
        moe = stack.enter_context(work.loaded(plan=entry.plan, backend="cuda"))
        self.entry, self.played = entry, Played(gpu, work, moe, call, truth=truth)
        self.graph = self.played.graph()


@gpu_suite(
    "plan",
    "planned groups against baselines on links as they are; a stage predicted and measured",
    order=90,
    ranks=2,
    share=2.0,
    default=False,
)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    if not ctx.world.nodes.single:
        raise InputError("suite plan on GPUs needs all ranks on one node, got several nodes")
    shape, world = ctx.shape(), ctx.world
    tokens = max(shape.tokens)
    work = Workload(world, shape.cfg, ctx.options.seed)
    ctx.report("links and rates", 0.0)
    problem = problem_of(ctx, gpu, work, tokens)
    entries = world.bcast(entries_of(problem) if world.lead else None)
    call, truth = routed_call(ctx, work, tokens, "uniform"), None
    with contextlib.ExitStack() as stack:
        runs = []
        for each in entries:
            runs.append(Running(gpu, work, each, call, truth, stack))
            truth = runs[0].played.truth
            each.error = runs[-1].played.error(runs[-1].graph)
        calls: dict[str, Any] = {each.entry.name: each.graph for each in runs}
        found = gpu.in_turns(calls, 0.9 * ctx.left(), ctx.options.warmup, ctx.options.iters)
        for each in runs:
            each.entry.error = max(each.entry.error, each.played.now(), each.played.error(each.graph))
            each.entry.times["stage"] = gathered(world, found[each.entry.name])
        world.barrier()
    sheet = Sheet(
        f"plan on {gpu.device.name}: {shape}, {counted(tokens, 'token')} per rank, {counted(world.size, 'rank')}",
        COLUMNS,
    )
    sheet.records = [_record(work, each, entries[0]) for each in entries]
    sheet.notes = _notes(problem)
    return Result(sheet.ok, [sheet], [_table(ctx, entries, problem)], [each.played.ran for each in runs])


def _record(work: Workload, entry: Entry, planned: Entry) -> dict[str, Any]:
    cost, worst = entry.plan.cost, entry.plan.cost.slowest
    slowest = entry.times["stage"].max(axis=0)
    measured, predicted = Statistics.from_times(slowest).median * 1e6, float(cost.pi_us[worst] + cost.comm_us[worst])
    return {
        "plan": entry.name,
        "groups": entry.groups,
        "predicted_pi_us": float(cost.pi_us[worst]),
        "predicted_comm_us": float(cost.comm_us[worst]),
        "predicted_us": predicted,
        "measured_us": measured,
        "ratio": measured / predicted,
        **ratio_values("speedup", planned.times["stage"].max(axis=0), slowest),
        "turns": len(slowest),
        **work.verdict(entry.error),
    }


def _notes(problem: Problem) -> list[str]:
    n = problem.n
    off = ~np.eye(n, dtype=bool)
    alpha, beta = problem.alpha_us[off], problem.beta_us_per_mib[off]
    return [
        f"copies between GPUs: {alpha.min():.3g} to {alpha.max():.3g} us + {beta.min():.3g} to {beta.max():.3g} us per"
        f" MiB; rates: {problem.rate.min():.3g} to {problem.rate.max():.3g} TFLOP/s",
    ]


def _table(ctx: Context, entries: list[Entry], problem: Problem) -> Table:
    """Raw times of every rank, and the problem."""
    ranks, times = np.arange(ctx.world.size), np.array([each.times["stage"] for each in entries])
    table = Table("plan", "plan_cuda", attributes={"shape": str(ctx.shape()), "kappa": problem.kappa})
    table.dim("plan", [each.name for each in entries]).dim("rank", ranks).dim("peer", ranks)
    table.dim("turn", np.arange(times.shape[-1]))
    table.add("groups", "plan", [each.groups for each in entries], "", "ranks of each group")
    table.add("rate", "rank", problem.rate, "MFLOP/us", "rate of one product, all ranks at once")
    table.add("alpha", ("rank", "peer"), problem.alpha_us * 1e-6, "s", "time of a small copy from GPU to GPU")
    table.add("beta", ("rank", "peer"), problem.beta_us_per_mib * 1e-6, "s/MiB", "time of each further MiB of a copy")
    table.add("stage_time", ("plan", "rank", "turn"), times, "s", "one call on one rank, by events")
    predicted = [float((e.plan.cost.pi_us + e.plan.cost.comm_us).max()) * 1e-6 for e in entries]
    table.add("predicted_stage", "plan", predicted, "s", "pi + C of the slowest group")
    return table.add("error", "plan", [each.error for each in entries], "1", "largest relative error against float64")
