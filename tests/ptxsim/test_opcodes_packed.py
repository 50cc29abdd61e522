"""Arithmetic on two packed float32, mixed sums, and vectors of atomic operations, against fractions rounded once."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from simt_numbers import BF16, F16, F32, float_edges, flushed, mixed, negated, product, rounded, total, value
from simt_ptx import Case, check, launched, rejection

MODES = ("rn", "rz", "rm", "rp")
N = 192


def halves(count):
    """`count` arrays of two float32 in 64 bits."""
    low, high = (mixed(float_edges(F32), 32, count, N, seed, near=F32) for seed in (1, 2))
    return dict(zip("abc", [x.astype(np.uint64) | y.astype(np.uint64) << np.uint64(32) for x, y in zip(low, high)]))


def each(function, mode, ftz):
    """`function` of the low and of the high numbers; None where flushing may come before or after rounding."""

    def one(*raw):
        numbers = [value(x, F32) for x in raw]
        if ftz:
            numbers = [flushed(x, F32) for x in numbers]
        bits = rounded(function(mode, *numbers), F32, mode)
        return bits & 0x80000000 if ftz and bits & 0x7F800000 == 0 else bits

    def want(*raw):
        low, high = one(*(x & 0xFFFFFFFF for x in raw)), one(*(x >> 32 for x in raw))
        return low | high << 32

    return want


FUNCTIONS = {
    "add": (2, lambda mode, a, b: total(a, b, mode)),
    "sub": (2, lambda mode, a, b: total(a, negated(b), mode)),
    "mul": (2, lambda mode, a, b: product(a, b)),
    "fma": (3, lambda mode, a, b, c: total(product(a, b), c, mode)),
}


def edge_of_flushing(got, want):
    """Whether two results differ only in which of the least normal number and zero stands for a tiny one."""
    parts = [((got >> s) & 0xFFFFFFFF, (want >> s) & 0xFFFFFFFF) for s in (0, 32)]
    return all(g == w or {g & 0x7FFFFFFF, w & 0x7FFFFFFF} == {0, 0x00800000} for g, w in parts)


def test_two_at_once():
    cases = []
    for name, (count, function) in FUNCTIONS.items():
        for mode in MODES:
            for ftz in ("", ".ftz"):
                inputs = halves(count)
                operands = ", ".join(f"${letter}" for letter in inputs)
                text = f"{name}.{mode}{ftz}.f32x2 $d, {operands};"
                same = edge_of_flushing if ftz else None
                cases.append(Case(text, "b64", inputs, each(function, mode, bool(ftz)), same))
    check(cases)


@pytest.mark.parametrize(("kind", "form"), [("f16", F16), ("bf16", BF16)])
def test_mixed_sums(kind, form):
    """The narrow operands widen exactly; the float32 result is rounded once."""
    a, b = mixed(float_edges(form), 16, 2, N, 3, near=form)
    (c,) = mixed(float_edges(F32), 32, 1, N, 4, near=F32)
    cases = []
    for mode in MODES:

        def summed(x, y, mode=mode, sign=False):
            y = value(y, F32)
            return rounded(total(value(x, form), negated(y) if sign else y, mode), F32, mode)

        def fused(x, y, z, mode=mode):
            return rounded(total(product(value(x, form), value(y, form)), value(z, F32), mode), F32, mode)

        cases += [
            Case(f"add.{mode}.f32.{kind} $d, $a, $c;", "b32", {"a": a, "c": c}, summed),
            Case(
                f"sub.{mode}.f32.{kind} $d, $a, $c;",
                "b32",
                {"a": a, "c": c},
                lambda x, y, mode=mode: summed(x, y, mode, True),
            ),
            Case(f"fma.{mode}.f32.{kind} $d, $a, $b, $c;", "b32", {"a": a, "b": b, "c": c}, fused),
        ]
    check(cases)


VECTORS = [
    ("add", "v2", "f32", np.float32, 1),
    ("add", "v4", "f32", np.float32, 1),
    ("add.noftz", "v8", "f16", np.float16, 1),
    ("add.noftz", "v2", "bf16", ml_dtypes.bfloat16, 1),
    ("min.noftz", "v4", "f16", np.float16, 1),
    ("max.noftz", "v8", "bf16", ml_dtypes.bfloat16, 1),
    ("add.noftz", "v4", "f16x2", np.float16, 2),
    ("max.noftz", "v2", "bf16x2", ml_dtypes.bfloat16, 2),
]


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize(("op", "vector", "kind", "dtype", "per"), VECTORS)
def test_vectors_of_atomics(op, vector, kind, dtype, per, returns):
    """Every element is updated; atom also returns the old ones. A NaN does not win min or max."""
    count = int(vector[1:])
    size = np.dtype(dtype).itemsize * per
    rng = np.random.default_rng(5)
    old, new = (rng.standard_normal((32, count * per)).astype(dtype) for _ in range(2))
    new[3, 0], old[4, 1] = np.nan, np.nan
    letter = {2: "h", 4: "r"}[size]
    values = ", ".join(f"{letter}{i + 1}" for i in range(count))
    results = ", ".join(f"{letter}{i + 11}" for i in range(count))
    call = f"{'atom' if returns else 'red'}.global.{op}.{vector}.{kind}"
    call += (f" {{{results}}}," if returns else "") + f" [d1], {{{values}}};"
    body = f"""mad.wide.u32 d1, t, {size * count}, a0;
