"""Compiled steps of optimizers on float32 arrays of any shape; `aristos.train` says what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernel_cache.compile import warm_up

from ..kernels.by_isa import module
from ..primitives.buffers import FLOAT
from ..trainable import AdamScales, MomentumScales


class Updates:
    """The optimizers' kernels for one instruction set."""

    def __init__(self, isa: str) -> None:
        from numba import types

        self._kernel, word = module("optimizer", isa), types.int64
        warm_up(
            [
                (self._kernel.adam_rows, (word,) * 8),
                (self._kernel.momentum_rows, (word,) * 7),
                (self._kernel.square_sum, (word,) * 4),
            ]
        )

    def adam(
        self, master: np.ndarray, gradient: np.ndarray, mean: np.ndarray, square: np.ndarray, scales: AdamScales
    ) -> None:
        """A step of Adam. It changes master, mean and square, of equal shapes."""
        self._run(self._kernel.adam_rows, gradient, [master, mean, square], scales)

    def momentum(self, master: np.ndarray, gradient: np.ndarray, velocity: np.ndarray, scales: MomentumScales) -> None:
        """A step with momentum. It changes master and velocity, of equal shapes."""
        self._run(self._kernel.momentum_rows, gradient, [master, velocity], scales)

    def square_sum(self, array: np.ndarray) -> float:
        """The sum of the squares of the array's entries."""
        array = _even(array)
        rows, n, pitch = _extent(array)
        return float(self._kernel.square_sum(rows, n, array.ctypes.data, pitch))

    @staticmethod
    def _run(kernel: Any, gradient: np.ndarray, changed: list[np.ndarray], scales: tuple[float, ...]) -> None:
        gradient, factors = _even(gradient), np.array(scales, np.float32)
        rows, n, pitch = _extent(gradient)
        arrays = [np.ascontiguousarray(array) for array in changed]
        first, *states = (array.ctypes.data for array in arrays)
        kernel(rows, n, first, gradient.ctypes.data, pitch, *states, factors.ctypes.data)
        for array, given in zip(arrays, changed):
            if array is not given and not np.shares_memory(array, given):
                given[...] = array


def _even(array: np.ndarray) -> np.ndarray:
    """The array itself if its rows are contiguous and equally far apart, else a contiguous copy."""
    return array if array.ndim == 2 and array.strides[1] == FLOAT else np.ascontiguousarray(array)


def _extent(array: np.ndarray) -> tuple[int, int, int]:
    """(rows, entries of a row, bytes from row to row). An array without exactly two dimensions counts as one row."""
    if array.ndim == 2:
        return *array.shape, array.strides[0]
    return 1, array.size, 0
