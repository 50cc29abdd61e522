"""Matrices of codes and scales: what packed weights mean, and how plain weights are converted to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from .errors import InputError
from .weight_types import FORMATS, SCALES, WeightType

FP4 = FORMATS["mxfp4"].values()  # the value of each code
# codes that stand for NaN, by format
NAN = {name: np.flatnonzero(np.isnan(f.values())).tolist() if f.floats else [] for name, f in FORMATS.items()}


@dataclass(frozen=True, eq=False)
class Quantised:
    """One matrix [K, N], K inputs by N outputs: weight = scale * (code - zero).

    Parameters
    ----------
    type : WeightType
        See `aristos.packed`.
    codes : array [K, N], uint8
        For int8 and int4 unsigned numbers, for fp8 the bits (e4m3), for mxfp4 codes of e2m1.
    scales : array [groups, N], or [groups, ceil(N / 128)] for fp8 in blocks
        A scale for each group of rows in each column or block of columns, in the type that `type.scale` names.
    zeros : array [groups, N], uint8, or None, default None
        Zero points, if the type has them. None: the zero point is 128 for int8, 8 for int4.

    Raises
    ------
    InputError
        A shape or type is wrong, codes are out of range, or scales are zero, infinite or NaN.
    """

    type: WeightType
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != np.uint8 or 0 in self.codes.shape:
            raise InputError(f"codes must be a matrix [K, N] of uint8, got {self.codes.dtype} {list(self.codes.shape)}")
        (depth, columns), kind = self.codes.shape, self.type
        groups = kind.groups(depth)
        if kind.columns == 1 and kind.group and depth % kind.group:
            raise InputError(
                f"codes of {kind.name} must have a multiple of {kind.group} rows, the size of a group, got {depth}"
            )
        self._check("scales", self.scales, SCALES[str(kind.scale)], (groups, -(-columns // kind.columns)))
        scales = self.scales.astype(np.float32)
        if not np.isfinite(scales).all() or not scales.all():
            at = np.argwhere(~np.isfinite(scales) | (scales == 0))[0].tolist()
            raise InputError(f"scales must be finite and not zero, got {scales[tuple(at)]} at {at}")
        beyond = np.abs(scales) > np.finfo(np.float32).max / kind.form.largest
        if beyond.any():
            raise InputError(f"scales times codes must fit float32, got the scale {scales[beyond][0]} for {kind}")
        if (self.zeros is not None) != kind.zeros:
            raise InputError(f"zeros must {'be given' if kind.zeros else 'be None'} for {kind}")
        if self.zeros is not None:
            self._check("zeros", self.zeros, np.uint8, (groups, columns))
        most = (1 << kind.bits) - 1
        for name, array in (("codes", self.codes), ("zeros", self.zeros)):
            if array is not None and kind.bits < 8 and array.max() > most:
                raise InputError(f"{name} of {kind.name} must be at most {most}, got {array.max()}")
        for code in NAN[kind.name]:
            if (bad := self.codes == code).any():
                raise InputError(f"codes of {kind.name} must be numbers, got NaN at {_first(bad)}")

    @staticmethod
    def _check(name: str, array: np.ndarray, dtype: Any, shape: tuple[int, int]) -> None:
        if array.dtype != dtype or array.shape != shape:
            wanted = f"{np.dtype(dtype).name} with shape {list(shape)}"
            raise InputError(f"{name} must be {wanted}, got {array.dtype} {list(array.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points as files store them."""
        return self.type.nbytes(*self.shape)

    def values(self) -> np.ndarray:
        """[K, N] float32: codes minus zero points, without scales. bfloat16 can hold these values exactly too."""
        return values_of(self.type, self.codes, self._each(self.zeros))

    def dequantised(self, dtype: Any = np.float64) -> np.ndarray:
        """The weights.

        Parameters
        ----------
        dtype : dtype, default float64
            The type of the result.

        Returns
        -------
        array [K, N]
            scale * (code - zero).
        """
        scales = np.repeat(self.scales.astype(dtype), self.type.columns, axis=1)[:, : self.codes.shape[1]]
        return self.values() * self._each(scales)

    def squares(self, weight: np.ndarray) -> np.ndarray:
        """How far these weights are from a matrix.

        Parameters
        ----------
        weight : array [K, N]
            The matrix.

        Returns
        -------
        array [2], float64
            The sum of squares of the differences, and the sum of squares of the matrix.
        """
        whole = np.asarray(weight, np.float32)
        apart = (self.dequantised(np.float32) - whole).ravel()
        flat = np.ascontiguousarray(whole).ravel()
        return np.array([np.dot(apart, apart), np.dot(flat, flat)], np.float64)

    def _each(self, groups: Any) -> Any:
        """An array [groups, N] as [K, N]: each of the K rows gets the entries of its group."""
        if groups is None:
            return None
        depth = self.codes.shape[0]
        return np.repeat(groups, self.type.group or depth, axis=0)[:depth]


