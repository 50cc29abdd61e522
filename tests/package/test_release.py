"""A release has an entry in the changelog. The bytes of its archives depend on nothing but the sources."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from aristos._version import __version__
from tests.support.setuptools_version import skip_without_setuptools

ROOT = Path(__file__).resolve().parents[2]
# Like `python -m build`, this builds the sdist, and then the wheel from the sdist.
BUILD = """
import os, sys, tarfile
from setuptools import build_meta
name = build_meta.build_sdist("dist")
tarfile.open(f"dist/{name}").extractall("unpacked", filter="data")
dist = os.path.abspath("dist")
os.chdir("unpacked/" + name.removesuffix(".tar.gz"))
build_meta.build_wheel(dist)
"""


def test_one_version_and_its_entry_in_the_changelog():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    (newest, *_) = re.findall(r"^## (\S+) - ", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest == __version__
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def archives(folder: Path, mask: str) -> dict[str, str]:
    """File name -> hash, for the sdist and the wheel of a copy of the sources. mask: the umask of the copy's files."""
    ignore = shutil.ignore_patterns("__pycache__", ".*", "build", "*.egg-info", "results", "shared")
    shutil.copytree(ROOT, folder, ignore=ignore)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~int(mask, 8) | 0o700 * path.is_dir())
    (folder / "aristos" / "commit.txt").write_text("0" * 40)
    env = os.environ | {"SOURCE_DATE_EPOCH": "1760000000"}
    words = [sys.executable, "-c", BUILD]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, timeout=300, umask=0o022)
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "dist").iterdir()}


@pytest.mark.slow
def test_archives_built_twice_are_equal(tmp_path):
    """Each is built from a copy of its own; the copies differ in file times, file modes and folder."""
    skip_without_setuptools()
    first, second = archives(tmp_path / "one", "022"), archives(tmp_path / "two" / "deeper", "002")
    assert len(first) == 2
    assert first == second
    (sdist,) = (tmp_path / "one" / "dist").glob("*.tar.gz")
    (wheel,) = (tmp_path / "one" / "dist").glob("*.whl")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py", "aristos/commit.txt", "aristos/py.typed"} <= names
    assert {"aristos/commit.txt", "ptxsim/py.typed", "kernel_cache/py.typed"} <= set(zipfile.ZipFile(wheel).namelist())
