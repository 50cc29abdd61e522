"""The kernels alone: one expert on rows, the micro-kernel, activations, router scores, top-k and the combine sum."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from cases import same, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from aristos import MoEConfig, Router, kernels, reference
from aristos.config import ACTIVATIONS, SCORES
from aristos.engine import column_runs
from aristos.errors import InputError
from aristos.kernels.common import activations as act
from aristos.kernels.common import scores as router_scores
from aristos.kernels.cpu import gemm
from aristos.kernels.cpu import tokens as token_kernels
from aristos.kernels.cpu.convert import FLOAT32
from aristos.kernels.cpu.elementwise import activate
from aristos.kernels.cpu.expert import FC
from aristos.kernels.cpu.panels import LANES, NR, VECTORS, pack, padded, shape_for
from aristos.kernels.cpu.tokens import route_bytes
from aristos.primitives.arithmetic import CombineToken
from aristos.primitives.buffers import LINE, aligned
from aristos.primitives.huge_pages import HUGE
from kernel_cache.compile import jit

SHAPES = [
    (1, 1, 1),
    (1, 16, 32),
    (2, 33, 5),
    (5, 7, 520),  # F exceeds a chunk
    (6, 64, 64),
    (7, 100, 130),
    (13, 1030, 40),  # H exceeds two blocks of packed rows
    (40, 257, 1100),
    (193, 48, 96),  # rows exceed a run
    (400, 32, 31),
]


def expert(cfg: MoEConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """The weights of one expert, as `ffn` takes them."""
    w = reference.weights(replace(cfg, experts=1, top_k=1), seed)
    return {name: v[0] for name, v in w.items() if name != "router"}


def close(y: np.ndarray, ref: np.ndarray) -> None:
    assert y.shape == ref.shape
    assert y.dtype == np.float32
    if y.size:
        assert np.abs(y - ref).max() <= 1e-5 * np.abs(ref).max() + 1e-6


GATES = [(False, None), (True, None), (True, 0.75)]  # gated, limit


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_expert_equals_the_float64_reference(activation):
    for rows, hidden, ffn in SHAPES:
        for gated, limit in GATES[ACTIVATIONS[activation].gate_only :]:
            for bias in (False, True):
                cfg = MoEConfig(
                    hidden, ffn, experts=1, top_k=1, activation=activation, gated=gated, bias=bias, limit=limit
                )
                w = expert(cfg)
                x = tokens(cfg, rows, seed=rows)
                ref = reference.expert(cfg, x, 0, **{n: v[None] for n, v in w.items()})
                y = kernels.ffn(x, activation=activation, limit=limit, **w)
                close(y, ref)
                packed = kernels.Packed(activation=activation, limit=limit, **w)
                assert same(np.ascontiguousarray(packed(x)), np.ascontiguousarray(y))
                out = np.full_like(x, np.nan)
                assert packed(x, out=out) is out
                assert same(out, np.ascontiguousarray(y))
                assert packed(x[:0]).shape == (0, hidden)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 70), st.data())
def test_a_row_has_the_same_bits_alone_and_among_others(rows, hidden, ffn, data):
    cfg = MoEConfig(hidden, ffn, experts=1, top_k=1, gated=True, bias=True)
    packed = kernels.Packed(**expert(cfg))
    x = tokens(cfg, rows, seed=1)
    y = packed(x).copy()
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    assert same(packed(x[first:last]).copy(), y[first:last])
    assert same(packed(x[::-1])[::-1].copy(), y)


@pytest.mark.parametrize(("k", "n"), [(1, 1), (100, LANES), (gemm.KC + 3, NR + 1), (48, 2 * NR + LANES)])
def test_a_matrix_product_equals_float64(k, n):
    rng = np.random.default_rng(k)
    w = rng.standard_normal((k, n)).astype("f4")
    matrix = kernels.Matrix(w)
    for m in (0, 1, 9, 200):
        x = rng.standard_normal((m, k)).astype("f4")
        close(matrix(x), x.astype("f8") @ w)
        out = np.full((m, n), np.nan, np.float32)
        assert matrix(x, out=out) is out
        assert same(out, matrix(x).copy())
    with pytest.raises(InputError, match=r"x must be float32 with shape \[2, "):
        matrix(np.zeros((2, k + 1), np.float32))
    with pytest.raises(InputError, match="weight must have at least one row"):
        kernels.Matrix(w[:, :0])
    with pytest.raises(InputError, match="weight must be a matrix of float32, bfloat16 or float16, got float64"):
        kernels.Matrix(w.astype("f8"))


@pytest.mark.parametrize(("dtype", "step"), [(ml_dtypes.bfloat16, 2**-8), (np.float16, 2**-11)])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (100, 32), (515, 70)])
def test_a_matrix_product_of_16_bits_is_rounded_once(dtype, step, k, n):
    rng = np.random.default_rng(k)
    w = rng.standard_normal((k, n)).astype(dtype)
    matrix = kernels.Matrix(w)
    for m in (1, 9, 200):
        x = rng.standard_normal((m, k)).astype(dtype)
        y = matrix(x)
        assert y.dtype == dtype
        right = x.astype("f8") @ w.astype("f8")
        sums = np.abs(x.astype("f8")) @ np.abs(w.astype("f8"))  # float32 sums are off by a few of their own steps
        assert (np.abs(y.astype("f8") - right) <= step * np.abs(right) + 1e-5 * sums).all()
        out = np.zeros((m, n), dtype)
        assert matrix(x, out=out) is out
        assert out.tobytes() == y.tobytes()
        assert matrix(x[m // 2 :][:1]).tobytes() == y[m // 2 :][:1].tobytes()
    with pytest.raises(InputError, match=r"x must be \w+16 with shape"):
        matrix(np.zeros((2, k), np.float32))


def test_bad_input_is_refused():
    cfg = MoEConfig(32, 48, experts=1, top_k=1)
    w, x = expert(cfg), tokens(cfg, 5, seed=0)
    packed = kernels.Packed(**w)
    y = packed(x).copy()
    for wrong, words in (
        (x.astype("f8"), "x must be float32 .*got float64"),
        (x[:, :-1], r"x must be float32 with shape \[5, 32\], got float32 \[5, 31\]"),
        (x[None], "x must be float32"),
    ):
        with pytest.raises(InputError, match=words):
            packed(wrong)
    for out in (np.empty((5, 32)), np.empty((4, 32), "f4"), np.empty((5, 33), "f4"), np.frombuffer(bytes(640), "f4")):
        with pytest.raises(InputError, match="out must"):
            packed(x, out=out)
    with pytest.raises(InputError, match="activation must be one of relu"):
        kernels.ffn(x, activation="tanh", **w)
    with pytest.raises(InputError, match="requires gated=True"):
        kernels.ffn(x, activation="swiglu_oai", **w)
    with pytest.raises(InputError, match=r"limit requires gated=True, got limit=7\.0"):
        kernels.ffn(x, limit=7.0, **w)
    with pytest.raises(InputError, match=r"down must be float32 with shape \[48, 32\]"):
        kernels.ffn(x, w["up"], w["up"])
    with pytest.raises(InputError, match=r"gate must be float32 with shape \[32, 48\]"):
        kernels.ffn(x, **w, gate=w["down"])
    with pytest.raises(InputError, match=r"up_bias must be float32 with shape \[48\], got float32 \[32\]"):
        kernels.ffn(x, **w, up_bias=x[0])
    assert same(packed(x).copy(), y)


@pytest.mark.parametrize("gated", [False, True])
def test_the_matrices_of_an_expert_lie_in_one_array_on_huge_pages(gated):
    cfg = MoEConfig(33, 17, experts=1, top_k=1, gated=gated)
    up, gate, down = kernels.Packed(**expert(cfg))._parts[:3]
    assert up.ctypes.data % HUGE == 0
    last = up
    for part in [gate, down] if gated else [down]:
        assert part.ctypes.data == -(-(last.ctypes.data + last.nbytes) // LINE) * LINE
        last = part


def test_strided_rows_and_outputs_are_accepted():
    cfg = MoEConfig(40, 24, experts=1, top_k=1)
    packed = kernels.Packed(**expert(cfg))
    x = tokens(cfg, 20, seed=0)
    y = packed(x).copy()
    wide = np.zeros((20, 100), np.float32)
    wide[:, 7:47] = x
    assert same(packed(wide[:, 7:47]).copy(), y)
    assert same(packed(np.asfortranarray(x)).copy(), y)
    out = np.full((20, 100), np.nan, np.float32)
    packed(x, out=out[:, 3:43])
    assert same(out[:, 3:43].copy(), y)
    assert np.isnan(out[:, :3]).all()
    assert np.isnan(out[:, 43:]).all()


def test_large_and_special_values_stay_in_their_row():
    """Saturated activations are exact, and a NaN stays in its row."""
    eye = np.eye(16, dtype=np.float32)
    for activation in ("relu", "gelu", "gelu_tanh", "silu"):
        x = np.zeros((3, 16), np.float32)
        x[0] = np.linspace(20, 1e4, 16)
        x[1] = -x[0]
        x[2] = np.nan
        y = kernels.ffn(x, eye, eye, activation=activation)
        assert np.array_equal(y[0], x[0]), activation
        assert np.abs(y[1]).max() < 1e-6, activation
        assert np.isnan(y[2]).all() or activation == "relu"


@pytest.mark.parametrize("activation", ["silu", "swiglu_oai"])
def test_a_gate_is_bounded(activation):
    """g is at most the limit and u within +-limit; a NaN remains a NaN and stays in its row."""
    eye, limit = np.eye(4, dtype=np.float32), 2.5
    g = np.array([[1.0, 3.0, -9.0, 2.5], [np.nan, 1, 1, 1]], np.float32)
    u = np.array([[4.0, 1.0, 2.0, -7.0], [1, 1, 1, 1]], np.float32)
    x = np.concatenate([g, u], axis=1)
    gate, up = np.eye(8, dtype=np.float32)[:, :4].copy(), np.eye(8, dtype=np.float32)[:, 4:].copy()
    down = np.concatenate([eye, eye], axis=1)
    y = kernels.ffn(x, up, down, gate=gate, activation=activation, limit=limit)[:, :4]

    def by_hand(a, b):
        scale, shift = (1.702, 1.0) if activation == "swiglu_oai" else (1.0, 0.0)
        return a / (1 + math.exp(-scale * a)) * (b + shift)

    want = [by_hand(1.0, 2.5), by_hand(2.5, 1.0), by_hand(-9.0, 2.0), by_hand(2.5, -2.5)]
    assert np.allclose(y[0], want, rtol=1e-6)
    assert np.isnan(y[1]).any()
    assert np.isfinite(y[0]).all()


def half_erfc(x: np.ndarray) -> np.ndarray:
    """x Phi(x), with a small relative error also for very negative x."""
    return np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x])


def of_logistic(scale: float, cube: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    """x / (1 + e^-(scale (x + cube x^3))), with a small relative error also for very negative x."""
    return lambda x: x / (1 + np.exp(np.minimum(-scale * (x + cube * x**3), 700)))


# activation: (its formula in float64, its largest relative error for x >= -5, and for x < -5), as in docs/layer.md
ACCURACY: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, float]] = {
    "relu": (lambda x: np.maximum(x, 0), 0.0, 0.0),
    "relu2": (lambda x: np.maximum(x, 0) ** 2, 1e-7, 0.0),
    "silu": (of_logistic(1.0), 3e-7, 3e-7),
    "swiglu_oai": (of_logistic(1.702), 1e-6, 1e-5),
    "gelu_tanh": (of_logistic(2 * math.sqrt(2 / math.pi), 0.044715), 5e-6, 3e-5),
    "gelu": (half_erfc, 5e-6, 3e-5),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_accurate_over_their_range(activation):
    """Errors are small relative to the value, and relative to the argument, from -100 to 100 and near zero."""
    x = np.concatenate([np.linspace(-100, 100, 20_000), np.linspace(-6, 6, 20_000), np.geomspace(1e-30, 1, 2_000)])
    x = np.concatenate([x, -x]).astype(np.float32)
    got = aligned(x.shape)
    got[:] = x
    activate(act.word(activation), got.ctypes.data, got.size)
    formula, near, far = ACCURACY[activation]
    want = formula(x.astype(np.float64))
    off, size = np.abs(got - want), np.abs(want)
    assert (off <= np.where(x >= -5, near, far) * size + 1e-30).all()
    assert (off <= 4e-7 * np.maximum(np.abs(x), np.maximum(size, 1e-3))).all()
    same_formula = reference.ACTIVATIONS[activation](x.astype(np.float64))
    assert (np.abs(same_formula - want) <= 1e-13 * np.maximum(np.abs(x), 1) ** 2).all()


def test_scores_are_accurate_over_their_range():
    """Weights of sigmoid and sqrtsoftplus have a relative error below 4e-7."""
    x = np.linspace(-80, 80, 8_001).astype(np.float32)
    for score, formula in (
        ("sigmoid", lambda s: 1 / (1 + np.exp(-s))),
        ("sqrtsoftplus", lambda s: np.sqrt(np.log1p(np.exp(s)))),
    ):
        got = np.array([choose(s[None], 1, Router(score, renormalize=False))[1][0] for s in x])
        want = formula(x.astype(np.float64))
        assert (np.abs(got - want) <= 4e-7 * want).all(), score


def test_an_activation_depends_on_its_value_alone():
    """The bits are the same at every place of a vector and for every length."""
    values = np.random.default_rng(0).standard_normal(41).astype(np.float32) * 4
    for code, _, _ in ACTIVATIONS.values():
        whole = values.copy()
        activate(code, whole.ctypes.data, 41)
        for first, last in ((0, 1), (3, 4), (1, 18), (7, 40), (40, 41)):
            part = values[first:last].copy()
            activate(code, part.ctypes.data, last - first)
            assert same(part, whole[first:last])


def test_exp_is_accurate_and_clamped():
    @jit
    def all_of(x, out):
        for i in range(len(x)):
            out[i] = act.exp(x[i])

    x = np.linspace(-87, 88, 50_001).astype(np.float32)
    y = np.empty_like(x)
    all_of(x, y)
    want = np.exp(x.astype(np.float64))
    assert (np.abs(y - want) <= 3e-7 * want).all()
    ends = np.array([-1000, -np.inf, 0.0, 1000], np.float32)
    y = np.empty_like(ends)
    all_of(ends, y)
    assert (y[:2] < 1e-37).all()
    assert y[2] == 1.0
    assert np.isfinite(y[3])


# ---- the micro-kernel ---------------------------------------------------------------------------------------------


def fma_chain(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A x B by chains of fused multiply-adds in k order: each step in float64, rounded to float32."""
    total = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        product = a[:, k, None].astype(np.float64) * b[None, k].astype(np.float64)
        total = (product + total.astype(np.float64)).astype(np.float32)
    return total


