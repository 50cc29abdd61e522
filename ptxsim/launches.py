"""A queued or running launch of a kernel, and its sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import InputError
from .program import FunctionInfo, Program
from .state import MOST_CLUSTER

MOST = {
    "grid": (2**31 - 1, 65535, 65535),
    "block": (1024, 1024, 64),
    "cluster": (16, 16, 16),
}  # the CUDA programming guide's limits


@dataclass
class Launch:
    """One launch of a kernel.

    params: the bytes of its parameters. dynamic: bytes of dynamic shared memory. per_sm: how many blocks can be
    resident on an SM. first: the number of its first block. base: the place of its program in the joined code. first
    and base are set when the launch runs. after: functions to call when the launch has ended. stream: the stream that
    it is in. needs: the launches that must end before it begins; the last of them is the previous launch of its stream.
    programmatic: whether it begins as soon as that previous launch lets it. workspace: the address of memory for
    cooperative groups, or 0. cluster: the sizes of a cluster in blocks. explicit: whether the kernel or the launch
    names these sizes. action: whether it is no kernel of the program, but a copy, a fill or a host function. call: a
    function of the host to call before it begins, None once it was called. known: whether the host has waited for its
    end.
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
    cluster: tuple[int, int, int] = (1, 1, 1)
    explicit: bool = False
    action: bool = False
    call: Callable[[], None] | None = None
    known: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def cluster_blocks(self) -> int:
        """Blocks of a cluster."""
        return self.cluster[0] * self.cluster[1] * self.cluster[2]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block, static and dynamic."""
        return self.program.dynamic_start + self.dynamic if self.dynamic else self.program.shared_bytes


def three(value: Any, what: str) -> tuple[int, int, int]:
    """A grid's, a block's or a cluster's size as (x, y, z). what: "grid", "block" or "cluster"."""
    try:
        sizes = tuple(operator.index(v) for v in (value if isinstance(value, (tuple, list)) else (value,)))
    except TypeError:
        sizes = ()
    if not 1 <= len(sizes) <= 3 or any(v < 1 for v in sizes):
        raise InputError(f"{what} must be 1 to 3 positive whole numbers, got {value!r}")
    if any(v > most for v, most in zip(sizes, MOST[what])):
        raise InputError(f"{what} can be {MOST[what]} at most, got {value!r}")
    return (*sizes, *(1,) * (3 - len(sizes)))  # type: ignore[return-value]


def cluster_size(info: FunctionInfo, given: Any, grid: tuple[int, int, int]) -> tuple[tuple[int, int, int], bool]:
    """The sizes of a launch's clusters, and whether the kernel or the launch names them. given: the launch's, or None.

    Raises InputError if the two differ, if the kernel needs a size, or if the grid does not consist of whole clusters.
    """
    needed = info.limits.get(".reqnctapercluster")
    wanted = None if given is None else three(given, "cluster")
    own = three(tuple(needed), "cluster") if needed else None
    if own and wanted and own != wanted:
        raise InputError(f"{info.name} was compiled for clusters of {own} blocks, got {wanted}")
    if ".explicitcluster" in info.limits and not own and not wanted:
        raise InputError(f"{info.name} needs clusters: launch it with cluster=(x, y, z), a number of blocks in each")
    size = own or wanted or (1, 1, 1)
    if size[0] * size[1] * size[2] > MOST_CLUSTER:
        raise InputError(f"a cluster has at most {MOST_CLUSTER} blocks, got {size}")
    if any(blocks % part for blocks, part in zip(grid, size)):
        raise InputError(f"a grid consists of whole clusters: {size} does not divide {grid}")
    return size, bool(own or wanted)


def valid_bytes(launch: Launch) -> np.ndarray:
    """[shared bytes] uint8: 1 where a byte of shared memory belongs to a variable."""
    valid = np.zeros(launch.shared + 16, np.uint8)
    for at, size in launch.program.shared.values():
        valid[at : at + size] = 1
    if launch.dynamic:
        valid[launch.shared - launch.dynamic : launch.shared] = 1
    return valid
