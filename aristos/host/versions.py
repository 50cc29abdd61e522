"""Versions of Aristos, of Python, and of the packages that Aristos depends on. None of them is imported."""

from __future__ import annotations

import platform
from importlib import metadata

from .._version import __version__

PACKAGES = ("numpy", "numba", "llvmlite", "mpi4py", "h5py")


def version(package: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions by name; "not installed" for a package that is absent."""
    found = {"aristos": __version__, "python": platform.python_version()}
    return found | {package: version(package) or "not installed" for package in PACKAGES}
