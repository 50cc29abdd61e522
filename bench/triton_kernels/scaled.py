"""A Triton kernel whose product has scale factors for blocks. compiled.py compiles it with several types."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scaled_kernel(
    a, sa, b, sb, c,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
    A_TYPE: tl.constexpr, B_TYPE: tl.constexpr, A_PACKED: tl.constexpr, B_PACKED: tl.constexpr,
):  # fmt: skip
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
