"""Suite `plan`: runs the planner's groups and three baselines, and compares terms of Equation 1 with measured times.

`slow_links` gives the links two classes: fast within a node, slow between nodes. On nodes of three or more ranks the
second rank's links are slow too, as if its adapter were faulty. The nodes are the job's, or pretended
(--ranks-per-node); a job on one node is split into two halves. Every peer is reached by transport rma. The problem has
these links, this machine's measured rates, and a step of 16 stages per device with one all-reduce of the dense
gradient. If a node has two ranks, a device has memory for half of the experts, so that a group needs two devices. Every
distinct partition becomes one layer per group. Calls of the partitions alternate. The rows of the table are:

    stage        time of the slowest rank's call; a median over iterations, like all times below
    pi           time that the slowest rank spends in experts; predicted: rows at the measured rate
    comm         stage - pi: puts, waits for peers, routing, packing and combining; predicted: C
    in links     the longest time that a rank waited for the set delays, those of put bytes and those of flushes
    all-reduce   a ring over the first devices of the groups, with the same delays; predicted: T_rho, over the slowest
                 link of all. MPI_Allreduce has a row of its own: it is not slowed, and must give equal sums
    step         kappa stages and the all-reduce; predicted: F

Every output is checked against the float64 oracle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...planner import Plan, Problem, parse, solve
from ...planner.baselines import all_baselines
from ...planner.cost import evaluate, link_of
from ...results import Table
from .. import bounds, ring
from ..context import CALLS_TO_CHECK, Column, Context, Result, Sheet, counted
from ..disturbance import CORE_SHARE, mark
from ..measure import gathered, in_turns, placed
from ..ran import of_layer
from ..registry import suite
from ..slow_links import SlowLinks
from ..workload import Call, Workload, routed_call

NODE, NET = (20.0, 5e3), (200.0, 50e3)  # us and us per MiB: 0.2 GB/s within a node, 0.02 GB/s between nodes
STAGES = 16  # per device and step
CROSSINGS = 2  # per forward stage: rows go, outputs return
DENSE = 12  # number of float32 parameters outside a layer's experts, divided by hidden^2
ITEM = 4  # bytes of a float32
MIB = 1 << 20
SOLVE_SECONDS = 5.0
Links = tuple[NDArray[np.float64], NDArray[np.float64]]  # (alpha_us, beta_us_per_mib), [n, n]
RATE_CALLS = 5

COLUMNS = (
    Column("plan", "plan"),
    Column("term", "term"),
    Column("predicted_ms", "predicted\nms", ".2f"),
    Column("measured_ms", "measured\nms", ".2f"),
    Column("ratio", "measured /\npredicted", ".2f"),
    *CALLS_TO_CHECK,
)


@dataclass
class Entry:
    """One partition. names: the plans that chose it.

    compute, links: seconds of each call in experts and in link delays. times: "stage", "ring", "mpi" -> [world,
    iterations] seconds. core: [world, iterations] share of its core that each rank had in the stage.
    """

    names: list[str]
    plan: Plan
    compute: list[float] = field(default_factory=list)
    links: list[float] = field(default_factory=list)
    sent: list[tuple[int, int, int]] = field(default_factory=list)  # bytes, puts, flushes
    times: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    core: NDArray[np.float64] | None = None
    error: float = np.inf
    right: bool = True

    @property
    def name(self) -> str:
        return ", ".join(self.names)

    @property
    def groups(self) -> str:
        return " ".join("+".join(map(str, members)) for members in self.plan.groups)


@suite(
    "plan",
    "planned groups against baselines on links of unequal speed; each term predicted and measured",
    order=90,
    ranks=2,
    share=2.0,
    default=False,
)
def run(ctx: Context) -> Result:
    shape = ctx.shape()
    tokens = max(shape.tokens)
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    threads = ctx.options.threads or 1
    ctx.report("rates", 0.0)
    call = routed_call(ctx, work, tokens, "uniform")
    problem = _problem(ctx, work, tokens, _rate(ctx, work, call, threads))
    entries = ctx.world.bcast(entries_of(problem) if ctx.world.lead else None)
    truth = work.oracle(call)
    outputs = []
    with contextlib.ExitStack() as stack:
        runs = [_Running(ctx, work, each, threads, call, stack) for each in entries]
        for each in runs:
            y = each.layer_call()
            outputs.append(np.array(y))
            each.entry.error = work.error(y, truth)
        _measure(ctx, runs, outputs)
        ctx.world.barrier()
        ran = [of_layer(each.moe, (each.call.x, each.out), work.cfg) for each in runs]
    for each, y in zip(entries, outputs):
        each.right = ctx.world.every(each.right and np.array_equal(y, outputs[0]))
    table, records = _table(ctx, work, entries, problem, threads)
    sheet = Sheet(_title(ctx, shape, tokens, threads), COLUMNS, records)
    sheet.notes = _notes(problem, records)
    return Result(sheet.ok, [sheet], [table], ran)


def _rate(ctx: Context, work: Workload, call: Call, threads: int) -> float:
    """This rank's MFLOP per us: one worker's rate on the rows of the rank's experts, times `threads`. Collective.

    Ranks measure one at a time, because they may share cores.

    Rates decide how many experts a rank holds. The shortest time counts, because other load only adds time.
    """
    rows = work.rows(work.routed(call)[0])
    layer = work.layer("fused", 1, moves="tokens")
    alone = bounds.ExpertPhase(work, layer, rows)
    taken = []
    for rank in range(ctx.world.size):
        if rank == ctx.world.rank:
            for _ in range(RATE_CALLS + 1):
                begun = time.perf_counter()
                alone()
                taken.append(time.perf_counter() - begun)
        ctx.world.sleepy_barrier()
    alone.close()
    layer.close()
    done = max(1, int(rows[work.local].sum())) * work.flops_per_row
    return done * threads / max(min(taken[1:]), 1e-9) / 1e12


def nodes_of(ctx: Context) -> list[int]:
    """Each rank's node: its node in the job, or if the job has only one node, its half of the ranks."""
    found = ctx.world.nodes
    return list(found.node_of) if found.count > 1 else [2 * r // ctx.world.size for r in range(ctx.world.size)]


def links(node_of: list[int]) -> Links:
    """The links to be set between the ranks."""
    n = len(node_of)
    members = [[r for r in range(n) if node_of[r] == node] for node in set(node_of)]
    faulty = {of_node[1] for of_node in members if len(of_node) > 2}
    near = [[node_of[a] == node_of[b] and not {a, b} & faulty for b in range(n)] for a in range(n)]
    alpha, beta = (np.where(near, here, there) * ~np.eye(n, dtype=bool) for here, there in zip(NODE, NET))
    return alpha, beta


def _problem(ctx: Context, work: Workload, tokens: int, rate: float) -> Problem:
    """The planner's problem for this run, from measurements. Equal on every rank. Collective."""
    experts, node_of = work.cfg.experts, nodes_of(ctx)
    memory = -(-experts // 2) if np.bincount(node_of).max() > 1 else experts
    gradient_mib = DENSE * work.cfg.hidden**2 * ITEM / MIB
    return stated(work, tokens, ITEM, links(node_of), gradient_mib, devices(ctx.world.allgather(rate), memory, node_of))


def devices(rates: list[float], memory: int, node_of: list[int]) -> list[dict[str, Any]]:
    """The planner's devices, one for each rank. rates: in MFLOP per us. memory: the experts that each may hold."""
    return [{"rate": rate, "memory": memory, "name": f"n{node_of[r]}d{r}"} for r, rate in enumerate(rates)]


def stated(work: Workload, tokens: int, item: int, set_to: Links, gradient_mib: float, devices: list[Any]) -> Problem:
    """The problem of `tokens` per rank, with costs in MFLOP. item: bytes of a row's element."""
    cfg, (alpha, beta) = work.cfg, set_to
    return parse(
        {
            "experts": cfg.experts,
            "layer_cost": tokens * cfg.top_k * work.flops_per_row / 1e6,
            "payload_mib": tokens * cfg.top_k * cfg.hidden * item / MIB,
            "crossings": CROSSINGS,
            "stages": STAGES * len(devices),
            "gradient_mib": gradient_mib,
            "devices": devices,
            "alpha_us": alpha.tolist(),
            "beta_us_per_mib": beta.tolist(),
        }
    )


def entries_of(problem: Problem) -> list[Entry]:
    """Entries of the planned partition, then of the feasible baselines. Equal partitions share an entry."""
    planned = solve(problem, deadline_s=SOLVE_SECONDS)
    found = [Entry(["planned"], planned)]
    for name, (groups, cost) in all_baselines(problem).items():
        groups = sorted(sorted(g) for g in groups)
        same = next((each for each in found if each.plan.groups == groups), None)
        if same is not None:
            same.names.append(name)
        elif np.isfinite(cost.objective_us):
            cost = evaluate(problem, groups)
            found.append(Entry([name], dataclasses.replace(planned, groups=groups, cost=cost, method=name)))
    return found


class _Running:
    """One partition on this rank: its group's layer, its links, and the all-reduce of the groups' first devices."""

    def __init__(
        self, ctx: Context, work: Workload, entry: Entry, threads: int, call: Call, stack: contextlib.ExitStack
    ) -> None:
        self.entry, self.call, world = entry, call, ctx.world
        plan = entry.plan
        self.moe = stack.enter_context(work.loaded(plan=plan, threads=threads, ranks_per_node=1))
        self.out = np.empty_like(call.x)
        members = plan.groups[self.moe.group]
        problem = plan.problem
        self.slow: SlowLinks | None = None
        wire = self.moe.runtime.wire
        if wire:
            rows = problem.alpha_us[world.rank, members], problem.beta_us_per_mib[world.rank, members]
            self.slow = stack.enter_context(SlowLinks(wire, rows[0].tolist(), rows[1].tolist()))
        heads = [g[0] for g in plan.groups]
        leads = world.rank in heads
        with world.bounded("MPI_Comm_split"):
            self.heads = world.comm.Split(0 if leads else 1, world.rank)
        stack.callback(self.heads.Free)
        self.reduces = leads and len(heads) > 1
        self.link = (0.0, 0.0)
        if self.reduces:
            self.link = link_of(problem, world.rank, heads[(heads.index(world.rank) + 1) % len(heads)])
        size = int((problem.gradient_mib or 0.0) * MIB) // ITEM
        # Sums of small integers are exact in any order, so the sums of ring and MPI must be equal.
        self.gradient = np.random.default_rng([work.seed, world.rank]).integers(-99, 99, size).astype(np.float32)
        self.sums = {"ring": np.empty_like(self.gradient), "mpi": np.empty_like(self.gradient)}

    def layer_call(self) -> Any:
        """Run one stage, and add its times to the entry."""
        call = self.call
        y, stats = self.moe(call.x, ids=call.ids, weights=call.weights, out=self.out, return_stats=True)
        waited, nbytes, puts, flushes = self.slow.taken() if self.slow is not None else (0.0, 0, 0, 0)
        self.entry.compute.append(stats.compute_seconds / stats.workers)
        self.entry.links.append(waited)
        self.entry.sent.append((nbytes, puts, flushes))
        return y

    def ring(self) -> None:
        """All-reduce the gradient over the slowed links."""
        if self.reduces:
            self.sums["ring"][:] = self.gradient
            ring.allreduce(self.heads, self.sums["ring"], *self.link)

    def mpi(self) -> None:
        """All-reduce the gradient by MPI, which is not slowed."""
        if self.reduces:
            self.heads.Allreduce(self.gradient, self.sums["mpi"])

    def sums_agree(self) -> bool:
        """Whether both all-reduces gave equal sums."""
        return not self.reduces or np.array_equal(self.sums["ring"], self.sums["mpi"])


def _measure(ctx: Context, runs: list[_Running], outputs: list[np.ndarray]) -> None:
    """Time the stages and all-reduces of all partitions in turns, and add the times to the entries. Collective."""
    calls: dict[str, Any] = {}
    for i, each in enumerate(runs):
        calls |= {f"{i} stage": each.layer_call, f"{i} ring": each.ring, f"{i} mpi": each.mpi}
    count = ctx.iterations(calls, 0.8 * ctx.left())
    for each in runs:
        each.entry.compute, each.entry.links, each.entry.sent = [], [], []

    def compare(name: str, i: int, elapsed: float) -> None:
        number, what = name.split()
        each = runs[int(number)]
        if what == "stage":
            for values in (each.entry.compute, each.entry.links, each.entry.sent):
                placed(values, i)
            ctx.report(f"{each.entry.name}, call {i + 1} of {count}", i / count)
            if i == count - 1:
                each.entry.right &= np.array_equal(each.out, outputs[int(number)])

    times = in_turns(ctx.world, calls, count, compare)
    for i, each in enumerate(runs):
        each.entry.right &= each.sums_agree()
        each.entry.core = times.core[f"{i} stage"]
        for what in ("stage", "ring", "mpi"):
            each.entry.times[what] = times[f"{i} {what}"]


def _table(
    ctx: Context, work: Workload, entries: list[Entry], problem: Problem, threads: int
) -> tuple[Table, list[dict[str, Any]]]:
    """(the table for the file, the records for the sheet). Collective."""
    ranks = np.arange(ctx.world.size)
    compute = np.array([gathered(ctx.world, np.array(e.compute)) for e in entries])
    waited = np.array([gathered(ctx.world, np.array(e.links)) for e in entries])
    sent = np.array([gathered(ctx.world, np.array(e.sent).T) for e in entries])  # [plan, 3, rank, iteration]
    stage, reduce, own = (np.array([e.times[what] for e in entries]) for what in ("stage", "ring", "mpi"))
    group = np.array([[next(g for g, m in enumerate(e.plan.groups) if r in m) for r in ranks] for e in entries])
    cost = [e.plan.cost for e in entries]
    known = ("kappa", "payload_mib", "gradient_mib", "layer_cost", "crossings")
    about = {"shape": str(ctx.shape()), "threads": threads, **{name: getattr(problem, name) for name in known}}
    table = Table("plan", attributes=about)
    table.dim("plan", [e.name for e in entries]).dim("rank", ranks).dim("peer", ranks)
    table.dim("iteration", np.arange(stage.shape[-1]))
    each, one, pair = ("plan", "rank", "iteration"), ("plan", "rank"), ("rank", "peer")
    table.add("groups", "plan", [e.groups for e in entries], "", "ranks of each group")
    table.add("group", one, group, "1", "number of each rank's group")
    table.add("rate", "rank", problem.rate, "MFLOP/us", "measured, one rank at a time")
    table.add("memory", "rank", problem.memory, "1", "experts a rank may hold")
    table.add("alpha", pair, problem.alpha_us * 1e-6, "s", "set latency of a flush")
    table.add("beta", pair, problem.beta_us_per_mib * 1e-6, "s/MiB", "set time of a put's bytes")
    table.add("stage_time", each, stage, "s", "one layer call on one rank")
    table.add("core_share", each, np.array([e.core for e in entries]), "1", CORE_SHARE)
    table.add("compute_time", each, compute, "s", "the part of stage_time in experts")
    table.add("link_time", each, waited, "s", "the part of stage_time that waits for the set delays")
    for i, (what, text) in enumerate((("bytes", "put"), ("puts", "made"), ("flushes", "made"))):
        table.add(f"link_{what}", each, sent[:, i], "B" if i == 0 else "1", f"{what} {text} in a call")
    table.add("allreduce_time", each, reduce, "s", "the ring over the set links")
    table.add("mpi_allreduce_time", each, own, "s", "MPI_Allreduce among the same ranks")
    pi = [[c.pi_us[g] * 1e-6 for g in row] for c, row in zip(cost, group)]
    comm = [[c.comm_us[g] * 1e-6 for g in row] for c, row in zip(cost, group)]
    table.add("predicted_pi", one, pi, "s", "pi of the rank's group")
    table.add("predicted_comm", one, comm, "s", "largest C of the rank's group")
    table.add("predicted_allreduce", "plan", [c.allreduce_us * 1e-6 for c in cost], "s", "T_rho: the all-reduce")
    table.add("predicted_step", "plan", [c.objective_us * 1e-6 for c in cost], "s", "F: a step")
    table.add("error", "plan", [e.error for e in entries], "1", "largest relative error against float64")
    records: list[dict[str, Any]] = []
    for i, e in enumerate(entries):
        measured = terms(problem.kappa, stage[i], compute[i], waited[i], reduce[i], own[i])
        worst = cost[i].slowest
        predicted = {
            "step": cost[i].objective_us,
            "pi": cost[i].pi_us[worst],
            "comm": cost[i].comm_us[worst],
            "all-reduce": cost[i].allreduce_us,
        }
        for term, took in measured.items():
            prediction = predicted.get(term)
            records.append(
                {
                    "plan": e.name,
                    "groups": e.plan.groups,
                    "term": term,
                    "measured_ms": took * 1e3,
                    "predicted_ms": None if prediction is None else float(prediction) / 1e3,
                    "ratio": took * 1e6 / float(prediction) if prediction else None,
                    "iterations": stage.shape[-1],
                    **work.verdict(e.error, e.right),
                    **mark(e.core, e.times["stage"]),
                }
            )
    return table, records


def terms(
    kappa: float, stage: np.ndarray, compute: np.ndarray, waited: np.ndarray, reduce: np.ndarray, own: np.ndarray
) -> dict[str, float]:
    """Measured seconds of each term, medians over iterations. The arguments: [rank, iteration] seconds."""
    slowest, at = stage.argmax(0), np.arange(stage.shape[1])
    longest, experts = stage.max(0), compute[slowest, at]
    reduced = float(np.median(reduce.max(0)))
    return {
        "step": kappa * float(np.median(longest)) + reduced,
        "pi": float(np.median(experts)),
        "comm": float(np.median(longest - experts)),
        "in links": float(np.median(waited.max(0))),
        "all-reduce": reduced,
        "MPI_Allreduce": float(np.median(own.max(0))),
    }


def _title(ctx: Context, shape: Any, tokens: int, threads: int) -> str:
    nodes = counted(len(set(nodes_of(ctx))), "node")
    where = f"{counted(ctx.world.size, 'rank')} x {counted(threads, 'thread')}, {nodes}"
    return f"plan: {shape}, {counted(tokens, 'token')} per rank, {where}"


def _notes(problem: Problem, records: list[dict[str, Any]]) -> list[str]:
    steps = [r for r in records if r["term"] == "step"]
    least = min(steps, key=lambda r: r["measured_ms"])
    first = min(steps, key=lambda r: r["predicted_ms"])
    rates = f"{problem.rate.min() * 1e3:.1f} to {problem.rate.max() * 1e3:.1f}"
    without = [name for name, (_, cost) in all_baselines(problem).items() if not np.isfinite(cost.objective_us)]
    return [
        *(f"{name} is not measured: one of its groups cannot hold all experts" for name in without),
        *(f"{r['plan']}: groups {' '.join('+'.join(map(str, g)) for g in r['groups'])}" for r in steps),
        f"set links: {NODE[0]:g} us + {NODE[1]:g} us per MiB within a node, else {NET[0]:g} us + {NET[1]:g} us per MiB;"
        f" rates measured: {rates} GFLOP/s",
        f"kappa {problem.kappa:g}, payload {problem.payload_mib:.3g} MiB, gradient {problem.gradient_mib:.3g} MiB",
        f"shortest step predicted: {first['plan']}; measured: {least['plan']}",
    ]