def values_of(kind: WeightType, codes: np.ndarray, zeros: np.ndarray | None = None) -> np.ndarray:
    """Codes minus zero points as float32, without scales. codes and zeros have the same shape."""
    if kind.form.floats is not None:
        return codes.view(kind.form.floats).astype(np.float32)
    return codes.astype(np.float32) - np.float32(1 << (kind.bits - 1) if zeros is None else zeros)


def quantise(weight: np.ndarray, kind: WeightType) -> Quantised:
    """Convert a plain matrix to codes, with scales from the largest value of each group.

    Codes are those nearest to weight / scale, after the scale was rounded up to its type.

    Parameters
    ----------
    weight : array [K, N], float32, bfloat16 or float16
        K inputs by N outputs.
    kind : WeightType
        The type of the result, as `aristos.packed` returns it.

    Returns
    -------
    Quantised
        The codes, scales and zero points.

    Raises
    ------
    InputError
        `weight` is no matrix, groups do not divide K, or values are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> import aristos
    >>> weight = np.random.default_rng(0).standard_normal((64, 16), dtype=np.float32)
    >>> found = aristos.quantise(weight, aristos.packed("int8", group=32))
    >>> found.codes.shape, found.scales.shape, found.zeros
    ((64, 16), (2, 16), None)
    >>> bool(np.abs(found.dequantised() - weight).max() < 0.05)
    True
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise InputError(f"weight must be a matrix [K, N], got shape {list(weight.shape)}")
    whole = np.asarray(weight, np.float32)
    if not np.isfinite(whole).all():
        raise InputError(f"weights must be finite, got {whole[~np.isfinite(whole)][0]}")
    depth, columns = whole.shape
    rows = kind.group or depth
    if kind.columns == 1 and depth % rows:
        raise InputError(
            f"a weight for {kind.name} must have a multiple of {rows} rows, the size of a group, got {depth}"
        )
    groups, blocks = kind.groups(depth), -(-columns // kind.columns)
    padded = np.zeros((groups * rows, blocks * kind.columns), np.float32)
    padded[:depth, :columns] = whole
    parts = padded.reshape(groups, rows, blocks, kind.columns)
    low, high = np.minimum(parts.min(axis=(1, 3)), 0), np.maximum(parts.max(axis=(1, 3)), 0)
    scales = _scales(kind, low, high)
    ratio = (parts / scales.astype(np.float32)[:, None, :, None]).reshape(padded.shape)[:depth, :columns]
    zeros = None
    form = kind.form
    if form.floats is not None:
        codes = np.clip(ratio, -form.largest, form.largest).astype(form.floats).view(np.uint8)
    else:
        most = (1 << kind.bits) - 1
        if kind.zeros:
            zeros = np.clip(np.rint(-low / scales.astype(np.float32)), 0, most).astype(np.uint8)
        middle: Any = 1 << (kind.bits - 1)
        start = middle if zeros is None else np.repeat(zeros.astype(np.float32), rows, axis=0)[:depth]
        codes = np.clip(np.rint(ratio) + start, 0, most).astype(np.uint8)
    return Quantised(kind, codes, scales, zeros)


def _scales(kind: WeightType, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Scales, in their type, of groups whose values lie in low..high. A group of zeros has the scale one."""
    largest = np.maximum(-low, high)
    if kind.scale == "e8m0":
        exponent = np.frexp(largest)[1] - np.frexp(kind.form.largest)[1]  # section 6.3 of OCP Microscaling Formats 1.0
        scales = np.ldexp(np.float32(1), np.clip(exponent, -127, 127))
    elif kind.form.floats is not None:
        scales = largest / np.float32(kind.form.largest)
    elif kind.zeros:
        scales = (high - low) / np.float32((1 << kind.bits) - 1)
    else:
        scales = largest / np.float32((1 << (kind.bits - 1)) - 1)
    stored = SCALES[str(kind.scale)]
    wanted = np.where(
        largest == 0, np.float32(1), np.maximum(scales, np.float32(ml_dtypes.finfo(stored).smallest_normal))
    )
    found = wanted.astype(stored)
    below = found.astype(np.float32) < wanted  # with such a scale the largest value would exceed the last code
    return np.where(below, np.nextafter(found, stored(np.inf)), found) if below.any() else found


def _first(found: np.ndarray) -> list[int]:
    """The index of the first true element of an array."""
    return [int(i) for i in np.argwhere(found)[0]]
