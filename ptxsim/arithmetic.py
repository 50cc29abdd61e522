"""Arithmetic of a warp, lane by lane. The functions for one lane are in integer.py, floating.py and convert.py.

Frequent instructions run for all lanes at once (whole_warp.py).
"""

from __future__ import annotations

from kernel_cache.compile import inner as jit

from . import isa, whole_warp
from . import state as s
from .bits import get, load64, store64
from .convert import convert, convert_pair
from .floating import floating
from .integer import carry, integer
from .rows import CARRY
from .units import unit

FULL = 0xFFFFFFFF
RESULTS = 256 * 8  # the place in the scratch table for the results of all lanes, if some lanes do not take part


@jit
def place_of(x, d, mask):
    """Where a whole warp's results go: to the row d, or if some lanes do not take part, to the scratch table."""
    return d if mask == FULL else get(x, s.SCRATCH) + RESULTS


@jit
def keep(x, d, mask):
    """Copy the results of the lanes in mask from the scratch table to the row d, unless they are there already."""
    if mask == FULL:
        return
    found = get(x, s.SCRATCH) + RESULTS
    for lane in range(32):
        if (mask >> lane) & 1:
            store64(d + lane * 8, load64(found + lane * 8))


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
    if whole_warp.integers(op, type_, flags, imm, ra, rb, rc, place_of(x, d, mask)):
        keep(x, d, mask)
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
    if flags == 0 and whole_warp.floats(op, type_, ra, rb, rc, place_of(x, d, mask)):
        keep(x, d, mask)
        return 0
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
    if op == isa.CVT and flags == 0 and whole_warp.widths(type_, type2, ra, place_of(x, d, mask)):
        keep(x, d, mask)
        return 0
    for lane in range(32):
        if (mask >> lane) & 1:
            k = lane * 8
            if op == isa.CVT:
                store64(d + k, convert(x, type_, type2, flags, load64(ra + k)))
            else:
                store64(d + k, convert_pair(x, type_, type2, flags, load64(ra + k), load64(rb + k)))
    return 0
