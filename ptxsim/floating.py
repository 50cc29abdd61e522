"""The floating-point instructions of one lane.

The CPU's own arithmetic computes float32 and float64 rounded to nearest; rounding.py computes everything else. NaN
results of 32 and 16 bits are PTX's canonical NaN. An approximation (.approx) is the float64 function rounded once,
which is within every error bound of the PTX ISA.
"""

from __future__ import annotations

import math

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from .bits import f32_of, f64_of, fma32, fma64, u32_of, u64_of
from .rounding import BFLOAT, DOUBLE, HALF, SINGLE, exact, widen

NAN32 = 0x7FFFFFFF


@jit
def flush32(bits):
    """The bits of a float32. A subnormal number becomes a zero of the same sign."""
    return bits & 0x80000000 if bits & 0x7F800000 == 0 else bits


@jit
def flush16(bits, form):
    """The bits of a float16 or bfloat16. A subnormal number becomes a zero of the same sign."""
    return bits & 0x8000 if bits & (0x7C00 if form == HALF else 0x7F80) == 0 else bits


@jit
def ordered(a, b):
    """The order of two floats: -1 if a is less than b, 0 if they are equal, 1 if a is more, 2 if one is a NaN."""
    if a != a or b != b:
        return 2
    return -1 if a < b else (1 if a > b else 0)


@jit
def float_compare(op, a, b):
    """Compare two floats. op: the number of eq, ne, lt, le, gt, ge, their unordered forms (equ to geu), num or nan."""
    order = ordered(a, b)
    if op == 16:
        return order != 2
    if op == 17:
        return order == 2
    if order == 2:
        return op >= 10
    if op >= 10:
        op -= 10
    if op == 0:
        return order == 0
    if op == 1:
        return order != 0
    if op == 2:
        return order < 0
    if op == 3:
        return order <= 0
    if op == 4:
        return order > 0
    return order >= 0


@jit
def test_property(kind, bits, exponent, fraction):
    """The result of testp. kind: the number of finite, infinite, number, notanumber, normal or subnormal.

    exponent: 0 if all bits of the exponent are 0, 2 if all are 1, else 1.
    """
    if kind == 0:
        return exponent != 2
    if kind == 1:
        return exponent == 2 and fraction == 0
    if kind == 2:
        return exponent != 2 or fraction == 0
    if kind == 3:
        return exponent == 2 and fraction != 0
    if kind == 4:
        return exponent == 1
    return exponent == 0 and fraction != 0


@jit
def least_most(op, a, b, flags):
    """min or max of two float64 numbers that hold narrower values. -0 is less than +0.

    A NaN is ignored unless the flags have .NaN.
    """
    if a != a or b != b:
        if flags & isa.NAN or (a != a and b != b):
            return math.nan
        result = b if a != a else a
    elif flags & isa.XORSIGN:
        x, y = abs(a), abs(b)
        result = min(x, y) if op == isa.FMIN else max(x, y)
    elif a == 0.0 and b == 0.0:
        negative = math.copysign(1.0, a) < 0.0 or math.copysign(1.0, b) < 0.0
        both = math.copysign(1.0, a) < 0.0 and math.copysign(1.0, b) < 0.0
        result = -0.0 if (negative if op == isa.FMIN else both) else 0.0
    else:
        result = min(a, b) if op == isa.FMIN else max(a, b)
    if flags & isa.XORSIGN:
        sign = math.copysign(1.0, a) * math.copysign(1.0, b)
        result = math.copysign(result, sign)
    return result


@jit
def approximate(op, a):
    """rcp, sqrt, rsqrt, sin, cos, lg2, ex2, tanh in float64, with PTX's special values."""
    if op == isa.FRCP:
        return 1.0 / a
    if op == isa.FSQRT:
        if a < 0.0:
            return math.nan
        return math.sqrt(a)
    if op == isa.FRSQRT:
        if a == 0.0:
            return math.copysign(math.inf, a)
        if a < 0.0:
            return math.nan
        return 1.0 / math.sqrt(a)
    if op == isa.FSIN:
        return math.sin(a) if math.isfinite(a) else math.nan
    if op == isa.FCOS:
        return math.cos(a) if math.isfinite(a) else math.nan
    if op == isa.FLG2:
        if a == 0.0:
            return -math.inf
        if a < 0.0 or a != a:
            return math.nan
        return math.log2(a) if a != math.inf else a
    if op == isa.FEX2:
        if a != a:
            return a
        if a > 16384.0:
            return math.inf
        if a < -16384.0:
            return 0.0
        return 2.0**a
    return math.tanh(a)