def bytes_at(address: int, nbytes: int) -> bytes:
    return ctypes.string_at(address, nbytes)


def addresses(m: np.ndarray) -> np.ndarray:
    return np.array([m.ctypes.data + i * m.strides[0] for i in range(len(m))], np.int64)


class Rows:
    """Rows of A packed for the micro-kernel, as blocks of KC columns."""

    def __init__(self, a: np.ndarray) -> None:
        self.m, self.k = a.shape
        self.packed = aligned((gemm.packed_bytes(*a.shape),), np.uint8)
        table = addresses(a)
        gemm.pack_rows(self.m, table.ctypes.data, self.k, self.packed.ctypes.data)

    def at(self, i: int, k: int) -> int:
        """Address of row i, column k."""
        return self.packed.ctypes.data + gemm.PITCH * (self.m * (k // gemm.KC) + i) + 4 * (k % gemm.KC)


@pytest.mark.parametrize("rows", range(1, 19))
def test_the_micro_kernel_handles_any_number_of_rows_and_vectors(rows):
    """Values are small integers, whose sums are exact in any order. The kernel first writes C, then adds to it."""
    rng = np.random.default_rng(rows)
    for vectors in range(1, VECTORS + 1):
        width = LANES * vectors
        for k in (1, 2, 7, 64):
            a = Rows(rng.integers(-50, 50, (rows, k)).astype(np.float32))
            left = np.array([np.frombuffer(bytes_at(a.at(i, 0), 4 * k), np.float32) for i in range(rows)])
            b = rng.integers(-50, 50, (k, width)).astype(np.float32)
            c = aligned((rows, width))
            c[:] = 1e9
            at_c, panel = addresses(c), pack(b)
            for carry in (0, 1):
                gemm.panel_rows(
                    rows, vectors, a.at(0, 0), panel.ctypes.data, at_c.ctypes.data, 0, k, carry, panel.ctypes.data
                )
                assert np.array_equal(c, (1 + carry) * (left @ b))


def test_sums_carried_between_passes_equal_one_chain():
    """Bits depend neither on the passes over k nor on the number of rows: a sum is one chain of multiply-adds."""
    rng = np.random.default_rng(0)
    rows, k = 9, 100
    left, b = rng.standard_normal((rows, k)).astype("f4"), rng.standard_normal((k, NR)).astype("f4")
    panel, a = pack(b), Rows(left)
    results = []
    for cuts in ((0, 100), (0, 1, 100), (0, 33, 34, 90, 100)):
        for group in (1, 2, 4, 9):
            c = aligned((rows, NR))
            at_c = addresses(c)
            for first in range(0, rows, group):
                m = min(group, rows - first)
                for k0, k1 in pairwise(cuts):
                    gemm.panel_rows(
                        m,
                        VECTORS,
                        a.at(first, k0),
                        panel.ctypes.data + 4 * NR * k0,
                        at_c.ctypes.data + 8 * first,
                        0,
                        k1 - k0,
                        k0,
                        panel.ctypes.data,
                    )
            results.append(c.copy())
    assert all(same(r, results[0]) for r in results)
    assert np.abs(results[0] - fma_chain(left, b)).max() <= 1e-5


def test_packed_rows_are_blocks_of_columns():
    rng = np.random.default_rng(0)
    for m, k in ((1, 1), (3, gemm.KC), (5, gemm.KC + 1), (2, 3 * gemm.KC - 1)):
        a = rng.standard_normal((m, k)).astype("f4")
        packed = Rows(a)
        for i in range(m):
            for k0 in range(0, k, gemm.KC):
                part = a[i, k0 : k0 + gemm.KC]
                assert bytes_at(packed.at(i, k0), part.nbytes) == part.tobytes()


def test_packed_panels_hold_the_weights_and_zeros():
    """A panel starts at element K times its first column. The last panel has only the vectors that its columns need."""
    rng = np.random.default_rng(0)
    for k, n in ((1, 1), (3, NR), (5, NR + 1), (4, 3 * NR - 1), (2, 2 * NR + LANES)):
        w = rng.standard_normal((k, n)).astype("f4")
        packed = pack(w)
        assert packed.shape == (k * padded(n),)
        assert packed.ctypes.data % 64 == 0
        wide = np.zeros((k, padded(n)), np.float32)
        wide[:, :n] = w
        for j in range(0, n, NR):
            panel = wide[:, j : j + NR]
            assert np.array_equal(packed[j * k :][: panel.size].reshape(panel.shape), panel)
        assert np.array_equal(pack(w.T.copy().T), packed)


@pytest.mark.parametrize(
    ("isa", "cpu", "shape"),
    [
        ("avx512", "sapphirerapids", (16, 3, 8)),
        ("avx512", "znver5", (16, 3, 8)),
        ("avx512", "znver4", (8, 4, 6)),
        ("avx2", "znver3", (8, 2, 6)),
        ("generic", "neoverse-n1", (4, 4, 6)),
    ],
)
def test_the_register_block_of_each_family(isa, cpu, shape):
    """The block's sums, a row of B and a broadcast fit the registers.

    A share of a column-split run is whole panels, and so is a chunk of F.
    """
    found = shape_for(isa, cpu)
    assert found == shape
    assert found.rows * found.vectors + found.vectors + 1 <= {"avx512": 32, "avx2": 16, "generic": 32}[isa]
    assert column_runs.COLUMNS % (found.lanes * found.vectors) == 0
    assert FC % column_runs.COLUMNS == 0
    assert FC <= gemm.KC


def test_the_roof_is_above_the_micro_kernel_and_blas():
    """Neither the micro-kernel nor NumPy's BLAS is faster than multiply-adds in registers."""
    a, b = np.ones((256, 512), np.float32), np.ones((512, 512), np.float32)
    roof = kernel = blas = 0.0
    with threadpool_limits(1):
        for _ in range(5):  # in turns, because the CPU's clock rate changes
            roof, kernel = max(roof, kernels.fma_peak(0.05)), max(kernel, kernels.gemm_peak(0.05))
            start = time.perf_counter()
            np.matmul(a, b)
            blas = max(blas, 2 * 256 * 512 * 512 / (time.perf_counter() - start) / 1e9)
    assert 1 < kernel <= 1.1 * roof
    assert blas <= 1.1 * roof
    assert roof < 2000


# ---- tokens -------------------------------------------------------------------------------------------------------


def choose(
    scores: np.ndarray, k: int, router: Router, select_bias: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, bool]:
    row = scores.astype(np.float32).copy()
    ids, weights = np.full(k, -9, np.int64), np.full(k, np.nan, np.float32)
    bias = np.zeros(0, np.float32) if select_bias is None else select_bias.astype(np.float32)
    fine = router_scores.choose(
        row,
        len(row),
        k,
        router_scores.rule(router),
        router.renormalize,
        np.float32(router.scale),
        bias.ctypes.data if len(bias) else 0,
        ids,
        weights,
    )
    return ids, weights, bool(fine)


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=20),
    st.integers(1, 8),
    st.sampled_from(tuple(SCORES)),
    st.booleans(),
    st.floats(-3, 3, width=32),
)
def test_top_k_and_weights_equal_the_reference(scores, k, score, renormalize, scale):
    """The scores have many ties. The lowest id comes first, and the weights equal the reference."""
    k = min(k, len(scores))
    cfg = MoEConfig(
        1, 1, experts=len(scores), top_k=k, router=Router(score=score, renormalize=renormalize, scale=scale)
    )
    s = np.array(scores, np.float32)
    ids, weights, fine = choose(s, k, cfg.router)
    want_ids, want = reference.route(cfg, np.ones((1, 1)), s[None].astype("f8"))
    assert fine
    assert ids.tolist() == want_ids[0].tolist()
    assert np.abs(weights - want[0]).max() <= 1e-6 * max(1, abs(scale))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_found_anywhere(bad):
    for at in range(9):
        scores = np.linspace(-1, 1, 9)
        scores[at] = bad
        assert not choose(scores, 2, Router())[2]
    assert choose(np.full(9, 3e38), 2, Router())[2]
    large, small = choose(np.array([-3e38, 3e38]), 2, Router())[1].tolist()
    assert large == 1.0
    assert 0 <= small < 1e-37


