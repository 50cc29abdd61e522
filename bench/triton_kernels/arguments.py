"""Arguments of the kernels that compiled.py names, and NumPy's results: a function for each kernel.

It takes a device and returns the grid, the arguments, and a function that raises AssertionError if results are wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

import ptxsim

Run = tuple[Any, list[Any], Callable[[], None]]
rng = np.random.default_rng(1)
WIDE = np.float32


def half(*shape: int) -> np.ndarray:
    """Random float16 in [-0.5, 0.5)."""
    return (rng.random(shape) - 0.5).astype(np.float16)


def single(*shape: int) -> np.ndarray:
    """Random float32 in [-0.5, 0.5)."""
    return (rng.random(shape) - 0.5).astype(WIDE)


def near(array: Any, want: np.ndarray, limit: float, relative: float = 0) -> None:
    """Raise AssertionError if an array of the device is not near to what is wanted."""
    np.testing.assert_allclose(array.copy_to_host().astype(WIDE), want, atol=limit, rtol=relative)


def equal(array: Any, want: np.ndarray) -> None:
    """Raise AssertionError if an array of the device is not what is wanted."""
    np.testing.assert_array_equal(array.copy_to_host(), want)


def add(d: Any) -> Run:
    """A sum of two vectors."""
    x, y, out = single(5000), single(5000), d.empty(5000, WIDE)
    return 5, [d.array(x), d.array(y), out, 5000], lambda: equal(out, x + y)


def softmax(d: Any) -> Run:
    """Rows of softmax."""
    x, out = single(10, 781), d.empty((10, 781), WIDE)
    powers = np.exp(x - x.max(1, keepdims=True))
    return 4, [out, d.array(x), 781, 781, 10, 781], lambda: near(out, powers / powers.sum(1, keepdims=True), 0, 1e-5)


def layer_norm(d: Any) -> Run:
    """Layer norm of rows."""
    rows, columns = 8, 1008
    x, w, b = half(rows, columns), single(columns), single(columns)
    y, mean, rstd = d.empty((rows, columns), np.float16), d.empty(rows, WIDE), d.empty(rows, WIDE)
    wide = x.astype(WIDE)
    want = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5) * w + b
    return (
        rows,
        [d.array(x), y, d.array(w), d.array(b), mean, rstd, columns, columns, 1e-5],
        lambda: near(y, want, 2e-3),
    )


def layer_norm_bwd(d: Any) -> Run:
    """The gradient of layer norm; blocks add to shared rows under a lock."""
    rows, columns = 16, 208
    x, dy, w = single(rows, columns), single(rows, columns), single(columns)
    mean, rstd = x.mean(1), 1 / np.sqrt(x.var(1) + 1e-5)
    dx, dw, db = d.empty((rows, columns), WIDE), d.empty((2, columns), WIDE), d.empty((2, columns), WIDE)
    lock = d.array(np.zeros(4, np.int32), "Lock")

    def right() -> None:
        scaled = (x - mean[:, None]) * rstd[:, None]
        np.testing.assert_allclose(dw.copy_to_host().sum(0), (dy * scaled).sum(0), atol=1e-4)
        np.testing.assert_allclose(db.copy_to_host().sum(0), dy.sum(0), atol=1e-4)

    inputs = [d.array(one) for one in (x, w, mean, rstd)]
    return rows, [dx, d.array(dy), dw, db, *inputs, lock, columns, columns], right


def product(d: Any, dtype: Any, limit: float) -> Run:
    """A product of two matrices of a type."""
    m, n, k = 128, 128, 96
    a, b = single(m, k).astype(dtype), single(k, n).astype(dtype)
    held = np.dtype(np.uint16) if dtype == ml_dtypes.bfloat16 else np.dtype(dtype)
    c = d.empty((m, n), held)

    def right() -> None:
        got = c.copy_to_host().view(dtype).astype(WIDE)
        np.testing.assert_allclose(got, a.astype(WIDE) @ b.astype(WIDE), atol=limit, rtol=limit)

    return 4, [d.array(a.view(held)), d.array(b.view(held)), c, m, n, k, k, n, n], right


def matmul(d: Any) -> Run:
    """A product in float16."""
    return product(d, np.float16, 3e-3)


def matmul_bf16(d: Any) -> Run:
    """A product in bfloat16."""
    return product(d, ml_dtypes.bfloat16, 2e-2)


def matmul_tf32(d: Any) -> Run:
    """A product in tf32."""
    return product(d, np.float32, 1e-2)


def splitk(d: Any) -> Run:
    """A product whose parts along k are added by atomic operations."""
    a, b, c = half(64, 256), half(256, 128), d.array(np.zeros((64, 128), WIDE))
    return (
        (1, 2, 4),
        [d.array(a), d.array(b), c, 64, 128, 256],
        lambda: near(c, a.astype(WIDE) @ b.astype(WIDE), 1e-3),
    )


def moe(d: Any) -> Run:
    """Products of tokens with the weights of their experts."""
    tokens, k, n, experts, top = 24, 64, 128, 4, 2
    a, w, weights, chosen = (
        half(tokens, k),
        half(experts, n, k),
        single(tokens * top),
        rng.integers(4, size=tokens * top),
    )
    order, of_tile = [], []
    for expert in range(experts):
        mine = np.flatnonzero(chosen == expert)
        padding = -len(mine) % 16
        order += [*mine, *[tokens * top] * padding]
        of_tile += [expert] * ((len(mine) + padding) // 16)
    c = d.array(np.zeros((tokens * top, n), np.float16))
    want = np.stack([a[i // top].astype(WIDE) @ w[chosen[i]].astype(WIDE).T * weights[i] for i in range(tokens * top)])
    lists = [d.array(np.array(one, np.int32)) for one in (order, [*of_tile, 0], [len(order)])]
    sizes = [n, k, len(order), tokens * top, k, n * k, k, n]
    return (
        len(order) // 16 * 2 + 2,
        [d.array(a), d.array(w), c, d.array(weights), *lists, *sizes],
        lambda: near(c, want, 5e-3),
    )


def grouped(d: Any) -> Run:
    """Products of several sizes in one launch."""
    sizes = [(64, 128, 64), (128, 64, 96), (64, 64, 32)]
    first, second = [half(m, k) for m, _, k in sizes], [half(k, n) for _, n, k in sizes]
    made = [d.empty((m, n), np.float16) for m, n, _ in sizes]
    tables = [
        d.array(np.array([one.ptr for one in arrays], np.int64))
        for arrays in ([d.array(x) for x in first], [d.array(x) for x in second], made)
    ]
    strides = np.array([[k, n, n] for _, n, k in sizes], np.int32)

    def right() -> None:
        for x, y, z in zip(first, second, made):
            near(z, x.astype(WIDE) @ y.astype(WIDE), 5e-3)

    return 4, [*tables, d.array(np.array(sizes, np.int32)), d.array(strides), len(sizes)], right


def mapped(d: Any) -> tuple[list[np.ndarray], list[Any], Callable[[], None]]:
    """Two matrices, these and their product's place on the device, and the check of the product."""
    a, b, c = half(128, 128), half(128, 128), d.empty((128, 128), np.float16)
    return [a, b], [d.array(a), d.array(b), c], lambda: near(c, a.astype(WIDE) @ b.astype(WIDE).T, 5e-3)


