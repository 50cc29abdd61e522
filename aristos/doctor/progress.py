"""Whether a put completes while its target computes, measured with and without the progress thread at the target.

Many MPI libraries make progress only inside calls. Then a put to a rank that computes waits until that rank is done,
unless Aristos's workers or its progress thread call MPI meanwhile. Bandwidth is measured by `aristos bench`.
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
HEAD_START = 0.05  # seconds of that time that pass before the put
TRIES = 3
BYTES = 4096  # MPICH completes puts up to 128 bytes at once, whatever the target does
SLOW = 0.05  # seconds; more than a progress thread that has a core needs


@dataclass(frozen=True)
class PutTimes:
    """Seconds of a put and its flush: with the target's progress thread (helped), and without it (alone).

    pair: (origin, target). remote: whether the two ranks are on different nodes.
    """

    helped: float
    alone: float
    pair: tuple[int, int]
    remote: bool


def pair(nodes: Nodes) -> tuple[int, int]:
    """Rank 0, and a rank of another node, or of the same node if there is only one."""
    return 0, (nodes.remote(0) or nodes.local(0))[0]


def progress(ranks: Ranks, multiple: bool) -> Finding:
    """Measure between two ranks while the others sleep. Collective, for two ranks or more.

    multiple: whether MPI gives MPI_THREAD_MULTIPLE.
    """
    two = pair(ranks.nodes)
    if not multiple:
        return warn(NAME, "not measured, because MPI lacks MPI_THREAD_MULTIPLE", "see the line MPI threads")
    unready = ranks.prepare(compiled, "to compile what measures RMA progress")
    for rank, why in enumerate(unready):
        if why:
            return fail(
                NAME, f"not measured: rank {rank} cannot compile kernels: {why}", "see the lines Numba and kernel cache"
            )
    error, times = "", None
    with ranks.bounded("the other ranks (MPI_Comm_split)"):
        comm = ranks.comm.Split(0 if ranks.rank in two else 1, key=ranks.rank)
    if ranks.rank in two:
        try:
            times = _between(ranks, comm)
        except Exception as why:
            error = f"{type(why).__name__}: {why}"
    results = ranks.allgather((error, times), "the measurement of RMA progress")
    comm.Free()
    failed = next((error for error, _ in results if error), "")
    if failed:
        text = f"puts between ranks {two[0]} and {two[1]} fail: {failed}"
        return fail(NAME, text, "try another network of the MPI library")
    helped, alone = results[two[0]][1]
    return judged(PutTimes(helped, alone, two, bool(ranks.nodes.remote(0))))


def compiled() -> None:
    """Compile or load what the measurement calls, before it begins: a rank that enters it alone would wait for ever."""
    from numba import int64

    from kernel_cache.compile import warm_up

    from ..kernels.cpu import lowering  # noqa: F401  compiled code of the wire needs it
    from ..primitives import wire

    one = [(function, (int64,)) for function in (wire.run_progress_thread, wire.try_lock, wire.unlock)]
    warm_up([*one, (wire.put, (int64,) * 5), (wire.flush, (int64,) * 2)], quiet=True)


def _between(ranks: Ranks, comm: Any) -> tuple[float, float]:
    """Seconds of put and flush (with, without) the target's progress thread. The origin is rank 0 of `comm`."""
    from ..transport.rma import RmaWindow

    with ranks.bounded("a window (MPI_Win_allocate)"):
        window = RmaWindow(comm, BYTES)
    found = []
    for helped in (True, False):
        with ranks.bounded(f"puts to a rank that computes {'with' if helped else 'without'} its progress thread"):
            found.append(statistics.median(_once(comm, window, helped) for _ in range(TRIES)))
    with ranks.bounded("a window to be freed"):
        window.close()
    return found[0], found[1]


def _once(comm: Any, window: Any, helped: bool) -> float:
    """Seconds of put and flush at the origin. The target computes, with or without progress thread, and returns 0."""
    from ..primitives import wire

    comm.Barrier()
    if comm.rank == 1:
        if not helped:
            _take(window.wire)  # in_call(True) alone is not enough: the progress thread acts if workers do not call MPI
        _compute(COMPUTE)
        if not helped:
            wire.unlock(window.wire)
        return 0.0
    time.sleep(HEAD_START)
    data = np.zeros(BYTES, np.uint8)
    start = time.perf_counter()
    _take(window.wire)
    wire.put(window.wire, 1, int(window.shift[1]), data.ctypes.data, data.nbytes)
    wire.flush(window.wire, 1)
    wire.unlock(window.wire)
    return time.perf_counter() - start


def _take(words: int) -> None:
    """Take the lock of a window's wire, so that no other thread of the process calls MPI. words: the wire's address."""
    from ..primitives import wire

    while not wire.try_lock(words):
        pass


def _compute(seconds: float) -> None:
    """Keep a core busy. Most of the time Python's lock is free."""
    numbers = np.ones(100_000)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        np.sqrt(numbers, out=numbers)


def judged(measured: PutTimes) -> Finding:
    """The finding for the two times."""
    helped, alone = 1e3 * measured.helped, 1e3 * measured.alone
    a, b = measured.pair
    where = f"rank {a} to {b}, {'on another node' if measured.remote else 'both on the only node'}"
    text = (
        f"{helped:.2f} ms with Aristos's progress thread, {alone:.2f} ms without, for a put of {BYTES} bytes to a rank "
    )
    text += f"that computes for {1e3 * COMPUTE:.0f} ms ({where})"
    values = {"helped_ms": helped, "alone_ms": alone, "origin": a, "target": b, "other_node": measured.remote}
    if measured.helped > SLOW:
        why = f"{text}: the target's progress thread gets no core, or MPI makes no progress in it"
        remedy = "leave a rank one core more than its threads: MoE(threads=cores - 1), or one more --cpus-per-task"
        return warn(NAME, why, remedy, **values)
    if measured.alone > SLOW:
        text += ": this MPI makes no progress while the target is outside MPI; Aristos's progress thread calls MPI"
    return ok(NAME, text, **values)
