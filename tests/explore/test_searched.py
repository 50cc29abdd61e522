"""Tests of the search over all schedules, in a process that compiles nothing.

The oracle is the same search without its reduction. It makes every move from every state. For the search in which ranks
stop only at news the oracle is the search in which they stop everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aristos.explore.cases import Call, Case
from aristos.explore.exhaustive import Key, Move, PathState, SearchResult, StateSearch
from aristos.explore.news import NewsSearch
from aristos.explore.places import PART_BITS, PRIVATE
from aristos.explore.scheduler import FLUSH, Actor
from aristos.explore.small import ROUTINGS, small, small_nodes

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


def behaviour(search: StateSearch) -> tuple[set[Any], set[Any]]:
    """(all stretches of all ranks: where each begins and what it reads, all states in which all calls have ended)."""
    cluster, stretches, final = search.cluster, set(), set()
    mark, at_end = cluster.mark, cluster.checks.at_end

    def marked(actor: Actor) -> None:
        _, digest, log = cluster.stretches[actor.number]
        # whether an unflushed put has landed is no read: only a search that stops at the flush then needs to know
        stretches.add((actor.number, digest, str([value for value in log if not isinstance(value, bool)])))
        mark(actor)

    def ended() -> None:
        at_end()
        value = search.memory.value.items()
        final.add(str(sorted((at, v) for at, v in value if v and at >> PART_BITS & PRIVATE != PRIVATE)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "mark", marked)
        patch.setattr(cluster.checks, "at_end", ended)
        result = search.search_states(SECONDS)
    assert result.complete, result
    return stretches, final


SMALL = [(transport, tokens, 1, routing) for transport, tokens, routing in CASES]
SMALL += [("shm", 1, 2, routing) for routing in ROUTINGS]
SMALL += [("levels", 1, 1, routing) for routing in ("none, then all", "one sends")]


@pytest.mark.parametrize(("transport", "tokens", "calls", "routing"), SMALL)
def test_ranks_that_stop_only_at_news_do_all_that_they_may_do(transport, tokens, calls, routing):
    """They also make idle polls that the other search does not repeat, because the rank waits for a change."""
    case = small(routing, 2, tokens, calls, "rma" if transport == "levels" else transport)
    if transport == "levels":
        case = replace(case, levels=2)
    everywhere, news = StateSearch(case), NewsSearch(case)
    stretches, final = behaviour(everywhere)
    found, ends = behaviour(news)
    assert ends == final
    assert found >= stretches
    assert len(found) <= len(stretches) + 4
    assert 2 * len(news.visited) < len(everywhere.visited)


def test_two_levels_without_tokens():
    """Three ranks announce that they have no tokens, in every order of their reads and of what lands."""
    none = tuple((Call(()),) for _ in range(3))
    result = NewsSearch(replace(small_nodes("to two owners"), calls=none)).search_states(SECONDS)
    assert result.complete, result
    assert result.ends > 0
    assert result.states > 1000