def matmul_tma(d: Any) -> Run:
    """A product with tensor maps: for sm_90 and later by value, else as pointer, sizes, strides and flags."""
    _, held, right = mapped(d)
    arguments: list[Any] = []
    for array in held:
        if d.machine.cc[0] < 9:
            arguments += [array, 128, 128, 128, 1, 0, 0]
        else:
            arguments.append(ptxsim.tensor_map(array, (128, 64), swizzle=128))
        arguments += [128, 128, 128, 1]
    return 1, [*arguments, 128, 128, 128], right


def matmul_tma_dev(d: Any) -> Run:
    """A product with tensor maps that the kernel makes."""
    _, held, right = mapped(d)
    return 1, [*held, 128, 128, 128], right


def attn(d: Any) -> Run:
    """Attention, one head."""
    q, k, v, out = half(128, 64), half(128, 64), half(128, 64), d.empty((128, 64), np.float16)
    scores = q.astype(WIDE) @ k.astype(WIDE).T * WIDE(0.125)
    powers = np.exp(scores - scores.max(1, keepdims=True))
    want = powers / powers.sum(1, keepdims=True) @ v.astype(WIDE)
    return 2, [*map(d.array, (q, k, v)), out, WIDE(0.125), 128], lambda: near(out, want, 3e-3)


def int8_dot(d: Any) -> Run:
    """A product of 8-bit integers."""
    a, b = (rng.integers(-128, 128, (64, 128)).astype(np.int8) for _ in range(2))
    c = d.empty((64, 64), np.int32)
    return 1, [d.array(a), d.array(b), c, 128], lambda: equal(c, a.astype(np.int32) @ b.astype(np.int32).T)


def fp8_dot(d: Any) -> Run:
    """A product of 8-bit floats."""
    a, b = (single(64, 128).astype(ml_dtypes.float8_e4m3fn) for _ in range(2))
    c = d.empty((64, 64), WIDE)
    want = a.astype(WIDE) @ b.astype(WIDE).T
    return 1, [d.array(a.view(np.uint8)), d.array(b.view(np.uint8)), c, 128], lambda: near(c, want, 1e-3)


def quant_fp8(d: Any) -> Run:
    """Rows as 8-bit floats with a scale. At most 1 % of them may differ: those between two floats."""
    x, y, scales = half(4, 512), d.empty((4, 512), np.uint8), d.empty(4, WIDE)
    want = np.abs(x.astype(WIDE)).max(1) / WIDE(448)

    def right() -> None:
        near(scales, want, 0, 1e-6)
        got = y.copy_to_host().view(ml_dtypes.float8_e4m3fn).astype(WIDE)
        rounded = (x.astype(WIDE) / want[:, None]).astype(ml_dtypes.float8_e4m3fn).astype(WIDE)
        assert (got != rounded).mean() < 0.01

    return 4, [d.array(x), y, scales], right


