"""Tests that build the package need a recent setuptools."""

from __future__ import annotations

from importlib import metadata

import pytest

LEAST = 77  # as in pyproject.toml


def skip_without_setuptools() -> None:
    """Skip the test if setuptools is absent or too old. The test itself builds in a process of its own.

    This reads the version from the package's metadata: an import of setuptools fails in a process that has imported
    Python's own distutils, as other tests do.
    """
    try:
        version = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        pytest.skip("no setuptools: pip install 'setuptools>=77'")
    if int(version.split(".")[0]) < LEAST:
        pytest.skip(f"setuptools {version} is older than {LEAST}")
