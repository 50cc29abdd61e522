"""All schedules of a small case: a search over states, depth first, with sleep sets.

An actor's stretch of work is deterministic: it is rebuilt from the rank's private memory where the stretch began and
the values that it has read since. So a state is those, the windows, and what is known of the order of accesses; one
that has been seen is not entered again. Of two operations that commute one order is tried (sleep sets, with Godefroid's
rule for states that are met again). Clocks enter a state only as far as somebody may yet not know of what they stand
for. Time stands still, loads see the latest value, there is a worker a rank, and nobody fails.
Source: P. Godefroid, Partial-Order Methods for the Verification of Concurrent Systems, LNCS 1032 (1996), chapter 5.
"""

from __future__ import annotations

import hashlib
import marshal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet

from .cases import Case
from .frozen import Frozen
from .memory_model import Clock
from .places import PRIVATE
from .scheduler import LOAD, Actor
from .story import tell
from .strategies import Replay
from .stretches import Stretches
from .violation import Crash, Deadlock, Violation

Key = bytes
EVERYTHING = -2  # the place of an operation that commutes with none
FLAT = 2  # the version of marshal that writes equal values alike


@dataclass(frozen=True)
class Move:
    """What may happen next: an actor's operation."""

    actor: int
    op: str
    at: int

    def commutes(self, other: Move) -> bool:
        if self.actor == other.actor or EVERYTHING in (self.at, other.at):
            return False
        return self.at != other.at or self.op == other.op == LOAD


@dataclass
class Node:
    """A state on the path that is being searched."""

    frozen: Frozen
    todo: list[Move]
    sleep: set[Move]
    tried: list[Move] = field(default_factory=list)


@dataclass
class Result:
    """What a search came to."""

    states: int
    moves: int
    ends: int  # states in which all calls have ended
    seconds: float
    complete: bool
    violation: Violation | None = None
    path: list[int] = field(default_factory=list)


