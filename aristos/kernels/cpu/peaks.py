"""Measures rates of a core with which kernels are compared: multiply-adds in registers, and the micro-kernel alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from kernel_cache.compile import jit

from ...primitives.buffers import aligned
from .gemm import KC, PITCH, block
from .micro_kernels import fma_loop
from .panels import LANES, NR, ROWS, VECTORS

# vectors of sums in the loop: a full micro-kernel has as many, enough to hide the latency of a multiply-add
SUMS = ROWS * VECTORS

_fmas = fma_loop(LANES, SUMS)


@jit
def _multiply_add(times, address):
    _fmas(times, address)


@jit
def _spin(times, a, b, c, k):
    for _ in range(times):
        block(ROWS * VECTORS, a, b, c, 0, k, 0, b, 0)


def fma_peak(seconds: float = 0.3) -> float:
    """GFLOP/s of fused multiply-adds in registers. No kernel of this ISA can be faster on this core now."""
    values = aligned((SUMS, LANES))
    values[:] = 0.5
    return _best(seconds, 2 * SUMS * LANES, lambda times: _multiply_add(times, values.ctypes.data))


def gemm_peak(seconds: float = 0.3) -> float:
    """GFLOP/s of the micro-kernel alone on operands in the L1 and L2 caches.

    The result is the higher of the rates at two depths: the depth of a panel that fits L1, and KC.
    """
    a, b, c = aligned((ROWS, PITCH // 4)), aligned((KC, NR)), aligned((ROWS, NR))
    a[:], b[:] = 1e-3, 1e-3
    rows = np.array([row.ctypes.data for row in c], np.int64)
    addresses = a.ctypes.data, b.ctypes.data, rows.ctypes.data
    return max(_best(seconds / 2, 2 * ROWS * NR * k, partial(_spin_on, addresses, k)) for k in (192, KC))


def _spin_on(addresses: tuple[int, int, int], k: int, times: int) -> None:
    _spin(times, *addresses, k)


def _best(seconds: float, flops: int, run: Callable[[int], None]) -> float:
    """The highest GFLOP/s of many runs of about 0.1 ms. run(times) does `times` rounds of `flops` FLOPs."""
    times = 1 + 10_000_000 // flops
    run(1)
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.perf_counter()
        run(times)
        best = max(best, flops * times / (time.perf_counter() - start) / 1e9)
    return best
