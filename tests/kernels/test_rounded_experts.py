"""Experts of bfloat16, float16 and split float32 rows by compiled kernels of this machine's ISA, against float64.

`test_isas.py` runs this file for every other ISA of the machine, and with the kernels as plain Python.
"""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from cases import same
from hypothesis import given, settings
from hypothesis import strategies as st
from rounded import DTYPES, SPLIT, Expert, numpy_dtype, rounded

from aristos.kernels.cpu import convert, elements, rounded_expert, tokens, widened
from aristos.primitives.arithmetic import CombineToken
from aristos.primitives.buffers import aligned

SHAPES = [  # rows, hidden, ffn
    (1, 1, 1),
    (2, 33, 5),
    (5, 64, 64),
    (17, 100, 130),  # a lower tile of 8 rows
    (13, 70, 1300),  # F in chunks, if sums are kept
    (40, 1030, 40),  # k exceeds one pass
    (193, 48, 96),  # many groups of rows
]


ERROR = {"bfloat16": 2 * 2.0**-7, "float16": 2 * 2.0**-10, "float32": 2e-5}  # relative to the largest output


@pytest.mark.parametrize("dtype", DTYPES + SPLIT)
@pytest.mark.parametrize(("rows", "hidden", "ffn"), SHAPES)
def test_an_expert_equals_float64_with_two_roundings(dtype, rows, hidden, ffn):
    for gated in (False, True):
        for bias in (False, True):
            expert = Expert(dtype, hidden, ffn, gated, bias)
            x = expert.rows(rows)
            got, want = expert(x).astype("f8"), expert.reference(x)
            # a hidden activation on the edge between two values may round to either
            assert np.abs(got - want).max() <= ERROR[dtype] * np.abs(want).max()
            mean = 0.5 if dtype in SPLIT else 0.15
            assert np.abs(got - want).mean() <= mean * ERROR[dtype] * np.abs(want).max()


@pytest.mark.parametrize("dtype", DTYPES + SPLIT)
def test_a_chunked_run_has_the_bits_of_a_whole_one(dtype, monkeypatch):
    """A chunked run keeps the outputs' sums between chunks of F. A whole run keeps all hidden activations instead.

    Both add in the same order.
    """
    less, more = (80, 96) if dtype in SPLIT else (40, 44)
    chunked, whole = Expert(dtype, less, 600, True, True), Expert(dtype, more, 600, True, True)
    assert rounded_expert.chunk_of(chunked.element.code, less, 600) == rounded_expert.FC
    assert rounded_expert.chunk_of(chunked.element.code, more, 600) == 600
    whole.copy_from(chunked)  # the extra columns of `whole` are zeros
    x = chunked.rows(20)
    wide = np.zeros((20, more), x.dtype)
    wide[:, :less] = x
    assert same(chunked(x), np.ascontiguousarray(whole(wide)[:, :less]))


@pytest.mark.parametrize("dtype", DTYPES + SPLIT)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 100), st.integers(1, 100), st.data())
def test_a_row_has_the_same_bits_alone_and_among_others(dtype, rows, hidden, ffn, data):
    expert = Expert(dtype, hidden, ffn, True, True)
    x = expert.rows(rows)
    y = expert(x)
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    assert same(expert(np.ascontiguousarray(x[first:last])), np.ascontiguousarray(y[first:last]))
    assert same(expert(np.ascontiguousarray(x[::-1])), np.ascontiguousarray(y[::-1]))


@pytest.mark.parametrize("dtype", DTYPES + SPLIT)
def test_shares_of_a_column_split_run_give_the_same_bits(dtype):
    expert = Expert(dtype, 130, 200, True, True)
    x = expert.rows(9)
    assert same(expert.by_columns(x, 96), expert(x))


