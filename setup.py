"""What pyproject.toml cannot say: the commit in sdist and wheel, and sdists whose bytes depend on sources alone."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

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

    def make_archive(self, *words: Any, **more: Any) -> str:
        made = super().make_archive(*words, **more)
        if made.endswith(".tar.gz") and "SOURCE_DATE_EPOCH" in os.environ:
            normalise(Path(made), int(os.environ["SOURCE_DATE_EPOCH"]))
        return made


def normalise(archive: Path, seconds: int) -> None:
    """Write a .tar.gz again with members in the order of their names, all of one time, and nobody's names or umask.

    seconds: the time, since 1970 (https://reproducible-builds.org/specs/source-date-epoch).
    """
    packed = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.pax_headers = {}
            member.mtime, member.uid, member.gid, member.uname, member.gname = seconds, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    with open(archive, "wb") as raw, gzip.GzipFile("", "wb", mtime=seconds, fileobj=raw) as file:
        file.write(packed.getvalue())


setup(cmdclass={"build_py": Build, "sdist": Source})
