"""Triton kernels whose products have scale factors for blocks. compiled.py compiles the first for several types."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scaled_kernel(
    a,
    sa,
    b,
    sb,
    c,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    A_TYPE: tl.constexpr,
    B_TYPE: tl.constexpr,
    A_PACKED: tl.constexpr,
    B_PACKED: tl.constexpr,
):
    """c [M, N] = (a [M, K], scaled by sa [M, K / BLOCK]) times the transpose of (b [N, K], scaled by sb).

    A_PACKED, B_PACKED: elements in a byte.
    """
    rows, columns, factors = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K // BLOCK)
    of_a, of_b = tl.arange(0, K // A_PACKED), tl.arange(0, K // B_PACKED)
    x = tl.load(a + rows[:, None] * (K // A_PACKED) + of_a[None, :])
    y = tl.load(b + columns[:, None] * (K // B_PACKED) + of_b[None, :])
    x_factors = tl.load(sa + rows[:, None] * (K // BLOCK) + factors[None, :])
    y_factors = tl.load(sb + columns[:, None] * (K // BLOCK) + factors[None, :])
    total = tl.dot_scaled(x, x_factors, A_TYPE, y.T, y_factors, B_TYPE)
    tl.store(c + rows[:, None] * N + columns[None, :], total)


@triton.jit
def scaled_maps_kernel(
    a,
    sa,
    b,
    sb,
    c,
    K,
    M: tl.constexpr,
    N: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TYPE: tl.constexpr,
):
    """As `scaled_kernel`, in a pipeline: tensor maps fetch the operands and the factors.

    sa, sb: maps of [1, rows / 128, K / BLOCK / 4, 2, 256] bytes, in the order of cuBLAS: of 128 rows and 4 blocks.
    """
    total = tl.zeros((M, N), tl.float32)
    for k in tl.range(0, K, DEPTH):
        x, y = a.load([0, k]), b.load([0, k])
        x_factors = sa.load([0, 0, k // BLOCK // 4, 0, 0]).reshape(M // 128, DEPTH // BLOCK // 4, 32, 4, 4)
        y_factors = sb.load([0, 0, k // BLOCK // 4, 0, 0]).reshape(N // 128, DEPTH // BLOCK // 4, 32, 4, 4)
        x_factors = x_factors.trans(0, 3, 2, 1, 4).reshape(M, DEPTH // BLOCK)
        y_factors = y_factors.trans(0, 3, 2, 1, 4).reshape(N, DEPTH // BLOCK)
        total = tl.dot_scaled(x, x_factors, TYPE, y.T, y_factors, TYPE, total)
    rows, columns = tl.arange(0, M), tl.arange(0, N)
    tl.store(c + rows[:, None] * N + columns[None, :], total)
