"""The timing, equal for every peer: rounds, in each of which every peer has one turn, in random order.

No machine is perfectly quiet, and its speed drifts. So all peers take part in every round and are compared within a
round only. Each round has a new order, from a seed that all ranks share. A turn is one untimed call, which loads the
peer's weights into the caches, and `iters` timed ones; each starts after a barrier, and its time is the slowest rank's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jobs import INPUTS, Job, Shape
from numpy.typing import NDArray
from peers import ENTRIES, Absent, Entry, Peer

from aristos import reference

TURN_SECONDS = 0.3  # about the time of the first peer's turn
ITERS = (3, 40)  # fewest and most timed calls in a turn


@dataclass
class ShapeResults:
    """The results of one shape; only rank 0 has times and peak.

    times: peer -> [rounds, iters, world] seconds; peak: [rounds, world] GFLOP/s of multiply-adds in registers;
    load: [rounds] load average; busiest: [iters] operations of the rank with most rows in that timed call; mean: the
    same averaged over ranks; errors: peer -> largest relative error on any rank and input; absent: peer -> reason;
    same_bits: whether fused and bulk gave equal outputs, bit for bit, in each dtype; outside: [2, calls] seconds, see
    micro.outside.
    """

    shape: Shape
    world: int
    iters: int = 0
    times: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    peak: NDArray[np.float64] | None = None
    load: list[float] = field(default_factory=list)
    busiest: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    errors: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    same_bits: bool | None = None
    outside: NDArray[np.float64] | None = None

    def turns(self, peer: str) -> NDArray[np.float64]:
        """[rounds] seconds: each turn's median over its calls of the slowest rank."""
        turns: NDArray[np.float64] = np.median(self.times[peer].max(axis=2), axis=1)
        return turns

    def wrong(self) -> list[str]:
        """Peers whose output missed the bound."""
        return [name for name, error in self.errors.items() if not error <= ENTRIES[name].bound]


def make_peers(comm: Any, job: Job, entries: list[Entry], measured: ShapeResults) -> dict[str, Peer]:
    """Every peer that can run here; the reasons of the others go to measured.absent. Collective."""
    peers = {}
    for entry in entries:
        try:
            peers[entry.name] = entry.make(comm, job)
        except Absent as error:
            measured.absent[entry.name] = str(error)
    return peers


def check(comm: Any, job: Job, peers: dict[str, Peer], measured: ShapeResults) -> None:
    """Check every peer on every input against float64, and fused against bulk. Collective."""
    outputs: dict[str, list[NDArray[np.float32]]] = {}
    for name, peer in peers.items():
        outputs[name] = [peer(job.xs[i], job.ids[i], job.weights[i]).copy() for i in range(INPUTS)]
        error = max(reference.error(y, right) for y, right in zip(outputs[name], job.ys))
        measured.errors[name] = max(comm.allreduce(error, op=_max()), measured.errors.get(name, 0.0))
    for fused, bulk in (("fused", "bulk"), ("bf16", "bf16-bulk")):
        if fused in outputs and bulk in outputs:
            same = all(np.array_equal(a, b) for a, b in zip(outputs[fused], outputs[bulk]))
            measured.same_bits = all(comm.allgather(same)) and measured.same_bits is not False


def run(
    comm: Any,
    job: Job,
    entries: list[Entry],
    rounds: int,
    iters: int | None,
    seed: int,
    peak: Callable[[], float] | None,
    show: Callable[[str], None],
    after: Callable[[Job, Any], NDArray[np.float64]] | None = None,
) -> ShapeResults:
    """Measure one shape: check, rounds, check again. Collective.

    peak() -> GFLOP/s has a turn of its own in every round; after(job, fused peer) fills measured.outside; show(text)
    shows progress. After an exception nothing is closed, since closing is collective: the caller ends the job.
    """
    measured = ShapeResults(job.shape, comm.size)
    peers = make_peers(comm, job, entries, measured)
    check(comm, job, peers, measured)
    timed = {name: peer for name, peer in peers.items() if name not in measured.wrong()}
    if timed:
        measured.iters = iters or choose_iters(comm, job, next(iter(timed.values())))
        take_rounds(comm, job, timed, rounds, seed, peak, measured, show)
        check(comm, job, timed, measured)
        for name in measured.wrong():
            measured.times.pop(name, None)
    if after and "fused" in timed:
        measured.outside = after(job, timed["fused"])
    for peer in peers.values():
        peer.close()
    return measured


def choose_iters(comm: Any, job: Job, peer: Peer) -> int:
    """The number of calls with which this peer's turn takes about TURN_SECONDS; equal on all ranks. Collective."""
    seconds = min(turn(comm, job, peer, 3))
    return int(np.clip(TURN_SECONDS / comm.allreduce(seconds, op=_max()), *ITERS))


def take_rounds(
    comm: Any,
    job: Job,
    peers: dict[str, Peer],
    rounds: int,
    seed: int,
    peak: Callable[[], float] | None,
    measured: ShapeResults,
    show: Callable[[str], None],
) -> None:
    """Fill measured.times, peak, load, busiest and mean. Collective."""
    draw = np.random.default_rng([seed, 1])
    names = [*peers, *(["peak"] if peak else [])]
    mine: dict[str, list[Any]] = {name: [] for name in names}
    if peak:
        peak()  # compiled and warm
    for number in range(rounds):
        for name in draw.permutation(names).tolist():
            comm.Barrier()
            if name == "peak" and peak:
                mine[name].append(peak())
            else:
                mine[name].append(turn(comm, job, peers[name], measured.iters))
        measured.load.append(os.getloadavg()[0])
        show(f"{job.shape.name}: round {number + 1} of {rounds}")
    for name in names:
        everyones = comm.gather(np.array(mine[name], dtype=np.float64))
        if everyones is not None and name == "peak":
            measured.peak = np.stack(everyones, axis=-1)
        elif everyones is not None:
            measured.times[name] = np.stack(everyones, axis=-1)
    inputs = [(i + 1) % INPUTS for i in range(measured.iters)]
    measured.busiest = job.busiest_flops()[inputs]
    measured.mean = np.array([job.shape.flops(1) * job.rows[i].mean() for i in inputs])


def turn(comm: Any, job: Job, peer: Peer, iters: int) -> list[float]:
    """This rank's seconds of each timed call; the inputs alternate."""
    seconds = []
    for i in range(iters + 1):
        x, ids, weights = job.xs[i % INPUTS], job.ids[i % INPUTS], job.weights[i % INPUTS]
        comm.Barrier()
        start = time.perf_counter()
        peer(x, ids, weights)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _max() -> Any:
    from mpi4py import MPI

    return MPI.MAX