def test_rounding_to_bfloat16_equals_ml_dtypes():
    """Values of every exponent are rounded to the nearest, ties to even. Infinities and NaNs are kept."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32)
    edges = np.array([0, 0x80000000, 1, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFC00000], np.uint32)
    ties = (np.arange(0, 0xFFFF, 7, dtype=np.uint32) << 16) | 0x8000
    values = np.concatenate([bits, edges, ties, ties - 1, ties + 1]).view(np.float32)
    if convert.FLUSHES:  # the conversion turns denormals into zeros
        values = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), values), values)
    got = convert.narrow(convert.BFLOAT16, values)
    with np.errstate(invalid="ignore"):
        want = values.astype(ml_dtypes.bfloat16)
    nan = np.isnan(values)
    assert np.array_equal(got[~nan], want.view(np.uint16)[~nan])
    assert np.isnan(got.view(ml_dtypes.bfloat16)[nan].astype("f4")).all()
    back = np.empty(len(got), np.float32)
    convert.widen_row(convert.BFLOAT16, back.ctypes.data, got.ctypes.data, len(got))
    assert np.array_equal(back[~nan], want.astype("f4")[~nan])


def test_rounding_to_float16_equals_numpy():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(50_000) * 10.0 ** rng.integers(-9, 6, 50_000)
    values = np.concatenate([values, [np.inf, -np.inf, 65519.0, 65520.0]]).astype(np.float32)
    with np.errstate(over="ignore"):
        want = values.astype(np.float16)
    got = convert.narrow(convert.FLOAT16, values)
    assert np.array_equal(got, want.view(np.uint16))
    back = np.empty(len(got), np.float32)
    convert.widen_row(convert.FLOAT16, back.ctypes.data, got.ctypes.data, len(got))
    assert np.array_equal(back, want.astype("f4"))


@pytest.mark.skipif(not SPLIT, reason="no AMX")
def test_split_values_are_sums_of_two_bfloat16():
    """Operands and packed weights are split; ml_dtypes rounds both parts alike. 16 significant bits remain."""
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(64) * 10.0 ** rng.integers(-30, 30, 64)).astype(np.float32)
    high = values.astype(ml_dtypes.bfloat16)
    low = (values - high.astype("f4")).astype(ml_dtypes.bfloat16)
    assert (np.abs(values - (high.astype("f8") + low.astype("f8"))) <= 2.0**-17 * np.abs(values)).all()
    for n in (1, 31, 32):
        got = np.full((2, 32), 0x1234, np.uint16)
        convert.split_block(got[0].ctypes.data, got[1].ctypes.data, values.ctypes.data, n)
        assert np.array_equal(got[:, :n], np.stack([high[:n], low[:n]]).view(np.uint16))
        assert not got[:, n:].any()
    packed = elements.pack_split(values.reshape(32, 2))
    assert packed.shape == (1, 1, 2, 2, 16, 16, 2)
    assert packed.ctypes.data % 64 == 0
    for part, want in zip(packed[0, 0], (high, low)):
        columns = part.transpose(1, 3, 0, 2).reshape(32, 32)
        assert np.array_equal(columns[:, :2], want.reshape(32, 2).view(np.uint16))
        assert not columns[:, 2:].any()
    element = elements.element_type("float32", "high")
    for k, n in ((1, 1), (32, 32), (70, 100)):
        assert element.pack(np.ones((k, n), np.float32)).nbytes == element.packed_bytes(k, n)
    assert element.packed_bytes(64, 96) == elements.element_type("float32").packed_bytes(64, 96)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_panels_hold_the_weights_and_zeros(dtype):
    rng = np.random.default_rng(0)
    element = elements.ELEMENTS[dtype]
    for k, n in ((1, 1), (32, 32), (33, 65), (70, 100)):
        w = rounded(rng.standard_normal((k, n)).astype("f4"), dtype)
        packed = element.pack(w)
        assert packed.nbytes == element.packed_bytes(k, n)
        assert packed.ctypes.data % 64 == 0
        up_k, up_n = elements.up(k), elements.up(n)
        whole = np.zeros((up_k, up_n), w.dtype)
        whole[:k, :n] = w
        for j in range(0, up_n, 32):
            panel = packed[64 * up_k * (j // 32) :][: 64 * up_k].view(np.uint16)
            if dtype == "float16":
                got = panel.reshape(up_k, 32)
            else:
                got = panel.reshape(-1, 2, 16, 16, 2).transpose(0, 2, 4, 1, 3).reshape(up_k, 32)
            assert np.array_equal(got, whole[:, j : j + 32].view(np.uint16))
        assert np.array_equal(element.pack(w.T.copy().T), packed)
        assert np.array_equal(element.pack(w.astype("f4")), packed)


@pytest.mark.parametrize("dtype", DTYPES + SPLIT)
def test_sums_carried_between_passes_equal_those_of_one_pass(dtype):
    """`panel_sums` for parts of k, one after the other, gives the bits of all k at once, for any number of rows."""
    for rows in (1, 5, 16, 17, 40):
        expert = Expert(dtype, 160, 32, False, False)
        element, step = expert.element, 128 if dtype in SPLIT else 64  # bytes of a panel for each k
        x, panel = expert.rows(rows), element.pack(expert.weights["up"])
        whole = expert.sums(x, panel.ctypes.data)
        total = aligned((rows, 32))
        total[:] = 0
        for k0, k1 in pairwise((0, 32, 96, 160)):
            part = np.ascontiguousarray(x[:, k0:k1])
            total = expert.sums(part, panel.ctypes.data + step * k0, total)
        assert same(total, whole)
        want = x.astype("f8") @ expert.weights["up"].astype("f8")
        assert np.abs(whole - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_combine_is_an_ordered_sum_rounded_once(dtype):
    """The sum is in float32, in the order of the choices. Choices not taken add nothing, and no choices give zeros."""
    rng = np.random.default_rng(0)
    code = elements.ELEMENTS[dtype].code
    for hidden in (1, 31, 32, 100):
        rows = aligned((6, elements.up(hidden)), np.uint16)
        rows[:] = rounded(rng.standard_normal(rows.shape), dtype).view(np.uint16)
        weights = rng.standard_normal(6).astype("f4")
        for taken in ([], [2], [0, 3, 5], range(6)):
            at = np.zeros(6, np.int64)
            want = np.zeros(hidden, np.float32)
            for j in taken:
                at[j] = rows[j].ctypes.data
                want += weights[j] * rows[j, :hidden].view(numpy_dtype(dtype)).astype("f4")
            y = np.full(hidden + 1, 0x1234, np.uint16)
            scratch = aligned((tokens.combine_bytes(6),), np.uint8)
            call = CombineToken(
                y=y.ctypes.data,
                k=6,
                weights=weights.ctypes.data,
                rows=at.ctypes.data,
                hidden=hidden,
                scratch=scratch.ctypes.data,
            )
            tokens.combine_token(code, call)
            assert np.array_equal(y[:hidden], rounded(want, dtype).view(np.uint16))
            assert y[hidden] == 0x1234


def test_micro_kernels_of_widened_weights_fit_the_registers():
    assert widened.SPAN in (16, 32)
    assert widened.SPAN % widened.REGISTER == 0
