"""Every kernel that is shipped: its name, its function, the types it is compiled for, and what a block of it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import router
from .compiler import types
from .gemm import TILES, gemm, tiles


@dataclass(frozen=True)
class Kernel:
    """types: Numba types of the arguments. shared_bytes: dynamic shared memory of a launch. blocks: wanted on an SM."""

    name: str
    function: Any
    types: tuple[Any, ...]
    threads: int
    shared_bytes: int
    blocks: int


def kernels(arch: str) -> list[Kernel]:
    """All of an architecture, sm_90 say, in a fixed order."""
    products = [
        Kernel(f"gemm_{tile.name}", gemm(tile), (types.int64,) * 10, tile.threads, tile.shared_bytes, tile.blocks)
        for kind in TILES
        for tile in tiles(kind, arch)
    ]
    slots, k = 256, 8  # what the report is for; a launch asks for what it needs
    routes = [
        Kernel(kernel.__name__, kernel, (types.int64,), router.THREADS, router.route_shared(slots, kind), 3)
        for kind, kernel in ((kind, router.route(kind)) for kind in router.KINDS)
    ]
    return [
        *products,
        *routes,
        Kernel("check", router.check, (types.int64,), router.THREADS, router.check_shared(slots), 8),
        Kernel("place", router.place, (types.int64,), router.THREADS, router.place_shared(slots, k), 8),
    ]
