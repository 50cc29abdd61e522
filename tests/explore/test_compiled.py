"""Accesses of compiled steps are recorded in real jobs. They have no races, and planted races are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import sweeps

from aristos.explore.compiled import planted, run

pytestmark = pytest.mark.slow
CALLS = 3  # one of each kind of tape
WANTED = {case.name: case for case in run.CASES}


@pytest.mark.parallel  # one rank checks the logs, and the other waits
@pytest.mark.ranks(2, timeout=400)
def test_compiled_steps_have_no_races(comm):
    tries = [(case, 0) for case in run.CASES if case.ranks <= 2]
    for result in run.make_all(comm, tries, CALLS, seed=1):
        assert not result.races, result.case
        assert result.entries > 1000


@pytest.mark.parallel
@pytest.mark.ranks(3, timeout=400)
def test_compiled_steps_between_two_kinds_of_peers_have_no_races(comm):
    tries = [(case, 0) for case in run.CASES if case.ranks == 3]
    assert [case.name for case, _ in tries] == ["mixed", "levels", "levels-sums", "train-levels", "exchange-levels"]
    for result in run.make_all(comm, tries, CALLS, seed=1):
        assert not result.races, result.case
        assert result.entries > 1000


def find(comm: Any, bugs: Sequence[planted.Planted], case: str = "") -> None:
    """Switch each bug on, and find it in a case; by default in the case that the bug names."""
    tries = [(WANTED[case or bug.wants], planted.NUMBERS[bug.name]) for bug in bugs]
    for bug, result in zip(bugs, list(run.make_all(comm, tries, CALLS + 1, seed=1))):
        assert result.races, bug.name


@pytest.mark.parallel
@pytest.mark.ranks(2, timeout=400)
def test_planted_races_are_found(comm):
    find(comm, sweeps.share([bug for bug in planted.ALL if WANTED[bug.wants].ranks <= 2]))


@pytest.mark.parallel
@pytest.mark.ranks(3, timeout=400)
def test_planted_races_of_two_levels_are_found(comm):
    """Here the reader of data is also a rank that is not the target of its puts."""
    find(comm, [bug for bug in planted.ALL if bug.wants in ("rma", "levels")], "levels")
    find(comm, [bug for bug in planted.ALL if bug.wants == "levels-sums"])
