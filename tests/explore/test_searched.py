"""Tests of the search over all schedules, in a process that compiles nothing.

The oracle is the same search without its reduction. It makes every move from every state.
"""

from __future__ import annotations

import pytest

from aristos.explore.cases import Case
from aristos.explore.exhaustive import Key, Move, PathState, SearchResult, StateSearch
from aristos.explore.scheduler import FLUSH
from aristos.explore.small import ROUTINGS, small

pytestmark = [pytest.mark.uncompiled, pytest.mark.slow]
SECONDS = 200.0


class Noted(StateSearch):
    """A search that records successor states, states in which all calls have ended, and idle flushes."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.before: dict[Key, set[Key]] = {}
        self.final: set[Key] = set()
        self.flush_of_nothing: set[Key] = set()
        self._keys: dict[int, Key] = {}

    def _enter(self, path: list[PathState], sleep: set[Move]) -> None:
        key, ends, depth = self.key(), self.ends, len(path)
        self.before.setdefault(key, set()).update({self._keys[id(path[-1])]} if path else ())
        moving = {word.put.origin for word in self.network.moving.values()}
        if any(a.enabled and a.op == FLUSH and a.rank not in moving for a in self.sched.actors):
            self.flush_of_nothing.add(key)
        super()._enter(path, sleep)
        if self.ends > ends:
            self.final.add(key)
        if len(path) > depth:
            self._keys[id(path[-1])] = key


def both(monkeypatch: pytest.MonkeyPatch, case: Case) -> tuple[Noted, Noted]:
    """(a complete search with its reduction, a complete search without it)."""

    def complete(search: Noted) -> Noted:
        result: SearchResult = search.search_states(SECONDS)
        assert result.complete, result
        return search

    reduced = complete(Noted(case))
    with monkeypatch.context() as patch:
        patch.setattr(Move, "commutes", lambda *_: False)
        return reduced, complete(Noted(case))


CASES = [("shm", 2, routing) for routing in ROUTINGS]
CASES += [("rma", 1, routing) for routing in ("none, then all", "one sends")]


@pytest.mark.parametrize(("transport", "tokens", "routing"), CASES)
def test_the_reduction_leaves_no_state_out(monkeypatch, transport, tokens, routing):
    """Sleep sets leave out moves but no states, except states where a flush has found that it waits for nothing."""
    reduced, full = both(monkeypatch, small(routing, 2, tokens, 1, transport))
    assert reduced.final == full.final
    assert set(reduced.visited) <= set(full.visited)
    assert set(full.visited) - set(reduced.visited) <= full.flush_of_nothing
    assert reduced.moves < full.moves
    # and from every state a path leads to the end of all calls
    reached, todo = set(full.final), list(full.final)
    while todo:
        new = full.before[todo.pop()] - reached
        reached |= new
        todo += new
    assert reached == set(full.visited)