@jit
def single(x, op, flags, imm, ra, rb, rc):
    """The result of a float32 instruction. Operands and result are bits."""
    ia, ib, ic = np.int64(ra) & 0xFFFFFFFF, np.int64(rb) & 0xFFFFFFFF, np.int64(rc) & 0xFFFFFFFF
    if flags & isa.FTZ:
        ia, ib, ic = flush32(ia), flush32(ib), flush32(ic)
    if op == isa.FABS:
        return np.uint64(ia & 0x7FFFFFFF)
    if op == isa.FNEG:
        return np.uint64(ia ^ 0x80000000)
    if op == isa.FCOPYSIGN:
        return np.uint64((ia & 0x80000000) | (ib & 0x7FFFFFFF))
    if op == isa.FTESTP:
        e = (ia >> 23) & 0xFF
        return np.uint64(test_property(imm, ia, 2 if e == 0xFF else (1 if e else 0), ia & 0x7FFFFF))
    if op == isa.FSLCT:  # selects the bits of a or b by the sign of c
        return ra & np.uint64(0xFFFFFFFF) if f32_of(np.uint32(ic)) >= np.float32(0) else rb & np.uint64(0xFFFFFFFF)
    a, b, c = f32_of(np.uint32(ia)), f32_of(np.uint32(ib)), f32_of(np.uint32(ic))
    if op == isa.FSETP or op == isa.FSET:
        return np.uint64(float_compare(imm, a, b))
    mode = flags & isa.ROUND
    bits = np.int64(0)
    if op == isa.FMIN or op == isa.FMAX:
        z = np.float32(least_most(op, np.float64(a), np.float64(b), flags))
        bits = NAN32 if z != z else np.int64(u32_of(z))
    elif mode == isa.RN and not flags & isa.APPROX:
        if op == isa.FADD:
            z = a + b
        elif op == isa.FSUB:
            z = a - b
        elif op == isa.FMUL:
            z = a * b
        elif op == isa.FFMA:
            z = fma32(a, b, c)
        elif op == isa.FDIV:
            z = a / b
        elif op == isa.FRCP:
            z = np.float32(1) / a
        else:
            z = np.float32(math.sqrt(np.float64(a))) if a >= np.float32(0) else (a if a == 0 else np.float32(math.nan))
        bits = NAN32 if z != z else np.int64(u32_of(z))
    elif flags & isa.APPROX:
        if op == isa.FDIV:
            y = np.float64(a) / np.float64(b)
        else:
            y = approximate(op, np.float64(a))
        z = np.float32(y)
        bits = NAN32 if z != z else np.int64(u32_of(z))
    else:
        wide_a, wide_b, wide_c = u64_of(np.float64(a)), u64_of(np.float64(b)), u64_of(np.float64(c))
        bits = exact(x, op, wide_a, wide_b, wide_c, SINGLE, mode)
    if flags & isa.FTZ:
        bits = flush32(bits)
    if flags & isa.SAT:
        z = f32_of(np.uint32(bits))
        if z != z or z <= np.float32(0):
            bits = np.int64(0)
        elif z > np.float32(1):
            bits = np.int64(0x3F800000)
    if flags & isa.RELU:
        z = f32_of(np.uint32(bits))
        if z < np.float32(0):
            bits = np.int64(0)
    return np.uint64(bits)


