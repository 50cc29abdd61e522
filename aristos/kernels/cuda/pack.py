"""Pack weights for the tile product: blocks of outputs by chunks of k, padded with zeros, in the arithmetic's type."""

from __future__ import annotations

import numpy as np

from ...errors import InputError
from .tile import BYTES, CHUNK

COLUMNS = 128  # outputs are padded to a multiple of this number; no tile is wider
INTERLEAVE = 8  # 8 columns of W are followed by 8 of G, so that the thread that stores an output has both


def narrow(values: np.ndarray, kind: str) -> np.ndarray:
    """Round float32 to the arithmetic's type: bf16 (as uint16 bits), f16, tf32 (ties away; as float32) or f32."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    if kind == "bf16":
        return ((bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    if kind == "f16":
        return values.astype(np.float16)
    if kind == "tf32":
        return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return values


def widen(values: np.ndarray, kind: str) -> np.ndarray:
    """The result of `narrow` as float32."""
    if kind == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def interleaved(up: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """[K, 2 F'] from up, gate [K, F]: 8 columns of `up`, then the same 8 of `gate`. F' is F rounded up to 8."""
    if up.shape != gate.shape:
        raise InputError(f"gate must have the shape of up {list(up.shape)}, got {list(gate.shape)}")
    k, f = up.shape
    both = np.zeros((k, -(-f // INTERLEAVE), 2, INTERLEAVE), np.float32)
    for side, weight in enumerate((up, gate)):
        padded = np.zeros((k, both.shape[1] * INTERLEAVE), np.float32)
        padded[:, :f] = weight
        both[:, :, side] = padded.reshape(k, -1, INTERLEAVE)
    return both.reshape(k, -1)


def pack(weight: np.ndarray, kind: str) -> np.ndarray:
    """Pack weight [K, N] float32 to [N' / 128, K' / step, 128, step] of the arithmetic's type, step in 128 bytes.

    The weight is padded with zeros to whole blocks of 128 outputs and 128 bytes of k. A block equals a tile's chunk of
    B in shared memory byte for byte (16-byte part p of output r lies at p ^ (r & 7)), so one bulk copy loads it.
    """
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise InputError(f"weight must be a float32 matrix, got {weight.dtype} {list(weight.shape)}")
    k, n = weight.shape
    step = CHUNK // BYTES[kind]
    plain = np.zeros((-(-n // COLUMNS) * COLUMNS, -(-k // step) * step), narrow(weight[:1], kind).dtype)
    plain[:n, :k] = narrow(weight.T, kind)
    parts = plain.reshape(-1, COLUMNS, plain.shape[1] // step, 8, step // 8).transpose(0, 2, 1, 3, 4)
    row = np.arange(COLUMNS)[:, None]
    return parts[:, :, row, np.arange(8) ^ row % 8].reshape(*parts.shape[:3], step)


def unpacked(packed: np.ndarray) -> np.ndarray:
    """Undo `pack`: [N', K'], a row of k for each output."""
    step, row = packed.shape[3], np.arange(COLUMNS)[:, None]
    parts = packed.reshape(*packed.shape[:3], 8, step // 8)[:, :, row, np.arange(8) ^ row % 8]
    return np.ascontiguousarray(parts.transpose(0, 2, 1, 3, 4)).reshape(len(packed) * COLUMNS, -1)


def outputs(packed: np.ndarray) -> int:
    """The number of outputs of a packed weight, padding included."""
    return len(packed) * COLUMNS


def pack_bias(bias: np.ndarray | None, columns: int) -> np.ndarray:
    """A bias padded with zeros to `columns` float32; all zeros for None."""
    out = np.zeros(columns, np.float32)
    if bias is not None:
        out[: len(bias)] = bias
    return out
