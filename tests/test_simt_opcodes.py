# ruff: noqa: E501 (an opcode and its meaning stand in one line)
"""Opcodes against independent statements of their meaning: Python's integers, exact fractions, NumPy."""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")
from aristos import simt

SIZE = {"8": 1, "16": 2, "32": 4, "64": 8}
EDGES = {
    n: [0, 1, 2, (1 << n) - 1, 1 << (n - 1), (1 << (n - 1)) - 1, 31, 32, 33, 5, (1 << n) - 7] for n in (8, 16, 32, 64)
}


def bits_of(type_):
    return int("".join(c for c in type_[-2:] if c.isdigit())) if type_ != "pred" else 1


def run(text, inputs, out_type, in_types, flags="check"):
    """Run `text` (with {d}, {a}, {b}, {c}) once for each tuple of inputs; returns the results as unsigned integers."""
    n = len(inputs)
    body, loads = "", ""
    names = "abce"
    for k, type_ in enumerate(in_types):
        loads += f".reg .b{max(bits_of(type_), 16)} %{names[k]};\n"
        body += f"add.u64 %p, %in, {8 * k};\nld.global.b{bits_of(type_)} %{names[k]}, [%p];\n"
    filled = text.format(d="%d", a="%a", b="%b", c="%c", e="%e")
    ptx = f"""
.version 8.6
.target sm_90
.address_size 64
.visible .entry k(.param .u64 in, .param .u64 out, .param .u32 n)
{{
.reg .u64 %in, %out, %p, %i; .reg .u32 %t, %n, %x, %y; .reg .pred %q, %r, %s;
.reg .b{max(bits_of(out_type), 16)} %d;
{loads}
mov.u32 %x, %ctaid.x; mov.u32 %y, %ntid.x; mov.u32 %t, %tid.x; mad.lo.u32 %t, %x, %y, %t;
ld.param.u32 %n, [n]; setp.ge.u32 %q, %t, %n; @%q ret;
ld.param.u64 %in, [in]; mul.wide.u32 %i, %t, 32; add.u64 %in, %in, %i;
ld.param.u64 %out, [out]; mul.wide.u32 %i, %t, 8; add.u64 %out, %out, %i;
{body}
{filled}
st.global.b{bits_of(out_type)} [%out], %d;
ret;
}}"""
    table = np.zeros((n, 4), np.uint64)
    for i, values in enumerate(inputs):
        for k, value in enumerate(values):
            table[i, k] = value & ((1 << 64) - 1)
    machine = simt.Machine(check=False)
    d = machine.device(0)
    given, out = d.array(table), d.array(np.zeros(n, np.uint64))
    d.launch(ptx, -(-n // 128), 128, given, out, n)
    machine.run()
    return [int(v) for v in out.copy_to_host()]


def signed(x, n):
    x &= (1 << n) - 1
    return x - (1 << n) if x >> (n - 1) else x


def values(n, count, rng):
    return [rng.choice(EDGES[n]) if rng.random() < 0.5 else rng.getrandbits(n) for _ in range(count)]


def c_div(a, b):
    q = abs(a) // abs(b)
    return -q if (a < 0) != (b < 0) else q


def clamp(x, low, high):
    return max(low, min(high, x))


def bfe(a, p, length, n, is_signed):
    p, length = p & 255, length & 255
    if length == 0:
        return 0
    sign = (a >> min(p + length - 1, n - 1)) & 1 if is_signed else 0
    return sum((((a >> (p + i)) & 1 if p + i < n and i < length else sign) << i) for i in range(n))


def bfi(a, b, p, length, n):
    p, length = p & 255, length & 255
    for i in range(length):
        if p + i < n:
            b = b & ~(1 << (p + i)) | ((a >> i) & 1) << (p + i)
    return b


INTEGER = {
    # name: (operands, statement of the result from (a, b, c, n, read)); read: the operand as the type reads it
    "add": (2, lambda a, b, c, n: a + b), "sub": (2, lambda a, b, c, n: a - b), "mul.lo": (2, lambda a, b, c, n: a * b),
    "mul.hi": (2, lambda a, b, c, n: (a * b) >> n), "mad.lo": (3, lambda a, b, c, n: a * b + c),
    "mad.hi": (3, lambda a, b, c, n: ((a * b) >> n) + c), "sad": (3, lambda a, b, c, n: c + abs(a - b)),
    "div": (2, lambda a, b, c, n: c_div(a, b) if b else None),
    "rem": (2, lambda a, b, c, n: a - b * c_div(a, b) if b else None),
    "min": (2, lambda a, b, c, n: min(a, b)), "max": (2, lambda a, b, c, n: max(a, b)),
}  # fmt: skip


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", INTEGER)
def test_integer(name, type_):
    rng = random.Random(name + type_)
    count, meaning = INTEGER[name]
    n = bits_of(type_)
    inputs = [tuple(values(n, 3, rng)) for _ in range(200)]
    operands = ", ".join("{" + x + "}" for x in "dabc"[: count + 1])
    got = run(f"{name}.{type_} {operands};", inputs, type_, [type_] * 3)
    for (a, b, c), result in zip(inputs, got):
        read = (lambda x: signed(x, n)) if type_[0] == "s" else (lambda x: x)
        want = meaning(read(a), read(b), read(c), n)
        if want is not None:
            assert result == want & ((1 << n) - 1), (name, type_, a, b, c)


def brev(a, n):
    return int(f"{a:0{n}b}"[::-1], 2)


def shf(a, b, c, left, wrap):
    k = c & 31 if wrap else min(c, 32)
    both = b << 32 | a
    return (both << k >> 32 if left else both >> k) & 0xFFFFFFFF


def prmt(a, b, c):
    data = (b << 32 | a).to_bytes(8, "little")
    out = []
    for i in range(4):
        nibble = c >> (4 * i) & 15
        byte = data[nibble & 7]
        out.append((0xFF if byte & 0x80 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def lop3(a, b, c, table):
    out = 0
    for i in range(32):
        index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)
        out |= (table >> index & 1) << i
    return out


def dp4a(a, b, c, sa, sb):
    total = c
    for i in range(4):
        x, y = a >> (8 * i) & 255, b >> (8 * i) & 255
        total += (signed(x, 8) if sa else x) * (signed(y, 8) if sb else y)
    return total & 0xFFFFFFFF


def bfind(a, n, is_signed):
    if is_signed and signed(a, n) < 0:
        a = ~a & ((1 << n) - 1)
    return a.bit_length() - 1 & 0xFFFFFFFF


def mad_chain(a, b, c):
    """The high word of a * b + (c << 32 | c)."""
    return (a * b >> 32) + c + ((a * b & 0xFFFFFFFF) + c >> 32)


BITS = [
    ("and.b32 {d}, {a}, {b};", "b32", 32, lambda a, b, c: a & b),
    ("or.b64 {d}, {a}, {b};", "b64", 64, lambda a, b, c: a | b),
    ("xor.b16 {d}, {a}, {b};", "b16", 16, lambda a, b, c: a ^ b),
    ("not.b32 {d}, {a};", "b32", 32, lambda a, b, c: ~a),
    ("cnot.b32 {d}, {a};", "b32", 32, lambda a, b, c: int(a == 0)),
    ("abs.s32 {d}, {a};", "s32", 32, lambda a, b, c: abs(signed(a, 32))),
    ("neg.s64 {d}, {a};", "s64", 64, lambda a, b, c: -a),
    ("popc.b32 {d}, {a};", "b32", 32, lambda a, b, c: a.bit_count()),
    ("brev.b32 {d}, {a};", "b32", 32, lambda a, b, c: brev(a, 32)),
    ("brev.b64 {d}, {a};", "b64", 64, lambda a, b, c: brev(a, 64)),
    ("clz.b32 {d}, {a};", "b32", 32, lambda a, b, c: 32 - a.bit_length()),
    ("bfind.u32 {d}, {a};", "u32", 32, lambda a, b, c: bfind(a, 32, False)),
    ("bfind.s32 {d}, {a};", "s32", 32, lambda a, b, c: bfind(a, 32, True)),
    ("bfind.shiftamt.u32 {d}, {a};", "u32", 32, lambda a, b, c: 32 - a.bit_length() if a else 0xFFFFFFFF),
    ("bfe.u32 {d}, {a}, {b}, {c};", "u32", 32, lambda a, b, c: bfe(a, b, c, 32, False)),
    ("bfe.s32 {d}, {a}, {b}, {c};", "s32", 32, lambda a, b, c: bfe(a, b, c, 32, True)),
    ("bfi.b32 {d}, {a}, {b}, {c}, 7;", "b32", 32, lambda a, b, c: bfi(a, b, c, 7, 32)),
    ("shf.l.wrap.b32 {d}, {a}, {b}, {c};", "b32", 32, lambda a, b, c: shf(a, b, c, True, True)),
    ("shf.r.wrap.b32 {d}, {a}, {b}, {c};", "b32", 32, lambda a, b, c: shf(a, b, c, False, True)),
    ("shf.l.clamp.b32 {d}, {a}, {b}, {c};", "b32", 32, lambda a, b, c: shf(a, b, c, True, False)),
    ("shf.r.clamp.b32 {d}, {a}, {b}, {c};", "b32", 32, lambda a, b, c: shf(a, b, c, False, False)),
    ("prmt.b32 {d}, {a}, {b}, {c};", "b32", 32, prmt),
    ("lop3.b32 {d}, {a}, {b}, {c}, 0xE8;", "b32", 32, lambda a, b, c: lop3(a, b, c, 0xE8)),
    ("lop3.b32 {d}, {a}, {b}, {c}, 0x1B;", "b32", 32, lambda a, b, c: lop3(a, b, c, 0x1B)),
    ("dp4a.s32.s32 {d}, {a}, {b}, {c};", "b32", 32, lambda a, b, c: dp4a(a, b, c, True, True)),
    ("dp4a.u32.s32 {d}, {a}, {b}, {c};", "b32", 32, lambda a, b, c: dp4a(a, b, c, False, True)),
    ("shl.b32 {d}, {a}, {b};", "b32", 32, lambda a, b, c: a << b if b < 32 else 0),
    ("shr.u32 {d}, {a}, {b};", "u32", 32, lambda a, b, c: a >> b if b < 32 else 0),
    ("shr.s32 {d}, {a}, {b};", "s32", 32, lambda a, b, c: signed(a, 32) >> min(b, 31)),
    (
        "add.sat.s32 {d}, {a}, {b};",
        "s32",
        32,
        lambda a, b, c: clamp(signed(a, 32) + signed(b, 32), -(1 << 31), (1 << 31) - 1),
    ),
    ("mul24.lo.s32 {d}, {a}, {b};", "s32", 32, lambda a, b, c: signed(a, 24) * signed(b, 24)),
    ("mul24.hi.u32 {d}, {a}, {b};", "u32", 32, lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) >> 16),
    (
        "setp.lt.s32 %q, {a}, {b}; selp.b32 {d}, {a}, {c}, %q;",
        "b32",
        32,
        lambda a, b, c: a if signed(a, 32) < signed(b, 32) else c,
    ),
    ("setp.hs.u32 %q|%r, {a}, {b}; selp.b32 {d}, 1, 2, %r;", "b32", 32, lambda a, b, c: 1 if a < b else 2),
    (
        "setp.ne.u32 %s, {c}, 0; setp.eq.and.u32 %q, {a}, {b}, !%s; selp.u32 {d}, 1, 0, %q;",
        "b32",
        32,
        lambda a, b, c: int(a == b and c == 0),
    ),
    ("set.gt.u32.s32 {d}, {a}, {b};", "b32", 32, lambda a, b, c: -int(signed(a, 32) > signed(b, 32))),
    ("slct.s32.s32 {d}, {a}, {b}, {c};", "b32", 32, lambda a, b, c: a if signed(c, 32) >= 0 else b),
    ("add.cc.u32 {d}, {a}, {b}; addc.u32 {d}, {c}, 0;", "u32", 32, lambda a, b, c: c + (a + b >> 32)),
    ("sub.cc.u32 {d}, {a}, {b}; subc.u32 {d}, {c}, 5;", "u32", 32, lambda a, b, c: c - 5 - int(a < b)),
    ("mad.lo.cc.u32 {d}, {a}, {b}, {c}; madc.hi.u32 {d}, {a}, {b}, {c};", "u32", 32, mad_chain),
    (
        "{{ .reg .b16 l, h; mov.b32 {{l, h}}, {a}; mov.b32 {d}, {{h, l}}; }}",
        "b32",
        32,
        lambda a, b, c: a >> 16 | a << 16,
    ),
    ("bmsk.clamp.b32 {d}, {a}, {b};", "b32", 32, lambda a, b, c: ((1 << min(b, 32)) - 1) << min(a, 32)),
    ("szext.wrap.s32 {d}, {a}, {b};", "s32", 32, lambda a, b, c: signed(a, b & 31) if b & 31 else 0),
    ("cvt.s64.s32 {d}, {a};", "s64", 32, lambda a, b, c: signed(a, 32)),
    ("cvt.u64.u16 {d}, {a};", "u64", 16, lambda a, b, c: a),
    ("cvt.sat.s8.s32 {d}, {a};", "s8", 32, lambda a, b, c: clamp(signed(a, 32), -128, 127)),
    ("cvt.sat.u16.s32 {d}, {a};", "u16", 32, lambda a, b, c: clamp(signed(a, 32), 0, 65535)),
    ("cvt.sat.s32.u64 {d}, {a};", "s32", 64, lambda a, b, c: min(a, (1 << 31) - 1)),
    ("mul.wide.s32 {d}, {a}, {b};", "s64", 32, lambda a, b, c: signed(a, 32) * signed(b, 32)),
    ("mul.wide.u16 {d}, {a}, {b};", "u32", 16, lambda a, b, c: a * b),
]


@pytest.mark.parametrize(("text", "out", "n", "meaning"), BITS, ids=[case[0][:28] for case in BITS])
def test_bits(text, out, n, meaning):
    rng = random.Random(text)
    small = any(word in text for word in ("bfe", "bfi", "shl", "shr", "bmsk", "szext", "shf"))
    inputs = []
    for _ in range(200):
        a, b, c = values(n, 3, rng)
        if small and rng.random() < 0.8:
            b, c = (b if "bfi" in text or "shf" in text else b % 40), c % 40
        inputs.append((a, b, c))
    got = run(text, inputs, out, [f"b{n}"] * 3)
    for (a, b, c), result in zip(inputs, got):
        assert result == meaning(a, b, c) & ((1 << bits_of(out)) - 1), (text, hex(a), hex(b), hex(c))


# ---- floats: exact fractions, rounded by this file ----
FORMATS = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23), "f64": (11, 52)}


