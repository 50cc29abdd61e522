"""Matrices of codes and scales: the weights that they stand for, how weights are quantised, and what is refused."""

from __future__ import annotations

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from aristos.errors import InputError
from aristos.quantised import Quantised, quantise
from aristos.weight_types import FORMATS, SCALES, packed

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
TYPES = [
    packed(name, group=group, scale=scale, zeros=zeros)
    for name, form in FORMATS.items()
    for group, scale, zeros in itertools.product(form.groups, form.scales, (False, True)[: 1 + form.zeros])
]
IDS = [str(kind) for kind in TYPES]
DEPTH = 256


def e4m3(code: int) -> float:
    """OCP 8-bit floating point: a sign, four bits of exponent with bias 7, three of fraction; subnormals below 2^-6."""
    exponent, fraction = code >> 3 & 15, code & 7
    size = 2.0**-6 * fraction / 8 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + fraction / 8)
    return -size if code & 128 else size


def meaning(kind, code: int, zero: int) -> float:
    """The number that a code stands for, less its zero point."""
    if kind.name == "fp8":
        return e4m3(code)
    if kind.name == "mxfp4":
        return E2M1[code & 7] * (-1.0) ** (code >> 3)
    return float(code - zero)


def weights_of(q: Quantised) -> np.ndarray:
    """The weights [K, N] in float64, computed one by one."""
    depth, columns = q.shape
    found = np.zeros((depth, columns))
    middle = 1 << (q.type.bits - 1)
    for k, n in itertools.product(range(depth), range(columns)):
        group = k // q.type.group if q.type.group else 0
        zero = middle if q.zeros is None else int(q.zeros[group, n])
        found[k, n] = float(q.scales[group, n // q.type.columns]) * meaning(q.type, int(q.codes[k, n]), zero)
    return found


def random(kind, depth: int = DEPTH, columns: int = 3, seed: int = 0) -> dict[str, np.ndarray | None]:
    """Random codes, scales and zero points."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << kind.bits, (depth, columns)).astype(np.uint8)
    if kind.name == "fp8":
        codes[codes & 127 == 127] = 3
    shape = (kind.groups(depth), -(-columns // kind.columns))
    exponents = 2.0 ** rng.integers(-9, 9, shape)
    scales = (exponents if kind.scale == "e8m0" else rng.uniform(0.01, 2, shape)).astype(SCALES[kind.scale])
    zeros = rng.integers(0, 1 << kind.bits, (shape[0], columns)).astype(np.uint8) if kind.zeros else None
    return {"codes": codes, "scales": scales, "zeros": zeros}


@pytest.mark.parametrize("kind", TYPES, ids=IDS)
def test_a_weight_is_a_scale_times_its_code(kind):
    q = Quantised(kind, **random(kind))
    assert np.array_equal(q.dequantised(), weights_of(q))
    assert np.array_equal(q.dequantised(np.float32), weights_of(q).astype(np.float32))
    assert np.array_equal(q.values().astype(ml_dtypes.bfloat16).astype(np.float32), q.values())


@pytest.mark.parametrize("kind", TYPES, ids=IDS)
def test_bytes_are_those_of_codes_scales_and_zero_points(kind):
    parts = random(kind)
    each = [8 * parts["scales"].nbytes, kind.bits * parts["codes"].size]
    each += [kind.bits * parts["zeros"].size] if kind.zeros else []
    assert Quantised(kind, **parts).nbytes == -(-sum(each) // 8)


def codes_of(kind) -> list[float]:
    """The values of all codes of a type, without a zero point."""
    return [
        meaning(kind, code, 1 << (kind.bits - 1))
        for code in range(1 << kind.bits)
        if kind.name != "fp8" or code & 127 < 127
    ]


@pytest.mark.parametrize("kind", TYPES, ids=IDS)
def test_codes_are_the_nearest_ones(kind):
    """No other code is nearer.

    The largest code times the scale is the group's largest value, within rounding of the scale.
    """
    weight = np.random.default_rng(1).standard_normal((DEPTH, 3)).astype(np.float32)
    q = quantise(weight, kind)
    found, values = weights_of(q), np.array(codes_of(kind))
    for k, n in itertools.product(range(0, DEPTH, 7), range(3)):
        group = k // kind.group if kind.group else 0
        scale = float(q.scales[group, n // kind.columns])
        if kind.zeros:
            values = np.arange(1 << kind.bits) - float(q.zeros[group, n])
        nearest = np.abs(scale * values - float(weight[k, n])).min()
        assert abs(found[k, n] - float(weight[k, n])) <= nearest * (1 + 1e-6) + 1e-7 * scale
    step = 2.0 ** -ml_dtypes.finfo(SCALES[kind.scale]).nmant
    for group in range(kind.groups(DEPTH)):
        rows = slice(group * kind.group, (group + 1) * kind.group) if kind.group else slice(None)
        columns = slice(None) if kind.columns > 1 else slice(0, 1)
        part = weight[rows, columns].astype(np.float64)
        scale = float(q.scales[group, 0])
        if kind.zeros:
            wanted = (max(part.max(), 0) - min(part.min(), 0)) / ((1 << kind.bits) - 1)
        elif kind.name == "mxfp4":
            wanted = 2.0 ** (np.floor(np.log2(np.abs(part).max())) - 2)
        else:
            wanted = np.abs(part).max() / {"fp8": 448, "int8": 127, "int4": 7}[kind.name]
        assert wanted * (1 - 1e-6) <= scale <= wanted * (1 + step + 1e-6)


@pytest.mark.parametrize("kind", TYPES, ids=IDS)
def test_weights_that_codes_can_express_are_kept(kind):
    """The scale is a power of two, which every type of scale has."""
    rng = np.random.default_rng(2)
    values = codes_of(kind)
    weight = rng.choice(values, (DEPTH, 3))
    weight = np.where(weight == -(1 << (kind.bits - 1)), 0, weight) if kind.name.startswith("int") else weight
    largest = {"fp8": 448, "int8": 127, "int4": 7, "mxfp4": 6}[kind.name]
    every = kind.group or DEPTH
    weight[::every] = largest  # every group has its largest value
    if kind.zeros:
        weight[1::every] = -largest - 1
    assert np.array_equal(quantise((weight / 8).astype(np.float32), kind).dequantised(), weight / 8)


@pytest.mark.parametrize("kind", TYPES, ids=IDS)
def test_groups_of_zeros_stay_zeros(kind):
    q = quantise(np.zeros((DEPTH, 2), np.float32), kind)
    assert not q.dequantised().any()
    assert q.scales.astype(np.float32).all()


@pytest.mark.parametrize("kind", TYPES, ids=IDS)
@pytest.mark.parametrize("size", [1e-38, 1e-6, 1e30])
def test_tiny_and_large_weights_have_usable_scales(kind, size):
    """No scale is zero or infinite. A scale beyond the range of its type becomes the nearest number in the range."""
    if size > 1e29 and kind.scale == "float16":
        pytest.skip("beyond float16")
    weight = (size * np.random.default_rng(3).uniform(-1, 1, (DEPTH, 2))).astype(np.float32)
    found = quantise(weight, kind).dequantised()
    if size > 1e-7 and kind.scale != "float16":
        assert np.abs(found - weight).max() <= size * (0.26 if kind.bits == 4 else 0.07)
    else:
        assert np.isfinite(found).all()


def test_blocks_at_the_edges_are_partial():
    kind = packed("fp8")
    q = Quantised(kind, **random(kind, 200, 130))
    assert q.scales.shape == (2, 2)
    assert np.array_equal(q.dequantised(), weights_of(q))
    weight = np.random.default_rng(4).standard_normal((200, 130)).astype(np.float32)
    assert np.abs(quantise(weight, kind).dequantised() - weight).max() < 0.04 * np.abs(weight).max()


def test_squares_measure_what_is_lost():
    weight = np.array([[1, -1.25], [0.5, 3]], np.float32)
    kind = packed("int8")
    q = Quantised(kind, np.array([[129, 127], [129, 131]], np.uint8), np.ones((1, 2), np.float32))
    lost = Fraction(1, 4) ** 2 + Fraction(1, 2) ** 2
    assert q.squares(weight).tolist() == [float(lost), float(np.square(weight).sum())]


# ---- what is refused -----------------------------------------------------------------------------------------------


def wrong(kind, **changes):
    return {**random(kind), **changes}


INT4, INT8 = packed("int4", group=32, zeros=True), packed("int8")
GROUPS = {"scales": np.ones((8, 3), np.float32), "zeros": np.ones((8, 3), np.uint8)}


def with_scale(value):
    scales = np.ones((8, 3), np.float32)
    scales[2, 1] = value
    return scales


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (INT4, {"codes": np.zeros((DEPTH, 3), np.int8)}, "codes must be a matrix [K, N] of uint8, got int8 [256, 3]"),
        (INT4, {"codes": np.zeros(DEPTH, np.uint8)}, "codes must be a matrix"),
        (INT4, {"codes": np.zeros((0, 3), np.uint8)}, "codes must be a matrix"),
        (INT4, {"codes": np.full((DEPTH, 3), 16, np.uint8)}, "codes of int4 must be at most 15, got 16"),
        (packed("mxfp4"), {"codes": np.full((DEPTH, 3), 200, np.uint8)}, "codes of mxfp4 must be at most 15, got 200"),
        (
            INT4,
            {"codes": np.zeros((250, 3), np.uint8)},
            "codes of int4 must have a multiple of 32 rows, the size of a group, got 250",
        ),
        (INT4, {"scales": np.ones((8, 2), np.float32)}, "scales must be float32 with shape [8, 3]"),
        (INT4, {"scales": np.ones((8, 3), np.float64)}, "scales must be float32 with shape [8, 3], got float64"),
        (INT4, {"scales": with_scale(0)}, "scales must be finite and not zero, got 0.0 at [2, 1]"),
        (INT4, {"scales": with_scale(np.nan)}, "got nan at [2, 1]"),
        (INT4, {"scales": with_scale(-np.inf)}, "got -inf at [2, 1]"),
        (INT4, {"scales": with_scale(1e38)}, "scales times codes must fit float32, got the scale 9.99"),
        (INT4, {"zeros": None}, "zeros must be given"),
        (INT8, {"zeros": np.zeros((1, 3), np.uint8)}, "zeros must be None"),
        (INT4, {"zeros": np.zeros((7, 3), np.uint8)}, "zeros must be uint8 with shape [8, 3]"),
        (INT4, {"zeros": np.full((8, 3), 16, np.uint8)}, "zeros of int4 must be at most 15, got 16"),
        (packed("fp8"), {"codes": np.full((DEPTH, 3), 0xFF, np.uint8)}, "codes of fp8 must be numbers, got NaN at [0"),
        (packed("fp8"), {"scales": np.ones((2, 3), np.float32)}, "scales must be float32 with shape [2, 1]"),
        (
            packed("mxfp4"),
            {"scales": np.full((8, 3), np.nan).astype(ml_dtypes.float8_e8m0fnu)},
            "scales must be finite and not zero, got nan",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(kind, changes, words):
    with pytest.raises(InputError) as error:
        Quantised(kind, **wrong(kind, **changes))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (np.zeros(32), "weight must be a matrix [K, N], got shape [32]"),
        (np.zeros((0, 3)), "weight must be a matrix"),
        (np.zeros((33, 3)), "must have a multiple of 32 rows, the size of a group, got 33"),
        (np.full((32, 3), np.nan), "weights must be finite, got nan"),
        (np.full((32, 3), -np.inf), "weights must be finite, got -inf"),
    ],
)
def test_matrices_that_cannot_be_quantised_are_refused(weight, words):
    with pytest.raises(InputError) as error:
        quantise(weight.astype(np.float32), INT4)
    assert words in str(error.value)
