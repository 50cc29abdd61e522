"""MPI's one-sided calls between the ranks, as weak as the standard has them.

A put is cut into words; each travels alone, is read from its source late, and lands in any order, some before others
that were put earlier, until a flush, which waits for all that is left. Until then its source must not be written, nor
its target read or put again. Only a coded word may be read while it is being put, by who holds the wire's lock: it may
then read as anything, and what was put before it is known to have happened once both its halves have landed.
Source of the semantics: MPI 4.1, chapter 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..primitives import wire
from .places import FIRST, WIRE, private, put_target
from .regions import CODED, WORD
from .scheduler import FLUSH, LAND, POLL, PUT, Actor
from .violation import Race, Unbounded, WrongSide

if TYPE_CHECKING:
    from .memory_model import Clock, Memory

GARBAGE = 1000  # further than a word moves at once, and not so far that a loop up to it does not end
MOST_WORDS = 3200  # unflushed at once, by one rank to another


@dataclass(frozen=True)
class Put:
    """One call of MPI_Put, by a wire: who made it, and what its actor knew to have happened."""

    wire: int
    number: int
    origin: int
    peer: int
    actor: int
    clock: Clock


@dataclass(frozen=True)
class Piece:
    """A word on its way, or landed and not flushed."""

    put: Put
    target: int
    source: int


class Network:
    """All puts that are not flushed.

    attention: words land at a rank only after it, or its pacing thread, has called into MPI since they were put.
    """

    def __init__(self, memory: Memory, attention: bool = False) -> None:
        self.memory, self.sched = memory, memory.sched
        self.attention = attention
        memory.network = self
        self.count = 0
        self.flying: dict[int, Piece] = {}  # not flushed, by target
        self.moving: dict[int, Piece] = {}  # of these, not landed and free to land
        self.waiting: dict[int, Piece] = {}  # of these, not landed until the target calls into MPI
        self.sources: dict[int, int] = {}  # how many pieces are read from a word
        self.halves: dict[int, Put] = {}  # what landed last in each half of a coded word
        self.told: dict[int, Clock] = {}  # by actor: what such words have told it since it last synced
        self.actor: Actor | None = None

    def add_actor(self) -> None:
        """Words travel by themselves."""
        self.actor = self.sched.add("network", -1, self.segment, daemon=True)
        self.actor.enabled = False

    # ---- what `wire` does

    def put(self, address: int, peer: int, at: int, source: int, nbytes: int) -> None:
        memory = self.memory
        self.check_caller(address)
        self.sched.switch(PUT, address)
        if nbytes <= 0 or nbytes % WORD:
            raise Unbounded(f"rank {memory.rank} puts {nbytes} bytes")
        self.count += 1
        put = Put(address, self.count, memory.rank, peer, memory.me, memory.clocks[memory.me])
        if memory.story is not None:
            memory.tell(f"put {nbytes // WORD} words", self.target(peer, at), 0, 0)
        for offset in range(0, nbytes, WORD):
            self._send(Piece(put, self.target(peer, at) + offset, source + offset))
        if sum(p.put.wire == address and p.put.peer == peer for p in self.flying.values()) > MOST_WORDS:
            raise Unbounded(f"rank {memory.rank} has too much under way to rank {peer}")
        memory.tick()

    def target(self, peer: int, at: int) -> int:
        """The number of what a put to `peer` writes first."""
        return put_target(peer, at)

    def _send(self, piece: Piece) -> None:
        memory, coded = self.memory, self.memory.regions.place(piece.target).kind == CODED
        if coded:
            memory.own(piece.target)
        else:
            memory.check_write(piece.target)
        self.check_write(piece.target)  # two unflushed puts of one word could land reversed
        if piece.source >= FIRST:
            memory.load(piece.source)
            self.sources[piece.source] = self.sources.get(piece.source, 0) + 1
        self.flying[piece.target] = piece
        self._go(piece)

    def _go(self, piece: Piece) -> None:
        """A piece is on its way, or waits for its target to call into MPI."""
        busy = self.attention and not any(a.rank == piece.put.peer and a.flushing >= 0 for a in self.sched.actors)
        (self.waiting if busy else self.moving)[piece.target] = piece
        if busy:
            self._attract(piece.put.peer)
        else:
            self._wake()

    def _attract(self, rank: int) -> None:
        """What waits for a rank to call into MPI makes its idle actors look again."""
        for actor in self.sched.actors:
            if actor.rank == rank and not actor.enabled:
                self.sched.wake(actor)

    def wants(self, rank: int) -> bool:
        """Does something wait for a rank to call into MPI?"""
        return any(piece.put.peer == rank for piece in self.waiting.values())

    def _wake(self) -> None:
        if self.actor is not None:
            self.actor.enabled = bool(self.moving)

    def flush(self, address: int, peer: int) -> None:
        """Waits until all that this rank has put to `peer` has landed; what it does from now on comes after that."""
        memory = self.memory
        self.check_caller(address)
        self.sched.switch(FLUSH, address)
        rank = memory.rank
        self._attend(rank)
        while any(p.put.origin == rank and p.put.peer == peer for q in (self.moving, self.waiting) for p in q.values()):
            actor = self.sched.me
            actor.flushing, before, actor.seen = peer, actor.seen, {self.key(rank): 0}
            self.sched.wait(f"flushes its puts to rank {peer}")
            actor.seen = before
        self.sched.me.flushing = -1
        self._settle(address, peer)

    def key(self, rank: int) -> int:
        """What stands, among the words that an actor waits for, for the end of what a rank has under way."""
        return -1 - rank

    def _settle(self, address: int, peer: int) -> None:
        """All that was put to `peer` by a wire is there, and its sources may be written again."""
        memory = self.memory
        memory.tick()
        me, mine = memory.me, memory.clocks[memory.me]
        for piece in [p for p in self.flying.values() if p.put.wire == address and p.put.peer == peer]:
            del self.flying[piece.target]
            self._release_source(piece)
            if self.memory.regions.place(piece.target).kind != CODED:
                memory.writes[piece.target] = me, mine[me]
                memory.reads.pop(piece.target, None)

    def _release_source(self, piece: Piece) -> None:
        """A piece's source may be written again: its reading comes before what this actor does from now on."""
        memory = self.memory
        if piece.source < FIRST:
            return
        left = self.sources[piece.source] - 1
        if left:
            self.sources[piece.source] = left
        else:
            del self.sources[piece.source]
        me = memory.me
        readers = memory.reads.get(piece.source, ())
        memory.reads[piece.source] = (*(r for r in readers if r[0] != me), (me, memory.clocks[me][me]))

    def sync(self, address: int) -> None:
        """What the coded words have told this actor is visible to it."""
        self.check_caller(address)
        if (told := self.told.pop(self.memory.me, None)) is not None:
            self.memory.join(told)

    def progress(self, address: int) -> None:
        self.check_caller(address)
        self.sched.switch(POLL, address)
        self.memory.store(address + WORD * wire.LAST, self.memory.clock())
        self._attend(self.memory.rank)

    def _attend(self, rank: int) -> None:
        """A rank is in MPI: what was put to it before may land."""
        for target, piece in list(self.waiting.items()):
            if piece.put.peer == rank:
                self.moving[target] = self.waiting.pop(target)
        self._wake()

    # ---- how words travel

    def segment(self) -> bool:
        """The network's work: some words land."""
        choose = self.sched.strategy.choose
        pieces = list(self.moving.values())
        if not pieces:
            assert self.actor is not None
            self.actor.enabled = False
            self.sched.switch(LAND)
            return True
        first = pieces[choose(len(pieces), "piece")]
        some = choose(3, "pieces")
        if some == 1:
            self.land(first)
        else:
            for piece in pieces:
                if some == 0 or piece.put is first.put:
                    self.land(piece)
        self._wake()
        self.sched.switch(LAND)
        return True

    def land(self, piece: Piece) -> None:
        memory = self.memory
        del self.moving[piece.target]
        old = memory.value.get(piece.target, 0)
        new = memory.value.get(piece.source, 0)
        memory.value[piece.target] = new
        coded = memory.regions.place(piece.target).kind == CODED
        if coded and new != old:  # from a word that is put again as it was, nobody learns anything
            self.halves[piece.target] = piece.put
            if memory.story is not None:
                memory.tell("lands", piece.target, old, new)
        memory.changed(piece.target)
        if not any(p.put.origin == piece.put.origin for p in self.moving.values()):
            memory.changed(self.key(piece.put.origin))  # whoever flushes

    # ---- what others may do meanwhile

    def check_caller(self, address: int) -> None:
        """Whether the actor that calls MPI holds its rank's lock."""
        memory = self.memory
        if address != private(memory.rank, WIRE):
            raise Race(f"{self.sched.me.name} uses the wire of another rank")
        if memory.reach is not None and memory.me not in memory.reach.hosts:
            raise WrongSide(f"{self.sched.me.name} calls MPI, which runs on the host")
        held = memory.value.get(address + WORD * wire.LOCK, 0)
        if not held or memory.holders.get(address) != memory.me:
            raise Race(
                f"{self.sched.me.name} calls MPI while another actor of its rank may: it has not the wire's lock"
            )

    def check_read(self, at: int) -> None:
        piece = self.flying.get(at)
        if piece is not None:
            name = self.memory.name(at)
            raise Race(f"{self.sched.me.name} reads {name}, which rank {piece.put.origin} put and has not flushed")

    def check_write(self, at: int) -> None:
        if self.sources.get(at):
            raise Race(f"{self.sched.me.name} writes {self.memory.name(at)}, which it still puts from")
        if at in self.flying:
            raise Race(f"{self.sched.me.name} writes {self.memory.name(at)}, which was put and is not flushed")

    def read_coded(self, at: int) -> int:
        """Half of a word as it reads now. After the second half the older put of what both show is known: halves that
        agree are of one put, or of two that said the same. The next sync makes that visible.
        """
        memory = self.memory
        self.check_caller(private(memory.rank, WIRE))
        self.sched.switch(POLL, at)
        value, other = memory.value.get(at, 0), at ^ WORD
        if other < at and at in self.halves and other in self.halves:
            self._tell(min(self.halves[at], self.halves[other], key=lambda put: put.number))
        if at in self.moving or at in self.waiting:
            value += GARBAGE * self.sched.strategy.choose(2, "torn")
        self.sched.me.seen[at] = value  # what was read: garbage makes it look again, even where the same value lands
        return value

    def _tell(self, put: Put) -> None:
        """An actor has read a word that was put after all that its origin knew by then."""
        me = self.memory.me
        before = self.told.get(me)
        self.told[me] = put.clock if before is None else tuple(map(max, before, put.clock))