@given(st.integers(1, 6), st.integers(1, 70), st.data())
def test_combine_is_an_ordered_sum(k, hidden, data):
    """Sums in the order of the choices, in float32. Choices not taken add nothing; no choices give zeros."""
    rng = np.random.default_rng(k)
    stride = -(-4 * hidden // 64) * 64
    rows = aligned((7, stride // 4))
    rows[:] = rng.standard_normal(rows.shape)
    weights = rng.standard_normal(k).astype("f4")
    position = np.array(data.draw(st.lists(st.integers(-1, 6), min_size=k, max_size=k)), np.int64)
    y = np.full(hidden, np.nan, np.float32)
    at = np.where(position >= 0, rows.ctypes.data + stride * position, 0)
    call = CombineToken(
        y=y.ctypes.data, k=k, weights=weights.ctypes.data, rows=at.ctypes.data, hidden=hidden, scratch=0
    )
    token_kernels.combine_token(FLOAT32, call)
    taken = position >= 0
    want = weights[taken].astype("f8") @ rows[position[taken], :hidden].astype("f8")
    assert np.abs(y - want).max() <= 1e-6 * k * 4
    in_order = np.zeros(hidden, np.float32)
    for n, j in enumerate(np.flatnonzero(taken)):
        part = weights[j] * rows[position[j], :hidden]
        in_order = part if n == 0 else in_order + part
    assert same(y, in_order)


def test_scores_of_a_row_do_not_depend_on_other_rows():
    """A router score is one chain of sums over its own row: other tokens of the block change no bit."""
    rng = np.random.default_rng(0)
    hidden, experts, m = 600, 19, 32
    matrix = rng.standard_normal((hidden, experts)).astype("f4")
    router = pack(matrix)
    x = rng.standard_normal((m, hidden)).astype("f4")
    width = padded(experts)

    def scores(part: np.ndarray) -> np.ndarray:
        out, scratch = aligned((len(part), width)), aligned((route_bytes(len(part), hidden, experts),), np.uint8)
        token_kernels.scores(
            FLOAT32,
            len(part),
            part.ctypes.data,
            part.strides[0],
            hidden,
            router.ctypes.data,
            experts,
            scratch.ctypes.data,
            out.ctypes.data,
        )
        return out[:, :experts].copy()

    whole = scores(x)
    want = x.astype("f8") @ matrix.astype("f8")
    assert np.abs(whole - want).max() < 1e-3
    for first, last in ((0, 1), (5, 7), (1, 32), (8, 13)):
        assert same(scores(x[first:last]), whole[first:last])
