"""The table of the driver API's functions that the stand-in has, and access to the program's memory.

A function is declared as `@call(type, ...)` under its exported name. It takes the present `State` and the arguments, as
Python numbers: pointers as addresses, 0 for NULL. It returns nothing for success, or raises `Refused`. Names, arguments
and meaning are those of CUDA's reference of the driver API.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from .results import Refused

INT, UINT, LONG, SIZE = ctypes.c_int32, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t
POINTER = HANDLE = ADDRESS = LONG  # a pointer of the program, a handle, an address of the device
FUNCTIONS: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {}
ARGUMENTS = 12  # words that the library passes on


def call(*types: Any, also: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare a function of the driver API, with the types of its arguments. also: further exported names."""

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        for name in (function.__name__, *also):
            FUNCTIONS[name] = function, types
        return function

    return declare


def put(address: int, kind: Any, value: Any) -> None:
    """Write a result to the program's memory. Raises Refused for NULL."""
    if not address:
        raise Refused("ERROR_INVALID_VALUE")
    kind.from_address(address).value = value


def text_at(address: int) -> str:
    """The text, ended by a zero, at an address of the program. Raises Refused for NULL."""
    if not address:
        raise Refused("ERROR_INVALID_VALUE")
    return ctypes.string_at(address).decode(errors="backslashreplace")


def put_text(address: int, size: int, text: str) -> None:
    """Write text, ended by a zero, into `size` bytes of the program's memory."""
    if not address or size < 1:
        raise Refused("ERROR_INVALID_VALUE")
    data = text.encode()[: size - 1] + b"\0"
    ctypes.memmove(address, data, len(data))
