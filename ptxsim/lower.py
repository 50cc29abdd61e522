"""Lowering of parsed PTX to a program: one row of numbers for each instruction, with rows of registers as operands.

The modules of decode/ lower the opcodes. An instruction that PTX has and the machine lacks raises an error here, before
anything runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import isa
from .callgraph import longest, mark_recursive, registers
from .decode import decode
from .liveness import list_live_rows
from .lowering import Lowering
from .program import FunctionInfo, Program, layout
from .rows import ROW
from .syntax import Function, Instruction, Label, Module, PTXError, Scope, Variable

GRID_BARRIER = (ROW["envreg1"], ROW["envreg2"])  # rows that have the address of a grid's barrier
MOST_LOCAL = 512 * 1024  # bytes of a thread: the CUDA programming guide's limit


def lower(module: Module) -> Program:
    """The program of a module. Raises PTXError, which names the opcode and the line."""
    return ModuleLowering(module).program()


class ModuleLowering(Lowering):
    """Walks over a module's functions and scopes. decode/ lowers the instructions."""

    def program(self) -> Program:
        """Lower all functions and put the program together."""
        self.place_shared(self.module.variables)
        bodies = [f for f in self.module.functions.values() if f.body is not None]
        # callees come first: of a warp's lanes, those whose instruction has the lowest index run first. So lanes in a
        # callee return before lanes after the call go on, and they meet there again
        for function in sorted(bodies, key=lambda f: f.entry):
            self.function_or_refusal(function)
        for at, name, line in self.call_fixups:
            if name not in self.functions:
                raise PTXError(f"PTX line {line}: call of {name}, which is not in the module and not built in")
            self.code[at][isa.IMM] = self.functions[name].start
        self.refuse_callers()
        for variable in self.variables.values():
            for value in variable.values:
                if isinstance(value, tuple) and not (value[0] in self.functions or value[0] in self.variables):
                    raise PTXError(f"{variable.name} holds the address of {value[0]}, which is not in the module")
        mark_recursive(self.functions, self.code)
        list_live_rows(self.code, self.operands, [info.start for info in self.functions.values()])
        code = np.array(self.code, np.int64).reshape(-1, isa.COLUMNS)
        constants = {row: value for value, row in self.constant_rows.items()}
        relocations = [(row, name, offset) for (name, offset), row in self.symbol_rows.items()]
        lines = sorted(self.lines, key=lambda key: self.lines[key])
        program = Program(
            code,
            np.array([*self.operands, 0], np.int64),
            self.rows,
            constants,
            relocations,
            lines,
            self.functions,
            list(self.functions),
            self.variables,
            {name: (at, self.shared_sizes[name]) for name, at in self.shared.items()},
            self.shared_bytes,
            self.granule,
            self.texts,
            self.indirect,
        )
        program.dynamic_align, program.target = self.dynamic_align, self.module.target
        program.workspace = bool(np.isin(code[:, isa.A : isa.E + 1], GRID_BARRIER).any())
        program.depth, program.local_bytes, program.save_rows = longest(self.functions)
        if program.local_bytes > MOST_LOCAL:
            raise PTXError(f"a thread can have at most {MOST_LOCAL} bytes of local memory, got {program.local_bytes}")
        most = registers(code, self.operands, self.functions)
        for info in self.functions.values():
            info.registers = most
        return program

    def place_shared(self, variables: dict[str, Variable]) -> None:
        """Give each shared variable an offset in shared memory."""
        for variable in variables.values():
            if variable.space != "shared":
                continue
            if variable.size == 0:
                self.dynamic.add(variable.name)
                self.dynamic_align = max(self.dynamic_align, variable.align)
                continue
            align = max(variable.align, 1)
            if self.shared:  # a gap after each variable, so that an index beyond its end is detected
                self.shared_bytes += 16
                align = max(align, 128)
            self.shared_bytes = -(-self.shared_bytes // align) * align
            self.shared[variable.name] = self.shared_bytes
            self.shared_sizes[variable.name] = variable.size
            self.shared_bytes += variable.size

    def function_or_refusal(self, function: Function) -> None:
        """Lower one function. If the machine cannot run it, note why: the module's other kernels can be launched."""
        start, shared, sizes = len(self.code), dict(self.shared), (self.shared_bytes, self.granule)
        try:
            self.function(function)
        except PTXError as error:
            info = self.functions[function.name]
            info.refused, info.calls = str(error), set()
            del self.code[start:], self.texts[start:]
            self.fixups, self.table_fixups = [], []
            self.call_fixups = [fixup for fixup in self.call_fixups if fixup[0] < start]
            self.shared, (self.shared_bytes, self.granule) = shared, sizes
            self.scopes, self.names = [], []
            self.instruction, self.started = Instruction("trap", [], [], None, function.line), False
            self.emit(isa.TRAP)
            info.end_row = self.rows

    def refuse_callers(self) -> None:
        """Refuse the functions that call a refused one. Raises PTXError if no kernel of the module can be launched."""
        todo = [info for info in self.functions.values() if info.refused]
        while todo:
            refused = todo.pop()
            for info in self.functions.values():
                if not info.refused and refused.name in info.calls:
                    info.refused = refused.refused
                    todo.append(info)
        reasons = [info.refused for info in self.functions.values() if info.entry or info.refused]
        if reasons and all(reasons):
            raise PTXError(reasons[0])

    def function(self, function: Function) -> None:
        """Lower one function."""
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
        """The index of the instruction at a label. The label is searched from the innermost scope outwards."""
        for labels in reversed(visible):
            if name in labels:
                return labels[name]
        raise PTXError(f"PTX line {line}: the label {name} is not defined")

    def scope(self, scope: Scope, labels: list[dict[str, int]]) -> None:
        """Lower one scope and those inside it."""
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
                    raise PTXError(
                        f"PTX line {item.line}: label {item.name} must be defined once, but this is the second time"
                    )
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
