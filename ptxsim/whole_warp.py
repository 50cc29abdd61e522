"""The most frequent instructions, for all 32 lanes at once, in loops that the compiler turns into vector instructions.

Each function returns False, and computes nothing, for other instructions: arithmetic.py then goes lane by lane. Lanes
that do not take part are computed too; no instruction here can fail. Operands and results are rows of 64 bits a lane.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from .bits import f32_of, f64_of, fma32, fma64, load64, store64, u32_of, u64_of
from .floating import NAN32

# three bits for each of eq, ne, lt, le, gt, ge: whether it holds if the first operand is less, equal, greater (bit 2)
HOLDS = 0b010 | 0b101 << 3 | 0b001 << 6 | 0b011 << 9 | 0b100 << 12 | 0b110 << 15


@jit
def wide(bits, gone, signed):
    """A number without its high `gone` bits, extended to 64 bits by its sign or zeros, as int64."""
    up = bits << np.uint64(gone)
    return np.int64(up) >> np.int64(gone) if signed else np.int64(up >> np.uint64(gone))


@jit
def integers(op, type_, flags, imm, ra, rb, rc, d):
    """Run an integer instruction. ra, rb, rc, d: the addresses of rows."""
    gone = 64 - (type_ & 15) * 8
    signed = type_ & 0xF0 == isa.S
    keep = ~np.uint64(0) >> np.uint64(gone)
    if op == isa.MOV:
        for k in range(0, 256, 8):
            store64(d + k, load64(ra + k) & keep)
    elif op == isa.ADD and not flags & isa.SAT:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) + load64(rb + k)) & keep)
    elif op == isa.SUB and not flags & isa.SAT:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) - load64(rb + k)) & keep)
    elif op == isa.MUL:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) * load64(rb + k)) & keep)
    elif op == isa.MAD:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) * load64(rb + k) + load64(rc + k)) & keep)
    elif op == isa.MULWIDE and gone >= 32:
        wider = ~np.uint64(0) >> np.uint64(2 * gone - 64)
        for k in range(0, 256, 8):
            product = wide(load64(ra + k), gone, signed) * wide(load64(rb + k), gone, signed)
            store64(d + k, np.uint64(product) & wider)
    elif op == isa.AND:
        for k in range(0, 256, 8):
            store64(d + k, load64(ra + k) & load64(rb + k) & keep)
    elif op == isa.OR:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) | load64(rb + k)) & keep)
    elif op == isa.XOR:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) ^ load64(rb + k)) & keep)
    elif op == isa.SHL:
        for k in range(0, 256, 8):
            n = load64(rb + k) & np.uint64(0xFFFFFFFF)
            shifted = (load64(ra + k) << (n & np.uint64(63))) & keep
            store64(d + k, shifted if n < np.uint64(64 - gone) else np.uint64(0))
    elif op == isa.SHR and signed:
        for k in range(0, 256, 8):
            n = min(load64(rb + k) & np.uint64(0xFFFFFFFF), np.uint64(63))
            store64(d + k, np.uint64(wide(load64(ra + k), gone, True) >> np.int64(n)) & keep)
    elif op == isa.SHR:
        for k in range(0, 256, 8):
            n = load64(rb + k) & np.uint64(0xFFFFFFFF)
            shifted = (load64(ra + k) & keep) >> (n & np.uint64(63))
            store64(d + k, shifted if n < np.uint64(64 - gone) else np.uint64(0))
    elif op == isa.SELP:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) if load64(rc + k) & np.uint64(1) else load64(rb + k)) & keep)
    elif op == isa.SETP:
        holds = HOLDS >> 3 * (imm if imm < 6 else imm - 4)
        less, equal, more = holds & 1, (holds >> 1) & 1, (holds >> 2) & 1
        # without its sign bit flipped, an unsigned number would be compared as a signed one
        flip = np.int64(0) if signed and imm < 6 else np.int64(1) << 63
        for k in range(0, 256, 8):
            a, b = wide(load64(ra + k), gone, signed) ^ flip, wide(load64(rb + k), gone, signed) ^ flip
            store64(d + k, np.uint64(less if a < b else (more if a > b else equal)))
    else:
        return False
    return True


@jit
def bits32(z):
    """The bits of a float32; for any NaN, the bits of the NaN that PTX instructions return."""
    return np.uint64(NAN32) if z != z else np.uint64(u32_of(z))


@jit
def float32(row):
    """The float32 of one lane. row: the address of the lane's 64 bits in a row."""
    return f32_of(np.uint32(load64(row)))


@jit
def floats(op, type_, ra, rb, rc, d):
    """Run an instruction of float32 or float64 without flags: rounded to nearest."""
    if type_ == isa.F32:
        if op == isa.FADD:
            for k in range(0, 256, 8):
                store64(d + k, bits32(float32(ra + k) + float32(rb + k)))
        elif op == isa.FSUB:
            for k in range(0, 256, 8):
                store64(d + k, bits32(float32(ra + k) - float32(rb + k)))
        elif op == isa.FMUL:
            for k in range(0, 256, 8):
                store64(d + k, bits32(float32(ra + k) * float32(rb + k)))
        elif op == isa.FFMA:
            for k in range(0, 256, 8):
                store64(d + k, bits32(fma32(float32(ra + k), float32(rb + k), float32(rc + k))))
        else:
            return False
        return True
    if type_ != isa.F64:
        return False
    if op == isa.FADD:
        for k in range(0, 256, 8):
            store64(d + k, u64_of(f64_of(load64(ra + k)) + f64_of(load64(rb + k))))
    elif op == isa.FSUB:
        for k in range(0, 256, 8):
            store64(d + k, u64_of(f64_of(load64(ra + k)) - f64_of(load64(rb + k))))
    elif op == isa.FMUL:
        for k in range(0, 256, 8):
            store64(d + k, u64_of(f64_of(load64(ra + k)) * f64_of(load64(rb + k))))
    elif op == isa.FFMA:
        for k in range(0, 256, 8):
            store64(d + k, u64_of(fma64(f64_of(load64(ra + k)), f64_of(load64(rb + k)), f64_of(load64(rc + k)))))
    else:
        return False
    return True


@jit
def widths(to, source, ra, d):
    """Run cvt without flags between integers: only the width or the sign changes."""
    if not whole_number(to) or not whole_number(source):
        return False
    gone, left = 64 - (source & 15) * 8, 64 - (to & 15) * 8
    signed, result_signed = source & 0xF0 == isa.S, to & 0xF0 == isa.S
    for k in range(0, 256, 8):
        value = np.uint64(wide(load64(ra + k), gone, signed))
        store64(d + k, np.uint64(wide(value, left, result_signed)))
    return True


@jit
def whole_number(type_):
    """Whether a register of a type holds one integer: .u, .s or .b of 8 to 64 bits."""
    kind = type_ & 0xF0
    return (kind == isa.U or kind == isa.S or kind == isa.BITS) and type_ < 256
