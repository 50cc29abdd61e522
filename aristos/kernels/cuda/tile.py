"""Generates the code of a block's tile of a matrix product for one shape and dtype: copies, products, staged sums.

The product is C[m, n] = A[m, k] B[n, k]^T. Both operands pass through shared memory in chunks of 128 bytes of k per
row. The eight 16-byte parts of a row are swizzled by the row number, so that no two lanes access one bank. Every
element of C is one chain of k steps in rising order for every tile shape; batch invariance depends on this.

Each function of `Code` is an intrinsic: loops over registers are unrolled here, because a compiler might not unroll
them. This file holds no PTX text; it emits the primitives of `ptx.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ...errors import InputError
from ...row_types import BY_KIND
from . import ptx
from .compiler import cuda, intrinsic, make_array, types
from .primitive import F32, I32, I64, named

CHUNK = 128  # bytes of k in shared memory at a time
LANES = 32
PAD = 8  # float32 added to each row of staged sums: four rows of a warp then lie in different banks
BYTES = {kind: row.nbytes for kind, row in BY_KIND.items()}  # bytes of an element of each kind of arithmetic
GROUP_COLUMNS = 128  # columns of a warpgroup's product: every tile uses the same instruction
GROUP_PRODUCTS = {"bf16": ptx.multiply_group_bf16, "f16": ptx.multiply_group_f16}
PRODUCTS = {"bf16": ptx.multiply_bf16, "f16": ptx.multiply_f16, "tf32": ptx.multiply_tf32}  # f32 uses no tensor cores


@dataclass(frozen=True)
class Tile:
    """A tile's shape: m x n outputs of a block of warps_m x warps_n warps, with `stages` chunks of k in shared memory.

    blocks: how many blocks an SM must hold, which limits the registers of a thread. rows: bf16 or f16 if rows of A are
    narrower than the arithmetic, which is then f32; they are widened when they are read. groups: whether four warps
    multiply together by wgmma, and bulk copies load the weights (`wgmma_product.py`).
    """

    kind: str  # the arithmetic: bf16, f16, tf32 or f32
    m: int
    n: int
    warps_m: int
    warps_n: int
    stages: int
    blocks: int
    rows: str = ""
    groups: bool = False

    def __post_init__(self) -> None:
        if self.kind not in BYTES:
            raise InputError(f"kind must be one of {', '.join(BYTES)}, got {self.kind!r}")
        if self.rows and (self.kind != "f32" or self.rows not in ("bf16", "f16")):
            raise InputError(
                f"rows must be bf16 or f16, with kind='f32', got rows={self.rows!r} with kind={self.kind!r}"
            )
        rows, columns = self.m // self.warps_m, self.n // self.warps_n
        step = 8 if self.kind == "f32" and not self.rows else 16
        if rows * self.warps_m != self.m or columns * self.warps_n != self.n or rows % step or columns % 16:
            raise InputError(
                f"a warp's part must be a multiple of {step} x 16, got {self.m} x {self.n} for {self.warps_m} x"
                f" {self.warps_n} warps"
            )
        if self.n & (self.n - 1):
            raise InputError(f"n must be a power of two, got {self.n}")
        if self.m % self.pass_a or self.n % self.pass_rows or self.stages < 2:
            raise InputError(
                f"{self} needs 2 stages or more, m in multiples of {self.pass_a}, n in multiples of {self.pass_rows}"
            )
        if self.groups and (
            self.kind not in GROUP_PRODUCTS
            or self.n != GROUP_COLUMNS
            or self.warps_n != 1
            or self.warps_m % 4
            or rows % 16
            or self.stages < 3
        ):
            raise InputError(
                f"{self} is a tile of warpgroups, which must have {' or '.join(GROUP_PRODUCTS)}, {GROUP_COLUMNS}"
                " columns, 4 x 1 or 8 x 1 warps, and 3 stages or more"
            )

    @property
    def threads(self) -> int:
        return LANES * self.warps_m * self.warps_n

    @property
    def pass_rows(self) -> int:
        """How many rows of B the block's threads copy at a time, 16 bytes of each."""
        return self.threads * 16 // CHUNK

    @property
    def pass_bytes(self) -> int:
        return self.pass_rows * CHUNK

    @property
    def narrow(self) -> int:
        """A shift for numbers of bytes: 1 if elements of A have half as many bytes as the arithmetic's, else 0."""
        return 1 if self.rows else 0

    @property
    def pass_a(self) -> int:
        """How many rows of A the block's threads copy at a time."""
        return self.pass_rows << self.narrow

    @property
    def a_bytes(self) -> int:
        """Bytes of a chunk of A."""
        return self.m * CHUNK >> self.narrow

    @property
    def stage_bytes(self) -> int:
        return self.a_bytes + self.n * CHUNK

    @property
    def alignment(self) -> int:
        """Alignment of chunks in bytes. wgmma's swizzle repeats every eight rows."""
        return 8 * CHUNK if self.groups else CHUNK

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory: chunks (later reused for the sums), barriers, slack to align the chunks."""
        barriers = 8 * self.stages if self.groups else 0
        return max(self.stages * self.stage_bytes, 4 * self.m * (self.n + PAD)) + barriers + self.alignment - CHUNK

    @property
    def sums(self) -> int:
        """How many accumulators a thread has."""
        return self.m * self.n // self.threads

    @property
    def warp_rows(self) -> int:
        return self.m // self.warps_m

    @property
    def block_rows(self) -> int:
        """Rows of one product of a warp or warpgroup: the step from a thread's first rows to its next ones."""
        return 64 if self.groups else 16

    @property
    def warp_columns(self) -> int:
        return self.n // self.warps_n

    @property
    def name(self) -> str:
        return f"{self.rows}{self.kind}_{'wgmma_' if self.groups else ''}{self.m}x{self.n}"


