"""Rows times packed weights on a GPU: y = act(x W + b), or act(x G + g) * (x W + b) where W and G are interleaved.

Rows of x and y are found through arrays of row addresses, so rows that arrived from several sources need no copy and
results can go straight to a peer's memory. One launch is one product; the same tile function will serve the persistent
kernel. Weights are packed by `pack.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from ..cpu import activation
from . import memory as memory
from . import ptx
from .compiler import cuda
from .pack import INTERLEAVE
from .tile import BYTES, CHUNK, PAD, PRODUCTS, Code, Tile, shared_address

NONE = -1  # beside the codes of activation.CODES
# by kind, for a power of two of rows: a bigger tile reads weights less often, a smaller one computes fewer empty rows
TILES = {
    "bf16": (
        Tile("bf16", 16, 128, 1, 4, 4, 3), Tile("bf16", 32, 128, 1, 4, 4, 2), Tile("bf16", 64, 128, 2, 2, 3, 2),
        Tile("bf16", 128, 128, 2, 4, 3, 2), Tile("bf16", 256, 128, 4, 2, 3, 1),
    ),
    "f32": (Tile("f32", 16, 64, 1, 4, 4, 4), Tile("f32", 64, 64, 2, 2, 3, 3), Tile("f32", 128, 64, 4, 1, 3, 2)),
}  # fmt: skip
for _kind in ("f16", "tf32"):
    TILES[_kind] = tuple(replace(tile, kind=_kind) for tile in TILES["bf16"])


def tiles(kind: str, arch: str) -> tuple[Tile, ...]:
    """The tiles of an architecture, by rows."""
    if arch != "sm_100":
        return TILES[kind]
    # its assembler needs a few registers more than two such blocks leave each other
    return tuple(replace(tile, blocks=1) if tile.m == 128 and kind != "f32" else tile for tile in TILES[kind])


def tile_for(kind: str, rows: int, arch: str) -> Tile:
    """The tile that a product of so many rows uses; which one never changes a bit of the result."""
    found = tiles(kind, arch)
    return next((tile for tile in found if tile.m >= rows), found[-1])


@cuda.jit(device=True)
def activated(code, x):
    """An activation by its code, for one float32."""
    if code == activation.RELU:
        return activation.relu(x)
    elif code == activation.GELU:
        return activation.gelu(x)
    elif code == activation.GELU_TANH:
        return activation.gelu_tanh(x)
    elif code == activation.SILU:
        return activation.silu(x)
    return x


@cuda.jit(device=True)
def activate(code, sums, pitch, count, shift, gated, thread, threads):
    """Apply an activation in place to `count` staged sums, 2^shift a row; where gated, to those of the gate.

    One element at a time, so that the code is there once: the main loop's instructions stay in their cache.
    """
    for i in range(thread, count, threads):
        column = i & (1 << shift) - 1
        if gated != 0:
            column = (column & -INTERLEAVE) * 2 + INTERLEAVE + (column & INTERLEAVE - 1)
        at = sums + (i >> shift) * pitch + 4 * column
        ptx.store_shared4(at, activated(code, ptx.load_shared4(at)))


@cuda.jit(device=True)
def outputs(place, gated):
    """Four float32 of a row of outputs, from staged sums at `place`: those of the gate lie 8 columns behind."""
    u = ptx.load_shared16(place)
    if gated != 0:
        g = ptx.load_shared16(place + 4 * INTERLEAVE)
        return g[0] * u[0], g[1] * u[1], g[2] * u[2], g[3] * u[3]
    return u


def _own_offsets(tile: Tile) -> Any:
    """f(lane, warp) -> a thread's offsets in a chunk of A and of B, and of its first sum, in bytes."""
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


def _out(tile: Tile) -> Any:
    """f(address, place, gated): 16 bytes of outputs from staged sums at `place` to a row in global memory."""
    if BYTES[tile.kind] == 4:

        @cuda.jit(device=True)
        def put(address, place, gated):
            v = outputs(place, gated)
            ptx.store16_once(
                address, ptx.bits_of_float(v[0]), ptx.bits_of_float(v[1]), ptx.bits_of_float(v[2]),
                ptx.bits_of_float(v[3]),
            )  # fmt: skip
    else:
        pair = ptx.pair_bf16 if tile.kind == "bf16" else ptx.pair_f16

        @cuda.jit(device=True)
        def put(address, place, gated):
            v = outputs(place, gated)
            w = outputs(place + 16, gated)
            ptx.store16_once(address, pair(v[0], v[1]), pair(v[2], v[3]), pair(w[0], w[1]), pair(w[2], w[3]))

    return put


