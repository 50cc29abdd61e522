"""Panels: the micro-kernel's shape on this CPU, and weights packed for it."""

from __future__ import annotations

import numpy as np
from llvmlite import binding

from ...primitives.buffers import FLOAT, LINE, aligned


def vector_shape() -> tuple[int, int, int]:
    """The micro-kernel's (lanes per vector, vectors per row, most rows): its sums fit the CPU's registers.

    AVX-512VL has 32 registers of 256 bits (LLVM's tuning splits 512-bit values, and spills); AVX2 has 16. Other CPUs
    use 128-bit vectors.
    """
    features = dict(binding.get_host_cpu_features())
    if features.get("avx512vl"):
        return 8, 4, 6
    if features.get("avx2") and features.get("fma"):
        return 8, 2, 6
    return 4, 4, 6


LANES, VECTORS, ROWS = vector_shape()
NR = LANES * VECTORS  # columns of a packed panel


def padded(columns: int, width: int = NR) -> int:
    """`columns` rounded up to whole panels of `width`."""
    return -(-columns // width) * width


def row_stride(hidden: int) -> int:
    """Bytes between rows of `hidden` float32: a row has space for whole panels and starts on a cache line."""
    return -(-padded(hidden) * FLOAT // LINE) * LINE


def pack(weight: np.ndarray, width: int = NR) -> np.ndarray:
    """weight: [K, N] float32 -> [ceil(N / width), K, width], zero columns at the end."""
    k, n = weight.shape
    panels = padded(n, width) // width
    packed = aligned((panels, k, width))
    whole = n // width
    packed[:whole] = weight[:, : whole * width].reshape(k, whole, width).transpose(1, 0, 2)
    if whole < panels:
        packed[whole, :, : n - whole * width] = weight[:, whole * width :]
        packed[whole, :, n - whole * width :] = 0
    return packed
