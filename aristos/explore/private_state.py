"""Save and restore the state that only one rank, or only its proxy, reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .rank import Rank

PLAIN = ("epoch", "version", "stage", "call", "slices", "left", "counts")  # fields that are never changed in place


@dataclass(frozen=True)
class Host:
    """State that only a rank's proxy reads and writes."""

    sides: tuple[list[int], ...]

    @classmethod
    def of(cls, rank: Rank) -> Host:
        return cls(tuple(side[:] for side in rank.sides))

    def restore(self, rank: Rank) -> None:
        for side, kept in zip(rank.sides, self.sides):
            side[:] = kept


@dataclass(frozen=True)
class Private:
    """State that only one rank reads and writes, without the state of its proxy."""

    st: list[int]
    job: list[int]
    plain: tuple[Any, ...]
    output: dict[int, list[int]]
    outputs: tuple[dict[int, list[int]], ...]

    @classmethod
    def of(cls, rank: Rank) -> Private:
        plain = tuple(getattr(rank, name) for name in PLAIN)
        return cls(rank.st[:], rank.job[:], plain, dict(rank.output), tuple(rank.outputs))

    def restore(self, rank: Rank) -> None:
        rank.st[:] = self.st
        rank.job[:] = self.job
        for name, value in zip(PLAIN, self.plain):
            setattr(rank, name, value)
        rank.output, rank.outputs = dict(self.output), list(self.outputs)
