"""Suite `overlap`: how much faster the fused schedule is than the bulk schedule, for set latencies and bandwidths.

The links are emulated (`bench/delay/`) and take no processor time: a rank does not see a word, or the end of a
collective, before it is due. By default all ranks are on one node, and each ordered pair of ranks has a link. With
--ranks-per-node N nodes are virtual, all ranks of a node share one NIC, and nothing is delayed within a node
(`bench/delay/nic.py`); --levels 2 gives both schedules two levels. Every row moves (moves="tokens"). A point is a
latency and a bandwidth. For each point the suite reports these medians over calls. The time of a call is that of its
slowest rank:

    fused, bulk          milliseconds of a call
    bulk / fused         above 1: overlap pays
    communication        share of the bulk call inside its collectives, on the rank that spends least time there
    efficiency           time of the experts alone, on local rows as in suite `layer`, / time of the call
    idle                 as in suite `idle`
    bound                max(bulk's communication, bulk's other time) / 0.9, plus the arithmetic of one tile and its
                         time on a link: a goal for the fused call where communication is 30 to 70 % of a bulk call

The comparison favours bulk. A worker of the fused schedule spends time on copying rows. The bulk schedule copies them
while its collective waits for the link anyway. A * marks bandwidths above half of the measured rate of copying: there
the copy of a row takes at least half as long as the link. Before the layers are measured, the links are checked by
pings and by MPI's all-to-alls.

If no option names a shape, the suite measures shapes A to E. Every layer has at least three calls of each schedule at
each point. Therefore a run with many points or slow links takes longer than --seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import models
from ...config import MoEConfig
from ...errors import InputError
from ...primitives import isa
from ...results import Table
from ..bounds import ExpertPhase
from ..context import CALLS_TO_CHECK, VERDICTS, Column, Context, Result, Sheet, counted
from ..disturbance import CORE_SHARE, mark
from ..measure import gathered, in_turns, iterations, padded
from ..ran import Ran, of_layer
from ..registry import suite
from ..workload import Call, Workload, execute, routed_call
from ..world import World
from .idle import IDLE, idle_share

if TYPE_CHECKING:
    from ..delay.network import Network
    from ..delay.nic import SharedNics

COMPARED = ("a", "b", "c", "d", "e")
SCHEDULES = ("bulk", "fused")
YES = {True: "yes", False: "no"}
UNLIMITED = (0.0, float("inf"))  # alpha in us, GB/s: no delay
FEWEST_CALLS, MOST_CALLS = 3, 60  # limits on the number of calls of each schedule at a point
BLOCKS = 4  # blocks of calls with the emulation, in turns with as many blocks without it
BOUND_SHARES, BOUND = (0.3, 0.7), 0.9  # shares of communication between which the bound counts; the bound's divisor
PING_BYTES, PINGS, PING_REPEATS = (0, 4096, 65536), 10, 30  # sizes, the most round trips of a try, the most tries
PING_SHARE, PING_US = 0.05, 0.5  # tolerated error, relative or absolute
EXCHANGED = 1 << 20  # bytes to each rank in a checked all-to-all
EXCHANGE_SHARE, EXCHANGES = 0.10, 15  # tolerated error, the most tries
CHECK_SECONDS = 1.0  # for the pings of one size, and for the all-to-alls, at each point; slow links get fewer tries

POINTS = (
    Column("case", "layer"),
    Column("alpha_us", "alpha\nus", "g"),
    Column("rate_text", "rate\nGB/s"),
    Column("bulk_ms", "bulk\nms", ".3f"),
    Column("fused_ms", "fused\nms", ".3f"),
    Column("speedup", "bulk /\nfused", ".2f"),
    Column("communication", "communi-\ncation", ".0%"),
    Column("bulk_efficiency", "bulk\neffi-\nciency", ".0%"),
    Column("fused_efficiency", "fused\neffi-\nciency", ".0%"),
    Column("bulk_idle", "bulk\nidle", ".0%"),
    Column("fused_idle", "fused\nidle", ".0%"),
    Column("bound_ms", "bound\nms", ".3f"),
    Column("within", "within"),
    *CALLS_TO_CHECK,
)
LINKS = (
    Column("alpha_us", "alpha\nus", "g"),
    Column("rate_text", "rate\nGB/s"),
    Column("ping_us", "64 KiB\nping us", ".2f"),
    Column("ping_off_us", "worst ping\noff us", ".2f"),
    Column("exchange_us", "all-to-all\nus", ".1f"),
    Column("exchange_model_us", "expected\nus", ".1f"),
    Column("as_set", "as set"),
)
SAME = (
    Column("case", "layer"),
    Column("schedule", "schedule"),
    Column("plain_ms", "no emulation\nms", ".3f"),
    Column("undelayed_ms", "no delay\nms", ".3f"),
    Column("ratio", "ratio", ".3f"),
    Column("noise", "noise", ".1%"),
    Column("equal", "equal"),
)


@dataclass
class PointTimes:
    """The calls at one point: schedule -> [world, iterations]. times: seconds of calls. idle: idle seconds in them.

    core: the share of its core that each rank had.
    """

    times: dict[str, np.ndarray]
    idle: dict[str, np.ndarray]
    core: dict[str, np.ndarray]

    def median(self, schedule: str) -> float:
        return float(np.median(self.times[schedule].max(axis=0)))

    def idle_share(self, schedule: str, workers: int) -> float:
        return float(np.median(idle_share(self.times[schedule], self.idle[schedule], workers)))

    def communication(self, workers: int) -> float:
        """Seconds inside the collectives of a bulk call, on the rank that spends least time there."""
        return float(np.median(self.idle["bulk"].min(axis=0))) / workers


@dataclass
class CaseTimes:
    """The times of one layer. ran: its kernels. alone: seconds of the experts alone.

    tile_share, tile_bytes: the largest tile as a share of a rank's rows, and in bytes.

    points: in the order of alpha, then rate. plain: calls without emulation. undelayed: calls with emulation but
    without delay. right: whether all outputs were right.
    """

    shape: str
    ran: Ran
    threads: int
    alone: float
    tile_share: float
    tile_bytes: int
    points: list[PointTimes] = field(default_factory=list)
    plain: list[PointTimes] = field(default_factory=list)
    undelayed: list[PointTimes] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    right: bool = True

    @property
    def name(self) -> str:
        return f"{self.shape} {self.ran.kind}"


class Match:
    """Calls of both schedules on one input.

    Every output is compared with the first one, which the oracle has checked.
    """

    def __init__(self, work: Workload, layers: dict[str, Any], call: Call) -> None:
        self.work, self.layers, self.call = work, layers, call
        self.out = np.empty_like(call.x)
        truth = work.oracle(call)
        self.wanted = np.array(execute(layers["bulk"], call))
        self.errors = {s: work.error(np.array(execute(layer, call)), truth) for s, layer in layers.items()}
        self.right = all(work.passes(e) for e in self.errors.values())

    def measure(self, count: int) -> PointTimes:
        """Run both schedules in turns, `count` times. Collective."""
        world = self.work.world
        idle = {s: np.empty(count) for s in self.layers}
        last: dict[str, Any] = {}

        def play(schedule: str) -> None:
            _, last[schedule] = execute(self.layers[schedule], self.call, self.out, return_stats=True)

        def note(schedule: str, i: int, elapsed: float) -> None:
            s = last[schedule]
            idle[schedule][i] = s.idle_seconds + s.workers * (elapsed - s.call_seconds)
            self.right &= np.array_equal(self.out, self.wanted)

        calls: dict[str, Any] = {s: partial(play, s) for s in self.layers}
        times = in_turns(world, calls, count, note)
        return PointTimes(
            dict(times),
            {s: gathered(world, idle[s]) for s in times},
            times.core,
        )


def compile_delayed(world: World) -> None:
    """Compile or load the code that delays words or puts. Collective.

    Raises InputError if ranks are on several machines, or if there are too many ranks for a link of each pair.
    """
    from ..delay import nic
    from ..delay.network import Network, check_ranks

    if (machines := len(set(world.hosts))) > 1:
        raise InputError(
            f"emulated links connect ranks of one machine, got {machines} machines: start all ranks on one,"
            " and let --ranks-per-node pretend that there are several nodes"
        )
    if not world.nodes.single:
        nic.compile_all()
        return
    check_ranks(world.nodes)
    work = Workload(world, MoEConfig(hidden=64, ffn=64, experts=world.size, top_k=1, max_tokens=8), seed=0)
    layers = {s: work.layer(s, 1, moves="tokens") for s in SCHEDULES}
    network = Network(layers["fused"].runtime, layers["bulk"]._backend.bulk)
    network.set(*UNLIMITED)
    with network:
        for layer in layers.values():
            execute(layer, work.call(8, "uniform"))
    for layer in layers.values():
        layer.close()


@suite(
    "overlap",
    "time that overlap saves: fused against bulk over emulated links (--alpha, --rate)",
    order=75,
    ranks=2,
    share=3.0,
    default=False,
    prepare=compile_delayed,
)
def run(ctx: Context) -> Result:
    links: list[dict[str, Any]] = []
    done = []
    cases = _shapes(ctx)
    for i, shape in enumerate(cases):
        work = Workload(ctx.world, shape.cfg, ctx.options.seed)
        ctx.report(shape.name, i / len(cases))
        done.append(_case(ctx, work, shape.name, shape.tokens[-1], 1 / (len(cases) - i), links))
    points = list(product(ctx.options.alpha, ctx.options.rate))
    threads = done[0].threads
    where = f"{counted(ctx.world.size, 'rank')} x {counted(threads, 'thread')}{_nodes(ctx)}"
    copy = links[0]["copy_gb_per_s"]
    checked = Sheet(f"emulated links, {where}: copying {copy:.1f} GB/s", LINKS, links)
    same = Sheet("the emulation without any delay", SAME, [r for m in done for r in _same_records(m)])
    sheet = Sheet(f"overlap over emulated links, {where}", POINTS)
    for m in done:
        sheet.records += [_record(m, point, times, copy) for point, times in zip(points, m.points)]
    sheet.notes = [_sentence(m.name, [r for r in sheet.records if r["case"] == m.name]) for m in done]
    sheets = [checked, same, sheet]
    table = _table(ctx, done, links, sheet.records)
    return Result(all(m.right for m in done), sheets, [table], [m.ran for m in done])


def _nodes(ctx: Context) -> str:
    """What a title says about virtual nodes; nothing if all ranks are on one."""
    count = ctx.world.nodes.count
    return "" if count == 1 else f", {count} virtual nodes with one NIC each, {counted(ctx.levels, 'level')}"


def _shapes(ctx: Context) -> list[models.Shape]:
    """The layer that options or a trace describe; without them the layers of the comparison.

    The layers of the comparison are measured in bfloat16 too if the core multiplies bfloat16.
    """
    o = ctx.options
    own = (o.preset, o.tokens, o.hidden, o.ffn, o.experts, o.top_k, o.activation)
    native = isa.chosen() in ("amx", "avx512bf16", "neonbf16")
    both = native and o.precision == "highest"
    dtypes = [o.dtype] if o.dtype else ["float32", "bfloat16"] if both else ["float32"]
    if any(value is not None for value in own) or ctx.trace is not None:
        return [ctx.shape()]
    given: dict[str, Any] = {"scale": o.scale, "precision": o.precision}
    made = [models.shape(name, ctx.world.size, dtype=dtype, **given) for dtype in dtypes for name in COMPARED]
    return [replace(each, cfg=replace(each.cfg, levels=ctx.levels)) for each in made]


def _case(
    ctx: Context, work: Workload, shape: str, tokens: int, share: float, links: list[dict[str, Any]]
) -> CaseTimes:
    """Measure one layer at every point. Collective.

    share: the layer's share of the time left. links: the links' records; the first call fills this list.
    """
    stacked = work.weights()
    layers = {s: work.layer(s, ctx.options.threads, stacked, moves="tokens") for s in SCHEDULES}
    network = _network(layers["fused"].runtime, layers["bulk"]._backend.bulk)
    match = Match(work, layers, work.typed(routed_call(ctx, work, tokens, "uniform")))
    counts = work.counts(work.routed(match.call)[0])
    rows = counts.sum(axis=0)
    width = match.call.x.itemsize * work.cfg.hidden
    ran = of_layer(layers["fused"], (match.call.x, match.out), work.cfg)
    m = CaseTimes(shape, ran, layers["fused"].threads, *_alone(ctx, work, layers["fused"], rows), 0)
    m.tile_bytes = int(m.tile_share * int(rows[work.local].sum())) * width
    if not links:
        links += _links(ctx, network)
    points = list(product(ctx.options.alpha, ctx.options.rate))
    first = match.measure(max(1, ctx.options.warmup))
    turn = float(sum(t.max(axis=0).min() for t in first.times.values()))
    seconds = 0.7 * share * ctx.left() / (len(points) + 2)
    count = _calls(ctx, seconds, turn)
    for _ in range(BLOCKS):
        m.plain.append(match.measure(max(1, count // BLOCKS)))
        network.set(*UNLIMITED)
        with network:
            m.undelayed.append(match.measure(max(1, count // BLOCKS)))
    crossing = width * float(max(each[work.placement != rank].sum() for rank, each in enumerate(counts)))
    for i, (alpha, rate) in enumerate(points):
        ctx.report(f"{m.name}: {alpha:g} us, {rate:g} GB/s", i / len(points))
        network.set(alpha, rate)
        with network:
            longest = _delay(alpha, rate, network.ranks_of_link * crossing)
            m.points.append(match.measure(_calls(ctx, seconds, turn + longest)))
    m.errors, m.right = match.errors, ctx.world.every(match.right)
    network.close()
    for layer in layers.values():
        layer.close()
    return m


def _network(runtime: Any, bulk: Any) -> Network | SharedNics:
    """A link for each pair of ranks of one node, or a NIC for each virtual node. Collective."""
    from ..delay.network import Network
    from ..delay.nic import SharedNics

    return (Network if runtime.group.nodes.single else SharedNics)(runtime, bulk)


def _calls(ctx: Context, seconds: float, turn: float) -> int:
    """How many calls of each schedule fit into `seconds` if one call of each takes `turn`. Collective."""
    fit = int(ctx.world.bcast(seconds / turn))
    return ctx.options.iters or min(MOST_CALLS, max(FEWEST_CALLS, fit))


def _delay(alpha: float, rate: float, nbytes: float) -> float:
    """The most seconds that links of `alpha` us and `rate` GB/s add to one call of each schedule.

    nbytes: the most bytes that a link carries to owners; as many come back. A bulk call has one more collective, for
    the counts.
    """
    return 5e-6 * alpha + 4e-9 * nbytes / rate


def _alone(ctx: Context, work: Workload, layer: Any, rows: np.ndarray) -> tuple[float, float]:
    """(seconds of the busiest rank's experts alone, share of a rank's rows in its largest tile). Collective."""
    from ...substrate.cpu.runtime import TILE

    phase = ExpertPhase(work, layer, rows)
    count = iterations(ctx.world, {"alone": phase}, 0.5, warmup=1, asked=None)
    taken = in_turns(ctx.world, {"alone": phase}, min(count, MOST_CALLS))["alone"]
    phase.close()
    tile = min(TILE, int(rows.max()) // ctx.world.size)
    return float(np.median(taken, axis=1).max()), tile / max(1.0, rows.sum() / ctx.world.size)


# ---- the links themselves


def _links(ctx: Context, network: Network | SharedNics) -> list[dict[str, Any]]:
    """Check the links' latency and bandwidth at every point. Returns a record for each point. Collective."""
    copy = ctx.world.bcast(network.copy_rate())
    records = []
    with network:
        network.set(*UNLIMITED)
        at_once = _exchange(ctx, network)
        for alpha, rate in product(ctx.options.alpha, ctx.options.rate):
            network.set(alpha, rate)
            ctx.report(f"links: {alpha:g} us, {rate:g} GB/s", 0.0)
            set_to = {n: alpha + n / (1e3 * rate) for n in PING_BYTES}
            found = {n: _ping(network, n, set_to[n]) for n in PING_BYTES}
            off = {n: abs(found[n] - set_to[n]) for n in PING_BYTES}
            ping_right = all(off[n] <= max(PING_US, PING_SHARE * set_to[n]) for n in PING_BYTES)
            model = alpha + network.carried(EXCHANGED) / (1e3 * rate)
            took = _exchange(ctx, network, model)
            fast = model < 2 * at_once  # then the real collective takes about as long as the link
            right = ping_right and (fast or abs(took - model) <= EXCHANGE_SHARE * model)
            records.append(
                {
                    "alpha_us": alpha,
                    "rate_gb_per_s": rate,
                    "rate_text": rate_text(rate, copy),
                    "copy_gb_per_s": copy,
                    "ping_us": found[PING_BYTES[-1]],
                    "ping_off_us": max(off.values()),
                    "exchange_us": took,
                    "exchange_model_us": None if fast else model,
                    "as_set": YES[bool(ctx.world.bcast(right))],
                }
            )
    return records


