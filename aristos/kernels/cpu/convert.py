"""Converts float32 to 16-bit elements and back. Values are rounded to nearest, ties to even; a NaN stays a NaN.

The instruction sets amx and avx512bf16 have a conversion to bfloat16 that treats denormals as zeros. With the other
instruction sets, integer operations round to bfloat16, and denormals are rounded too.
"""

import numpy as np
from numba.extending import overload

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives.intrinsics import forward
from ..cpu import llvm
from . import micro_kernels
from .panels import LANES
from .target import ISA

FLUSHES = ISA in ("amx", "avx512bf16")  # whether rounding to bfloat16 treats denormals as zeros
FLOAT32, BFLOAT16, FLOAT16 = range(3)  # codes of element types
SPLIT = 3  # the code of float32 that is computed as sums of two bfloat16


def half_of_float(value):
    """The bits of a float32 rounded to float16."""
    return np.float32(value).astype(np.float16).view(np.uint16)


def float_of_half(bits):
    """The float32 of the bits of a float16."""
    return np.float32(np.uint16(bits).view(np.float16))


overload(half_of_float, inline="always")(forward(half_of_float, llvm.half_of_float))
overload(float_of_half, inline="always")(forward(float_of_half, llvm.float_of_half))


def round_block(dst, src, n):
    """Round n float32 at address src to bfloat16 at dst, n in 1..32. 32 float32 must be readable at src."""
    out, bits = mem.bits16(dst, n), mem.bits32(src, n)
    for i in range(n):
        u = int(bits[i])
        if u & 0x7FFFFFFF > 0x7F800000:
            out[i] = u >> 16 | 0x40
        elif FLUSHES and u & 0x7F800000 == 0:
            out[i] = u >> 16 & 0x8000
        else:
            out[i] = u + 0x7FFF + (u >> 16 & 1) >> 16


overload(round_block, inline="always")(forward(round_block, micro_kernels.round_block(LANES, FLUSHES)))


def split_block(high, low, src, n):
    """Split each of n float32 at src, n in 1..32, into a sum of two bfloat16.

    32 bfloat16 are written at `high` and 32 at `low`. The values after the first n are zeros.
    """
    values = np.zeros(32, np.float32)
    values[:n] = mem.floats(src, n)
    round_block(high, values.ctypes.data, 32)
    rest = values - (mem.bits16(high, 32).astype(np.uint32) << np.uint32(16)).view(np.float32)
    round_block(low, rest.ctypes.data, 32)


overload(split_block, inline="always")(forward(split_block, micro_kernels.split_block(LANES, FLUSHES)))


@jit
def round_bfloat16(dst, src, n):
    """Round n float32 at address src to bfloat16 at dst. The last block of 32 float32 must be readable as a whole."""
    for i in range(0, n, 32):
        round_block(dst + 2 * i, src + 4 * i, min(32, n - i))


@jit
def widen_bfloat16(dst, src, n):
    """Widen n bfloat16 at address src to float32 at dst."""
    out, bits = mem.bits32(dst, n), mem.bits16(src, n)
    for i in range(n):
        out[i] = np.uint32(bits[i]) << 16


@jit
def round_float16(dst, src, n):
    """Round n float32 at address src to float16 at dst."""
    out, values = mem.bits16(dst, n), mem.floats(src, n)
    for i in range(n):
        out[i] = half_of_float(values[i])


@jit
def widen_float16(dst, src, n):
    """Widen n float16 at address src to float32 at dst."""
    out, bits = mem.floats(dst, n), mem.bits16(src, n)
    for i in range(n):
        out[i] = float_of_half(bits[i])


@jit
def round_row(element, dst, src, n):
    """Round n float32 at address src to elements of 16 bits at dst."""
    if element == BFLOAT16:
        round_bfloat16(dst, src, n)
    else:
        round_float16(dst, src, n)


@jit
def widen_row(element, dst, src, n):
    """Widen n elements of 16 bits at address src to float32 at dst."""
    if element == BFLOAT16:
        widen_bfloat16(dst, src, n)
    else:
        widen_float16(dst, src, n)


def narrow(element: int, values: np.ndarray) -> np.ndarray:
    """Round float32 of any shape to elements of 16 bits, as the kernels do. Returns their bits as uint16."""
    flat, out = np.ascontiguousarray(values).reshape(-1), np.empty(values.shape, np.uint16)
    whole = flat.size // 32 * 32
    rest = np.zeros(32, np.float32)
    rest[: flat.size - whole] = flat[whole:]
    round_row(element, out.ctypes.data, flat.ctypes.data, whole)
    round_row(element, out.ctypes.data + 2 * whole, rest.ctypes.data, flat.size - whole)
    return out