@jit
def double(x, op, flags, imm, ra, rb, rc):
    """The result of a float64 instruction. Operands and result are bits."""
    top = np.uint64(1) << np.uint64(63)
    if op == isa.FABS:
        return ra & ~top
    if op == isa.FNEG:
        return ra ^ top
    if op == isa.FCOPYSIGN:
        return (ra & top) | (rb & ~top)
    if op == isa.FTESTP:
        e = np.int64(ra >> np.uint64(52)) & 0x7FF
        fraction = np.int64(ra) & 0xFFFFFFFFFFFFF
        return np.uint64(test_property(imm, 0, 2 if e == 0x7FF else (1 if e else 0), fraction))
    a, b, c = f64_of(ra), f64_of(rb), f64_of(rc)
    if op == isa.FSLCT:
        sign = np.int64(rc) & 0xFFFFFFFF
        sign = flush32(sign) if flags & isa.FTZ else sign
        return ra if f32_of(np.uint32(sign)) >= np.float32(0) else rb
    if op == isa.FSETP or op == isa.FSET:
        return np.uint64(float_compare(imm, a, b))
    mode = flags & isa.ROUND
    z = 0.0
    if op == isa.FMIN or op == isa.FMAX:
        z = least_most(op, a, b, flags)
    elif mode == isa.RN:
        if op == isa.FADD:
            z = a + b
        elif op == isa.FSUB:
            z = a - b
        elif op == isa.FMUL:
            z = a * b
        elif op == isa.FFMA:
            z = fma64(a, b, c)
        elif op == isa.FDIV:
            z = a / b
        elif op == isa.FRCP or op == isa.FRSQRT:
            if flags & isa.FTZ and abs(a) < 2.2250738585072014e-308:  # rcp.approx.ftz.f64, rsqrt.approx.ftz.f64
                a = math.copysign(0.0, a)
            z = approximate(op, a)
            if flags & isa.APPROX and flags & isa.FTZ:  # these forms use only the high word of the result
                if abs(z) < 2.2250738585072014e-308:
                    z = math.copysign(0.0, z)
                z = f64_of(u64_of(z) & ~np.uint64(0xFFFFFFFF)) if math.isfinite(z) else z
        else:
            z = approximate(op, a)
    else:
        return np.uint64(exact(x, op, ra, rb, rc, DOUBLE, mode))
    return u64_of(z)


@jit
def short(x, op, form, flags, imm, ia, ib, ic):
    """The result of a float16 or bfloat16 instruction. Operands and result are bits in int64."""
    top = 0x8000
    if flags & isa.FTZ:
        ia, ib, ic = flush16(ia, form), flush16(ib, form), flush16(ic, form)
    if op == isa.FABS:
        return ia & 0x7FFF
    if op == isa.FNEG:
        return ia ^ top
    a, b, c = widen(ia, form), widen(ib, form), widen(ic, form)
    if op == isa.FSETP or op == isa.FSET:
        return np.int64(float_compare(imm, a, b))
    bits = np.int64(0)
    if op == isa.FADD or op == isa.FSUB or op == isa.FMUL or op == isa.FFMA:
        bits = exact(x, op, u64_of(a), u64_of(b), u64_of(c), form, isa.RN)
    elif op == isa.FMIN or op == isa.FMAX:
        bits = exact(x, isa.FABS, u64_of(least_most(op, a, b, flags)), 0, 0, form, isa.RN)
    else:
        bits = exact(x, isa.FABS, u64_of(approximate(op, a)), 0, 0, form, isa.RN)
    if flags & isa.FTZ:
        bits = flush16(bits, form)
    if flags & (isa.SAT | isa.RELU):
        z = widen(bits, form)
        if flags & isa.RELU and z < 0.0:
            bits = np.int64(0)
        if flags & isa.SAT:
            if z != z or z <= 0.0:
                bits = np.int64(0)
            elif z > 1.0:
                bits = np.int64(0x3C00 if form == HALF else 0x3F80)
    return bits


@jit
def floating(x, op, type_, flags, imm, ra, rb, rc):
    """The result of a floating-point instruction as uint64. A predicate is 0 or 1.

    A comparison of packed numbers gives two predicates, in bit 0 and bit 1.
    """
    if type_ == isa.F32:
        return single(x, op, flags, imm, ra, rb, rc)
    if type_ == isa.F64:
        return double(x, op, flags, imm, ra, rb, rc)
    form = BFLOAT if type_ == isa.BF16 or type_ == isa.BF16X2 else HALF
    ia, ib, ic = np.int64(ra), np.int64(rb), np.int64(rc)
    low = short(x, op, form, flags, imm, ia & 0xFFFF, ib & 0xFFFF, ic & 0xFFFF)
    if type_ & 15 == 2:
        return np.uint64(low)
    high = short(x, op, form, flags, imm, (ia >> 16) & 0xFFFF, (ib >> 16) & 0xFFFF, (ic >> 16) & 0xFFFF)
    if op == isa.FSETP or op == isa.FSET:
        return np.uint64(low | high << 1)
    return np.uint64(low | high << 16)
