"""Floating-point instructions on the PTX machine against fractions rounded once."""

from __future__ import annotations

import numpy as np
import pytest
from simt_numbers import (
    BF16,
    F16,
    F32,
    F64,
    NAN,
    ZERO,
    float_edges,
    flushed,
    lesser,
    mixed,
    negated,
    product,
    quotient,
    root,
    rounded,
    subnormal,
    total,
    value,
)
from simt_ptx import Case, check, rejection

FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
MODES = ("rn", "rz", "rm", "rp")
N = 256


def values(form, count, seed=0, n=N):
    return dict(zip("abc", mixed(float_edges(form), form.bits, count, n, seed, near=form)))


def nan_too(form):
    """A comparison in which any two NaNs agree, or None, if PTX specifies which NaN results: then bits must agree."""
    if form.nan is not None:
        return None
    return lambda got, want: value(got, form)[0] == value(want, form)[0] == "nan"


def limited(bits, form, sat, relu):
    """The bits of a result after .sat or .relu."""
    x = value(bits, form)
    if sat:
        if x[0] == "nan" or x[1]:
            return 0
        return min(bits, rounded(("num", False, ZERO + 1), form))
    if relu and x[0] != "nan" and x[1] and (x[0] == "inf" or x[2] > 0):
        return 0
    return bits


def stated(function, form, mode="rn", ftz=False, sat=False, relu=False):
    """`function`, applied to bits and rounded once. With ftz, subnormal operands and results become zeros."""

    def want(*raw):
        numbers = [value(x, form) for x in raw]
        if ftz:
            numbers = [flushed(x, form) for x in numbers]
        result = function(*numbers)
        bits = rounded(result, form, mode)
        if ftz:
            if subnormal(result, form) and not subnormal(value(bits, form), form):
                return None  # it may be rounded up to the least normal number or flushed to zero
            bits = rounded(flushed(value(bits, form), form), form)
        return limited(bits, form, sat, relu)

    return want


def case(text, form, inputs, function, mode="rn", ftz=False, sat=False, relu=False):
    letters = "abc"[: len(inputs)]
    operands = ", ".join(f"${k}" for k in letters)
    return Case(
        f"{text} $d, {operands};", f"b{form.bits}", inputs, stated(function, form, mode, ftz, sat, relu), nan_too(form)
    )


def fused(mode):
    return lambda a, b, c: total(product(a, b), c, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["f32", "f64"])
def test_rounding_modes(name, mode):
    form = FORMATS[name]
    one, two, three = values(form, 1, 1), values(form, 2, 2), values(form, 3, 3)
    check(
        [
            case(f"add.{mode}.{name}", form, two, lambda a, b: total(a, b, mode), mode),
            case(f"sub.{mode}.{name}", form, two, lambda a, b: total(a, negated(b), mode), mode),
            case(f"mul.{mode}.{name}", form, two, product, mode),
            case(f"fma.{mode}.{name}", form, three, fused(mode), mode),
            case(f"div.{mode}.{name}", form, two, quotient, mode),
            case(f"rcp.{mode}.{name}", form, one, lambda a: quotient(("num", False, ZERO + 1), a), mode),
            case(f"sqrt.{mode}.{name}", form, one, root, mode),
        ]
    )


@pytest.mark.parametrize("mode", MODES)
def test_flush_and_saturate(mode):
    one, two, three = values(F32, 1, 4), values(F32, 2, 5), values(F32, 3, 6)
    cases = []
    for flags, ftz, sat in ((".ftz", True, False), (".ftz.sat", True, True), (".sat", False, True)):
        cases += [
            case(f"add.{mode}{flags}.f32", F32, two, lambda a, b: total(a, b, mode), mode, ftz, sat),
            case(f"sub.{mode}{flags}.f32", F32, two, lambda a, b: total(a, negated(b), mode), mode, ftz, sat),
            case(f"mul.{mode}{flags}.f32", F32, two, product, mode, ftz, sat),
            case(f"fma.{mode}{flags}.f32", F32, three, fused(mode), mode, ftz, sat),
        ]
    cases += [
        case(f"div.{mode}.ftz.f32", F32, two, quotient, mode, True),
        case(f"rcp.{mode}.ftz.f32", F32, one, lambda a: quotient(("num", False, ZERO + 1), a), mode, True),
        case(f"sqrt.{mode}.ftz.f32", F32, one, root, mode, True),
    ]
    check(cases)


def test_default_rounding():
    two, three = values(F32, 2, 7), values(F32, 3, 8)
    check(
        [
            case("add.f32", F32, two, total),
            case("sub.f32", F32, two, lambda a, b: total(a, negated(b))),
            case("mul.f32", F32, two, product),
            case("mad.rn.f32", F32, three, fused("rn")),
            case("mad.rz.f64", F64, values(F64, 3, 8), fused("rz"), "rz"),
            case("add.ftz.f32", F32, two, total, "rn", True),
        ]
    )


