"""The plugin behind `--tier` and `--part`: which files it need not import, and which tests take turns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import tiers
from tiers import FOLDERS, IN_TURN, LONG, PARTS, TESTS, folders_from, may_hold, waiting

WHOLE = (
    "pytestmark = pytest.mark.slow",
    "pytestmark = [pytest.mark.parallel, pytest.mark.slow]",
    "pytestmark = [\n    pytest.mark.slow,\n    pytest.mark.skipif(True),\n]",
)


@pytest.mark.parametrize("text", WHOLE)
def test_a_slow_file_holds_no_quick_test(text):
    assert not may_hold("engine", text, "quick", None)
    assert may_hold("engine", text, "rest", None)
    assert may_hold("engine", "@pytest.mark.slow\ndef test_one(): ...", "quick", None)


@pytest.mark.parametrize(
    ("folder", "text", "held"),
    [
        ("engine", "", "parallel"),
        ("engine", "@pytest.mark.ranks(2)", "both"),
        ("engine", "@ranks_each(2)", "both"),
        ("bench", "", "serial"),
        ("bench", "@pytest.mark.parallel", "both"),
        ("nowhere", "", "both"),
    ],
)
def test_the_parts_to_which_tests_of_a_file_may_belong(folder, text, held):
    assert [part for part in PARTS if may_hold(folder, text, "quick", part)] == [
        part for part in PARTS if held in (part, "both")
    ]


def test_folders_without_quick_tests_hold_none():
    assert not may_hold("faults", "", "quick", None)
    assert {path.name for path in TESTS.iterdir() if list(path.glob("test_*.py"))} == set(FOLDERS)


def test_workers_begin_with_different_folders_and_import_all():
    starts = [folders_from(worker / 5) for worker in range(5)]
    assert len({folders[0] for folders in starts}) == 5
    assert {tuple(sorted(folders)) for folders in starts} == {tuple(sorted(str(TESTS / name) for name in FOLDERS))}


@dataclass(frozen=True)
class Item:
    path: Path
    name: str


def test_two_runs_take_every_test_in_turn(monkeypatch):
    monkeypatch.setattr(tiers, "is_quick", lambda item: item.name == "quick")
    items = [
        Item(TESTS / file, name) for file in (*IN_TURN[:2], "engine/test_x.py") for name in ("a", "b", "c", "quick")
    ]
    later = []
    for number in (7, 8, 9):
        monkeypatch.setenv("KERNELS", str(number))
        later.append({(item.path.name, item.name) for item in waiting(items)})
    first, second = (Path(file).name for file in IN_TURN[:2])
    assert later[0] == {(first, "b"), (second, "a"), (second, "c")}
    assert later[1] == {(first, "a"), (first, "c"), (second, "b")}
    assert later[2] == later[0]
    monkeypatch.setenv("KERNELS", "all")
    assert not waiting(items)


def test_files_in_turn_exist():
    assert all((TESTS / file).is_file() for file in (*IN_TURN, *LONG))
    assert len(set(IN_TURN)) == len(IN_TURN)
