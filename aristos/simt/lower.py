"""From parsed PTX to a program: one row of numbers an instruction, operands as rows of the register file.

Immediates, addresses of variables and special registers that a thread cannot change are rows too, filled when a block
starts; so every operand is read in the same way. An instruction PTX has and the machine lacks is an error here, before
anything runs. What each opcode becomes is in decode/.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import isa
from .ptx import Address, Function, Group, Instruction, Label, Module, Name, Number, PTXError, Scope, Variable, Vector

# ---- rows that every program has: what a block or a warp is told when it starts ----
SPECIAL = [
    "_", "tid.x", "tid.y", "tid.z", "ntid.x", "ntid.y", "ntid.z", "ctaid.x", "ctaid.y", "ctaid.z", "nctaid.x",
    "nctaid.y", "nctaid.z", "laneid", "warpid", "nwarpid", "smid", "nsmid", "gridid", "lanemask_eq", "lanemask_le",
    "lanemask_lt", "lanemask_ge", "lanemask_gt", "PARAMS", "FRAME", "STACK", "dynamic_smem_size", "total_smem_size",
    "CARRY", "ZERO", "ONE",
]  # fmt: skip
ROW = {name: row for row, name in enumerate(SPECIAL)}
TRASH, PARAMS, FRAME, STACK = ROW["_"], ROW["PARAMS"], ROW["FRAME"], ROW["STACK"]
CARRY, ZERO, ONE = ROW["CARRY"], ROW["ZERO"], ROW["ONE"]
CONSTANT_REGISTERS = {
    **{f"%{name}": ROW[name] for name in SPECIAL if name.islower() and name != "_"},
    "%laneid": ROW["laneid"], "WARP_SZ": -32,
    "%clusterid.x": ROW["ctaid.x"], "%clusterid.y": ROW["ctaid.y"], "%clusterid.z": ROW["ctaid.z"],
    "%nclusterid.x": ROW["nctaid.x"], "%nclusterid.y": ROW["nctaid.y"], "%nclusterid.z": ROW["nctaid.z"],
    **{f"%cluster_ctaid.{axis}": ROW["ZERO"] for axis in "xyz"}, "%cluster_ctarank": ROW["ZERO"],
    **{f"%cluster_nctaid.{axis}": ROW["ONE"] for axis in "xyz"}, "%cluster_nctarank": ROW["ONE"],
    "%is_explicit_cluster": ROW["ZERO"], **{f"%envreg{i}": ROW["ZERO"] for i in range(32)},
}  # fmt: skip
CLOCKS = {"%clock": 0, "%clock64": 0, "%clock_hi": 1, "%globaltimer": 2, "%globaltimer_lo": 2, "%globaltimer_hi": 3}
MASK64 = (1 << 64) - 1
MOST_LOCAL = 512 * 1024  # bytes of a thread, as of the CUDA programming guide
CONTINUES = 2  # in NEGATE: part of the instruction before, not counted again


@dataclass
class FunctionInfo:
    """Where a function's code, registers and frame are."""

    name: str
    entry: bool
    start: int = 0
    first_row: int = 0
    end_row: int = 0
    frame: int = 0  # bytes of local memory
    formals: list[tuple[int, int]] = field(default_factory=list)  # (offset, bytes) of returns, then parameters
    calls: set[str] = field(default_factory=set)
    recursive: bool = False
    registers: int = 0  # a guess at what the hardware would use for a thread
    limits: dict[str, list[int]] = field(default_factory=dict)
    params: list[Variable] = field(default_factory=list)


@dataclass
class Program:
    """A module ready to run.

    code: [instructions, 16] int64; operands: int64, the lists of instructions; constants: row -> value;
    relocations: (row, symbol, offset); lines: (file, line) by number.
    """

    code: np.ndarray
    operands: np.ndarray
    rows: int
    constants: dict[int, int]
    relocations: list[tuple[int, str, int]]
    lines: list[tuple[str, int]]
    functions: dict[str, FunctionInfo]
    order: list[str]
    variables: dict[str, Variable]
    shared: dict[str, tuple[int, int]]  # name -> (offset, bytes)
    shared_bytes: int
    granule: int  # bytes of the smallest access, for the checker's shared memory
    texts: list[str]  # of each instruction, for reports
    indirect: bool
    formats: dict[int, str] = field(default_factory=dict)
    local_bytes: int = 0
    depth: int = 1
    save_rows: int = 0


