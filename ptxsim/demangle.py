"""Names of kernels as in C++, for messages."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from typing import Any

MANGLED = re.compile(r"\b_Z[\w$]+")


@cache
def library() -> Any:
    """The function of the C++ library that demangles a name and the one that frees its answer, or None without it."""
    try:
        found = ctypes.CDLL("libstdc++.so.6")
        demangle, free = found.__cxa_demangle, ctypes.CDLL(None).free
    except (OSError, AttributeError):
        return None
    demangle.restype = ctypes.c_void_p
    demangle.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    free.argtypes = [ctypes.c_void_p]
    return demangle, free


@cache
def demangled(name: str) -> str:
    """A name as in C++, without a function's parameters and result. A name that is not mangled is unchanged."""
    calls = library()
    made = calls[0](name.encode(), None, None, None) if calls else None
    if not made:
        return name
    text = ctypes.string_at(made).decode(errors="replace").removeprefix("void ")
    calls[1](made)
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and not text.startswith("(anonymous", at):
            return text[:at]
    return text


def readable(text: str) -> str:
    """A text with its mangled names demangled."""
    return MANGLED.sub(lambda found: demangled(found.group()), text)
