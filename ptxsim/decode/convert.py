"""Lowers moves, conversions of numbers, and conversions of addresses between spaces."""

from __future__ import annotations

from .. import isa
from ..lowering import Lowering
from ..syntax import Vector
from .mods import DIRECTED, HALVES, INTEGERS, NEAREST, SPACES, Mods, check_type, is_float

WHOLE = {"rni": isa.RN, "rzi": isa.RZ, "rmi": isa.RM, "rpi": isa.RP}


def is_space(low: Lowering, m: Mods) -> None:
    """Lower isspacep."""
    own = "shared::cluster" not in m.left  # whether only the own block's shared memory counts
    space = m.choose(SPACES)
    m.take_one("u32", "u64")
    m.done(2)
    low.emit(isa.ISSPACEP, isa.U64, d=m.dest(isa.PREDICATE), a=m.row(1), imm=space, flags=int(own))


def move(low: Lowering, m: Mods) -> None:
    """Lower mov, also of vectors."""
    (type_,) = m.types()
    m.done(2)
    to, source = m.operands
    if isinstance(to, Vector):
        part = (type_ & 15) // len(to.items)
        rows = [m.result(item, isa.BITS | part) for item in to.items]
        low.emit(isa.UNPACK, type_, a=low.row(source, type_), imm=part, items=rows)
    elif isinstance(source, Vector):
        rows = [low.row(item) for item in source.items]
        low.emit(isa.PACK, type_, d=m.dest(type_), imm=(type_ & 15) // len(rows), items=rows)
    else:
        low.emit(isa.MOV, type_, d=m.dest(type_), a=low.row(source, type_))


def to_address(low: Lowering, m: Mods) -> None:
    """Lower cvta, which converts an address from a space to the generic space, or back.

    Generic addresses of shared memory, local memory and kernels' parameters lie in windows. All other generic addresses
    equal those in their space.
    """
    back = m.take_one("to")
    space = m.choose(SPACES)
    (type_,) = m.types()
    m.done(2)
    base = {isa.SHARED: isa.SHARED_WINDOW, isa.LOCAL: isa.LOCAL_WINDOW}.get(space, 0)
    if space == isa.PARAM and low.current is not None and not low.current.entry:
        base = isa.LOCAL_WINDOW
    if space == isa.PARAM and base == 0 and not back:  # a 32-bit register holds the address without its window
        low.emit(isa.OR, type_, d=m.dest(type_), a=m.row(1, type_), b=low.constant(isa.PARAM_WINDOW))
    elif base == 0:
        low.emit(isa.MOV, type_, d=m.dest(type_), a=m.row(1, type_))
    else:
        low.emit(isa.SUB if back else isa.ADD, type_, d=m.dest(type_), a=m.row(1, type_), b=low.constant(base))


def convert(low: Lowering, m: Mods) -> None:
    """Lower cvt."""
    if m.take_one("pack"):
        convert_pack(low, m)
        return
    to, source = m.types(2)
    quarters = (isa.E4M3X2, isa.E5M2X2)
    if to in quarters or source in quarters:
        convert_quarters(low, m, to, source)
        return
    floats = is_float(source), is_float(to) or to == isa.TF32
    flags = m.flag("ftz", isa.FTZ) if isa.F32 in (to, source) else 0
    if floats[0] and (to == source or not floats[1]):
        whole = m.choose(WHOLE, -1 if to == source else None)
        flags |= whole | isa.INTEGER if whole >= 0 else 0
    elif floats[1]:
        exact = floats[0] and (to == isa.F64 or (to == isa.F32 and source != isa.F64))
        halves = {to, source} == {isa.F16, isa.BF16}  # ptxas rounds to nearest if no rounding is given
        table = {**DIRECTED, "rna": isa.RNA} if to == isa.TF32 else DIRECTED
        flags |= m.choose(table, isa.RN if exact or halves else None)
    if source == isa.F32 and to in (*HALVES, isa.TF32):
        flags |= m.flag("relu", isa.RELU) | m.flag("satfinite", isa.FINITE)
    if to not in (isa.BF16, isa.F16X2, isa.BF16X2, isa.TF32):
        flags |= m.flag("sat", isa.SAT)
    if to in (isa.F16X2, isa.BF16X2):
        check_type(m, source, (isa.F32,))
        m.done(3)
        low.emit(isa.CVTPACK, to, source, d=m.dest(to), a=m.row(1, source), b=m.row(2, source), flags=flags)
        return
    known = (*INTEGERS, isa.U8, isa.S8, isa.F16, isa.BF16, isa.F32, isa.F64)
    check_type(m, source, (isa.F32,) if to == isa.TF32 else known)
    check_type(m, to, (*known, isa.TF32))
    m.done(2)
    low.emit(isa.CVT, to, source, d=m.result(m.operands[0], to, wider=True), a=m.row(1, source), flags=flags)


def convert_quarters(low: Lowering, m: Mods, to: int, source: int) -> None:
    """Lower cvt between pairs of 8-bit floats and pairs of wider floats."""
    flags = m.choose(NEAREST) | m.flag("relu", isa.RELU)
    if to == isa.F16X2:
        check_type(m, source, (isa.E4M3X2, isa.E5M2X2))
    else:
        check_type(m, to, (isa.E4M3X2, isa.E5M2X2))
        check_type(m, source, (isa.F32, isa.F16X2))
        flags |= m.choose({"satfinite": 0})
    pair = source == isa.F32
    m.done(3 if pair else 2)
    low.emit(isa.CVTPACK, to, source, d=m.dest(to), a=m.row(1, source), b=m.row(2, source) if pair else 0, flags=flags)


def convert_pack(low: Lowering, m: Mods) -> None:
    """Lower cvt.pack.sat, which packs two saturated integers. A third operand gives the bits above them."""
    if not m.take_one("sat"):
        raise m.fail("needs .sat")
    names = m.left
    m.left = []
    if len(names) not in (2, 3) or names[0] not in ("u16", "s16", "u8", "s8") or names[1] != "s32":
        raise m.fail("is not supported")
    m.done(3 if len(names) == 2 else 4)
    to = isa.TYPES[names[0]]
    bits = (to & 15) * 8
    high, part = low.new_row(), low.new_row()
    low.emit(isa.CVT, to, isa.S32, d=high, a=m.row(1), flags=isa.SAT)
    low.emit(isa.CVT, to, isa.S32, d=part, a=m.row(2), flags=isa.SAT)
    low.emit(isa.AND, isa.B32, d=high, a=high, b=low.constant((1 << bits) - 1))
    low.emit(isa.AND, isa.B32, d=part, a=part, b=low.constant((1 << bits) - 1))
    low.emit(isa.SHL, isa.B32, d=high, a=high, b=low.constant(bits))
    low.emit(isa.OR, isa.B32, d=part, a=high, b=part)
    if len(names) == 3:
        low.emit(isa.SHL, isa.B32, d=high, a=m.row(3), b=low.constant(2 * bits))
        low.emit(isa.OR, isa.B32, d=part, a=part, b=high)
    low.emit(isa.MOV, isa.B32, d=m.dest(isa.B32), a=part)