def test_fma_rounds_once():
    """In every format, fma is right where rounding the product a * b before adding c gives another result."""
    for name, form in FORMATS.items():
        rng = np.random.default_rng(9)
        p, one = form.fraction, -form.least + 1
        a = (one << p) + rng.integers(1, 1 << p, N).astype(object)
        b = (one << p) + rng.integers(1, 1 << p, N).astype(object)
        exact = [product(value(int(x), form), value(int(y), form)) for x, y in zip(a, b)]
        c = [rounded(negated(x), form) for x in exact]  # the result is the product's rounding error
        dtype = {16: np.uint16, 32: np.uint32, 64: np.uint64}[form.bits]
        inputs = {k: np.array([int(x) for x in column], dtype) for k, column in zip("abc", (a, b, c))}
        fma = case(f"fma.rn.{name}", form, inputs, fused("rn"))
        check([fma])
        assert np.count_nonzero(fma.results[0] & dtype((1 << (form.bits - 1)) - 1)) > N // 2, name


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_half_precision(name):
    form = FORMATS[name]
    one, two, three = values(form, 1, 10), values(form, 2, 11), values(form, 3, 12)

    def sub(a, b):
        return total(a, negated(b))

    cases = [
        case(f"{op}{mode}.{name}", form, two, function)
        for op, function in (("add", total), ("sub", sub), ("mul", product))
        for mode in (".rn", "")
    ]
    cases += [
        case(f"fma.rn.{name}", form, three, fused("rn")),
        case(f"fma.rn.relu.{name}", form, three, fused("rn"), relu=True),
    ]
    if name == "f16":
        for flags, ftz, sat in ((".ftz", True, False), (".sat", False, True), (".ftz.sat", True, True)):
            cases += [
                case(f"{op}{flags}.f16", form, two, function, ftz=ftz, sat=sat)
                for op, function in (("add", total), ("sub", sub), ("mul", product))
            ]
            cases.append(case(f"fma.rn{flags}.f16", form, three, fused("rn"), ftz=ftz, sat=sat))
        cases.append(case("fma.rn.ftz.relu.f16", form, three, fused("rn"), ftz=True, relu=True))
    sign = 1 << 15
    check(
        [
            *cases,
            Case(f"neg.{name} $d, $a;", "b16", one, lambda a: None if value(a, form)[0] == "nan" else a ^ sign),
            Case(f"abs.{name} $d, $a;", "b16", one, lambda a: None if value(a, form)[0] == "nan" else a & ~sign),
        ]
    )


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_packed_halves(name):
    """Each half of an x2 instruction has the result of the single instruction."""
    form = FORMATS[name]
    columns = {
        k: (high.astype(np.uint32) << 16 | low)
        for (k, high), low in zip(values(form, 3, 13).items(), values(form, 3, 14).values())
    }

    def both(function):
        def want(*raw):
            low, high = (function(*(x >> shift & 0xFFFF for x in raw)) for shift in (0, 16))
            return None if low is None or high is None else high << 16 | low

        return want

    def two(text, function, count=2, **flags):
        inputs = {k: columns[k] for k in "abc"[:count]}
        operands = ", ".join(f"${k}" for k in inputs)
        return Case(f"{text} $d, {operands};", "b32", inputs, both(stated(function, form, **flags)))

    check([
        two(f"add.rn.{name}x2", total), two(f"sub.rn.{name}x2", lambda a, b: total(a, negated(b))),
        two(f"mul.rn.{name}x2", product), two(f"fma.rn.{name}x2", fused("rn"), 3),
        two(f"fma.rn.relu.{name}x2", fused("rn"), 3, relu=True),
        Case(f"neg.{name}x2 $d, $a;", "b32", {"a": columns["a"]}, both(
            lambda a: None if value(a, form)[0] == "nan" else a ^ 0x8000)),
        Case(f"abs.{name}x2 $d, $a;", "b32", {"a": columns["a"]}, both(
            lambda a: None if value(a, form)[0] == "nan" else a & 0x7FFF)),
        *[Case(f"{op}{nan}.{name}x2 $d, $a, $b;", "b32", {k: columns[k] for k in "ab"}, both(
            best(form, op, bool(nan)))) for op in ("min", "max") for nan in ("", ".NaN")],
    ])  # fmt: skip


def best(form, op, nan=False, ftz=False, xorsign=False, absolute=False):
    """min and max: a NaN loses unless there is .NaN; -0 < +0; .xorsign.abs compares magnitudes, multiplies signs."""

    def want(*raw):
        numbers = [value(x, form) for x in raw]
        if ftz:
            numbers = [flushed(x, form) for x in numbers]
        sign = numbers[0][1] != numbers[1][1]
        if xorsign or absolute:
            numbers = [(kind, False, size) for kind, _, size in numbers]
        result = numbers[0]
        for x in numbers[1:]:
            if "nan" in (result[0], x[0]):
                result = NAN if nan or result[0] == x[0] else x if result[0] == "nan" else result
            elif lesser(x, result) if op == "min" else lesser(result, x):
                result = x
        if xorsign and result[0] != "nan":
            result = (result[0], sign, result[2])
        return rounded(result, form)

    return want


