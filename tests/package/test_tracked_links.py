"""Symbolic links in the repository lead to files of the repository, since a clone has no others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINK = "120000"


def tracked_links(root: Path) -> dict[str, str]:
    """Path -> target of each link that Git tracks; a git command fails outside a clone."""
    listed = subprocess.run(["git", "ls-files", "-s", "-z"], cwd=root, capture_output=True, text=True, check=True)
    entries = [entry.split("\t", 1) for entry in listed.stdout.split("\0") if entry]
    paths = {path: about.split(" ")[1] for about, path in entries if about.startswith(LINK)}
    show = ["git", "cat-file", "blob"]
    return {
        path: subprocess.run([*show, blob], cwd=root, capture_output=True, text=True, check=True).stdout
        for path, blob in paths.items()
    }


def leaves(links: dict[str, str]) -> list[str]:
    """The links whose target is absolute or lies outside the repository."""
    inside = {path: os.path.normpath(os.path.join(os.path.dirname(path), target)) for path, target in links.items()}
    return [path for path, target in inside.items() if os.path.isabs(target) or target.split("/")[0] == ".."]


def test_no_tracked_link_leaves_the_repository():
    if not (ROOT / ".git").exists():
        pytest.skip("no clone: Git does not know which files are tracked")
    assert leaves(tracked_links(ROOT)) == []


def test_a_link_that_leaves_is_found(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "docs").mkdir()
    for path, target in {"a": "/data", "docs/b": "../../data", "docs/c": "../docs", "d": "docs/c"}.items():
        (tmp_path / path).symlink_to(target)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert leaves(tracked_links(tmp_path)) == ["a", "docs/b"]
