"""Texts that people saved of what a command printed, whatever wrote the file."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import InputError


def read(name: str | Path) -> str:
    """A file's text, whatever bytes a copy left in it; - is stdin. Raises OSError, and InputError without a stdin."""
    if name != "-":
        return decoded(Path(name).read_bytes())
    if sys.stdin is None:
        raise InputError("- reads stdin, which is closed: give the name of a file")
    return decoded(sys.stdin.buffer.read())


def decoded(data: bytes) -> str:
    """UTF-8, or UTF-16 as PowerShell's > writes it; bytes that are neither become the replacement character."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="replace")
