"""Upper bounds that are measured in the same run: peak arithmetic, read bandwidth, and the experts alone.

A share of a bound is meaningful only if bound and result were measured in the same state of the machine. So bounds are
measured on all ranks at once, between the layer's calls, and never taken from data sheets.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..primitives.buffers import aligned
from .workload import Call, Workload
from .world import World


def peak(world: World, threads: int, seconds: float = 0.3) -> float:
    """GFLOP/s of this rank for multiply-adds in registers, on all workers of all ranks at once. Collective."""
    from ..kernels import fma_peak

    return _together(world, threads, fma_peak, seconds)


def micro_kernel(world: World, threads: int, seconds: float = 0.3) -> float:
    """GFLOP/s of this rank for the micro-kernel on operands in its caches, on all workers at once. Collective."""
    from ..kernels import gemm_peak

    return _together(world, threads, gemm_peak, seconds)


def _together(world: World, threads: int, rate: Callable[[float], float], seconds: float) -> float:
    """The sum of the workers' rates while all work at once."""
    rates = [0.0] * threads

    def worker(i: int) -> None:
        rates[i] = rate(seconds)

    world.barrier()
    at_once(threads, worker)
    return sum(rates)


def at_once(threads: int, work: Callable[[int], None]) -> None:
    """Run work(0) to work(threads - 1) at once, each in a thread, the first one in this thread."""
    others = [threading.Thread(target=work, args=(i,)) for i in range(1, threads)]
    for thread in others:
        thread.start()
    work(0)
    for thread in others:
        thread.join()


def read_bandwidth(seconds: float = 0.3, nbytes: int = 256 << 20) -> float:
    """Bytes per second that one core reads from memory, the best of several BLAS dot products over `nbytes`."""
    values = np.ones(nbytes // 4, np.float32)
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.perf_counter()
        np.dot(values, values)
        best = max(best, values.nbytes / (time.perf_counter() - start))
    return best


def weight_bandwidth(world: World, threads: int, seconds: float = 0.2) -> float:
    """Bytes per second that all workers of this rank read from memory, on all ranks at once. Collective."""
    nbytes = (256 << 20) // threads
    return _together(world, threads, lambda seconds: read_bandwidth(seconds, nbytes), seconds)


class ExpertPhase:
    """The arithmetic of a call's experts on this rank, in one compiled loop.

    This is the phase `experts` of the bulk schedule on local rows, with the layer's own kernels, weights and workers,
    without routing, copies or waits.

    moe: a loaded layer on CPUs that is idle when the phase is called. rows: [E] rows of each expert, from all ranks
    together.
    """

    def __init__(self, work: Workload, moe: Any, rows: NDArray[np.int64]) -> None:
        from ..engine import words
        from ..layer.bulk import Bulk

        self._bulk, self._job = Bulk(moe.runtime, moe.timeout), moe._backend._jobs.open(0)
        mine = rows[work.local]
        self._order, self._ends = np.arange(mine.sum()), np.cumsum(mine)
        stride = int(self._job[words.RETURN_STRIDE])
        count = max(1, int(mine.sum()))
        self._received, self._results = (aligned((count, stride), np.uint8) for _ in range(2))
        x = work.typed(Call(work.tokens(count, 4))).x
        self._received[:, : x.itemsize * x.shape[1]] = x.view(np.uint8)
        self._results[:] = 0

    def __call__(self) -> None:
        self._bulk.run_experts(self._job, self._order, self._ends, self._received, self._results)

    def close(self) -> None:
        """End the threads that run the phase."""
        self._bulk.close()