def to_fraction(bits, form):
    """A format's bits as a Fraction, or 'nan', 'inf', '-inf'; and its sign."""
    e_bits, m_bits = FORMATS[form]
    sign = bits >> (e_bits + m_bits) & 1
    e, m = bits >> m_bits & ((1 << e_bits) - 1), bits & ((1 << m_bits) - 1)
    if e == (1 << e_bits) - 1:
        return ("nan" if m else ("-inf" if sign else "inf")), sign
    bias = (1 << (e_bits - 1)) - 1
    value = (
        Fraction(m, 1 << m_bits) * Fraction(2) ** (1 - bias)
        if e == 0
        else (1 + Fraction(m, 1 << m_bits)) * Fraction(2) ** (e - bias)
    )
    return -value if sign else value, sign


def round_to(value, form, mode="rn", zero_sign=0):
    """The bits of a Fraction in a format under a rounding mode."""
    e_bits, m_bits = FORMATS[form]
    top = e_bits + m_bits
    if value == 0:
        return zero_sign << top
    sign, a = int(value < 0), abs(value)
    bias = (1 << (e_bits - 1)) - 1
    e = max(
        math.floor(math.log2(a))
        if a < 2**1000 and a > Fraction(1, 2**1000)
        else a.numerator.bit_length() - a.denominator.bit_length(),
        1 - bias,
    )
    while a >= Fraction(2) ** (e + 1):
        e += 1
    while e > 1 - bias and a < Fraction(2) ** e:
        e -= 1
    unit = Fraction(2) ** (e - m_bits)
    low = a / unit
    k = low.numerator // low.denominator
    rest = low - k
    up = {"rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and k & 1), "rz": False,
          "rm": sign and rest > 0, "rp": not sign and rest > 0}[mode]  # fmt: skip
    k += int(up)
    if k == 2 << m_bits:
        k, e = k // 2, e + 1
    if e > bias:
        infinite = mode == "rn" or (mode == "rp" and not sign) or (mode == "rm" and sign)
        infinity = ((1 << e_bits) - 1) << m_bits
        return sign << top | (infinity if infinite else infinity - 1)
    field = e + bias if k >= 1 << m_bits else 0
    return sign << top | field << m_bits | (k & ((1 << m_bits) - 1) if field else k)


