"""Arithmetic of a warp, lane by lane. The functions for one lane are in integer.py, floating.py and convert.py."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from .bits import get, load64, store64
from .convert import convert, convert_pair
from .floating import floating
from .integer import carry, integer
from .rows import CARRY
from .units import unit

FULL = 0xFFFFFFFF


@unit
def calculate_integers(x, regs, line, op, mask):
    """Run an integer, logic or selecting instruction, lane by lane."""
    type_, flags, imm, type2 = get(line, isa.TYPE), get(line, isa.FLAGS), get(line, isa.IMM), get(line, isa.TYPE2)
    ra, rb, rc = regs + get(line, isa.A) * 256, regs + get(line, isa.B) * 256, regs + get(line, isa.C) * 256
    d = regs + get(line, isa.D) * 256
    if op >= isa.ADDC:
        for lane in range(32):
            if (mask >> lane) & 1:
                a, b, c = load64(ra + lane * 8), load64(rb + lane * 8), load64(rc + lane * 8)
                flag = load64(regs + CARRY * 256 + lane * 8)
                value, out = carry(op, type_, flags, a, b, c, flag)
                store64(d + lane * 8, value)
                if flags & isa.CARRY_OUT:
                    store64(regs + CARRY * 256 + lane * 8, out)
        return 0
    if mask == FULL and quick(op, type_, flags, imm, ra, rb, rc, d):
        return 0
    re = regs + get(line, isa.E) * 256
    for lane in range(32):
        if (mask >> lane) & 1:
            k = lane * 8
            value = integer(
                op, type_, type2, flags, imm, load64(ra + k), load64(rb + k), load64(rc + k), load64(re + k)
            )
            store64(d + k, value)
    return 0


@unit
def calculate_floats(x, regs, line, op, mask):
    """Run a floating-point instruction, lane by lane."""
    type_, flags, imm = get(line, isa.TYPE), get(line, isa.FLAGS), get(line, isa.IMM)
    ra, rb, rc = regs + get(line, isa.A) * 256, regs + get(line, isa.B) * 256, regs + get(line, isa.C) * 256
    d = regs + get(line, isa.D) * 256
    for lane in range(32):
        if (mask >> lane) & 1:
            k = lane * 8
            store64(d + k, floating(x, op, type_, flags, imm, load64(ra + k), load64(rb + k), load64(rc + k)))
    return 0


@unit
def calculate_conversions(x, regs, line, op, mask):
    """Run cvt, lane by lane."""
    type_, flags, type2 = get(line, isa.TYPE), get(line, isa.FLAGS), get(line, isa.TYPE2)
    ra, rb, d = regs + get(line, isa.A) * 256, regs + get(line, isa.B) * 256, regs + get(line, isa.D) * 256
    for lane in range(32):
        if (mask >> lane) & 1:
            k = lane * 8
            if op == isa.CVT:
                store64(d + k, convert(x, type_, type2, flags, load64(ra + k)))
            else:
                store64(d + k, convert_pair(x, type_, type2, flags, load64(ra + k), load64(rb + k)))
    return 0


@jit
def quick(op, type_, flags, imm, ra, rb, rc, d):
    """Run one of the most frequent integer instructions for a whole warp, in loops that the compiler unrolls.

    Returns 0, and runs nothing, for other instructions.
    """
    size = type_ & 15
    keep = ~np.uint64(0) >> np.uint64(64 - size * 8)
    if op == isa.ADD and not flags & isa.SAT:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) + load64(rb + k)) & keep)
        return 1
    if op == isa.MUL:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) * load64(rb + k)) & keep)
        return 1
    if op == isa.MAD:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) * load64(rb + k) + load64(rc + k)) & keep)
        return 1
    if op == isa.MOV:
        for k in range(0, 256, 8):
            store64(d + k, load64(ra + k) & keep)
        return 1
    if op == isa.AND:
        for k in range(0, 256, 8):
            store64(d + k, load64(ra + k) & load64(rb + k) & keep)
        return 1
    if op == isa.SUB and not flags & isa.SAT:
        for k in range(0, 256, 8):
            store64(d + k, (load64(ra + k) - load64(rb + k)) & keep)
        return 1
    return 0
