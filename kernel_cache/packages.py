"""The packages whose functions are compiled and kept: where each lies, and what its code depends on besides sources.

A package registers itself when it is imported, before any of its functions is compiled. Keys of the cache then follow
imports from one registered package into another (`sources.py`). They do not follow imports of other packages. This
module does not import Numba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Package(NamedTuple):
    """A package. root: its folder.

    parts: a function whose result the package's compiled code depends on, besides sources, versions and the CPU. The
    result describes how the modules were made when they were imported, so it is the same at every call.
    """

    name: str
    root: Path
    parts: Callable[[], Any]


_registered: dict[str, Package] = {}
passed_over: set[str] = set()  # packages, by their first names, whose imports keys do not follow


def register(name: str, root: Path, parts: Callable[[], Any] = lambda: None) -> None:
    """Register a package, see `Package`. Modules below root that register lowerings with Numba are found automatically.

    Raises ValueError if a key was computed that should have followed an import of it.
    """
    if name in passed_over and name not in _registered:
        raise ValueError(
            f"package {name} must be registered before functions that import it are compiled: their keys lack its files"
        )
    _registered[name] = Package(name, root, parts)


def every() -> list[Package]:
    """All registered packages, by name."""
    return [_registered[name] for name in sorted(_registered)]


def containing(files: Iterable[Path]) -> list[Package]:
    """The registered packages that some of these files belong to, by name."""
    listed = list(files)
    return [package for package in every() if any(path.is_relative_to(package.root) for path in listed)]


def root_of(name: str) -> Path | None:
    """The folder of a registered package. For another one None, and its name is kept in `passed_over`."""
    if name not in _registered:
        passed_over.add(name)
        return None
    return _registered[name].root
