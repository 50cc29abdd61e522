"""MPI's one-sided calls between the actors of actors.py, as weak as the standard has them.

A put is cut into words; each travels alone, is read from its source late, and lands in any order, some before others
that were put earlier, until a flush lands all that is left. Until then its source must not be written, nor its target
read or put again. Only a coded word may be read while it is being put, by who holds the wire's lock: it may then read
as anything at all, and what was put before it is known to have happened once both its halves have landed. It refuses
to model time: a flush never waits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from places import FAR, FIRST, put_target, where

from aristos import memory, wire

if TYPE_CHECKING:
    from actors import Machine

WORD = 8


class Race(AssertionError):
    """Two accesses to one word that nothing orders, or a second writer."""


@dataclass
class Put:
    """One call of MPI_Put: who made it, what its actor knew to have happened, and its words that are not flushed."""

    number: int
    origin: int
    peer: int
    clock: list[int]
    words: list[Piece] = field(default_factory=list)


@dataclass
class Piece:
    """A word on its way, or landed and not flushed."""

    put: Put
    target: int
    source: int
    landed: bool = False


class Network:
    """All puts that are not flushed."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.random = random.Random(0)
        self.wires: list[np.ndarray] = []  # each rank's, where its lock is
        self.puts: list[Put] = []
        self.count = 0
        self.flying: dict[int, Piece] = {}  # by target
        self.sources: dict[int, int] = {}  # how many pieces are read from a word
        self.halves: dict[int, Put] = {}  # what landed last in each half of a coded word
        self.told: dict[int, list[list[int]]] = {}  # by actor: what coded words have told it, but for a sync

    # ---- what `wire` does

    def put(self, address: int, peer: int, at: int, source: int, nbytes: int) -> None:
        m = self.machine
        self.check_caller(address)
        assert nbytes > 0, "a put of nothing"
        assert nbytes % WORD == 0
        self.count += 1
        put = Put(self.count, m.rank, int(peer), list(m.clocks[m.actor]))
        for offset in range(0, int(nbytes), WORD):
            piece = Piece(put, put_target(put.peer, int(at)) + offset, int(source) + offset)
            if self.is_coded(piece.target):
                m.own(m.cell(piece.target), piece.target)
                self.check_write(piece.target)
            else:
                m.check_write(m.cell(piece.target), piece.target)
            if piece.source >= FIRST:
                m.read(piece.source)
                self.sources[piece.source] = self.sources.get(piece.source, 0) + 1
            self.flying[piece.target] = piece
            put.words.append(piece)
        self.puts.append(put)
        m.clocks[m.actor][m.actor] += 1

    def flush(self, address: int, peer: int) -> None:
        """Everything that this rank has put to `peer` lands; what this actor does from now on comes after it."""
        m = self.machine
        self.check_caller(address)
        mine = m.clocks[m.actor]
        mine[m.actor] += 1
        for put in [p for p in self.puts if p.origin == m.rank and p.peer == peer]:
            for piece in put.words:
                self.land(piece)
                del self.flying[piece.target]
                if piece.source >= FIRST:
                    self.sources[piece.source] -= 1
                    m.cell(piece.source).readers[m.actor] = mine[m.actor]
                cell = m.cell(piece.target)
                if not self.is_coded(piece.target):
                    cell.writer, cell.readers = (m.actor, mine[m.actor]), {}
            self.puts.remove(put)

    def progress(self, address: int) -> None:
        self.check_caller(address)
        memory.store(address + WORD * wire.LAST, memory.clock())
        self.move(0.5, self.machine.rank)

    def sync(self, address: int) -> None:
        """What is told by the words that this actor has read is visible to it."""
        self.check_caller(address)
        mine = self.machine.clocks[self.machine.actor]
        for clock in self.told.pop(self.machine.actor, []):
            mine[:] = map(max, mine, clock)

    # ---- how words travel

    def move(self, chance: float, rank: int | None = None) -> None:
        """Some words land: of any puts, or of those from and to a rank."""
        for put in self.puts:
            if rank is None or rank in (put.origin, put.peer):
                for piece in put.words:
                    if not piece.landed and self.random.random() < chance:
                        self.land(piece)

    def land(self, piece: Piece) -> None:
        if piece.landed:
            return
        piece.landed = True
        cell, source = self.machine.cell(piece.target), piece.source
        cell.value = self.machine.cell(source).value if source >= FIRST else memory.load(source)
        if self.is_coded(piece.target):
            self.halves[piece.target] = piece.put

    # ---- what others may do meanwhile

    def check_caller(self, address: int) -> None:
        """Whether the actor that calls MPI holds its rank's lock."""
        mine: Any = self.wires[self.machine.rank]
        assert address == mine.ctypes.data, "the wire of another rank"
        if mine[wire.LOCK] != 1:
            raise Race(f"rank {self.machine.rank} calls MPI without the wire's lock")

    def check_read(self, address: int) -> None:
        piece = self.flying.get(address)
        if piece is not None:
            where = self.machine.where(address)
            raise Race(f"rank {self.machine.rank} reads {where}, which rank {piece.put.origin} has not flushed")

    def check_write(self, address: int) -> None:
        where = self.machine.where
        if self.sources.get(address):
            raise Race(f"rank {self.machine.rank} writes {where(address)}, which it still puts from")
        if address in self.flying:
            raise Race(f"rank {self.machine.rank} writes {where(address)}, which was put and is not flushed")

    def is_coded(self, address: int) -> bool:
        """Whether a word is half of a coded one in a far window."""
        if address < FIRST:
            return False
        m = self.machine
        _, part, offset = where(address)
        return part == FAR and offset >= m.returns and (offset - m.returns) % m.layout.far_bytes >= m.layout.coded

    def read_coded(self, address: int) -> int:
        """Half of a word as it reads now. After the second half the older put of what both show is known: halves that
        agree are of one put, or of two that said the same. It is known here with the next sync.
        """
        m = self.machine
        self.check_caller(self.wires[m.rank].ctypes.data)
        value, other = m.cell(address).value, address ^ WORD
        if other < address and address in self.halves and other in self.halves:
            put = min(self.halves[address], self.halves[other], key=lambda p: p.number)
            self.told.setdefault(m.actor, []).append(put.clock)
        piece = self.flying.get(address)
        if piece is not None and not piece.landed:
            return self.random.choice((value, self.random.getrandbits(62)))
        return value
