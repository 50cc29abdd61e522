"""Which ranks hold which expert, and the order of slots that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import InputError


class Placement:
    """A map expert -> ranks. Slots number the copies of experts by (rank, id): one rank's slots are contiguous.

    ranks: E entries, each a rank or a sequence of different ranks that hold copies; None spreads the experts
    contiguously, one more on each of the first ranks if they do not divide. Of several copies, each source rank uses
    number (source rank mod copies). Raises InputError.

    Attributes: ranks: [E] the first rank of each expert. copies: all ranks of each expert. held: the number of experts
    of each rank. slots: their sum. start: [W + 1] the first slot of each rank, then slots. slot_of: [E] the slot of
    each expert's first copy.
    """

    def __init__(self, ranks: Sequence[Any] | np.ndarray | None, experts: int, world: int) -> None:
        if ranks is None:
            held = np.array([len(part) for part in np.array_split(np.arange(experts), world)])
            self.ranks = np.repeat(np.arange(world), held)
            copies = [[int(rank)] for rank in self.ranks]
        elif isinstance(ranks, list | tuple) and any(isinstance(each, list | tuple) for each in ranks):
            copies = self._checked_copies(ranks, experts, world)
            self.ranks = np.array([each[0] for each in copies], np.int64)
        else:
            self.ranks = self._checked(ranks, experts, world)
            copies = [[int(rank)] for rank in self.ranks]
        owner = np.array([rank for each in copies for rank in each], np.int64)
        expert = np.repeat(np.arange(experts), [len(each) for each in copies])
        held = np.bincount(owner, minlength=world)
        order = np.lexsort((expert, owner))
        slot = np.empty(len(owner), np.int64)
        slot[order] = np.arange(len(owner))
        first = np.concatenate([[0], np.cumsum([len(each) for each in copies])])
        self.copies = copies
        self.held = [int(n) for n in held]
        self.slots = len(owner)
        self.start = np.concatenate([[0], np.cumsum(held)]).astype(np.int64)
        self.slot_of = slot[first[:-1]]
        self._slot, self._first, self._expert = slot, first, expert[order]

    @staticmethod
    def _checked(ranks: Any, experts: int, world: int) -> np.ndarray:
        try:
            array = np.asarray(ranks)
        except (TypeError, ValueError) as error:
            raise InputError(f"placement must be a sequence of {experts} ranks: {error}") from error
        if array.shape != (experts,) or array.dtype.kind not in "iu":
            raise InputError(
                f"placement must be {experts} integers (a rank for each expert),"
                f" got shape {list(array.shape)} of {array.dtype}"
            )
        wrong = np.flatnonzero((array < 0) | (array >= world))
        if wrong.size:
            raise InputError(
                f"placement[{wrong[0]}] must be a rank in 0..{world - 1}, got {array[wrong[0]]} for expert {wrong[0]}"
            )
        return array.astype(np.int64)

    @staticmethod
    def _checked_copies(ranks: Sequence[Any], experts: int, world: int) -> list[list[int]]:
        if len(ranks) != experts:
            raise InputError(f"placement must have {experts} entries, one for each expert, got {len(ranks)}")
        copies = []
        for expert, each in enumerate(ranks):
            several = list(each) if isinstance(each, list | tuple) else [each]
            whole = all(isinstance(rank, int | np.integer) and not isinstance(rank, bool) for rank in several)
            if not several or not whole or not all(0 <= rank < world for rank in several):
                raise InputError(f"placement[{expert}] must be a rank in 0..{world - 1} or several, got {each!r}")
            if len(set(several)) < len(several):
                raise InputError(f"placement[{expert}] names a rank twice: {each!r}")
            copies.append([int(rank) for rank in several])
        return copies

    def slots_for(self, source: int) -> np.ndarray:
        """[E] the slot of each expert's copy that rank `source` sends its tokens to."""
        number = source % (self._first[1:] - self._first[:-1])
        return self._slot[self._first[:-1] + number]

    def mine(self, rank: int) -> list[int]:
        """Ids of the experts that `rank` holds, in slot order."""
        return [int(e) for e in self._expert[self.start[rank] : self.start[rank + 1]]]

    def __str__(self) -> str:
        if self.slots == len(self.ranks):
            return str(self.ranks.tolist())
        return str(self.copies)
