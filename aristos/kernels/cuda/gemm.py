"""Rows times packed weights on a GPU: y = act(x W + b), or act(x G + g) * (x W + b) where W and G are interleaved.

Rows of x and y are found through arrays of row addresses, so rows from several sources need no copy, and results can be
stored in a peer's memory. One launch is one product. The persistent kernel calls the same tile function. `pack.py`
packs the weights.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from ...errors import EnvironmentProblem
from . import ptx
from .compiler import cuda
from .epilogue import finish
from .pack import COLUMNS
from .target import Target
from .tile import CHUNK, GROUP_PRODUCTS, PAD, PRODUCTS, Code, Tile, tile_memory
from .wgmma_product import group_product

# by kind, in rising order of rows: a larger tile reads weights less often, a smaller one computes fewer empty rows
TILES = {
    "bf16": (
        Tile("bf16", 16, 128, 1, 4, 4, 3),
        Tile("bf16", 32, 128, 1, 4, 4, 2),
        Tile("bf16", 64, 128, 2, 2, 3, 2),
        Tile("bf16", 128, 128, 2, 4, 3, 2),
        Tile("bf16", 256, 128, 4, 2, 3, 1),
    ),
    "f32": (Tile("f32", 16, 64, 1, 4, 4, 4), Tile("f32", 64, 64, 2, 2, 3, 3), Tile("f32", 128, 64, 4, 1, 3, 2)),
}
for _kind in ("f16", "tf32"):
    TILES[_kind] = tuple(replace(tile, kind=_kind) for tile in TILES["bf16"])
# From sm_100 on, an SM holds one block of 128 rows: ptxas needs more registers than two such blocks could have.
ONE_BLOCK_FROM, ONE_BLOCK_ROWS = 10, 128
# sm_90 uses these for every number of rows, because wgmma and mma.sync may sum a k step with different last bits
GROUPS = {
    kind: (
        Tile(kind, 64, 128, 4, 1, 3, 3, groups=True),
        Tile(kind, 128, 128, 8, 1, 3, 2, groups=True),
        Tile(kind, 256, 128, 8, 1, 4, 1, groups=True),
    )
    for kind in GROUP_PRODUCTS
}


def tiles(kind: str, gpu: Target, static: int = 0) -> tuple[Tile, ...]:
    """The tiles that fit a GPU, in rising order of rows, with as many blocks as an SM holds.

    static: bytes of shared memory that the kernel needs in addition to the tile's. Raises EnvironmentProblem if no tile
    fits.
    """
    gpu.check()
    found = GROUPS[kind] if gpu.arch == "sm_90" and kind in GROUPS else TILES[kind]
    if gpu.generation >= ONE_BLOCK_FROM and kind != "f32":
        found = tuple(replace(tile, blocks=1) if tile.m == ONE_BLOCK_ROWS else tile for tile in found)
    fitting = [(tile, gpu.most_blocks(tile.threads, tile.shared_bytes + static)) for tile in found]
    if not any(most for _, most in fitting):
        least = found[0].shared_bytes + static
        raise EnvironmentProblem(
            f"the smallest {kind} tile needs {least} bytes of shared memory and {found[0].threads} threads, but a block"
            f" of the {gpu.arch} GPU has at most {gpu.limits.shared_block} bytes and {gpu.limits.block_threads} threads"
        )
    return tuple(replace(tile, blocks=min(tile.blocks, most)) for tile, most in fitting if most)


def tile_for(kind: str, rows: int, gpu: Target) -> Tile:
    """The tile for a product of `rows` rows. The choice does not change any bit of the result."""
    found = tiles(kind, gpu)
    return next((tile for tile in found if tile.m >= rows), found[-1])


def _own_offsets(tile: Tile) -> Any:
    """A function f(lane, warp): a thread's byte offsets in a chunk of A, of B and in the sums, and its first column."""
    warps_n, rows, columns, pitch = tile.warps_n, tile.warp_rows, tile.warp_columns, 4 * (tile.n + PAD)
    swap = CHUNK // 8

    if tile.kind in PRODUCTS:

        @cuda.jit(device=True)
        def own(lane, warp):
            row, column = rows * (warp // warps_n), columns * (warp % warps_n)
            swapped = (lane & 7) * swap
            a = (row + (lane & 15)) * CHUNK + ((lane >> 4) * 16 ^ swapped)
            b = (column + (lane & 7) + 8 * (lane >> 4)) * CHUNK + ((lane >> 3 & 1) * 16 ^ swapped)
            return a, b, (row + (lane >> 2)) * pitch + 4 * (column + 2 * (lane & 3)), column + 2 * (lane & 3)
    elif tile.rows:

        @cuda.jit(device=True)
        def own(lane, warp):
            row, column = rows * (warp // warps_n), columns * (warp % warps_n)
            y, x = lane >> 3, lane & 7
            a = (row + y >> 1) * CHUNK + ((y & 1) * 4 ^ y >> 1) * swap
            return a, (column + x) * CHUNK + x * swap, (row + y) * pitch + 4 * (column + x), column + x
    else:

        @cuda.jit(device=True)
        def own(lane, warp):
            row, column = rows * (warp // warps_n), columns * (warp % warps_n)
            y, x = lane >> 3, lane & 7
            a = (row + y) * CHUNK + y * swap
            return a, (column + x) * CHUNK + x * swap, (row + y) * pitch + 4 * (column + x), column + x

    return own


@cache
def tile_product(tile: Tile) -> Any:
    """The device function of a tile: all threads of the block call it together, with equal arguments.

    The function is product(shared, a_rows, c_rows, m, weight, pitch, bias, width, depth, n0, code, gated). It computes
    m <= tile.m rows, and columns n0.. of the packed weight. a_rows, c_rows: the addresses of arrays of m row addresses.
    Rows of A and C start at multiples of 16 bytes. weight, bias: addresses. pitch: bytes of a packed column. depth:
    bytes of k in the tile's kind. A row of C needs space for `width` outputs, rounded up to 16 bytes. shared: the
    address from `tile_memory`. code: the activation's word, or NONE. gated: 1 if W and G are interleaved.
    """
    if tile.groups:
        return group_product(tile)
    code_of = Code(tile)
    row_pointers, fetch_rows, fetch_weights, start, stage, multiply = (
        code_of.row_pointers,
        code_of.fetch_rows,
        code_of.fetch_weights,
        code_of.start,
        code_of.stage,
        code_of.multiply,
    )
    own_offsets, store = _own_offsets(tile), finish(tile)
    commit, wait, wait_all = ptx.copy_async_commit, ptx.copy_async_wait(tile.stages - 2), ptx.copy_async_wait(0)
    stages, stage_bytes, narrow = tile.stages, tile.stage_bytes, tile.narrow

    @cuda.jit(device=True)
    def product(shared, a_rows, c_rows, m, weight, pitch, bias, width, depth, n0, code, gated):
        thread = ptx.thread()
        own_a, own_b, _, column = own_offsets(thread & 31, thread >> 5)
        row, byte = thread >> 3, (thread & 7) * 16
        to = shared + row * CHUNK + (byte ^ (row & 7) * 16)
        byte_a = (thread & (7 >> narrow)) * 16
        pointers = row_pointers(a_rows, thread >> (3 - narrow), m - 1, byte_a)
        b = weight + pitch * (n0 & -COLUMNS) + (n0 & COLUMNS - 1) * CHUNK + (to - shared)
        left = (depth >> narrow) - byte_a
        sums = start(bias + 4 * (n0 + column))
        offset = 0
        for c in range(stages - 1):
            if offset < depth:
                count = min(max(left - (offset >> narrow), 0), 16)
                fetch_rows(to + c * stage_bytes, pointers, offset >> narrow, count)
                fetch_weights(to + c * stage_bytes, b + offset * COLUMNS)
            commit()
            offset += CHUNK
        here, end = 0, depth + (stages - 1) * CHUNK
        while offset < end:
            wait()
            cuda.syncthreads()
            if offset < depth:
                before = here - stage_bytes if here > 0 else (stages - 1) * stage_bytes
                count = min(max(left - (offset >> narrow), 0), 16)
                fetch_rows(to + before, pointers, offset >> narrow, count)
                fetch_weights(to + before, b + offset * COLUMNS)
            commit()
            sums = multiply(sums, shared + here, own_a, own_b)
            here = here + stage_bytes if here < (stages - 1) * stage_bytes else 0
            offset += CHUNK
        wait_all()
        cuda.syncthreads()
        thread = ptx.thread()
        _, _, own_c, _ = own_offsets(thread & 31, thread >> 5)
        stage(sums, shared + own_c)
        cuda.syncthreads()
        store(shared, c_rows, m, width, n0, code, gated)

    return product


@cache
def gemm(tile: Tile) -> Any:
    """The kernel of a tile: gemm(a_rows, c_rows, m, weight, pitch, bias, width, depth, code, gated), all int64.

    Grid: (ceil(m / tile.m), ceil(n / tile.n)) blocks of tile.threads threads and tile.shared_bytes of dynamic shared
    memory, where n is `outputs` of the packed weight. Arguments as in `tile_product`, for all m rows.
    """
    product, memory, tile_m, tile_n = tile_product(tile), tile_memory(tile), tile.m, tile.n

    def kernel(a_rows, c_rows, m, weight, pitch, bias, width, depth, code, gated):
        shared = memory()
        first = cuda.blockIdx.x * tile_m
        product(
            shared,
            a_rows + 8 * first,
            c_rows + 8 * first,
            min(m - first, tile_m),
            weight,
            pitch,
            bias,
            width,
            depth,
            cuda.blockIdx.y * tile_n,
            code,
            gated,
        )

    kernel.__name__ = f"gemm_{tile.name}"
    return cuda.jit(kernel, launch_bounds=(tile.threads, tile.blocks))
