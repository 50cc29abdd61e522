"""vprintf: the text that C prints for a format and its arguments."""

from __future__ import annotations

import re
import struct
from typing import Any

from . import isa
from .address_space import Memory

SPECIFIER = re.compile(r"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+))?(hh|h|ll|l|z|j|t)?([diouxXcspfFeEgGaA%])")


def text_at(memory: Memory, address: int) -> str:
    """The zero-terminated string at an address."""
    place = address - isa.GLOBAL_START
    data = memory.data
    if not 0 <= place < len(data):
        return f"<string at {address:#x}>"
    end = place
    while end < len(data) and data[end]:
        end += 1
    return bytes(data[place:end]).decode(errors="replace")


def formatted(memory: Memory, row: Any) -> str:
    """The text of one recorded printf. row: format, thread, instruction, then 64 words of arguments."""
    data = row[3:67].tobytes()
    at = 0

    def take(size: int, code: str) -> Any:
        nonlocal at
        at = -(-at // size) * size
        if at + size > len(data):
            return 0
        value = struct.unpack_from("<" + code, data, at)[0]
        at += size
        return value

    def one(match: re.Match[str]) -> str:
        flags, width, precision, length, kind = match.groups()
        if kind == "%":
            return "%"
        width = str(take(4, "i")) if width == "*" else width or ""
        precision = str(take(4, "i")) if precision == "*" else precision
        form = f"%{flags}{width}" + ("" if precision is None else f".{precision}")
        if kind in "fFeEgG":
            return (form + kind) % take(8, "d")
        if kind == "s":
            return (form + "s") % text_at(memory, take(8, "Q"))
        if kind == "p":
            return hex(take(8, "Q"))
        if kind == "c":
            return chr(take(4, "i") & 0xFF)
        wide = length in ("l", "ll", "z", "j", "t")
        signed = kind in "di"
        value = take(8, "q" if signed else "Q") if wide else take(4, "i" if signed else "I")
        return (form + ("d" if kind in "diu" else kind)) % value

    return SPECIFIER.sub(one, text_at(memory, int(row[0])))
