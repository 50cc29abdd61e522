"""Every shipped kernel: its name, function and argument types, and the resources of a block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from . import capacity, put_probe, put_signal, router
from .compiler import types
from .gemm import TILES, gemm, tiles
from .target import Target
from .tile import Tile


@dataclass(frozen=True)
class Kernel:
    """A shipped kernel. types: its arguments' types.

    shared_bytes: bytes of dynamic shared memory of a block. blocks: how many blocks an SM must hold at once.
    """

    name: str
    function: Any
    types: tuple[Any, ...]
    threads: int
    shared_bytes: int
    blocks: int


@cache
def route_kernels() -> dict[str, Kernel]:
    """The kernels that run before the persistent kernel, by name. shared_bytes are for 256 slots and k = 8."""
    slots, k, word = 256, 8, (types.int64,)
    routes = [
        Kernel(kernel.__name__, kernel, word, router.THREADS, router.route_shared(slots, kind), 3)
        for kind, kernel in ((kind, router.route(kind)) for kind in router.KINDS)
    ]
    others = [
        Kernel("drop", capacity.drop, word, router.THREADS, capacity.drop_shared(slots, k), 4),
        Kernel("place", router.place, word, router.THREADS, router.place_shared(slots, k), 8),
    ]
    return {kernel.name: kernel for kernel in [*routes, *others]}


PUT_ROWS = Kernel("put_rows", put_signal.put_rows, (types.int64,) * 11, put_signal.THREADS, 0, 4)
PING_PONG = Kernel("ping_pong", put_signal.ping_pong, (types.int64,) * 11, put_signal.WARP, 0, 1)
LEND = Kernel("lend", put_probe.lend, (types.int64,) * 4, put_probe.THREADS, 0, 1)


@cache
def product_kernel(tile: Tile) -> Kernel:
    """The product of a tile as a separate kernel."""
    return Kernel(f"gemm_{tile.name}", gemm(tile), (types.int64,) * 10, tile.threads, tile.shared_bytes, tile.blocks)


def kernels(arch: str) -> list[Kernel]:
    """All kernels for an architecture such as sm_90, in a fixed order."""
    products = [product_kernel(tile) for kind in TILES for tile in tiles(kind, Target.named(arch))]
    return [*products, *route_kernels().values(), PUT_ROWS, PING_PONG, LEND]