def floats(form, count, rng):
    e_bits, m_bits = FORMATS[form]
    total = 1 + e_bits + m_bits
    top = 1 << (total - 1)
    inf = ((1 << e_bits) - 1) << m_bits
    one = ((1 << (e_bits - 1)) - 1) << m_bits
    edges = [
        0,
        top,
        1,
        top | 1,
        inf,
        top | inf,
        inf | 1 << (m_bits - 1),
        inf - 1,
        one,
        one | top,
        one + 1,
        one - 1,
        1 << m_bits,
        (1 << m_bits) - 1,
    ]
    out = []
    for _ in range(count):
        r = rng.random()
        if r < 0.35:
            out.append(rng.choice(edges))
        elif r < 0.75:  # near one, so that sums cancel and round
            out.append((one + (rng.randrange(-6, 7) << m_bits)) + rng.getrandbits(m_bits) | (rng.getrandbits(1) * top))
        else:
            out.append(rng.getrandbits(total))
    return out


def exact_result(name, a, b, c, mode):
    """Of a (Fraction or word, sign) each: Fraction and the sign of a zero; or 'nan', 'inf', '-inf'."""
    words = [x[0] for x in (a, b, c)]
    if name in ("add", "sub", "fma"):
        if name == "fma":
            product = exact_result("mul", a, b, a, mode)
            if isinstance(product, str):
                product = (product, int(product == "-inf"))
            other = c
        else:
            product, other = a, b
            if name == "sub":
                flip = {"inf": "-inf", "-inf": "inf", "nan": "nan"}
                other = (flip[b[0]] if isinstance(b[0], str) else -b[0], 1 - b[1])
        x, y = product[0], other[0]
        if "nan" in (x, y) or (isinstance(x, str) and isinstance(y, str) and x != y):
            return "nan"
        if isinstance(x, str):
            return x
        if isinstance(y, str):
            return y
        total = x + y
        both = product[1] == other[1] and x == 0 and y == 0
        return total, product[1] if both else int(mode == "rm")
    if "nan" in words[:2]:
        return "nan"
    sign = a[1] ^ b[1]
    infinite = "-inf" if sign else "inf"
    if name == "mul":
        if isinstance(words[0], str) or isinstance(words[1], str):
            return "nan" if 0 in words[:2] else infinite
        return words[0] * words[1], sign
    if isinstance(words[0], str):
        return "nan" if isinstance(words[1], str) else infinite
    if isinstance(words[1], str):
        return Fraction(0), sign
    if words[1] == 0:
        return "nan" if words[0] == 0 else infinite
    return words[0] / words[1], sign


