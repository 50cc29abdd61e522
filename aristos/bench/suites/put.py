"""Suite `put`: the time of a one-sided put between every pair of ranks, by size.

    latency     one put and a quiet, timed at the origin. The target's cache holds the memory that is written,
                as an owner's cache holds its ring. The quiet is an atomic, which waits until all earlier stores are
                visible
    bandwidth   16 puts (fewer for the largest sizes) to different slots, and one quiet

Between nodes (transport rma) the quiet is MPI_Win_flush, and the target makes progress. Each transport has a table.

As many pairs run at once as there are cores for both of their ranks; the other ranks sleep. A pair's latency is fitted
by alpha + beta n in two segments; the residual shows the quality of the fit. A size whose bytes did not all arrive
fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ...results import Table
from .. import fit
from ..context import CHECK, VERDICTS, Column, Context, Result, Sheet
from ..disturbance import PAIR_SHARE, mark_pairs
from ..pairs import Pairs, add_transports, bytes_text, medians, slot_bytes
from ..registry import suite

SIZES = tuple(8 << i for i in range(20))  # 8 B to 4 MiB
FLIGHT = 16  # puts in flight for bandwidth
SAMPLES = 200

COLUMNS = (
    Column("size_text", "size"),
    Column("latency_us", "latency\nus", ".3f"),
    Column("latency_p99_us", "p99\nus", ".3f"),
    Column("slowest_pair_us", "slowest\npair us", ".3f"),
    Column("bandwidth_gbs", "bandwidth\nGB/s", ".2f"),
    Column("slowest_pair_gbs", "slowest\npair GB/s", ".2f"),
    Column("fitted_us", "alpha-beta\nus", ".3f"),
    CHECK,
)


@dataclass(frozen=True)
class PutTimes:
    """What the suite measured, of all ordered pairs of ranks.

    flights: puts in flight, for each size. latency, bandwidth: [origin, target, size, sample] seconds per put. core:
    [origin, target, end, size] share of a core. good: [size] whether the bytes of a size arrived. transports: for each
    transport which ordered pairs [W, W] use it.
    """

    sizes: list[int]
    flights: list[int]
    latency: np.ndarray
    bandwidth: np.ndarray
    core: np.ndarray
    good: np.ndarray
    transports: dict[str, np.ndarray]


@suite(
    "put",
    "one-sided latency and bandwidth by size for every pair, with an alpha-beta fit",
    order=10,
    ranks=2,
    share=1.5,
    kernels=False,
)
def run(ctx: Context) -> Result:
    world = ctx.world
    with Pairs(world, slot_bytes(world, 2 * SIZES[-1])) as pairs:
        pairs.compile("put_origin", "put_target")
        sizes = [n for n in SIZES if n <= pairs.capacity]
        most = ctx.options.iters or SAMPLES
        times = np.full((2, world.size, len(sizes), most), np.nan)  # [latency or bandwidth, target, size, sample]
        core = np.full((2, world.size, 2, len(sizes)), np.nan)  # [latency or bandwidth, target, end of the pair, size]
        right = np.ones(len(sizes), bool)
        each = 0.8 * ctx.budget / (len(pairs.rounds) * len(sizes) * 2)
        for number, side in pairs.sides():
            for j, size in enumerate(sizes):
                ctx.report(f"round {number + 1} of {len(pairs.rounds)}", number / len(pairs.rounds))
                for kind in range(2):
                    if side is None:
                        continue
                    flight = _flight(pairs.capacity, size) if kind else 1
                    taken, shares = side.samples(partial(side.put_times, size, flight), each, most, ctx.options.iters)
                    right[j] &= side.verdict(partial(side.has_all, size, flight))
                    if side.first:
                        times[kind, side.target, j, : taken.size] = taken * 1e-9 / flight
                        core[kind, side.target, :, j] = shares
        flights = [_flight(pairs.capacity, n) for n in sizes]
        transports = pairs.transports()
    latency, bandwidth = np.stack(world.allgather(times), axis=1)
    shares = np.fmin(*np.stack(world.allgather(core), axis=1))  # [origin, target, end, size]
    good = np.logical_and.reduce(world.allgather(right))
    return _result(ctx, PutTimes(sizes, flights, latency, bandwidth, shares, good, transports))


def _flight(capacity: int, size: int) -> int:
    """The number of puts in flight that fit into the slots."""
    return max(1, min(FLIGHT, capacity // max(64, size)))


def _result(ctx: Context, found: PutTimes) -> Result:
    sheets = [_sheet(ctx, name, found, pairs) for name, pairs in found.transports.items()]
    return Result(bool(found.good.all()), sheets, [_table(ctx, found)])


def _sheet(ctx: Context, transport: str, found: PutTimes, pairs: np.ndarray) -> Sheet:
    """The sheet of one transport. pairs: [W, W] which ordered pairs use it."""
    sizes, latency = found.sizes, found.latency[pairs]
    (median, typical), (each, usual) = medians(latency), medians(found.bandwidth[pairs])
    whole = fit.alpha_beta(sizes, typical)
    title = f"put by {transport}: {len(median)} ordered pairs of {ctx.world.size} ranks, medians over pairs"
    sheet = Sheet(title, COLUMNS)
    for j, size in enumerate(sizes):
        sheet.records.append(
            {
                "transport": transport,
                "size_bytes": size,
                "size_text": bytes_text(size),
                "latency_us": float(typical[j]) * 1e6,
                "latency_p99_us": float(np.nanquantile(latency[:, j], 0.99)) * 1e6,
                "slowest_pair_us": float(median[:, j].max()) * 1e6,
                "bandwidth_gbs": size / float(usual[j]) / 1e9,
                "slowest_pair_gbs": size / float(each[:, j].max()) / 1e9,
                "fitted_us": float(whole(size)) * 1e6,
                "check": VERDICTS[bool(found.good[j])],
                **mark_pairs(found.core[..., j], pairs),
            }
        )
    for segment in whole.segments:
        sheet.notes.append(f"{bytes_text(segment.first)} to {bytes_text(segment.last)}: {segment}")
    worst = max(fit.alpha_beta(sizes, pair).residual for pair in median)
    sheet.notes.append(f"{whole.trust}; up to {worst:.1%} for the fit of a single pair")
    return sheet


def _table(ctx: Context, found: PutTimes) -> Table:
    sizes, latency = found.sizes, found.latency
    ranks = np.arange(ctx.world.size)
    table = Table("put", attributes={"puts_in_flight": FLIGHT})
    table.dim("origin", ranks).dim("target", ranks).dim("size", sizes, "B", "bytes of a put")
    table.dim("iteration", np.arange(latency.shape[-1])).dim("segment", [0, 1])
    over = ("origin", "target", "size", "iteration")
    table.add("latency", over, latency, "s", "one put and a quiet")
    table.add("put_time", over, found.bandwidth, "s", "time of a put with several in flight")
    table.dim("end", ["origin", "target"])
    table.add("core_share", ("origin", "target", "end", "size"), found.core, "1", PAIR_SHARE)
    table.add("in_flight", "size", found.flights, "1", "puts before a quiet for put_time")
    values = np.full((3, ctx.world.size, ctx.world.size, 2), np.nan)
    residual = np.full((ctx.world.size, ctx.world.size), np.nan)
    for o, t in np.argwhere(np.logical_or.reduce(list(found.transports.values()))):
        one = fit.alpha_beta(sizes, np.nanmedian(latency[o, t], axis=-1))
        both = (one.segments[0], one.segments[-1])
        values[:, o, t] = [[s.alpha for s in both], [s.beta for s in both], [s.last for s in both]]
        residual[o, t] = one.residual
    per_pair = ("origin", "target", "segment")
    table.add("alpha", per_pair, values[0], "s", "start-up of the alpha-beta fit")
    table.add("beta", per_pair, values[1], "s/B", "time of a byte by the alpha-beta fit")
    table.add("segment_end", per_pair, values[2], "B", "largest size of the segment")
    add_transports(table, found.transports)
    return table.add("residual", ("origin", "target"), residual, "1", "rms relative residual of the fit")
