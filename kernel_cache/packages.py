"""Registers packages whose functions are compiled and kept: where each lies, and what its code depends on.

A package registers itself when it is imported, before any of its functions is compiled. The keys of the cache then
cover what a module imports from registered packages (`sources.py`), but not what it imports from other packages. This
module does not import Numba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Package(NamedTuple):
    """A registered package. root: its folder.

    parts: a function. Besides sources, versions and the CPU, the package's compiled code depends on its result. The
    result describes how the modules were made when they were imported, so it is the same at every call.
    reader: the module that reads what the parts describe. Code depends on them only if it imports this module, directly
    or not. None: all code of the package depends on them.
    """

    name: str
    root: Path
    parts: Callable[[], Any]
    reader: Path | None = None


_registered: dict[str, Package] = {}
passed_over: set[str] = set()  # top-level names of imported packages that no key covers


def register(name: str, root: Path, parts: Callable[[], Any] = lambda: None, reader: Path | None = None) -> None:
    """Register a package. The arguments are those of `Package`. Its modules that register lowerings need no mention.

    Raises ValueError if a key was computed before that should have covered the package's files.
    """
    if name in passed_over and name not in _registered:
        raise ValueError(
            f"package {name} must be registered before functions that import it are compiled, because their cache keys"
            " lack its files"
        )
    _registered[name] = Package(name, root, parts, reader)


def every() -> list[Package]:
    """All registered packages, by name."""
    return [_registered[name] for name in sorted(_registered)]


def containing(files: Iterable[Path]) -> list[Package]:
    """The registered packages that some of these files belong to, by name."""
    listed = list(files)
    return [package for package in every() if any(path.is_relative_to(package.root) for path in listed)]


def root_of(name: str) -> Path | None:
    """The folder of a registered package. For any other package, notes the name in `passed_over` and returns None."""
    if name not in _registered:
        passed_over.add(name)
        return None
    return _registered[name].root
