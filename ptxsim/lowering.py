"""The tools of decode/ that look up names, make rows of operands, and append instructions.

A register is a row, and so are immediates, addresses of variables, and special registers that do not change. These rows
are filled when a block starts. So every operand is read in the same way.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from . import isa
from .program import FunctionInfo
from .rows import CLOCKS, CLUSTER_REGISTERS, CONSTANT_REGISTERS, FRAME, ONE, PARAMS, SPECIAL, TRASH, ZERO
from .syntax import Address, Instruction, Module, Name, Number, PTXError, Scope, Variable

MASK64 = (1 << 64) - 1
CONTINUES = 2  # in NEGATE: this row belongs to the same PTX instruction as the row before it, and is not counted again


class Lowering:
    """A module that is being lowered to a program.

    code, texts: the rows and texts of the instructions lowered so far. operands: the lists of operands that
    instructions have. rows: the number of rows of registers. scopes, names: the open scopes, and the names found in
    them so far. fixups: the branches whose labels are still unknown. current: the function that is being lowered.
    instruction: the instruction that is being lowered. paired: whether the module has instructions with .cta_group::2.
    """

    def __init__(self, module: Module):
        self.module = module
        self.code: list[list[int]] = []
        self.operands: list[int] = []
        self.texts: list[str] = []
        self.rows = len(SPECIAL)
        self.constant_rows: dict[int, int] = {0: ZERO, 1: ONE}
        self.symbol_rows: dict[tuple[str, int], int] = {}
        self.lines: dict[tuple[str, int], int] = {("", 0): 0}
        self.functions: dict[str, FunctionInfo] = {}
        self.variables = dict(module.variables)
        self.shared: dict[str, int] = {}
        self.shared_bytes = 0
        self.shared_sizes: dict[str, int] = {}
        self.dynamic: set[str] = set()
        self.dynamic_align = 128
        self.granule = 8
        self.indirect = False
        self.paired = any(paired(function.body) for function in module.functions.values() if function.body)
        self.scopes: list[Scope] = []
        self.names: list[dict[str, Any]] = []
        self.fixups: list[tuple[int, list[dict[str, int]], str, int]] = []
        self.table_fixups: list[tuple[int, list[dict[str, int]], str, int]] = []
        self.call_fixups: list[tuple[int, str, int]] = []
        self.current: FunctionInfo | None = None
        self.started = False
        self.visible: list[dict[str, int]] = []
        self.instruction: Instruction | None = None
        self.guard_row = 0  # a copy of the guard, if the instruction's first results may overwrite it

    # ---- rows ----
    def new_row(self) -> int:
        """A row for a new register."""
        self.rows += 1
        return self.rows - 1

    def constant(self, value: int) -> int:
        """The row of a 64-bit constant."""
        value &= MASK64
        if value not in self.constant_rows:
            self.constant_rows[value] = self.new_row()
        return self.constant_rows[value]

    def symbol(self, name: str, offset: int = 0) -> int:
        """The row that holds the address of a variable or, if the name begins with @, of a function."""
        key = (name, offset)
        if key not in self.symbol_rows:
            self.symbol_rows[key] = self.new_row()
        return self.symbol_rows[key]

    def fail(self, what: str) -> PTXError:
        """Make an error that names the present instruction, and its line of the source. The caller raises it."""
        assert self.instruction is not None
        file, line = self.instruction.source
        source = f" ({self.module.files[file]}:{line})" if file in self.module.files else ""
        return PTXError(f"PTX line {self.instruction.line}{source}: {self.instruction.text}: {what}")

    def find(self, name: str) -> Any:
        """What a name means in the open scopes.

        Returns ('row', row, type), ('local' or 'param', offset, bytes), a Variable, or None for an unknown name.
        """
        for known, scope in zip(reversed(self.names), reversed(self.scopes)):
            if name in known:
                return known[name]
            if name in scope.registers:
                known[name] = ("row", self.new_row(), scope.registers[name])
                return known[name]
            kind = scope.of_family(name)
            if kind is not None:
                known[name] = ("row", self.new_row(), kind)
                return known[name]
        return self.variables.get(name)

    def kind(self, operand: Any) -> str:
        """The declared type of a register; '' for other operands."""
        found = self.find(operand.text) if isinstance(operand, Name) else None
        return found[2] if isinstance(found, tuple) and found[0] == "row" else ""

    def row(self, operand: Any, type_: int = isa.B64, write: bool = False) -> int:
        """The row of an operand, read as a type. write: whether the operand is a result."""
        if write and (not isinstance(operand, Name) or operand.negated):
            raise self.fail("the result must go to a register")
        if isinstance(operand, Number):
            return self.constant(immediate(operand, type_))
        if isinstance(operand, Address):
            if operand.base is None:
                return self.constant(operand.offset)
            return self.shared_address(operand)
        if not isinstance(operand, Name):
            raise self.fail(f"cannot use {operand!r} as an operand")
        name = operand.text
        if name == "_":
            return TRASH if write else ZERO
        if operand.negated:
            row = self.new_row()
            self.emit(isa.NOT, isa.PREDICATE, d=row, a=self.row(Name(name)), guarded=False)
            return row
        if name in CONSTANT_REGISTERS:
            row = CONSTANT_REGISTERS[name]
            return self.constant(-row) if row < 0 else row
        if name in CLOCKS:
            row = self.new_row()
            self.emit(isa.CLOCK, isa.U64, d=row, imm=CLOCKS[name])
            return row
        if name in CLUSTER_REGISTERS:
            row = self.new_row()
            self.emit(isa.CLUSTERREG, isa.U32, d=row, imm=CLUSTER_REGISTERS.index(name))
            return row
        if name in ("%pm0", "%pm1", "%pm2", "%pm3"):
            return ZERO
        found = self.find(name)
        if isinstance(found, tuple) and found[0] == "row":
            return found[1]
        if found is None and name not in self.module.functions and name not in self.module.aliases:
            raise self.fail(f"{name} is not declared")
        return self.shared_address(Address(Name(name), 0))

    def shared_address(self, address: Address) -> int:
        """A row that holds an address, as `address_row` returns it, or a shared address with its block's rank.

        Shared addresses get the rank in modules with .cta_group::2. On GPUs all shared addresses in a cluster have a
        rank. Kernels of pairs of blocks find the even block's address by a mask.
        """
        row, found = self.address_row(address), self.find(address.base.text) if address.base else None
        if not (self.paired and isinstance(found, Variable) and found.space == "shared"):
            return row
        base, whole_address = self.new_row(), self.new_row()
        self.emit(isa.CLUSTERREG, isa.U32, d=base, imm=CLUSTER_REGISTERS.index("shared base"))
        self.emit(isa.ADD, isa.U64, d=whole_address, a=row, b=base)
        return whole_address

    def address_row(self, address: Address) -> int:
        """A row that holds a variable's address in its space, or a function's address."""
        assert address.base is not None
        name = address.base.text
        found = self.find(name)
        if isinstance(found, tuple):
            if found[0] == "row":
                if address.offset == 0:
                    return found[1]
                row = self.new_row()
                self.emit(isa.ADD, isa.U64, d=row, a=found[1], b=self.constant(address.offset))
                return row
            row = self.new_row()
            if found[0] == "local":
                self.emit(isa.ADD, isa.U64, d=row, a=FRAME, b=self.constant(found[1] + address.offset))
            else:
                self.emit(isa.ADD, isa.U64, d=row, a=PARAMS, b=self.constant(found[1] + address.offset))
            return row
        if isinstance(found, Variable):
            if found.space == "shared":
                if found.name in self.dynamic:
                    return self.symbol("@dynamic", address.offset)
                return self.constant(self.shared[found.name] + address.offset)
            return self.symbol(name, address.offset)
        name = self.module.aliases.get(name, name)
        if name in self.module.functions:
            self.indirect = True
            return self.symbol("@" + name)
        raise self.fail(f"{name} is not declared")

    def memory(self, operand: Any) -> tuple[int, int, str]:
        """Read an address in brackets. Returns (row, offset, the space of its variable or '')."""
        if isinstance(operand, Name):
            operand = Address(operand, 0)
        if not isinstance(operand, Address):
            raise self.fail(f"expected an address, got {operand!r}")
        if operand.base is None:
            return ZERO, operand.offset, ""
        found = self.find(operand.base.text)
        if isinstance(found, tuple) and found[0] == "row":
            if found[2] == "pred" or found[2][0] == "f":
                raise self.fail(f"register {operand.base.text} of type .{found[2]} is not an address")
            return found[1], operand.offset, ""
        if isinstance(found, tuple):
            return (FRAME if found[0] == "local" else PARAMS), found[1] + operand.offset, found[0]
        space = found.space if isinstance(found, Variable) else ""
        return self.address_row(Address(operand.base, 0)), operand.offset, space

    # ---- emission ----
    def emit(
        self,
        op: int,
        type_: int = 0,
        type2: int = 0,
        d: int = TRASH,
        a: int = ZERO,
        b: int = ZERO,
        c: int = ZERO,
        e: int = ZERO,
        imm: int = 0,
        flags: int = 0,
        d2: int = TRASH,
        items: list[int] | None = None,
        guarded: bool = True,
    ) -> int:
        """Append an instruction and return its index. isa.py names the columns that the arguments fill.

        items: the instruction's list of operands. guarded: whether the guard of the PTX instruction applies.
        """
        ins = self.instruction
        assert ins is not None
        guard, negate = -1, 0
        if ins.guard is not None and guarded:
            found = self.find(ins.guard.text)
            if not isinstance(found, tuple) or found[0] != "row" or found[2] != "pred":
                raise self.fail(f"the guard {ins.guard.text} is not a predicate register")
            guard, negate = self.guard_row or found[1], int(ins.guard.negated)
        place, count = len(self.operands), 0
        if items is not None:
            assert op in isa.ROW_LISTS or op in isa.OTHER_LISTS
            count = len(items)
            self.operands += items
        file = self.module.files.get(ins.source[0], "")
        number = ins.source[1] or ins.line  # the line of the PTX text if the instruction names no source line
        line = self.lines.setdefault((file, number), len(self.lines))
        if self.started:
            negate |= CONTINUES
        self.started = True
        if not all(-1 << 63 <= value < 1 << 63 for value in (type_, type2, imm)):
            raise self.fail("a number has more than 64 bits")
        self.code.append([op, type_, type2, d, a, b, c, e, guard, negate, imm, flags, d2, place, count, line])
        self.texts.append(ins.text)
        return len(self.code) - 1

    def keep_guard(self) -> None:
        """Copy the guard's present value, which guards the rest of this instruction even if it overwrites the guard."""
        ins = self.instruction
        assert ins is not None
        if ins.guard is not None:
            row = self.new_row()
            self.emit(isa.MOV, isa.PREDICATE, d=row, a=self.row(Name(ins.guard.text)), guarded=False)
            self.guard_row = row

    # ---- branches ----
    def branch(self, op: int, label: Any, **more: Any) -> None:
        """Append a branch to a label."""
        if not isinstance(label, Name):
            raise self.fail(f"expected a label, got {label!r}")
        at = self.emit(op, **more)
        assert self.instruction is not None
        self.fixups.append((at, self.visible, label.text, self.instruction.line))

    def branch_table(self, index: int, name: str) -> None:
        """Append a branch to one label of a list. index: the row that selects the label. name: the list's name."""
        assert self.instruction is not None
        for scope in reversed(self.scopes):
            if name in scope.targets:
                labels = scope.targets[name]
                at = self.emit(isa.BRX, isa.U32, a=index, items=[0] * len(labels))
                for i, label in enumerate(labels):
                    place = self.code[at][isa.LIST] + i
                    self.table_fixups.append((place, self.visible, label, self.instruction.line))
                return
        raise self.fail(f"the list of targets {name} is not defined")


def paired(scope: Scope) -> bool:
    """Whether a scope has an instruction with .cta_group::2."""
    return any(
        paired(item) if isinstance(item, Scope) else isinstance(item, Instruction) and "cta_group::2" in item.mods
        for item in scope.items
    )


def immediate(number: Number, type_: int) -> int:
    """The bits that an immediate has as an operand of a type."""
    if number.kind == "i":
        if type_ in (isa.F32, isa.F64) and number.value:
            packed = struct.pack("<f" if type_ == isa.F32 else "<d", float(number.value))
            return int.from_bytes(packed, "little")
        return number.value & MASK64
    if number.kind == "f" and type_ in (isa.F64, isa.B64):
        value = struct.unpack("<f", number.value.to_bytes(4, "little"))[0]
        return int.from_bytes(struct.pack("<d", value), "little")
    if number.kind == "d" and type_ in (isa.F32, isa.B32):
        value = struct.unpack("<d", number.value.to_bytes(8, "little"))[0]
        return int(np.float32(value).view(np.uint32))
    return number.value
