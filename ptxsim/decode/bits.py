"""Lowers logic, shifts, bit fields, permutations and dot products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import isa
from ..lowering import Lowering
from ..syntax import Number, Pair
from .mods import WORDS, Mods, check_type


def plain(op: int, count: int, types: tuple[int, ...], wide: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Make the handler of an integer instruction with `count` operands.

    wide: the operands that have 32 bits whatever the type is.
    """

    def handler(low: Lowering, m: Mods) -> None:
        (type_,) = m.types()
        check_type(m, type_, types)
        m.done(count + 1)
        rows = [m.row(i + 1, isa.U32 if i in wide else type_) for i in range(count)] + [0] * (4 - count)
        result = isa.U32 if op in (isa.POPC, isa.CLZ) else type_
        low.emit(op, type_, d=m.dest(result), a=rows[0], b=rows[1], c=rows[2], e=rows[3])

    return handler


def bit_find(low: Lowering, m: Mods) -> None:
    """Lower bfind."""
    op = isa.BFINDSHIFT if m.take_one("shiftamt") else isa.BFIND
    (type_,) = m.types()
    check_type(m, type_, WORDS)
    m.done(2)
    low.emit(op, type_, d=m.dest(isa.U32), a=m.row(1, type_))


def clamp_wrap(op: int, count: int) -> Callable[..., Any]:
    """Make the handler of bmsk, szext or shf, with .clamp or .wrap."""

    def handler(low: Lowering, m: Mods) -> None:
        code = m.choose({"l": isa.SHFLEFT, "r": isa.SHFRIGHT}) if op == isa.SHFLEFT else op
        flags = m.choose({"clamp": isa.SAT, "wrap": 0})
        (type_,) = m.types()
        check_type(m, type_, (isa.U32, isa.S32) if op == isa.SZEXT else (isa.B32,))
        m.done(count + 1)
        c = m.row(3, isa.U32) if count == 3 else 0
        low.emit(code, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_), c=c, flags=flags)

    return handler


def permute(low: Lowering, m: Mods) -> None:
    """Lower prmt."""
    (type_,) = m.types()
    check_type(m, type_, (isa.B32,))
    mode = m.choose({"f4e": 1, "b4e": 2, "rc8": 3, "ecl": 4, "ecr": 5, "rc16": 6}, 0)
    m.done(4)
    low.emit(isa.PRMT, type_, d=m.dest(type_), a=m.row(1), b=m.row(2), c=m.row(3), imm=mode)


def lop3(low: Lowering, m: Mods) -> None:
    """Lower lop3, also its form with a predicate."""
    joined = m.take_one("or", "and")
    (type_,) = m.types()
    check_type(m, type_, (isa.B32,))
    m.done(6 if joined else 5)
    table = m.operands[4]
    if not isinstance(table, Number):
        raise m.fail("the table must be an immediate")
    if not 0 <= table.value <= 255:
        raise m.fail(f"the table must be 0 to 255, got {table.value}")
    target = m.operands[0]
    d = m.result(target.first if isinstance(target, Pair) else target, type_)
    low.emit(isa.LOP3, type_, d=d, a=m.row(1), b=m.row(2), c=m.row(3), imm=table.value)
    if joined:
        if not isinstance(target, Pair):
            raise m.fail("needs two destinations")
        tmp = low.new_row()
        low.emit(isa.SETP, isa.B32, d=tmp, a=d, b=low.constant(0), imm=isa.COMPARE["ne"])
        code = isa.OR if joined == "or" else isa.AND
        low.emit(code, isa.PREDICATE, d=m.result(target.second, isa.PREDICATE), a=tmp, b=m.row(5))


def dot_product(op: int) -> Callable[..., Any]:
    """Make the handler of dp4a or dp2a."""

    def handler(low: Lowering, m: Mods) -> None:
        flags = m.choose({"lo": 0, "hi": isa.HIGH}) if op == isa.DP2A else 0
        signs = [name for name in m.left if name in ("u32", "s32")]
        if len(signs) != 2:
            raise m.fail("needs two types")
        m.left = [name for name in m.left if name not in ("u32", "s32")]
        m.done(4)
        a, b = isa.TYPES[signs[0]], isa.TYPES[signs[1]]
        low.emit(op, a, b, d=m.dest(isa.B32), a=m.row(1), b=m.row(2), c=m.row(3), flags=flags)

    return handler


def logic(op: int) -> Callable[..., Any]:
    """Make the handler of and, or, xor, not or cnot."""

    def handler(low: Lowering, m: Mods) -> None:
        (type_,) = m.types()
        check_type(m, type_, (isa.PREDICATE, isa.B16, isa.B32, isa.B64))
        count = 1 if op in (isa.NOT, isa.CNOT) else 2
        m.done(count + 1)
        low.emit(op, type_, d=m.dest(type_), a=m.row(1, type_), b=m.row(2, type_) if count == 2 else 0)

    return handler
