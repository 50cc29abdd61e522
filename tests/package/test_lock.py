"""The lock files of .ci: every package that the tests install, by version and hash."""

from __future__ import annotations

import importlib.util
import re

import pytest
from cases import ROOT

FILES = sorted((ROOT / ".ci").glob("lock-*.txt"))


def test_there_are_lock_files():
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_lock_file_has_all_requirements_by_hash(file):
    spec = importlib.util.spec_from_file_location("lock", ROOT / ".ci" / "lock.py")
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    lines = file.read_text().splitlines()
    found = [re.fullmatch(r"([a-z0-9.-]+)==[\w.+!-]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found) if not match]
    names = {match[1] for match in found}
    assert len(names) == len(lines)
    wanted = {re.match(r"[\w.-]+", each)[0].lower().replace("_", "-") for each in [*lock.wanted(), *lock.ALONE]}
    assert wanted <= names, f"run `make lock`: {sorted(wanted - names)} are new"