ARITHMETIC = [
    (name, form, mode)
    for name in ("add", "sub", "mul", "fma")
    for form in ("f32", "f64")
    for mode in ("rn", "rz", "rm", "rp")
]
ARITHMETIC += [("div", form, mode) for form in ("f32", "f64") for mode in ("rn", "rz", "rm", "rp")]
ARITHMETIC += [(name, form, "rn") for name in ("add", "sub", "mul", "fma") for form in ("f16", "bf16")]


@pytest.mark.parametrize(("name", "form", "mode"), ARITHMETIC)
def test_float_arithmetic(name, form, mode):
    rng = random.Random(name + form + mode)
    inputs = [tuple(floats(form, 3, rng)) for _ in range(256)]
    operands = ", ".join("{" + x + "}" for x in ("dabc" if name == "fma" else "dab"))
    got = run(
        f"{name}.{mode}.{form} {operands};", inputs, f"b{sum(FORMATS[form]) + 1}", [f"b{sum(FORMATS[form]) + 1}"] * 3
    )
    for bits, result in zip(inputs, got):
        want = exact_result(name, *(to_fraction(x, form) for x in bits), mode)
        check_float(result, want, form, mode, (name, form, mode, [hex(x) for x in bits]))


def check_float(result, want, form, mode, where):
    if isinstance(want, str):
        assert to_fraction(result, form)[0] == want, where
    else:
        assert result == round_to(want[0], form, mode, want[1]), (where, hex(result))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("form", ["f32", "f64"])
