"""The kernels on NumPy arrays, without a layer: one expert, and one matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...config import ACTIVATIONS, checked_limit
from ...errors import InputError
from ...primitives.arrays import check_out
from ...primitives.buffers import aligned
from ..common.activations import word
from .convert import FLOAT32
from .elements import ELEMENTS, ElementType
from .entries import BLOCK_BYTES, EXPERT, KERNELS, PRODUCT, product_bytes
from .expert import scratch_bytes
from .panels import pack, padded

RUN = 192  # rows of one run of the kernel
NARROW_RUN = 128  # rows of a product of 16-bit elements, whose copy stays in the L2 cache: 4 to 25 % faster than 192


class KernelCall:
    """Calls one kernel of an element type. Not thread-safe: its arguments lie in one block."""

    def __init__(self, element: int, kernel: int) -> None:
        self._run, self._kernel = KERNELS[element], kernel
        self._block = aligned((BLOCK_BYTES // 8,), np.int64)

    def __call__(self, *arguments: int) -> int:
        self._block[2 : 2 + len(arguments)] = arguments
        return int(self._run(self._kernel, self._block.ctypes.data))


class Matrix:
    """Weights packed for the micro-kernel: Matrix(w)(x) is x w, with float32 sums.

    weight: [K, N] float32, bfloat16 (ml_dtypes) or float16. Not thread-safe: use one object per thread.
    """

    def __init__(self, weight: np.ndarray) -> None:
        weight = np.asarray(weight)
        element = ELEMENTS.get(weight.dtype.name)
        if element is None or weight.ndim != 2:
            wanted = "a matrix of float32, bfloat16 or float16"
            raise InputError(f"weight must be {wanted}, got {weight.dtype} {list(weight.shape)}")
        if 0 in weight.shape:
            raise InputError(f"weight must have at least one row and one column, got {list(weight.shape)}")
        self.depth, self.columns = weight.shape
        self._element, self._panels = element, element.pack(weight)
        self._run = RUN if element.code == FLOAT32 else NARROW_RUN
        self._rows = aligned((product_bytes(element.code, self._run, self.depth),), np.uint8)
        self._call = KernelCall(element.code, PRODUCT)

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """x: [M, K] of the weight's dtype -> [M, N]. `out` [M, N] avoids a copy if N is a multiple of 32."""
        x, y = _rows(x, out, self.depth, self.columns, self._element)
        from_x, to_y = _addresses(x), _addresses(y)
        for first in range(0, len(x), self._run):
            self._call(
                min(self._run, len(x) - first), from_x.ctypes.data + 8 * first, self.depth, self._panels.ctypes.data,
                self.columns, to_y.ctypes.data + 8 * first, self._rows.ctypes.data,
            )  # fmt: skip
        return _result(y, out, self.columns)


class Packed:
    """One expert with its weights packed: y = act(x up + up_bias) [* (x gate + gate_bias)] down + down_bias.

    up, gate: [H, F] float32, down: [F, H]; biases: [F], [F], [H]. With a gate, the activation is applied to the gate
    projection, and `limit` bounds both projections (see MoEConfig).
    Not thread-safe: use one object per thread.
    """

    def __init__(
        self,
        up: np.ndarray,
        down: np.ndarray,
        gate: np.ndarray | None = None,
        up_bias: np.ndarray | None = None,
        gate_bias: np.ndarray | None = None,
        down_bias: np.ndarray | None = None,
        activation: str = "gelu",
        limit: float | None = None,
    ) -> None:
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        limit = checked_limit(activation, gate is not None, limit)
        up = _matrix("up", up, None)
        self.hidden, self.ffn = up.shape
        if 0 in up.shape:
            raise InputError(f"up must have at least one row and one column, got {list(up.shape)}")
        if gate is None and gate_bias is not None:
            raise InputError("gate_bias came without gate")
        parts: list[np.ndarray | None] = [pack(up)]
        parts.append(None if gate is None else pack(_matrix("gate", gate, up.shape)))
        parts.append(pack(_matrix("down", down, up.shape[::-1])))
        for name, bias, n in (
            ("up_bias", up_bias, self.ffn),
            ("gate_bias", gate_bias, self.ffn),
            ("down_bias", down_bias, self.hidden),
        ):
            parts.append(None if bias is None else _bias(name, bias, n))
        self._parts = parts
        self._weights = [0 if p is None else p.ctypes.data for p in parts]
        self._code = word(activation, limit)
        self._scratch = aligned((scratch_bytes(RUN, self.hidden, gate is not None),), np.uint8)
        self._call = KernelCall(FLOAT32, EXPERT)

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """x: [M, H] float32 -> [M, H]. `out` [M, H] avoids a copy if H is a multiple of the vector width."""
        x, y = _rows(x, out, self.hidden, self.hidden)
        from_x, to_y = _addresses(x), _addresses(y)
        for first in range(0, len(x), RUN):
            self._call(
                min(RUN, len(x) - first), from_x.ctypes.data + 8 * first, to_y.ctypes.data + 8 * first,
                *self._weights, self._code, self.hidden, self.ffn, self._scratch.ctypes.data, 0,
            )  # fmt: skip
        return _result(y, out, self.hidden)


def ffn(
    x: np.ndarray,
    up: np.ndarray,
    down: np.ndarray,
    gate: np.ndarray | None = None,
    up_bias: np.ndarray | None = None,
    gate_bias: np.ndarray | None = None,
    down_bias: np.ndarray | None = None,
    activation: str = "gelu",
    limit: float | None = None,
) -> np.ndarray:
    """Pack an expert's weights and run it on rows: x [M, H], up and gate [H, F], down [F, H], float32 -> [M, H]."""
    return Packed(up, down, gate, up_bias, gate_bias, down_bias, activation, limit)(x)


def _rows(
    x: Any, out: np.ndarray | None, width: int, columns: int, element: ElementType = ELEMENTS["float32"]
) -> tuple[np.ndarray, np.ndarray]:
    """x [M, width] and `out` [M, columns], checked: (rows to read, rows to write, with space for whole panels)."""
    x = _matrix("x", x, (np.shape(x)[0] if np.ndim(x) else 0, width), element.name)
    if out is not None:
        check_out(out, (len(x), columns), x.dtype, x, contiguous=False)
    if x.strides[1] != element.nbytes:
        x = np.ascontiguousarray(x)
    if out is not None and element.padded(columns) == columns and out.flags.c_contiguous:
        return x, out
    return x, aligned((len(x), element.padded(columns)), x.dtype)


def _result(y: np.ndarray, out: np.ndarray | None, columns: int) -> np.ndarray:
    """The columns of y that are outputs, copied into `out` if y is not that array."""
    if out is None:
        return y[:, :columns]
    if y is not out:
        out[:] = y[:, :columns]
    return out


def _addresses(m: np.ndarray) -> np.ndarray:
    """[rows] int64."""
    return m.ctypes.data + m.strides[0] * np.arange(len(m))


def _matrix(name: str, value: Any, shape: tuple[int, ...] | None, dtype: str = "float32") -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.name != dtype or array.ndim != 2 or (shape is not None and array.shape != shape):
        wanted = "a matrix" if shape is None else f"shape {list(shape)}"
        raise InputError(f"{name} must be {dtype} with {wanted}, got {array.dtype} {list(array.shape)}")
    return array


def _bias(name: str, value: Any, n: int) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype != np.float32 or array.shape != (n,):
        raise InputError(f"{name} must be float32 with shape [{n}], got {array.dtype} {list(array.shape)}")
    out = aligned((padded(n),))
    out[:] = 0
    out[:n] = array
    return out
