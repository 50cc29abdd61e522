"""The kernels on NumPy arrays, without a layer: one expert, and one matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import ACTIVATIONS, PRECISIONS, checked_limit
from ..errors import InputError
from ..primitives.arithmetic import ExpertRows, ExpertWeights, Product
from ..primitives.arrays import check_out, is_type
from ..primitives.buffers import LINE, aligned
from ..primitives.huge_pages import on_huge_pages
from ..quantised import Quantised
from ..weight_types import PACKED_ROWS, WeightType
from .by_isa import module
from .common.activations import word
from .cpu.call_blocks import EXPERT_ROWS, PRODUCT
from .cpu.convert import FLOAT32
from .cpu.elements import ELEMENTS, ElementType, element_type
from .cpu.kernel_call import KernelCall
from .cpu.target import ISA

RUN = 192  # most rows of one run of the kernel
NARROW_RUN = 128  # the same for 16-bit elements: 128 rows stay in L2, which is 4 to 25 % faster than 192 rows


def entries_of(element: ElementType) -> Any:
    """The module `entries` that has the kernels of an element type, for this process's ISA."""
    return module("entries", ISA, element.format)


class Matrix:
    """Weights packed for the micro-kernel: Matrix(w)(x) is x w, with float32 sums.

    weight: [K, N] float32, bfloat16 (ml_dtypes) or float16. precision: the precision of float32 products, as in
    `MoEConfig`. transposed: whether x is multiplied by the transpose. Not thread-safe: use one object per thread.
    """

    def __init__(self, weight: np.ndarray, *, precision: str = "highest", transposed: bool = False) -> None:
        weight, self._element = _weight("weight", weight, precision)
        if 0 in weight.shape:
            raise InputError(f"weight must have at least one row and one column, got {list(weight.shape)}")
        self.depth, self.columns = weight.shape[::-1] if transposed else weight.shape
        self._panels = self._element.pack(weight, transposed)
        self._run = RUN if self._element.code == FLOAT32 else NARROW_RUN
        self._scratch = aligned(
            (entries_of(self._element).product_bytes(self._element.code, self._run, self.depth),), np.uint8
        )
        self._call = KernelCall(entries_of(self._element), self._element, PRODUCT)

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return x w [M, N] for x [M, K] of the weight's dtype; if transposed, x w^T [M, K] for x [M, N].

        If an array `out` of the result's shape is given, the result is written there. This avoids a copy if the number
        of columns is a multiple of 32.
        """
        x, y = _rows(x, out, self.depth, self.columns, self._element)
        from_x, to_y = _addresses(x), _addresses(y)
        for first in range(0, len(x), self._run):
            self._call(
                Product(
                    rows=min(self._run, len(x) - first),
                    x=from_x.ctypes.data + 8 * first,
                    depth=self.depth,
                    panels=self._panels.ctypes.data,
                    columns=self.columns,
                    y=to_y.ctypes.data + 8 * first,
                    scratch=self._scratch.ctypes.data,
                )
            )
        return _result(y, out, self.columns)


class Packed:
    """One expert with its weights packed: y = h down + down_bias.

    up, gate: [H, F] float32, bfloat16 (ml_dtypes) or float16; down: [F, H]; biases: [F], [F], [H] float32. h is
    act(x up + up_bias), or act(x gate + gate_bias) * (x up + up_bias) if there is a gate; then `limit` bounds both
    projections, and swiglu_oai adds 1 to the second factor. limit, precision: see MoEConfig. weight_dtype: the type of
    packed weights to which the matrices are rounded, see `aristos.packed`. Matrices may also be `Quantised`; then
    `dtype` is the type of rows, float32 or bfloat16. Not thread-safe: use one object per thread.
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
        *,
        precision: str = "highest",
        weight_dtype: WeightType | None = None,
        dtype: str | None = None,
    ) -> None:
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        limit = checked_limit(activation, gate is not None, limit)
        up, element = _weight("up", up, precision, weight_dtype, dtype)
        self._element = element
        self.hidden, self.ffn = up.shape
        if 0 in up.shape:
            raise InputError(f"up must have at least one row and one column, got {list(up.shape)}")
        if gate is None and gate_bias is not None:
            raise InputError("gate_bias needs gate, got gate_bias alone: give both, or leave gate_bias out")
        parts: list[np.ndarray | None] = [element.pack(up)]
        parts.append(None if gate is None else element.pack(_another("gate", gate, up.shape, element)))
        parts.append(element.pack(_another("down", down, up.shape[::-1], element)))
        parts = _together(parts)
        for name, bias, n in (
            ("up_bias", up_bias, self.ffn),
            ("gate_bias", gate_bias, self.ffn),
            ("down_bias", down_bias, self.hidden),
        ):
            parts.append(None if bias is None else element.pack_bias(_array(name, bias, (n,), "float32")))
        self._parts = parts
        self._weights = ExpertWeights(*(0 if p is None else p.ctypes.data for p in parts))
        self._code = word(activation, limit)
        scratch, _ = entries_of(element).run_bytes(element.code, RUN, 0, self.hidden, self.ffn, gate is not None)
        self._scratch = aligned((scratch,), np.uint8)
        self._call = KernelCall(entries_of(element), element, EXPERT_ROWS)

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Run the expert on x [M, H] of the weights' dtype. An `out` [M, H] avoids a copy if H is a multiple of 32."""
        x, y = _rows(x, out, self.hidden, self.hidden, self._element)
        from_x, to_y = _addresses(x), _addresses(y)
        for first in range(0, len(x), RUN):
            self._call(
                ExpertRows(
                    rows=min(RUN, len(x) - first),
                    x=from_x.ctypes.data + 8 * first,
                    y=to_y.ctypes.data + 8 * first,
                    weights=self._weights,
                    activation=self._code,
                    hidden=self.hidden,
                    ffn=self.ffn,
                    scratch=self._scratch.ctypes.data,
                    wire=0,
                    kept=0,
                )
            )
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
    """Pack an expert's weights, and run the expert on rows x [M, H] of their dtype. Returns [M, H].

    up, gate: [H, F]. down: [F, H]. The other arguments are those of `Packed`.
    """
    return Packed(up, down, gate, up_bias, gate_bias, down_bias, activation, limit)(x)


