"""Keeps the import statements of source files on disk, so that later processes need not parse the files.

A program that finds all its kernels in the cache would otherwise spend a third of a second on parsing. Statements are
kept by the hash of a file's content, so edited files are parsed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from functools import cache
from pathlib import Path

from . import private, sources
from .errors import EnvironmentProblem

MOST = 5000  # files; when more have been kept, those that this process has not read are dropped


@cache
def load(folder: Path) -> frozenset[str]:
    """Load the statements kept in a folder of the cache, once. Returns the hashes of their files."""
    found = None
    with contextlib.suppress(OSError, EnvironmentProblem):
        found = private.read(_path(folder))
    kept = {key: [sources.Statement(*each) for each in listed] for key, listed in json.loads(found or b"{}").items()}
    sources.statements.update(kept)
    return frozenset(kept)


def save(folder: Path) -> None:
    """Keep the statements that this process knows in a folder of the cache, if the folder can be written."""
    known = sources.statements
    if len(known) > MOST:
        known = {key: known[key] for key in known.keys() - load(folder)}
    with contextlib.suppress(OSError, EnvironmentProblem):
        private.write(_path(folder), json.dumps(known).encode())


def _path(folder: Path) -> Path:
    """The file of the statements. Its name has a hash of `sources.py`, which chooses the statements."""
    return folder / f"imports-{hashlib.sha256(Path(sources.__file__).read_bytes()).hexdigest()[:16]}.json"
