"""Float32 to 16-bit elements and back, by value: rounded to the nearest, ties to even; a NaN stays a NaN.

bfloat16 is converted by integer operations, so every instruction set gives the same bits, denormals included.
"""

import numpy as np
from numba.extending import overload

from ...primitives import memory as mem
from ...primitives.compile import jit
from . import llvm

FLOAT32, BFLOAT16, FLOAT16 = range(3)  # element types: the job's word ELEMENT


def half_of_float(value):
    """The bits of a float32 rounded to float16."""
    return np.float32(value).astype(np.float16).view(np.uint16)


def float_of_half(bits):
    """The float32 of the bits of a float16."""
    return np.float32(np.uint16(bits).view(np.float16))


overload(half_of_float, inline="always")(lambda value: lambda value: llvm.half_of_float(value))  # type: ignore[call-arg]
overload(float_of_half, inline="always")(lambda bits: lambda bits: llvm.float_of_half(bits))  # type: ignore[call-arg]


@jit
def round_bfloat16(dst, src, n):
    """n float32 at address src -> bfloat16 at dst."""
    out, bits = mem.bits16(dst, n), mem.bits32(src, n)
    for i in range(n):
        u = np.int64(bits[i])
        if u & 0x7FFFFFFF > 0x7F800000:
            out[i] = np.uint16(u >> 16 | 0x40)
        else:
            out[i] = np.uint16(u + 0x7FFF + (u >> 16 & 1) >> 16)


@jit
def widen_bfloat16(dst, src, n):
    """n bfloat16 at address src -> float32 at dst."""
    out, bits = mem.bits32(dst, n), mem.bits16(src, n)
    for i in range(n):
        out[i] = np.uint32(bits[i]) << 16


@jit
def round_float16(dst, src, n):
    """n float32 at address src -> float16 at dst."""
    out, values = mem.bits16(dst, n), mem.floats(src, n)
    for i in range(n):
        out[i] = half_of_float(values[i])


@jit
def widen_float16(dst, src, n):
    """n float16 at address src -> float32 at dst."""
    out, bits = mem.floats(dst, n), mem.bits16(src, n)
    for i in range(n):
        out[i] = float_of_half(bits[i])


@jit
def round_row(element, dst, src, n):
    """n float32 at address src -> elements of 16 bits at dst."""
    if element == BFLOAT16:
        round_bfloat16(dst, src, n)
    else:
        round_float16(dst, src, n)


@jit
def widen_row(element, dst, src, n):
    """n elements of 16 bits at address src -> float32 at dst."""
    if element == BFLOAT16:
        widen_bfloat16(dst, src, n)
    else:
        widen_float16(dst, src, n)


def narrow(element: int, values: np.ndarray) -> np.ndarray:
    """float32 of any shape -> uint16 bits of elements of 16 bits, by the kernels' rounding."""
    flat = np.ascontiguousarray(values, np.float32)
    out = np.empty(flat.shape, np.uint16)
    round_row(element, out.ctypes.data, flat.ctypes.data, flat.size)
    return out
