"""Does a put land while its target computes? Measured with Aristos's pacing thread at the target, and without.

MPI lets a library make progress only inside its calls. Then a put to a rank that computes waits until that rank is
done; Aristos's threads and kernels call MPI in between. It refuses to measure bandwidth: `aristos bench` does.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..host.nodes import Nodes
from .finding import Finding, fail, ok, warn
from .ranks import Ranks

NAME = "RMA progress"
COMPUTE = 0.3  # seconds the target computes
HEAD_START = 0.05  # seconds of them before the put
TRIES = 3
BYTES = 4096  # MPICH gives puts up to 128 bytes away at once, whatever the target does
SLOW = 0.05  # seconds: more than a pacing thread that gets a core needs


@dataclass(frozen=True)
class Measured:
    """Seconds of put and flush; pair: (origin, target)."""

    paced: float
    alone: float
    pair: tuple[int, int]
    far: bool


def pair(nodes: Nodes) -> tuple[int, int]:
    """Rank 0 and a rank of another node, or else of its own."""
    return 0, (nodes.remote(0) or nodes.local(0))[0]


def progress(ranks: Ranks, multiple: bool) -> Finding:
    """Measure between two ranks while the others sleep. Collective, two ranks at least. multiple: threads may."""
    two = pair(ranks.nodes)
    if not multiple:
        return warn(NAME, "not measured: it takes MPI_THREAD_MULTIPLE", "see MPI threads")
    error, times = "", None
    with ranks.bounded("the other ranks (MPI_Comm_split)"):
        comm = ranks.comm.Split(0 if ranks.rank in two else 1, key=ranks.rank)
    if ranks.rank in two:
        try:
            times = _between(ranks, comm)
        except Exception as why:
            error = f"{type(why).__name__}: {why}"
    told = ranks.allgather((error, times), "the measurement of RMA progress")
    comm.Free()
    failed = next((error for error, _ in told if error), "")
    if failed:
        text = f"puts between ranks {two[0]} and {two[1]} fail: {failed}"
        return fail(NAME, text, "try another network of the MPI library")
    paced, alone = told[two[0]][1]
    return judged(Measured(paced, alone, two, bool(ranks.nodes.remote(0))))


def _between(ranks: Ranks, comm: Any) -> tuple[float, float]:
    """(seconds with, seconds without the target's pacing) at the origin, rank 0 of `comm`."""
    from numba import int64

    from ..primitives import wire
    from ..primitives.compile import warm_up
    from ..transport.rma import RmaWindow

    warm_up([(wire.pace, (int64,)), (wire.put, (int64,) * 5), (wire.flush, (int64,) * 2)], quiet=True)
    with ranks.bounded("a window (MPI_Win_allocate)"):
        window = RmaWindow(comm, BYTES)
    found = []
    for paced in (True, False):
        with ranks.bounded(f"puts to a rank that computes {'with' if paced else 'without'} pacing (MPI_Win_flush)"):
            found.append(statistics.median(_once(comm, window, paced) for _ in range(TRIES)))
    with ranks.bounded("a window to be freed"):
        window.close()
    return found[0], found[1]


def _once(comm: Any, window: Any, paced: bool) -> float:
    """Seconds that put and flush take; 0 at the target, which computes and leaves MPI to its pacing thread or none."""
    from ..primitives import wire

    comm.Barrier()
    if comm.rank == 1:
        if not paced:
            _take(window.wire)  # in_call(True) would not do: pacing steps in for workers that do not come
        _compute(COMPUTE)
        if not paced:
            wire.leave(window.wire)
        return 0.0
    time.sleep(HEAD_START)
    data = np.zeros(BYTES, np.uint8)
    start = time.perf_counter()
    _take(window.wire)
    wire.put(window.wire, 1, int(window.shift[1]), data.ctypes.data, data.nbytes)
    wire.flush(window.wire, 1)
    wire.leave(window.wire)
    return time.perf_counter() - start


def _take(words: int) -> None:
    """Become the one thread of this process that calls MPI, by a window's wire."""
    from ..primitives import wire

    while not wire.take(words):
        pass


def _compute(seconds: float) -> None:
    """Keep a core busy, without Python's lock most of the time."""
    numbers = np.ones(100_000)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        np.sqrt(numbers, out=numbers)


def judged(measured: Measured) -> Finding:
    """What the two times mean."""
    paced, alone = 1e3 * measured.paced, 1e3 * measured.alone
    a, b = measured.pair
    where = f"rank {a} to {b}, {'on another node' if measured.far else 'both on the only node'}"
    text = f"{paced:.2f} ms with Aristos's pacing, {alone:.2f} ms without, for a put of {BYTES} bytes to a rank "
    text += f"that computes for {1e3 * COMPUTE:.0f} ms ({where})"
    values = {"paced_ms": paced, "alone_ms": alone, "origin": a, "target": b, "other_node": measured.far}
    if measured.paced > SLOW:
        why = f"{text}: the target's pacing thread gets no core, or MPI moves nothing for it"
        remedy = "leave a rank one core more than its threads: MoE(threads=cores - 1), or one more --cpus-per-task"
        return warn(NAME, why, remedy, **values)
    if measured.alone > SLOW:
        text += ": this MPI moves nothing while the target is outside MPI; Aristos calls it in between"
    return ok(NAME, text, **values)