@pytest.mark.parametrize("name", FORMATS)
def test_min_max(name):
    form = FORMATS[name]
    two = values(form, 2, 15)
    out = f"b{form.bits}"
    cases = []
    for op in ("min", "max"):
        kinds = [("", {})]
        if name != "f64":
            kinds += [
                (".NaN", {"nan": True}),
                (".xorsign.abs", {"xorsign": True}),
                (".NaN.xorsign.abs", {"nan": True, "xorsign": True}),
            ]
        if name in ("f16", "f32"):
            kinds += [(f".ftz{flags}", {**more, "ftz": True}) for flags, more in kinds]
        cases += [
            Case(f"{op}{flags}.{name} $d, $a, $b;", out, two, best(form, op, **more), nan_too(form))
            for flags, more in kinds
        ]
    if name == "f32":
        three = values(form, 3, 16)
        cases += [
            Case(f"{op}{flags}.f32 $d, $a, $b, $c;", out, three, best(form, op, **more))
            for op in ("min", "max")
            for flags, more in (
                ("", {}),
                (".NaN", {"nan": True}),
                (".ftz", {"ftz": True}),
                (".abs", {"absolute": True}),
            )
        ]
    check(cases)


@pytest.mark.parametrize("name", ["f32", "f64"])
def test_signs_and_properties(name):
    form = FORMATS[name]
    one, two = values(form, 1, 17), values(form, 2, 18)
    top = 1 << (form.bits - 1)
    out = f"b{form.bits}"

    def unless_nan(function):
        return lambda a: None if value(a, form)[0] == "nan" else function(a)

    tests = {
        "finite": lambda x, sub: x[0] == "num",
        "infinite": lambda x, sub: x[0] == "inf",
        "number": lambda x, sub: x[0] != "nan",
        "notanumber": lambda x, sub: x[0] == "nan",
        "normal": lambda x, sub: x[0] == "num" and x[2] != 0 and not sub,
        "subnormal": lambda x, sub: sub,
    }
    cases = [
        Case(f"abs.{name} $d, $a;", out, one, unless_nan(lambda a: a & ~top)),
        Case(f"neg.{name} $d, $a;", out, one, unless_nan(lambda a: a ^ top)),
        Case(f"copysign.{name} $d, $a, $b;", out, two, lambda a, b: a & top | b & ~top),
        *[
            Case(
                f"testp.{kind}.{name} $d, $a;",
                "pred",
                one,
                lambda a, test=test: int(test(value(a, form), subnormal(value(a, form), form))),
            )
            for kind, test in tests.items()
        ],
    ]
    if name == "f32":

        def flush(x):
            return rounded(flushed(value(x, F32), F32), F32)

        cases += [
            Case("abs.ftz.f32 $d, $a;", out, one, unless_nan(lambda a: flush(a) & ~top)),
            Case("neg.ftz.f32 $d, $a;", out, one, unless_nan(lambda a: flush(a) ^ top)),
        ]
    check(cases)


def test_immediates():
    one = values(F32, 1, 19)
    wide = values(F64, 1, 20)
    half = value(0x3FC00000, F32)  # 1.5
    check(
        [
            Case("add.rn.f32 $d, $a, 0f3FC00000;", "b32", one, stated(lambda a: total(a, half), F32)),
            Case("mul.rn.f32 $d, $a, 0fBFC00000;", "b32", one, stated(lambda a: product(a, negated(half)), F32)),
            Case(
                "add.rn.f64 $d, $a, 0d3FF8000000000000;",
                "b64",
                wide,
                stated(lambda a: total(a, half), F64),
                nan_too(F64),
            ),
            Case("mul.rn.f64 $d, $a, 1.5;", "b64", wide, stated(lambda a: product(a, half), F64), nan_too(F64)),
        ]
    )


@pytest.mark.parametrize("text", [
    "sqrt.f32 r1, r2;", "fma.f32 r1, r2, r3, r4;", "add.rn.f8 r1, r2, r3;", "add.rna.f32 r1, r2, r3;",
    "add.ftz.f64 d1, d2, d3;", "add.sat.f64 d1, d2, d3;", "add.rz.f16 h1, h2, h3;", "min.rn.f32 r1, r2, r3;",
    "sin.approx.f64 d1, d2;", "tanh.approx.f64 d1, d2;", "rsqrt.rn.f32 r1, r2;", "copysign.f16 h1, h2, h3;",
    "testp.finite.f16 p1, h1;", "add.relu.f32 r1, r2, r3;", "sqrt.approx.f64 d1, d2;", "div.rn.f16 h1, h2, h3;",
    "rcp.f64 d1, d2;", "fma.rn.NaN.f32 r1, r2, r3, r4;", "div.approx.f64 d1, d2, d3;", "sin.f32 r1, r2;",
])  # fmt: skip
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0] in message
    assert "PTX line" in message
