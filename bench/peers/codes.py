"""Codes and scales of a job's weights, for peers that take these instead of values. Only NumPy is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from jobs import CODES, GROUP, Floats
from numpy.typing import NDArray


def codes(weight: Floats, kind: str) -> tuple[NDArray[np.int8], Floats]:
    """(codes [K, N] within -CODES[kind]..CODES[kind], scales [groups, N]) of a matrix [K, N] of `oracle.coded`."""
    depth, columns = weight.shape
    parts = weight.reshape(-1, depth if kind == "int8" else GROUP, columns)
    scales = np.abs(parts).max(axis=1) / np.float32(CODES[kind])
    found: NDArray[np.int8] = np.rint(parts / scales[:, None]).astype(np.int8).reshape(depth, columns)
    return found, scales


def bits(tensor: Any, depth: int, columns: int) -> str:
    """The type of the codes of a `depth` x `columns` matrix, from the bytes of its tensor: "int8" or "int4"."""
    return f"int{8 * tensor.numel() * tensor.element_size() // (depth * columns)}"
