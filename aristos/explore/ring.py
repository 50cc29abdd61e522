"""The descriptor ring alone: blocks of every rank post puts, its MPI caller serves them, consumers check what comes.

Each block has a stream of rows of its own to one peer: it waits for credit and a place to stage a row in, stages it,
and posts its put together with the word that tells of it. A consumer a rank reads the rows told of, and posts credit.
It refuses to compute: a row is a number that only its place in its stream has.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..engine import descriptors, outbox
from ..engine import fields as f
from ..engine.layout import PairLayout, StateLayout, word_from
from ..primitives import memory, wire
from . import places
from .cases import Asked, Case
from .machine import PATIENT, waits
from .memory_model import Memory
from .network import Network
from .places import private
from .regions import WORD, Regions
from .replaced import replaced
from .scheduler import Scheduler, Strategy
from .state import State
from .violation import WrongResult

STREAMS = ((f.TAIL, f.CREDIT), (f.RETURN_TAIL, f.ANNOUNCED))  # (word that tells of rows, word that gives credit)
BATCH = 4


@dataclass(frozen=True)
class RingCase(Case):
    """rows: of a stream's ring at its target; workers: blocks a rank, each with a stream; slots: descriptors."""

    slots: int = 2
    staged: int = 1  # places a block stages rows in
    messages: int = 4  # rows of a stream

    def describe(self) -> str:
        """In a few words."""
        flags = "".join(f", {name}" for name in ("attention", "delays") if getattr(self, name))
        return (
            f"{self.ranks} ranks, {self.workers} blocks each, {self.slots} descriptors, rings of {self.rows},"
            f" {self.staged} staged, {self.messages} rows a block{flags}"
        )


def draw(seed: int, asked: Asked) -> RingCase:
    """A case from a seed."""
    rng = random.Random(seed)
    ranks, ring = asked.ranks, asked.rows or rng.choice((1, 2, 3, 4))
    case = RingCase(
        ranks=ranks,
        rows=ring,
        placement=tuple(range(ranks)),
        max_tokens=1,
        workers=rng.randint(1, 2 * (ranks - 1)),
        node_of=tuple(range(ranks)),
        attention=rng.random() < 0.5,
        delays=rng.random() < 0.5,
        slots=rng.choice((1, 2, 3, 4)),
        staged=rng.randint(1, ring),
        messages=rng.randint(1, 7),
    )
    return replace(case, **dict(asked.fixed))


def number(origin: int, block: int, n: int) -> int:
    """What a row holds."""
    return (origin * 64 + block) * 4096 + n + 1


