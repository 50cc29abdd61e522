"""Suite `progress`: the time of an MPI put while the target computes, and what progress costs the target.

Unless the network adapter writes memory by itself, MPI's one-sided puts need a core at the target. The suite takes one
pair of ranks on different nodes, or on pretended nodes if the job has only one. It reports the time that a put and a
flush take at the origin while the target

    waits     makes progress all the time
    computes  computes and does not call MPI: the put then takes the rest of the computation
    thread    computes, and its progress thread calls MPI every millisecond, as outside a layer's call
    worker    computes, and makes progress between two pieces of arithmetic, as the layer's kernels do

and how much longer the target's work takes under a stream of puts. The result holds for this network only.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from ...results import Table
from ..context import CHECK, VERDICTS, Column, Context, Result, Sheet
from ..pairs import ACK, FLAG, TAIL, Pairs, Side, bytes_text, deadline
from ..registry import suite

SIZES = (8, 4096, 65536, 1 << 20)
MODES = ("waits", "computes", "thread", "worker")
COMPUTE_NS = 20_000_000
DELAY_NS = 2_000_000  # the origin starts this much later, so that the target is inside its computation
REPEATS = 5
MOST = 2000  # the most puts per repeat
UNEVEN = 0.1  # how much a core's speed usually varies; if it varies more, other load shares the core

COLUMNS = (
    Column("size_text", "size"),
    *(Column(f"{mode}_us", f"target\n{mode} us", ".1f") for mode in MODES),
    Column("thread_slowdown", "thread\nslow-down", ".1%"),
    Column("worker_slowdown", "worker\nslow-down", ".1%"),
    CHECK,
)


@suite(
    "progress",
    "a put's time while the target computes, and what progress costs it",
    order=40,
    ranks=2,
    default=False,
    kernels=False,
)
def run(ctx: Context) -> Result:
    from .. import oneside_rma

    world = ctx.world
    pretended = world.nodes.single
    with Pairs(world, SIZES[-1], ranks_per_node=1 if pretended else None) as pairs:
        oneside_rma.compile_for_progress()
        target = pairs.group.nodes.remote(0)[0]
        repeats = ctx.options.iters or REPEATS
        # seconds of puts [mode, size, repeat, put], and of rounds of the target [mode, size, repeat], where size 0 has
        # no puts
        puts = np.full((len(MODES), len(SIZES), repeats, MOST), np.nan)
        computing = np.full((len(MODES), 1 + len(SIZES), repeats), np.nan)
        right = True
        if world.rank in (0, target):
            side = Side(pairs, world.rank, target if world.rank == 0 else 0, world.rank == 0)
            right = _measure(ctx, side, puts, computing)
        world.sleepy_barrier()
    puts = world.bcast(puts)
    computing = np.nanmax(world.allgather(np.nan_to_num(computing, nan=-1.0)), axis=0)
    return _result(target, pretended, puts, computing, world.every(right))


def _measure(ctx: Context, side: Side, puts: np.ndarray, computing: np.ndarray) -> bool:
    """Measure all modes and sizes in turns. Returns whether every payload arrived."""
    right = True
    for r in range(puts.shape[2]):
        for m, mode in enumerate(MODES):
            for s, size in enumerate((0, *SIZES)):
                ctx.report(f"target {mode}", (r + m / len(MODES)) / puts.shape[2])
                taken = _turn(side, mode, size)
                if side.first and size:
                    puts[m, s - 1, r, : taken.size] = taken
                elif not side.first:
                    computing[m, s, r] = taken[0]
                if size:
                    right &= side.verdict(partial(side.has_all, size, 1))
    return right


def _turn(side: Side, mode: str, size: int) -> np.ndarray:
    """Run one repeat. Returns the seconds of the puts at the origin, or of one round of computation at the target."""
    from .. import oneside_rma

    pairs, wire = side.pairs, side.pairs.wire
    assert pairs.rma is not None
    go, end, done = (side.advance(kind, 1) + 1 for kind in (FLAG, ACK, TAIL))
    flag, ack, tail = side.word(side.target, FLAG), side.word(side.origin, ACK), side.word(side.target, TAIL)
    if side.first:
        source, out = side.payload(size), np.zeros(MOST, np.int64)
        oneside_rma.put_word(wire, side.peer, flag, side.coded, go)
        count = 0
        if size:
            span = COMPUTE_NS // 4 if mode == "computes" else COMPUTE_NS - 2 * DELAY_NS
            to = wire, side.peer, side.slots(side.target), source.ctypes.data, size
            count = oneside_rma.put_for(*to, DELAY_NS, span, deadline(), out)
        side.bounded(oneside_rma.await_coded(wire, ack, end, deadline()))
        oneside_rma.put_word(wire, side.peer, tail, side.coded, done)
        return out[: 1 if mode == "computes" else count] * 1e-9
    side.bounded(oneside_rma.await_coded(wire, flag, go, deadline()))
    out = np.ones(3, np.int64)
    if mode == "waits":
        until = time.monotonic_ns() + COMPUTE_NS
        while time.monotonic_ns() < until:
            oneside_rma.await_coded(wire, flag, go + 1, time.monotonic_ns())
    else:
        pairs.rma.in_call(mode != "thread")
        oneside_rma.compute(wire if mode == "worker" else 0, COMPUTE_NS, out)
        pairs.rma.in_call(True)
    oneside_rma.put_word(wire, side.peer, ack, side.coded, end)
    side.bounded(oneside_rma.await_coded(wire, tail, done, deadline()))
    return out[:1] / out[1] * 1e-9


def _uneven(computing: np.ndarray) -> float:
    """Slow-down without puts: the slowest mode's median round against the fastest. computing: [mode, size, repeat]."""
    rounds = computing[MODES.index("computes") :, 0]
    return float(np.median(rounds, axis=1).max() / rounds.min() - 1)