def rate_text(rate: float, copy: float) -> str:
    """A rate in GB/s as text, with a * if copying a row takes at least half as long as the link.

    copy: rate of copying, GB/s.
    """
    return f"{rate:g}{'*' if rate > copy / 2 else ''}"


def _tries(most: int, us: float) -> int:
    """How many tries of `us` microseconds CHECK_SECONDS allow: at least one and at most `most`."""
    return max(1, min(most, int(CHECK_SECONDS * 1e6 / us)))


def _ping(network: Network | SharedNics, nbytes: int, us: float) -> float:
    """Microseconds of a ping, the best of some tries. us: the time that it should take. Collective."""
    rounds = _tries(PINGS, 2 * us)
    return min(network.ping(nbytes, rounds) for _ in range(_tries(PING_REPEATS, 2 * us * (rounds + 1)))) * 1e6


def _exchange(ctx: Context, network: Network | SharedNics, us: float = 1.0) -> float:
    """Microseconds that an all-to-all of EXCHANGED bytes to each rank takes on the slowest rank, the best try.

    Collective. us: the time that it should take.
    """
    sent = np.ones((ctx.world.size, EXCHANGED), np.uint8)
    came = np.empty_like(sent)
    nbytes = np.full(ctx.world.size, EXCHANGED)
    call = partial(network.collective, lambda comm: comm.Alltoall(sent, came), nbytes)
    in_turns(ctx.world, {"exchange": call}, 1)
    taken = in_turns(ctx.world, {"exchange": call}, _tries(EXCHANGES, us))["exchange"]
    return float(taken.max(axis=0).min()) * 1e6