class Search:
    """Of one case."""

    def __init__(self, case: Case) -> None:
        self.machine = Stretches(case, Replay([]))
        self.sched, self.memory = self.machine.sched, self.machine.memory
        self.live: Node | None = None  # the node whose state the machine is in, its actors alive
        self.visited: dict[Key, frozenset[Move]] = {}
        self.moves = self.ends = 0
        self.sched.bound = 1 << 60

    def run(self, seconds: float) -> Result:
        """Search until all is seen, something is found, or `seconds` are over."""
        started = time.monotonic()
        self.sched._main = getcurrent()
        path: list[Node] = []
        violation: Violation | None = None
        try:
            with self.machine.patched(), self.machine.recorded():
                for actor in self.sched.actors:
                    self._begin(actor)
                self._enter(path, set())
                while path and time.monotonic() - started < seconds:
                    self._advance(path)
        except Violation as found:
            violation = found
        finally:
            self.sched.current = None
            self.sched.kill()
        return Result(
            len(self.visited),
            self.moves,
            self.ends,
            time.monotonic() - started,
            not path and violation is None,
            violation,
            [node.tried[-1].actor for node in path if node.tried],
        )

    # ---- the search

    def _advance(self, path: list[Node]) -> None:
        node = path[-1]
        if not node.todo:
            path.pop()
            return
        move = node.todo.pop()
        sleep = {other for other in (*node.sleep, *node.tried) if other.commutes(move)}
        node.tried.append(move)
        if self.live is not node:
            node.frozen.restore(self.machine)
        self.live = None
        self._step(self.sched.actors[move.actor])
        self.moves += 1
        self._enter(path, sleep)

    def _enter(self, path: list[Node], sleep: set[Move]) -> None:
        """The machine has come to a state: go on from there if that shows anything new."""
        moves = [Move(a.number, a.op, a.at) for a in self.sched.actors if a.enabled]
        if not moves:
            if any(not a.done for a in self.sched.actors):
                raise Deadlock(self.machine.describe())
            self.machine.checks.at_end()
            self.ends += 1
        key = self.key()
        before = self.visited.get(key)
        if before is None:
            self.visited[key] = frozenset(sleep)
            todo = [move for move in moves if move not in sleep]
        else:
            todo = [move for move in moves if move in before and move not in sleep]
            self.visited[key] = before & sleep
        if todo:
            self.live = Node(Frozen.of(self.machine), todo, sleep)
            path.append(self.live)

    # ---- one step

    def _begin(self, actor: Actor) -> None:
        """Start an actor and run it to its first operation."""
        actor.greenlet = greenlet(lambda: self._body(actor), parent=self.sched._main)
        self.sched.current = actor
        self._go(actor)

    def _body(self, actor: Actor) -> None:
        rank = self.machine.ranks[actor.rank]
        going = True
        while going:
            self.machine.mark(actor)
            going = rank.step()

    def _step(self, actor: Actor) -> None:
        """Do an actor's operation, and go on to the one after."""
        self.sched.current = actor
        if actor.greenlet is None or actor.greenlet.dead:
            self._rebuild(actor)
        if actor.fresh:
            actor.fresh = False
            actor.seen.clear()
        self._go(actor)

    def _rebuild(self, actor: Actor) -> None:
        """Bring an actor to where it stopped, by what it has read since its stretch began."""
        self.machine.replay(actor)
        actor.greenlet = greenlet(lambda: self._resume(actor), parent=self.sched._main)
        actor.greenlet.switch()

    def _resume(self, actor: Actor) -> None:
        if self.machine.ranks[actor.rank].step():
            self._body(actor)

    def _go(self, actor: Actor) -> None:
        assert actor.greenlet is not None
        try:
            actor.greenlet.switch()
        except Violation:
            raise
        except Exception as error:
            raise Crash(f"{actor.name}: {type(error).__name__}: {error}") from error
        if actor.greenlet.dead:
            actor.done, actor.enabled = True, False

    # ---- what makes a state

    def key(self) -> Key:
        """A name of the state that the machine is in."""
        memory, machine = self.memory, self.machine
        known = tuple(map(min, zip(*memory.clocks)))

        def new(clock: Clock) -> Clock:
            return tuple(c if c > k else 0 for c, k in zip(clock, known))

        def entry(actor: int, clock: int) -> tuple[int, int]:
            return (actor, clock) if clock > known[actor] else (0, 0)

        shared = [(at, v) for at, v in memory.value.items() if v and at >> 38 & 3 != PRIVATE]
        writes = [(at, entry(*w)) for at, w in memory.writes.items() if w[1] > known[w[0]]]
        reads = [(at, tuple(sorted(entry(*r) for r in rs if r[1] > known[r[0]]))) for at, rs in memory.reads.items()]
        released = [(at, new(r.clock), entry(r.actor, r.time)) for at, r in memory.released.items()]
        clocks = [new(c) for c in memory.clocks]
        stamps = self._stamps(writes, reads, released, clocks)

        def order(actor: int, clock: int) -> int:
            return stamps[actor].get(clock, 0)

        parts = (
            sorted(shared),
            sorted((at, a, order(a, c)) for at, (a, c) in writes),
            sorted((at, [(a, order(a, c)) for a, c in rs]) for at, rs in reads if rs),
            sorted(
                (at, [order(a, c) for a, c in enumerate(clock)], e[0], order(*e))
                for at, clock, e in released
                if any(clock) or e[1]
            ),
            [[order(a, c) for a, c in enumerate(clock)] for clock in clocks],
            sorted(memory.returned.items()),
            sorted(memory.full),
            sorted((w, list(row), s, n) for (w, row, s), n in machine.checks.runs.items()),
            [machine.summary(actor) for actor in self.sched.actors],
        )
        return hashlib.blake2b(marshal.dumps(parts, FLAT), digest_size=16).digest()

    @staticmethod
    def _stamps(writes: Any, reads: Any, released: Any, clocks: Any) -> list[dict[int, int]]:
        """For each actor, the order of its times that matter."""
        seen: list[set[int]] = [set() for _ in clocks]
        for _, (a, c) in writes:
            seen[a].add(c)
        for _, rs in reads:
            for a, c in rs:
                seen[a].add(c)
        for _, clock, (actor, c) in released:
            seen[actor].add(c)
            for a, c in enumerate(clock):
                seen[a].add(c)
        for clock in clocks:
            for a, c in enumerate(clock):
                seen[a].add(c)
        return [{c: i + 1 for i, c in enumerate(sorted(s - {0}))} for s in seen]


def story_of(case: Case, path: list[int]) -> str:
    """What happens on a path of moves."""
    search = Search(case)
    search.memory.story = []
    search.sched._main = getcurrent()
    with search.machine.patched(), search.machine.recorded(), suppress(Violation):
        for actor in search.sched.actors:
            search._begin(actor)
        for number in path:
            search.sched.steps += 1
            search._step(search.sched.actors[number])
    search.sched.current = None
    search.sched.kill()
    return tell(search.memory)


def small(rows: int = 2, tokens: int = 3, calls: int = 2, transport: str = "shm") -> Case:
    """The case that is searched: two ranks of one worker, two experts, top-1; each rank sends both ways."""
    from .cases import Call

    def ids(rank: int, number: int) -> tuple[tuple[int, ...], ...]:
        return tuple(((1 - rank + (t + number) % 3 % 2) % 2,) for t in range(tokens))

    made = tuple(tuple(Call(ids(r, c), layer=c) for c in range(calls)) for r in range(2))
    node_of = (0, 0) if transport == "shm" else (0, 1)
    return Case(rows=rows, max_tokens=tokens, tile=1, run=2, node_of=node_of, block=1, calls=made)
