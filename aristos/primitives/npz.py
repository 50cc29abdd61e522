"""Reads the arrays of an .npz file as numpy.savez writes it. The file need not be trustworthy.

NumPy allocates what a header declares before it reads the data, and evaluates the header as a Python literal. Here the
header of each member is first compared with the member's size, and the sum of sizes with the file's size. Pickles are
refused.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from typing import Any, BinaryIO

from numpy.lib import format as npy
from numpy.typing import NDArray

from kernel_cache import regular

from ..errors import InputError

SHARE, SPARE = 16, 64 << 20  # arrays may have SHARE times the bytes of the file, which may be compressed, plus SPARE
MOST = 4 << 30  # most bytes of a file that `load` reads, and of its arrays
KINDS = "biufSU"  # kinds of arrays that are read; others, such as times, are left out
_HEADERS: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# Raised by numpy, zipfile and zlib for files that are truncated, damaged, encrypted or of another kind.
BROKEN = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def load(path: str, what: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name, at most MOST bytes. what: names the file in errors.

    Raises InputError if the file cannot be read.
    """
    try:
        with regular.opened(path, MOST) as raw:
            return read(raw, MOST)
    except BROKEN as why:
        raise InputError(f"cannot read {what} {path}: {str(why)[:400] or type(why).__name__}") from why


def read(raw: BinaryIO, most: int | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an open file by name. most: a limit of the bytes of all arrays, in addition to the limit by SHARE.

    Raises one of BROKEN.
    """
    raw.seek(0)
    if raw.read(4) not in (b"PK\3\4", b"PK\5\6"):  # zipfile also accepts archives with something before them
        raise ValueError("not an .npz file, as numpy.savez writes it")
    left = SHARE * raw.seek(0, 2) + SPARE
    if most is not None:
        left = min(left, most)
    with zipfile.ZipFile(raw) as archive:
        found = {}
        for member in archive.infolist():
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename} is compressed in a way that numpy does not write")
            left -= member.file_size
            if left < 0:
                limit = "" if most is None else f", or more than {most} bytes"
                raise ValueError(f"the arrays have far more bytes than the file{limit}")
            array = _member(archive, member)
            if array is not None:
                found[member.filename.removesuffix(".npy")] = array
        return found


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any] | None:
    """The array of a member; None for one that holds no array of numbers or text."""
    with archive.open(member) as file:
        if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            return None
        major, minor = file.read(2)
        if (major, minor) not in _HEADERS:
            raise ValueError(f"{member.filename} has the format {major}.{minor}, expected 1.0 or 2.0")
        shape, _, dtype = _HEADERS[major, minor](file)
        if dtype.kind not in KINDS:
            return None
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} declares the shape {shape}, more than its {member.file_size} bytes")
    with archive.open(member) as file:
        return npy.read_array(file, allow_pickle=False)
