"""A tile's product for warpgroups of sm_90a: cp.async copies rows, a bulk copy loads weights, and wgmma multiplies.

The sums are the registers of `wgmma.mma_async`. The products of one chunk always run while the next chunks are copied;
no warp is reserved for copies. A slot of shared memory is rewritten only after every warpgroup has waited for the
products that read it. The epilogue is the same as for other tiles.
"""

from __future__ import annotations

from typing import Any

from . import fragments, ptx
from .compiler import cuda, types
from .epilogue import finish
from .primitive import I32, I64
from .tile import CHUNK, GROUP_PRODUCTS, PAD, Code, Tile, generated

ROWS, WARPS = 64, 4  # rows of a warpgroup's product; its warps


class GroupCode(Code):
    """The code of a tile of warpgroups, where it differs from the code of a tile of warps."""

    def __init__(self, tile: Tile) -> None:
        super().__init__(tile)
        self.multiply = generated(lambda: self.acc, [self.acc, types.int32, types.int32], self._group_products)

    def _group_products(self, builder: Any, acc: Any, chunk: Any, own_a: Any) -> list[Any]:
        """Start all products of a chunk, as one group; own_a: offset of the warpgroup's rows in the chunk."""
        tile, product = self.tile, GROUP_PRODUCTS[self.tile.kind]
        count = tile.warp_rows * WARPS // ROWS
        each = tile.sums // count
        sums = [builder.extract_value(acc, i) for i in range(tile.sums)]
        first = builder.add(chunk, own_a)
        rows = [self._descriptor(builder, builder.add(first, I32(i * ROWS * CHUNK))) for i in range(count)]
        columns = self._descriptor(builder, builder.add(chunk, I32(tile.a_bytes)))
        ptx.multiply_group_fence.emit(builder, [])
        for step in range(CHUNK // 32):
            b = builder.add(columns, I64(32 * step >> 4))
            for i in range(count):
                a = builder.add(rows[i], I64(32 * step >> 4))
                own = slice(each * i, each * (i + 1))
                sums[own] = product.emit(builder, [a, b, *sums[own]])
        ptx.multiply_group_commit.emit(builder, [])
        return sums

    def _descriptor(self, builder: Any, address: Any) -> Any:
        """The descriptor of an address, see `fragments.descriptor`."""
        place = builder.and_(builder.lshr(address, I32(4)), I32(0x3FFF))
        return builder.or_(builder.zext(place, I64), I64(fragments.DESCRIPTOR))


def group_product(tile: Tile) -> Any:
    """`gemm.tile_product` for a tile of warpgroups. Its barriers lie after the chunks, and last for one product."""
    code_of = GroupCode(tile)
    row_pointers, fetch_rows, start, stage, multiply = (
        code_of.row_pointers,
        code_of.fetch_rows,
        code_of.start,
        code_of.stage,
        code_of.multiply,
    )
    store = finish(tile)
    commit, rows_of_first, rows_of_next = (
        ptx.copy_async_commit,
        ptx.copy_async_wait(tile.stages - 2),
        ptx.copy_async_wait(tile.stages - 3),
    )
    all_but_last, all_products = ptx.multiply_group_wait(1), ptx.multiply_group_wait(0)
    stages, stage_bytes, a_bytes, b_bytes = tile.stages, tile.stage_bytes, tile.a_bytes, tile.n * CHUNK
    group_rows, pitch_c = tile.warp_rows * WARPS, 4 * (tile.n + PAD)
    barriers = tile.shared_bytes - 8 * stages - (tile.alignment - CHUNK)

    @cuda.jit(device=True)
    def fetch_weights(shared, slot, b):
        """Start to copy a chunk of B into a slot. One thread calls it."""
        barrier = shared + barriers + 8 * slot
        ptx.barrier_expect(barrier, b_bytes)
        ptx.copy_bulk(shared + slot * stage_bytes + a_bytes, b, b_bytes, barrier)

    @cuda.jit(device=True)
    def product(shared, a_rows, c_rows, m, weight, pitch, bias, width, depth, n0, code, gated):
        thread = ptx.thread()
        if thread == 0:
            for slot in range(stages):
                ptx.barrier_init(shared + barriers + 8 * slot, 1)
        ptx.fence_async()  # after the barriers' initialisation and earlier uses of this memory
        row, byte = thread >> 3, (thread & 7) * 16
        to = shared + row * CHUNK + (byte ^ (row & 7) * 16)
        pointers = row_pointers(a_rows, row, m - 1, byte)
        b = weight + pitch * n0
        left = depth - byte
        sums = start(bias + 4 * (n0 + 2 * (thread & 3)))
        offset = 0
        for slot in range(stages - 1):
            if offset < depth:
                if thread == 0:
                    fetch_weights(shared, slot, b)
                fetch_rows(to + slot * stage_bytes, pointers, offset, min(max(left - offset, 0), 16))
            commit()
            offset += CHUNK
            b += b_bytes
        rows_of_first()
        ptx.fence_async()
        cuda.syncthreads()
        slot, parity = 0, 0
        while offset < depth + (stages - 1) * CHUNK:
            while ptx.barrier_passed(shared + barriers + 8 * slot, parity) == 0:
                pass
            own_a = (ptx.thread() >> 7) * group_rows * CHUNK  # recomputed: cheaper than a register kept over the loop
            sums = multiply(sums, shared + slot * stage_bytes, own_a)
            all_but_last()
            rows_of_next()
            ptx.fence_async()
            cuda.syncthreads()  # the next chunk's rows have arrived, and all products of the previous chunk are done
            if offset < depth:
                free = slot - 1 if slot > 0 else stages - 1
                if ptx.thread() == 0:
                    fetch_weights(shared, free, b)
                left = depth - (ptx.thread() & 7) * 16
                fetch_rows(to + free * stage_bytes, pointers, offset, min(max(left - offset, 0), 16))
            commit()
            slot += 1
            if slot == stages:
                slot, parity = 0, parity ^ 1
            offset += CHUNK
            b += b_bytes
        all_products()
        cuda.syncthreads()
        thread = ptx.thread()
        if thread < stages:
            ptx.barrier_end(shared + barriers + 8 * thread)
        row = (thread >> 7) * group_rows + (thread >> 5 & 3) * 16 + (thread >> 2 & 7)
        stage(sums, shared + row * pitch_c + 8 * (thread & 3))
        cuda.syncthreads()
        store(shared, c_rows, m, width, n0, code, gated)

    return product