def generated(result: Callable[[], Any], arguments: list[Any], body: Callable[..., Any]) -> Any:
    """An intrinsic, named after `body`. The function body(builder, *values) emits its code.

    result: a function that returns the type of the result. If this is a tuple, `body` returns its LLVM values.
    """

    def typed(typing: Any, *given: Any) -> Any:
        kind = result()

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            found = body(builder, *values)
            return context.get_dummy_value() if found is None else context.make_tuple(builder, kind, found)

        return kind(*arguments), codegen

    return named(typed, body.__name__, len(arguments))


@intrinsic
def shared_address(typing, array):
    """The 32-bit address of an array in shared memory."""

    def codegen(context, builder, signature, args):
        data = make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(builder.addrspacecast(data, ir.IntType(8).as_pointer(3)), I32)

    return types.int32(array), codegen


def tile_memory(tile: Tile) -> Any:
    """A function f() that returns the first address for chunks, aligned, in a block's dynamic shared memory."""
    most = tile.alignment - 1

    @cuda.jit(device=True)
    def at():
        start = shared_address(cuda.shared.array(0, np.int64, CHUNK))
        return start + most & ~most if most >= CHUNK else start

    return at


class Code:
    """The code of one tile. The offsets of a thread's own parts are arguments, computed in `gemm.py`."""

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        self.acc = types.UniTuple(types.float32, tile.sums)
        self.pointers = types.UniTuple(types.int64, tile.m // tile.pass_a)
        word, long = types.int32, types.int64
        self.row_pointers = generated(lambda: self.pointers, [long, word, word, word], self._row_pointers)
        self.fetch_rows = generated(lambda: types.void, [word, self.pointers, long, word], self._fetch_rows)
        self.fetch_weights = generated(lambda: types.void, [word, long], self._fetch_weights)
        self.start = generated(lambda: self.acc, [long], self._start)
        self.stage = generated(lambda: types.void, [self.acc, word], self._stage)
        if tile.kind in PRODUCTS:
            body = self._tensor_products
        else:
            body = self._widened_products if tile.rows else self._plain_products
        self.multiply = generated(lambda: self.acc, [self.acc, word, word, word], body)

    def _row_pointers(self, builder: Any, table: Any, row: Any, last: Any, byte: Any) -> list[Any]:
        """Addresses of this thread's rows, plus `byte`. Rows after `last`, which are not stored, get row `last`'s."""
        found = []
        for i in range(self.pointers.count):
            mine = builder.add(row, I32(i * self.tile.pass_a))
            mine = builder.select(builder.icmp_signed("<", mine, last), mine, last)
            place = builder.add(table, builder.mul(builder.sext(mine, I64), I64(8)))
            (address,) = ptx.load8.emit(builder, [place])
            found.append(builder.add(address, builder.sext(byte, I64)))
        return found

    def _fetch_rows(self, builder: Any, to: Any, pointers: Any, offset: Any, count: Any) -> None:
        """Start to copy a chunk of A from the row pointers plus `offset`: `count` bytes of each row per thread."""
        for i in range(self.pointers.count):
            source = builder.add(builder.extract_value(pointers, i), offset)
            ptx.copy_async16.emit(builder, [builder.add(to, I32(i * self.tile.pass_bytes)), source, count])

    def _fetch_weights(self, builder: Any, to: Any, b: Any) -> None:
        """Start to copy a chunk of B, which has the same layout in global as in shared memory."""
        to = builder.add(to, I32(self.tile.a_bytes))
        for at in range(0, self.tile.n * CHUNK, self.tile.pass_bytes):
            ptx.copy_async16.emit(builder, [builder.add(to, I32(at)), builder.add(b, I64(at)), I32(16)])

    def _start(self, builder: Any, bias: Any) -> list[Any]:
        """The sums before the first product: the bias of each column. bias: address of this thread's first column."""
        tile = self.tile
        if tile.kind in PRODUCTS:
            pairs = [
                ptx.load_floats2.emit(builder, [builder.add(bias, I64(4 * 8 * j))])
                for j in range(tile.warp_columns // 8)
            ]
            return [value for _ in range(tile.warp_rows // 16) for pair in pairs for value in pair * 2]
        row = [
            ptx.load_float.emit(builder, [builder.add(bias, I64(4 * 8 * j))])[0] for j in range(tile.warp_columns // 8)
        ]
        return row * (tile.warp_rows // 4)

    def _tensor_products(self, builder: Any, acc: Any, chunk: Any, own_a: Any, own_b: Any) -> list[Any]:
        """All products of a chunk on tensor cores; own_a, own_b: offsets of the matrix rows of this lane."""
        tile = self.tile
        rows, columns = tile.warp_rows // 16, tile.warp_columns // 8
        sums = [builder.extract_value(acc, i) for i in range(tile.sums)]
        product = PRODUCTS[tile.kind]
        b_chunk = builder.add(chunk, I32(tile.a_bytes))
        for step in range(CHUNK // 32):
            at_a = builder.add(chunk, builder.xor(own_a, I32(32 * step)))
            at_b = builder.add(b_chunk, builder.xor(own_b, I32(32 * step)))
            left = [self._left(builder, builder.add(at_a, I32(16 * CHUNK * i))) for i in range(rows)]
            for j in range(0, columns, 2):
                four = ptx.load_matrices.emit(builder, [builder.add(at_b, I32(8 * CHUNK * j))])
                for i in range(rows):
                    for half in range(2):
                        at = 4 * (i * columns + j + half)
                        right = four[2 * half : 2 * half + 2]
                        sums[at : at + 4] = product.emit(builder, [*left[i], *right, *sums[at : at + 4]])
        return sums

    def _left(self, builder: Any, address: Any) -> list[Any]:
        """Load 16 rows of A. For tf32 they are rounded here; B was rounded when it was packed."""
        four = ptx.load_matrices.emit(builder, [address])
        if self.tile.kind != "tf32":
            return four
        return [ptx.round_tf32.emit(builder, [builder.bitcast(value, F32)])[0] for value in four]

    def _plain_products(self, builder: Any, acc: Any, chunk: Any, own_a: Any, own_b: Any) -> list[Any]:
        """All products of a chunk by fused multiply-adds. Lane (y, x) of 4 x 8 has rows y + 4 i, columns x + 8 j."""
        tile = self.tile
        rows = tile.warp_rows // 4
        sums = [builder.extract_value(acc, i) for i in range(tile.sums)]
        b_chunk = builder.add(chunk, I32(tile.a_bytes))
        for part in range(CHUNK // 16):
            even = builder.add(chunk, builder.xor(own_a, I32(16 * part)))
            odd = builder.add(chunk, builder.xor(own_a, I32(16 * (part ^ 4))))
            at_b = builder.add(b_chunk, builder.xor(own_b, I32(16 * part)))
            left = [
                ptx.load_shared16.emit(builder, [builder.add(odd if i % 2 else even, I32(4 * CHUNK * i))])
                for i in range(rows)
            ]
            self._multiply_add(builder, left, at_b, sums)
        return sums

    def _widened_products(self, builder: Any, acc: Any, chunk: Any, own_a: Any, own_b: Any) -> list[Any]:
        """All products of a chunk with 16-bit rows of A. Two rows share a 128-byte line, swizzled by its number."""
        tile = self.tile
        rows = tile.warp_rows // 4
        sums = [builder.extract_value(acc, i) for i in range(tile.sums)]
        b_chunk = builder.add(chunk, I32(tile.a_bytes))
        for part in range(CHUNK // 32):
            lines = [builder.add(chunk, builder.xor(own_a, I32(16 * (part ^ 2 * i)))) for i in range(4)]
            left = [
                ptx.load_shared16.emit(builder, [builder.add(lines[i % 4], I32(2 * CHUNK * i))]) for i in range(rows)
            ]
            for k in range(0, 8, 4):
                wide = [[self._widened(builder, row, k + at) for at in range(4)] for row in left]
                at_b = builder.add(b_chunk, builder.xor(own_b, I32(16 * (2 * part + k // 4))))
                self._multiply_add(builder, wide, at_b, sums)
        return sums

    def _multiply_add(self, builder: Any, left: list[Any], at_b: Any, sums: list[Any]) -> None:
        """Add the products of four k to the sums. left: four numbers of each row. at_b: where column 0 has its four."""
        columns = self.tile.warp_columns // 8
        for j in range(columns):
            right = ptx.load_shared16.emit(builder, [builder.add(at_b, I32(8 * CHUNK * j))])
            for k in range(4):
                for i, row in enumerate(left):
                    at = i * columns + j
                    sums[at] = builder.fma(row[k], right[k], sums[at])

    def _widened(self, builder: Any, row: list[Any], k: int) -> Any:
        """Element k of eight 16-bit elements, widened exactly to float32."""
        both = builder.bitcast(row[k // 2], I32)
        if self.tile.rows == "bf16":
            return builder.bitcast(builder.and_(both, I32(-65536)) if k % 2 else builder.shl(both, I32(16)), F32)
        half = builder.trunc(builder.lshr(both, I32(16)) if k % 2 else both, ir.IntType(16))
        return builder.fpext(builder.bitcast(half, ir.HalfType()), F32)

    def _stage(self, builder: Any, acc: Any, own: Any) -> None:
        """Write this thread's sums to shared memory, rows n + PAD float32 apart; own: address of its first sum."""
        tile = self.tile
        pitch, sums = 4 * (tile.n + PAD), [builder.extract_value(acc, i) for i in range(tile.sums)]
        columns = tile.warp_columns // 8
        for at in range(0, tile.sums, 2 if tile.kind in PRODUCTS else 1):
            if tile.kind in PRODUCTS:
                i, j, half = at // (4 * columns), at // 4 % columns, at // 2 % 2
                place = builder.add(own, I32((tile.block_rows * i + 8 * half) * pitch + 4 * 8 * j))
                ptx.store_shared8.emit(builder, [place, sums[at], sums[at + 1]])
            else:
                i, j = divmod(at, columns)
                ptx.store_shared4.emit(builder, [builder.add(own, I32(4 * i * pitch + 4 * 8 * j)), sums[at]])
