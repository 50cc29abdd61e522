"""PTX's numbers as integers and fractions. The machine's tests compare results with them.

A floating-point number is (kind, negative, size): kind `nan`, `inf` or `num`, size a Fraction that is not negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

Number = tuple[str, bool, Fraction]
ZERO = Fraction(0)
NAN: Number = ("nan", False, ZERO)


@dataclass(frozen=True)
class Format:
    """fraction, exponent: how many bits the fields have. nan: PTX's NaN (None: any NaN)."""

    name: str
    exponent: int
    fraction: int
    nan: int | None
    below: int = 0  # how many low bits are always zero (tf32 in 32 bits)

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.fraction + self.below

    @property
    def least(self) -> int:
        """The exponent of the least normal number."""
        return 2 - (1 << (self.exponent - 1))

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent) - 1) << self.fraction


F16 = Format("f16", 5, 10, 0x7FFF)
BF16 = Format("bf16", 8, 7, 0x7FFF)
F32 = Format("f32", 8, 23, 0x7FFFFFFF)
F64 = Format("f64", 11, 52, None)
TF32 = Format("tf32", 8, 10, 0x7FFFFFFF, 13)
DTYPES = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def value(bits: int, form: Format) -> Number:
    """The number that bits of a format stand for."""
    bits >>= form.below
    fraction = bits & ((1 << form.fraction) - 1)
    exponent = (bits >> form.fraction) & ((1 << form.exponent) - 1)
    negative = bool(bits >> (form.fraction + form.exponent) & 1)
    if exponent == (1 << form.exponent) - 1:
        return ("nan", negative, ZERO) if fraction else ("inf", negative, ZERO)
    if exponent:
        fraction += 1 << form.fraction
    power = max(exponent, 1) - 1 + form.least - form.fraction
    return ("num", negative, Fraction(fraction) * Fraction(2) ** power)