@cache
def tile_product(tile: Tile) -> Any:
    """The device function of a tile: all threads of the block call it together, with equal arguments.

    product(shared, a_rows, c_rows, m, weight, pitch, bias, width, depth, n0, code, gated): rows 0..m of the row address
    tables, m <= tile.m; columns n0.. of the packed weight, rows of which are `pitch` bytes apart, `depth` of them for
    the elements of a row of A; `width` outputs of a row of C are kept (in 16-byte groups, for which the row has room).
    shared: `tile.shared_bytes` bytes. Rows of A and C start on 16 bytes.
    """
    code_of = Code(tile)
    row_pointers, fetch, start, stage, multiply = (
        code_of.row_pointers, code_of.fetch, code_of.start, code_of.stage, code_of.multiply,
    )  # fmt: skip
    own_offsets, put = _own_offsets(tile), _out(tile)
    commit, wait, wait_all = ptx.copy_async_commit, ptx.copy_async_wait(tile.stages - 2), ptx.copy_async_wait(0)
    threads, pass_rows, stages, stage_bytes = tile.threads, tile.pass_rows, tile.stages, tile.stage_bytes
    pitch_out, group = 4 * (tile.n + PAD), 16 // BYTES[tile.kind]
    narrow = tile.narrow
    columns_shift, groups_shift = tile.n.bit_length() - 1, (tile.n // group).bit_length() - 1

    @cuda.jit(device=True)
    def product(shared, a_rows, c_rows, m, weight, pitch, bias, width, depth, n0, code, gated):
        thread = ptx.thread()
        own_a, own_b, _, column = own_offsets(thread & 31, thread >> 5)
        row, byte = thread >> 3, (thread & 7) * 16
        to = shared + row * CHUNK + (byte ^ (row & 7) * 16)
        byte_a = (thread & (7 >> narrow)) * 16
        pointers = row_pointers(a_rows, thread >> (3 - narrow), m - 1, byte_a)
        b = weight + pitch * (n0 + row) + byte
        step = pitch * pass_rows
        left = (depth >> narrow) - byte_a
        sums = start(bias + 4 * (n0 + column))
        offset = 0
        for c in range(stages - 1):
            if offset < depth:
                count = min(max(left - (offset >> narrow), 0), 16)
                fetch(to + c * stage_bytes, pointers, offset >> narrow, count, b + offset, step)
            commit()
            offset += CHUNK
        here, end = 0, depth + (stages - 1) * CHUNK
        while offset < end:
            wait()
            cuda.syncthreads()
            if offset < depth:
                before = here - stage_bytes if here > 0 else (stages - 1) * stage_bytes
                count = min(max(left - (offset >> narrow), 0), 16)
                fetch(to + before, pointers, offset >> narrow, count, b + offset, step)
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
        half = 1 if gated != 0 else 0
        if code != NONE:
            shift = columns_shift - half
            activate(code, shared, pitch_out, m << shift, shift, gated, thread, threads)
            cuda.syncthreads()
        first, shift = n0 >> half, groups_shift - half
        for i in range(thread, m << shift, threads):
            out_row, out = i >> shift, (i & (1 << shift) - 1) * group
            if first + out < width:
                place = (out & -INTERLEAVE) * 2 + (out & INTERLEAVE - 1) if gated != 0 else out
                address = ptx.load8(c_rows + 8 * out_row) + (first + out) * (16 // group)
                put(address, shared + out_row * pitch_out + 4 * place, gated)
        cuda.syncthreads()

    return product


@cache
def gemm(tile: Tile) -> Any:
    """The kernel of a tile: gemm(a_rows, c_rows, m, weight, pitch, bias, width, depth, code, gated), all int64.

    Grid: (ceil(m / tile.m), ceil(n / tile.n)) blocks of tile.threads threads and tile.shared_bytes of dynamic shared
    memory, n the rows of the packed weight; the arguments as `tile_product` says, for all rows.
    """
    product, tile_m, tile_n = tile_product(tile), tile.m, tile.n

    def kernel(a_rows, c_rows, m, weight, pitch, bias, width, depth, code, gated):
        shared = shared_address(cuda.shared.array(0, np.int64, CHUNK))
        first = cuda.blockIdx.x * tile_m
        product(shared, a_rows + 8 * first, c_rows + 8 * first, min(m - first, tile_m), weight, pitch, bias, width,
                depth, cuda.blockIdx.y * tile_n, code, gated)  # fmt: skip

    kernel.__name__ = f"gemm_{tile.name}"
    return cuda.jit(kernel, launch_bounds=(tile.threads, tile.blocks))