def test_square_root(form, mode):
    rng = random.Random(form + mode)
    inputs = [(x,) for x in floats(form, 200, rng)]
    n = sum(FORMATS[form]) + 1
    for (x,), result in zip(inputs, run(f"sqrt.{mode}.{form} {{d}}, {{a}};", inputs, f"b{n}", [f"b{n}"])):
        value, _ = to_fraction(x, form)
        if value == "nan" or value == "-inf" or (not isinstance(value, str) and value < 0):
            assert to_fraction(result, form)[0] == "nan"
        elif value in ("inf", 0):
            assert result == x
        else:  # r = rounded root: check by squares of the neighbours, with integers
            shift = 2**400
            root = Fraction(math.isqrt(int(value * shift * shift * 2**2000 * 2**2000)), shift * 2**2000)
            exact = root * root == value
            near = root if exact else root + Fraction(1, shift * 2**2001)
            assert result == round_to(near, form, mode), (hex(x), hex(result))


CONVERSIONS = [(to, source, mode) for to in ("f16", "bf16", "f32", "f64") for source in ("f32", "f64", "f16") for mode in ("rn", "rz")
               if to != source and not (to == "bf16" and source != "f32") and FORMATS[to][1] < FORMATS[source][1]]  # fmt: skip


@pytest.mark.parametrize(("to", "source", "mode"), CONVERSIONS)
def test_narrowing(to, source, mode):
    rng = random.Random(to + source)
    inputs = [(x,) for x in floats(source, 256, rng)]
    n, m = sum(FORMATS[to]) + 1, sum(FORMATS[source]) + 1
    for (x,), result in zip(inputs, run(f"cvt.{mode}.{to}.{source} {{d}}, {{a}};", inputs, f"b{n}", [f"b{m}"])):
        value, sign = to_fraction(x, source)
        check_float(result, value if isinstance(value, str) else (value, sign), to, mode, (to, source, hex(x)))


