"""Kernels whose results do not depend on the schedule, as programs for simt_compare: (name, program, rtol)."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numba import cuda, float32, int32

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
try:
    from simt import GEMM, collatz, vector_add
finally:
    sys.path.pop(0)

RNG = np.random.default_rng(11)


@cuda.jit
def reverse(a, out):
    """Reverses each block's part through shared memory."""
    kept = cuda.shared.array(128, float32)
    i, t = cuda.grid(1), cuda.threadIdx.x
    kept[t] = a[i]
    cuda.syncthreads()
    out[i] = kept[127 - t]


@cuda.jit
def warp_sums(a, out):
    """The sum of each warp in every lane, by shuffles."""
    i = cuda.grid(1)
    value = a[i]
    for step in (16, 8, 4, 2, 1):
        value += cuda.shfl_xor_sync(0xFFFFFFFF, value, step)
    out[i] = value


@cuda.jit
def histogram(a, counts, largest):
    """Atomics on global and shared memory by diverged threads."""
    bins = cuda.shared.array(16, int32)
    i, t = cuda.grid(1), cuda.threadIdx.x
    if t < 16:
        bins[t] = 0
    cuda.syncthreads()
    if a[i] % 3:
        cuda.atomic.add(bins, a[i] & 15, 1)
    cuda.atomic.max(largest, 0, a[i])
    cuda.syncthreads()
    if t < 16:
        cuda.atomic.add(counts, t, bins[t])


@cuda.jit
def functions(a, out):
    """Division, roots and libdevice's functions, which NVVM inlines."""
    i = cuda.grid(1)
    x = a[i]
    out[i, 0], out[i, 1], out[i, 2] = x / float32(3.7), math.sqrt(abs(x)), cuda.fma(x, x, -x)
    out[i, 3], out[i, 4], out[i, 5] = math.sin(x), math.exp(x), math.log(abs(x) + float32(1))
    out[i, 6], out[i, 7] = math.tanh(x), math.pow(abs(x), float32(1.3))


@cuda.jit
def ballots(a, out):
    """Votes, matches and population counts under a branch."""
    i = cuda.grid(1)
    x = a[i]
    out[i, 0] = cuda.ballot_sync(0xFFFFFFFF, x & 1 == 1)
    out[i, 1] = cuda.match_any_sync(0xFFFFFFFF, x & 3)
    out[i, 2] = cuda.popc(x) + cuda.clz(x) * 64
    out[i, 3] = cuda.brev(x) if x & 2 else cuda.ffs(x)


def program(kernel: Any, grid: int, block: int, *arrays: Any, keep: int = 1) -> Any:
    """A program that launches a kernel on arrays and returns the last `keep` of them."""

    def run(executor: Any) -> list[np.ndarray]:
        device = executor.device(0)
        held = [device.array(a) if isinstance(a, np.ndarray) else a for a in arrays]
        device.launch(kernel, grid, block, *held)
        assert executor.run() == []
        return [a.copy_to_host() for a in held[-keep:]]

    return run


FLOATS = RNG.standard_normal(512).astype(np.float32)
WORDS = RNG.integers(0, 1 << 31, 512).astype(np.int32)
HALF = (RNG.standard_normal((64, 64)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)  # bfloat16

PROGRAMS = [
    ("vector_add", program(vector_add, 4, 128, FLOATS, FLOATS[::-1].copy(), np.zeros(500, np.float32)), 0.0),
    ("reverse", program(reverse, 4, 128, FLOATS, np.zeros_like(FLOATS)), 0.0),
    ("warp_sums", program(warp_sums, 4, 128, FLOATS, np.zeros_like(FLOATS)), 0.0),
    ("histogram", program(histogram, 4, 128, WORDS, np.zeros(16, np.int32), np.zeros(1, np.int32), keep=2), 0.0),
    ("functions", program(functions, 4, 128, FLOATS, np.zeros((512, 8), np.float32)), 1e-6),
    ("ballots", program(ballots, 4, 128, WORDS, np.zeros((512, 4), np.int64)), 0.0),
    ("gemm", program(GEMM, 1, 256, HALF, HALF, np.zeros((64, 64), np.float32)), 1e-5),
]


def run_collatz(executor: Any) -> list[np.ndarray]:
    """A program whose kernel has a number among its arguments, and loops of different lengths."""
    device = executor.device(0)
    out = device.array(np.zeros(512, np.int64))
    device.launch(collatz, 4, 128, out, 60)
    assert executor.run() == []
    return [out.copy_to_host()]


PROGRAMS.append(("collatz", run_collatz, 0.0))
