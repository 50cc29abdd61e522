"""wgmma by the rules of the PTX ISA, in NumPy: operands in shared memory, a warpgroup's fragments, and the products."""

from __future__ import annotations

import ml_dtypes
import numpy as np

KINDS = {"bf16": 16, "f16": 16, "tf32": 8}  # elements of k in an instruction
BYTES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "s8": np.int8, "u8": np.uint8}
WIDTHS = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes of a pattern's row, by the descriptor's mode


def narrow(values, kind):
    """(bit patterns as in memory, their float32 values)."""
    values = values.astype(np.float32)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16), values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32) & np.uint32(0xFFFF0000 if kind == "bf16" else 0xFFFFE000)
    return (bits >> 16).astype(np.uint16) if kind == "bf16" else bits, bits.view(np.float32)


def mixed(at, mode):
    """The swizzles of the ISA: 16-byte part p of 128-byte line r lies at p ^ (the lowest 3, 2 or 1 bits of r)."""
    line, part, rest = at // 128, at // 16 % 8, at % 16
    part ^= line % {0: 1, 1: 8, 2: 4, 3: 2}[mode]
    return line * 128 + part * 16 + rest


def image(bits, mode, turned, leading, stride):
    """Bytes of an operand [rows, k] of one instruction, in the canonical layout of a mode. The pattern starts at 0."""
    rows, depth = bits.shape
    size, per = bits.itemsize, 16 // bits.itemsize
    width = WIDTHS[mode]
    out = np.zeros(32768, np.uint8)
    for row in range(rows):
        for k in range(depth):
            # Core matrices: 8 rows of 16 bytes; stride: to the next 8 rows; leading: along k.
            if mode == 0 and not turned:
                at = row // 8 * stride + row % 8 * 16 + k // per * leading + k % per * size
            elif mode == 0:
                at = row // per * stride + k // 8 * leading + k % 8 * 16 + row % per * size
            elif not turned:
                at = row // 8 * stride + row % 8 * width + k * size
            else:
                chunk = width // size
                at = row // chunk * leading + row % chunk * size + k // 8 * stride + k % 8 * width
            at = mixed(at, mode)
            out[at : at + size] = np.frombuffer(bits[row, k].tobytes(), np.uint8)
    return out


def descriptor(start, mode, leading, stride):
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62


def strides(mode, turned, rows, depth, size):
    """(leading, stride) bytes of a packed operand."""
    if mode == 0:
        return (128, 128 * (depth * size // 16)) if not turned else (128, 256)
    width = WIDTHS[mode]
    if not turned:
        return 16, 8 * width
    return 16 * width, 8 * width  # patterns of 8 rows of k: first the next one along k, then along the rows


def fragments(lane, n):
    """(row, column) of each accumulator of a lane of the warpgroup's warp 0, from the ISA's figure of D."""
    return [(lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2) for i in range(n // 2)]


def fragments_of_a(lane, kind):
    """(row, k) of each element of A that a lane holds."""
    g, t = lane // 4, lane % 4
    if kind == "tf32":
        return [(g + 8 * (i % 2), t + 4 * (i // 2)) for i in range(4)]
    return [(g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4)) for i in range(8)]


def chained(d, a, b):
    """d + a b, each sum rounded to float32, in k order; float64 holds a product of two 11-bit numbers exactly."""
    total = d.astype(np.float32)
    for k in range(a.shape[1]):
        total = (total.astype(np.float64) + a[:, k, None].astype(np.float64) * b[None, :, k].astype(np.float64)).astype(
            np.float32
        )
    return total