def layout(variables: list[Variable], returns: int) -> tuple[list[tuple[int, int]], int]:
    """Offsets in the frame of a function's returns and parameters; callers and callees agree on it.

    Parameters lie first: Numba declares C functions without a result as if they had one, and linkers let it pass.
    """
    places, offset = [(0, 0)] * len(variables), 0
    for index in (*range(returns, len(variables)), *range(returns)):
        places[index] = offset, variables[index].size
        offset += -(-variables[index].size // 16) * 16
    return places, offset


def lower(module: Module) -> Program:
    """The program of a module; raises PTXError naming the opcode and the line."""
    return Lowering(module).program()


class Lowering:
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
        self.granule = 8
        self.indirect = False
        self.scopes: list[Scope] = []
        self.names: list[dict[str, Any]] = []
        self.fixups: list[tuple[int, list[dict[str, int]], str, int]] = []
        self.table_fixups: list[tuple[int, list[dict[str, int]], str, int]] = []
        self.call_fixups: list[tuple[int, str, int]] = []
        self.current: FunctionInfo | None = None
        self.started = False
        self.visible: list[dict[str, int]] = []
        self.instruction: Instruction | None = None
        self.guard_row = 0  # a copy of the guard, for an instruction whose first results may overwrite it

    # ---- rows ----
    def new_row(self) -> int:
        self.rows += 1
        return self.rows - 1

    def constant(self, value: int) -> int:
        value &= MASK64
        if value not in self.constant_rows:
            self.constant_rows[value] = self.new_row()
        return self.constant_rows[value]

    def symbol(self, name: str, offset: int = 0) -> int:
        key = (name, offset)
        if key not in self.symbol_rows:
            self.symbol_rows[key] = self.new_row()
        return self.symbol_rows[key]

    def fail(self, what: str) -> PTXError:
        assert self.instruction is not None
        return PTXError(f"PTX line {self.instruction.line}: {self.instruction.text}: {what}")

    def find(self, name: str) -> Any:
        """What a name means here: ('row', row), ('local', offset), ('param', variable), Variable, or None."""
        for known, scope in zip(reversed(self.names), reversed(self.scopes)):
            if name in known:
                return known[name]
            if name in scope.registers:
                known[name] = ("row", self.new_row(), scope.registers[name])
                return known[name]
            for prefix, (kind, count) in scope.families.items():
                digits = name[len(prefix) :]
                if name.startswith(prefix) and digits.isdigit() and int(digits) < count:
                    known[name] = ("row", self.new_row(), kind)
                    return known[name]
        return self.variables.get(name)

    def kind(self, operand: Any) -> str:
        """The type that a register was declared with; '' for other operands."""
        found = self.find(operand.text) if isinstance(operand, Name) else None
        return found[2] if isinstance(found, tuple) and found[0] == "row" else ""

    def row(self, operand: Any, type_: int = isa.B64, write: bool = False) -> int:
        """The row of an operand, read as a type."""
        if write and (not isinstance(operand, Name) or operand.negated):
            raise self.fail("the result must go to a register")
        if isinstance(operand, Number):
            return self.constant(immediate(operand, type_))
        if isinstance(operand, Address):
            if operand.base is None:
                return self.constant(operand.offset)
            return self.address_row(operand)
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
        if name in ("%pm0", "%pm1", "%pm2", "%pm3"):
            return ZERO
        found = self.find(name)
        if isinstance(found, tuple) and found[0] == "row":
            return found[1]
        if found is None and name not in self.module.functions and name not in self.module.aliases:
            raise self.fail(f"{name} is not declared")
        return self.address_row(Address(Name(name), 0))

    def address_row(self, address: Address) -> int:
        """A row that holds the address itself: of a variable in its space, or of a function."""
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
        """(row, offset, space of the variable or '') of an address in brackets."""
        if isinstance(operand, Name):
            operand = Address(operand, 0)
        if not isinstance(operand, Address):
            raise self.fail(f"expected an address, got {operand!r}")
        if operand.base is None:
            return ZERO, operand.offset, ""
        found = self.find(operand.base.text)
        if isinstance(found, tuple) and found[0] == "row":
            if found[2] == "pred" or found[2][0] == "f":
                raise self.fail(f"register {operand.base.text} of type .{found[2]} is no address")
            return found[1], operand.offset, ""
        if isinstance(found, tuple):
            return (FRAME if found[0] == "local" else PARAMS), found[1] + operand.offset, found[0]
        space = found.space if isinstance(found, Variable) else ""
        return self.address_row(Address(operand.base, 0)), operand.offset, space

    # ---- emission ----
    def emit(self, op: int, type_: int = 0, type2: int = 0, d: int = TRASH, a: int = ZERO, b: int = ZERO, c: int = ZERO,
             e: int = ZERO, imm: int = 0, flags: int = 0, d2: int = TRASH, items: list[int] | None = None,
             guarded: bool = True) -> int:  # fmt: skip
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
            count = len(items)
            self.operands += items
        file = self.module.files.get(ins.source[0], "")
        number = ins.source[1] or ins.line  # of the PTX text, where it does not say which source
        line = self.lines.setdefault((file, number), len(self.lines))
        if self.started:
            negate |= CONTINUES
        self.started = True
        if not all(-1 << 63 <= value < 1 << 63 for value in (type_, type2, imm)):
            raise self.fail("a number of it has more than 64 bits")
        self.code.append([op, type_, type2, d, a, b, c, e, guard, negate, imm, flags, d2, place, count, line])
        self.texts.append(ins.text)
        return len(self.code) - 1

    def keep_guard(self) -> None:
        """Guard what follows of this instruction by the guard as it is now, whatever the instruction writes."""
        ins = self.instruction
        assert ins is not None
        if ins.guard is not None:
            row = self.new_row()
            self.emit(isa.MOV, isa.PREDICATE, d=row, a=self.row(Name(ins.guard.text)), guarded=False)
            self.guard_row = row

    def program(self) -> Program:
        self.place_shared(self.module.variables)
        bodies = [f for f in self.module.functions.values() if f.body is not None]
        for function in sorted(bodies, key=lambda f: f.entry):  # callees first: their lanes run first, and meet again
            self.function(function)
        for at, name, line in self.call_fixups:
            if name not in self.functions:
                raise PTXError(f"PTX line {line}: call of {name}, which is not in the module and not built in")
            self.code[at][isa.IMM] = self.functions[name].start
        self.depths()
        code = np.array(self.code, np.int64).reshape(-1, isa.COLUMNS)
        constants = {row: value for value, row in self.constant_rows.items()}
        relocations = [(row, name, offset) for (name, offset), row in self.symbol_rows.items()]
        lines = sorted(self.lines, key=lambda key: self.lines[key])
        program = Program(
            code, np.array([*self.operands, 0], np.int64), self.rows, constants, relocations, lines, self.functions,
            list(self.functions), self.variables,
            {name: (at, self.shared_sizes[name]) for name, at in self.shared.items()}, self.shared_bytes, self.granule,
            self.texts, self.indirect,
        )  # fmt: skip
        frames = self.longest()
        program.depth, program.local_bytes, program.save_rows = frames
        if program.local_bytes > MOST_LOCAL:
            raise PTXError(f"a thread can have {MOST_LOCAL} bytes of local memory, got {program.local_bytes}")
        for info in self.functions.values():
            info.registers = registers(code, self.operands, self.functions)
        return program

    def place_shared(self, variables: dict[str, Variable]) -> None:
        for variable in variables.values():
            if variable.space != "shared":
                continue
            if variable.size == 0:
                self.dynamic.add(variable.name)
                continue
            align = max(variable.align, 1)
            self.shared_bytes = -(-self.shared_bytes // align) * align
            if self.shared:  # a gap behind each variable, where an index too far is seen
                self.shared_bytes = -(-(self.shared_bytes + 16) // 128) * 128
            self.shared[variable.name] = self.shared_bytes
            self.shared_sizes[variable.name] = variable.size
            self.shared_bytes += variable.size

    def function(self, function: Function) -> None:
        info = FunctionInfo(function.name, function.entry, limits=function.limits, params=function.params)
        self.functions[function.name] = self.current = info
        info.start, info.first_row = len(self.code), self.rows
        known: dict[str, Any] = {}
        if function.entry:
            offset = 0
            for variable in function.params:
                offset = -(-offset // variable.align) * variable.align
                known[variable.name] = ("param", offset, variable.size)
                offset += variable.size
        else:
            formals = function.returns + function.params
            info.formals, info.frame = layout(formals, len(function.returns))
            for variable, (offset, size) in zip(formals, info.formals):
                if variable.space == "reg":
                    raise PTXError(
                        f"PTX line {function.line}: {function.name}: parameters in registers are not supported"
                    )
                known[variable.name] = ("local", offset, size)
        outer = Scope()
        labels: list[dict[str, int]] = [{}]
        self.scopes, self.names = [outer], [known]
        assert function.body is not None
        self.instruction = Instruction("ret", [], [], None, function.line)
        self.scope(function.body, labels)
        self.started = False
        self.instruction = Instruction("ret", [], [], None, function.line, self.instruction.source)
        self.emit(isa.RET)
        for at, visible, name, line in self.fixups:
            self.code[at][isa.IMM] = self.target(visible, name, line)
        for at, visible, name, line in self.table_fixups:
            self.operands[at] = self.target(visible, name, line)
        self.fixups, self.table_fixups = [], []
        info.end_row = self.rows
        info.frame = -(-info.frame // 16) * 16
        for row in self.code[info.start :]:
            if row[isa.OP] in (isa.CALL, isa.CALLI):
                row[isa.TYPE2] = info.frame

    @staticmethod
    def target(visible: list[dict[str, int]], name: str, line: int) -> int:
        for labels in reversed(visible):
            if name in labels:
                return labels[name]
        raise PTXError(f"PTX line {line}: no label {name}")

    def scope(self, scope: Scope, labels: list[dict[str, int]]) -> None:
        from .decode import decode

        assert self.current is not None
        self.scopes.append(scope)
        known: dict[str, Any] = {}
        self.names.append(known)
        mine: dict[str, int] = {}
        labels.append(mine)
        for variable in scope.variables.values():
            if variable.space in ("local", "param"):
                align = max(variable.align, 8)
                self.current.frame = -(-self.current.frame // align) * align
                known[variable.name] = ("local", self.current.frame, variable.size)
                self.current.frame += variable.size
            elif variable.space == "shared":
                name = f"{self.current.name}/{variable.name}/{len(self.shared)}"
                self.place_shared({name: Variable(name, "shared", variable.type, variable.align, variable.size)})
                known[variable.name] = Variable(name, "shared", variable.type, variable.align, variable.size)
            else:
                self.variables[variable.name] = variable
        for item in scope.items:
            if isinstance(item, Label):
                if item.name in mine:
                    raise PTXError(f"PTX line {item.line}: label {item.name} stands here a second time")
                mine[item.name] = len(self.code)
            elif isinstance(item, Scope):
                self.scope(item, labels)
            else:
                self.instruction, self.started, self.guard_row = item, False, 0
                self.visible = list(labels)
                decode(self, item)
        labels.pop()
        self.names.pop()
        self.scopes.pop()

    # ---- branches and calls ----
    def branch(self, op: int, label: Any, **more: Any) -> None:
        if not isinstance(label, Name):
            raise self.fail(f"expected a label, got {label!r}")
        at = self.emit(op, **more)
        assert self.instruction is not None
        self.fixups.append((at, self.visible, label.text, self.instruction.line))

    def branch_table(self, index: int, name: str) -> None:
        assert self.instruction is not None
        for scope in reversed(self.scopes):
            if name in scope.targets:
                labels = scope.targets[name]
                at = self.emit(isa.BRX, isa.U32, a=index, items=[0] * len(labels))
                for i, label in enumerate(labels):
                    place = self.code[at][isa.LIST] + i
                    self.table_fixups.append((place, self.visible, label, self.instruction.line))
                return
        raise self.fail(f"no list of targets {name}")

    def call(self, returns: tuple, target: Name, arguments: tuple) -> None:
        """A call: where each argument and result lies in the caller's frame and in the callee's."""
        assert self.instruction is not None
        assert self.current is not None
        mine = []
        for operand in (*returns, *arguments):
            found = self.find(operand.text) if isinstance(operand, Name) else None
            if not isinstance(found, tuple) or found[0] != "local":
                raise self.fail("arguments of calls must be variables in .param space")
            mine.append((found[1], found[2]))
        theirs, _ = layout([Variable("", "param", "b8", 1, size) for _, size in mine], len(returns))
        items = [len(returns), len(arguments)]
        for (here, size), (there, _) in zip(mine, theirs):
            items += [here, there, size]
        name = self.module.aliases.get(target.text, target.text)
        if self.find(target.text) is not None:  # through a register
            self.indirect = True
            self.current.calls.add("*")
            self.emit(isa.CALLI, a=self.row(target), items=items, imm=-1)
            return
        from .builtin import lower_builtin

        function = self.module.functions.get(name)
        if function is None or function.body is None:
            lower_builtin(self, name, [offset for offset, _ in mine], len(returns))
            return
        self.current.calls.add(name)
        at = self.emit(isa.CALL, items=items)
        self.call_fixups.append((at, name, self.instruction.line))

    def depths(self) -> None:
        """Which functions can be active twice in one lane: their registers are saved at calls."""
        reach = {name: self.reachable(name) for name in self.functions}
        for name, info in self.functions.items():
            info.recursive = name in reach[name]
        for line in self.code:
            if line[isa.OP] == isa.CALL:
                callee = next(f for f in self.functions.values() if f.start == line[isa.IMM])
                line[isa.C] = callee.first_row if callee.recursive else 0
                line[isa.E] = callee.end_row if callee.recursive else 0

    def reachable(self, name: str) -> set[str]:
        seen: set[str] = set()
        todo = [name]
        while todo:
            for callee in self.callees(todo.pop()):
                if callee not in seen:
                    seen.add(callee)
                    todo.append(callee)
        return seen

    def callees(self, name: str) -> set[str]:
        """The functions that a function may call; through a register, any that is no entry."""
        calls = self.functions[name].calls
        if "*" not in calls:
            return calls
        return {name for name, f in self.functions.items() if not f.entry}

    def longest(self) -> tuple[int, int, int]:
        """(calls deep, bytes of frames, rows saved) that a lane needs room for."""
        if any(f.recursive for f in self.functions.values()):
            widest = max(f.end_row - f.first_row for f in self.functions.values() if f.recursive)
            return 400, 32768, 100 * max(widest, 1)

        def deepest(name: str) -> tuple[int, int]:
            info = self.functions[name]
            below = [deepest(callee) for callee in self.callees(name)]
            return 1 + max((d for d, _ in below), default=0), info.frame + max((b for _, b in below), default=0)

        both = [deepest(name) for name, f in self.functions.items() if f.entry] or [(1, 0)]
        return max(d for d, _ in both) + 1, max(b for _, b in both) + 16, 0


def immediate(number: Number, type_: int) -> int:
    """The bits of an immediate, as an operand of a type."""
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


def registers(code: np.ndarray, operands: list[int], functions: dict[str, FunctionInfo]) -> int:
    """A guess at the registers of a thread: the most values alive at once, their lives drawn in the order of the code.

    The hardware's assembler decides; this only sets how many blocks are resident. In words of 32 bits, rounded up to 8.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    lowest = min((f.first_row for f in functions.values()), default=0)
    wide = {}
    for pc, line in enumerate(code.tolist()):
        listed = operands[line[isa.LIST] : line[isa.LIST] + line[isa.COUNT]] if line[isa.OP] in LISTS else []
        for row in [*(line[column] for column in (isa.D, isa.A, isa.B, isa.C, isa.E, isa.D2)), *listed]:
            if row >= lowest:
                first.setdefault(row, pc)
                last[row] = pc
                wide[row] = 2 if line[isa.TYPE] & 15 == 8 and line[isa.TYPE] & 0xF0 < 0x40 else 1
    for pc, line in enumerate(code.tolist()):
        if line[isa.OP] == isa.BRA and line[isa.IMM] <= pc:
            for row, start in first.items():
                if start < line[isa.IMM] <= last[row] < pc:
                    last[row] = pc
    change = np.zeros(len(code) + 2, np.int64)
    for row, start in first.items():
        change[start] += wide[row]
        change[last[row] + 1] -= wide[row]
    most = int(np.cumsum(change).max()) if len(code) else 0
    return min(max(-(-(most + 8) // 8) * 8, 16), 255)


LISTS = {isa.LD, isa.ST, isa.PACK, isa.UNPACK, isa.MMA, isa.LDMATRIX, isa.STMATRIX, isa.WGMMA}
__all__ = ["Group", "Lowering", "Program", "Vector", "lower"]
