"""The sizes of a float32 and of a cache line, and arrays that start on a cache line."""

from __future__ import annotations

from typing import Any

import numpy as np

FLOAT = 4  # bytes of a float32
LINE = 64  # bytes of a cache line


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """A new array that starts on a cache line. Its entries are not set."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(nbytes + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def zeros(shape: tuple[int, ...], dtype: Any = np.int64) -> np.ndarray:
    """A new array of zeros that starts on a cache line."""
    made = aligned(shape, dtype)
    made[:] = 0
    return made
