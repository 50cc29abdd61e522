"""Lowers arithmetic on two packed float32 numbers, and sums of a float32 and narrower floats.

Both are made of instructions on single numbers, which count as one instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import isa
from ..lowering import Lowering
from .mods import DIRECTED, Mods

OPS = {"add": isa.FADD, "sub": isa.FSUB, "mul": isa.FMUL, "fma": isa.FFMA}
NARROW = ("f16", "bf16")


def pairs(other: Callable[..., Any]) -> Callable[..., Any]:
    """Make the handler of add, sub, mul or fma, which leaves all forms but .f32x2 and mixed ones to another handler."""

    def handler(low: Lowering, m: Mods) -> None:
        types = [name for name in m.left if name in ("f32", "f32x2", *NARROW)]
        if "f32x2" in types:
            two_at_once(low, m)
        elif types[:1] == ["f32"] and types[1:] and m.ins.opcode != "mul":
            mixed(low, m)
        else:
            other(low, m)

    return handler


def two_at_once(low: Lowering, m: Mods) -> None:
    """Lower an instruction on .f32x2: two numbers in each 64-bit register."""
    m.types()
    needed = m.ins.opcode == "fma"
    flags = m.choose(DIRECTED, None if needed else isa.RN) | m.flag("ftz", isa.FTZ)
    m.done(4 if needed else 3)
    halves = []
    for k in range(1, len(m.operands)):
        parts = [low.new_row(), low.new_row()]
        low.emit(isa.UNPACK, isa.B64, a=m.row(k, isa.B64), imm=4, items=parts)
        halves.append(parts)
    results = [low.new_row(), low.new_row()]
    for k, result in enumerate(results):
        rows = [parts[k] for parts in halves] + [0]
        low.emit(OPS[m.ins.opcode], isa.F32, d=result, a=rows[0], b=rows[1], c=rows[2], flags=flags)
    low.emit(isa.PACK, isa.B64, d=m.dest(isa.B64), imm=4, items=results)


def mixed(low: Lowering, m: Mods) -> None:
    """Lower add, sub or fma whose result and last operand are float32 and whose other operands are narrower."""
    _, narrow = m.types(2)
    fused = m.ins.opcode == "fma"
    flags = m.choose(DIRECTED, None if fused else isa.RN) | m.flag("sat", isa.SAT)
    m.done(4 if fused else 3)
    rows = []
    for k in range(1, len(m.operands) - 1):
        rows.append(low.new_row())
        low.emit(isa.CVT, isa.F32, narrow, d=rows[-1], a=m.row(k, narrow))
    rows += [m.row(len(m.operands) - 1, isa.F32), 0]
    low.emit(
        OPS[m.ins.opcode], isa.F32, d=m.dest(isa.F32), a=rows[0], b=rows[1], c=rows[2] if fused else 0, flags=flags
    )
