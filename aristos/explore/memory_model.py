"""Memory whose accesses are checked: each word's value, its accesses by actors, and what each actor knows of other
actors.

Plain data is checked by vector clocks: two conflicting accesses without an order are a race, in every schedule in which
both happen, whatever value was read. Atomics are switch points. A load may see an older value than the latest one,
unless its actor knows of an event that rules this out. The functions of this module replace `primitives.memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ..primitives import memory
from .clocks import Clocks, Release
from .places import AREA, AREA_BITS, AREA_MASK, FIRST, LOCK, PART_BITS, PRIVATE, SCRATCH, SPAN, STATE, TAPE, TAPED
from .places import STORE as STORE_AREA
from .reach import Reach
from .regions import AREAS, BELL, CODED, OUT_OF_BOUNDS, RETURNS, RING, WORD, Regions
from .running_step import where_from
from .scheduler import LOAD, STORE, UPDATE, Scheduler
from .state import State
from .violation import OutOfBounds, Race, RingError, SecondWriter, WrongResult

PRIVATE_BITS = PRIVATE << PART_BITS
CHECKED_AREAS = (SCRATCH, STORE_AREA, TAPE, TAPED)  # areas that workers share
FREE_AREAS = [area for area in range(len(AREAS)) if area not in (STATE, *CHECKED_AREAS)]
CHANGE = "waits for a change"
JUMPS = (1_000, 20_000, 200_000, 5_000_000, 250_000_000)  # ns by which time may move on; the last exceeds every wait
OLD = 3  # how many values back a load may see


class Network(Protocol):
    """The part of `network.SimulatedNetwork` that the memory uses: words under way, and checks of accesses to them."""

    flying: dict[int, Any]
    sources: dict[int, int]

    def check_read(self, at: int) -> None: ...

    def check_write(self, at: int) -> None: ...

    def read_coded(self, at: int) -> int: ...

    def read_bells(self, at: int) -> int: ...

    def wants(self, rank: int) -> bool: ...


class Event(NamedTuple):
    """An event of the story of a run."""

    step: int
    actor: str
    where: str
    what: str
    at: int
    old: int
    new: int


class Memory(Clocks):
    """All words of a cluster."""

    def __init__(self, regions: Regions, sched: Scheduler) -> None:
        super().__init__()
        self.regions, self.sched = regions, sched
        self.end = FIRST + SPAN * regions.shape.world  # the end of all addresses
        self.network: Network
        self.reach: Reach | None = None  # given if ranks are on GPUs
        self.states: list[State] = []  # the state of each rank, which mem.load at its address reads
        self.value: dict[int, int] = {}
        self.skips_same: set[int] = set()  # actors whose releases of an unchanged value are ignored
        self.history: dict[int, list[Release]] = {}  # only where loads may see old values
        self.oldest: dict[tuple[int, int], int] = {}  # (actor, word): the oldest value that the actor may still see
        self.returned: dict[int, int] = {}  # words of return rows written in this call -> the writing rank
        self.full: set[int] = set()  # words of ring rows that are put and not freed
        self.local: set[int] = set()  # words that only one actor uses; accesses to them are no switch points
        self.holders: dict[int, int] = {}  # the actor that holds each lock
        self.delays = False
        self.now = 0
        self.story: list[Event] | None = None
        self.released_at: Callable[[int, int, int], None] = lambda at, old, new: None

    # ---- order

    @property
    def me(self) -> int:
        actor = self.sched.current
        return 0 if actor is None else actor.number

    @property
    def rank(self) -> int:
        actor = self.sched.current
        return 0 if actor is None else actor.rank

    def name(self, at: int) -> str:
        return self.regions.name(at)

    def actor(self, number: int) -> str:
        return self.sched.actors[number].name

    # ---- plain data

    def read(self, at: int) -> int:
        """Read a word plainly, with checks."""
        me = self.me
        if self.reach is not None:
            self.reach.read(self.actor(me), me, at)
        self.check_read(at)
        if self.network.flying:
            self.network.check_read(at)
        self.note_read(at)
        kind = self.regions.place(at).kind
        self.check_mapped(at)
        if kind == RING and at not in self.full:
            raise RingError(f"{self.actor(me)} reads {self.name(at)}, which is freed")
        if kind == OUT_OF_BOUNDS:
            raise OutOfBounds(f"{self.actor(me)} reads {self.name(at)}")
        return self.value.get(at, 0)

    def check_mapped(self, at: int) -> None:
        """Raise unless this rank may use memory into which MPI puts: its own, or that of a stream to its node.

        Of what MPI puts at another rank of the node, the engine reads only streams, and only once this rank has read
        the stream's words whole.
        """
        if not self.regions.mapped(at, self.rank):
            owner = self.regions.place(at).rank
            raise Race(f"{self.actor(self.me)} uses {self.name(at)}, which only rank {owner} may read")

    def check_write(self, at: int) -> None:
        """Raise unless this actor may write at this address now, by a store or a put."""
        place = self.regions.place(at)
        if place.kind == RETURNS:
            before = self.returned.get(at)
            if before is not None:
                raise SecondWriter(
                    f"rank {self.rank} writes {self.name(at)}, which rank {before} has written in this call"
                )
            self.returned[at] = self.rank
        elif place.kind == RING:
            if at in self.full:
                raise RingError(f"{self.actor(self.me)} rewrites {self.name(at)}, which is not freed")
            self.full.add(at)
        self.own(at)
        super().check_write(at)

    def own(self, at: int) -> None:
        """Raise unless this rank is the only rank that may write the word."""
        place = self.regions.place(at)
        if place.kind == OUT_OF_BOUNDS:
            raise OutOfBounds(f"{self.actor(self.me)} writes {self.name(at)}")
        if place.writer >= 0 and place.writer != self.rank:
            raise SecondWriter(f"rank {self.rank} writes {self.name(at)}, whose writer is rank {place.writer}")

    def load(self, at: int) -> int:
        if at & PRIVATE_BITS == PRIVATE_BITS and FIRST <= at < self.end:
            area = at >> AREA_BITS & AREA_MASK
            if area == STATE:
                return self.states[(at - FIRST) >> 40].load((at & (AREA - 1)) >> 3)
            if area in FREE_AREAS:
                return self.value.get(at, 0)
        elif (kind := self.regions.place(at).kind) == CODED:
            return self.network.read_coded(at)
        elif kind == BELL:
            return self.network.read_bells(at)
        return self.read(at)

    def store(self, at: int, value: int) -> None:
        if at & PRIVATE_BITS == PRIVATE_BITS and FIRST <= at < self.end:
            area = at >> AREA_BITS & AREA_MASK
            if area == STATE:
                self.states[(at - FIRST) >> 40].store((at & (AREA - 1)) >> 3, value)
                return
            if self.network.sources:
                self.network.check_write(at)
            if area in FREE_AREAS:
                self.value[at] = value
                return
        me = self.me
        if self.reach is not None:
            self.reach.write(self.actor(me), me, at)
        self.check_write(at)
        self.check_mapped(at)
        if self.network.flying or self.network.sources:
            self.network.check_write(at)
        if self.story is not None:
            self.note("store", at, self.value.get(at, 0), value)
        self.value[at] = value
        self.note_write(at)
        if self.released.pop(at, None) is not None:  # an actor may wait for this word
            self.changed(at)

    def fresh_return(self, at: int) -> int:
        """Read a word of a return row, which must have been written in this call."""
        if at not in self.returned:
            raise WrongResult(f"rank {self.rank} combines {self.name(at)}, which no rank has written in this call")
        return self.read(at)

    def copy_row(self, dst: int, src: int, nbytes: int) -> None:
        for at in range(0, nbytes, WORD):
            self.store(dst + at, self.load(src + at))

    # ---- atomics

    def state_of(self, at: int) -> tuple[State, int] | None:
        """(the state to which an address belongs, the word's index in it), or None."""
        if at & PRIVATE_BITS == PRIVATE_BITS and at >> AREA_BITS & AREA_MASK == STATE and FIRST <= at < self.end:
            return self.states[(at - FIRST) >> 40], (at & (AREA - 1)) >> 3
        return None

    def latest(self, at: int) -> int:
        """The word's latest value, even if an actor may not see it yet."""
        word = self.state_of(at)
        return self.value.get(at, 0) if word is None else list.__getitem__(*word)

    def forget_order(self, at: int) -> None:
        """Forget the releases of a word of a state, which is written plainly."""
        self.released.pop(at, None)
        if self.history.pop(at, None) is not None:
            for actor in range(len(self.clocks)):
                self.oldest.pop((actor, at), None)

    def load_acquire(self, at: int) -> int:
        word = self.state_of(at)
        if word is not None and not word[0].shared:
            return word[0].load(word[1])
        if at not in self.local:
            self.sched.switch(LOAD, at)
        actor = self.sched.me
        me = actor.number
        if self.reach is not None:
            self.reach.read(actor.name, me, at)
        self._check_acquire(at, "acquires")
        release = self._visible(at, me) if self.delays and at in self.history else self.released.get(at)
        value = self.latest(at)
        if release is not None:
            self.join(release.clock)
            value = release.value
        actor.seen[at] = value
        return value

    def _visible(self, at: int, me: int) -> Release:
        """One of the word's latest releases, but none older than what the actor knows of or has seen."""
        history, mine = self.history[at], self.clocks[me]
        last = len(history) - 1
        low = max(self.oldest.get((me, at), 0), last - OLD)
        for i in range(last, low, -1):
            if mine[history[i].actor] >= history[i].time:
                low = i
                break
        back = self.sched.strategy.choose(last - low + 1, "old value") if last > low else 0
        self.oldest[me, at] = last - back
        return history[last - back]

    def store_release(self, at: int, value: int) -> None:
        word = self.state_of(at)
        if word is not None and not word[0].shared:
            word[0].store(word[1], value)
            return
        if self.skips_same and self.me in self.skips_same and self.value.get(at, 0) == value:
            return
        if at not in self.local:
            self.sched.switch(STORE, at)
        if at & PRIVATE_BITS != PRIVATE_BITS:
            self.own(at)
            if self.reach is not None:
                self.reach.write(self.actor(self.me), self.me, at)
            if self.network.sources:
                self.network.check_write(at)
        self.holders.pop(at, None)
        self._publish(at, value)

    def _publish(self, at: int, value: int) -> None:
        me = self.me
        old = self.latest(at)
        mine = self.clocks[me]
        word = self.state_of(at)
        if word is None and self.regions.place(at).kind == OUT_OF_BOUNDS:
            raise OutOfBounds(f"{self.actor(me)} writes {self.name(at)}")
        if word is None:
            self.check_plain(at, "releases")
            self.value[at] = value
            self.writes.pop(at, None)
        else:
            word[0].touch(word[1], True)
            State.store(*word, value)
        release = self.note_release(at, value)
        if self.delays and (at & PRIVATE_BITS != PRIVATE_BITS or at >> AREA_BITS & AREA_MASK == STATE):
            if at not in self.history:
                self.history[at] = [Release(old, (0,) * len(mine), me, 0)]
            self.history[at].append(release)
        self.tick()
        if self.story is not None and at & PRIVATE_BITS != PRIVATE_BITS:
            self.note("release", at, old, value)
        if old != value:
            self.changed(at)
        self.released_at(at, old, value)

    def fetch_add(self, at: int, value: int) -> int:
        word = self.state_of(at)
        if word is not None and (not word[0].shared or word[1] in word[0].times):
            return word[0].add(word[1], value)
        if at not in self.local:
            self.sched.switch(UPDATE, at)
        before = self.released.get(at)
        if before is not None:
            self.join(before.clock)
        old = self.latest(at)
        self._publish(at, old + value)
        return old

    def compare_exchange(self, at: int, expected: int, value: int) -> bool:
        word = self.state_of(at)
        if word is not None and not word[0].shared:
            if word[0].load(word[1]) != expected:
                return False
            word[0].store(word[1], value)
            return True
        if at not in self.local:
            self.sched.switch(UPDATE, at)
        held, me = self.latest(at), self.me
        self._check_acquire(at, "exchanges")
        if at in self.history:  # the actor has then read the latest value
            self.oldest[me, at] = len(self.history[at]) - 1
        if held != expected:
            if at >> AREA_BITS & AREA_MASK == LOCK:
                self.sched.me.locked_out = at, held
            else:  # the actor waits for this word only when it has no other work
                self.sched.me.seen[at] = held
            return False
        before = self.released.get(at)
        if before is not None:
            self.join(before.clock)
        if at in self.local:
            self.value[at] = value
        else:
            self._publish(at, value)
        if word is None:
            self.holders[at] = me
        return True

    def _check_acquire(self, at: int, does: str) -> None:
        """Raise unless this actor may read a word atomically."""
        word = self.state_of(at)
        if word is not None:
            word[0].touch(word[1], False)
            return
        if self.regions.place(at).kind == OUT_OF_BOUNDS:
            raise OutOfBounds(f"{self.actor(self.me)} {does} {self.name(at)}")
        self.check_acquire(at, does)

    def changed(self, at: int) -> None:
        """Wake the actors that wait for a word."""
        for actor in self.sched.actors:
            if not actor.enabled and at in actor.seen:
                self.sched.wake(actor)

    # ---- other functions that steps call

    def idle(self) -> None:
        """Let an actor that has nothing to do wait until a word that it has read since its last wait changes."""
        actor = self.sched.me
        stale = any(self.latest(at) != value for at, value in actor.seen.items())
        if stale or (actor.sweeping and self.network.wants(actor.rank)):
            self.sched.switch("idle")
        else:
            self.sched.wait(CHANGE, cut=actor.sweeping)
        actor.seen.clear()

    def wait_for_lock(self) -> None:
        """Let an actor that found a lock taken wait for the lock's word alone, in the middle of its step."""
        actor = self.sched.me
        assert actor.locked_out is not None
        (at, held), actor.locked_out = actor.locked_out, None
        if self.value.get(at, 0) != held:
            self.sched.switch("idle")
            return
        self.sched.wait_for({at: held}, "waits for a lock")

    def clock(self) -> int:
        """Move time on by one of JUMPS, which differ so much that any timed wait may end now or not. Returns the
        time."""
        jump = self.sched.strategy.choose(len(JUMPS), "time") if self.sched.current is not None else 0
        self.now += JUMPS[jump]
        return self.now

    def words(self, at: int, n: int) -> list[int]:
        return [self.value.get(at + WORD * i, 0) for i in range(n)]

    def floats(self, at: int, n: int) -> list[int]:
        """Read `n` combine weights. The engine counts four bytes for each; here they are integers."""
        return [self.value.get(at + 4 * i, 0) for i in range(n)]

    def weight_at(self, at: int, i: int) -> int:
        return self.value.get(at + 4 * i, 0)

    def set_weight(self, at: int, i: int, weight: int) -> None:
        self.value[at + 4 * i] = weight

    def functions(self) -> dict[str, Any]:
        """The functions that replace those of `primitives.memory`: the methods that have their names."""
        names = [name for name, body in vars(memory).items() if callable(body)]
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def note(self, what: str, at: int, old: int, new: int) -> None:
        assert self.story is not None
        self.story.append(Event(self.sched.steps, self.sched.me.name, where_from(), what, at, old, new))

    def free_rows(self, owner: int, source: int, first: int, end: int, ring: int) -> None:
        """Note that `owner` has given credit for the ring rows first..end of `source`."""
        for row in range(first, end):
            words = self.regions.ring_slot(owner, source, row % ring)
            self.full.difference_update(words)
            if self.reach is not None:
                self.full.difference_update(map(self.regions.mirrored, words))

    def forget_returns(self, rank: int) -> None:
        """Note that a call of `rank` begins, in which its return rows are written again."""
        for at in [at for at in self.returned if self.regions.place(at).rank == rank]:
            del self.returned[at]
