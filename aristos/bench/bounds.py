"""What this machine can do at best, measured in the same run as what it did: arithmetic, and the experts alone.

A share of a bound means something only if both were taken while the machine was in the same state; so these are
measured on all ranks at once, between the layer's own calls. It refuses to use data sheets.
"""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray

from .workload import Array, Workload
from .world import World


def peak(world: World, threads: int, seconds: float = 0.3) -> float:
    """GFLOP/s of the micro-kernel from the first-level cache, on all workers of all ranks at once: this rank's sum."""
    from ..kernels import gemm_peak

    rates = [0.0] * threads

    def worker(i: int) -> None:
        rates[i] = gemm_peak(seconds=seconds)

    world.barrier()
    others = [threading.Thread(target=worker, args=(i,)) for i in range(1, threads)]
    for thread in others:
        thread.start()
    worker(0)
    for thread in others:
        thread.join()
    return sum(rates)


def read_bandwidth(seconds: float = 0.3, nbytes: int = 256 << 20) -> float:
    """Bytes a second one core reads from memory: the best of several passes of a BLAS dot product over `nbytes`."""
    values = np.ones(nbytes // 4, np.float32)
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.perf_counter()
        np.dot(values, values)
        best = max(best, values.nbytes / (time.perf_counter() - start))
    return best


class ExpertsAlone:
    """The arithmetic of one call's experts on this rank with every row already here: no routing, no rank waits.

    rows: [E] rows each expert gets from all ranks together.
    """

    def __init__(self, work: Workload, rows: NDArray[np.int64], packed: list) -> None:
        rng = np.random.default_rng(work.seed)
        self._jobs = []
        for e, kernel in zip(work.local, packed):
            if rows[e]:
                x: Array = rng.standard_normal((int(rows[e]), work.cfg.hidden), np.float32)
                self._jobs.append((kernel, x, np.empty_like(x)))

    def __call__(self) -> None:
        for kernel, x, out in self._jobs:
            kernel(x, out=out)


def packed_experts(work: Workload, stacked: dict[str, Array]) -> list:
    """`aristos.kernels.Packed` of every expert of this rank."""
    from ..kernels import Packed

    return [
        Packed(**{name: w[i] for name, w in stacked.items()}, activation=work.cfg.activation, limit=work.cfg.limit)
        for i in range(len(work.local))
    ]
