"""The lock files of .ci: every package that the tests install, by version and hash."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from cases import ROOT

FILES = sorted((ROOT / ".ci").glob("lock-*.txt"))  # lock-PYTHON-MACHINE.txt or lock-PYTHON-MACHINE.NAME.txt


def test_there_are_lock_files():
    assert FILES
    mains = [file for file in FILES if named(file) == ""]
    assert {file.with_suffix(f".{name}.txt") for file in mains for name in lock().OTHERS} == set(FILES) - set(mains)


def named(file: Path) -> str:
    """The name of a lock file's environment; empty for the environment of the tests."""
    found = re.fullmatch(r"lock-3\.\d+-\w+(?:\.(\w+))?\.txt", file.name)
    assert found, file
    return found[1] or ""


def lock() -> ModuleType:
    """.ci/lock.py as a module."""
    spec = importlib.util.spec_from_file_location("lock", ROOT / ".ci" / "lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_lock_file_has_all_requirements_by_hash(file):
    lines = file.read_text().splitlines()
    found = [re.fullmatch(r"([a-z0-9.-]+)==[\w.+!-]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found) if not match]
    names = {match[1] for match in found}
    assert len(names) == len(lines)
    needed = lock().wanted(named(file)) + ([] if named(file) else lock().ALONE)
    wanted = {re.match(r"[\w.-]+", each)[0].lower().replace("_", "-") for each in needed}
    assert wanted <= names, f"run `make lock`: {sorted(wanted - names)} are new"
