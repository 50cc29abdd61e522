"""cvt, mov and comparisons on the PTX machine against Python's integers and fractions."""

from __future__ import annotations

import bisect
from fractions import Fraction

import numpy as np
import pytest
from simt_numbers import (
    BF16,
    DTYPES,
    F16,
    F32,
    F64,
    TF32,
    cut,
    exact,
    float_edges,
    flushed,
    integer_edges,
    log2_floor,
    mixed,
    read,
    rounded,
    saturated,
    signed,
    value,
)
from simt_ptx import Case, check, rejection

INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
MODES = ("rn", "rz", "rm", "rp")
N = 192


def bits_of(kind):
    return int(kind.strip("usbf"))


def register(kind):
    """Bits of the register for a type: 32 for integers of 8 and 16 bits."""
    return max(bits_of(kind), 32)


def integers(bits, seed):
    edges = [*integer_edges(bits), 0x7FFF, 0x8000, 0xFFFF, (1 << 24) + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    edges += [cut(-x, bits) for x in (1, 2, 128, 129, 32769)] + [cut(x << 20, bits) for x in (0x1000001, 0x1FFFFFF)]
    return mixed(sorted({cut(x, bits) for x in edges}), bits, 1, N, seed)[0]


def floats(form, seed):
    """Edges of the format, numbers around the edges of the integer types, and numbers between integers."""
    found = mixed(float_edges(form), form.bits, 1, N, seed, near=form)[0]
    around = [size * sign for size in BETWEEN for sign in (1, -1)]
    for at, x in enumerate(around[: N // 2]):
        found[2 * at] = rounded(exact(x), form)
    return found


def between():
    found = [Fraction(k, 4) for k in range(14)]
    for power in (7, 8, 11, 15, 16, 24, 31, 32, 53, 63, 64):
        found += [Fraction(2) ** power + d for d in (Fraction(-1), Fraction(-1, 2), Fraction(0), Fraction(1, 2))]
    return found


BETWEEN = between()


def whole(x, mode):
    """A number, rounded to an integer."""
    size = signed(x)
    floor = size.numerator // size.denominator
    rest = size - floor
    if mode == "rni":
        return floor + int(rest * 2 > 1 or (rest * 2 == 1 and floor & 1))
    if mode == "rzi":
        return floor + int(rest != 0 and size < 0)
    return floor if mode == "rmi" else floor + int(rest != 0)


def nan_too(form):
    if form.nan is not None:
        return None
    return lambda got, want: value(got, form)[0] == value(want, form)[0] == "nan"


@pytest.mark.parametrize("to", INTEGERS)
def test_integer_to_integer(to):
    cases = []
    for source in INTEGERS:
        a = {"a": INPUTS[register(source)]}
        for sat in ("", ".sat"):

            def want(a, source=source, sat=sat):
                x = read(a, source)
                return cut(saturated(x, to) if sat else read(x, to), register(to))

            cases.append(Case(f"cvt{sat}.{to}.{source} $d, $a;", f"b{register(to)}", a, want))
        if bits_of(to) < 64:  # the rest of the register is filled with the sign or with zeros
            cases.append(
                Case(
                    f"cvt.{to}.{source} $d, $a;", "b64", a, lambda a, source=source: cut(read(read(a, source), to), 64)
                )
            )
        if bits_of(to) <= 16:
            cases.append(
                Case(
                    f"cvt.{to}.{source} $d, $a;", "b16", a, lambda a, source=source: cut(read(read(a, source), to), 16)
                )
            )
    check(cases)


INPUTS = {bits: integers(bits, 30) for bits in (32, 64)}


@pytest.mark.parametrize("source", FORMATS)
def test_float_to_integer(source):
    form = FORMATS[source]
    a = {"a": floats(form, 31)}
    cases = []
    for to in INTEGERS:
        for mode in ("rni", "rzi", "rmi", "rpi"):
            for ftz in ("", ".ftz") if source == "f32" else ("",):

                def want(a, to=to, mode=mode, ftz=ftz):
                    x = value(a, form)
                    if ftz:
                        x = flushed(x, form)
                    if x[0] == "nan":
                        top = bits_of(to) == 64 or source == "f64"
                        result = read(1 << (bits_of(to) - 1), to) if top else 0
                    elif x[0] == "inf":
                        result = saturated(-(1 << 70) if x[1] else 1 << 70, to)
                    else:
                        result = saturated(whole(x, mode), to)
                    return cut(result, register(to))

                cases.append(Case(f"cvt.{mode}{ftz}.{to}.{source} $d, $a;", f"b{register(to)}", a, want))
    check(cases)


@pytest.mark.parametrize("to", FORMATS)
def test_integer_to_float(to):
    form = FORMATS[to]
    cases = []
    for source in INTEGERS:
        a = {"a": INPUTS[register(source)]}
        for mode in MODES:
            cases.append(
                Case(
                    f"cvt.{mode}.{to}.{source} $d, $a;",
                    f"b{form.bits}",
                    a,
                    lambda a, s=source, mode=mode: rounded(exact(read(a, s)), form, mode),
                )
            )
        if to != "bf16":
            cases.append(
                Case(
                    f"cvt.rn.sat.{to}.{source} $d, $a;",
                    f"b{form.bits}",
                    a,
                    lambda a, s=source: rounded(exact(min(max(read(a, s), 0), 1)), form),
                )
            )
    check(cases)


def clamped(bits, form, sat):
    """The bits of a converted float; .sat clamps it to [0, 1]."""
    x = value(bits, form)
    if not sat:
        return bits
    return 0 if x[0] == "nan" or x[1] else min(bits, rounded(exact(1), form))


@pytest.mark.parametrize("source", FORMATS)
def test_float_to_float(source):
    form = FORMATS[source]
    a = {"a": floats(form, 32)}
    cases = []
    for to, target in FORMATS.items():
        out = f"b{target.bits}"
        wider = target.fraction >= form.fraction and target.exponent >= form.exponent
        if to == source:
            if to != "bf16":
                cases.append(Case(f"cvt.sat.{to}.{to} $d, $a;", out, a, lambda a: clamped(a, form, True)))
            for mode in ("rni", "rzi", "rmi", "rpi") if to != "bf16" else ():
                for sat in ("", ".sat"):

                    def want(a, mode=mode, sat=sat):
                        x = value(a, form)
                        if x[0] == "num":
                            x = ("num", x[1], abs(exact(whole(x, mode))[2]))
                        return clamped(rounded(x, form), form, sat)

                    cases.append(Case(f"cvt.{mode}{sat}.{to}.{source} $d, $a;", out, a, want, nan_too(form)))
            continue
        modes = (".rn", ".rz", ".rm", ".rp", *[""] * ({to, source} == {"f16", "bf16"}))
        for mode in ("",) if wider else modes:
            for sat in ("", ".sat") if "bf16" not in (to, source) else ("",):

                def want(a, target=target, mode=mode, sat=sat):
                    return clamped(rounded(value(a, form), target, mode[1:] or "rn"), target, sat)

                cases.append(Case(f"cvt{mode}{sat}.{to}.{source} $d, $a;", out, a, want, nan_too(target)))
    check(cases)


def test_flushing_conversions():
    single, double, half = floats(F32, 33), floats(F64, 34), floats(F16, 35)
    single[:40] = np.random.default_rng(1).integers(0, 1 << 23, 40)
    double[:40] = [rounded(exact(value(int(x), F32)[2]), F64) for x in single[:40]]
    check([
        Case("cvt.ftz.f64.f32 $d, $a;", "b64", {"a": single},
             lambda a: rounded(flushed(value(a, F32), F32), F64), nan_too(F64)),
        Case("cvt.rn.ftz.f16.f32 $d, $a;", "b16", {"a": single}, lambda a: rounded(flushed(value(a, F32), F32), F16)),
        Case("cvt.rz.ftz.f32.f64 $d, $a;", "b32", {"a": double}, lambda a: rounded(
            flushed(value(rounded(value(a, F64), F32, "rz"), F32), F32), F32)),
        Case("cvt.ftz.f32.f16 $d, $a;", "b32", {"a": half}, lambda a: rounded(value(a, F16), F32)),
        Case("cvt.rni.ftz.f32.f32 $d, $a;", "b32", {"a": single}, lambda a: rounded(
            (value(a, F32)[0], value(a, F32)[1], abs(exact(whole(flushed(value(a, F32), F32), "rni"))[2])
             if value(a, F32)[0] == "num" else exact(0)[2]), F32)),
    ])  # fmt: skip


def finite(bits, form):
    """The bits of a number; the largest finite number takes the place of an infinity."""
    sign = 1 << (form.exponent + form.fraction + form.below)
    return bits - (1 << form.below) if bits & ~sign == form.infinity << form.below else bits


def narrowed(form, mode, relu=False, satfinite=False):
    def want(a):
        x = value(a, F32)
        if relu and x[0] != "nan" and x[1]:
            return None if x[0] == "num" and x[2] == 0 else 0
        bits = rounded(x, form, mode)
        return finite(bits, form) if satfinite else bits

    return want


def test_narrow_conversions():
    """f16, bf16 and tf32 from float32, single and in pairs, with .relu and .satfinite."""
    a, b = floats(F32, 36), floats(F32, 37)
    cases = []
    for name, form in (("f16", F16), ("bf16", BF16)):
        for mode in ("rn", "rz"):
            for relu in ("", ".relu"):
                for limit in ("", ".satfinite"):
                    one = narrowed(form, mode, bool(relu), bool(limit))

                    def pair(a, b, one=one):
                        high, low = one(a), one(b)
                        return None if high is None or low is None else high << 16 | low

                    cases += [
                        Case(f"cvt.{mode}{relu}{limit}.{name}.f32 $d, $a;", "b16", {"a": a}, one),
                        Case(f"cvt.{mode}{relu}{limit}.{name}x2.f32 $d, $a, $b;", "b32", {"a": a, "b": b}, pair),
                    ]
    for mode, relu in (("rna", ""), ("rn", ""), ("rz", ""), ("rn", ".relu"), ("rz", ".relu")):
        for limit in ("", ".satfinite"):
            cases.append(
                Case(
                    f"cvt.{mode}{limit}{relu}.tf32.f32 $d, $a;",
                    "b32",
                    {"a": a},
                    narrowed(TF32, mode, bool(relu), bool(limit)),
                )
            )
    check(cases)


def quarter(bits, five):
    """The value of an e4m3 or e5m2 number; None for NaN."""
    fraction = 2 if five else 3
    exponent, rest = (bits & 0x7F) >> fraction, bits & ((1 << fraction) - 1)
    if bits & 0x7F == 0x7F or (five and exponent == 31):
        return "inf" if five and rest == 0 else None
    size = exact(0)[2] + rest + ((1 << fraction) if exponent else 0)
    size *= exact(2)[2] ** (max(exponent, 1) - (15 if five else 7) - fraction)
    return -size if bits & 0x80 else size


QUARTERS = {five: [quarter(bits, five) for bits in range(0x7C if five else 0x7F)] for five in (False, True)}


def to_quarter(x, five, relu):
    """The nearest e4m3 or e5m2 number. Ties go to the even pattern; the result is never infinite."""
    if x[0] == "nan":
        return 0x7F
    if relu and x[1]:
        return 0
    sizes = QUARTERS[five]
    at = len(sizes) if x[0] == "inf" else bisect.bisect(sizes, x[2])
    near = [bits for bits in (at - 1, at) if bits < len(sizes)]
    best = near[0] if len(near) == 1 else min(near, key=lambda bits: (abs(sizes[bits] - x[2]), bits & 1))
    return best | 0x80 if x[1] else best


def test_quarter_precision():
    rng = np.random.default_rng(38)
    spread = (rng.standard_normal(N) * 2.0 ** rng.integers(-18, 18, N)).astype(np.float32).view(np.uint32)
    spread[:40] = [*float_edges(F32)[:34], 0x43E00000, 0x43E80000, 0x43F00000, 0xC3E80000, 0x47600000, 0x47700000]
    other = np.roll(spread, 7)
    halves = rng.integers(0, 1 << 32, N, np.uint32)
    halves[:16] = [x << 16 | y for x in (0, 0x8000, 0x7C00, 0x7E00) for y in (1, 0x3C00, 0xFC00, 0x5F00)]
    bytes_ = rng.integers(0, 1 << 16, N).astype(np.uint16)
    cases = []
    for name, five in (("e4m3x2", False), ("e5m2x2", True)):
        for relu in ("", ".relu"):

            def from_singles(a, b, five=five, relu=bool(relu)):
                return to_quarter(value(a, F32), five, relu) << 8 | to_quarter(value(b, F32), five, relu)

            def from_halves(a, five=five, relu=bool(relu)):
                return to_quarter(value(a >> 16, F16), five, relu) << 8 | to_quarter(value(a & 0xFFFF, F16), five, relu)

            def back(a, five=five, relu=bool(relu)):
                result = 0
                for half in range(2):
                    bits = a >> 8 * half & 0xFF
                    x = quarter(bits, five)
                    if x is None:
                        part = 0x7FFF
                    elif relu and bits & 0x80:
                        part = 0 if x == "inf" or x != 0 else None
                    else:
                        sign = bool(bits & 0x80)
                        part = rounded(("inf", sign, exact(0)[2]) if x == "inf" else ("num", sign, abs(x)), F16)
                    if part is None:
                        return None
                    result |= part << 16 * half
                return result

            cases += [
                Case(f"cvt.rn.satfinite{relu}.{name}.f32 $d, $a, $b;", "b16", {"a": spread, "b": other}, from_singles),
                Case(f"cvt.rn.satfinite{relu}.{name}.f16x2 $d, $a;", "b16", {"a": halves}, from_halves),
                Case(f"cvt.rn{relu}.f16x2.{name} $d, $a;", "b32", {"a": bytes_}, back),
            ]
    check(cases)


def test_packing_conversions():
    a, b, c = (np.roll(INPUTS[32], k) for k in range(3))
    small = np.random.default_rng(3).integers(-300, 300, N).astype(np.int32).view(np.uint32)
    cases = []
    for to in ("u16", "s16"):
        for x, y in ((a, b), (small, b)):
            cases.append(
                Case(
                    f"cvt.pack.sat.{to}.s32 $d, $a, $b;",
                    "b32",
                    {"a": x, "b": y},
                    lambda a, b, to=to: (
                        cut(saturated(read(a, "s32"), to), 16) << 16 | cut(saturated(read(b, "s32"), to), 16)
                    ),
                )
            )
    for to in ("u8", "s8"):
        for x, y in ((a, b), (small, np.roll(small, 1))):
            cases.append(
                Case(
                    f"cvt.pack.sat.{to}.s32.b32 $d, $a, $b, $c;",
                    "b32",
                    {"a": x, "b": y, "c": c},
                    lambda a, b, c, to=to: (
                        cut(c << 16, 32)
                        | cut(saturated(read(a, "s32"), to), 8) << 8
                        | cut(saturated(read(b, "s32"), to), 8)
                    ),
                )
            )
    check(cases)


def test_moves_of_vectors():
    word, wide, half = INPUTS[32], INPUTS[64], INPUTS[32].astype(np.uint16)
    other = np.roll(word, 3)
    check(
        [
            Case("mov.b64 $d, {$a, $b};", "b64", {"a": word, "b": other}, lambda a, b: b << 32 | a),
            Case("mov.b32 $d, {$a, $b};", "b32", {"a": half, "b": np.roll(half, 3)}, lambda a, b: b << 16 | a),
            Case("mov.b64 {$d, $e}, $a;", "b32 b32", {"a": wide}, lambda a: (cut(a, 32), a >> 32)),
            Case("mov.b32 {$d, $e}, $a;", "b16 b16", {"a": word}, lambda a: (cut(a, 16), a >> 16)),
            Case("mov.b64 {_, $d}, $a;", "b32", {"a": wide}, lambda a: a >> 32),
            Case(
                ".reg .b16 w, x, y, z;\nmov.b64 {w, x, y, z}, $a;\nmov.b64 $d, {z, y, x, w};",
                "b64",
                {"a": wide},
                lambda a: sum(cut(a >> 16 * i, 16) << 16 * (3 - i) for i in range(4)),
            ),
            Case(
                "mov.b64 {$d, $e}, $a;\nmov.b64 {$e, $d}, $a;", "b32 b32", {"a": wide}, lambda a: (a >> 32, cut(a, 32))
            ),
            Case("mov.b32 $d, $a;\nmov.b32 {$e, _}, $d;", "b32 b16", {"a": word}, lambda a: (a, cut(a, 16))),
        ]
    )


# ---- comparisons ----
TESTS = {
    "eq": (False, True, False),
    "ne": (True, False, True),
    "lt": (True, False, False),
    "le": (True, True, False),
    "gt": (False, False, True),
    "ge": (False, True, True),
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def order(x, y):
    return 0 if x < y else 1 if x == y else 2


def float_order(x, y):
    """0 for less, 1 for equal, 2 for more, 3 for unordered."""
    if "nan" in (x[0], y[0]):
        return 3
    size = lambda v: v[2] if v[0] == "num" else exact(1 << 2000)[2]  # noqa: E731
    return order(-size(x) if x[1] else size(x), -size(y) if y[1] else size(y))


def float_test(name, place):
    if name in ("num", "nan"):
        return (place == 3) == (name == "nan")
    return name.endswith("u") if place == 3 else TESTS[name.removesuffix("u")][place]


FLOAT_TESTS = (*TESTS, *(f"{name}u" for name in TESTS), "num", "nan")


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64", "b16", "b32", "b64"])
def test_integer_comparisons(kind):
    bits = bits_of(kind)
    two = dict(zip("ab", mixed(integer_edges(bits), bits, 2, N, 40)))
    p = np.random.default_rng(4).random(N) < 0.5
    names = ["eq", "ne"] if kind[0] == "b" else list(TESTS) + (list(UNSIGNED) if kind[0] == "u" else [])
    cases = []
    for name in names:

        def true(a, b, name=name):
            return TESTS[UNSIGNED.get(name, name)][order(read(a, kind), read(b, kind))]

        cases.append(Case(f"setp.{name}.{kind} $d, $a, $b;", "pred", two, lambda a, b, t=true: int(t(a, b))))
        cases.append(
            Case(
                f"setp.{name}.{kind} $d|$e, $a, $b;",
                "pred pred",
                two,
                lambda a, b, t=true: (int(t(a, b)), int(not t(a, b))),
            )
        )
        for to, one in (("u32", 0xFFFFFFFF), ("s32", 0xFFFFFFFF), ("f32", 0x3F800000)):
            cases.append(
                Case(
                    f"set.{name}.{to}.{kind} $d, $a, $b;",
                    "b32",
                    two,
                    lambda a, b, t=true, one=one: one if t(a, b) else 0,
                )
            )
        for join, both in (("and", lambda x, y: x and y), ("or", lambda x, y: x or y), ("xor", lambda x, y: x != y)):
            cases.append(
                Case(
                    f"setp.{name}.{join}.{kind} $d|$e, $a, $b, !$p;",
                    "pred pred",
                    {**two, "p": p},
                    lambda a, b, p, t=true, both=both: (int(both(t(a, b), not p)), int(both(not t(a, b), not p))),
                )
            )
            cases.append(
                Case(
                    f"set.{name}.{join}.s32.{kind} $d, $a, $b, $p;",
                    "b32",
                    {**two, "p": p},
                    lambda a, b, p, t=true, both=both: 0xFFFFFFFF if both(t(a, b), p) else 0,
                )
            )
    check(cases)


@pytest.mark.parametrize("name", FORMATS)
def test_float_comparisons(name):
    form = FORMATS[name]
    two = dict(zip("ab", mixed(float_edges(form), form.bits, 2, N, 41, near=form)))
    two["b"][-40:] = two["a"][-40:]
    cases = []
    for test in FLOAT_TESTS:
        for ftz in ("", ".ftz") if name in ("f16", "f32") else ("",):

            def true(a, b, test=test, ftz=ftz):
                x, y = value(a, form), value(b, form)
                if ftz:
                    x, y = flushed(x, form), flushed(y, form)
                return float_test(test, float_order(x, y))

            cases += [Case(f"setp.{test}{ftz}.{name} $d|$e, $a, $b;", "pred pred", two,
                           lambda a, b, t=true: (int(t(a, b)), int(not t(a, b)))),
                      Case(f"set.{test}{ftz}.f32.{name} $d, $a, $b;", "b32", two,
                           lambda a, b, t=true: 0x3F800000 if t(a, b) else 0),
                      Case(f"set.{test}{ftz}.u32.{name} $d, $a, $b;", "b32", two,
                           lambda a, b, t=true: 0xFFFFFFFF if t(a, b) else 0)]  # fmt: skip
    check(cases)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_packed_comparisons(name):
    form = FORMATS[name]
    a, b, c, d = mixed(float_edges(form), 16, 4, N, 42, near=form)
    two = {"a": a.astype(np.uint32) << 16 | c, "b": b.astype(np.uint32) << 16 | d}
    p = np.random.default_rng(5).random(N) < 0.5
    one = rounded(exact(1), form)
    cases = []
    for test in FLOAT_TESTS:

        def halves(a, b, test=test):
            return [
                float_test(test, float_order(value(a >> s & 0xFFFF, form), value(b >> s & 0xFFFF, form)))
                for s in (0, 16)
            ]

        cases.append(
            Case(
                f"setp.{test}.{name}x2 $d|$e, $a, $b;",
                "pred pred",
                two,
                lambda a, b, h=halves: tuple(int(x) for x in h(a, b)),
            )
        )
        cases.append(
            Case(
                f"set.{test}.{name}x2.{name}x2 $d, $a, $b;",
                "b32",
                two,
                lambda a, b, h=halves: sum(one << s for x, s in zip(h(a, b), (0, 16)) if x),
            )
        )
        for join, both in (("and", lambda x, y: x and y), ("xor", lambda x, y: x != y)):
            cases.append(
                Case(
                    f"setp.{test}.{join}.{name}x2 $d|$e, $a, $b, $p;",
                    "pred pred",
                    {**two, "p": p},
                    lambda a, b, p, h=halves, both=both: tuple(int(both(x, p)) for x in h(a, b)),
                )
            )
            cases.append(
                Case(
                    f"set.{test}.{join}.{name}x2.{name}x2 $d, $a, $b, $p;",
                    "b32",
                    {**two, "p": p},
                    lambda a, b, p, h=halves, both=both: sum(one << s for x, s in zip(h(a, b), (0, 16)) if both(x, p)),
                )
            )
    check(cases)


def test_comparisons_may_overwrite_their_operands():
    """A result is also an operand, or the guard, of the instruction."""
    two = dict(zip("ab", mixed(integer_edges(32), 32, 2, N, 43)))
    p = np.random.default_rng(6).random(N) < 0.5
    less = lambda a, b: read(a, "s32") < read(b, "s32")  # noqa: E731
    inputs = {**two, "p": p}
    check([
        Case("mov.pred $d, $p;\nsetp.lt.and.s32 $d|$e, $a, $b, $d;", "pred pred", inputs,
             lambda a, b, p: (int(less(a, b) and p), int(not less(a, b) and p))),
        Case("mov.pred $e, $p;\nsetp.lt.xor.s32 $d|$e, $a, $b, $e;", "pred pred", inputs,
             lambda a, b, p: (int(less(a, b) != p), int((not less(a, b)) != p))),
        Case("mov.pred $d, $p;\nmov.pred $e, $p;\n@$d setp.lt.s32 $d|$e, $a, $b;", "pred pred", inputs,
             lambda a, b, p: (int(less(a, b)), int(not less(a, b))) if p else (0, 0)),
        Case("mov.pred $d, $p;\nmov.pred $e, $p;\n@!$e setp.lt.s32 $d|$e, $a, $b;", "pred pred", inputs,
             lambda a, b, p: (1, 1) if p else (int(less(a, b)), int(not less(a, b)))),
    ])  # fmt: skip


def test_selections():
    cases = []
    p = np.random.default_rng(7).random(N) < 0.5
    sign = mixed(integer_edges(32), 32, 1, N, 44)[0]
    single = mixed(float_edges(F32), 32, 1, N, 45)[0]
    for kind in ("b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"):
        bits = bits_of(kind)
        two = dict(zip("ab", mixed(integer_edges(bits), bits, 2, N, 46)))
        out = f"b{bits}"
        cases += [
            Case(f"selp.{kind} $d, $a, $b, $p;", out, {**two, "p": p}, lambda a, b, p: a if p else b),
            Case(f"selp.{kind} $d, $a, $b, !$p;", out, {**two, "p": p}, lambda a, b, p: b if p else a),
            Case(f"slct.{kind}.s32 $d, $a, $b, $c;", out, {**two, "c": sign}, lambda a, b, c: b if c >> 31 else a),
        ]
        for ftz in ("", ".ftz"):

            def want(a, b, c, ftz=ftz):
                x = flushed(value(c, F32), F32) if ftz else value(c, F32)
                return a if x[0] != "nan" and (not x[1] or (x[0] == "num" and x[2] == 0)) else b

            cases.append(Case(f"slct{ftz}.{kind}.f32 $d, $a, $b, $c;", out, {**two, "c": single}, want))
    check(cases)


def test_the_oracle_agrees_with_numpy():
    """The rounding of simt_numbers, with which these tests compare, equals NumPy's and Python's."""
    rng = np.random.default_rng(8)
    for x in rng.standard_normal(300) * 2.0 ** rng.integers(-160, 160, 300):
        number = exact(Fraction(float(x)))
        with np.errstate(over="ignore", under="ignore"):
            assert rounded(number, F32) == int(np.float32(x).view(np.uint32))
            assert rounded(number, F16) == int(np.float16(x).view(np.uint16))
        assert rounded(number, F64) == int(np.float64(x).view(np.uint64))
        assert 2.0 ** log2_floor(number[2]) <= abs(x) < 2.0 ** (log2_floor(number[2]) + 1)
    assert DTYPES[16] is np.uint16


@pytest.mark.parametrize("text", [
    "cvt.s32.f32 r1, r2;", "cvt.rn.s32.f32 r1, r2;", "cvt.rn.e3m4x2.f32 h1, r1, r2;", "cvt.rs.f16.f32 h1, r1;",
    "cvt.rna.f32.f64 r1, d1;", "setp.equ.s32 p1, r1, r2;", "setp.lt.b32 p1, r1, r2;", "setp.lo.s32 p1, r1, r2;",
    "setp.hi.f32 p1, r1, r2;", "set.eq.u64.u32 d1, r1, r2;", "slct.b32.u32 r1, r2, r3, r4;", "selp.f16 h1, h2, h3, p1;",
    "mov.b128 r1, r2;", "cvt.rni.f32.s32 r1, r2;", "cvt.f32.f64 r1, d1;", "cvt.f32.s32 r1, r2;",
    "cvt.pack.sat.u4.s32.b32 r1, r2, r3, r4;", "cvt.rn.satfinite.s32.f32 r1, r2;", "cvt.rn.relu.f32.f64 r1, d1;",
])  # fmt: skip
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0] in message
    assert "PTX line" in message
