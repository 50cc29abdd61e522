"""A meeting of all ranks. Every reason to meet uses the same collective, so ranks with different reasons meet too.

With different collectives, MPI would match one rank's barrier with a part of another rank's exchange.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import MismatchError

CLOSES, ENDS, EXCHANGES, MEETS = "closes", "ends", "exchanges words", "meets"
KINDS = (CLOSES, ENDS, EXCHANGES, MEETS)
MOST_WORDS, TEXT_WORDS = 5, 12  # most words of an exchange, and words of the text that names the reason
NOTHING = np.empty(0, np.int64)  # words of a meeting without an exchange


class Meeting:
    """Exchanges kind, reason and words with all ranks of a communicator.

    kind: one of KINDS. what: the reason, for messages. words: [n] int64, n at most 5. request: the request of the
    collective, which has begun.
    """

    def __init__(self, comm: Any, kind: str, what: str, words: np.ndarray = NOTHING) -> None:
        self._what, self._count = what, words.size
        self._mine = np.zeros(1 + MOST_WORDS + TEXT_WORDS, np.int64)
        self._mine[0], self._mine[1 : 1 + words.size] = KINDS.index(kind), words
        text = what.encode()[: 8 * TEXT_WORDS]
        self._mine[1 + MOST_WORDS :].view(np.uint8)[: len(text)] = np.frombuffer(text, np.uint8)
        self._found = np.zeros((comm.Get_size(), self._mine.size), np.int64)
        self.request = comm.Iallgather(self._mine, self._found)

    def check(self, rank: int) -> None:
        """Raise MismatchError if another rank meets for another reason. rank: this rank. `request` must be complete."""
        for other in np.flatnonzero(self._found[:, 0] != self._mine[0]).tolist():
            theirs = self._found[other, 1 + MOST_WORDS :].tobytes().rstrip(b"\0").decode(errors="replace")
            raise MismatchError(
                f"rank {rank} waits for {self._what}, and rank {other} waits for {theirs}: the two have made different"
                " calls; call the same layers equally often on all ranks before they close the layers or end"
            )

    @property
    def words(self) -> np.ndarray:
        """[W, n]: every rank's words, in rank order."""
        return self._found[:, 1 : 1 + self._count]
