"""The element types of rows and weights on CPUs: codes, sizes, and weights packed for each type.

Weights [K, N] of a 16-bit type are packed as panels of 32 columns, each for all of K; K and N are padded with zeros to
multiples of 32. All instruction sets read the same panels. Router and biases are float32 with every type. Weights for
precision="high" are packed as bfloat16 weights are, but each value is the sum of two bfloat16, so panels have as many
bytes as panels of float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import weight_types
from ...primitives.buffers import aligned, zeros
from ...quantised import Quantised, quantise
from ...row_types import ON_CPUS, ROW_TYPES, RowType
from ...weight_types import WEIGHT_TYPES, WeightType
from . import packed_panels, panels
from .convert import BFLOAT16, FLOAT16, FLOAT32, SPLIT, narrow
from .target import ISA

WIDTH = 32  # columns of a panel of 16-bit weights; K is padded to a multiple of this number too


@dataclass(frozen=True)
class ElementType:
    """The types of a layer's rows and weights.

    row: the type of rows. weight: the type of packed weights. code: the key of their kernels in `entries.KERNELS`.
    """

    row: RowType
    weight: WeightType
    code: int

    @property
    def name(self) -> str:
        """The name of the rows' type, as in `MoEConfig.dtype`."""
        return self.row.name

    @property
    def format(self) -> str:
        """The format of packed weights, a name in `weight_types.FORMATS`; "" for plain weights."""
        return ""

    @property
    def nbytes(self) -> int:
        """Bytes of an element of a row."""
        return self.row.nbytes

    def padded(self, columns: int) -> int:
        """How many columns a weight matrix of `columns` columns has when it is packed."""
        return panels.padded(columns) if self.code == FLOAT32 else up(columns)

    def packed_bytes(self, depth: int, columns: int) -> int:
        """Bytes of a packed matrix [depth, columns]."""
        return self.weight.nbytes(depth if self.code == FLOAT32 else up(depth), self.padded(columns))

    def pack(self, weight: np.ndarray, transposed: bool = False) -> np.ndarray:
        """Pack weight [K, N] of float32, bfloat16 or float16, with any strides, into `packed_bytes(K, N)` bytes.

        transposed: whether to pack the transpose, into `packed_bytes(N, K)` bytes, for products of gradients.
        """
        if transposed:
            weight = weight.T
        if self.code == FLOAT32:
            return panels.pack(weight).view(np.uint8)
        if weight.dtype.name not in ("float32", self.name):
            weight = weight.astype(np.float32)
        if self.code == SPLIT:
            return pack_split(weight).reshape(-1).view(np.uint8)
        bits = narrow(self.code, weight) if weight.dtype == np.float32 else weight.view(np.uint16)
        packed = pack_pairs(bits) if self.code == BFLOAT16 else pack_columns(bits)
        return packed.reshape(-1).view(np.uint8)

    def pack_bias(self, bias: np.ndarray) -> np.ndarray:
        """Pack bias [N] into [padded(N)] float32."""
        out = zeros((self.padded(len(bias)),), np.float32)
        out[: len(bias)] = bias
        return out


@dataclass(frozen=True)
class PackedElement(ElementType):
    """An element type whose weights are codes. Its `code` is the code of the rows' type.

    `kernels/by_isa.py` makes the kernels for each format of packed weights.
    """

    @property
    def format(self) -> str:
        return self.weight.name

    def padded(self, columns: int) -> int:
        return up(columns)

    def packed_bytes(self, depth: int, columns: int) -> int:
        return packed_panels.nbytes(self.weight, depth, columns)

    def pack(self, weight: Any, transposed: bool = False) -> np.ndarray:
        """Pack a weight that is `Quantised` with this type, or elements [K, N], which become the nearest codes.

        transposed: must be False.
        """
        return packed_panels.pack(weight if isinstance(weight, Quantised) else quantise(weight, self.weight))


ELEMENTS = {
    name: ElementType(ROW_TYPES[name], WEIGHT_TYPES[name], code)
    for name, code in (("float32", FLOAT32), ("bfloat16", BFLOAT16), ("float16", FLOAT16))
}
if set(ELEMENTS) != set(ON_CPUS):
    raise ImportError(f"row_types says that CPUs have {', '.join(ON_CPUS)}: extend ELEMENTS")

_SPLIT = ElementType(ROW_TYPES["float32"], weight_types.SPLIT, SPLIT)


def element_type(dtype: str, precision: str = "highest", weight: WeightType | None = None) -> ElementType:
    """The element type of a layer. float32 with precision "high" is split if AMX can multiply bfloat16.

    weight: the type of packed weights, or None if weights have the rows' type.
    """
    if weight is not None:
        return PackedElement(ROW_TYPES[dtype], weight, ELEMENTS[dtype].code)
    return _SPLIT if precision == "high" and ISA == "amx" else ELEMENTS[dtype]


def up(n: int) -> int:
    """n rounded up to a multiple of WIDTH."""
    return -(-n // WIDTH) * WIDTH


def pack_pairs(bits: np.ndarray) -> np.ndarray:
    """Arrange [K, N] uint16 in panels in which the two values of a pair of k are neighbours, for products of bfloat16.

    The result is [N / 32 panels, K / 32 blocks of k, 2 halves of the columns, 16 pairs of k, 16 columns, 2 k].
    """
    whole = _padded(bits)
    k, n = whole.shape
    packed = aligned((n // 32, k // 32, 2, 16, 16, 2), np.uint16)
    packed[:] = whole.reshape(k // 32, 16, 2, n // 32, 2, 16).transpose(3, 0, 4, 1, 5, 2)
    return packed


def pack_split(weight: np.ndarray) -> np.ndarray:
    """Arrange [K, N] float32 as `pack_pairs` does, with one more axis of 2 after the block of k.

    In each block of k, the high values come first, then the low values.
    """
    high = narrow(BFLOAT16, weight)
    low = narrow(BFLOAT16, weight - (high.astype(np.uint32) << np.uint32(16)).view(np.float32))
    parts = [pack_pairs(high), pack_pairs(low)]
    packed = aligned((*parts[0].shape[:2], 2, *parts[0].shape[2:]), np.uint16)
    np.stack(parts, axis=2, out=packed)
    return packed


def pack_columns(bits: np.ndarray) -> np.ndarray:
    """Arrange [K, N] uint16 as [N / 32 panels, K, 32 columns]."""
    whole = _padded(bits)
    k, n = whole.shape
    packed = aligned((n // 32, k, 32), np.uint16)
    packed[:] = whole.reshape(k, n // 32, 32).transpose(1, 0, 2)
    return packed


def _padded(bits: np.ndarray) -> np.ndarray:
    k, n = bits.shape
    if k == up(k) and n == up(n):
        return bits
    whole = np.zeros((up(k), up(n)), np.uint16)
    whole[:k, :n] = bits
    return whole
