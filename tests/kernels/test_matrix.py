"""`kernels.Matrix` and `kernels.Packed` of every element type, and transposed weights, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from cases import same
from rounded import DTYPES, numpy_dtype

from aristos import MoEConfig, kernels, reference
from aristos.errors import InputError
from aristos.kernels.cpu import gemm
from aristos.kernels.cpu.elements import element_type

KINDS = [("float32", "highest"), ("float32", "high"), *((dtype, "highest") for dtype in DTYPES)]
ERROR = {"float32": 1e-5, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # relative to the largest output


def drawn(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(numpy_dtype(dtype))


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
@pytest.mark.parametrize(("k", "n"), [(1, 1), (32, 64), (gemm.KC + 3, 49), (100, 130)])
def test_products_with_weights_and_their_transpose_equal_float64(dtype, precision, k, n):
    w = drawn((k, n), dtype)
    for transposed in (False, True):
        matrix = kernels.Matrix(w, precision=precision, transposed=transposed)
        wanted = w.T if transposed else w
        assert (matrix.depth, matrix.columns) == wanted.shape
        for m in (0, 1, 9, 40, 200):
            x = drawn((m, len(wanted)), dtype, seed=m)
            y, want = matrix(x), x.astype("f8") @ wanted.astype("f8")
            assert y.shape == want.shape
            assert y.dtype == x.dtype
            assert np.abs(y.astype("f8") - want).max(initial=0) <= 1.01 * ERROR[dtype] * np.abs(want).max(initial=0)
            out = np.empty(y.shape, y.dtype)
            assert matrix(x, out=out) is out
            assert same(out, np.ascontiguousarray(y))


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_a_transpose_is_packed_as_its_copy_is(dtype, precision):
    element = element_type(dtype, precision)
    w = drawn((70, 45), dtype)
    packed = element.pack(w, transposed=True)
    assert packed.nbytes == element.packed_bytes(45, 70)
    assert same(packed, element.pack(np.ascontiguousarray(w.T)))
    assert same(element.pack(w.astype("f4"), transposed=True), packed)


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_an_expert_of_every_type_equals_float64(dtype, precision):
    w = {"up": drawn((70, 90), dtype, 1), "gate": drawn((70, 90), dtype, 2), "down": drawn((90, 70), dtype, 3)}
    w = {name: (value.astype("f4") / 9).astype(value.dtype) for name, value in w.items()}
    bias = {f"{name}_bias": drawn((value.shape[1],), "float32", 4) for name, value in w.items()}
    packed = kernels.Packed(**w, **bias, activation="silu", precision=precision)
    cfg = MoEConfig(70, 90, experts=1, top_k=1, activation="silu", gated=True, bias=True)
    x = drawn((40, 70), dtype, 5)
    y = packed(x)
    want = reference.expert(cfg, x.astype("f8"), 0, **{name: v.astype("f8")[None] for name, v in (w | bias).items()})
    assert y.dtype == x.dtype
    assert np.abs(y.astype("f8") - want).max() <= 3 * ERROR[dtype] * np.abs(want).max()


def test_other_types_are_refused():
    w = drawn((8, 8), "bfloat16")
    for make in (kernels.Matrix, lambda w, **options: kernels.Packed(w, w, **options)):
        with pytest.raises(InputError, match="must be a matrix of float32, bfloat16 or float16, got float64"):
            make(w.astype("f8"))
        with pytest.raises(InputError, match=r"precision must be 'highest', .*, got 'high' with bfloat16"):
            make(w, precision="high")
        with pytest.raises(InputError, match=r"x must be bfloat16 with shape \[2, 8\], got float32"):
            make(w)(np.zeros((2, 8), np.float32))
    with pytest.raises(InputError, match=r"down must be bfloat16 with shape \[8, 8\], got float16"):
        kernels.Packed(w, w.astype("f2"))
