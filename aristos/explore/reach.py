"""Who reaches what where ranks are on cards: blocks the card's memory and what is mapped, the host's threads their own.

A block has near windows, the mirror and the outboxes, which lie in mapped memory; it never calls MPI. A proxy has the
MPI window, the words that it believes and the outboxes, of which it writes only what is its own; a mirror is written by
copies alone.
"""

from __future__ import annotations

from ..engine import words
from .places import BELIEVED, FAR, FIRST, MIRROR, NEAR, OUTBOX, PART_BITS, PRIVATE
from .regions import WORD, Regions
from .violation import WrongSide

OF_BLOCKS, OF_HOSTS = (NEAR, OUTBOX, MIRROR, PRIVATE), (FAR, OUTBOX, BELIEVED, PRIVATE)
WRITTEN_BY_HOSTS = ("arrived words", "coded words to put")  # of an outbox


class Reach:
    """Of a cluster whose ranks are on cards. hosts: the numbers of actors that are the host's; others are blocks."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self.hosts: set[int] = set()

    def read(self, name: str, actor: int, at: int) -> None:
        """Whether an actor may read a word."""
        part = at - FIRST >> PART_BITS & PRIVATE
        if part not in (OF_HOSTS if actor in self.hosts else OF_BLOCKS):
            raise WrongSide(f"{name} reads {self.regions.name(at)}, which it cannot reach")

    def write(self, name: str, actor: int, at: int) -> None:
        """Whether an actor may write a word itself, by no put or copy."""
        place, host = self.regions.place(at), actor in self.hosts
        if place.part in (NEAR, PRIVATE):
            allowed = not host or place.part == PRIVATE
        elif place.part == OUTBOX:
            poison = place.region == "words" and place.offset == WORD * words.POISON  # whichever side fails says so
            allowed = host == (place.region in WRITTEN_BY_HOSTS) or poison
        else:
            allowed = host and place.part == BELIEVED
        if not allowed:
            raise WrongSide(f"{name} writes {self.regions.name(at)}, which is not its side's to write")
