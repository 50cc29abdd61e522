"""Reads files that may come from anywhere. Only regular files of bounded size are read.

A read from a pipe waits for the pipe's writer, perhaps for ever. A device such as /dev/zero has no end. A link counts
as the file that it points to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

JSON = 100_000_000  # the most bytes that a file of JSON or other text may have
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def opened(path: str | Path, most: int | None = None) -> BinaryIO:
    """Open a file for reading. Raises OSError, also if it is no regular file, or has more than `most` bytes."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        found = os.fstat(number)
        _refuse(path, found)
        if most is not None and found.st_size > most:
            raise _too_large(path, f"it has {found.st_size}", most)
        return open(number, "rb")
    except BaseException:
        os.close(number)
        raise


def refuse_others(path: str | Path) -> None:
    """Raise OSError if `path` exists and is no regular file. A write to a pipe might wait, and a pipe cannot seek."""
    with contextlib.suppress(FileNotFoundError):
        _refuse(path, os.stat(path))


def _refuse(path: str | Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"must be a regular file, but it is {kind}", os.fspath(path))


def read(path: str | Path, most: int = JSON) -> bytes:
    """The content of a file. Raises OSError, also if the file has more than `most` bytes or is no regular file."""
    with opened(path, most) as file:
        found = file.read(most + 1)  # the size is not trusted: a file may grow, and files of /proc have the size 0
    if len(found) > most:
        raise _too_large(path, "it has more", most)
    return found


def text(path: str | Path, most: int = JSON) -> str:
    """The content of a file as UTF-8 text. Raises OSError as `read` does, and UnicodeDecodeError if it is not UTF-8."""
    return read(path, most).decode("utf-8")


def _too_large(path: str | Path, what: str, most: int) -> OSError:
    return OSError(errno.EFBIG, f"must have at most {most} bytes, but {what}", os.fspath(path))
