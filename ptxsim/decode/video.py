"""Lowers SIMD video instructions: sums, differences, minima and maxima of four bytes or two halves of a register.

All are made of instructions on single numbers, which count as one instruction. A result takes the low bits of each
part; with .sat it is clamped, and with .add the parts are added to the last operand instead.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import isa
from ..lowering import Lowering
from .mods import Mods

INTEGER = {"u32": isa.U32, "s32": isa.S32}


def parts(operation: str, count: int) -> Callable[[Lowering, Mods], None]:
    """Make the handler of `operation` on `count` parts: 4 bytes or 2 halves."""

    def handler(low: Lowering, m: Mods) -> None:
        saturates, sums = bool(m.flag("sat", 1)), bool(m.flag("add", 1))
        types = m.types(3)
        if any(type_ not in INTEGER.values() for type_ in types):
            raise m.fail("the types must be .u32 or .s32")
        if saturates and sums:
            raise m.fail(".sat does not go with .add")
        m.done(4)
        bits = 32 // count
        given = [m.row(k, isa.U32) for k in (1, 2, 3)]
        result = given[2]
        for part in range(count):
            pair = [piece(low, row, type_, part * bits, bits) for row, type_ in zip(given, types[1:])]
            value = combined(low, operation, *pair)
            if saturates:
                least, most = (
                    (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if types[0] == isa.S32 else (0, (1 << bits) - 1)
                )
                value = two(low, isa.MIN, two(low, isa.MAX, value, low.constant(least)), low.constant(most))
            if sums:
                result = two(low, isa.ADD, result, value)
            else:
                made = low.new_row()
                low.emit(isa.BFI, isa.B32, d=made, a=value, b=result, c=low.constant(part * bits), e=low.constant(bits))
                result = made
        low.emit(isa.MOV, isa.B32, d=m.dest(types[0]), a=result)

    return handler


def piece(low: Lowering, row: int, type_: int, at: int, bits: int) -> int:
    """The row of some bits of a row, extended as the type says."""
    made = low.new_row()
    low.emit(isa.BFE, type_, d=made, a=row, b=low.constant(at), c=low.constant(bits))
    return made


def two(low: Lowering, op: int, a: int, b: int) -> int:
    """The row of an operation of two signed rows."""
    made = low.new_row()
    low.emit(op, isa.S32, d=made, a=a, b=b)
    return made


def combined(low: Lowering, operation: str, a: int, b: int) -> int:
    """The row of one part's result."""
    if operation != "absdiff":
        return two(low, {"add": isa.ADD, "sub": isa.SUB, "min": isa.MIN, "max": isa.MAX}[operation], a, b)
    made = low.new_row()
    low.emit(isa.SAD, isa.S32, d=made, a=a, b=b, c=low.constant(0))
    return made


VIDEO = {
    f"v{operation}{count}": parts(operation, count)
    for operation in ("add", "sub", "absdiff", "min", "max")
    for count in (2, 4)
}
