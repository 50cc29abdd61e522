"""Integer, logic, shift and bit-field instructions on the PTX machine against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from simt_numbers import cut, integer_edges, mixed, read, saturated
from simt_ptx import Case, check, rejection

TYPES = ("u16", "s16", "u32", "s32", "u64", "s64")
N = 320


def bits_of(kind: str) -> int:
    return int(kind[1:])


def values(kind: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    bits = bits_of(kind)
    return dict(zip("abcf", mixed(integer_edges(bits), bits, count, N, seed + bits)))


def amounts(seed: int, n: int = N) -> np.ndarray:
    """Shift amounts: small ones, some that exceed every width, and large ones."""
    rng = np.random.default_rng(seed)
    some = rng.integers(0, 80, n).astype(np.uint32)
    some[::7] = rng.choice(
        np.array([0, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1 << 31, (1 << 32) - 1], np.uint32),
        len(some[::7]),
    )
    return some


def of(kind, function, wide=False):
    """The function, applied to bits of a type.

    Its result is cut to the type's width, or to twice this width if `wide`.
    """
    bits = bits_of(kind) * (2 if wide else 1)
    return lambda *raw: cut(function(*(read(x, kind) for x in raw)), bits)


def divided(a: int, b: int) -> int:
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


def binary(name, kind, function, inputs):
    return Case(f"{name}.{kind} $d, $a, $b;", f"b{bits_of(kind)}", {k: inputs[k] for k in "ab"}, of(kind, function))


@pytest.mark.parametrize("kind", TYPES)
def test_arithmetic(kind):
    bits, two, three = bits_of(kind), values(kind, 2), values(kind, 3)
    out = f"b{bits}"
    cases = [
        binary("add", kind, lambda a, b: a + b, two),
        binary("sub", kind, lambda a, b: a - b, two),
        binary("mul.lo", kind, lambda a, b: a * b, two),
        binary("mul.hi", kind, lambda a, b: a * b >> bits, two),
        binary("min", kind, min, two),
        binary("max", kind, max, two),
        Case(f"mad.lo.{kind} $d, $a, $b, $c;", out, three, of(kind, lambda a, b, c: a * b + c)),
        Case(f"mad.hi.{kind} $d, $a, $b, $c;", out, three, of(kind, lambda a, b, c: (a * b >> bits) + c)),
        Case(f"sad.{kind} $d, $a, $b, $c;", out, three, of(kind, lambda a, b, c: abs(a - b) + c)),
        Case(f"add.{kind} $d, $a, -3;", out, {"a": two["a"]}, of(kind, lambda a: a - 3)),
    ]

    def div(a, b):
        return None if read(b, kind) == 0 else cut(divided(read(a, kind), read(b, kind)), bits)

    def rem(a, b):
        a, b = read(a, kind), read(b, kind)
        return None if b == 0 else cut(a - divided(a, b) * b, bits)

    cases += [Case(f"div.{kind} $d, $a, $b;", out, two, div), Case(f"rem.{kind} $d, $a, $b;", out, two, rem)]
    if kind[0] == "s":
        cases += [
            Case(f"abs.{kind} $d, $a;", out, {"a": two["a"]}, of(kind, abs)),
            Case(f"neg.{kind} $d, $a;", out, {"a": two["a"]}, of(kind, lambda a: -a)),
        ]
    check(cases)


@pytest.mark.parametrize("kind", TYPES[:4])
def test_wide(kind):
    bits, two = bits_of(kind), values(kind, 2)
    addend = mixed(integer_edges(2 * bits), 2 * bits, 1, N, 3)[0]
    check(
        [
            Case(f"mul.wide.{kind} $d, $a, $b;", f"b{2 * bits}", two, of(kind, lambda a, b: a * b, wide=True)),
            Case(
                f"mad.wide.{kind} $d, $a, $b, $c;",
                f"b{2 * bits}",
                {**two, "c": addend},
                lambda a, b, c: cut(read(a, kind) * read(b, kind) + c, 2 * bits),
            ),
        ]
    )


def test_saturating():
    two, three = values("s32", 2), values("s32", 3)
    sat = lambda function: lambda *raw: cut(saturated(function(*(read(x, "s32") for x in raw)), "s32"), 32)  # noqa: E731
    check(
        [
            Case("add.sat.s32 $d, $a, $b;", "b32", two, sat(lambda a, b: a + b)),
            Case("sub.sat.s32 $d, $a, $b;", "b32", two, sat(lambda a, b: a - b)),
            Case("mad.hi.sat.s32 $d, $a, $b, $c;", "b32", three, sat(lambda a, b, c: (a * b >> 32) + c)),
            Case("min.relu.s32 $d, $a, $b;", "b32", two, of("s32", lambda a, b: max(min(a, b), 0))),
            Case("max.relu.s32 $d, $a, $b;", "b32", two, of("s32", lambda a, b: max(a, b, 0))),
        ]
    )


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_24_bits(kind):
    two, three = values(kind, 2), values(kind, 3)

    def short(x):
        x &= 0xFFFFFF
        return x - (1 << 24) if kind == "s32" and x >> 23 else x

    cases = [
        Case(f"mul24.lo.{kind} $d, $a, $b;", "b32", two, lambda a, b: cut(short(a) * short(b), 32)),
        Case(f"mul24.hi.{kind} $d, $a, $b;", "b32", two, lambda a, b: cut(short(a) * short(b) >> 16, 32)),
        Case(f"mad24.lo.{kind} $d, $a, $b, $c;", "b32", three, lambda a, b, c: cut(short(a) * short(b) + c, 32)),
        Case(
            f"mad24.hi.{kind} $d, $a, $b, $c;", "b32", three, lambda a, b, c: cut((short(a) * short(b) >> 16) + c, 32)
        ),
    ]
    if kind == "s32":
        cases.append(
            Case(
                "mad24.hi.sat.s32 $d, $a, $b, $c;",
                "b32",
                three,
                lambda a, b, c: cut(saturated(read(short(a) * short(b) >> 16, "s32") + read(c, "s32"), "s32"), 32),
            )
        )
    check(cases)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_logic(kind):
    bits, two = bits_of(kind), values(kind, 2)
    one = {"a": two["a"]}
    check(
        [
            binary("and", kind, lambda a, b: a & b, two),
            binary("or", kind, lambda a, b: a | b, two),
            binary("xor", kind, lambda a, b: a ^ b, two),
            Case(f"not.{kind} $d, $a;", kind, one, lambda a: cut(~a, bits)),
            Case(f"cnot.{kind} $d, $a;", kind, one, lambda a: int(a == 0)),
            Case(f"mov.{kind} $d, $a;", kind, one, lambda a: a),
            Case(f"xor.{kind} $d, $a, -2;", kind, one, lambda a: cut(a ^ -2, bits)),
        ]
    )


def test_logic_of_predicates():
    rng = np.random.default_rng(1)
    a, b = rng.random(N) < 0.5, rng.random(N) < 0.5
    two = {"a": a, "b": b}
    check(
        [
            Case("and.pred $d, $a, $b;", "pred", two, lambda a, b: int(a and b)),
            Case("or.pred $d, $a, !$b;", "pred", two, lambda a, b: int(a or not b)),
            Case("xor.pred $d, $a, $b;", "pred", two, lambda a, b: int(a != b)),
            Case("not.pred $d, $a;", "pred", {"a": a}, lambda a: int(not a)),
            Case("mov.pred $d, $a;", "pred", {"a": a}, int),
            Case(
                "mov.u32 $d, 7;\n@$a mov.u32 $d, 8;\n@!$b mov.u32 $d, 9;",
                "b32",
                two,
                lambda a, b: 9 if not b else 8 if a else 7,
            ),
        ]
    )


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_clamp(bits):
    inputs = {"a": values(f"b{bits}", 1)["a"], "b": amounts(bits)}
    out = f"b{bits}"
    check(
        [
            Case(f"shl.b{bits} $d, $a, $b;", out, inputs, lambda a, n: cut(a << n, bits) if n < bits else 0),
            Case(f"shr.u{bits} $d, $a, $b;", out, inputs, lambda a, n: a >> n),
            Case(f"shr.b{bits} $d, $a, $b;", out, inputs, lambda a, n: a >> n),
            Case(f"shr.s{bits} $d, $a, $b;", out, inputs, lambda a, n: cut(read(a, f"s{bits}") >> n, bits)),
            Case(f"shl.b{bits} $d, $a, {bits};", out, {"a": inputs["a"]}, lambda a: 0),
        ]
    )


def test_funnel_shifts():
    inputs = {**values("b32", 2), "c": amounts(5)}

    def funnel(left, wrap):
        def want(a, b, c):
            n = c & 31 if wrap else min(c, 32)
            both = b << 32 | a
            return cut(both << n >> 32, 32) if left else cut(both >> n, 32)

        return want

    check(
        [
            Case(f"shf.{side}.{how}.b32 $d, $a, $b, $c;", "b32", inputs, funnel(side == "l", how == "wrap"))
            for side in "lr"
            for how in ("wrap", "clamp")
        ]
    )


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_counts(bits):
    one = {"a": values(f"b{bits}", 1)["a"]}
    rng = np.random.default_rng(2)
    one["a"][-100:] >>= rng.integers(0, bits, 100).astype(one["a"].dtype)
    cases = [
        Case(f"popc.b{bits} $d, $a;", "b32", one, lambda a: f"{a:b}".count("1")),
        Case(f"clz.b{bits} $d, $a;", "b32", one, lambda a: bits - a.bit_length()),
        Case(f"brev.b{bits} $d, $a;", f"b{bits}", one, lambda a: int(f"{a:0{bits}b}"[::-1], 2)),
    ]

    def found(kind, amount):
        def want(a):
            a = read(a, kind)
            place = (~a if a < 0 else a).bit_length() - 1
            return 0xFFFFFFFF if place < 0 else bits - 1 - place if amount else place

        return want

    for kind in (f"u{bits}", f"s{bits}"):
        cases += [
            Case(f"bfind.{kind} $d, $a;", "b32", one, found(kind, False)),
            Case(f"bfind.shiftamt.{kind} $d, $a;", "b32", one, found(kind, True)),
        ]
    check(cases)


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(kind):
    bits = bits_of(kind)
    two = values(kind, 2)
    field = {"b": amounts(6), "c": amounts(7)}

    def extract(a, b, c):
        position, length = b & 255, c & 255
        field = [(a >> i) & 1 for i in range(position, min(position + length, bits))]
        sign = (a >> min(position + length - 1, bits - 1)) & 1 if kind[0] == "s" and length else 0
        field += [sign] * (bits - len(field))
        return sum(bit << i for i, bit in enumerate(field))

    def insert(a, f, b, c):
        position, length = b & 255, c & 255
        if position >= bits:
            return f
        mask = cut(((1 << length) - 1) << position, bits)
        return f & ~mask | a << position & mask

    check(
        [
            Case(f"bfe.{kind} $d, $a, $b, $c;", f"b{bits}", {"a": two["a"], **field}, extract),
            Case(f"bfi.b{bits} $d, $a, $f, $b, $c;", f"b{bits}", {"a": two["a"], "f": two["b"], **field}, insert),
        ]
    )


def test_masks_and_extensions():
    two = {"a": amounts(8), "b": amounts(9)}
    any_value = {"a": values("b32", 1)["a"], "b": amounts(10)}

    def mask(wrap):
        def want(a, b):
            position, width = (a & 31, b & 31) if wrap else (min(a, 32), min(b, 32))
            return cut(((1 << width) - 1) << position, 32)

        return want

    def extend(wrap, kind):
        def want(a, b):
            n = b & 31 if wrap else min(b, 32)
            low = a & ((1 << n) - 1)
            return cut(low - (1 << n) if kind == "s32" and n and low >> (n - 1) else low, 32)

        return want

    check(
        [Case(f"bmsk.{how}.b32 $d, $a, $b;", "b32", two, mask(how == "wrap")) for how in ("wrap", "clamp")]
        + [
            Case(f"szext.{how}.{kind} $d, $a, $b;", "b32", any_value, extend(how == "wrap", kind))
            for how in ("wrap", "clamp")
            for kind in ("u32", "s32")
        ]
    )


def test_nth_bit():
    rng = np.random.default_rng(11)
    inputs = {
        "a": values("b32", 1)["a"],
        "b": rng.integers(0, 32, N).astype(np.uint32),
        "c": rng.integers(-12, 13, N).astype(np.int32).view(np.uint32),
    }

    def want(mask, base, offset):
        offset = read(offset, "s32")
        if offset == 0:
            return base if mask >> base & 1 else 0xFFFFFFFF
        places = range(base, 32) if offset > 0 else range(base, -1, -1)
        found = [i for i in places if mask >> i & 1]
        return found[abs(offset) - 1] if len(found) >= abs(offset) else 0xFFFFFFFF

    check([Case("fns.b32 $d, $a, $b, $c;", "b32", inputs, want)])


def test_permute():
    inputs = values("b32", 3, 4)

    def pick(rule):
        def want(a, b, c):
            data = (b << 32 | a).to_bytes(8, "little")
            picked = []
            for i in range(4):
                nibble = rule(i, c)
                byte = data[nibble & 7]
                picked.append((0xFF if byte & 0x80 else 0) if nibble & 8 else byte)
            return int.from_bytes(bytes(picked), "little")

        return want

    rows = {  # bytes 3 2 1 0 of the result by the low two bits of c
        "f4e": ((3, 2, 1, 0), (4, 3, 2, 1), (5, 4, 3, 2), (6, 5, 4, 3)),
        "b4e": ((5, 6, 7, 0), (6, 7, 0, 1), (7, 0, 1, 2), (0, 1, 2, 3)),
        "rc8": ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)),
        "ecl": ((3, 2, 1, 0), (3, 2, 1, 1), (3, 2, 2, 2), (3, 3, 3, 3)),
        "ecr": ((0, 0, 0, 0), (1, 1, 1, 0), (2, 2, 1, 0), (3, 2, 1, 0)),
        "rc16": ((1, 0, 1, 0), (3, 2, 3, 2), (1, 0, 1, 0), (3, 2, 3, 2)),
    }
    cases = [Case("prmt.b32 $d, $a, $b, $c;", "b32", inputs, pick(lambda i, c: c >> 4 * i & 15))]
    for mode, table in rows.items():
        rule = pick(lambda i, c, table=table: table[c & 3][3 - i])
        cases.append(Case(f"prmt.b32.{mode} $d, $a, $b, $c;", "b32", inputs, rule))
    check(cases)


def test_lop3():
    inputs = {k: v[:64] for k, v in values("b32", 3, 5).items()}

    def table(lut):
        def want(a, b, c):
            index = [(a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1 for i in range(32)]
            return sum((lut >> k & 1) << i for i, k in enumerate(index))

        return want

    cases = [Case(f"lop3.b32 $d, $a, $b, $c, {lut:#x};", "b32", inputs, table(lut)) for lut in range(0, 256, 1)]
    p = np.random.default_rng(5).random(64) < 0.5
    for name, join in (("or", lambda x, y: x or y), ("and", lambda x, y: x and y)):
        for lut in (0x80, 0x96, 0):
            cases.append(
                Case(
                    f"lop3.{name}.b32 $d|$e, $a, $b, $c, {lut}, $p;",
                    "b32 pred",
                    {**inputs, "p": p},
                    lambda a, b, c, p, lut=lut, join=join: (
                        table(lut)(a, b, c),
                        int(join(table(lut)(a, b, c) != 0, p)),
                    ),
                )
            )
    check(cases)


def test_dot_products():
    inputs = values("b32", 3, 6)

    def parts(x, count, size, kind):
        return [read(x >> size * i, f"{kind[0]}{size}") for i in range(count)]

    cases = []
    for ka in ("u32", "s32"):
        for kb in ("u32", "s32"):
            cases.append(
                Case(
                    f"dp4a.{ka}.{kb} $d, $a, $b, $c;",
                    "b32",
                    inputs,
                    lambda a, b, c, ka=ka, kb=kb: cut(
                        c + sum(x * y for x, y in zip(parts(a, 4, 8, ka), parts(b, 4, 8, kb))), 32
                    ),
                )
            )
            for half, at in (("lo", 0), ("hi", 2)):
                cases.append(
                    Case(
                        f"dp2a.{half}.{ka}.{kb} $d, $a, $b, $c;",
                        "b32",
                        inputs,
                        lambda a, b, c, ka=ka, kb=kb, at=at: cut(
                            c + sum(x * y for x, y in zip(parts(a, 2, 16, ka), parts(b, 4, 8, kb)[at:])), 32
                        ),
                    )
                )
    check(cases)


@pytest.mark.parametrize("kind", ["u16", "s16"])
def test_packed_16_bit_integers(kind):
    inputs = values("b32", 2, 7)

    def both(function):
        def want(a, b):
            low, high = (cut(function(read(a >> s, kind), read(b >> s, kind)), 16) for s in (0, 16))
            return high << 16 | low

        return want

    cases = [
        Case(f"add.{kind}x2 $d, $a, $b;", "b32", inputs, both(lambda a, b: a + b)),
        Case(f"min.{kind}x2 $d, $a, $b;", "b32", inputs, both(min)),
        Case(f"max.{kind}x2 $d, $a, $b;", "b32", inputs, both(max)),
    ]
    if kind == "s16":
        cases += [
            Case("min.relu.s16x2 $d, $a, $b;", "b32", inputs, both(lambda a, b: max(min(a, b), 0))),
            Case("max.relu.s16x2 $d, $a, $b;", "b32", inputs, both(lambda a, b: max(a, b, 0))),
        ]
    check(cases)


@pytest.mark.parametrize("bits", [32, 64])
def test_carries(bits):
    """Two-word numbers added, subtracted and multiplied with the carry flag."""
    inputs = values(f"b{bits}", 4, 8)
    u, out = f"u{bits}", f"b{bits} b{bits}"

    def pair(x):
        return cut(x, bits), cut(x >> bits, bits)

    def high_signed(a, b, c, f):
        product = read(a, f"s{bits}") * read(b, f"s{bits}")
        return pair((product & (1 << 2 * bits) - 1) + (f << bits | c))

    check([
        Case(f"add.cc.{u} $d, $a, $c;\naddc.{u} $e, $b, $f;", out, inputs,
             lambda a, b, c, f: pair((b << bits | a) + (f << bits | c))),
        Case(f"sub.cc.{u} $d, $a, $c;\nsubc.{u} $e, $b, $f;", out, inputs,
             lambda a, b, c, f: pair((b << bits | a) - (f << bits | c))),
        Case(f"add.cc.{u} $d, $a, $c;\naddc.cc.{u} $d, $b, $f;\naddc.{u} $e, 0, 0;", out, inputs,
             lambda a, b, c, f: (cut(b + f + (a + c >> bits), bits), b + f + (a + c >> bits) >> bits)),
        Case(f"sub.cc.{u} $d, $a, $c;\nsubc.cc.{u} $d, $b, $f;\nsubc.{u} $e, 0, 0;", out, inputs,
             lambda a, b, c, f: (cut(b - f - (a < c), bits), cut(-(b - f - (a < c) < 0), bits))),
        Case(f"mad.lo.cc.{u} $d, $a, $b, $c;\nmadc.hi.{u} $e, $a, $b, $f;", out, inputs,
             lambda a, b, c, f: pair(a * b + (f << bits | c))),
        Case(f"mad.lo.cc.s{bits} $d, $a, $b, $c;\nmadc.hi.s{bits} $e, $a, $b, $f;", out, inputs, high_signed),
        Case(f"mad.hi.cc.{u} $d, $a, $b, $c;\naddc.{u} $e, $f, 0;", out, inputs,
             lambda a, b, c, f: (cut((a * b >> bits) + c, bits), cut(f + ((a * b >> bits) + c >> bits), bits))),
        Case(f"add.cc.{u} $d, $a, $c;\nmadc.lo.cc.{u} $d, $a, $b, $f;\naddc.{u} $e, 0, 0;", out, inputs,
             lambda a, b, c, f: (cut(a * b + f + (a + c >> bits), bits),
                                 cut(a * b, bits) + f + (a + c >> bits) >> bits)),
    ])  # fmt: skip


def test_division_by_zero_does_not_stop_the_kernel():
    """PTX does not specify the result of a division by zero."""
    for kind in TYPES:
        zero = np.zeros(64, values(kind, 1)["a"].dtype)
        inputs = {"a": values(kind, 1)["a"][:64], "b": zero}
        check(
            [
                Case(f"{name}.{kind} $d, $a, $b;", f"b{bits_of(kind)}", inputs, lambda a, b: None)
                for name in ("div", "rem")
            ]
        )


@pytest.mark.parametrize(
    "text",
    [
        "add.sat.u32 r1, r2, r3;",
        "shl.b32.wrap r1, r2, r3;",
        "frobnicate.u32 r1, r2;",
        "add.b32 r1, r2, r3;",
        "mul.u32 r1, r2, r3;",
        "bfe.b32 r1, r2, r3, r4;",
        "popc.u32 r1, r2;",
        "mul24.lo.u64 d1, d2, d3;",
        "lop3.b32 r1, r2, r3, r4, r5;",
        "shf.l.b32 r1, r2, r3, r4;",
        "div.u8 h1, h2, h3;",
        "min.b32 r1, r2, r3;",
        "vadd.s32.s32.s32 r1, r2, r3;",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0] in message
    assert "PTX line" in message
