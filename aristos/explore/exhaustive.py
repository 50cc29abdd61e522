"""All schedules of a small case: a search over states, depth first, with sleep sets.

An actor's stretch of work is deterministic. The search rebuilds it from the rank's private memory at the beginning of
the stretch and from the values read since. So a state consists of that memory, these values, the windows, and the known
order of accesses. A state seen before is not entered again. If two operations commute, only one order is tried (sleep
sets, with Godefroid's rule for states that are reached again). A state contains clocks only for accesses that some
actor may not know of yet. In this search time stands still, loads see the latest value, a rank has one worker (on a GPU
also a proxy), and no rank fails.
Source: P. Godefroid, Partial-Order Methods for the Verification of Concurrent Systems, LNCS 1032 (1996), chapter 5.
"""

from __future__ import annotations

import hashlib
import marshal
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from operator import ge
from typing import Any

from greenlet import getcurrent, greenlet

from .cases import Case
from .clocks import Clock
from .frozen import Frozen
from .places import PART_BITS, PRIVATE
from .scheduler import FLUSH, LOAD, POLL, Actor, Slice
from .step_limit import every_step_ends
from .story import text
from .stretches import Stretches
from .violation import Deadlock, Violation

Key = bytes
OFTEN = 1000  # number of moves between two reports
FLAT = 2  # a marshal version that writes equal values as equal bytes


@dataclass(frozen=True)
class Move:
    """A next operation that an actor can do."""

    actor: int
    op: str
    at: int
    choice: int = 0  # 1: the word that the move polls lands just before the poll

    def commutes(self, other: Move) -> bool:
        if self.actor == other.actor or {self.op, other.op} == {FLUSH, POLL}:
            return False
        return self.at != other.at or self.op == other.op == LOAD


@dataclass
class PathState:
    """A state on the path that is being searched."""

    frozen: Frozen
    todo: list[Move]
    sleep: set[Move]
    tried: list[Move] = field(default_factory=list)


@dataclass
class SearchResult:
    """The outcome of a search."""

    states: int
    moves: int
    ends: int  # number of states in which all calls have ended
    seconds: float
    complete: bool
    violation: Violation | None = None
    path: list[Move] = field(default_factory=list)