mad.wide.u32 d2, t, {size * count}, a1;
mad.wide.u32 d3, t, {size * count}, a2;
{"".join(f"ld.global.b{8 * size} {letter}{i + 1}, [d2+{size * i}];" for i in range(count))}
{"".join(f"mov.b{8 * size} {letter}{i + 11}, 0;" for i in range(count))}
{call}
{"".join(f"st.global.b{8 * size} [d3+{size * i}], {letter}{i + 11};" for i in range(count))}"""
    raw = np.uint16 if per == 1 and size == 2 else np.uint32
    shape = (32, count)
    arrays = [x.view(raw).reshape(shape) for x in (old, new)]
    after, found = launched(body, *arrays, np.zeros(shape, raw))
    assert found == []
    got = after[0].view(dtype).reshape(old.shape)
    wide = old.astype(np.float64), new.astype(np.float64)
    want = {"a": wide[0] + wide[1], "m": np.fmin(*wide) if op.startswith("min") else np.fmax(*wide)}[op[0]]
    assert np.array_equal(got.astype(np.float64), want.astype(dtype).astype(np.float64), equal_nan=True)
    if returns:
        assert np.array_equal(after[2], arrays[0])


def test_misaligned_vector():
    """An address that fits an element but not the vector is reported, and nothing is written."""
    after, found = launched(
        "mov.b32 r1, 0f3F800000;\n@p1 ret;\nred.global.add.v2.f32 [a0+4], {r1, r1};", np.zeros(64, np.float32)
    )
    assert {report.kind for report in found} == {"misaligned"}
    assert after[0][1] == 0


@pytest.mark.parametrize(
    "text",
    [
        "add.sat.f32x2 d1, d2, d3;",
        "fma.f32x2 d1, d2, d3, d4;",
        "mul.rn.f32.f16 r1, h1, r2;",
        "fma.rn.f32.f16 r1, h1, r2, r3;",
        "red.global.add.v4.f64 [d1], {d1, d2, d3, d4};",
        "red.global.add.v8.f32 [d1], {r1, r2, r3, r4, r5, r6, r7, r8};",
        "red.shared.add.v2.f32 [d1], {r1, r2};",
        "red.global.add.v2.f32 [d1], {r1, r2, r3};",
        "red.global.min.v2.f32 [d1], {r1, r2};",
        "setmaxnreg.inc.sync.aligned.u32 20;",
        "setmaxnreg.dec.sync.aligned.u32 250;",
        "setmaxnreg.sync.aligned.u32 240;",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0] in message
    assert "PTX line" in message
