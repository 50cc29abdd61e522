"""cvt: conversions between integers and floats of every width, with PTX's roundings and saturation."""

from __future__ import annotations

import math

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from .bits import f32_of, f64_of, u64_of
from .floating import flush32
from .integer import cut, read
from .rounding import (
    BFLOAT,
    DOUBLE,
    HALF,
    QUARTER5,
    SINGLE,
    TENSOR,
    exact,
    exponent_bits,
    int_bits,
    precision,
    widen,
)


@jit
def form_of(type_):
    """The number that rounding.py gives to the format of a float type."""
    if type_ == isa.F32:
        return SINGLE
    if type_ == isa.F64:
        return DOUBLE
    if type_ == isa.BF16 or type_ == isa.BF16X2:
        return BFLOAT
    if type_ == isa.TF32:
        return TENSOR
    return HALF


@jit
def is_float(type_):
    """Whether a type is that of one float, not of packed floats."""
    return type_ & 0xF0 == isa.F or type_ == isa.BF16 or type_ == isa.TF32


@jit
def value_of(bits, type_):
    """The value of a float's bits as float64, which is exact."""
    if type_ == isa.F32 or type_ == isa.TF32:
        return np.float64(f32_of(np.uint32(bits)))
    if type_ == isa.F64:
        return f64_of(bits)
    return widen(np.int64(bits) & 0xFFFF, form_of(type_))


@jit
def to_whole(x, mode):
    """x rounded to an integer, as float64."""
    if mode == isa.RN:
        return np.rint(x)
    if mode == isa.RZ:
        return np.trunc(x)
    if mode == isa.RM:
        return np.floor(x)
    return np.ceil(x)


@jit
def float_to_int(x, type_, source, mode):
    """x rounded and clamped to an integer type. NaN gives 0, or the top bit if one of the types has 64 bits."""
    size = type_ & 15
    bits = size * 8
    signed = type_ & 0xF0 == isa.S
    if x != x:
        return np.uint64(1) << np.uint64(bits - 1) if size == 8 or source == isa.F64 else np.uint64(0)
    whole = to_whole(x, mode)
    low = -math.ldexp(1.0, bits - 1) if signed else 0.0
    high = math.ldexp(1.0, bits - 1 if signed else bits)
    if whole <= low:
        return cut(np.uint64(1) << np.uint64(bits - 1), type_) if signed else np.uint64(0)
    if whole >= high:
        return (~np.uint64(0) >> np.uint64(64 - bits)) >> np.uint64(1 if signed else 0)
    if whole >= 9223372036854775808.0:
        return np.uint64(whole - 9223372036854775808.0) + (np.uint64(1) << np.uint64(63))
    return cut(np.uint64(np.int64(whole)), type_)


@jit
def quarter4(x, relu):
    """x as e4m3, rounded to nearest even, at most 448. NaN becomes 0x7f."""
    if x != x:
        return 0x7F
    negative = math.copysign(1.0, x) < 0.0
    if relu and negative:
        return 0
    a = abs(x)
    if a > 448.0:
        bits = 0x7E
    elif a < 0.015625:
        bits = np.int64(np.rint(a * 512.0))
    else:
        m, e = math.frexp(a)
        kept = np.int64(np.rint(m * 16.0))  # 8..16
        bits = ((e + 6) << 3) + (kept - 8)
        if bits > 0x7E:
            bits = np.int64(0x7E)
    return bits | 0x80 if negative else bits


@jit
def quarter5(machine, x, relu):
    """x as e5m2, rounded to nearest even, at most 57344. NaN becomes 0x7f."""
    if x != x:
        return 0x7F
    negative = math.copysign(1.0, x) < 0.0
    if relu and negative:
        return 0
    bits = np.int64(exact(machine, isa.FABS, u64_of(abs(x)), 0, 0, QUARTER5, isa.RZ if abs(x) >= 57344.0 else isa.RN))
    bits = min(bits, np.int64(0x7B))
    return bits | 0x80 if negative else bits


@jit
def quarter_value(bits, five):
    """The value of an e5m2 or e4m3 number."""
    if five:
        return widen(bits, QUARTER5)
    sign = -1.0 if bits & 0x80 else 1.0
    e, m = (bits >> 3) & 15, bits & 7
    if e == 15 and m == 7:
        return math.nan
    if e == 0:
        return sign * m / 512.0
    return sign * math.ldexp(8.0 + m, e - 10)


@jit
def finish(machine, bits, type_, flags, x):
    """Apply .ftz, .sat and .relu, if the flags have them, to the bits of a converted float. x: the value converted."""
    if flags & isa.FTZ and type_ == isa.F32:
        bits = flush32(bits)
    if flags & isa.SAT:
        if x != x or x <= 0.0:
            return np.int64(0)
        if x > 1.0:
            return np.int64(exact(machine, isa.FABS, u64_of(1.0), 0, 0, form_of(type_), isa.RN))
    if flags & isa.RELU and x < 0.0:
        return np.int64(0)
    return bits