# ---- records


def _same_records(m: CaseTimes) -> list[dict[str, Any]]:
    """Records that compare calls without emulation with emulated calls without delay.

    The two kinds count as equal if they differ no more than blocks of calls of one kind do.
    """
    records = []
    for schedule in SCHEDULES:
        plain = np.array([b.median(schedule) for b in m.plain])
        undelayed = np.array([b.median(schedule) for b in m.undelayed])
        ratio = float(np.median(undelayed / plain))
        noise = max(0.02, *(float(np.ptp(v) / np.median(v)) for v in (plain, undelayed)))
        records.append(
            {
                "case": m.name,
                "schedule": schedule,
                "plain_ms": float(np.median(plain)) * 1e3,
                "undelayed_ms": float(np.median(undelayed)) * 1e3,
                "ratio": ratio,
                "noise": noise,
                "equal": YES[abs(ratio - 1) <= noise],
            }
        )
    return records


def _record(m: CaseTimes, point: tuple[float, float], t: PointTimes, copy: float) -> dict[str, Any]:
    alpha, rate = point
    bulk, fused = t.median("bulk"), t.median("fused")
    communication = t.communication(m.threads)
    share = communication / bulk
    tile = m.alone * m.tile_share + alpha * 1e-6 + m.tile_bytes / (1e9 * rate)
    bound = max(communication, bulk - communication) / BOUND + tile
    asked = BOUND_SHARES[0] <= share <= BOUND_SHARES[1]
    return {
        "case": m.name,
        "alpha_us": alpha,
        "rate_gb_per_s": rate,
        "rate_text": rate_text(rate, copy),
        "bulk_ms": bulk * 1e3,
        "fused_ms": fused * 1e3,
        "speedup": bulk / fused,
        "communication": share,
        "bulk_efficiency": m.alone / bulk,
        "fused_efficiency": m.alone / fused,
        "bulk_idle": t.idle_share("bulk", m.threads),
        "fused_idle": t.idle_share("fused", m.threads),
        "bound_ms": bound * 1e3,
        "within": YES[fused <= bound] if asked else "-",
        "iterations": t.times["fused"].shape[1],
        "error": max(m.errors.values()),
        "check": VERDICTS[m.right],
        **mark(np.concatenate(list(t.core.values()), axis=1), *t.times.values()),
    }


