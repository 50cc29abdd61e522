"""Accesses of compiled steps are recorded in real jobs. They have no races, and planted races are found."""

from __future__ import annotations

import pytest
import sweeps

from aristos.explore.compiled import planted, run

pytestmark = pytest.mark.slow
CALLS = 3  # one of each kind of tape


def cases(*names: str) -> list[run.Case]:
    return [case for case in run.CASES if case.name in names]


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
    for result in run.make_all(comm, [(case, 0) for case in cases("mixed")], CALLS, seed=1):
        assert not result.races


@pytest.mark.parallel
@pytest.mark.ranks(2, timeout=400)
def test_planted_races_are_found(comm):
    wanted, bugs = {case.name: case for case in run.CASES}, sweeps.share(planted.ALL)
    tries = [(wanted[bug.wants], planted.NUMBERS[bug.name]) for bug in bugs]
    for bug, result in zip(bugs, list(run.make_all(comm, tries, CALLS + 1, seed=1))):
        assert result.races, bug.name
