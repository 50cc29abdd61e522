"""Exact rounding of a sum of two float64 numbers to any of PTX's formats, in any rounding mode.

A result is first computed as (hi + lo) times a power of two, where lo is the rounding error of hi. Integers then round
it in any mode to any format. Of lo only the sign counts.
"""

from __future__ import annotations

import math

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from .bits import f64_of, fma64, u64_of
from .units import unit

# ---- formats ----
HALF, BFLOAT, SINGLE, DOUBLE, TENSOR, QUARTER5 = range(6)
SUBNORMAL = (2.0**-24, 2.0**-133, 2.0**-149, 2.0**-1074, 2.0**-136, 2.0**-16)  # each format's least number above 0


@jit
def precision(form):
    """The number of bits of a format's significand, including the hidden bit."""
    return (11, 8, 24, 53, 11, 3)[form]


@jit
def least(form):
    """The exponent of a format's least subnormal number."""
    return (-24, -133, -149, -1074, -136, -16)[form]


@jit
def exponent_bits(form):
    """The number of bits of a format's exponent."""
    return (5, 8, 8, 11, 8, 5)[form]


@jit
def canonical_nan(form):
    """The bits of PTX's canonical NaN in a format."""
    p = precision(form)
    if form == HALF:
        return 0x7FFF
    if form == BFLOAT:
        return 0x7FFF
    if form == SINGLE:
        return 0x7FFFFFFF
    if form == DOUBLE:
        return 0x7FF8000000000000
    if form == TENSOR:
        return 0x7FFFFFFF >> 13
    return ((1 << exponent_bits(form)) - 1) << (p - 1) | ((1 << (p - 1)) - 1)


@jit
def two_sum(a, b):
    """Add two numbers. Returns (a + b rounded, the rounding error)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@jit
def scaled(x):
    """x as (m, e) with m in [0.5, 1) and x = m * 2**e. Zero, infinity and NaN have e = 0."""
    if x == 0.0 or not math.isfinite(x):
        return x, 0
    return math.frexp(x)


@jit
def overflow_bits(negative, form, mode):
    """The bits of a value beyond a format's largest number: infinity or the largest number, by the rounding mode."""
    p, w = precision(form), exponent_bits(form)
    infinity = ((1 << w) - 1) << (p - 1)
    away = mode == isa.RN or mode == isa.RNA or (mode == isa.RP and not negative) or (mode == isa.RM and negative)
    bits = infinity if away else infinity - 1
    return bits | (1 << (p - 1 + w)) if negative else bits


@jit
def round_pair(hi, lo, shift, form, mode):
    """(hi + lo) * 2**shift, rounded to a format, as bits in an int64. A negative float64 gives a negative int64."""
    p, w = precision(form), exponent_bits(form)
    sign = 1 << (p - 1 + w)
    if hi != hi:
        return canonical_nan(form)
    raw = u64_of(hi)
    negative = raw >> 63 != 0
    if math.isinf(hi):
        bits = ((1 << w) - 1) << (p - 1)
        return bits | sign if negative else bits
    if hi == 0.0:
        return sign if negative else 0
    m, e = math.frexp(hi)
    mantissa = int(abs(m) * 9007199254740992.0)  # 53 bits
    unit = e - 53 + shift - 2  # exponent of the last place of `mantissa << 2`
    mantissa <<= 2
    if lo != 0.0:
        mantissa += 1 if (lo < 0.0) == negative else -1
    length = 55 if mantissa >= 1 << 54 else 54
    quantum = max(unit + length - p, least(form))
    drop = quantum - unit
    if drop <= 0:
        kept, rest, half = mantissa << -drop, 0, 1
    elif drop > 60:
        kept, rest, half = 0, 1, 2
    else:
        kept, rest, half = mantissa >> drop, mantissa & ((1 << drop) - 1), 1 << (drop - 1)
    up = False
    if mode == isa.RN:
        up = rest > half or (rest == half and kept & 1 == 1 and rest != 0)
    elif mode == isa.RNA:
        up = rest >= half
    elif mode == isa.RM:
        up = negative and rest != 0
    elif mode == isa.RP:
        up = not negative and rest != 0
    if up:
        kept += 1
    top = 1 << (p - 1)
    if kept < top:
        bits = kept
    elif quantum - least(form) + 1 >= (1 << w) - 1:  # before the exponent is shifted beyond 64 bits
        return overflow_bits(negative, form, mode)
    else:
        bits = ((quantum - least(form) + 1) << (p - 1)) + (kept - top)
        if bits >= ((1 << w) - 1) << (p - 1):
            return overflow_bits(negative, form, mode)
    return bits | sign if negative else bits


