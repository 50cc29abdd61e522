"""The modifiers of an instruction, taken one by one until none is left."""

from __future__ import annotations

from typing import Any

from .. import isa
from ..lowering import Lowering
from ..syntax import Instruction, Number

SPACES = {
    "global": isa.GLOBAL,
    "shared": isa.SHARED,
    "shared::cta": isa.SHARED,
    "shared::cluster": isa.SHARED,
    "local": isa.LOCAL,
    "const": isa.CONST,
    "param": isa.PARAM,
    "param::entry": isa.PARAM,
    "param::func": isa.PARAM,
    "generic": isa.GENERIC,
}


class Mods:
    """The modifiers of an instruction. left: those not taken yet."""

    def __init__(self, low: Lowering, ins: Instruction):
        self.low, self.ins, self.left = low, ins, list(ins.mods)
        self.operands = ins.operands

    def take_one(self, *names: str) -> str | None:
        """Take the first of these modifiers that is left. Returns its name, or None if none of them is left."""
        for name in names:
            if name in self.left:
                self.left.remove(name)
                return name
        return None

    def flag(self, name: str, value: int) -> int:
        """Take a modifier. Returns `value` if it is there, else 0."""
        return value if self.take_one(name) else 0

    def choose(self, table: dict[str, int], default: int | None = None) -> int:
        """Take one of a table's modifiers. Returns its value, or the default if none is left.

        Raises PTXError if none is left and there is no default.
        """
        name = self.take_one(*table)
        if name is None:
            if default is None:
                raise self.fail(f"one of .{', .'.join(table)} is needed")
            return default
        return table[name]

    def types(self, count: int = 1) -> list[int]:
        """Take the last `count` modifiers that are types. Returns them in their order."""
        found = [name for name in self.left if name in isa.TYPES]
        if len(found) < count:
            raise self.fail("a type is missing, or not supported")
        picked = found[-count:]
        for name in picked:
            self.left.remove(name)
        return [isa.TYPES[name] for name in picked]

    def done(self, least: int, most: int | None = None) -> None:
        """Raise PTXError if a modifier is left or the number of operands is wrong."""
        if self.left:
            raise self.fail(f"modifier .{self.left[0]} is not supported here")
        if not least <= len(self.operands) <= (least if most is None else most):
            wanted = f"{least}" if most in (None, least) else f"{least} to {most}"
            raise self.fail(f"the number of operands must be {wanted}, got {len(self.operands)}")

    def fail(self, what: str) -> Exception:
        """Make an error that names this instruction. The caller raises it."""
        return self.low.fail(what)

    def row(self, index: int, type_: int | None = None) -> int:
        """The row of an operand. type_: the instruction's type, which the register must fit."""
        operand = self.operands[index]
        if type_ is not None:
            self.fits(operand, type_)
        return self.low.row(operand, isa.B64 if type_ is None else type_)

    def fits(self, operand: Any, type_: int) -> None:
        """Raise PTXError, as ptxas does, if a register has another size or kind than the type.

        See the PTX ISA on operand types.
        """
        whole = type_ & 0xF0 in (isa.U, isa.S)
        if isinstance(operand, Number) and operand.kind != "i" and whole:
            raise self.fail("a float cannot be an operand of an integer type")
        kind = self.low.kind(operand)
        if not kind or self.ins.opcode == "cvt" or (type_ & 15 == 1 and type_ != isa.PREDICATE):
            return
        size = 1 if kind == "pred" else isa.TYPES[kind] & 15
        if size != type_ & 15 or other_kind(kind, type_):
            raise self.fail(f"register {operand.text} of type .{kind} does not fit the instruction's type")

    def dest(self, type_: int) -> int:
        """The row of the first operand, which is the result."""
        return self.result(self.operands[0], type_)

    def result(self, operand: Any, type_: int, wider: bool = False) -> int:
        """The row of a register for a result. Raises PTXError, as ptxas does, if its size or kind is wrong.

        wider: whether the register may be wider than the type, unless the type is a float (as for ld and cvt, see the
        PTX ISA on operand sizes).
        """
        kind = self.low.kind(operand)
        if kind:
            size, wanted = isa.TYPES[kind] & 15, type_ & 15
            fits = size == wanted or (wider and size > wanted and not is_float(type_) and kind[0] != "f")
            if (kind == "pred") != (type_ == isa.PREDICATE) or not fits or other_kind(kind, type_):
                raise self.fail(f"register {operand.text} of type .{kind} does not fit the result")
        return self.low.row(operand, type_, write=True)


def other_kind(kind: str, type_: int) -> bool:
    """Whether a register's kind is float and the type integer, or the reverse."""
    return (type_ & 0xF0 in (isa.U, isa.S) and kind[0] == "f") or (type_ & 0xF0 == isa.F and kind[0] in "us")


def is_float(type_: int) -> bool:
    """Whether a type is one of floats, including packed floats."""
    return type_ & 0xF0 == isa.F or type_ in (isa.BF16, isa.F16X2, isa.BF16X2)


def groups(m: Mods) -> int:
    """Read the only operand of a wait: how many groups of asynchronous work may still be pending."""
    count = m.operands[0]
    if not isinstance(count, Number) or count.kind != "i" or not 0 <= count.value < 1 << 32:
        raise m.fail("the number of groups must be an immediate of 32 bits, not negative")
    return count.value


def check_type(m: Mods, type_: int, allowed: tuple[int, ...]) -> None:
    """Raise PTXError unless the type is allowed."""
    if type_ not in allowed:
        raise m.fail("the instruction does not take this type")


INTEGERS = (isa.U16, isa.U32, isa.U64, isa.S16, isa.S32, isa.S64)
WORDS = (isa.U32, isa.S32, isa.U64, isa.S64)
WIDE_FLOATS = (isa.F32, isa.F64)
DIRECTED = {"rn": isa.RN, "rz": isa.RZ, "rm": isa.RM, "rp": isa.RP}
NEAREST = {"rn": isa.RN}
HALVES = (isa.F16, isa.F16X2, isa.BF16, isa.BF16X2)


def flush(m: Mods, type_: int) -> int:
    """Take .ftz, which float64 and bfloat16 do not have. Returns it as a flag."""
    return m.flag("ftz", isa.FTZ) if type_ in (isa.F32, isa.F16, isa.F16X2) else 0


def float_flags(m: Mods, type_: int, needed: bool = False) -> int:
    """Take the rounding, .ftz and .sat of add, sub, mul or fma. Returns them as flags.

    needed: whether the rounding must be given.
    """
    table = DIRECTED if type_ in WIDE_FLOATS else NEAREST
    flags = m.choose(table, None if needed else isa.RN) | flush(m, type_)
    return flags | (m.flag("sat", isa.SAT) if type_ in (isa.F32, isa.F16, isa.F16X2) else 0)
