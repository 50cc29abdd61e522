"""Lowers arithmetic of integers and floats, and functions of floats such as sin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import isa
from ..lowering import Lowering
from .mods import DIRECTED, INTEGERS, WIDE_FLOATS, Mods, check_type, float_flags, flush, is_float


def carrying(op: int, count: int) -> Callable[..., Any]:
    """Make the handler of addc, subc or madc, which also lowers add, sub or mad with .cc.

    count: the number of operands. The handler's `into` says whether the carry is also an input.
    """

    def handler(low: Lowering, m: Mods, into: bool) -> None:
        high = m.take_one("hi")
        m.take_one("lo")
        out = m.flag("cc", isa.CARRY_OUT)
        (type_,) = m.types()
        m.done(count + 1)
        code = isa.MADCHI if op == isa.MADC and high else op
        rows = [m.row(i + 1, type_) for i in range(count)]
        flags = out | (isa.CARRY_IN if into else 0)
        low.emit(code, type_, d=m.dest(type_), a=rows[0], b=rows[1], c=rows[2] if count == 3 else 0, flags=flags)

    return handler


add_carry, sub_carry, mad_carry = carrying(isa.ADDC, 2), carrying(isa.SUBC, 2), carrying(isa.MADC, 3)


def arithmetic(integer: int, floating: int, packed: int = -1) -> Callable[..., Any]:
    """Make the handler of add, sub, min or max, with two operands of any type."""

    def handler(low: Lowering, m: Mods) -> None:
        if "cc" in m.left:
            (add_carry if integer == isa.ADD else sub_carry)(low, m, False)
            return
        (type_,) = m.types()
        extremes = floating in (isa.FMIN, isa.FMAX)
        if type_ in (isa.U16X2, isa.S16X2) and packed >= 0:
            flags = m.flag("relu", isa.RELU) if extremes and type_ == isa.S16X2 else 0
            m.done(3)
            low.emit(packed, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_), flags=flags)
        elif is_float(type_) and extremes:
            least_most(low, m, floating, type_)
        elif is_float(type_):
            flags = float_flags(m, type_)
            m.done(3)
            low.emit(floating, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_), flags=flags)
        else:
            check_type(m, type_, INTEGERS)
            name = "relu" if extremes else "sat"
            flags = m.flag(name, isa.RELU if extremes else isa.SAT) if type_ == isa.S32 else 0
            m.done(3)
            low.emit(integer, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_), flags=flags)

    return handler


def least_most(low: Lowering, m: Mods, op: int, type_: int) -> None:
    """Lower min or max of two floats, or of three float32."""
    flags = flush(m, type_)
    if type_ != isa.F64:
        flags |= m.flag("NaN", isa.NAN)
    sizes = m.take_one("abs") is not None
    three = len(m.operands) == 4 and type_ == isa.F32
    if not three and sizes and m.take_one("xorsign"):
        flags |= isa.XORSIGN
    elif sizes and not three:
        raise m.fail("modifier .abs of two numbers needs .xorsign")
    m.done(4 if three else 3)
    rows = [m.row(i, type_) for i in range(1, len(m.operands))]
    if sizes and three:
        for i, row in enumerate(rows):
            rows[i] = low.new_row()
            low.emit(isa.FABS, type_, d=rows[i], a=row)
    if three:
        tmp = low.new_row()
        low.emit(op, type_, d=tmp, a=rows[0], b=rows[1], flags=flags)
        rows = [tmp, rows[2]]
    low.emit(op, type_, d=m.dest(type_), a=rows[0], b=rows[1], flags=flags)


def multiply(low: Lowering, m: Mods) -> None:
    """Lower mul."""
    (type_,) = m.types()
    if is_float(type_):
        flags = float_flags(m, type_)
        m.done(3)
        low.emit(isa.FMUL, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_), flags=flags)
        return
    check_type(m, type_, INTEGERS)
    op = product_part(m, {"lo": isa.MUL, "hi": isa.MULHI, "wide": isa.MULWIDE}, type_)
    m.done(3)
    wide = type_ & 0xF0 | (type_ & 15) * 2 if op == isa.MULWIDE else type_
    low.emit(op, type_, d=m.dest(wide), a=m.row(1, type_), b=m.row(2, type_))


def product_part(m: Mods, table: dict[str, int], type_: int) -> int:
    """Take .lo, .hi or .wide. Returns its opcode in the table. 64-bit types do not have .wide."""
    if type_ & 15 == 8:
        table = {name: op for name, op in table.items() if name != "wide"}
    return m.choose(table)


def multiply_add(low: Lowering, m: Mods) -> None:
    """Lower mad or fma."""
    if "cc" in m.left:
        mad_carry(low, m, False)
        return
    (type_,) = m.types()
    if is_float(type_):
        flags = float_flags(m, type_, needed=m.ins.opcode == "fma")
        if type_ not in WIDE_FLOATS:
            flags |= m.flag("relu", isa.RELU)
        m.done(4)
        low.emit(isa.FFMA, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_), c=m.row(3, type_), flags=flags)
        return
    check_type(m, type_, INTEGERS)
    op = product_part(m, {"lo": isa.MAD, "hi": isa.MADHI, "wide": isa.MADWIDE}, type_)
    flags = m.flag("sat", isa.SAT) if op == isa.MADHI and type_ == isa.S32 else 0
    m.done(4)
    wide = type_ & 0xF0 | (type_ & 15) * 2 if op == isa.MADWIDE else type_
    low.emit(op, type_, d=m.dest(wide), a=m.row(1, type_), b=m.row(2, type_), c=m.row(3, wide), flags=flags)


def multiply24(op: int, high: int, count: int) -> Callable[..., Any]:
    """Make the handler of mul24 or mad24. count: the number of operands."""

    def handler(low: Lowering, m: Mods) -> None:
        code = m.choose({"lo": op, "hi": high})
        (type_,) = m.types()
        check_type(m, type_, (isa.U32, isa.S32))
        flags = m.flag("sat", isa.SAT) if code == isa.MAD24HI and type_ == isa.S32 else 0
        m.done(count + 1)
        c = m.row(3, type_) if count == 3 else 0
        low.emit(code, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_), c=c, flags=flags)

    return handler


def divide(low: Lowering, m: Mods) -> None:
    """Lower div."""
    (type_,) = m.types()
    if is_float(type_):
        check_type(m, type_, WIDE_FLOATS)
        fast = type_ == isa.F32 and m.take_one("approx", "full") is not None
        flags = (isa.APPROX if fast else m.choose(DIRECTED)) | flush(m, type_)
        m.done(3)
        low.emit(isa.FDIV, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_), flags=flags)
    else:
        m.done(3)
        check_type(m, type_, INTEGERS)
        low.emit(isa.DIV, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_))


def unary(integer: int, floating: int) -> Callable[..., Any]:
    """Make the handler of abs or neg."""

    def handler(low: Lowering, m: Mods) -> None:
        (type_,) = m.types()
        flags = flush(m, type_)
        m.done(2)
        if is_float(type_):
            low.emit(floating, type_, d=m.dest(type_), a=m.row(1, type_), flags=flags)
        else:
            check_type(m, type_, (isa.S16, isa.S32, isa.S64))
            low.emit(integer, type_, d=m.dest(type_), a=m.row(1, type_))

    return handler


def function(op: int, types: tuple[int, ...] = (isa.F32,), exact: bool = False) -> Callable[..., Any]:
    """Make the handler of rcp, sqrt, rsqrt, sin, cos, lg2, ex2 or tanh.

    types: the types that .approx takes. exact: whether forms with a rounding mode exist too.
    """

    def handler(low: Lowering, m: Mods) -> None:
        approx = m.take_one("approx") is not None
        (type_,) = m.types()
        if not approx and not exact:
            raise m.fail("needs .approx")
        check_type(m, type_, types if approx else WIDE_FLOATS)
        flags = isa.APPROX if approx else m.choose(DIRECTED)
        if (op == isa.FEX2 and type_ in (isa.BF16, isa.BF16X2)) or (op == isa.FRCP and approx and type_ == isa.F64):
            flags |= m.choose({"ftz": isa.FTZ})
        elif (type_ == isa.F32 and op != isa.FTANH) or op == isa.FRSQRT:
            flags |= m.flag("ftz", isa.FTZ)
        m.done(2)
        low.emit(op, type_, d=m.dest(type_), a=m.row(1, type_), flags=flags)

    return handler