def _sentence(case: str, records: list[dict[str, Any]]) -> str:
    """A sentence about one layer: the point at which fused gains most, and the points at which it loses."""
    best = max(records, key=lambda r: r["speedup"])
    losing = [r for r in records if r["speedup"] < 1]

    def at(r: dict[str, Any]) -> str:
        return f"{r['alpha_us']:g} us and {r['rate_text']} GB/s"

    text = f"{case}: fused is at most {best['speedup']:.2f} times as fast as bulk, at {at(best)}"
    if not losing:
        return f"{text}; fused is not slower at any point."
    worst = min(losing, key=lambda r: r["speedup"])
    return (
        f"{text}; fused is slower than bulk at {len(losing)} of {len(records)} points, most at {at(worst)}"
        f" ({worst['speedup']:.2f} times as fast as bulk)."
    )


def _table(ctx: Context, done: list[CaseTimes], links: list[dict[str, Any]], records: list[dict[str, Any]]) -> Table:
    """Raw times. records: those of all points of all layers."""
    alphas, rates, world = ctx.options.alpha, ctx.options.rate, ctx.world.size
    shape = (len(done), len(alphas), len(rates), len(SCHEDULES), world)

    def of(name: str) -> np.ndarray:
        raw = padded([[getattr(p, name)[s] for p in m.points for s in SCHEDULES] for m in done])
        return raw.reshape(*shape, raw.shape[-1])

    times = of("times")
    table = Table("overlap", attributes={"threads": done[0].threads, "copy_gb_per_s": links[0]["copy_gb_per_s"]})
    table.dim("case", [m.name for m in done]).dim("alpha", np.array(alphas) * 1e-6, "s", "latency of a link")
    table.dim("rate", np.array(rates), "GB/s", "bandwidth of a link").dim("schedule", list(SCHEDULES))
    table.dim("rank", np.arange(world)).dim("iteration", np.arange(times.shape[-1]))
    dims = ("case", "alpha", "rate", "schedule", "rank", "iteration")
    table.add("call_time", dims, times, "s", "one layer call on one rank")
    table.add("idle_time", dims, of("idle"), "s", IDLE)
    table.add("core_share", dims, of("core"), "1", CORE_SHARE)
    table.add("experts_time", "case", [m.alone for m in done], "s", "the busiest rank's experts alone")
    bounds = np.array([record["bound_ms"] * 1e-3 for record in records]).reshape(shape[:3])
    table.add("bound", ("case", "alpha", "rate"), bounds, "s", "what a fused call should take at most")
    plain, undelayed = (
        np.array([[np.median([b.median(s) for b in getattr(m, name)]) for s in SCHEDULES] for m in done])
        for name in ("plain", "undelayed")
    )
    of_case = ("case", "schedule")
    table.add("plain_time", of_case, plain, "s", "a call without emulation, median")
    table.add("undelayed_time", of_case, undelayed, "s", "a call with emulated links without delay, median")
    errors = [[m.errors[s] for s in SCHEDULES] for m in done]
    return table.add("error", of_case, errors, "1", "largest relative error against float64")
