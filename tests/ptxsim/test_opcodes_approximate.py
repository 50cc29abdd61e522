"""Approximate instructions on the PTX machine: within PTX's error bounds, with its special values."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from simt_numbers import BF16, F16, F32, F64, float_edges, flushed, mixed, rounded, value
from simt_ptx import Case, check

N = 512
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}


def as_float(x):
    """A number as a Python float, which is exact for every format here."""
    if x[0] != "num":
        size = math.nan if x[0] == "nan" else math.inf
    else:
        size = float(x[2])
    return math.copysign(size, -1.0) if x[1] else size


def inputs(form, seed, low, high):
    """Edges of the format, and numbers of both signs with sizes in [2**low, 2**high]."""
    rng = np.random.default_rng(seed)
    found = mixed(float_edges(form), form.bits, 1, N, seed)[0]
    sizes = 2.0 ** rng.uniform(low, high, N - 64) * rng.choice([-1.0, 1.0], N - 64)
    found[64:] = [rounded(("num", x < 0, abs(Fraction(x))), form) for x in sizes.tolist()]
    return found


def close(form, relative=0.0, absolute=0.0, ulps=0.0):
    """A function that compares `got`, the bits of a format, with `want`, the bits of a float64.

    Zeros and infinities must agree.
    """

    def same(got, want):
        x, y = as_float(value(got, form)), as_float(value(want, F64))
        if math.isnan(y):
            return math.isnan(x)
        if math.isinf(y) or y == 0:
            return x == y and math.copysign(1, x) == math.copysign(1, y)
        largest = 2.0 ** (1 - form.least) * (2 - 2.0**-form.fraction)
        if math.isinf(x):
            return abs(y) * (1 + relative + 2.0**-form.fraction) >= largest and (x > 0) == (y > 0)
        least = 2.0 ** (form.least - form.fraction)
        ulp = max(2.0 ** (math.frexp(y)[1] - 1 - form.fraction), least)
        return abs(x - y) <= max(relative * abs(y), absolute, ulps * ulp, least)

    return same


def stated(function, form, ftz=False):
    def want(*raw):
        numbers = [value(x, form) for x in raw]
        if ftz:
            numbers = [flushed(x, form) for x in numbers]
        y = function(*(as_float(x) for x in numbers))
        if ftz and 0 < abs(y) < 2.0**form.least:
            y = math.copysign(0.0, y)
        return int(np.float64(y).view(np.uint64))

    return want


def sign_of(x):
    return math.copysign(1.0, x)


def reciprocal(x):
    return math.copysign(math.inf, x) if x == 0 else 1 / x


def square_root(x):
    return x if x == 0 else math.nan if x < 0 else math.sqrt(x)


def inverse_root(x):
    return math.copysign(math.inf, x) if x == 0 else math.nan if x < 0 else 1 / math.sqrt(x)


def logarithm(x):
    return -math.inf if x == 0 else math.nan if x < 0 else math.log2(x) if math.isfinite(x) else x


def power(x):
    return x if math.isnan(x) else math.inf if x > 1000 else 0.0 if x < -1000 else 2.0**x


def wave(function):
    return lambda x: function(x) if math.isfinite(x) else math.nan


def case(name, form, a, function, same, ftz=False, b=None):
    given = {"a": a} if b is None else {"a": a, "b": b}
    operands = ", ".join(f"${k}" for k in given)
    return Case(f"{name} $d, {operands};", f"b{form.bits}", given, stated(function, form, ftz), same)


@pytest.mark.parametrize("ftz", ["", ".ftz"])
def test_single_precision(ftz):
    wide = inputs(F32, 1, -148, 127)
    small = inputs(F32, 2, -20, math.log2(2 * math.pi))
    circle = inputs(F32, 3, 2.7, math.log2(100 * math.pi))
    powers = inputs(F32, 4, -10, 7.4)
    flag = bool(ftz)
    check(
        [
            case(f"rcp.approx{ftz}.f32", F32, wide, reciprocal, close(F32, ulps=1), flag),
            case(f"sqrt.approx{ftz}.f32", F32, wide, square_root, close(F32, relative=2.0**-23), flag),
            case(f"rsqrt.approx{ftz}.f32", F32, wide, inverse_root, close(F32, relative=2.0**-22.9), flag),
            case(f"sin.approx{ftz}.f32", F32, small, wave(math.sin), close(F32, absolute=2.0**-20.5), flag),
            case(f"cos.approx{ftz}.f32", F32, small, wave(math.cos), close(F32, absolute=2.0**-20.5), flag),
            case(f"sin.approx{ftz}.f32", F32, circle, wave(math.sin), close(F32, absolute=2.0**-14.7), flag),
            case(f"cos.approx{ftz}.f32", F32, circle, wave(math.cos), close(F32, absolute=2.0**-14.7), flag),
            case(f"lg2.approx{ftz}.f32", F32, wide, logarithm, close(F32, relative=2.0**-22, absolute=2.0**-22), flag),
            case(f"ex2.approx{ftz}.f32", F32, powers, power, close(F32, relative=2.0**-22.5, ulps=2), flag),
        ]
    )


def test_division():
    a, b = inputs(F32, 5, -60, 60), np.roll(inputs(F32, 6, -60, 60), 31)

    def divided(x, y):
        if math.isnan(x) or math.isnan(y) or (x == 0 == y) or (math.isinf(x) and math.isinf(y)):
            return math.nan
        if y == 0:
            return sign_of(x) * sign_of(y) * math.inf
        return x / y

    def approximate(x, y):
        """div.approx: PTX promises nothing for a divisor outside [2**-126, 2**126]."""
        inside = 2.0**-126 <= abs(y) <= 2.0**126 or y == 0 or not math.isfinite(y)
        return divided(x, y) if inside else None

    def want(*raw):
        y = approximate(*(as_float(value(x, F32)) for x in raw))
        return None if y is None else int(np.float64(y).view(np.uint64))

    check(
        [
            Case("div.approx.f32 $d, $a, $b;", "b32", {"a": a, "b": b}, want, close(F32, ulps=2)),
            case("div.full.f32", F32, a, divided, close(F32, ulps=2), b=b),
            case("div.full.ftz.f32", F32, a, divided, close(F32, ulps=2), True, b=b),
        ]
    )


def test_narrow_precision():
    """PTX's error bounds: ex2.f16 2**-9.9, ex2.bf16 2**-7, tanh.f32 2**-11, tanh.f16 2**-10.987, tanh.bf16 2**-8."""
    cases = []
    for name, form, ex2, tanh, ftz in (("f16", F16, 2**-9.9, 2**-10.987, ""), ("bf16", BF16, 2**-7, 2**-8, ".ftz")):
        a = inputs(form, 7, -12, 4)
        cases += [
            case(f"ex2.approx{ftz}.{name}", form, a, power, close(form, relative=ex2), bool(ftz)),
            case(f"tanh.approx.{name}", form, a, math.tanh, close(form, relative=tanh, absolute=tanh)),
        ]
        b = np.roll(a, 5)
        both = {"a": a.astype(np.uint32) << 16 | b}
        for text, function, error in (
            (f"ex2.approx{ftz}", power, ex2),
            ("tanh.approx", math.tanh, tanh),
        ):
            one = stated(function, form, text.endswith(".ftz"))
            near = close(form, relative=error, absolute=error if function is math.tanh else 0)

            def want(x, one=one):
                return one(x & 0xFFFF) | one(x >> 16) << 64

            def same(got, wanted, near=near):
                return near(got & 0xFFFF, wanted & (1 << 64) - 1) and near(got >> 16, wanted >> 64)

            cases.append(Case(f"{text}.{name}x2 $d, $a;", "b32", both, want, same))
    cases_single = [case("tanh.approx.f32", F32, inputs(F32, 8, -30, 6), math.tanh, close(F32, relative=2.0**-11))]
    check(cases)
    check(cases_single)


def test_double_precision():
    a = inputs(F64, 9, -1000, 1000)
    a[-100:] = inputs(F64, 10, -1073, -1022)[-100:]
    gross = close(F64, relative=2.0**-19)

    def high_word(got, want):
        return got & 0xFFFFFFFF == 0 and gross(got, want) if value(want, F64)[0] == "num" else gross(got, want)

    check(
        [
            case("rcp.approx.ftz.f64", F64, a, reciprocal, high_word, True),
            case("rsqrt.approx.ftz.f64", F64, a, inverse_root, high_word, True),
            case("rsqrt.approx.f64", F64, a, inverse_root, close(F64, relative=2.0**-22.9)),
        ]
    )
