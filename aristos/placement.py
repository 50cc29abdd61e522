"""Which rank holds which expert, and the order of slots that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import InputError


class Placement:
    """An expert -> rank map. Slots number the experts by (rank, id), so that one rank's experts lie together.

    ranks: E entries, each a rank; None spreads the experts contiguously, the first ranks taking one more.
    """

    def __init__(self, ranks: Sequence[int] | np.ndarray | None, experts: int, world: int) -> None:
        if ranks is None:
            held = np.array([len(part) for part in np.array_split(np.arange(experts), world)])
            self.ranks = np.repeat(np.arange(world), held)
        else:
            self.ranks = self._checked(ranks, experts, world)
            held = np.bincount(self.ranks, minlength=world)
        self.held = [int(n) for n in held]
        order = np.argsort(self.ranks, kind="stable")
        self.slot_of = np.empty(experts, np.int64)
        self.slot_of[order] = np.arange(experts)
        self.start = np.concatenate([[0], np.cumsum(held)]).astype(np.int64)
        self._order = order

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

    def mine(self, rank: int) -> list[int]:
        """Ids of the experts that `rank` holds, in slot order."""
        return [int(e) for e in self._order[self.start[rank] : self.start[rank + 1]]]
