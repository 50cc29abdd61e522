"""The commit of the sources, for sdist and wheel: aristos/commit.txt. Everything else is in pyproject.toml."""

from __future__ import annotations

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

FILE = Path("aristos", "commit.txt")


def commit() -> str:
    """The file's, in an unpacked sdist; else git's, with '+' if there are local changes; '' if there is neither."""
    if FILE.exists():
        return FILE.read_text()
    if not Path(".git").exists():
        return ""
    words = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class Build(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            (Path(self.build_lib) / FILE).write_text(commit())


class Source(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        (Path(base_dir) / FILE).write_text(commit())


setup(cmdclass={"build_py": Build, "sdist": Source})
