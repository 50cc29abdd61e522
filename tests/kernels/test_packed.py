"""Experts of packed weights on this machine's ISA: equality with float64 of the dequantised weights, and equal bits.

`test_isas.py` runs this file for other ISAs, as machine code and as plain Python.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cases import same
from packed_codes import KINDS, PAIRS, named, random_codes

from aristos import packed, quantise
from aristos.errors import InputError
from aristos.kernels import Packed
from aristos.kernels.by_isa import module
from aristos.kernels.cpu import elements, packed_panels
from aristos.kernels.cpu.target import ISA
from aristos.quantised import Quantised
from aristos.weight_types import FORMATS, PACKED_ROWS, SCALES, WeightType

ROWS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
ERROR = {"float32": 1e-5, "bfloat16": 2 * 2.0**-7}  # relative to the largest output
ONES = {"int4": (8, 9), "int8": (128, 129), "fp8": (0, 0x38), "mxfp4": (0, 2)}  # codes of 0 and 1

# the quick tier runs int4 alone, because each format compiles its own modules
FORMS = [pytest.param(name, marks=[] if name == "int4" else pytest.mark.slow) for name in FORMATS]


def param(kind: WeightType):
    """A type of packed weights as a parameter of tests."""
    return pytest.param(kind, id=named(kind), marks=[] if kind.name == "int4" else pytest.mark.slow)


def expert(kind: WeightType, dtype: str, hidden: int, ffn: int, seed: int = 0):
    """(an expert of random codes, scales and zero points, its reference in float64)."""
    rng = np.random.default_rng(seed)
    up, gate, down = (random_codes(rng, kind, *shape) for shape in ((hidden, ffn), (hidden, ffn), (ffn, hidden)))
    made = Packed(up, down, gate, activation="silu", dtype=dtype)

    def reference(x: np.ndarray) -> np.ndarray:
        wide = x.astype("f8")
        g, u = wide @ gate.dequantised(), wide @ up.dequantised()
        h = g / (1 + np.exp(-g)) * u
        if dtype == "bfloat16":
            h = h.astype(np.float32).astype(ml_dtypes.bfloat16).astype("f8")
        return h @ down.dequantised()

    return made, reference


def check(kind: WeightType, dtype: str, hidden: int, ffn: int, rows: int) -> None:
    made, reference = expert(kind, dtype, hidden, ffn)
    x = np.random.default_rng(1).standard_normal((rows, hidden), np.float32).astype(ROWS[dtype])
    made._scratch[:] = 0xFF  # NaN wherever scratch is read before it is written
    got, want = made(x), reference(x)
    assert np.abs(got.astype("f8") - want).max() <= ERROR[dtype] * np.abs(want).max()
    for first, last in ((0, 1), (0, 2), (rows // 2, rows // 2 + 5), (1, rows)):
        last = min(last, rows)
        if first < last:
            assert same(np.ascontiguousarray(made(x[first:last])), np.ascontiguousarray(got[first:last]))


@pytest.mark.parametrize("dtype", PACKED_ROWS)
@pytest.mark.parametrize("kind", list(map(param, PAIRS)))
def test_every_type_equals_float64_and_few_rows_have_the_bits_of_many(kind, dtype):
    step = kind.group if kind.columns == 1 and kind.group else 1
    check(kind, dtype, packed_panels.up(384, step), packed_panels.up(256, step), 30)


@pytest.mark.parametrize("dtype", PACKED_ROWS)
@pytest.mark.parametrize("name", FORMS)
def test_whatever_shape(name, dtype):
    """Columns and k do not fill a panel, k exceeds one block of packed rows, or there are many groups of rows."""
    kind = packed(name, group=min(FORMATS[name].groups, key=lambda group: group or 1 << 20), zeros=FORMATS[name].zeros)
    step = kind.group if kind.columns == 1 else 1
    for hidden, ffn, rows in ((32, 32, 1), (3 * step, 2 * step, 14), (1056, 96, 9), (96, 1056, 200)):
        check(kind, dtype, hidden, ffn, rows)
    if 0 not in FORMATS[name].groups:
        return
    for zeros in {False, FORMATS[name].zeros}:
        whole = packed(name, group=0, zeros=zeros)
        for hidden, ffn, rows in ((1, 1, 1), (33, 5, 3), (5, 33, 20), (1030, 40, 5), (40, 1030, 8)):
            check(whole, dtype, hidden, ffn, rows)


@pytest.mark.parametrize("dtype", PACKED_ROWS)
@pytest.mark.parametrize("name", FORMS)
def test_sums_are_right_before_they_are_rounded(name, dtype):
    """The second matrix is an identity, so that sums are the outputs, rounded once to the type of rows.

    Sums are within 1e-5 of the largest one.
    """
    kind = packed(name, zeros=FORMATS[name].zeros)
    up, zero = random_codes(np.random.default_rng(0), kind, 1152, 128), ONES[name][0]
    scales = np.ones((kind.groups(128), 1152 // kind.columns), SCALES[str(kind.scale)])
    identity = np.where(np.eye(128, 1152, dtype=bool), *reversed(ONES[name])).astype(np.uint8)
    zeros = np.full((kind.groups(128), 1152), zero, np.uint8) if kind.zeros else None
    made = Packed(up, Quantised(kind, identity, scales, zeros), activation="relu", dtype=dtype)
    x = np.random.default_rng(1).standard_normal((30, 1152), np.float32).astype(ROWS[dtype])
    want = x.astype("f8") @ up.dequantised()
    off = 1e-5 * np.abs(want).max()
    low, high = (np.maximum(want + each, 0).astype(ROWS[dtype]) for each in (-off, off))
    for rows in (1, 30):
        got = made(x[:rows])[:, :128]
        assert (low[:rows] <= got).all()
        assert (got <= high[:rows]).all()


@pytest.mark.parametrize("dtype", PACKED_ROWS)
@pytest.mark.parametrize("name", FORMS)
def test_any_number_of_rows_has_the_bits_of_many(name, dtype):
    """The number of groups is odd and above 1, and k exceeds a block of packed rows."""
    kind = packed(name, group=min(FORMATS[name].groups, key=lambda group: group or 1 << 20), zeros=FORMATS[name].zeros)
    made, _ = expert(kind, dtype, 17 * 32 if kind.group == 32 else 5 * 128, 96 if kind.group == 32 else 128)
    few = module("packed", ISA, name).FEW
    x = np.random.default_rng(1).standard_normal((2 * few + 1, made.hidden), np.float32).astype(ROWS[dtype])
    wanted = made(x)
    for rows in range(1, len(x)):
        assert same(np.ascontiguousarray(made(x[:rows])), np.ascontiguousarray(wanted[:rows])), rows


@pytest.mark.parametrize("dtype", PACKED_ROWS)
@pytest.mark.parametrize("name", FORMS)
def test_every_code_of_a_format_is_multiplied_by_its_value(name, dtype):
    """Each place of a word and each column has each code.

    A row that is 1 at one k, times these codes and then times an identity, gives the values of 32 codes.
    """
    kind = packed(name, group=0 if 0 in FORMATS[name].groups else None)
    zero, one = ONES[name]
    every = np.arange(1 << kind.bits).astype(np.uint8)
    if name == "fp8":
        every[every & 0x7F == 0x7F] = 0
    depth, places = (40, (*range(8), 31, 32, 39)) if kind.group == 0 else (64, (*range(8), 31, 32, 63))
    identity = np.where(np.eye(32, depth, dtype=bool), one, zero).astype(np.uint8)
    ones = np.ones((kind.groups(depth), 32), SCALES[str(kind.scale)])
    down = Quantised(kind, identity, np.ones((1, depth), ones.dtype))
    for first in range(0, len(every), 32):
        codes = np.full((depth, 32), zero, np.uint8)
        for k in places:
            codes[k] = np.roll(np.resize(np.roll(every, -first)[:32], 32), k)
        up = Quantised(kind, codes, ones)
        made = Packed(up, down, activation="relu", dtype=dtype)
        x = np.zeros((len(places), depth), ROWS[dtype])
        x[np.arange(len(places)), places] = 1
        for rows in (x, np.concatenate([x, x])):
            for sign in (1, -1):
                wanted = np.maximum(sign * up.dequantised()[list(places)], 0)
                assert (made(ROWS[dtype](sign) * rows)[:, :32] == np.tile(wanted, (len(rows) // len(x), 1))).all()
        for n, k in enumerate(places):
            assert (made(x[n : n + 1])[:, :32] == np.maximum(up.dequantised()[k], 0)).all()


def test_where_codes_of_4_bits_lie():
    """Code (k, n) of a panel is in word 32 (k // 8) + n, from bit 16 (k % 2) + 4 (k % 8 // 2), in two's complement."""
    kind = packed("int4", group=0)
    codes = np.random.default_rng(0).integers(0, 16, (40, 70), np.uint8)
    head = packed_panels.head(kind, 40)
    stored = packed_panels.pack(Quantised(kind, codes, np.ones((1, 70), np.float32))).reshape(-1, head["step"])
    for k in range(40):
        for n in range(70):
            words = stored[n // 32, head["codes"] :].view(np.uint32)
            word = int(words[32 * (k // 8) + n % 32])
            assert (word >> 16 * (k % 2) + 4 * (k % 8 // 2)) & 15 == int(codes[k, n]) ^ 8


@pytest.mark.parametrize("dtype", PACKED_ROWS)
@pytest.mark.parametrize("name", FORMS)
def test_a_small_expert(name, dtype):
    form = FORMATS[name]
    kind = packed(
        name, group=max(form.groups) if form.columns > 1 else min(filter(None, form.groups)), zeros=form.zeros
    )
    check(kind, dtype, 64, 32, 14)


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_panels_take_the_bytes_of_the_codes(kind):
    element = elements.element_type("bfloat16", weight=kind)
    assert element.packed_bytes(2048, 768) <= 1.02 * kind.nbytes(2048, 768)
    matrix = random_codes(np.random.default_rng(0), kind, 256, 96)
    assert packed_panels.pack(matrix).nbytes == element.packed_bytes(256, 96)


def test_a_format_has_modules_of_its_own():
    entries = module("entries", ISA, "int4")
    assert entries.__name__ == f"aristos.kernels.cpu_{ISA}_int4.entries"
    assert module("target", ISA, "int4").FORMAT == "int4"
    assert module("entries", ISA).__name__ == "aristos.kernels.cpu.entries"


def test_an_expert_of_codes_needs_one_type_and_the_rows():
    kind = packed("int4")
    up, down = (quantise(np.ones(shape, np.float32), kind) for shape in ((128, 256), (256, 128)))
    with pytest.raises(InputError, match="dtype must be the type of rows, float32 or bfloat16, got None"):
        Packed(up, down)
    other = quantise(np.ones((256, 128), np.float32), packed("int4", group=64))
    with pytest.raises(InputError, match=r"down must be int4 .* for 128 rows with shape .* got int4 .* for 64 rows"):
        Packed(up, other, dtype="float32")
