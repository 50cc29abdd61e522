"""Makes new files beside others, whole or not at all. Random names prevent that another user puts a link there."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(target: Path, prefix: str = "") -> Iterator[Path]:
    """A block with a new, empty file in the target's folder, which the block may rename over the target.

    If the block does not, the file is removed at the block's end. prefix: the beginning of the new file's name; by
    default a dot and the target's name. Raises OSError.
    """
    path = target.parent / f"{prefix or f'.{target.name}.'}{secrets.token_hex(8)}.aside"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Replace a file's content, and keep its mode. If that fails, the old file stays. Raises OSError with its name."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: Path, content: bytes) -> None:
    """Replace a file's content by these bytes, as `write_text` does."""
    try:
        with beside(target) as path:
            path.write_bytes(content)
            if target.exists():
                shutil.copymode(target, path)
            path.replace(target)
    except OSError as why:
        raise OSError(why.errno, why.strerror, os.fspath(target)) from None
