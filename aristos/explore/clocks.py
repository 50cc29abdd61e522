"""Vector clocks, which say what each actor knows of other actors, and which accesses are not ordered.

An actor that acquires a word takes over the clock of the release that it reads. Two conflicting accesses of two actors,
one of them plain, are a race unless the later actor knows of the earlier access. The values read do not matter.
Subclasses know which actor acts, and the names of actors and addresses. The subclass in `memory_model.py` learns this
from a scheduler, the one in `compiled/checker.py` from a log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from .violation import Race

Clock = tuple[int, ...]


class Release(NamedTuple):
    """A value of an atomic word, with its writer, the writer's clock, and the time of the release."""

    value: int
    clock: Clock
    actor: int
    time: int


class Clocks(ABC):
    """The clocks of all actors, and the last accesses to each word."""

    def __init__(self) -> None:
        self.clocks: list[Clock] = []
        self.writes: dict[int, tuple[int, int]] = {}  # plain writes: actor, its clock
        self.reads: dict[int, tuple[tuple[int, int], ...]] = {}
        self.released: dict[int, Release] = {}
        self.acquired: dict[int, dict[int, int]] = {}  # atomic words: actor that acquired them -> its time then
        self.keeps_acquired = True

    @property
    @abstractmethod
    def me(self) -> int:
        """The number of the actor that acts."""

    @abstractmethod
    def actor(self, number: int) -> str:
        """The name of an actor."""

    @abstractmethod
    def name(self, at: int) -> str:
        """The name of an address."""

    def begin(self, actors: int) -> None:
        """Start with this number of actors, each of which knows only of itself."""
        self.clocks = [tuple(int(a == b) for b in range(actors)) for a in range(actors)]

    def tick(self) -> None:
        """Advance this actor's clock, so that its later actions do not count as published."""
        me = self.me
        mine = self.clocks[me]
        self.clocks[me] = (*mine[:me], mine[me] + 1, *mine[me + 1 :])

    def join(self, clock: Clock) -> None:
        """Let this actor know of everything that a clock knows of."""
        me = self.me
        self.clocks[me] = tuple(map(max, self.clocks[me], clock))

    # ---- plain accesses

    def check_read(self, at: int) -> None:
        """Raise if another actor may be writing a word that this actor reads."""
        me = self.me
        mine = self.clocks[me]
        wrote = self.writes.get(at)
        if wrote is not None and wrote[0] != me and mine[wrote[0]] < wrote[1]:
            raise Race(f"{self.actor(me)} reads {self.name(at)} while {self.actor(wrote[0])} may be writing it")
        atomic = self.released.get(at)
        if atomic is not None and atomic.actor != me and mine[atomic.actor] < atomic.time:
            raise Race(f"{self.actor(me)} reads {self.name(at)} while {self.actor(atomic.actor)} may be releasing it")

    def note_read(self, at: int) -> None:
        """Note that this actor has read a word."""
        me = self.me
        mine = self.clocks[me]
        readers = self.reads.get(at, ())
        if len(readers) == 1 and readers[0][0] == me:
            self.reads[at] = ((me, mine[me]),)
        else:
            self.reads[at] = (*(r for r in readers if r[0] != me), (me, mine[me]))

    def check_write(self, at: int) -> None:
        """Raise if another actor may be reading, writing, releasing or acquiring a word that this actor writes."""
        me = self.me
        mine = self.clocks[me]
        atomic = self.released.get(at)
        if atomic is not None and atomic.actor != me and mine[atomic.actor] < atomic.time:
            raise Race(f"{self.actor(me)} writes {self.name(at)} while {self.actor(atomic.actor)} may be releasing it")
        self.check_plain(at, "writes")
        for reader, clock in self.acquired.get(at, {}).items():
            if reader != me and mine[reader] < clock:
                raise Race(f"{self.actor(me)} writes {self.name(at)} while {self.actor(reader)} may be acquiring it")

    def note_write(self, at: int) -> None:
        """Note that this actor has written a word plainly."""
        me = self.me
        self.writes[at] = me, self.clocks[me][me]
        self.reads.pop(at, None)

    def check_plain(self, at: int, does: str) -> None:
        """Raise unless this actor knows of all plain reads and writes of a word."""
        me = self.me
        mine = self.clocks[me]
        wrote = self.writes.get(at)
        if wrote is not None and wrote[0] != me and mine[wrote[0]] < wrote[1]:
            raise Race(f"{self.actor(me)} {does} {self.name(at)} while {self.actor(wrote[0])} may be writing it")
        for reader, clock in self.reads.get(at, ()):
            if reader != me and mine[reader] < clock:
                raise Race(f"{self.actor(me)} {does} {self.name(at)} while {self.actor(reader)} may be reading it")

    # ---- atomics

    def check_acquire(self, at: int, does: str) -> None:
        """Raise unless this actor may read a word atomically. A later plain writer must know of the read."""
        me = self.me
        wrote = self.writes.get(at)
        if wrote is not None and wrote[0] != me and self.clocks[me][wrote[0]] < wrote[1]:
            raise Race(f"{self.actor(me)} {does} {self.name(at)} while {self.actor(wrote[0])} may be writing it")
        if self.keeps_acquired:
            self.acquired.setdefault(at, {})[me] = self.clocks[me][me]

    def note_release(self, at: int, value: int) -> Release:
        """Note that this actor has released a word. `tick` must follow, because its later actions are not part of the
        release."""
        me = self.me
        mine = self.clocks[me]
        release = self.released[at] = Release(value, mine, me, mine[me])
        return release
