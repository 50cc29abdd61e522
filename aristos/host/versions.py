"""Versions of Aristos, Python and what they stand on, without importing any of it."""

from __future__ import annotations

import platform
from importlib import metadata

from .. import __version__

PACKAGES = ("numpy", "numba", "llvmlite", "mpi4py", "h5py")


def version(package: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    found = {"aristos": __version__, "python": platform.python_version()}
    return found | {package: version(package) or "not installed" for package in PACKAGES}
