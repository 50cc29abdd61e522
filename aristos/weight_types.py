"""The weight types: how a weight matrix [K, N] lies in memory. A type computes the matrix's number of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .errors import InputError
from .row_types import ON_CPUS, ROW_TYPES, RowType

PACKED_ROWS = tuple(name for name, row in ON_CPUS.items() if row.packed)  # types of rows that packed weights may have
SCALES: dict[str, Any] = {name: row.array for name, row in ON_CPUS.items()} | {"e8m0": ml_dtypes.float8_e8m0fnu}


@dataclass(frozen=True)
class WeightType:
    """The type of a matrix of elements, or of codes with scales: weight = scale * (code - zero).

    Parameters
    ----------
    name : str
        For codes, their format, a name in `FORMATS`; for elements, the name of a row type.
    bits : int
        Bits of one element or code.
    scale : str or None, default None
        The type of scales, a name of `SCALES`. None: elements without scales.
    group : int, default 0
        How many entries of a column share a scale; 0: all entries of the column.
    columns : int, default 1
        How many neighbouring columns share a scale.
    zeros : bool, default False
        Whether each group of a column has a zero point, a number of `bits` bits. Otherwise the middle of the range is
        the zero point of integer codes.

    Raises
    ------
    InputError
        A packed type that kernels do not have.
    """

    name: str
    bits: int
    scale: str | None = None
    group: int = 0
    columns: int = 1
    zeros: bool = False

    def __post_init__(self) -> None:
        if self.scale is None and (self.group or self.zeros or self.columns != 1):
            raise ValueError(f"weight type {self.name}: groups, zero points and shared columns need a scale")
        if self.scale is not None:
            form = _checked(self.name, self.group, self.scale, self.zeros)
            columns = form.columns if self.group else 1
            if (self.bits, self.columns) != (form.bits, columns):
                raise InputError(
                    f"{self.name} must have {form.bits} bits, and a scale for {columns} columns, got {self.bits} bits"
                    f" and {self.columns} columns"
                )

    def __str__(self) -> str:
        if self.scale is None:
            return self.name
        shared = (
            f"{self.group}x{self.columns}" if self.columns > 1 else f"{self.group} rows" if self.group else "a column"
        )
        return f"{self.name} with a {self.scale} scale for {shared}" + " and zero points" * self.zeros

    @property
    def packed(self) -> bool:
        """Whether weights are codes with scales."""
        return self.scale is not None

    @property
    def form(self) -> Format:
        """The format of packed weights."""
        return FORMATS[self.name]

    def groups(self, depth: int) -> int:
        """The number of groups of a column, each with a scale.

        Parameters
        ----------
        depth : int
            The number of weights in the column.

        Returns
        -------
        int
            The number of groups.
        """
        return -(-depth // self.group) if self.group else 1

    def nbytes(self, depth: int, columns: int) -> int:
        """Bytes of codes, scales and zero points of a matrix.

        Parameters
        ----------
        depth : int
            K, its rows.
        columns : int
            N, its columns.

        Returns
        -------
        int
            Bytes as files store them.
        """
        bits = self.bits * depth * columns
        if self.scale is not None:
            groups = self.groups(depth)
            bits += groups * -(-columns // self.columns) * 8 * int(np.dtype(SCALES[self.scale]).itemsize)
            bits += groups * columns * self.bits * self.zeros
        return -(-bits // 8)


class Format(NamedTuple):
    """A format of codes. groups, scales: group sizes and types of scales that kernels have, the default first.

    columns: how many columns share a scale of a group. zeros: whether weights may have zero points. floats: the type of
    codes that are floats; None for integers.
    """

    bits: int
    groups: tuple[int, ...]
    scales: tuple[str, ...]
    columns: int = 1
    zeros: bool = False
    floats: Any = None

    @property
    def largest(self) -> float:
        """The largest number that a code stands for, without its zero point."""
        return (1 << self.bits) - 1 if self.floats is None else float(ml_dtypes.finfo(self.floats).max)

    def values(self) -> np.ndarray:
        """[2**bits] float32: the number that each code of floats stands for."""
        return np.arange(1 << self.bits).astype(np.uint8).view(self.floats).astype(np.float32)


_FLOATS = tuple(ON_CPUS)
FORMATS = {
    "fp8": Format(8, (128, 0), _FLOATS, columns=128, floats=ml_dtypes.float8_e4m3fn),
    "int8": Format(8, (0, 128, 64, 32), _FLOATS, zeros=True),
    "int4": Format(4, (128, 64, 32, 0), _FLOATS, zeros=True),
    "mxfp4": Format(4, (32,), ("e8m0",), floats=ml_dtypes.float4_e2m1fn),
}


def plain(row: RowType) -> WeightType:
    """The weight type whose weights are elements of a row type, without scales."""
    return WeightType(row.name, 8 * row.nbytes)


WEIGHT_TYPES = {name: plain(row) for name, row in ROW_TYPES.items()}
# weights of float32 as sums of two bfloat16, for `precision="high"`
SPLIT = WeightType("float32 in two", 32)


def packed(name: str, *, group: int | None = None, scale: str | None = None, zeros: bool = False) -> WeightType:
    """A type of packed weights for `MoEConfig(weight_dtype=...)`.

    Parameters
    ----------
    name : str
        "fp8" (e4m3), "int8", "int4" or "mxfp4".
    group : int or None, default None
        How many entries of a column share a scale; 0: all entries of the column. A group of fp8 also has 128 columns,
        as in DeepSeek-V3. None: the first group that `FORMATS` has for the format.
    scale : str or None, default None
        The type of scales. None: the first type that `FORMATS` has for the format.
    zeros : bool, default False
        Whether groups of integers have zero points.

    Returns
    -------
    WeightType
        The type.

    Raises
    ------
    InputError
        A type that kernels do not have.

    Source
    ------
    fp8: arXiv:2209.05433; mxfp4: OCP Microscaling Formats 1.0.

    Examples
    --------
    >>> import aristos
    >>> print(aristos.packed("int4", group=64, zeros=True))
    int4 with a float32 scale for 64 rows and zero points
    """
    form = _format(name)
    group = form.groups[0] if group is None else group
    scale = form.scales[0] if scale is None else scale
    return WeightType(name, form.bits, scale, group, form.columns if group else 1, zeros)


def _format(name: str) -> Format:
    if not isinstance(name, str) or name not in FORMATS:
        raise InputError(f"weight_dtype must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def _checked(name: str, group: int, scale: str, zeros: bool) -> Format:
    """The format of a packed type. Raises InputError for one that kernels do not have."""
    form = _format(name)
    if type(group) is not int or group not in form.groups:
        raise InputError(f"group of {name} must be one of {', '.join(map(str, form.groups))}, got {group!r}")
    if scale not in form.scales:
        raise InputError(f"scale of {name} must be one of {', '.join(form.scales)}, got {scale!r}")
    if not isinstance(zeros, bool) or (zeros and not form.zeros):
        raise InputError(f"zeros of {name} must be {'True or False' if form.zeros else 'False'}, got {zeros!r}")
    return form
