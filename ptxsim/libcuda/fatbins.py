"""The PTX in fat binaries, which nvcc puts into programs, mostly compressed by LZ4 or Zstandard."""

from __future__ import annotations

import ctypes
import ctypes.util
import struct
from collections.abc import Callable
from typing import Any

from .results import Refused

FATBIN, WRAPPER = 0xBA55ED50, 0x466243B1  # the first words of a fat binary and of a program's reference to one
LINKED = 2  # the version of a reference to what nvcc linked of several files
PTX, BY_LZ4, BY_ZSTANDARD = 1, 0x2000, 0x8000  # a kind of entry, and two of the flags of entries
# an entry: kind, version, bytes of this header, bytes of the data, those that are used if it is compressed, place of
# options, version of PTX in two parts, architecture, place and length of the name, flags, 0, bytes when uncompressed
ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")
WANTED = (
    "the machine runs PTX, and the program loads {what}: let it compile to PTX (nvcc -ptx, nvcc with "
    "-gencode arch=compute_90,code=compute_90, NVRTC with --gpu-architecture=compute_90 and nvrtcGetPTX)"
)


def refused(what: str) -> Refused:
    """The exception for a module without PTX that can be read. what: the module."""
    return Refused("ERROR_NO_BINARY_FOR_GPU", WANTED.format(what=what))


def ptx_of(image: int, arch: int, linked: bool = False) -> str:
    """The PTX of a fat binary at an address: that of the newest architecture up to `arch`, else of the oldest one.

    linked: whether it is what nvcc linked of several files.
    """
    header, size = struct.unpack("<HQ", ctypes.string_at(image + 6, 10))
    at, end = image + header, image + header + size
    found: dict[int, tuple[int, tuple[Any, ...]]] = {}
    while at + ENTRY.size <= end:
        entry = ENTRY.unpack(ctypes.string_at(at, ENTRY.size))
        if entry[0] == PTX:
            found.setdefault(entry[8], (at, entry))
        at += max(entry[2] + entry[3], ENTRY.size)
    if not found:
        raise refused("code of separate compilation (-rdc=true)" if linked else "a fat binary without PTX")
    at, entry = found[max((one for one in found if one <= arch), default=min(found))]
    first, length, used, flags, size = entry[2], entry[3], entry[4], entry[11], entry[13]
    data = ctypes.string_at(at + first, length)
    if flags & (BY_LZ4 | BY_ZSTANDARD):
        data = (lz4 if flags & BY_LZ4 else zstandard)(data[:used], size)
    return data.rstrip(b"\0").decode(errors="backslashreplace")


def lz4(data: bytes, size: int) -> bytes:
    """`size` bytes that a block of LZ4 holds: runs of bytes, each followed by a copy of earlier ones."""
    made, at = bytearray(), 0

    def length(short: int) -> int:
        nonlocal at
        total = short
        while short == 15:
            total += data[at]
            at += 1
            if data[at - 1] != 255:
                break
        return total

    try:
        while at < len(data):
            token = data[at]
            at += 1
            literals = length(token >> 4)
            made += data[at : at + literals]
            at += literals
            if at >= len(data) or len(made) >= size:
                break
            distance = data[at] | data[at + 1] << 8
            at += 2
            count = length(token & 15) + 4
            piece = bytes(made[-distance:]) if distance else b""
            made += (piece * (count // len(piece) + 1))[:count]
    except (IndexError, ZeroDivisionError):
        made = bytearray()
    if len(made) < size:
        raise refused("a fat binary whose compressed PTX is broken")
    return bytes(made[:size])


def zstandard(data: bytes, size: int) -> bytes:
    """`size` bytes that a frame of Zstandard holds, by the library libzstd. Raises Refused without it."""
    name = ctypes.util.find_library("zstd")
    if name is None:
        raise refused("PTX that is compressed by Zstandard, which needs libzstd (or nvcc --compress-mode=speed)")
    decompress: Callable[..., int] = ctypes.CDLL(name).ZSTD_decompress
    decompress.restype = ctypes.c_size_t  # type: ignore[attr-defined]
    made = ctypes.create_string_buffer(size)
    if decompress(made, ctypes.c_size_t(size), data, ctypes.c_size_t(len(data))) != size:
        raise refused("a fat binary whose compressed PTX is broken")
    return made.raw
