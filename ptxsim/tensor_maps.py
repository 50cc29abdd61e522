"""Tensor maps as cuTensorMapEncodeTiled makes them: checks of what a user asks for, and the bytes of the descriptor."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from .arrays import DeviceArray
from .boxes import BYTES, FLOATS, SIZES
from .errors import InputError

# element types as tensormap.replace numbers them
TYPES = {
    "uint8": 0,
    "uint16": 1,
    "uint32": 2,
    "int32": 3,
    "uint64": 4,
    "int64": 5,
    "float16": 6,
    "float32": 7,
    "float32_ftz": 8,
    "float64": 9,
    "bfloat16": 10,
    "tfloat32": 11,
    "tfloat32_ftz": 12,
}
LIKE = {"int8": "uint8", "int16": "uint16", "bool": "uint8"}
SWIZZLES = {0: (0, 0), 32: (1, 0), 64: (2, 0), 128: (3, 0), "128_atom_32": (3, 1)}  # (mode, atomicity)


def tensor_map(
    array: DeviceArray,
    box: Sequence[int],
    *,
    steps: Sequence[int] | None = None,
    swizzle: Any = 0,
    fill: str = "zero",
    dtype: str | None = None,
) -> bytes:
    """The descriptor of an array for `cp.async.bulk.tensor`, as cuTensorMapEncodeTiled makes it.

    Pass it to a kernel by value, as the argument of a `const __grid_constant__ CUtensorMap` parameter, or copy it to an
    array of the device.

    Parameters
    ----------
    array : DeviceArray
        The array, with 1 to 5 dimensions. Its last dimension must be contiguous, other strides multiples of 16 bytes.
    box : sequence of int
        Elements of the box along each dimension, in the order of `array.shape`.
    steps : sequence of int, optional
        The stride between elements of the box along each dimension; by default 1, along the last dimension always 1.
    swizzle : int or str
        Bytes of the swizzle's pattern: 0 (none), 32, 64 or 128, or ``"128_atom_32"``, which moves parts of 32 bytes.
    fill : str
        What elements outside of the array become: ``"zero"`` or ``"nan"``.
    dtype : str, optional
        A name of ``TYPES``, if it is not the array's own type, such as ``"bfloat16"`` for an array of uint16.

    Returns
    -------
    bytes
        128 bytes.

    Raises
    ------
    InputError
        The driver would refuse these arguments, or the machine lacks the form.

    Examples
    --------
    >>> import numpy as np
    >>> import ptxsim
    >>> array = ptxsim.Machine().device(0).array(np.zeros((64, 64), np.float16))
    >>> len(ptxsim.tensor_map(array, (8, 64), swizzle=128))
    128
    """
    name = dtype or LIKE.get(array.dtype.name, array.dtype.name)
    if name not in TYPES or SIZES[TYPES[name]] != array.dtype.itemsize:
        raise InputError(f"dtype must be one of {', '.join(TYPES)} with {array.dtype.itemsize} bytes, got {name!r}")
    if array.ndim == 0 or array.strides[-1] != array.dtype.itemsize:
        raise InputError(f"the array's last dimension must be contiguous, got strides {array.strides}")
    if swizzle not in SWIZZLES:
        raise InputError(f"swizzle must be one of {', '.join(map(str, SWIZZLES))}, got {swizzle!r}")
    if fill not in ("zero", "nan"):
        raise InputError(f"fill must be 'zero' or 'nan', got {fill!r}")
    mode, atomicity = SWIZZLES[swizzle]
    return encoded(
        TYPES[name],
        array.ptr,
        array.shape[::-1],
        array.strides[-2::-1],
        tuple(box)[::-1],
        tuple(steps or (1,) * array.ndim)[::-1],
        mode,
        atomicity,
        int(fill == "nan"),
    )


def encoded(
    type_: int,
    address: int,
    dims: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    steps: Sequence[int],
    swizzle: int,
    atomicity: int,
    fill: int,
) -> bytes:
    """The descriptor's bytes. dims, box, steps: the contiguous dimension first. strides: without that dimension's."""
    rank, size = len(dims), SIZES[type_]
    span = 16 << swizzle if swizzle else 0

    def needs(fine: bool, what: str) -> None:
        if not fine:
            raise InputError(f"tensor map: {what}")

    needs(1 <= rank <= 5, f"1 to 5 dimensions, got {rank}")
    needs(len(box) == len(steps) == rank, f"box and steps need {rank} numbers, got {len(box)} and {len(steps)}")
    needs(address % 16 == 0, f"the address must be a multiple of 16, got {address:#x}")
    needs(all(1 <= n < 1 << 32 for n in dims), f"dimensions must be in 1..4294967295, got {tuple(dims)}")
    needs(
        all(0 < n < 1 << 40 and n % 16 == 0 for n in strides),
        f"strides must be multiples of 16 bytes below 2**40, got {tuple(strides)}",
    )
    needs(all(1 <= n <= 256 for n in box), f"a box has 1 to 256 elements along a dimension, got {tuple(box)}")
    needs(all(1 <= n <= 8 for n in steps), f"steps must be in 1..8, got {tuple(steps)}")
    inner = box[0] * size
    needs(inner % 16 == 0, f"the box's contiguous dimension must be a multiple of 16 bytes, got {inner}")
    needs(
        not span or inner <= span,
        f"with a swizzle of {span} bytes the box's contiguous dimension has at most these bytes, got {inner}",
    )
    needs(not fill or bool(FLOATS[type_]), "NaNs fill only boxes of floats")
    pad = (0,) * (5 - rank)
    data = struct.pack("<Q6I", address, type_, rank - 1, 0, swizzle, fill, atomicity)
    data += struct.pack("<15I", *dims, *pad, *box, *pad, *steps, *pad) + bytes(4)
    return data + struct.pack("<4Q", *strides, *(0,) * (5 - rank)) + bytes(BYTES - len(data) - 32)
