"""Which memory an actor can reach if ranks are on GPUs.

A block reaches the local windows, the mirror and the outboxes, which lie in mapped memory. A block never calls MPI. A
proxy reaches the MPI window, the words that it has accepted, and the outboxes, in which it writes only its own words.
Only copies write a mirror.
"""

from __future__ import annotations

from ..engine import words
from .places import ACCEPTED, FIRST, LOCAL, MIRROR, OUTBOX, PART_BITS, PRIVATE, REMOTE
from .regions import WORD, Regions
from .violation import WrongSide

OF_BLOCKS, OF_HOSTS = (LOCAL, OUTBOX, MIRROR, PRIVATE), (REMOTE, OUTBOX, ACCEPTED, PRIVATE)
WRITTEN_BY_HOSTS = ("arrived words", "coded words to put")  # parts of an outbox that only proxies write


class Reach:
    """The rules if ranks are on GPUs. hosts: the numbers of actors that are host threads; all other actors are
    blocks."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self.hosts: set[int] = set()

    def read(self, name: str, actor: int, at: int) -> None:
        """Raise unless an actor may read a word."""
        part = at - FIRST >> PART_BITS & PRIVATE
        if part not in (OF_HOSTS if actor in self.hosts else OF_BLOCKS):
            raise WrongSide(f"{name} reads {self.regions.name(at)}, which it cannot reach")

    def write(self, name: str, actor: int, at: int) -> None:
        """Raise unless an actor may write a word itself, without a put or copy."""
        place, host = self.regions.place(at), actor in self.hosts
        if place.part in (LOCAL, PRIVATE):
            allowed = not host or place.part == PRIVATE
        elif place.part == OUTBOX:
            # both sides may write poison words
            poison = place.region == "words" and place.offset == WORD * words.POISON
            allowed = host == (place.region in WRITTEN_BY_HOSTS) or poison
        else:
            allowed = host and place.part == ACCEPTED
        if not allowed:
            raise WrongSide(f"{name} writes {self.regions.name(at)}, which it may not write itself")