def _weight(
    name: str, value: Any, precision: str, weight: WeightType | None = None, dtype: str | None = None
) -> tuple[Any, ElementType]:
    """Check a matrix of any element type, or a `Quantised`. Returns (the matrix, the element type of its expert)."""
    if isinstance(value, Quantised):
        if dtype not in PACKED_ROWS:
            raise InputError(f"dtype must be the type of rows, {' or '.join(PACKED_ROWS)}, got {dtype!r}")
        return value, element_type(dtype, weight=value.type)
    array = np.asarray(value)
    dtype = str(array.dtype.name)
    if dtype not in ELEMENTS or not array.dtype.isnative or array.ndim != 2:
        wanted = "a matrix of float32, bfloat16 or float16"
        raise InputError(f"{name} must be {wanted}, got {array.dtype} {list(array.shape)}")
    if precision not in PRECISIONS or (precision != "highest" and dtype != "float32"):
        raise InputError(f"precision must be 'highest', or 'high' with float32, got {precision!r} with {dtype}")
    return array, element_type(dtype, precision, weight)


def _another(name: str, value: Any, shape: tuple[int, ...], element: ElementType) -> Any:
    """Check another matrix of an expert, which must have the type of the expert's first matrix."""
    if not isinstance(value, Quantised):
        return _array(name, value, shape, element.name)
    if value.type != element.weight or value.shape != shape:
        raise InputError(
            f"{name} must be {element.weight} with shape {list(shape)}, got {value.type} {list(value.shape)}"
        )
    return value


def _together(parts: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """Copy arrays of bytes into one array on huge pages, because each array alone is too small for a huge page.

    Returns the copies, in order; None stays None.
    """
    sizes = [0 if part is None else -(-part.nbytes // LINE) * LINE for part in parts]
    memory, first = on_huge_pages(sum(sizes)), 0
    found: list[np.ndarray | None] = []
    for part, size in zip(parts, sizes):
        if part is not None:
            memory[first : first + part.nbytes] = part
        found.append(None if part is None else memory[first : first + part.nbytes])
        first += size
    return found


def _rows(
    x: Any, out: np.ndarray | None, width: int, columns: int, element: ElementType
) -> tuple[np.ndarray, np.ndarray]:
    """Check x [M, width] and `out` [M, columns]. Returns (rows to read, rows to write with their columns padded)."""
    x = _array("x", x, (np.shape(x)[0] if np.ndim(x) else 0, width), element.name)
    if out is not None:
        check_out(out, (len(x), columns), x.dtype, x, contiguous=False)
    if x.strides[1] != x.itemsize:
        x = np.ascontiguousarray(x)
    if out is not None and element.padded(columns) == columns and out.flags.c_contiguous:
        return x, out
    return x, aligned((len(x), element.padded(columns)), x.dtype)


def _result(y: np.ndarray, out: np.ndarray | None, columns: int) -> np.ndarray:
    """The outputs, which are the first columns of y. They are copied into `out` if it is given and is not y itself."""
    if out is None:
        return y[:, :columns]
    if y is not out:
        out[:] = y[:, :columns]
    return out


def _addresses(m: np.ndarray) -> np.ndarray:
    """The addresses of the rows of m, as int64."""
    return m.ctypes.data + m.strides[0] * np.arange(len(m))


def _array(name: str, value: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = np.asarray(value)
    if not is_type(array, dtype) or array.shape != shape:
        raise InputError(f"{name} must be {dtype} with shape {list(shape)}, got {array.dtype} {list(array.shape)}")
    return array
