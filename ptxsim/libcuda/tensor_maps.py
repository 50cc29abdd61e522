"""Tensor maps that a program encodes: the driver API's numbers become those of the machine's descriptors."""

from __future__ import annotations

import ctypes
from typing import Any

from ..boxes import ADDRESS as ADDRESS_AT
from ..boxes import BYTES
from ..tensor_maps import encoded
from .calls import ADDRESS, INT, POINTER, UINT, call, put
from .results import Refused
from .state import State

TYPES = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 8, 11, 12)  # by CUtensorMapDataType: the number of tensormap.replace
SWIZZLES = ((0, 0), (1, 0), (2, 0), (3, 0), (3, 1))  # by CUtensorMapSwizzle: (mode, atomicity)


def numbers(address: int, kind: Any, count: int) -> list[int]:
    """`count` numbers in the program's memory. Raises Refused for NULL."""
    if not address and count:
        raise Refused("ERROR_INVALID_VALUE")
    return list((kind * count).from_address(address)) if count else []


@call(POINTER, INT, UINT, ADDRESS, POINTER, POINTER, POINTER, POINTER, INT, INT, INT, INT)
def cuTensorMapEncodeTiled(
    now: State,
    map_: int,
    type_: int,
    rank: int,
    address: int,
    dims: int,
    strides: int,
    box: int,
    steps: int,
    interleave: int,
    swizzle: int,
    promotion: int,
    fill: int,
) -> None:
    """Write a descriptor. CUDA wants it aligned to 64 bytes, which is not checked: cuda.bindings gives less."""
    if not map_ or not 1 <= rank <= 5:
        raise Refused("ERROR_INVALID_VALUE")
    if not 0 <= type_ < len(TYPES) or not 0 <= swizzle < len(SWIZZLES) or interleave:
        raise Refused(
            "ERROR_NOT_SUPPORTED",
            "cuTensorMapEncodeTiled: the machine has no interleaved tensor maps, no packed types of 4 or 6 bits, and "
            f"swizzles 0 to {len(SWIZZLES) - 1}; got interleave {interleave}, type {type_}, swizzle {swizzle}",
        )
    data = encoded(
        TYPES[type_],
        address,
        numbers(dims, ctypes.c_uint64, rank),
        numbers(strides, ctypes.c_uint64, rank - 1),
        numbers(box, UINT, rank),
        numbers(steps, UINT, rank),
        *SWIZZLES[swizzle],
        int(fill != 0),
    )
    ctypes.memmove(map_, data, BYTES)


@call(POINTER, ADDRESS)
def cuTensorMapReplaceAddress(now: State, map_: int, address: int) -> None:
    if not map_ or address % 16:
        raise Refused("ERROR_INVALID_VALUE")
    put(map_ + ADDRESS_AT, ADDRESS, address)
