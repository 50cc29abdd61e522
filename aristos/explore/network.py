"""MPI's one-sided calls between the ranks, with no more guarantees than the standard gives.

A put is cut into words. Each word is read from its source late, and words land in any order, even before words that
were put earlier. A flush waits for all words that have not landed. Until the flush the source must not be written, and
the target must be neither read nor put again. Only a coded word, which is put as {value, complement}, may be read while
it is being put, by the holder of the wire's lock. The value read may then be anything. Once both halves of a coded word
have landed, everything put before that word is known to have landed. A bell is put as one byte, which may be read
while it is being put. A reader of a bell learns nothing about other words.
Source of the semantics: MPI 4.1, chapter 12.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..primitives import wire
from .clocks import Clock
from .memory_model import Memory
from .places import FIRST, WIRE, private, put_target
from .regions import BELL, CODED, WORD
from .scheduler import FLUSH, LAND, POLL, PUT, Actor
from .violation import Race, Unbounded, WrongSide

GARBAGE = 1000  # added to a torn word; more than any word grows at once, but so little that a loop up to the sum ends
MOST_WORDS = 3200  # the most words unflushed at once from one rank to another


@dataclass(frozen=True)
class Put:
    """One call of MPI_Put: its origin, and the clock of its actor."""

    wire: int
    number: int
    origin: int
    peer: int
    actor: int
    clock: Clock


@dataclass(frozen=True)
class PutWord:
    """One word of a put until the put is flushed: its target, and the place of its value. A bell is one byte."""

    put: Put
    target: int
    source: int


class SimulatedNetwork:
    """All puts that are not flushed.

    attention: whether words land at a rank only after the rank or its progress thread has called into MPI since the
    put.
    """

    def __init__(self, memory: Memory, attention: bool = False) -> None:
        self.memory, self.sched = memory, memory.sched
        self.attention = attention
        memory.network = self
        self.count = 0
        self.flying: dict[int, PutWord] = {}  # words that are not flushed, by target
        self.moving: dict[int, PutWord] = {}  # the words of `flying` that may land
        self.waiting: dict[int, PutWord] = {}  # the words of `flying` that land once the target calls into MPI
        self.sources: dict[int, int] = {}  # for each source word: how many words under way take their value from it
        self.halves: dict[int, Put] = {}  # the put that landed last in each half of a coded word
        self.learned: dict[int, Clock] = {}  # actor -> the clock of the coded words read since its last sync
        self.actor: Actor | None = None

    def add_actor(self, name: str = "network") -> None:
        """Add the actor that lands words."""
        self.actor = self.sched.add(name, -1, self.segment, daemon=True)
        self.actor.enabled = False

    # ---- functions of `wire`

    def put(self, address: int, peer: int, at: int, source: int, nbytes: int) -> None:
        memory = self.memory
        self.check_caller(address)
        self.sched.switch(PUT, address)
        bell = memory.regions.place(self.target(peer, at)).kind == BELL
        if nbytes != 1 if bell else nbytes <= 0 or nbytes % WORD:
            raise Unbounded(f"rank {memory.rank} puts {nbytes} bytes, but a bell has one byte, and other data words")
        self._post(address, peer, at, source, nbytes)
        if sum(p.put.wire == address and p.put.peer == peer for p in self.flying.values()) > MOST_WORDS:
            raise Unbounded(f"rank {memory.rank} has more than {MOST_WORDS} words under way to rank {peer}")

    def _post(self, address: int, peer: int, at: int, source: int, nbytes: int) -> None:
        """Send the words of a put."""
        memory, target = self.memory, self.target(peer, at)
        self.count += 1
        put = Put(address, self.count, memory.rank, peer, memory.me, memory.clocks[memory.me])
        if memory.story is not None:
            memory.note(f"put {nbytes // WORD} words", target, 0, 0)
        for offset in range(0, nbytes, WORD):
            self._send(PutWord(put, target + offset, source + offset))
        memory.tick()

    def target(self, peer: int, at: int) -> int:
        """The address of the first word that a put to `peer` writes."""
        return put_target(peer, at)

    def _send(self, put_word: PutWord) -> None:
        memory, kind = self.memory, self.memory.regions.place(put_word.target).kind
        if kind in (CODED, BELL):
            memory.own(put_word.target)
        else:
            memory.check_write(put_word.target)
        self.check_write(put_word.target)  # two unflushed puts of one word could land reversed
        if put_word.source >= FIRST:
            memory.load(put_word.source)
            self.sources[put_word.source] = self.sources.get(put_word.source, 0) + 1
        self.flying[put_word.target] = put_word
        self._go(put_word)

    def _go(self, put_word: PutWord) -> None:
        """Send a word. With attention, the word waits until its target calls into MPI."""
        busy = self.attention and not any(a.rank == put_word.put.peer and a.flushing >= 0 for a in self.sched.actors)
        (self.waiting if busy else self.moving)[put_word.target] = put_word
        if busy:
            self._attract(put_word.put.peer)
        else:
            self._wake()

    def _attract(self, rank: int) -> None:
        """Wake a rank's idle actors, because words wait for the rank to call into MPI."""
        for actor in self.sched.actors:
            if actor.rank == rank and not actor.enabled:
                self.sched.wake(actor)

    def wants(self, rank: int) -> bool:
        """Whether words wait for a rank to call into MPI."""
        return any(put_word.put.peer == rank for put_word in self.waiting.values())

    def _wake(self) -> None:
        if self.actor is not None:
            self.actor.enabled = bool(self.moving)

    def flush(self, address: int, peer: int) -> None:
        """Wait until all puts of this rank to `peer` have landed. The rank's later actions come after these puts."""
        memory = self.memory
        self.check_caller(address)
        self.sched.switch(FLUSH, address)
        rank = memory.rank
        self._attend(rank)
        while any(p.put.origin == rank and p.put.peer == peer for q in (self.moving, self.waiting) for p in q.values()):
            self.sched.me.flushing = peer
            self.sched.wait_for({self.key(rank): 0}, f"flushes its puts to rank {peer}")
        self.sched.me.flushing = -1
        self._settle(address, peer)

    def key(self, rank: int) -> int:
        """The key under which an actor waits for the end of a rank's puts."""
        return -1 - rank

    def _settle(self, address: int, peer: int) -> None:
        """Note that all puts to `peer` over a wire have landed, so that their sources may be written again."""
        memory = self.memory
        memory.tick()
        me, mine = memory.me, memory.clocks[memory.me]
        for put_word in [p for p in self.flying.values() if p.put.wire == address and p.put.peer == peer]:
            del self.flying[put_word.target]
            self._release_source(put_word)
            if self.memory.regions.place(put_word.target).kind not in (CODED, BELL):
                memory.writes[put_word.target] = me, mine[me]
                memory.reads.pop(put_word.target, None)

    def _release_source(self, put_word: PutWord) -> None:
        """Allow writes to a word's source again: the source was read before this actor's later actions."""
        memory = self.memory
        if put_word.source < FIRST:
            return
        left = self.sources[put_word.source] - 1
        if left:
            self.sources[put_word.source] = left
        else:
            del self.sources[put_word.source]
        me = memory.me
        readers = memory.reads.get(put_word.source, ())
        memory.reads[put_word.source] = (*(r for r in readers if r[0] != me), (me, memory.clocks[me][me]))

    def sync(self, address: int) -> None:
        """Let this actor know of the puts of all coded words that it has read."""
        self.check_caller(address)
        if (clock := self.learned.pop(self.memory.me, None)) is not None:
            self.memory.join(clock)

    def progress(self, address: int) -> None:
        self.check_caller(address)
        self.sched.switch(POLL, address)
        self.memory.store(address + WORD * wire.LAST, self.memory.clock())
        self._attend(self.memory.rank)

    def _attend(self, rank: int) -> None:
        """Let earlier puts to a rank land, because the rank is inside MPI."""
        for target, put_word in list(self.waiting.items()):
            if put_word.put.peer == rank:
                self.moving[target] = self.waiting.pop(target)
        self._wake()

    # ---- how words travel

    def segment(self) -> bool:
        """Do the network's work: land some words."""
        choose = self.sched.strategy.choose
        put_words = list(self.moving.values())
        if not put_words:
            self._wake()
            self.sched.switch(LAND)
            return True
        first = put_words[choose(len(put_words), "word")]
        some = choose(3, "words")
        if some == 1:
            self.land(first)
        else:
            for put_word in put_words:
                if some == 0 or put_word.put is first.put:
                    self.land(put_word)
        self._wake()
        self.sched.switch(LAND)
        return True

    def land(self, put_word: PutWord) -> None:
        memory = self.memory
        del self.moving[put_word.target]
        if memory.regions.place(put_word.target).kind == BELL:
            self._land_bell(put_word)
            return
        old = memory.value.get(put_word.target, 0)
        new = memory.value.get(put_word.source, 0)
        memory.value[put_word.target] = new
        coded = memory.regions.place(put_word.target).kind == CODED
        if coded and new != old:  # readers learn nothing from a word that was put again unchanged
            self.halves[put_word.target] = put_word.put
            if memory.story is not None:
                memory.note("lands", put_word.target, old, new)
        self._landed(put_word, put_word.target)

    def _land_bell(self, put_word: PutWord) -> None:
        """Land a byte of a word that has bells of several ranks."""
        value, shift = self.memory.value, put_word.target % WORD * 8
        word = put_word.target - put_word.target % WORD
        old = value.get(word, 0)
        value[word] = old & ~(255 << shift) | (value.get(put_word.source, 0) & 255) << shift
        if self.memory.story is not None:
            self.memory.note("lands", put_word.target, old >> shift & 255, value[word] >> shift & 255)
        self._landed(put_word, word)

    def _landed(self, put_word: PutWord, word: int) -> None:
        """Wake the actors that wait for a word, or for the end of the puts of its origin."""
        self.memory.changed(word)
        if not any(p.put.origin == put_word.put.origin for p in self.moving.values()):
            self.memory.changed(self.key(put_word.put.origin))  # wakes actors that flush

    # ---- accesses while words are under way

    def check_caller(self, address: int) -> None:
        """Raise unless the actor that calls MPI holds its rank's wire lock."""
        memory = self.memory
        if address != private(memory.rank, WIRE):
            raise Race(f"{self.sched.me.name} uses the wire of another rank")
        if memory.reach is not None and memory.me not in memory.reach.hosts:
            raise WrongSide(f"{self.sched.me.name} calls MPI, which only the host may call")
        held = memory.value.get(address + WORD * wire.LOCK, 0)
        if not held or memory.holders.get(address) != memory.me:
            raise Race(
                f"{self.sched.me.name} calls MPI without the wire's lock: another actor of its rank may call MPI too"
            )

    def check_read(self, at: int) -> None:
        put_word = self.flying.get(at)
        if put_word is not None:
            name = self.memory.name(at)
            raise Race(f"{self.sched.me.name} reads {name}, which rank {put_word.put.origin} put and has not flushed")

    def check_write(self, at: int) -> None:
        if self.sources.get(at):
            raise Race(f"{self.sched.me.name} writes {self.memory.name(at)}, the source of an unflushed put")
        if at in self.flying:
            raise Race(f"{self.sched.me.name} writes {self.memory.name(at)}, which was put and is not flushed")

    def read_coded(self, at: int) -> int:
        """Read half of a coded word. Returns its present value.

        An actor that has read both halves knows of the older of their two puts after its next sync: halves that agree
        come from one put, or from two puts of equal values.
        """
        value, other = self._poll(at), at ^ WORD
        if other < at and at in self.halves and other in self.halves:
            self._learn(min(self.halves[at], self.halves[other], key=lambda put: put.number))
        if at in self.moving or at in self.waiting:
            value += GARBAGE * self.sched.strategy.choose(2, "torn")
        self.sched.me.seen[at] = value  # also garbage, so that the actor polls again even if an equal value lands
        return value

    def read_bells(self, at: int) -> int:
        """Read a word of bells. A bell that is under way may read as anything. The actor learns nothing."""
        value = self._poll(at)
        for i in range(WORD):
            if at + i in self.moving or at + i in self.waiting:
                value ^= self.sched.strategy.choose(2, "torn") << 8 * i
        self.sched.me.seen[at] = value
        return value

    def _poll(self, at: int) -> int:
        memory = self.memory
        self.check_caller(private(memory.rank, WIRE))
        memory.check_mapped(at)
        self.sched.switch(POLL, at)
        return memory.value.get(at, 0)

    def _learn(self, put: Put) -> None:
        """Let an actor that has read a word know all that the origin knew at the put."""
        me = self.memory.me
        before = self.learned.get(me)
        self.learned[me] = put.clock if before is None else tuple(map(max, before, put.clock))
