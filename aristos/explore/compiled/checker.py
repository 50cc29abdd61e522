"""The check of a log: the explorer's vector clocks say which accesses are not ordered.

Actors are the threads of all ranks, and networks. There is one network for each rank and remote peer. It reads the data
of the rank's puts and writes the data at the peer. A flush makes the network's writes known to the thread that called
the flush. If MPI puts a word as {value, complement}, the put counts as a release of this value. A thread that reads the
value knows of the put after the thread's next sync.
With two levels a rank may use only those parts of a neighbour's window that `regions.py` names. The values that it
would see elsewhere are undefined.

First, NumPy drops accesses that cannot be part of a race: accesses to words that one actor uses alone, or that no actor
writes, and repetitions of an access by the same actor since the actor's last atomic operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engine import words
from ...engine.layout import CODED_BYTES
from .. import places
from ..clocks import Clock, Clocks
from ..places import OUTBOX, REMOTE, STATE, WIRE, private
from ..regions import BELL, CODED
from ..violation import Race
from . import log
from .copies import where
from .log import ACQUIRE, ADD, EXCHANGE, FLUSH, KIND_BITS, PUT, READ, RELEASE, SYNC, WORD, WORKER, WRITE
from .recorded import PEER_BITS
from .space import Space

MOST = 20  # the most races that are kept; no two of them have the same two places
UNORDERED = (words.FAILED,)  # words of the state that are set once, without the lock. Late readers fail later


@dataclass(frozen=True)
class Found:
    """A race. here, there: where the steps make its two accesses. `there` is empty if one access is wrong by itself."""

    message: str
    here: str
    there: str

    def __str__(self) -> str:
        return f"{self.message}: {self.here}" + (f", {self.there}" if self.there else "")


@dataclass
class Accesses:
    """Plain accesses, one word each. All arrays are [n].

    entry: the access's index in the log. actor: the actor's number. number: the word's address in the common space.
    writes: whether the access writes.
    """

    entry: np.ndarray
    actor: np.ndarray
    number: np.ndarray
    writes: np.ndarray

    def take(self, which: np.ndarray) -> Accesses:
        return Accesses(self.entry[which], self.actor[which], self.number[which], self.writes[which])


class Checker(Clocks):
    """Replays a log with vector clocks. races: those found so far."""

    me = 0

    def __init__(self, entries: np.ndarray, space: Space) -> None:
        super().__init__()
        self.space, self.entries = space, entries
        self.kinds = entries[:, log.CODE] & ((1 << KIND_BITS) - 1)
        self.numbers = space.numbers(entries[:, log.RANK], entries[:, log.AT])
        self.races: list[Found] = []
        self._actors()
        self._plain = self._accesses()

    # ---- actors

    def _actors(self) -> None:
        """Number the threads, then the networks."""
        who = self.entries[:, [log.RANK, log.THREAD]]
        threads, self.thread = np.unique(who, axis=0, return_inverse=True)
        self.thread = self.thread.reshape(-1)
        self.names = [f"rank {rank}" for rank, _ in threads.tolist()]
        for i in np.flatnonzero(self.kinds == WORKER).tolist():
            self.names[self.thread[i]] = f"rank {self.entries[i, log.RANK]} worker {self.entries[i, log.A]}"
        self.network: dict[tuple[int, int], int] = {}
        for rank in range(self.space.shape.world):
            for peer in self.space.nodes.remote(rank):
                self.network[rank, peer] = len(self.names)
                self.names.append(f"the network from rank {rank} to rank {peer}")
        self.begin(len(self.names))

    def actor(self, number: int) -> str:
        return self.names[number]

    def name(self, at: int) -> str:
        return self.space.name(at)

    # ---- plain accesses, by NumPy

    def _puts(self) -> list[tuple[int, int, int, int, int]]:
        """Each put as (entry, actor, source, target, bytes)."""
        found = []
        for i in np.flatnonzero(self.kinds == PUT).tolist():
            to = int(self.entries[i, log.B])
            peer, at = to & ((1 << PEER_BITS) - 1), to >> PEER_BITS
            network = self.network[int(self.entries[i, log.RANK]), peer]
            target = self.space.put_target(peer, at)
            found.append((i, network, int(self.numbers[i]), target, int(self.entries[i, log.A])))
        return found

    def _accesses(self) -> Accesses:
        """All plain accesses that may be half of a race, in the order of the log."""
        plain = np.flatnonzero(self.kinds <= WRITE)
        self.puts = self._puts()
        moved = [(i, network, source, nbytes, 0) for i, network, source, _, nbytes in self.puts]
        moved += [
            (i, network, target, nbytes, 1)
            for i, network, _, target, nbytes in self.puts
            if self.space.put_kind(target) not in (CODED, BELL)
        ]
        more = np.array(moved, np.int64).reshape(-1, 5)
        entry = np.concatenate([plain, more[:, 0]])
        actor = np.concatenate([self.thread[plain], more[:, 1]])
        number = np.concatenate([self.numbers[plain], more[:, 2]])
        nbytes = np.concatenate([self.entries[plain, log.A], more[:, 3]])
        writes = np.concatenate([self.kinds[plain] == WRITE, more[:, 4] != 0])
        first = number // WORD
        counts: Any = np.where(nbytes > 0, (number + nbytes + WORD - 1) // WORD - first, 0)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        spread = np.repeat(np.arange(len(entry)), counts)
        every = Accesses(entry[spread], actor[spread], (first[spread] + within) * WORD, writes[spread])
        keep = ~self.space.in_area(every.number, WIRE)  # some words of the wire are hints: read without the lock
        for word in UNORDERED:
            for rank in range(self.space.shape.world):
                keep &= every.number != private(rank, STATE, WORD * word)
        keep &= ~self._coded(every.number)
        for rank in range(self.space.shape.world):  # a bell may read as anything
            bells = self.space.bells(rank)
            keep &= (every.number < bells.start) | (every.number >= bells.stop)
        every = every.take(keep)
        every = every.take(self._shared(every))
        order = np.lexsort((every.writes, every.entry))
        return self._once(every.take(order))

    def _coded(self, numbers: np.ndarray) -> np.ndarray:
        """Which words MPI puts as {value, complement}."""
        space = self.space
        found = np.zeros(len(numbers), bool)
        for rank in range(space.shape.world):
            for source in space.nodes.remote(rank):
                first = space.regions.region(rank, source)
                found |= (numbers >= first) & (numbers < first + CODED_BYTES)
        return found

    def _shared(self, every: Accesses) -> np.ndarray:
        """Which accesses are to shared words: several actors use the word, and at least one of them writes it."""
        atomic = np.flatnonzero((self.kinds >= ACQUIRE) & (self.kinds <= EXCHANGE))
        number = np.concatenate([every.number, self.numbers[atomic]])
        actor = np.concatenate([every.actor, self.thread[atomic]])
        writes = np.concatenate([every.writes, self.kinds[atomic] != ACQUIRE])
        _, which = np.unique(number, return_inverse=True)
        which = which.reshape(-1)
        least, most = np.full(which.max(initial=0) + 1, 1 << 60), np.full(which.max(initial=0) + 1, -1)
        wrote = np.zeros(which.max(initial=0) + 1, bool)
        np.minimum.at(least, which, actor)
        np.maximum.at(most, which, actor)
        np.logical_or.at(wrote, which, writes)
        return ((least != most) & wrote)[which[: len(every.number)]]

    def _once(self, every: Accesses) -> Accesses:
        """Drop repetitions. Of equal accesses of an actor between two of its atomic operations, the first is kept."""
        events = np.flatnonzero(self.kinds >= ACQUIRE)
        segment = np.zeros(len(every.entry), np.int64)
        for actor in range(len(self.names)):
            mine = every.actor == actor
            own = events[self.thread[events] == actor]
            if actor in self.network.values():
                own = np.array([i for i, network, *_ in self.puts if network == actor], np.int64)
            segment[mine] = np.searchsorted(own, every.entry[mine], "right")
        keys = np.stack([every.number, every.actor, segment, every.writes.astype(np.int64)])
        _, first = np.unique(keys, axis=1, return_index=True)
        return every.take(np.sort(first))

    # ---- all events in order

    def find_races(self) -> list[Found]:
        """Check the log. Returns the races found."""
        self._coded_values: dict[int, int] = {}
        self._history: dict[int, list[tuple[int, Clock]]] = {}
        self._pending: dict[int, Clock] = {}
        coded = self._coded(self.numbers) & (self.kinds == READ)
        kept = self.kinds >= ACQUIRE
        kept |= coded | (self.space.in_part(self.numbers, OUTBOX) & (self.kinds == WRITE))
        puts = {i: put for i, *put in self.puts}
        self._neighbours()
        plain = self._plain
        at, end = 0, len(plain.entry)
        entries, actors = plain.entry.tolist(), plain.actor.tolist()
        numbers, writes = plain.number.tolist(), plain.writes.tolist()
        for i in np.flatnonzero(kept).tolist():
            while at < end and entries[at] < i:
                self._access(entries[at], actors[at], numbers[at], writes[at])
                at += 1
            self.me = int(self.thread[i])
            self._event(i, coded[i], puts.get(i))
        while at < end:
            self._access(entries[at], actors[at], numbers[at], writes[at])
            at += 1
        return self.races

    def _neighbours(self) -> None:
        """Find accesses in which a rank uses a part of a neighbour's window that only the neighbour may use."""
        used = np.flatnonzero(self.space.in_part(self.numbers, REMOTE) & (self.kinds <= EXCHANGE))
        ranks, numbers = self.entries[used, log.RANK], self.numbers[used]
        used = used[self.space.ranks(numbers) != ranks]
        _, first = np.unique(self.entries[used][:, [log.RANK, log.AT]], axis=0, return_index=True)
        for i in used[np.sort(first)].tolist():
            rank, number = int(self.entries[i, log.RANK]), int(self.numbers[i])
            if len(self.races) < MOST and not self.space.regions.mapped(number, rank):
                owner, here = places.where(number)[0], self._site(i)
                text = f"rank {rank} uses {self.name(number)}, which only rank {owner} may use"
                if here not in {each.here for each in self.races if not each.there}:
                    self.races.append(Found(text, here, ""))

    def _access(self, entry: int, actor: int, number: int, writes: bool) -> None:
        self.me = actor
        if writes:
            self._try(entry, number, self.check_write, number)
            self.note_write(number)
            self.released.pop(number, None)
        else:
            self._try(entry, number, self.check_read, number)
            self.note_read(number)

    def _event(self, i: int, coded: bool, put: list[int] | None) -> None:
        kind, number = int(self.kinds[i]), int(self.numbers[i])
        if coded:
            value = int(self.entries[i, log.B])
            known = next((clock for v, clock in reversed(self._history.get(number, [])) if v == value), None)
            if known is not None:
                before = self._pending.get(self.me, known)
                self._pending[self.me] = tuple(map(max, before, known))
        elif kind == WRITE:
            self._coded_values[number] = int(self.entries[i, log.B])
        elif ACQUIRE <= kind <= EXCHANGE:
            if kind != RELEASE:
                self._acquire(i, number)
            if kind in (RELEASE, ADD) or (kind == EXCHANGE and self.entries[i, log.RESULT]):
                self._release(i, number)
        elif kind == SYNC:
            if self.me in self._pending:
                self.join(self._pending.pop(self.me))
        elif kind == FLUSH:
            network = self.network[int(self.entries[i, log.RANK]), int(self.entries[i, log.A])]
            self.join(self.clocks[network])
        elif put is not None:
            self._put(*put)

    def _acquire(self, i: int, number: int) -> None:
        self._try(i, number, self.check_acquire, number, "acquires")
        release = self.released.get(number)
        if release is not None:
            self.join(release.clock)

    def _release(self, i: int, number: int) -> None:
        self._try(i, number, self.check_plain, number, "releases")
        self.writes.pop(number, None)
        self.note_release(number, 0)
        self.tick()

    def _put(self, network: int, source: int, target: int, nbytes: int) -> None:
        clock = self.clocks[self.me]
        if self.space.put_kind(target) == CODED:
            for word in range(0, nbytes, WORD):
                if source + word in self._coded_values:
                    value = self._coded_values[source + word]
                    self._history.setdefault(target + word, []).append((value, clock))
        self.tick()
        self.me = network
        self.tick()
        self.join(clock)

    def _try(self, entry: int, number: int, check: Any, *arguments: Any) -> None:
        if len(self.races) >= MOST:
            return
        try:
            check(*arguments)
        except Race as race:
            reads = check in (self.check_read, self.check_acquire)
            found = Found(str(race), self._site(entry), self._other(entry, number, reads))
            if (found.here, found.there) not in {(each.here, each.there) for each in self.races}:
                self.races.append(found)

    def _site(self, entry: int) -> str:
        return where(int(self.entries[entry, log.CODE]) >> KIND_BITS)

    def _other(self, entry: int, number: int, reads: bool) -> str:
        """The step of the latest earlier access to a word by another actor. reads: whether this access is a read."""
        plain = self._plain
        before = plain.entry[(plain.number == number) & (plain.actor != self.me) & (plain.writes | (not reads))]
        first = RELEASE if reads else ACQUIRE
        atomic = np.flatnonzero((self.numbers == number) & (self.kinds >= first) & (self.kinds <= EXCHANGE))
        atomic = atomic[self.thread[atomic] != self.me]
        earlier = [int(each[each < entry][-1]) for each in (before, atomic) if (each < entry).any()]
        return self._site(max(earlier)) if earlier else "?"