@jit
def narrow(machine, x, type_, flags):
    """A float64 as the bits of a float type, rounded by the flags."""
    form = form_of(type_)
    mode = flags & isa.ROUND
    bits = np.int64(exact(machine, isa.FABS, u64_of(x), 0, 0, form, mode))
    if flags & isa.FINITE and x == x:
        p, w = precision(form), exponent_bits(form)
        infinity = np.int64(((1 << w) - 1) << (p - 1))
        if bits & (infinity | (infinity - 1)) == infinity:
            bits -= 1
    if type_ == isa.TF32:
        if x != x:
            return np.int64(0x7FFFFFFF)
        bits <<= 13
    return finish(machine, bits, type_, flags, x)


@jit
def convert(machine, to, source, flags, ra):
    """The result of cvt.to.source in one lane."""
    if is_float(source):
        bits = ra
        if flags & isa.FTZ and source == isa.F32:
            bits = np.uint64(flush32(np.int64(ra) & 0xFFFFFFFF))
        x = value_of(bits, source)
        if not is_float(to):
            return filled(float_to_int(x, to, source, flags & isa.ROUND), to)
        if flags & isa.INTEGER:
            if math.isfinite(x):
                x = math.copysign(to_whole(x, flags & isa.ROUND), x)
            return np.uint64(narrow(machine, x, to, flags & ~isa.ROUND))
        if to == isa.F64 and source == isa.F64:
            if flags & isa.SAT:
                return np.uint64(finish(machine, np.int64(ra), to, flags, x))
            return ra
        if to == isa.F64 and x == x:
            return np.uint64(finish(machine, np.int64(u64_of(x)), to, flags, x))
        return np.uint64(narrow(machine, x, to, flags))
    value = read(ra, source)
    if is_float(to):
        bits = np.int64(int_bits(value, source & 0xF0 != isa.S, form_of(to), flags & isa.ROUND))
        if flags & isa.SAT:
            above = value > 1 or (value < 0 and source & 0xF0 != isa.S)  # below 0: 2**63 and more
            bits = finish(machine, bits, to, flags, 2.0 if above else np.float64(value))
        return np.uint64(bits)
    if flags & isa.SAT:
        return filled(saturate(value, to, source), to)
    return filled(np.uint64(value), to)


@jit
def filled(bits, type_):
    """An integer result extended to a register that may be wider, by its sign or zeros."""
    return np.uint64(read(bits, type_))


@jit
def saturate(value, to, source):
    """An integer clamped to another integer type's range."""
    size = to & 15
    beyond = source & 0xF0 != isa.S and value < 0  # then the value stands for an unsigned number from 2**63 on
    if to & 0xF0 == isa.S:
        high = np.int64((np.uint64(1) << np.uint64(size * 8 - 1)) - np.uint64(1))
        if beyond or value > high:
            value = high
        elif value < -high - 1:
            value = -high - 1
    elif value < 0 and not beyond:
        value = np.int64(0)
    elif size < 8:
        high = np.int64((np.uint64(1) << np.uint64(size * 8)) - np.uint64(1))
        if beyond or value > high:
            value = high
    return cut(np.uint64(value), to)


@jit
def convert_pair(machine, to, source, flags, ra, rb):
    """The result of cvt to two packed numbers, made of ra (high) and rb (low), or from two packed 8-bit floats."""
    if source == isa.E4M3X2 or source == isa.E5M2X2:
        result = np.int64(0)
        for i in range(2):
            x = quarter_value((np.int64(ra) >> (8 * i)) & 0xFF, source == isa.E5M2X2)
            part = np.int64(exact(machine, isa.FABS, u64_of(x), 0, 0, HALF, isa.RN))
            if flags & isa.RELU and x < 0.0:
                part = np.int64(0)
            result |= part << (16 * i)
        return np.uint64(result)
    if source == isa.F32:
        high, low = value_of(ra, isa.F32), value_of(rb, isa.F32)
    else:  # the source is f16x2, the target two 8-bit floats
        high, low = widen((np.int64(ra) >> 16) & 0xFFFF, HALF), widen(np.int64(ra) & 0xFFFF, HALF)
    relu = flags & isa.RELU != 0
    if to == isa.E4M3X2:
        return np.uint64(np.int64(quarter4(high, relu)) << 8 | np.int64(quarter4(low, relu)))
    if to == isa.E5M2X2:
        return np.uint64(np.int64(quarter5(machine, high, relu)) << 8 | np.int64(quarter5(machine, low, relu)))
    single = isa.BF16 if to == isa.BF16X2 else isa.F16
    return np.uint64(narrow(machine, high, single, flags) << 16 | narrow(machine, low, single, flags))
