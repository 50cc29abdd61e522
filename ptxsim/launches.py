"""A queued or running launch of a kernel, and its sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import InputError
from .program import FunctionInfo, Program

MOST = {"grid": (2**31 - 1, 65535, 65535), "block": (1024, 1024, 64)}  # the CUDA programming guide's limits


@dataclass
class Launch:
    """One launch of a kernel.

    params: the bytes of its parameters. dynamic: bytes of dynamic shared memory. per_sm: how many blocks can be
    resident on an SM. first: the number of its first block. base: the place of its program in the joined code. first
    and base are set when the launch runs. after: functions to call when the launch has ended. stream: the stream that
    it is in. needs: the launches that must end before it begins, that of its stream last. programmatic: whether it
    begins as soon as that last one lets it. workspace: the address of memory for cooperative groups, or 0.
    """

    device: int
    program: Program
    info: FunctionInfo
    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    params: bytes
    dynamic: int
    first: int = 0
    per_sm: int = 1
    base: int = 0
    after: list[Callable[[], None]] = field(default_factory=list)
    stream: Any = None
    needs: list[Launch] = field(default_factory=list)
    programmatic: bool = False
    workspace: int = 0

    @property
    def blocks(self) -> int:
        """Blocks of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block, static and dynamic."""
        return self.program.dynamic_start + self.dynamic if self.dynamic else self.program.shared_bytes


def three(value: Any, what: str) -> tuple[int, int, int]:
    """A grid's or a block's size as (x, y, z). what: "grid" or "block"."""
    try:
        sizes = tuple(operator.index(v) for v in (value if isinstance(value, (tuple, list)) else (value,)))
    except TypeError:
        sizes = ()
    if not 1 <= len(sizes) <= 3 or any(v < 1 for v in sizes):
        raise InputError(f"{what} must be 1 to 3 positive whole numbers, got {value!r}")
    if any(v > most for v, most in zip(sizes, MOST[what])):
        raise InputError(f"{what} can be {MOST[what]} at most, got {value!r}")
    return (*sizes, *(1,) * (3 - len(sizes)))  # type: ignore[return-value]


def valid_bytes(launch: Launch) -> np.ndarray:
    """[shared bytes] uint8: 1 where a byte of shared memory belongs to a variable."""
    valid = np.zeros(launch.shared + 16, np.uint8)
    for at, size in launch.program.shared.values():
        valid[at : at + size] = 1
    if launch.dynamic:
        valid[launch.shared - launch.dynamic : launch.shared] = 1
    return valid
