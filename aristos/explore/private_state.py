"""Save and restore the state that only one rank, or only its proxy, reads and writes."""

from __future__ import annotations

import hashlib
import marshal
from dataclasses import dataclass
from typing import Any

from ..engine import words
from .rank import Rank

PLAIN = ("epoch", "version", "stage", "call", "slices", "left", "counts")  # fields that are never changed in place


@dataclass(frozen=True)
class Host:
    """State that only a rank's proxy reads and writes."""

    sides: tuple[list[int], ...]

    @classmethod
    def from_rank(cls, rank: Rank) -> Host:
        return cls(tuple(side[:] for side in rank.sides))

    def restore(self, rank: Rank) -> None:
        for side, kept in zip(rank.sides, self.sides):
            side[:] = kept

    def digest(self) -> bytes:
        """A hash of the state from which the proxy continues, apart from statistics."""
        job, st, gpu, cs = self.sides
        counters = range(job[words.T_COUNTERS], job[words.T_COUNTERS] + words.COUNTER_WORDS)
        known = [job, [0 if i in counters else word for i, word in enumerate(st)], gpu, cs]
        return hashlib.blake2b(repr(known).encode()).digest()


@dataclass(frozen=True)
class Private:
    """State that only one rank reads and writes, without the state of its proxy."""

    st: list[int]
    job: list[int]
    plain: tuple[Any, ...]
    output: dict[int, list[int]]
    outputs: tuple[dict[int, list[int]], ...]

    @classmethod
    def from_rank(cls, rank: Rank) -> Private:
        plain = tuple(getattr(rank, name) for name in PLAIN)
        return cls(rank.st[:], rank.job[:], plain, dict(rank.output), tuple(rank.outputs))

    def restore(self, rank: Rank) -> None:
        rank.st[:] = self.st
        rank.job[:] = self.job
        for name, value in zip(PLAIN, self.plain):
            setattr(rank, name, value)
        rank.output, rank.outputs = dict(self.output), list(self.outputs)

    def digest(self) -> bytes:
        """A hash of the state from which the rank continues."""
        st, job = self.st[:], self.job
        counters, command = job[words.T_COUNTERS], job[words.T_COMMAND]
        st[counters : counters + words.COUNTER_WORDS] = [0] * words.COUNTER_WORDS
        st[command : command + 2 * job[words.T_COMMAND_STEP]] = [0] * (2 * job[words.T_COMMAND_STEP])
        st[job[words.T_PEER_WAIT] : words.peer_wait(job, job[words.WORLD])] = [0] * job[words.WORLD]
        st[words.PROGRESS] = st[words.IDLE_SWEEPS] = st[words.HEARTBEAT] = 0
        plain = [v for v in self.plain if isinstance(v, (int, str))]
        outputs = [sorted(o.items()) for o in (*self.outputs, self.output)]
        return hashlib.blake2b(marshal.dumps((st, plain, outputs), 2), digest_size=12).digest()