class StateSearch:
    """The search over the states of one case."""

    def __init__(self, case: Case) -> None:
        self.choice = 0
        self.cluster = self.make_cluster(case)
        self.sched, self.memory = self.cluster.sched, self.cluster.memory
        self.network = self.cluster.network
        self.live: PathState | None = None  # the state that the cluster is in, with living actors
        self.visited: dict[Key, frozenset[Move]] = {}
        self.moves = self.ends = 0
        self.users = cache(self.find_users)
        self.sched.bound = 1 << 60

    def make_cluster(self, case: Case) -> Stretches:
        return Stretches(case, self)

    def search_states(self, seconds: float, report: Callable[[str], None] = lambda done: None) -> SearchResult:
        """Search until every state is seen, a bug is found, or `seconds` are over.

        report: a function that is called with the progress."""
        started = time.monotonic()
        self.sched._main = getcurrent()
        path: list[PathState] = []
        violation: Violation | None = None
        try:
            with self.cluster.patched(), self.cluster.recorded(), every_step_ends(self.sched, lambda: self.moves):
                for actor in self.sched.actors:
                    self._begin(actor)
                self._enter(path, set())
                while path and time.monotonic() - started < seconds:
                    self._advance(path)
                    if self.moves % OFTEN == 0:
                        report(f"{len(self.visited)} states")
        except Violation as found:
            violation = found
        finally:
            self.sched.current = None
            self.sched.kill()
        return SearchResult(
            len(self.visited),
            self.moves,
            self.ends,
            time.monotonic() - started,
            not path and violation is None and self.ends > 0,
            violation,
            [state.tried[-1] for state in path if state.tried],
        )

    # ---- methods of a strategy, which the search does not use

    def pick(self, options: list[Actor]) -> int:
        raise AssertionError("the search decides which actor runs next")

    def choose(self, count: int, what: str) -> int:
        return self.choice if what == "landed" else 0

    # ---- the search

    def _advance(self, path: list[PathState]) -> None:
        state = path[-1]
        if not state.todo:
            path.pop()
            return
        move = state.todo.pop()
        sleep = {other for other in (*state.sleep, *state.tried) if other.commutes(move)}
        state.tried.append(move)
        self._return_to(state, move)
        self.live = None
        self.do(move)
        self.moves += 1
        self._enter(path, sleep)

    def _return_to(self, state: PathState, move: Move) -> None:
        """Bring the cluster into a state of the path, in which `move` will be made."""
        if self.live is not state:
            state.frozen.restore(self.cluster)

    def _enter(self, path: list[PathState], sleep: set[Move]) -> None:
        """Enter the state that the cluster is in, if some of its moves must still be tried.

        sleep: moves that need not be tried from this state."""
        moves = [Move(a.number, a.op, a.at) for a in self.sched.actors if a.enabled]
        moves += [Move(m.actor, m.op, m.at, 1) for m in moves if m.at in self.network.moving]
        if not moves:
            if any(not a.done and not a.daemon for a in self.sched.actors):
                raise Deadlock(self.cluster.describe())
            self.cluster.checks.at_end()
            self.ends += 1
        key = self.key()
        before = self.visited.get(key)
        if before is None:
            self.visited[key] = frozenset(sleep)
            todo = [move for move in moves if move not in sleep]
        else:
            todo = [move for move in moves if move in before and move not in sleep]
            sleep = sleep & before
            self.visited[key] = frozenset(sleep)
        if todo:
            self.live = PathState(Frozen.from_cluster(self.cluster), todo, sleep)
            path.append(self.live)

    # ---- one step

    def do(self, move: Move) -> None:
        """Do a move."""
        self.choice = move.choice
        self._step(self.sched.actors[move.actor])

    def _begin(self, actor: Actor) -> None:
        """Start an actor and run it to its first operation."""
        actor.greenlet = greenlet(lambda: self._body(actor), parent=self.sched._main)
        self.sched.current = actor
        self.sched.resume(actor)

    def _body(self, actor: Actor) -> None:
        going = True
        while going:
            self.cluster.mark(actor)
            going = self._segment(actor)

    def _segment(self, actor: Actor) -> bool:
        """Run a stretch of an actor's work."""
        with suppress(Slice):  # raised if a proxy finds nothing to do
            return actor.segment()
        return True

    def _step(self, actor: Actor) -> None:
        """Do an actor's operation and run on to its next one."""
        self.sched.current = actor
        if actor.greenlet is None or actor.greenlet.dead:
            self._rebuild(actor)
        if actor.fresh:
            actor.fresh = False
            actor.seen.clear()
        self.sched.resume(actor)

    def _rebuild(self, actor: Actor) -> None:
        """Bring an actor back to where it stopped, from the values read since its stretch began."""
        self.cluster.replay(actor)
        actor.greenlet = greenlet(lambda: self._resume(actor), parent=self.sched._main)
        actor.greenlet.switch()

    def _resume(self, actor: Actor) -> None:
        if self._segment(actor):
            self._body(actor)

    # ---- the name of a state

    def find_users(self, at: int) -> frozenset[int]:
        """The numbers of the actors that may access a word."""
        return frozenset(range(len(self.memory.clocks)))

    def mixed(self, at: int) -> bool:
        """Whether an actor may access a word plainly after another actor has read or released it."""
        return True

    def dated(self, shows: Callable[[int, Clock], Any]) -> list[Any]:
        """The words that a rank will read as they were earlier: here none. shows: see `key`."""
        return []

    def key(self) -> Key:
        """A hash of the state that the cluster is in.

        An access matters later only if some user of its word may not know of it yet. Call these accesses open. A clock
        matters only by the open accesses that it covers. So the hash has, in place of each time of a clock, the number
        of an actor's open accesses up to that time. A word's clock matters only by what the word shows its users.
        """
        memory, cluster, clocks, users = self.memory, self.cluster, self.memory.clocks, self.users

        @cache
        def least(some: frozenset[int]) -> Clock:
            return tuple(map(min, zip(*(clocks[a] for a in some))))

        writes = [(at, a, c) for at, (a, c) in memory.writes.items() if c > least(users(at))[a]]
        reads = [
            (at, a, c)
            for at, readers in memory.reads.items()
            if self.mixed(at)
            for a, c in readers
            if c > least(users(at))[a]
        ]
        releases = [
            (at, r.actor, r.time)
            for at, r in memory.released.items()
            if self.mixed(at) and r.time > least(users(at))[r.actor]
        ]
        times: list[set[int]] = [set() for _ in clocks]
        for _, a, c in (*writes, *reads, *releases):
            times[a].add(c)
        ordered = [sorted(each) for each in times]

        def covers(clock: Clock) -> tuple[int, ...]:
            return tuple(map(bisect_right, ordered, clock))

        known = [covers(clock) for clock in clocks]

        @cache
        def shown(some: frozenset[int], clock: Clock) -> list[tuple[int, ...]]:
            covered, before = covers(clock), [known[a] for a in some]
            after = [tuple(map(max, covered, mine)) for mine in before]
            return after if after != before else []

        def shows(at: int, clock: Clock) -> list[tuple[int, ...]]:
            some = users(at)
            return [] if all(map(ge, least(some), clock)) else shown(some, clock)

        network = self.network
        parts: Any = (
            sorted((at, v) for at, v in memory.value.items() if v and at >> PART_BITS & PRIVATE != PRIVATE),
            *(sorted((at, a, bisect_right(ordered[a], c)) for at, a, c in some) for some in (writes, reads, releases)),
            sorted((at, new) for at, r in memory.released.items() if (new := shows(at, r.clock))),
            known,
            sorted((at, new) for at, put in network.halves.items() if (new := shows(at, put.clock))),
            sorted((a, new) for a, c in network.learned.items() if (new := shown(frozenset((a,)), c))),
            sorted((at, shows(at, word.put.clock)) for at, word in network.moving.items()),
            sorted(memory.returned.items()),
            sorted(memory.full),
            sorted((w, list(row), s, n) for (w, row, s), n in cluster.checks.runs.items()),
            [cluster.summary(actor) for actor in self.sched.actors],
            self.dated(shows),
        )
        return hashlib.blake2b(marshal.dumps(parts, FLAT), digest_size=16).digest()


def story_of(search: StateSearch, path: list[Move]) -> str:
    """The story of a path of moves. search: a search that has not begun."""
    search.memory.story = []
    search.sched._main = getcurrent()
    limit = every_step_ends(search.sched)
    states: list[PathState] = []
    with search.cluster.patched(), search.cluster.recorded(), suppress(Violation), limit:
        for actor in search.sched.actors:
            search._begin(actor)
        search._enter(states, set())
        for move in path:
            search.sched.steps += 1
            search.visited.clear()
            states[-1].todo = [move]
            search._advance(states)
    search.sched.current = None
    search.sched.kill()
    return text(search.memory)
