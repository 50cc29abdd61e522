"""Writes files whole or not at all: into a new file beside the target, which then replaces the target.

The new file has a random name, so that no other user can put a link at its path first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(target: Path, prefix: str = "") -> Iterator[Path]:
    """Make a new, empty file in the target's folder, for a `with` block that may rename the file over the target.

    At the block's end the file is removed if it was not renamed. prefix: the beginning of the new file's name; by
    default a dot and the target's name. Raises OSError.
    """
    path = target.parent / f"{prefix or f'.{target.name}.'}{secrets.token_hex(8)}.aside"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Replace a file's content, and keep its mode. If that fails, the old file stays, and OSError names it."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: Path, content: bytes) -> None:
    """Replace a file's content by bytes, and keep its mode. If that fails, the old file stays, and OSError names it."""
    try:
        with beside(target) as path:
            path.write_bytes(content)
            if target.exists():
                shutil.copymode(target, path)
            path.replace(target)
    except OSError as why:
        raise OSError(why.errno, why.strerror, os.fspath(target)) from None
