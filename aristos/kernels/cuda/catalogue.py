"""Every kernel that is shipped: its name, its function, the types it is compiled for, and what a block of it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .compiler import types
from .gemm import TILES, gemm


@dataclass(frozen=True)
class Kernel:
    """types: Numba types of the arguments. shared_bytes: dynamic shared memory of a launch. blocks: wanted on an SM."""

    name: str
    function: Any
    types: tuple[Any, ...]
    threads: int
    shared_bytes: int
    blocks: int


def kernels() -> list[Kernel]:
    """All of them, in a fixed order."""
    return [
        Kernel(f"gemm_{tile.name}", gemm(tile), (types.int64,) * 10, tile.threads, tile.shared_bytes, tile.blocks)
        for tiles in TILES.values()
        for tile in tiles
    ]
