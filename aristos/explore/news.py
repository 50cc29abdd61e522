"""The search over all schedules of a small case in which ranks stop only at news, and so in far fewer states.

In exhaustive.py a rank may stop at each read of each poll. Here it stops only where that makes a difference.
A rank's course is what the rank will do if all words stay as they are: reads, and then one operation that others can
see (a store, a put or a flush of coded words) or the rank's end. If a stretch changes nothing, no such operation
follows: the rank would poll for ever, and its course ends in sleep. A word is news to a rank if it has changed since
the rank's course began, or if it is under way and may land. A rank moves in two ways: it makes one of the course's
reads at which there is news, or the operation at the course's end. A new course begins after each move of its rank.

No behaviour is lost. In any schedule, take the reads of a rank up to the first whose value differs from the course. The
reads before that one give the same values if the rank makes them at once, when its course begins, and no other rank
sees them. What the rank does between these reads is private, or concerns plain data. If plain accesses of two ranks
have no order, they are a race, which clocks show in either order. If they have an order, the ranks' moves keep it. A
read that is made earlier can only learn of less, so it hides no race. So it is enough to search the schedules in which
each rank makes the first reads of its course at once and then waits for its move. Only the move decides how many reads
these are. The search then sets the words back to what they were when the course began, and the rank makes the reads.

If no read lies between an operation and the next put, both are made in one move: the put only lets its words land, and
they may land later. Some pairs of moves a and b need only one order. Let b change no word that a reads, and a change no
word that b's rank may read. Then the order a, b leads to all that the order b, a leads to: all courses are the same,
except that in the order a, b the course of a's rank begins before b, so what b changes is news to it. So a move a that
was tried before b is not tried after b (sleep sets, as in exhaustive.py, where the relation is symmetric).

Who knows of a word's reads and releases matters only if the word is later accessed plainly. The search notes the
regions with such plain accesses, and begins again when it finds another such region.

The search finds the violations that exhaustive.py finds in such cases: races, wrong results, exceeded bounds and
deadlocks. A course is checked when it begins, and again when moves make it. A rank that runs on for ever without news
is a Livelock. The search asserts that each rank has one worker and no proxy, and that the case has no fault. It also
asserts that a rank that moves makes the same reads again, that its course reads no word that the rank itself writes,
and that the rank is one of those that may read the word (`_readers`). The memory checks that each word has one writer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..engine import words
from ..engine.layout import word_to
from .cases import Case
from .clocks import Clock, Release
from .exhaustive import Move, PathState, StateSearch
from .frozen import Frozen
from .landing import Landing
from .memory_model import CHANGE, Memory
from .network import Put
from .places import HOME, LOCAL, REMOTE, put_target
from .rank import Rank
from .regions import CODED, WORD, Regions
from .scheduler import ANYWHERE, FLUSH, LOAD, POLL, PUT, Actor, Scheduler, Slice
from .stretches import Stretches
from .violation import Deadlock

READS = (LOAD, POLL)
SLEEP, END = "sleep", "end"  # how a course ends without an operation that others can see
Operation = tuple[str, int]
Cell = tuple[int, Release | None, Put | None]  # a word's value, its release, and the put that landed in it


@dataclass(frozen=True)
class Course:
    """What a rank does if nothing is news to it: `reads`, then `end`. cells: the words read, as they were at first."""

    reads: tuple[Operation, ...] = ()
    cells: dict[int, Cell] = field(default_factory=dict)
    end: Operation = (SLEEP, ANYWHERE)


@dataclass(frozen=True)
class NewsMove(Move):
    """A read of news, or the end of a course. number: how many reads of the course come before it.

    readers: the ranks that may read what the move changes.
    """

    number: int = 0
    readers: frozenset[int] = frozenset()

    def commutes(self, other: Move) -> bool:
        """Whether this move need not be tried after `other` if it was tried before `other`."""
        assert isinstance(other, NewsMove)
        if self.actor == other.actor or other.actor in self.readers:
            return False
        changes = self.op in READS and self.actor in other.readers
        return not (changes and (self.at == other.at or other.op in (PUT, FLUSH)))


@dataclass
class NewsState(PathState):
    """A state on the path that is being searched. last: the rank that has moved into it."""

    courses: list[Course | None] = field(default_factory=list)
    last: int = 0


class Posting(Landing):
    """A network in which a rank may stop before it puts new coded words, and a flush names its target."""

    def put(self, address: int, peer: int, at: int, source: int, nbytes: int) -> None:
        target = put_target(peer, at)
        if any(self._carries(target + i) and self._is_new(target + i, source + i) for i in range(0, nbytes, WORD)):
            self.sched.switch(PUT, target)
        super().put(address, peer, at, source, nbytes)

    def under_way(self, peer: int) -> bool:
        """Whether coded words of this rank to `peer` are not flushed. Only this rank can change that, while
        other moves can decide whether the words have landed."""
        rank = self.memory.rank
        return any(w.put.origin == rank and w.put.peer == peer and self._coded(w.target) for w in self.flying.values())

    def flush(self, address: int, peer: int) -> None:
        if self.under_way(peer) and not self.again():
            self.sched.switch(FLUSH, put_target(peer, 0))
        self.settle(address, peer)


class Mixing(Memory):
    """A memory that notes in which regions a word is accessed plainly after it was read, written or released.

    Only in these regions it matters who knows of reads and releases.
    """

    def __init__(self, regions: Regions, sched: Scheduler) -> None:
        super().__init__(regions, sched)
        self.mixed: set[tuple[str, int, int]] = set()  # region, rank, writer

    def group(self, at: int) -> tuple[str, int, int]:
        place = self.regions.place(at)
        return place.region, place.rank, place.writer

    def check_write(self, at: int) -> None:
        if at in self.writes or at in self.reads or at in self.released:
            self.mixed.add(self.group(at))
        super().check_write(at)

    def check_read(self, at: int) -> None:
        if at in self.released:
            self.mixed.add(self.group(at))
        super().check_read(at)


class Courses(Stretches):
    """A cluster in which an idle poll only ends a stretch, without a wait. begins: called when a stretch begins."""

    begins: Callable[[Actor], None]
    network_class = Posting
    memory_class = Mixing
    memory: Mixing

    def _take_for_local(self, rank: Rank, peer: int) -> None:
        super()._take_for_local(rank, peer)
        if not self.case.stay:  # then no rank reads when a peer has ended
            self.memory.local.add(word_to(rank.job, rank.st, peer, words.ENDED))

    def idle(self) -> None:
        raise Slice

    def mark(self, actor: Actor) -> None:
        super().mark(actor)
        self.begins(actor)


class NewsSearch(StateSearch):
    """The search over the states of one case in which ranks stop only at news."""

    memory: Mixing

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        assert case.workers == 1
        assert not case.proxy
        assert case.fault is None
        assert [actor.rank for actor in self.sched.actors] == list(range(case.ranks))
        self.courses: list[Course | None] = [None] * case.ranks  # None: not known yet
        self.last = case.ranks - 1  # the rank that has moved last
        self.move: NewsMove | None = None  # the move that is being made; None once its operation is done
        self.before: list[Operation] = []  # the reads that the move repeats before its operation, the next one last
        self.now: dict[int, Cell] = {}  # the present contents of the words that are set back for these reads
        self.coursing = False  # whether the running rank makes its course
        self.reads: list[Operation] = []
        self.cells: dict[int, Cell] = {}
        self.begun: Any = None  # the state that the course's latest stretch began from
        self.sched.stops = self._stops

    def make_cluster(self, case: Case) -> Stretches:
        cluster = Courses(case, self)
        cluster.begins = self._begins
        return cluster

    # ---- words

    def _cell(self, at: int) -> Cell:
        return self.memory.value.get(at, 0), self.memory.released.get(at), self.network.halves.get(at)

    def _set(self, cells: dict[int, Cell]) -> None:
        """Set words to what they were."""
        tables: tuple[dict[int, Any], ...] = self.memory.value, self.memory.released, self.network.halves
        for at, cell in cells.items():
            for table, entry in zip(tables, cell):
                if entry is None:
                    table.pop(at, None)
                else:
                    table[at] = entry

    def _words(self, at: int) -> tuple[int, ...]:
        """The words that one read reads: both halves of a coded word."""
        return (at, at + WORD) if self.memory.regions.place(at).kind == CODED else (at,)

    def _readers(self, at: int) -> frozenset[int]:
        """The ranks that may read a word. For the target of a flush: those that may read its rank's coded words."""
        place = self.memory.regions.place(at)
        return frozenset(self.cluster.case.nodes.readers(place.rank) if place.part == REMOTE else (place.rank,))

    def find_users(self, at: int) -> frozenset[int]:
        place, nodes = self.memory.regions.place(at), self.cluster.case.nodes
        ranks = {place.rank, place.writer} - {-1}
        if place.part == REMOTE:
            ranks |= {*nodes.readers(place.rank), *(nodes.remote(place.rank) if place.writer < 0 else ())}
        elif place.part == HOME or (place.part == LOCAL and place.writer < 0):
            ranks |= {*nodes.local(place.rank)}
        return frozenset(ranks)

    def mixed(self, at: int) -> bool:
        return self.memory.group(at) in self.memory.mixed

    # ---- a rank runs

    def _stops(self, op: str, at: int) -> bool:
        """Whether the running rank stops before an operation."""
        if op not in READS if self.coursing else self.move is None:
            return self.coursing or op != PUT
        self._pass(op, at)
        return False

    def _pass(self, op: str, at: int) -> None:
        """Let the running rank do an operation of its course or of its move."""
        if self.coursing:
            me = self.sched.me.rank
            assert me in self._readers(at)
            assert self.memory.regions.place(at).writer != me
            self.reads.append((op, at))
            self.cells |= {word: self._cell(word) for word in self._words(at)}
        elif self.before:
            assert self.before.pop() == (op, at)
        else:
            assert self.move is not None
            assert (self.move.op, self.move.at) == (op, at)
            self._set(self.now)
            self.choice, self.move, self.now = self.move.choice, None, {}

    def do(self, move: Move) -> None:
        """Make a move of a rank, and go on to its next operation."""
        assert isinstance(move, NewsMove)
        actor, course = self.sched.actors[move.actor], self.courses[move.actor]
        assert course is not None
        self.courses[move.actor], self.last, self.choice = None, move.actor, 0
        self.sched.current = actor
        if actor.greenlet is None or actor.greenlet.dead:
            self._rebuild(actor)
            self.before = list(reversed(course.reads[: move.number]))
            self.now = {at: self._cell(at) for at in course.cells}
            self._set(course.cells)
        self.move = move
        self._pass(actor.op, actor.at)
        self.sched.resume(actor)
        if move.op == END:
            self._set(self.now)
            self.move, self.now = None, {}
        assert self.move is None

    def _course_of(self, actor: Actor) -> Course:
        """A rank's course, found by running the rank. Afterwards the cluster is where the course ends."""
        if actor.done:
            return Course()
        self.sched.current, self.choice = actor, 0
        if actor.greenlet is None or actor.greenlet.dead:
            self._rebuild(actor)
        self.reads, self.cells, self.begun = [], {}, None
        story = self.memory.story
        shown = len(story or ())
        if actor.op in READS:
            self.coursing = True
            self._pass(actor.op, actor.at)
            self.sched.resume(actor)
            self.coursing = False
        if story:  # events of a course come into the story only when a move makes them
            del story[shown:]
        return Course(tuple(self.reads), self.cells, (END, ANYWHERE) if actor.done else (actor.op, actor.at))

    def _begins(self, actor: Actor) -> None:
        """Let a rank sleep if the last stretch of its course has changed nothing."""
        if not self.coursing:
            return
        begun = self.cluster.stretches[actor.number][1], self.memory.value.copy()
        if begun == self.begun:
            actor.op, actor.at = SLEEP, ANYWHERE
            self.sched._main.switch()
        self.begun = begun

    # ---- the search

    def _return_to(self, state: PathState, move: Move) -> None:
        assert isinstance(state, NewsState)
        at_end = self.live is state and move.actor == state.last and move.op not in (*READS, END)
        if not at_end or self.memory.story is not None:
            state.frozen.restore(self.cluster)
        self.courses = list(state.courses)

    def _advance(self, path: list[PathState]) -> None:
        known = len(self.memory.mixed)
        super()._advance(path)
        if len(self.memory.mixed) > known and self.memory.story is None:  # begin again: states now differ in more
            self.visited.clear()
            self.ends, self.live = 0, None
            del path[1:]
            path[0].todo += path[0].tried
            path[0].tried = []

    def _enter(self, path: list[PathState], sleep: set[Move]) -> None:
        key = self.key()
        before = self.visited.get(key)
        todo = [] if before is None else list(before - sleep)
        if before is None or todo:
            frozen, last = Frozen.from_cluster(self.cluster), self.last
            for actor in self.sched.actors:
                if self.courses[actor.number] is None:
                    self.courses[actor.number] = self._course_of(actor)
                    if actor.number != last:
                        frozen.restore(self.cluster)
        if before is None:
            todo = [move for move in self._moves() if move not in sleep]
        else:
            sleep = sleep & before
        self.visited[key] = frozenset(sleep)
        if todo:
            # reads stand last and are tried first: then most of them need not be tried after other moves
            todo.sort(key=lambda move: (move.op in READS, move.actor == last))
            self.live = NewsState(frozen, todo, sleep, [], list(self.courses), last)
            path.append(self.live)

    def _moves(self) -> list[Move]:
        """The moves of all ranks. If there are none, check that all calls have ended, and how."""
        moves: list[Move] = []
        for actor, course in zip(self.sched.actors, self.courses):
            assert course is not None
            for number, (op, at) in enumerate(course.reads):
                if any(self._cell(word)[0] != course.cells[word][0] for word in self._words(at)):
                    moves.append(NewsMove(actor.number, op, at, 0, number))
                if at in self.network.moving:
                    moves.append(NewsMove(actor.number, op, at, 1, number, self._readers(at)))
            op, at = course.end
            if op != SLEEP:
                readers = self._readers(at) if op != END else frozenset()
                moves.append(NewsMove(actor.number, op, at, 0, len(course.reads), readers))
        if not moves:
            for actor, course in zip(self.sched.actors, self.courses):
                assert course is not None
                actor.enabled, actor.why, actor.seen = False, CHANGE, dict.fromkeys(course.cells, 0)
            if not all(actor.done for actor in self.sched.actors):
                raise Deadlock(self.cluster.describe())
            self.cluster.checks.at_end()
            self.ends += 1
        return moves

    def dated(self, shows: Callable[[int, Clock], Any]) -> list[Any]:
        def shown(at: int, cell: Cell) -> tuple[Any, ...]:
            value, release, put = cell
            return value, release and shows(at, release.clock), put and shows(at, put.clock)

        return [
            (number, at, old)
            for number, course in enumerate(self.courses)
            for at, cell in (sorted(course.cells.items()) if course else ())
            if (old := shown(at, cell)) != shown(at, self._cell(at))
        ]


def search_of(case: Case) -> StateSearch:
    """The search for a case: with two levels a NewsSearch, because a StateSearch would take too long."""
    return NewsSearch(case) if case.levels == 2 else StateSearch(case)
