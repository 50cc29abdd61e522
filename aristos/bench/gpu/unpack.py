"""Packed weights copied into rows of k, one row per output, as cuBLAS reads them; on the GPU."""

from __future__ import annotations

from typing import Any

from ...kernels.cuda import ptx
from ...kernels.cuda.catalogue import Kernel
from ...kernels.cuda.compiler import cuda, types
from ...kernels.cuda.pack import COLUMNS
from ...kernels.cuda.tile import CHUNK

THREADS, BLOCKS_A_SM, PARTS = 256, 8, CHUNK // 16


@cuda.jit
def unpack(rows, packed, count, pitch):
    """The 16-byte parts of `count` rows of `pitch` bytes, from the blocks of `pack.pack`; one thread per part."""
    parts = pitch // 16
    for i in range(cuda.grid(1), count * parts, cuda.gridsize(1)):
        row, part = i // parts, i % parts
        block = (row & -COLUMNS) * pitch + (part & -PARTS) * 16 * COLUMNS
        v = ptx.load16_once(packed + block + (row & COLUMNS - 1) * CHUNK + 16 * ((part ^ row) & PARTS - 1))
        ptx.store16_once(rows + 16 * i, v[0], v[1], v[2], v[3])


UNPACK = Kernel("unpack", unpack, (types.int64,) * 4, THREADS, 0, 1)


def unpacked_copy(gpu: Any, packed: int, nbytes: int, pitch: int) -> int:
    """Address of a copy of `nbytes` of packed weights as rows of `pitch` bytes; `nbytes` is a multiple of `pitch`."""
    at = gpu.allocate(max(1, nbytes))
    gpu.launch(UNPACK, BLOCKS_A_SM * gpu.device.sms, 0, at, packed, nbytes // pitch, pitch)
    return at
