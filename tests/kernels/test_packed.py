"""Experts of packed weights on this machine's ISA: against float64 of the dequantised weights, and equal bits.

`test_isas.py` runs this file for other ISAs, as machine code and as plain Python.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cases import same

from aristos import packed, quantise
from aristos.errors import InputError
from aristos.kernels import Packed
from aristos.kernels.by_isa import module
from aristos.kernels.cpu import elements, packed_panels
from aristos.kernels.cpu.target import ISA
from aristos.quantised import Quantised
from aristos.weight_types import FORMATS, PACKED_ROWS, SCALES, WeightType

ROWS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
ERROR = {"float32": 1e-5, "bfloat16": 2 * 2.0**-7}  # of the largest output
KINDS = [
    packed(name, group=group, scale=scale, zeros=zeros)
    for name, form in FORMATS.items()
    for group in form.groups
    for scale in form.scales
    for zeros in (False, True)[: 1 + form.zeros]
]

# int4 alone before each commit: each format compiles modules of its own
FORMS = [pytest.param(name, marks=[] if name == "int4" else pytest.mark.slow) for name in FORMATS]


def param(kind: WeightType):
    """A type of packed weights as a parameter of tests."""
    return pytest.param(kind, id=named(kind), marks=[] if kind.name == "int4" else pytest.mark.slow)


def named(kind: WeightType) -> str:
    return f"{kind.name}-{kind.group}-{kind.scale}{'-zeros' * kind.zeros}"


def expert(kind: WeightType, dtype: str, hidden: int, ffn: int, seed: int = 0):
    """(an expert, its reference in float64) of random codes of every value, scales and zero points."""
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


def random_codes(rng: np.random.Generator, kind: WeightType, depth: int, columns: int) -> Quantised:
    codes = rng.integers(0, 1 << kind.bits, (depth, columns), np.uint8)
    if kind.name == "fp8":
        codes[codes & 0x7F == 0x7F] = 0
        size = 200.0
    else:
        size = {"int8": 100.0, "int4": 6.0, "mxfp4": 3.0}[kind.name]
    shape = kind.groups(depth), -(-columns // kind.columns)
    exponents = rng.integers(-3, 1, shape).astype(np.float32)
    factors = np.float32(1) if kind.scale == "e8m0" else 1 + rng.random(shape, np.float32)
    scales = (np.exp2(exponents) * factors / np.float32(2.0 ** round(np.log2(size * depth**0.5)))).astype(
        SCALES[str(kind.scale)]
    )
    zeros = rng.integers(0, 1 << kind.bits, shape, np.uint8) if kind.zeros else None
    return Quantised(kind, codes, scales, zeros)


def check(kind: WeightType, dtype: str, hidden: int, ffn: int, rows: int) -> None:
    made, reference = expert(kind, dtype, hidden, ffn)
    x = np.random.default_rng(1).standard_normal((rows, hidden), np.float32).astype(ROWS[dtype])
    got, want = made(x), reference(x)
    assert np.abs(got.astype("f8") - want).max() <= ERROR[dtype] * np.abs(want).max()
    for first, last in ((0, 1), (0, 2), (rows // 2, rows // 2 + 5), (1, rows)):
        last = min(last, rows)
        if first < last:
            assert same(np.ascontiguousarray(made(x[first:last])), np.ascontiguousarray(got[first:last]))


@pytest.mark.parametrize("dtype", PACKED_ROWS)
@pytest.mark.parametrize("kind", list(map(param, KINDS)))
def test_every_type_equals_float64_and_few_rows_have_the_bits_of_many(kind, dtype):
    step = kind.group if kind.columns == 1 and kind.group else 1
    check(kind, dtype, packed_panels.up(384, step), packed_panels.up(256, step), 30)


@pytest.mark.parametrize("dtype", PACKED_ROWS)
@pytest.mark.parametrize("name", FORMS)
def test_whatever_shape(name, dtype):
    """Columns and k that fill no panel, k beyond one block of packed rows, many groups of rows."""
    kind = packed(name, group=min(FORMATS[name].groups, key=lambda group: group or 1 << 20), zeros=FORMATS[name].zeros)
    step = kind.group if kind.columns == 1 else 1
    for hidden, ffn, rows in ((32, 32, 1), (3 * step, 2 * step, 14), (1056, 96, 9), (96, 1056, 200)):
        check(kind, dtype, hidden, ffn, rows)
    whole = packed(name, group=0) if 0 in FORMATS[name].groups else kind
    for hidden, ffn, rows in ((1, 1, 1), (33, 5, 3), (1030, 40, 5), (40, 1030, 8)):
        if whole.group == 0:
            check(whole, dtype, hidden, ffn, rows)


@pytest.mark.parametrize("name", FORMS)
def test_every_code_of_a_format_is_multiplied_by_its_value(name):
    """One row that is 1 at one k reads 32 codes back through an identity."""
    kind = packed(name, group=0 if 0 in FORMATS[name].groups else None)
    zero, one = {"int4": (8, 9), "int8": (128, 129), "fp8": (0, 0x38), "mxfp4": (0, 2)}[name]
    every = np.arange(1 << kind.bits).astype(np.uint8)
    if name == "fp8":
        every[every & 0x7F == 0x7F] = 0
    identity = np.where(np.eye(32, dtype=bool), one, zero).astype(np.uint8)
    ones = np.ones((1, 32), SCALES[str(kind.scale)])
    x = np.zeros((1, 32), np.float32)
    x[0, 5] = 1
    for first in range(0, len(every), 32):
        codes = np.full((32, 32), zero, np.uint8)
        codes[5, : len(every)] = every[first : first + 32]
        up = Quantised(kind, codes, ones)
        made = Packed(up, Quantised(kind, identity, ones), activation="relu", dtype="float32")
        for rows in (1, 20):
            for sign in (1, -1):
                y = made(np.repeat(sign * x, rows, axis=0))
                assert (y == np.maximum(sign * up.dequantised()[5], 0)).all()


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
    with pytest.raises(InputError, match="dtype must be that of rows, float32 or bfloat16, got None"):
        Packed(up, down)
    other = quantise(np.ones((256, 128), np.float32), packed("int4", group=64))
    with pytest.raises(InputError, match=r"down must be int4 .* for 128 k with shape .* got int4 .* for 64 k"):
        Packed(up, other, dtype="float32")
