"""Finds NaN, infinity and values that a narrower type cannot hold, in arrays of float32, bfloat16 and float16.

The magnitudes of these numbers are ordered as their bits are, and NaN and infinity lie above all others. So two passes
over integers are enough, without a copy: one finds the largest positive number, the other the most negative one.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from ..row_types import ROW_TYPES

_INTEGERS = {2: (np.int16, np.uint16), 4: (np.int32, np.uint32)}


def first(array: np.ndarray, dtype: str = "float32") -> tuple[int, ...] | None:
    """The index of the first entry that is NaN or infinite, or becomes infinite in `dtype`; None if there is none.

    array: of float32, bfloat16 or float16, in any strides.
    """
    signed, unsigned = (array.view(integer) for integer in _INTEGERS[array.itemsize])
    sign, most = 1 << 8 * array.itemsize - 1, _most(array.dtype, dtype)
    if not array.size or (int(signed.max()) <= most and int(unsigned.max()) <= sign + most):
        return None
    magnitude = unsigned & unsigned.dtype.type(sign - 1)
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(magnitude > most)), array.shape))


def problem(name: str, array: np.ndarray, dtype: str = "float32") -> str | None:
    """A sentence about the entry that `first` finds; None if there is none. name: the array's name."""
    index = first(array, dtype)
    if index is None:
        return None
    found, at = float(array[index]), f"{name}[{', '.join(map(str, index))}]"
    if np.isfinite(found):
        most = f"{ROW_TYPES[dtype].largest:.6g} in magnitude, the most that {dtype} holds"
        return f"{at} must be at most {most}, got {found!r}"
    return f"{at} must be finite, got {found!r}"


def _most(given: np.dtype, dtype: str) -> int:
    """The bits of the largest number of type `given` that stays finite when it is rounded to `dtype`."""
    limit = min(float(ml_dtypes.finfo(given).max), ROW_TYPES[dtype].overflow)
    bits = int(np.array(limit, given).view(_INTEGERS[given.itemsize][1]))
    tie = float(np.array(limit, given)) >= ROW_TYPES[dtype].overflow  # half-way rounds to infinity
    return bits - tie
