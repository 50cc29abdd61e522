"""Tensor core instructions in NumPy: the layouts of their operands in registers and shared memory, and exact sums.

Layouts follow the PTX ISA, sections 9.7.14.5.7 and 9.7.14.5.8, and for a warpgroup 9.7.15.5. This file has no Numba and
no PTX.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

WIDTH = {"bf16": 16, "f16": 16, "tf32": 32}  # bits of an element


def elements(registers: Any, kind: str) -> np.ndarray:
    """The elements [32, n * elements in a register] float64 of a warp's registers [32, n] int32."""
    bits = np.ascontiguousarray(registers, np.int32).view(np.uint32)
    if kind == "tf32":
        return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    halves = bits.view(np.uint16)
    if kind == "f16":
        return halves.view(np.float16).astype(np.float64)
    return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def product(a: Any, b: Any, c: Any, kind: str) -> np.ndarray:
    """D = A B + C of one mma.sync; a [32, 4], b [32, 2] int32, c [32, 4] float32 -> [32, 4] float32."""
    per = 32 // WIDTH[kind]
    depth = 8 * per
    left, right = np.zeros((16, depth)), np.zeros((depth, 8))
    of_a, of_b = elements(a, kind), elements(b, kind)
    out = np.zeros((32, 4), np.float32)
    for lane in range(32):
        group, thread = divmod(lane, 4)
        for register in range(4):
            for i in range(per):
                row, column = group + 8 * (register % 2), per * thread + i + depth // 2 * (register // 2)
                left[row, column] = of_a[lane, per * register + i]
        for register in range(2):
            for i in range(per):
                right[per * thread + i + depth // 2 * register, group] = of_b[lane, per * register + i]
    for lane in range(32):
        for register in range(4):
            row, column = lane // 4 + 8 * (register // 2), 2 * (lane % 4) + register % 2
            terms = [float(c[lane][register]), *(left[row] * right[:, column])]
            out[lane, register] = np.float32(math.fsum(terms))
    return out


LINE = 128  # bytes of a matrix row in shared memory; its 16-byte parts are swizzled by the row number
DESCRIPTOR = 1 << 62 | (8 * LINE >> 4) << 32 | 1 << 16  # 128-byte swizzle; stride between groups of 8 rows


def descriptor(address: int) -> int:
    """wgmma's descriptor of a matrix in shared memory, with 128 bytes of k per row, at a multiple of 1024 bytes.

    To advance 16 elements in k, add 32 bytes to the address; the hardware swizzles the new address.
    """
    return DESCRIPTOR | address >> 4 & 0x3FFF


def described(shared: np.ndarray, matrix: int, rows: int, kind: str) -> np.ndarray:
    """The matrix in shared memory to which a descriptor points, [n] uint8 -> [rows, 16] float64.

    The descriptor's bits are those of DESCRIPTOR, except for the address.
    """
    if matrix & ~0x3FFF != DESCRIPTOR:
        raise ValueError(f"descriptor must be {DESCRIPTOR:#x} with an address in its low 14 bits, got {matrix:#x}")
    place = ((matrix & 0x3FFF) << 4) + LINE * np.arange(rows)[:, None] + np.arange(32)
    place ^= (place >> 7 & 7) << 4
    return elements(np.ascontiguousarray(shared[place]).view(np.int32), kind)


def group_product(shared: np.ndarray, a: int, b: int, c: Any, kind: str) -> np.ndarray:
    """D = A B^T + C of one wgmma m64n128k16; a, b: descriptors, c [128, 64] float32 -> [128, 64] float32."""
    left, right = described(shared, a, 64, kind), described(shared, b, 128, kind)
    out = np.zeros((128, 64), np.float32)
    for thread in range(128):
        for register in range(64):
            row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (register // 2 % 2)
            column = 8 * (register // 4) + 2 * (thread % 4) + register % 2
            out[thread, register] = np.float32(math.fsum([float(c[thread][register]), *(left[row] * right[column])]))
    return out


def both(register: int, kind: str) -> tuple[np.float32, ...]:
    """The two 16-bit floats of a register, the low half first."""
    return tuple(elements(np.array([register]), kind).astype(np.float32))


def pair(low: float, high: float, kind: str) -> int:
    """Two float32 as two 16-bit floats in one register, rounded to nearest, ties to even."""
    both = np.array([low, high], np.float32)
    if kind == "f16":
        return int(both.astype(np.float16).view(np.int32)[0])
    bits = both.view(np.uint32).astype(np.uint64)
    halves = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return int(halves.astype(np.uint16).view(np.int32)[0])


def fma(a: float, b: float, c: float) -> np.float32:
    """a b + c for finite float32, rounded once."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    near = np.float32(float(exact))
    places = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(places, key=lambda p: (abs(Fraction(float(p)) - exact), int(p.view(np.uint32)) & 1))
