"""Floats of 4 and 6 bits as tcgen05 holds them, and the scale factors of their blocks.

In shared memory 16 elements lie next to each other at the beginning of 16 bytes, the first in the lowest bits. Only
.kind::mxf4 and .kind::mxf4nvf4 have 32 elements of 4 bits in 16 bytes. In tensor memory an element has a byte. An
element of 6 bits takes the lowest bits of the byte, an element of 4 bits takes bits 2 to 5. Sources: the PTX ISA,
"Packing formats of elements in Tensor and Shared memory" and "Optional Decompression". The ISA shows the places in a
byte only in figures. The source for them is CUTLASS's mma_traits_sm120.hpp, which describes registers.
"""

from __future__ import annotations

import math

import numpy as np

from kernel_cache.compile import inner as jit

from .bits import load8, load16
from .convert import quarter_value

E2M3, E3M2, E2M1, PACKED_E2M1 = 14, 15, 16, 17  # kinds of elements, after those of matrix.py
PART = 16  # bytes of shared memory that hold 16 elements, or 32 of kind PACKED_E2M1


@jit
def code_at(host, i, kind):
    """The bits of element i of a part of 16 bytes in shared memory."""
    if kind in (E2M3, E3M2):
        return (np.int64(load16(host + (6 * i >> 3))) >> (6 * i & 7)) & 63
    return (np.int64(load8(host + (i >> 1))) >> (4 * (i & 1))) & 15


@jit
def code_in(byte, kind):
    """The bits of an element in its byte of tensor memory."""
    return (byte >> 2) & 15 if kind == E2M1 else byte & 63


@jit
def byte_of(code, kind):
    """The byte of tensor memory that holds an element."""
    return code << 2 if kind == E2M1 else code


@jit
def bytes_used(kind):
    """How many of the 16 bytes of a part hold elements of a kind; the others are padding."""
    if kind == E2M1:
        return 8
    return 12 if kind in (E2M3, E3M2) else PART


@jit
def small_value(code, kind):
    """The value of an element. These types have no infinities and no NaN."""
    mantissa, exponents, bias = 1, 2, 1
    if kind == E2M3:
        mantissa = 3
    elif kind == E3M2:
        mantissa, exponents, bias = 2, 3, 3
    e, m = (code >> mantissa) & ((1 << exponents) - 1), code & ((1 << mantissa) - 1)
    whole = m + (1 << mantissa if e else 0)
    value = math.ldexp(np.float64(whole), max(e, 1) - bias - mantissa)
    return -value if (code >> (mantissa + exponents)) & 1 else value


@jit
def scale_value(byte, exponents):
    """The value of a scale factor: of UE8M0 if `exponents`, otherwise of UE4M3, whose highest bit is 0."""
    if not exponents:
        return quarter_value(byte, False)
    return math.nan if byte == 255 else math.ldexp(1.0, byte - 127)