def log2_floor(x: Fraction) -> int:
    """The greatest e with 2**e <= x."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def rounded(x: Number, form: Format, mode: str = "rn") -> int:
    """The bits of a number in a format: rn, rz, rm, rp, or rna (ties away from zero)."""
    kind, negative, size = x
    sign = int(negative) << (form.exponent + form.fraction)
    if kind == "nan":
        return form.infinity + 1 if form.nan is None else form.nan
    if kind == "inf":
        return (form.infinity | sign) << form.below
    if size == 0:
        return sign << form.below
    exponent = max(log2_floor(size), form.least)
    scaled = size / Fraction(2) ** (exponent - form.fraction)
    whole = scaled.numerator // scaled.denominator
    rest = scaled - whole
    half = Fraction(1, 2)
    up = {
        "rn": rest > half or (rest == half and whole & 1),
        "rna": rest >= half,
        "rz": False,
        "rm": negative and rest > 0,
        "rp": not negative and rest > 0,
    }[mode]
    bits = whole + int(up) + ((exponent - form.least) << form.fraction)
    if bits >= form.infinity:
        away = mode in ("rn", "rna") or (mode == "rm" and negative) or (mode == "rp" and not negative)
        bits = form.infinity if away else form.infinity - 1
    return (bits | sign) << form.below


def subnormal(x: Number, form: Format) -> bool:
    return x[0] == "num" and 0 < x[2] < Fraction(2) ** form.least


def flushed(x: Number, form: Format) -> Number:
    """A subnormal number becomes a zero of its sign."""
    return ("num", x[1], ZERO) if subnormal(x, form) else x


def negated(x: Number) -> Number:
    return (x[0], not x[1], x[2])


def exact(size: Fraction | int) -> Number:
    return ("num", size < 0, abs(Fraction(size)))


def signed(x: Number) -> Fraction:
    return -x[2] if x[1] else x[2]


# ---- arithmetic without rounding ----
def product(x: Number, y: Number) -> Number:
    negative = x[1] != y[1]
    if "nan" in (x[0], y[0]):
        return NAN
    if "inf" in (x[0], y[0]):
        zero = (x[0] == "num" and x[2] == 0) or (y[0] == "num" and y[2] == 0)
        return NAN if zero else ("inf", negative, ZERO)
    return ("num", negative, x[2] * y[2])


def total(x: Number, y: Number, mode: str = "rn") -> Number:
    """x + y; the mode decides the sign of a zero."""
    if "nan" in (x[0], y[0]):
        return NAN
    if x[0] == y[0] == "inf":
        return x if x[1] == y[1] else NAN
    if "inf" in (x[0], y[0]):
        return x if x[0] == "inf" else y
    result = signed(x) + signed(y)
    if result == 0:
        negative = x[1] if x[2] == 0 and y[2] == 0 and x[1] == y[1] else mode == "rm"
        return ("num", negative, ZERO)
    return exact(result)


def quotient(x: Number, y: Number) -> Number:
    negative = x[1] != y[1]
    if "nan" in (x[0], y[0]) or x[0] == y[0] == "inf":
        return NAN
    if y[0] == "inf":
        return ("num", negative, ZERO)
    if x[0] == "inf":
        return ("inf", negative, ZERO)
    if y[2] == 0:
        return NAN if x[2] == 0 else ("inf", negative, ZERO)
    return ("num", negative, x[2] / y[2])


def root(x: Number) -> Number:
    """The square root to 300 bits, the last one sticky."""
    if x[0] == "nan" or (x[1] and (x[0] == "inf" or x[2] != 0)):
        return NAN
    if x[0] == "inf" or x[2] == 0:
        return x
    shift = 300 - log2_floor(x[2])
    shift += shift & 1
    scaled = x[2] * Fraction(2) ** shift
    whole = math.isqrt(scaled.numerator // scaled.denominator)
    sticky = whole * whole != scaled
    return ("num", False, Fraction(2 * whole + int(sticky), 2) / Fraction(2) ** (shift // 2))


def lesser(x: Number, y: Number) -> bool:
    """x < y for numbers that are not NaN, with -0 < +0."""

    def key(v: Number) -> tuple:
        size = Fraction(1 << 2000) if v[0] == "inf" else v[2]
        return (-size if v[1] else size, not v[1])

    return key(x) < key(y)


# ---- integers ----
def cut(x: int, bits: int) -> int:
    return x & ((1 << bits) - 1)


def read(x: int, kind: str) -> int:
    """The bits of a register as an integer of type u16, s32, b64, ..."""
    bits = int(kind[1:])
    x = cut(x, bits)
    return x - (1 << bits) if kind[0] == "s" and x >> (bits - 1) else x


def saturated(x: int, kind: str) -> int:
    bits = int(kind[1:])
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    return min(max(x, low), high)


# ---- values to try ----
def integer_edges(bits: int) -> list[int]:
    top = 1 << (bits - 1)
    return [0, 1, 2, 3, 5, bits - 1, bits, bits + 1, 0x7F, 0x80, 0xFF, top - 1, top, top + 1, 2 * top - 2, 2 * top - 1]


def float_edges(form: Format) -> list[int]:
    one = (-form.least + 1) << form.fraction
    step = 1 << form.fraction
    sizes = [0, 1, step - 1, step, step + 1, one - 1, one, one + 1, one + step // 2, one + step, one - step]
    sizes += [one // 2, one + one // 2, *(form.infinity + i for i in (-1, 0, 1, step // 2 + 3))]
    sign = form.infinity + step
    return [bits << form.below for size in sizes for bits in (size, size | sign)]


def mixed(edges: list[int], bits: int, count: int, n: int, seed: int, near: Format | None = None) -> list[np.ndarray]:
    """`count` arrays of n values: pairs of edges, then edges beside random values, then random ones.

    near: half of the random floats have exponents near 1, so that sums and products meet.
    """
    rng = np.random.default_rng(seed)
    dtype = DTYPES[bits]

    def draws(size: int) -> np.ndarray:
        found = (
            rng.integers(0, 1 << bits, size, np.uint64, endpoint=False)
            if bits < 64
            else rng.integers(0, (1 << 64) - 1, size, np.uint64, endpoint=True)
        )
        if near is not None:
            one = -near.least + 1
            exponents = rng.integers(one - 6, one + 6, size).astype(np.uint64) << np.uint64(near.fraction + near.below)
            keep = np.uint64(((1 << near.fraction) - 1) << near.below | 1 << (bits - 1))
            found = np.where(rng.random(size) < 0.6, (found & keep) | exponents, found)
        return found.astype(dtype)

    pairs = [(a, b) for a in edges for b in edges]
    rng.shuffle(pairs)
    pairs = pairs[: n // 2]
    columns = []
    for number in range(count):
        column = draws(n)
        if number < 2:
            column[: len(pairs)] = [pair[number] for pair in pairs]
        else:
            half = n // 2
            column[:half] = rng.choice(np.array(edges, dtype), half)
        some = slice(n // 2, n // 2 + n // 8)
        if number % 2:
            column[some] = rng.choice(np.array(edges, dtype), len(column[some]))
        columns.append(column)
    return columns
