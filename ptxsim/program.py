"""A lowered module: a row of numbers for each instruction, and what launches and reports need to know of the module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .syntax import Variable


@dataclass
class FunctionInfo:
    """The places of a function's code, registers and frame."""

    name: str
    entry: bool
    start: int = 0
    first_row: int = 0
    end_row: int = 0
    frame: int = 0  # bytes of local memory
    formals: list[tuple[int, int]] = field(default_factory=list)  # (offset, bytes) of returns, then of parameters
    calls: set[str] = field(default_factory=set)
    recursive: bool = False
    registers: int = 0  # how many registers a thread needs on hardware, estimated
    limits: dict[str, list[int]] = field(default_factory=dict)
    params: list[Variable] = field(default_factory=list)
    refused: str = ""  # why the machine cannot run the function; '' if it can


@dataclass
class Program:
    """A module that is ready to run.

    code: [instructions, 16] int64. operands: int64, the instructions' lists of operands. rows: the number of rows of
    registers. constants: row -> value. relocations: (row, symbol, offset) for each row that holds an address. lines:
    the source lines as (file, line); the code has their indices.
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
    granule: int  # bytes of the smallest access, for the checker's cells of shared memory
    texts: list[str]  # one for each instruction, for reports
    indirect: bool  # whether some call goes through a register
    formats: dict[int, str] = field(default_factory=dict)
    local_bytes: int = 0
    dynamic_align: int = 128  # the multiple of bytes at which dynamic shared memory begins
    depth: int = 1  # depth of the longest chain of calls
    save_rows: int = 0  # the most rows of registers that recursive calls save
    ir: list[str] = field(default_factory=list)  # LLVM's text of the kernel and its callees, if Numba compiled them
    target: str = ""  # the architecture that the text names
    workspace: bool = False  # whether kernels read the address of a grid's barrier, as cooperative groups do
    described: dict[str, Any] | None = None  # the program's shared arrays, found by shared_arrays.py

    @property
    def dynamic_start(self) -> int:
        """Where dynamic shared memory begins in a block's shared memory."""
        return -(-self.shared_bytes // self.dynamic_align) * self.dynamic_align


def layout(variables: list[Variable], returns: int) -> tuple[list[tuple[int, int]], int]:
    """Place returns and parameters in a frame, in the same way for callers and callees.

    Returns ((offset, bytes) of each variable, bytes of all). variables: the returns, whose number is `returns`, then
    the parameters. Parameters get the lowest offsets, so that their places agree even if only one side declares a
    result, as Numba does for C functions.
    """
    places, offset = [(0, 0)] * len(variables), 0
    for index in (*range(returns, len(variables)), *range(returns)):
        places[index] = offset, variables[index].size
        offset += -(-variables[index].size // 16) * 16
    return places, offset
