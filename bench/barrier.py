"""A barrier for the ranks of a job on one machine, in a file that all of them map.

Each rank counts its arrivals in a cell of its own and polls the others' cells. So all ranks leave the barrier within a
microsecond, whichever library their peer uses to communicate. Calls that follow the barrier start together, so that
their times can be compared.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

CELL = 64  # bytes: one cache line for each rank
POLLS = 2000  # polls before the core is offered to other processes


class Barrier:
    """A barrier in a file. A call of the object returns once every rank has called its own as often as this rank."""

    def __init__(self, path: Path, rank: int, world: int) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), CELL * world)
        self._words = memoryview(self._memory).cast("q")
        self._mine, self._others = rank * CELL // 8, [r * CELL // 8 for r in range(world) if r != rank]
        self._count = 0

    @staticmethod
    def create(path: Path, world: int) -> None:
        """Make the file, before any rank opens it."""
        path.write_bytes(bytes(CELL * world))

    def __call__(self) -> None:
        self._count += 1
        count, words, polls = self._count, self._words, 0
        words[self._mine] = count
        for other in self._others:
            while words[other] < count:
                polls += 1
                if polls > POLLS:
                    os.sched_yield()
