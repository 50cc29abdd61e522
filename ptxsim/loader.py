"""Loading of programs on a machine, which joins their code into one table, places variables, and fills in addresses."""

from __future__ import annotations

import hashlib

import numpy as np

from . import isa
from . import state as s
from .address_space import Memory
from .errors import InputError
from .heap import heap_for
from .lower import lower
from .parser import parse
from .program import Program
from .syntax import Variable

_programs: dict[str, Program] = {}  # by the hash of their text, shared by all machines
MOST_PROGRAMS = 256
JUMPS = (isa.BRA, isa.CALL)


def key_of(text: str) -> str:
    """The key of a text in the table of known programs."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


class Loader:
    """The programs that a machine has loaded.

    code: [instructions, 16], the joined code of all programs. operands: the lists of operands of all instructions.
    counts: [instructions, N_FIELDS], the counters of each instruction.
    """

    def __init__(self, x: np.ndarray, memory: Memory):
        self.x, self.memory = x, memory
        self.programs: list[Program] = []
        self.bases: list[tuple[int, int]] = []  # the beginnings of each program's code and operands
        self.code = np.zeros((0, isa.COLUMNS), np.int64)
        self.operands = np.zeros(0, np.int64)
        self.counts = np.zeros((0, s.N_FIELDS), np.int64)
        self.seen = np.zeros(0, np.int64)
        self.functions: list[tuple[int, int, int]] = []  # (first instruction, first and end of the rows a call saves)
        self.function_numbers: dict[tuple[int, str], int] = {}
        self.addresses: dict[tuple[int, int, str], int] = {}  # (program, device, variable)

    def program(self, text: str) -> Program:
        """The program of PTX text, with a heap if it declares malloc or free. A text is lowered only once."""
        key = key_of(text)
        program = _programs.get(key)
        if program is None:
            if len(_programs) >= MOST_PROGRAMS:
                _programs.pop(next(iter(_programs)))
            program = _programs[key] = lower(parse(text + heap_for(text)))
        if not any(program is known for known in self.programs):
            self.add(program)
        return program

    def add(self, program: Program) -> None:
        """Append a program's code to the joined table."""
        base, operand_base = len(self.code), len(self.operands)
        code, operands = program.code.copy(), program.operands.copy()
        for line in code:
            op = line[isa.OP]
            if op in JUMPS:
                line[isa.IMM] += base
            elif op == isa.BRX:
                at = line[isa.LIST]
                operands[at : at + line[isa.COUNT]] += base
        code[:, isa.LIST] += operand_base
        if base + len(code) >= 1 << 21:
            raise InputError("the kernels of a machine may have at most 2 million instructions together")
        self.programs.append(program)
        self.bases.append((base, operand_base))
        self.code = np.concatenate([self.code, code])
        self.operands = np.concatenate([self.operands, operands])
        self.counts = np.concatenate([self.counts, np.zeros((len(code), s.N_FIELDS), np.int64)])
        self.seen = np.concatenate([self.seen, np.zeros(len(code) * len(s.KINDS), np.int64)])
        number = len(self.programs) - 1
        for name in program.order:
            info = program.functions[name]
            self.function_numbers[number, name] = len(self.functions)
            rows = (info.first_row, info.end_row) if info.recursive else (0, 0)
            self.functions.append((base + info.start, *rows))

    def number(self, program: Program) -> int:
        """The number of a loaded program."""
        return next(i for i, known in enumerate(self.programs) if known is program)

    def base(self, program: Program) -> int:
        """The place of a program's first instruction in the joined code."""
        return self.bases[self.number(program)][0]

    def publish(self) -> None:
        """Write the addresses of the tables into x, at the start of a run."""
        x = self.x
        self.seen[:] = 0  # because a run reports each finding once
        table = [len(self.functions)]
        for function in self.functions:
            table += function
        self.function_table = np.array(table, np.int64)
        x[s.CODE], x[s.OPERANDS] = self.code.ctypes.data, self.operands.ctypes.data
        x[s.COUNTS], x[s.SEEN] = self.counts.ctypes.data, self.seen.ctypes.data
        x[s.FUNCTIONS] = self.function_table.ctypes.data

    def address(self, program: Program, device: int, name: str) -> int:
        """The address of a module's variable on a device. The first call places and initialises the variable."""
        number = self.number(program)
        key = (number, device, name)
        if key not in self.addresses:
            variable = program.variables[name]
            granule = variable.element if variable.element in (1, 2, 4, 8) else 1
            allocation = self.memory.allocate(max(variable.size, 1), device, granule, name, True)
            self.addresses[key] = isa.GLOBAL_START + allocation.start
            if variable.space == "const":
                self.memory.table[allocation.number, s.A_STATE] = s.CONSTANT
            allocation.itemsize = variable.element
            data = b"".join(self.initial(program, device, variable))
            self.memory.bytes_of(allocation)[: len(data)] = np.frombuffer(data, np.uint8)
        return self.addresses[key]

    def set_variable(self, program: Program, device: int, name: str, data: bytes) -> None:
        """Set the first bytes of a module's variable on a device.

        Raises InputError if the variable is unknown, or smaller than `data`.
        """
        variable = program.variables.get(name)
        known = [one for one, found in program.variables.items() if found.space in ("const", "global")]
        if variable is None or name not in known:
            raise InputError(f"the kernels have the variables {', '.join(known) or '(none)'}, got {name}")
        if len(data) > variable.size:
            raise InputError(f"{name} has {variable.size} bytes, got a value of {len(data)}")
        allocation = self.memory.at(self.address(program, device, name))
        assert allocation is not None
        self.memory.bytes_of(allocation)[: len(data)] = np.frombuffer(data, np.uint8)

    def initial(self, program: Program, device: int, variable: Variable) -> list[bytes]:
        """The bytes of each of a variable's initial values. A name in the initialiser becomes an address."""
        parts = []
        for value in variable.values:
            if isinstance(value, tuple):
                symbol, offset = value
                if symbol in program.functions:
                    value = isa.FUNCTION_START + self.function_numbers[self.number(program), symbol] + offset
                else:
                    value = self.address(program, device, symbol) + offset
            parts.append((value & ((1 << (8 * variable.element)) - 1)).to_bytes(variable.element, "little"))
        return parts

    def constants(self, program: Program, device: int) -> np.ndarray:
        """The rows that hold constants on a device, as (row, value): [n, 2] int64."""
        pairs = [(row, value) for row, value in program.constants.items()]
        for row, name, offset in program.relocations:
            if name == "@dynamic":
                value = program.dynamic_start + offset
            elif name.startswith("@"):
                value = isa.FUNCTION_START + self.function_numbers[self.number(program), name[1:]]
            else:
                value = self.address(program, device, name) + offset
            pairs.append((row, value))
        table = np.zeros((len(pairs), 2), np.uint64)
        for i, (row, value) in enumerate(pairs):
            table[i] = row, value & 0xFFFFFFFFFFFFFFFF
        return table.view(np.int64)

    def where(self, pc: int) -> tuple[Program, int]:
        """Find an instruction of the joined code. Returns (its program, its index in that program)."""
        for program, (base, _) in zip(reversed(self.programs), reversed(self.bases)):
            if pc >= base:
                return program, pc - base
        raise AssertionError(pc)