class Device:
    """One rank: its blocks, its caller, and the consumer of what others put here."""

    def __init__(self, machine: RingMachine, me: int) -> None:
        self.machine, self.case, self.me = machine, machine.ring, me
        case, shape = self.case, self.case.shape
        tables = StateLayout(shape, 1, BATCH)
        self.st = State(tables.words, private(me, places.STATE))
        self.job: list[int] = [0] * (f.JOB_WORDS + len(case.placement) + case.ranks + 1)
        places.fill(shape, case.nodes, me, self.st, tables.starts, private(me, places.WIRE))
        PairLayout.of(shape).fill(self.job)
        tables.fill(self.job)
        self.job[f.RANK], self.job[f.WORLD], self.job[f.FAR] = me, case.ranks, case.ranks - 1
        self.job[f.WIRE], self.job[f.STRIDE] = private(me, places.WIRE), shape.stride
        self.job[f.RING_ROWS] = case.rows
        self.ring = private(me, places.DESCRIPTORS)
        self.served = 0
        self.sent = [0] * case.workers
        self.tickets: list[list[int]] = [[] for _ in range(case.workers)]
        self.read: dict[tuple[int, int], int] = {}  # (source, its block) -> rows read

    def add_actors(self) -> None:
        add = self.machine.sched.add
        for block in range(self.case.workers):
            add(f"rank {self.me} block {block}", self.me, partial(self.post, block))
        add(f"rank {self.me} consumer", self.me, self.consume)
        add(f"rank {self.me} caller", self.me, self.call, daemon=True)

    def target(self, block: int) -> tuple[int, tuple[int, int]]:
        """(peer, stream) of a block."""
        return (self.me + 1 + block // 2) % self.case.ranks, STREAMS[block % 2]

    def place(self, block: int, n: int) -> int:
        """Where row n of a block lies in the region of its rank: the ring for even blocks, the index for odd ones."""
        if block % 2:
            return self.job[f.P_INDEX] + WORD * (n % self.case.rows)
        return self.job[f.P_RING] + self.job[f.STRIDE] * (n % self.case.rows)

    # ---- a block

    def post(self, block: int) -> bool:
        """Stage a row and post it, if there are credit, a place and a slot."""
        n = self.sent[block]
        if n == self.case.messages:
            return False
        peer, (tail, credit) = self.target(block)
        job, st = self.job, self.st
        freed = memory.load_acquire(word_from(job, st, peer, credit))
        staged = self.tickets[block]
        full = len(staged) == self.case.staged and not descriptors.landed(self.ring, staged[0])
        if n - freed >= self.case.rows or full:
            memory.yield_core()
            return True
        del staged[: len(staged) - self.case.staged + 1]
        source = st[job[f.T_TO] + peer] + self.place(block, n % self.case.staged)
        memory.store(source, number(self.me, block, n))
        at = st[job[f.T_AT] + peer] + self.place(block, n)
        while (ticket := self._post(peer, at, source, WORD, tail, n + 1)) < 0:
            memory.yield_core()
        staged.append(ticket)
        self.sent[block] = n + 1
        return True

    def _post(self, *asked: int) -> int:
        return descriptors.post(self.ring, self.case.slots, *asked)

    # ---- the consumer

    def consume(self) -> bool:
        """Read what is told of, give credit."""
        waiting = False
        moved = False
        for source in self.machine.devices:
            for block in range(self.case.workers):
                peer, (tail, credit) = source.target(block)
                if peer != self.me or source.me == self.me:
                    continue
                done = self.read.get((source.me, block), 0)
                waiting = waiting or done < self.case.messages
                told = memory.load_acquire(word_from(self.job, self.st, source.me, tail))
                if told > done:
                    self._read(source.me, block, done, told)
                    while self._post(source.me, 0, 0, 0, credit, told) < 0:
                        memory.yield_core()
                    moved = True
        if waiting and not moved:
            memory.yield_core()
        return waiting

    def _read(self, source: int, block: int, done: int, told: int) -> None:
        at = self.st[self.job[f.T_FROM] + source]
        for n in range(done, told):
            found = memory.load(at + self.place(block, n))
            if found != number(source, block, n):
                raise WrongResult(f"rank {self.me} reads {found} for row {n} of block {block} of rank {source}")
        if block % 2 == 0:
            self.machine.memory.free_rows(self.me, source, done, told, self.case.rows)
        self.read[source, block] = told

    # ---- the rank's MPI caller

    def call(self) -> bool:
        """Serve the ring, listen to what others have put."""
        job, st = self.job, self.st
        self.machine.sched.me.sweeping = True  # what waits for a rank to call into MPI calls it
        if not wire.take(job[f.WIRE]):
            memory.yield_core()
            return True
        before = self.served
        self.served = descriptors.serve(job, st, self.ring, self.case.slots, before)
        moved = outbox.listen(job, st) or self.served != before
        wire.leave(job[f.WIRE])
        if not moved:
            memory.yield_core()
        return True


class RingMachine:
    """A case of the ring, ready to run once."""

    def __init__(self, case: RingCase, strategy: Strategy) -> None:
        self.ring = case
        steps = case.ranks * case.workers * (case.messages + 1)
        self.sched = Scheduler(strategy, PATIENT * steps)
        self.memory = Memory(Regions.of(case.shape, case.nodes), self.sched)
        self.memory.delays = case.delays
        self.network = Network(self.memory, case.attention)
        self.network.add_actor()
        self.devices = [Device(self, me) for me in range(case.ranks)]
        for device in self.devices:
            device.add_actors()
        self.memory.begin(len(self.sched.actors))
        self.memory.states = [device.st for device in self.devices]
        self.sched.describe = self.describe

    def run(self) -> None:
        """All rows of all streams. Raises Violation."""
        names: dict[tuple[Any, str], Any] = {(memory, name): body for name, body in self.memory.functions().items()}
        names |= {(memory, "yield_core"): self.memory.idle}
        names |= {(wire, name): getattr(self.network, name) for name in ("put", "flush", "sync", "progress")}
        with replaced(names):
            self.sched.run()
        for device in self.devices:
            if any(n != self.ring.messages for n in device.read.values()):
                raise WrongResult(f"rank {device.me} has read {device.read} of {self.ring.messages} rows each")

    def describe(self) -> str:
        """What everybody waits for."""
        return "\n".join(f"  {a.name}: {waits(self.memory, a)}" for a in self.sched.actors if not a.done)
