"""Panels: the micro-kernel's shape on this CPU, and weights packed for this shape.

A panel has NR columns of a weight matrix [K, N], row after row. Columns are padded with zeros only to whole vectors, so
the last panel of a matrix is narrower if N needs fewer vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...primitives import isa
from ...primitives.buffers import aligned
from .target import ISA

AVX512 = ("avx512", "avx512bf16", "amx")


class MicroKernelShape(NamedTuple):
    """A micro-kernel's shape. It computes up to `rows` x (`vectors` * `lanes`) outputs, whose sums fit registers."""

    lanes: int
    vectors: int
    rows: int


def shape_for(isa: str, cpu: str) -> MicroKernelShape:
    """The shape for an instruction set and a CPU. cpu: LLVM's name of the CPU."""
    if isa in AVX512:
        wide = cpu != "znver4"  # with 512 bits Zen 4 computes float32 no faster than with 256
        return MicroKernelShape(16, 3, 8) if wide else MicroKernelShape(8, 4, 6)
    if isa in ("neon", "neonbf16"):
        return MicroKernelShape(4, 3, 8)  # 32 registers of 128 bits
    return MicroKernelShape(8, 2, 6) if isa == "avx2" else MicroKernelShape(4, 4, 6)


LANES, VECTORS, ROWS = shape_for(ISA, isa.target()[0])
REGISTER = 16 if ISA in AVX512 else LANES  # float32 values of a whole register, for products of other element types
# With at most this many rows, kernels do not prefetch a panel in memory, because the CPU's own prefetchers are faster:
# Zen 4 reads 28 GB/s with them, and 20 GB/s with software prefetches. With more rows, the products of a line are not
# yet done when the next line should be read.
BARE = 4 if ISA in AVX512 and isa.target()[0] == "znver4" else 0
NR = LANES * VECTORS  # columns of a panel


def padded(columns: int) -> int:
    """`columns` rounded up to whole vectors."""
    return -(-columns // LANES) * LANES


def pack(weight: np.ndarray) -> np.ndarray:
    """Pack weight [K, N] float32 into [K * padded(N)], panel after panel. A panel from column j on starts at j * K."""
    k, n = weight.shape
    packed = aligned((k * padded(n),))
    whole = n // NR
    panels = packed[: whole * NR * k].reshape(whole, k, NR)
    panels[:] = weight[:, : whole * NR].reshape(k, whole, NR).transpose(1, 0, 2)
    if rest := n - whole * NR:
        last = packed[whole * NR * k :].reshape(k, padded(rest))
        last[:, :rest] = weight[:, whole * NR :]
        last[:, rest:] = 0
    return packed