@pytest.mark.parametrize("to", ["f32", "f64"])
@pytest.mark.parametrize("source", ["f16", "f32"])
def test_widening(to, source):
    if to == source:
        return
    rng = random.Random(to + source)
    inputs = [(x,) for x in floats(source, 200, rng)]
    n, m = sum(FORMATS[to]) + 1, sum(FORMATS[source]) + 1
    for (x,), result in zip(inputs, run(f"cvt.{to}.{source} {{d}}, {{a}};", inputs, f"b{n}", [f"b{m}"])):
        value, sign = to_fraction(x, source)
        check_float(result, value if isinstance(value, str) else (value, sign), to, "rn", (to, source, hex(x)))


ROUND_WHOLE = {
    "rni": lambda v: math.floor(v + Fraction(1, 2)) - int((v + Fraction(1, 2)).denominator == 1 and math.floor(v + Fraction(1, 2)) % 2),
    "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil,
}  # fmt: skip


@pytest.mark.parametrize("mode", ROUND_WHOLE)
@pytest.mark.parametrize("to", ["s32", "u32", "s64", "u64", "s16", "u8"])
@pytest.mark.parametrize("source", ["f32", "f64"])
def test_float_to_integer(to, source, mode):
    rng = random.Random(to + source + mode)
    m, n = sum(FORMATS[source]) + 1, bits_of(to)
    inputs = [(x,) for x in floats(source, 150, rng)]
    pack = "<f" if source == "f32" else "<d"
    inputs += [(int.from_bytes(struct.pack(pack, v), "little"),) for v in
               (2.5, 3.5, -2.5, -0.5, 1e9, -1e9, 4e9, 1e19, 1e20, -1e20, 2147483647.5, 255.5, 32767.9)]  # fmt: skip
    low, high = (-(1 << (n - 1)), (1 << (n - 1)) - 1) if to[0] == "s" else (0, (1 << n) - 1)
    for (x,), result in zip(inputs, run(f"cvt.{mode}.{to}.{source} {{d}}, {{a}};", inputs, to, [f"b{m}"])):
        value, _ = to_fraction(x, source)
        if value == "nan":
            continue
        want = high if value == "inf" else low if value == "-inf" else clamp(ROUND_WHOLE[mode](value), low, high)
        assert result == want & ((1 << n) - 1), (to, source, mode, hex(x))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", ["s32", "u32", "s64", "u64", "s8", "u16"])
