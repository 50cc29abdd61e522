"""A scheduler that runs actors one at a time, from one visible operation to the next, as a strategy decides.

An actor is a greenlet. It stops before each operation that another actor could see (an atomic, a put, a flush, a poll)
and when it has nothing to do. The strategy decides by small numbers; the list of these numbers replays the run. The
scheduler does not know what the actors do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from greenlet import getcurrent, greenlet

from .violation import Crash, Deadlock, Livelock, TooLong, Violation

LOAD, STORE, UPDATE, PUT, FLUSH, POLL, LAND, GO = "load", "store", "update", "put", "flush", "poll", "land", "go"
ANYWHERE = -1  # an operation whose place does not matter


class Slice(Exception):
    """Raised when a worker's slice of time is over, so that its loop returns."""


class Strategy(Protocol):
    """Makes all decisions of a schedule. 0 is always the choice that changes least."""

    def pick(self, options: list[Actor]) -> int:
        """The index in `options` of the actor that runs next.

        options[0] is the actor that ran last, if it can still run.
        """

    def choose(self, count: int, what: str) -> int:
        """The number of one of `count` possible outcomes. what: the kind of the decision."""


class Actor:
    """A thread of the run. segment: does one stretch of the thread's work; returns False when the thread has ended."""

    def __init__(self, number: int, name: str, rank: int, segment: Callable[[], bool], daemon: bool = False) -> None:
        self.number, self.name, self.rank, self.segment, self.daemon = number, name, rank, segment, daemon
        self.enabled, self.done = True, False
        self.op, self.at = GO, ANYWHERE  # the next operation and its place
        self.seen: dict[int, int] = {}  # values of the words read in this poll
        self.locked_out: tuple[int, int] | None = None  # a lock that another actor holds, and the value in it
        self.fresh = True  # whether its next operation is the first of a stretch (exhaustive.py)
        self.sweeping = False  # whether it polls for work
        self.blind = 0  # polls since it last checked for poison
        self.cut = False  # whether its slice of time is over
        self.print: int | None = 0  # hash of the state it decided from; None if its rank's lock kept it out
        self.why = "starts"
        self.flushing = -1  # the rank to which it flushes its puts
        self.greenlet: greenlet | None = None

    def body(self) -> None:
        while self.segment():
            pass


class Scheduler:
    """The actors of a run and the one that runs now."""

    def __init__(self, strategy: Strategy, bound: int) -> None:
        self.strategy, self.bound = strategy, bound
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.steps = 0
        self.most = bound + 1  # the most steps before a run is ended
        self.later: dict[int, Callable[[], None]] = {}  # step -> function called before it
        self.stuck: Callable[[], bool] = lambda: False  # called if no actor can go on; returns True if one then can
        self.describe: Callable[[], str] = lambda: ""
        self.stops: Callable[[str, int], bool] = lambda op, at: True  # whether an actor stops before an operation
        self._main = getcurrent()

    def add(self, name: str, rank: int, segment: Callable[[], bool], daemon: bool = False) -> Actor:
        actor = Actor(len(self.actors), name, rank, segment, daemon)
        self.actors.append(actor)
        return actor

    @property
    def me(self) -> Actor:
        """The actor that runs now."""
        assert self.current is not None
        return self.current

    # ---- called by actors

    def switch(self, op: str, at: int = ANYWHERE) -> None:
        """Let another actor go first. Called before an operation that others can see."""
        me = self.current
        if me is None:
            return  # the cluster is still being built
        me.op, me.at = op, at
        if self.stops(op, at):
            self._main.switch()

    def wait(self, why: str, *, cut: bool = False) -> None:
        """Stop until another actor wakes this one. cut: whether the wait also ends, by a Slice, if this actor's slice
        of time ends."""
        me = self.me
        me.enabled, me.why, me.op, me.at = False, why, GO, ANYWHERE
        self._main.switch()
        if me.cut:
            me.cut = False
            if cut:
                raise Slice

    def wait_for(self, words: dict[int, int], why: str) -> None:
        """Stop until one of these words changes, whatever else this actor has read. words: their values."""
        me = self.me
        before, me.seen = me.seen, words
        self.wait(why)
        me.seen = before

    def wake(self, actor: Actor) -> None:
        if not actor.done:
            actor.enabled = True

    # ---- the run

    def run(self) -> None:
        """Run until every actor but the daemons has ended. Raises Violation."""
        self._main = getcurrent()
        for actor in self.actors:
            actor.greenlet = greenlet(actor.body, parent=self._main)
        try:
            while self._open() and (chosen := self._next()) is not None:
                self.step(chosen)
        finally:
            self.current = None
            self.kill()

    def _open(self) -> bool:
        return any(not a.done and not a.daemon for a in self.actors)

    def _next(self) -> Actor | None:
        if self.steps in self.later:
            self.later.pop(self.steps)()
        last = self.current
        options = [a for a in self.actors if a.enabled and a is not last]
        if last is not None and last.enabled:
            options.insert(0, last)
        if not options:
            if not self._open():  # the last open actor was killed
                return None
            if self.stuck():
                return self._next()
            raise Deadlock(self.describe())
        return options[self.strategy.pick(options)] if len(options) > 1 else options[0]

    def step(self, actor: Actor) -> None:
        """Let an actor do its next operation and run on to the following one."""
        self.steps += 1
        if self.steps > self.most:
            raise TooLong(f"the schedule has more than {self.most} steps")
        if self.steps > self.bound:
            raise Livelock(f"the schedule has not ended after {self.steps} steps\n{self.describe()}")
        self.current = actor
        self.resume(actor)

    def resume(self, actor: Actor) -> None:
        """Let the current actor run until it stops. An exception in it becomes a Violation."""
        assert actor.greenlet is not None
        try:
            actor.greenlet.switch()
        except Violation:
            raise
        except Exception as error:
            raise Crash(f"{actor.name}: {type(error).__name__}: {error}") from error
        if actor.greenlet.dead:
            actor.done, actor.enabled = True, False

    def kill(self) -> None:
        """End all greenlets that have not ended."""
        for actor in self.actors:
            if actor.greenlet is not None and not actor.greenlet.dead:
                actor.greenlet.throw()
