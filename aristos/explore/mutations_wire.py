"""Deliberate bugs in what an announcement says of its call. The explorer must find each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine import arrivals, layout, words
from ..primitives import memory
from .mutation import Put, mutation


def not_compared(put: Put, word: int, field: Callable[[int], int]) -> None:
    """A reader takes what a source announces for its own word of the job."""
    real = arrivals.read_announcement

    def read_announcement(job: Any, st: Any, source: int) -> bool:
        if memory.load_acquire(layout.word_from(job, st, source, words.ANNOUNCED)) < job[words.EPOCH]:
            return False
        theirs = list(job)
        theirs[word] = memory.load(field(layout.announcement_from(job, st, source, job[words.EPOCH])))
        return real(theirs, st, source)

    put(arrivals, "read_announcement", read_announcement)


@mutation("mode-not-compared", kind="object")
def mode_not_compared(put: Put) -> None:
    """A layer's call and an exchange's are taken for calls of one kind."""
    not_compared(put, words.MODE, words.announced_mode)


@mutation("placement-not-compared", kind="placement")
def placement_not_compared(put: Put) -> None:
    """Ranks with different placements serve each other's rows."""
    not_compared(put, words.PLACEMENT, words.announced_placement)


@mutation("version-of-the-reader")
def version_of_the_reader(put: Put) -> None:
    """A rank takes the version of its own weights for the announced one."""
    real = arrivals.read_announcement

    def read_announcement(job: Any, st: Any, source: int) -> bool:
        read = real(job, st, source)
        if read:
            st[words.version_of(job, source)] = job[words.VERSION]
        return read

    put(arrivals, "read_announcement", read_announcement)