@pytest.mark.parametrize("to", ["f32", "f64", "f16"])
def test_integer_to_float(to, source, mode):
    rng = random.Random(to + source + mode)
    n = bits_of(source)
    inputs = [(x,) for x in values(n, 150, rng)]
    for (x,), result in zip(
        inputs, run(f"cvt.{mode}.{to}.{source} {{d}}, {{a}};", inputs, f"b{sum(FORMATS[to]) + 1}", [source])
    ):
        value = signed(x, n) if source[0] == "s" else x
        assert result == round_to(Fraction(value), to, mode), (to, source, mode, hex(x))


APPROXIMATE = {
    # name: (function, bound on the relative error, inputs)
    "rcp.approx.f32": (lambda x: 1 / x, 2**-23, (0.01, 100.0)), "sqrt.approx.f32": (math.sqrt, 2**-22.9, (1e-6, 1e6)),
    "rsqrt.approx.f32": (lambda x: 1 / math.sqrt(x), 2**-22.9, (1e-6, 1e6)), "ex2.approx.f32": (lambda x: 2**x, 2**-22.5, (-20, 20)),
    "lg2.approx.f32": (math.log2, 2**-22.6, (2.5, 1e6)), "sin.approx.f32": (math.sin, 2**-18, (0.1, 3.0)),
    "cos.approx.f32": (math.cos, 2**-18, (-1.4, 1.4)), "tanh.approx.f32": (math.tanh, 2**-11, (-4.0, 4.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximations(name):
    meaning, bound, (low, high) = APPROXIMATE[name]
    x = np.linspace(low, high, 300, dtype=np.float32)
    x = x[x != 0]
    got = run(f"{name} {{d}}, {{a}};", [(int(v),) for v in x.view(np.uint32)], "b32", ["b32"])
    result = np.array(got, np.uint32).view(np.float32).astype(np.float64)
    want = np.array([meaning(float(v)) for v in x])
    assert np.all(np.abs(result - want) <= bound * np.abs(want) + 2**-126)


def test_min_max_and_nan():
    nan, one, minus = 0x7FC00000, 0x3F800000, 0x80000000
    inputs = [(nan, one), (one, nan), (nan, nan), (minus, 0), (0, minus)]
    assert run("min.f32 {d}, {a}, {b};", inputs, "b32", ["b32"] * 2) == [one, one, 0x7FFFFFFF, minus, minus]
    assert run("max.f32 {d}, {a}, {b};", inputs, "b32", ["b32"] * 2) == [one, one, 0x7FFFFFFF, 0, 0]
    assert run("max.NaN.f32 {d}, {a}, {b};", inputs[:2], "b32", ["b32"] * 2) == [0x7FFFFFFF] * 2


def test_flushing_and_saturation():
    tiny = 0x00000005
    assert run("add.ftz.f32 {d}, {a}, {b};", [(tiny, tiny)], "b32", ["b32"] * 2) == [0]
    assert run("add.f32 {d}, {a}, {b};", [(tiny, tiny)], "b32", ["b32"] * 2) == [10]
    two, half = 0x40000000, 0x3F000000
    assert run("add.sat.f32 {d}, {a}, {b};", [(two, two), (half, 0), (two | 1 << 31, 0)], "b32", ["b32"] * 2) == [
        0x3F800000,
        half,
        0,
    ]


def test_an_unknown_opcode_is_an_error_with_its_line():
    text = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k()\n{\n.reg .b32 %r<3>;\nfrobnicate.b32 %r1, %r2;\nret;\n}\n"
    with pytest.raises(simt.PTXError, match=r"line 7.*frobnicate"):
        simt.Machine().device(0).launch(text, 1, 1)
    with pytest.raises(simt.PTXError, match=r"line 7.*\.wrong"):
        simt.Machine().device(0).launch(text.replace("frobnicate", "add.wrong.u32"), 1, 1)
