"""The page of goals: a figure that misses its goal has the cause beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.parallel


@pytest.fixture
def goals(monkeypatch):
    """The script bench/goals.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "bench"))
    import goals

    return goals


def test_the_page_is_made_from_the_record(goals):
    assert goals.PAGE.read_text() == goals.page(json.loads(goals.RECORD.read_text()), goals.COMPARED.read_text())


def test_a_missed_figure_has_its_cause_and_one_that_is_met_has_none(goals, monkeypatch):
    """If no cause is given for a missed figure, the page says that the cause is not known."""
    monkeypatch.setattr(goals, "CAUSES", {"a CPU": {"int4: a token": "too slow", "int8: fewer": "a dip", "fp8": "no"}})
    found = {"int4: a token, share of 9 GB/s": 0.5, "int8: fewer rows": 1.2, "fp8: a token, share of 9 GB/s": 0.9}
    wanted = {"int4: a token, share": "≥ 0.7", "int8: fewer rows": "≤ 1.05", "fp8: a token, share": "≥ 0.78"}
    record = {"figures": found, "goals": wanted, "date": "2026-01-01", "commit": "1", "cpu": "c"}
    page = goals.page({"a CPU": record, "another": record}, "")
    causes = [line for line in page.splitlines() if line.startswith(("| a CPU,", "| another,"))]
    assert causes == [
        "| a CPU, int4: a token, share | too slow |",
        "| a CPU, int8: fewer rows | a dip |",
        "| another, int4: a token, share | not known |",
        "| another, int8: fewer rows | not known |",
    ]


def test_the_page_says_which_figures_and_comparisons_are_owed(goals):
    import compare

    assert {part: compare.PARTS[part].title for part in goals.AGAINST} == goals.AGAINST
    record = {
        "figures": {"fp8: a": 1.0},
        "goals": {"fp8: a": "≥ 0.78"},
        "date": "2026-01-01",
        "commit": "1",
        "cpu": "c",
    }
    compared = f"# P\n\n## On a CPU\n\n### {goals.AGAINST['decode']}\n\n## On another\n\nnothing\n"
    page = goals.page({"a CPU": record, "another": record, "a third": record | {"figures": {}}}, compared)
    assert "| fp8: a | ≥ 0.78 | 1.00 | 1.00 | owed |" in page
    assert "| `decode` | [measured](performance.md) | owed | owed |" in page
    assert "| `decode2` | owed | owed | owed |" in page