def _result(target: int, pretended: bool, puts: np.ndarray, computing: np.ndarray, right: bool) -> Result:
    sheet = Sheet(f"progress: puts of rank 0 to rank {target} while it computes, medians", COLUMNS)
    taken = np.nanmedian(puts, axis=(2, 3))  # [mode, size]
    spent = np.median(computing, axis=2)  # [mode, 1 + size]
    slower = spent[:, 1:] / np.maximum(spent[:, :1], 1e-12) - 1
    for s, size in enumerate(SIZES):
        record = {"size_bytes": size, "size_text": bytes_text(size), "check": VERDICTS[right]}
        record |= {f"{mode}_us": float(taken[m, s]) * 1e6 for m, mode in enumerate(MODES)}
        record |= {f"{mode}_slowdown": float(slower[MODES.index(mode), s]) for mode in ("thread", "worker")}
        sheet.records.append(record)
    if pretended:
        sheet.notes.append("the ranks share a node, where MPI may store directly into the target's memory")
    sheet.notes.append(f"the target computes for {COMPUTE_NS / 1e6:.0f} ms")
    uneven = _uneven(computing)
    if uneven > UNEVEN:
        sheet.notes.append(
            f"WARNING: without any put the target's work took {uneven:.0%} longer than at its fastest:"
            " the two ranks did not have a core each; do not trust these times and slow-downs"
        )
    table = Table("progress", attributes={"origin": 0, "target": target, "pretended_nodes": int(pretended)})
    table.dim("mode", list(MODES)).dim("size", SIZES, "B", "bytes of a put")
    table.dim("repeat", np.arange(puts.shape[2])).dim("put", np.arange(puts.shape[3]))
    table.dim("traffic", (0, *SIZES), "B", "bytes of each put during the computation; 0 is none")
    table.add("put_time", ("mode", "size", "repeat", "put"), puts, "s", "a put and a flush at the origin")
    table.add("compute_time", ("mode", "traffic", "repeat"), computing, "s", "a round of the target's computation")
    return Result(right, [sheet], [table])