def cumsum(d: Any) -> Run:
    """Running sums."""
    x, y = rng.integers(-9, 9, 512).astype(np.int32), d.empty(512, np.int32)
    return 1, [d.array(x), y], lambda: equal(y, np.cumsum(x))


def sort(d: Any) -> Run:
    """Sorted numbers."""
    x, y = rng.integers(-999, 999, 256).astype(np.int32), d.empty(256, np.int32)
    return 1, [d.array(x), y], lambda: equal(y, np.sort(x))


def hist(d: Any) -> Run:
    """A histogram."""
    x, y = rng.integers(32, size=512).astype(np.int32), d.empty(32, np.int32)
    return 1, [d.array(x), y], lambda: equal(y, np.bincount(x, minlength=32))


def dropout(d: Any) -> Run:
    """Half of the numbers, doubled."""
    x, y = single(2000), d.empty(2000, WIDE)

    def right() -> None:
        got = y.copy_to_host()
        assert 0.4 < (got != 0).mean() < 0.6
        np.testing.assert_allclose(got[got != 0], x[got != 0] / WIDE(0.5), rtol=1e-6)

    return 4, [d.array(x), y, 2000, WIDE(0.5), 123], right


FLOATS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e2m1": ml_dtypes.float4_e2m1fn}


def narrow(rows: int, k: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, values) of random numbers of a type, without NaN and infinities: two of e2m1 in a byte."""
    codes = rng.integers(0, 16 if kind == "e2m1" else 256, (rows, k)).astype(np.uint8)
    if kind != "e2m1":
        codes &= 0xBF
    values = codes.view(FLOATS[kind]).astype(np.float64)
    return (codes[:, ::2] | codes[:, 1::2] << 4 if kind == "e2m1" else codes), values


def scaled(d: Any, kind_a: str, kind_b: str, m: int, n: int, k: int, block: int) -> Run:
    """A product of two types with scale factors: powers of two for blocks of 32, e4m3 for blocks of 16."""
    (a, wide_a), (b, wide_b) = narrow(m, k, kind_a), narrow(n, k, kind_b)
    low, high, type_ = (117, 138, ml_dtypes.float8_e8m0fnu) if block == 32 else (0, 127, ml_dtypes.float8_e4m3fn)
    sa, sb = (rng.integers(low, high, (rows, k // block)).astype(np.uint8) for rows in (m, n))
    out = d.empty((m, n), WIDE)
    wide_a *= np.repeat(sa.view(type_).astype(np.float64), block, 1)
    wide_b *= np.repeat(sb.view(type_).astype(np.float64), block, 1)
    return 1, [*(d.array(one) for one in (a, sa, b, sb)), out], lambda: rounded_sum(out, wide_a, wide_b)


def rounded_sum(out: Any, a: np.ndarray, b: np.ndarray) -> None:
    """Raise AssertionError if an array is not the product of a and the transpose of b, up to the rounding of sums."""
    bound = np.abs(a) @ np.abs(b).T
    assert (np.abs(out.copy_to_host() - a @ b.T) <= bound * 2e-6).all()


def mx_maps(d: Any) -> Run:
    """A pipeline of tensor maps, copies of scale factors to tensor memory, and products."""
    k, block, operands, given = 512, 32, [], []
    for _ in range(2):
        codes, values = narrow(128, k, "e4m3")
        factors = rng.integers(117, 138, (128, k // block)).astype(np.uint8)
        operands.append(values * np.repeat(factors.view(ml_dtypes.float8_e8m0fnu).astype(np.float64), block, 1))
        # rows r, r + 32, r + 64 and r + 96 of 4 blocks lie next to each other
        tiles = np.ascontiguousarray(factors.reshape(4, 32, -1, 4).transpose(2, 1, 0, 3)).reshape(1, 1, -1, 2, 256)
        sizes = tiles.shape
        strides = [sizes[1] * sizes[2] * 512, sizes[2] * 512, 512, 256, 1]
        given += [ptxsim.tensor_map(d.array(codes), (128, 128), swizzle=128), 128, k, k, 1]
        given += [ptxsim.tensor_map(d.array(tiles), (1, 1, 1, 2, 256), swizzle=0), *sizes, *strides]
    out = d.empty((128, 128), WIDE)
    return 1, [*given, out, k], lambda: rounded_sum(out, *operands)


mx_e4m3 = partial(scaled, kind_a="e4m3", kind_b="e4m3", m=128, n=128, k=128, block=32)
mx_e4m3_e5m2 = partial(scaled, kind_a="e4m3", kind_b="e5m2", m=128, n=64, k=256, block=32)
mx_e4m3_e2m1 = partial(scaled, kind_a="e4m3", kind_b="e2m1", m=128, n=64, k=128, block=32)
mx_e2m1_e5m2 = partial(scaled, kind_a="e2m1", kind_b="e5m2", m=128, n=32, k=128, block=32)
mx_e2m1 = partial(scaled, kind_a="e2m1", kind_b="e2m1", m=128, n=128, k=128, block=32)
nv_e2m1 = partial(scaled, kind_a="e2m1", kind_b="e2m1", m=128, n=256, k=256, block=16)
