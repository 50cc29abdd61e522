"""Reading of saved outputs of commands, in any usual encoding."""

from __future__ import annotations

import sys
from pathlib import Path

from kernel_cache import regular

from ..errors import InputError


def read(name: str | Path) -> str:
    """A file's text; the name - means stdin. Raises OSError, and InputError if stdin is closed or `name` is a pipe."""
    if name != "-":
        if Path(name).is_fifo():  # such as <(command) of a shell
            raise InputError(f"{name} is a pipe: give - in its place, and send its text to stdin")
        return decoded(regular.read(name))
    if sys.stdin is None:
        raise InputError("- reads stdin, which is closed: give a file's name")
    return decoded(sys.stdin.buffer.read())


def decoded(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 as PowerShell's > writes it. Other bytes become the replacement character."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="replace")
