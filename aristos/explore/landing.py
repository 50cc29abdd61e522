"""The network of the search over states, in which data lands only when that makes a difference.

Data that is put and not flushed may not be read, and its source may not be written (network.py checks both). So the
moment when the data lands makes no difference, and here it lands with the flush. A coded word lands with its flush at
the latest. If the target polls the word before the flush, the word may or may not have landed: the search tries both.
Readers refuse a torn word like a word that has not arrived (network.py tests that), so both halves land together here.
Words that only a timeout reads are not put at all. Nor are bells, because here each poll reads all words. Which rank is
inside MPI is not modelled.
"""

from __future__ import annotations

from collections.abc import Callable

from ..engine import words
from .copies import Copies
from .network import PutWord, SimulatedNetwork
from .regions import BELL, CODED, WORD
from .scheduler import FLUSH, LAND, POLL

ORDERED = (words.ANNOUNCED, words.TAIL, words.CREDIT, words.RETURN_TAIL)
DICTS = ("flying", "moving", "sources", "halves", "learned")  # the state's fields, whose values never change in place


class Landing(SimulatedNetwork):
    """The network of a search. `moving` holds only coded words under way, by the address of their first half."""

    again: Callable[[], bool]  # whether the actor is being rebuilt; then it repeats its operations without waits

    def put(self, address: int, peer: int, at: int, source: int, nbytes: int) -> None:
        self.check_caller(address)
        self._post(address, peer, at, source, nbytes)

    def _send(self, put_word: PutWord) -> None:
        if self._carries(put_word.target):
            super()._send(put_word)

    def _carries(self, at: int) -> bool:
        """Whether words are put there in this search."""
        place = self.memory.regions.place(at)
        return place.kind != BELL and (place.kind != CODED or place.offset // (2 * WORD) in ORDERED)

    def _go(self, put_word: PutWord) -> None:
        if self._is_new(put_word.target, put_word.source) and put_word.target % (2 * WORD) == 0:
            self.moving[put_word.target] = put_word
            self.memory.changed(put_word.target)

    def _is_new(self, target: int, source: int) -> bool:
        """Whether a put changes a coded word."""
        value = self.memory.value
        return self._coded(target) and value.get(source, 0) != value.get(target, 0)

    def _coded(self, at: int) -> bool:
        return self.memory.regions.place(at).kind == CODED

    def flush(self, address: int, peer: int) -> None:
        """Land all words of this rank's puts to `peer`."""
        if self.under_way(peer) and not self.again():  # otherwise the flush changes nothing for other actors
            self.sched.switch(FLUSH, address)
        self.settle(address, peer)

    def settle(self, address: int, peer: int) -> None:
        self.check_caller(address)
        rank = self.memory.rank
        for put_word in [p for p in self.flying.values() if p.put.origin == rank and p.put.peer == peer]:
            if put_word.target in self.moving:
                self._land_word(put_word)
            elif not self._coded(put_word.target):
                self.memory.value[put_word.target] = self.memory.value.get(put_word.source, 0)
        self._settle(address, peer)

    def under_way(self, peer: int) -> bool:
        """Whether a word of this rank is under way to `peer`."""
        rank = self.memory.rank
        return any(p.put.origin == rank and p.put.peer == peer for p in self.moving.values())

    def progress(self, address: int) -> None:
        self.check_caller(address)

    def _land_word(self, put_word: PutWord) -> None:
        memory, at = self.memory, put_word.target
        del self.moving[at]
        old = memory.value.get(at, 0)
        for half in (0, WORD):
            memory.value[at + half] = memory.value.get(put_word.source + half, 0)
            self.halves[at + half] = put_word.put
        if memory.story is not None:
            memory.note(LAND, at, old, memory.value[at])
        memory.changed(at)

    def read_coded(self, at: int) -> int:
        memory = self.memory
        memory.check_mapped(at)
        if not self._carries(at):
            return memory.value.get(at, 0)
        if at % (2 * WORD) == 0:
            self.sched.switch(POLL, at)
            if at in self.moving and self.sched.strategy.choose(2, "landed"):
                self._land_word(self.moving[at])
            self.sched.me.seen[at] = memory.value.get(at, 0)
        elif at in self.halves:
            self._learn(self.halves[at])
        return memory.value.get(at, 0)


class LandingCopies(Copies):
    """Copies that land with their flush: before it, no actor reads the copied data or writes its source."""

    def _go(self, put_word: PutWord) -> None:
        pass

    def flush(self, address: int, peer: int) -> None:
        self.settle(address, peer)

    def settle(self, address: int, peer: int) -> None:
        self.check_caller(address)
        value = self.memory.value
        for put_word in self.flying.values():
            if put_word.put.wire == address and put_word.put.peer == peer:
                value[put_word.target] = value.get(put_word.source, 0)
        self._settle(address, peer)
