"""Lowers comparisons and selections."""

from __future__ import annotations

from .. import isa
from ..lowering import Lowering
from ..syntax import Pair
from .mods import INTEGERS, WIDE_FLOATS, Mods, check_type, flush, is_float


def comparison(m: Mods, type_: int) -> int:
    """Take the comparison of a setp or set. Raises PTXError if the type does not have it."""
    test = m.choose(isa.COMPARE)
    if is_float(type_):
        allowed = [*range(6), *range(10, 18)]
    elif type_ & 0xF0 == isa.BITS:
        check_type(m, type_, (isa.B16, isa.B32, isa.B64))
        allowed = [0, 1]
    else:
        check_type(m, type_, INTEGERS)
        allowed = [*range(6)] if type_ & 0xF0 == isa.S else [*range(10)]
    if test not in allowed:
        raise m.fail("the instruction's type does not have this comparison")
    return test


def compare(low: Lowering, m: Mods) -> None:
    """Lower setp, also with a second predicate, or combined with another predicate."""
    (type_,) = m.types()
    test = comparison(m, type_)
    joined = m.take_one("and", "or", "xor")
    flags = flush(m, type_)
    m.done(4 if joined else 3)
    op = isa.FSETP if is_float(type_) else isa.SETP
    target = m.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    a, b = m.row(1, type_), m.row(2, type_)
    extra = m.row(3) if joined else 0
    if not joined and second is None and type_ not in (isa.F16X2, isa.BF16X2):
        low.emit(op, type_, d=m.result(first, isa.PREDICATE), a=a, b=b, imm=test, flags=flags)
        return
    low.keep_guard()
    truth, other, result = low.new_row(), low.new_row(), low.new_row()
    low.emit(op, type_, d=truth, a=a, b=b, imm=test, flags=flags)
    if type_ in (isa.F16X2, isa.BF16X2):  # a bit for each half
        low.emit(isa.SHR, isa.U32, d=other, a=truth, b=low.constant(1))
        low.emit(isa.AND, isa.B32, d=truth, a=truth, b=low.constant(1))
    else:
        low.emit(isa.NOT, isa.PREDICATE, d=other, a=truth)
    code = {None: isa.MOV, "and": isa.AND, "or": isa.OR, "xor": isa.XOR}[joined]
    low.emit(code, isa.PREDICATE, d=result, a=truth, b=extra)
    if second is not None:  # before the write of the first result, whose register may be an operand
        low.emit(code, isa.PREDICATE, d=m.result(second, isa.PREDICATE), a=other, b=extra)
    low.emit(isa.MOV, isa.PREDICATE, d=m.result(first, isa.PREDICATE), a=result)


def compare_set(low: Lowering, m: Mods) -> None:
    """Lower set, which is like setp but gives -1 or 1.0 for true."""
    to, type_ = m.types(2)
    test = comparison(m, type_)
    joined = m.take_one("and", "or", "xor")
    flags = flush(m, type_)
    m.done(4 if joined else 3)
    packed = type_ in (isa.F16X2, isa.BF16X2)
    if packed:
        check_type(m, to, (type_,))
    else:
        narrow = (isa.F16, isa.BF16, isa.U16, isa.S16) if type_ in (isa.F16, isa.BF16) else ()
        check_type(m, to, (isa.U32, isa.S32, isa.F32, *narrow))
    tmp = low.new_row()
    a, b = m.row(1, type_), m.row(2, type_)
    low.emit(isa.FSETP if is_float(type_) else isa.SETP, type_, d=tmp, a=a, b=b, imm=test, flags=flags)
    if joined:
        extra = m.row(3)
        if packed:  # the predicate is combined with the comparison of each half
            pair = low.new_row()
            low.emit(isa.SELP, isa.B32, d=pair, a=low.constant(3), b=low.constant(0), c=extra)
            extra = pair
        code = {"and": isa.AND, "or": isa.OR, "xor": isa.XOR}[joined]
        low.emit(code, isa.PREDICATE, d=tmp, a=tmp, b=extra)
    one = {isa.F32: 0x3F800000, isa.F16: 0x3C00, isa.BF16: 0x3F80, isa.F16X2: 0x3C00, isa.BF16X2: 0x3F80}.get(to, -1)
    if packed:
        high, part = low.new_row(), low.new_row()
        low.emit(isa.SHR, isa.U32, d=high, a=tmp, b=low.constant(1))
        low.emit(isa.SELP, isa.B32, d=part, a=low.constant(one << 16), b=low.constant(0), c=high)
        low.emit(isa.SELP, isa.B32, d=tmp, a=low.constant(one), b=low.constant(0), c=tmp)
        low.emit(isa.OR, isa.B32, d=m.dest(to), a=tmp, b=part)
        return
    low.emit(isa.SELP, isa.B32, d=m.dest(to), a=low.constant(one & 0xFFFFFFFF), b=low.constant(0), c=tmp)


SELECTED = (*INTEGERS, isa.B16, isa.B32, isa.B64, isa.F32, isa.F64)


def select(low: Lowering, m: Mods) -> None:
    """Lower selp."""
    (type_,) = m.types()
    check_type(m, type_, SELECTED)
    m.done(4)
    low.emit(isa.SELP, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_), c=m.row(3))


def select_sign(low: Lowering, m: Mods) -> None:
    """Lower slct."""
    type_, by = m.types(2)
    check_type(m, type_, SELECTED)
    check_type(m, by, (isa.S32, isa.F32))
    flags = flush(m, by)
    m.done(4)
    a, b, c = m.row(1, type_), m.row(2, type_), m.row(3, by)
    if by == isa.F32:
        wide = isa.F64 if type_ & 15 == 8 else isa.F32
        low.emit(isa.FSLCT, wide, d=m.dest(type_), a=a, b=b, c=c, flags=flags)
    else:
        low.emit(isa.SLCT, type_, d=m.dest(type_), a=a, b=b, c=c)


def test_property(low: Lowering, m: Mods) -> None:
    """Lower testp."""
    kinds = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    kind = m.choose({name: i for i, name in enumerate(kinds)})
    (type_,) = m.types()
    check_type(m, type_, WIDE_FLOATS)
    m.done(2)
    low.emit(isa.FTESTP, type_, d=m.dest(isa.PREDICATE), a=m.row(1, type_), imm=kind)


def copysign(low: Lowering, m: Mods) -> None:
    """Lower copysign."""
    (type_,) = m.types()
    check_type(m, type_, WIDE_FLOATS)
    m.done(3)
    low.emit(isa.FCOPYSIGN, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_))