@jit
def widen(bits, form):
    """The value of a format's bits as float64, which is exact."""
    p, w, whole = precision(form), exponent_bits(form), np.int64(bits)
    fraction = whole & ((1 << (p - 1)) - 1)
    exponent = (whole >> (p - 1)) & ((1 << w) - 1)
    if exponent == (1 << w) - 1:
        value = math.inf if fraction == 0 else math.nan
    elif exponent == 0:
        value = float(fraction) * SUBNORMAL[form]
    else:
        value = f64_of(np.uint64((exponent - (1 << (w - 1)) + 1024) << 52 | fraction << (53 - p)))
    return -value if (whole >> (p - 1 + w)) & 1 else value


@jit
def signed_zero_sum(a, b, mode):
    """The zero of a sum a + b that is exactly zero. Its sign depends on the rounding mode."""
    if a == 0.0 and b == 0.0 and u64_of(a) >> 63 == u64_of(b) >> 63:
        return a
    return -0.0 if mode == isa.RM else 0.0


@jit
def fma_bits(a, b, c, form, mode):
    """a * b + c, rounded once to a format."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return round_pair(fma64(a, b, c), 0.0, 0, form, mode)
    if a == 0.0 or b == 0.0:
        product = a * b
        total = product + c
        if total == 0.0:
            total = signed_zero_sum(product, c, mode)
        return round_pair(total, 0.0, 0, form, mode)
    ma, ea = math.frexp(a)
    mb, eb = math.frexp(b)
    shift = ea + eb
    product = ma * mb
    lost = fma64(ma, mb, -product)
    if c == 0.0:
        return round_pair(product, lost, shift, form, mode)
    mc, ec = math.frexp(c)
    if ec - shift > 300:  # then the product only decides on which side of c the sum lies
        return round_pair(mc, product, ec, form, mode)
    if ec - shift < -300:
        if lost != 0.0:
            return round_pair(product, lost, shift, form, mode)
        return round_pair(product, mc, shift, form, mode)
    other = math.ldexp(mc, ec - shift)
    s, t = two_sum(product, other)
    u, v = two_sum(t, lost)
    hi, r = two_sum(s, u)
    lo = r + v
    if hi == 0.0:
        hi, lo = lo, 0.0
    if hi == 0.0:
        return round_pair(-0.0 if mode == isa.RM else 0.0, 0.0, 0, form, mode)
    return round_pair(hi, lo, shift, form, mode)


@jit
def mul_bits(a, b, form, mode):
    """a * b, rounded once to a format."""
    if not (math.isfinite(a) and math.isfinite(b)) or a == 0.0 or b == 0.0:
        return round_pair(a * b, 0.0, 0, form, mode)
    return fma_bits(a, b, math.copysign(0.0, a * b), form, mode)


@jit
def div_bits(a, b, form, mode):
    """a / b, rounded once to a format."""
    if not (math.isfinite(a) and math.isfinite(b)) or a == 0.0 or b == 0.0:
        return round_pair(a / b, 0.0, 0, form, mode)
    ma, ea = math.frexp(a)
    mb, eb = math.frexp(b)
    q = ma / mb
    rest = fma64(-q, mb, ma)
    return round_pair(q, rest if mb > 0.0 else -rest, ea - eb, form, mode)


@jit
def sqrt_bits(a, form, mode):
    """The square root of a, rounded once to a format."""
    if not math.isfinite(a) or a <= 0.0:
        return round_pair(math.sqrt(a) if a >= 0.0 else (a if a == 0.0 else math.nan), 0.0, 0, form, mode)
    m, e = math.frexp(a)
    if e & 1:
        m, e = m * 0.5, e + 1
    r = math.sqrt(m)
    return round_pair(r, fma64(-r, r, m), e // 2, form, mode)


@jit
def int_bits(value, unsigned, form, mode):
    """A 64-bit integer, rounded once to a format. value: int64, or uint64 bits if `unsigned`."""
    if unsigned and value < 0:
        low = value & 0x7FFFFFFF
        top = (value >> 31) & 0x1FFFFFFFF
        hi, lo = two_sum(float(top) * 2147483648.0, float(low))
        return round_pair(hi, lo, 0, form, mode)
    low = value & 0x7FFFFFFF
    hi, lo = two_sum(float(value >> 31) * 2147483648.0, float(low))
    return round_pair(hi, lo, 0, form, mode)


@unit
def exact(x, op, ia, ib, ic, form, mode):
    """Run add, sub, mul, fma, div, rcp or sqrt on float64 bits, rounded once to a format. FABS only rounds."""
    a, b = f64_of(np.uint64(ia)), f64_of(np.uint64(ib))
    if op == isa.FADD:
        return fma_bits(a, 1.0, b, form, mode)
    if op == isa.FSUB:
        return fma_bits(a, 1.0, -b, form, mode)
    if op == isa.FFMA:
        return fma_bits(a, b, f64_of(np.uint64(ic)), form, mode)
    if op == isa.FMUL:
        return mul_bits(a, b, form, mode)
    if op == isa.FDIV:
        return div_bits(a, b, form, mode)
    if op == isa.FRCP:
        return div_bits(1.0, a, form, mode)
    if op == isa.FSQRT:
        return sqrt_bits(a, form, mode)
    return round_pair(a, 0.0, 0, form, mode)
