"""Which ranks hold which expert, the slots of the experts' copies, and what a layer reads from a plan of EP groups."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernel_cache.errors import quoted

from .config import MOST_EXPERTS, whole
from .errors import InputError


class Placement:
    """A map expert -> ranks. Slots number the copies of experts by (rank, id): one rank's slots are contiguous.

    If an expert has several copies, a source rank uses the copy with number (source rank mod copies).

    Parameters
    ----------
    ranks : sequence of E entries, array [E], or None
        For each expert the rank that holds it, or a sequence of different ranks that hold copies. None: the ranks get
        consecutive experts, equally many; if that is impossible, the first ranks get one more each.
    experts : int
        E, the number of experts.
    world : int
        W, the number of ranks of the group.

    Attributes
    ----------
    ranks : array [E], int64
        The first rank of each expert.
    copies : list of E lists of int
        All ranks of each expert.
    held : list of W ints
        The number of experts of each rank.
    slots : int
        The number of copies of all experts, the sum of `held`.
    start : array [W + 1], int64
        The first slot of each rank, then `slots`.
    slot_of : array [E], int64
        The slot of each expert's first copy.
    version : int
        A fingerprint of the placement. It must be equal on all ranks in every call.

    Raises
    ------
    InputError
        There is not one entry for each expert, a rank is outside 0..W-1, or an entry names a rank twice.

    Examples
    --------
    >>> import aristos
    >>> placement = aristos.placement.Placement([0, 0, [0, 1], 1], experts=4, world=2)
    >>> placement.mine(1), placement.held
    ([2, 3], [3, 2])
    """

    def __init__(self, ranks: Sequence[Any] | np.ndarray | None, experts: int, world: int) -> None:
        experts, world = (
            whole(name, value, MOST_EXPERTS, f"a positive int of at most {MOST_EXPERTS}")
            for name, value in (("experts", experts), ("world", world))
        )
        if ranks is None:
            held = np.array([len(part) for part in np.array_split(np.arange(experts), world)])
            self.ranks = np.repeat(np.arange(world), held)
            copies = [[int(rank)] for rank in self.ranks]
        elif _is_sequence(ranks) and any(_is_sequence(each) for each in ranks):
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
        digest = hashlib.blake2b(repr((copies, world)).encode(), digest_size=8).digest()
        self.version = int.from_bytes(digest, "little") >> 1  # a positive word
        self._slot, self._first, self._expert = slot, first, expert[order]

    @staticmethod
    def _checked(ranks: Any, experts: int, world: int) -> np.ndarray:
        try:
            array = np.asarray(ranks)
        except Exception as error:  # the conversion of a user's object may raise anything
            raise InputError(f"placement must be a sequence of {experts} ranks: {str(error)[:200]}") from error
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
    def _checked_copies(ranks: Sequence[Any] | np.ndarray, experts: int, world: int) -> list[list[int]]:
        if len(ranks) != experts:
            raise InputError(f"placement must have {experts} entries, one for each expert, got {len(ranks)}")
        copies = []
        for expert, each in enumerate(ranks):
            one = each[()] if isinstance(each, np.ndarray) and each.ndim == 0 else each
            several = list(one) if _is_sequence(one) else [one]
            integers = all(isinstance(rank, int | np.integer) and not isinstance(rank, bool) for rank in several)
            if not several or not integers or not all(0 <= rank < world for rank in several):
                raise InputError(
                    f"placement[{expert}] must be a rank in 0..{world - 1} or a list of them, got {quoted(each)}"
                )
            if len(set(several)) < len(several):
                raise InputError(f"placement[{expert}] must name each rank once at most, got {quoted(each)}")
            copies.append([int(rank) for rank in several])
        return copies

    def slots_for(self, source: int) -> np.ndarray:
        """For each expert, the slot of the copy to which a rank sends its tokens.

        Parameters
        ----------
        source : int
            The rank that sends.

        Returns
        -------
        array [E], int64
            A slot for each expert.
        """
        number = source % (self._first[1:] - self._first[:-1])
        return self._slot[self._first[:-1] + number]

    def mine(self, rank: int) -> list[int]:
        """Ids of the experts that a rank holds, in slot order.

        Parameters
        ----------
        rank : int
            A rank in 0..W-1.

        Returns
        -------
        list of int
            Ids of experts.

        Raises
        ------
        InputError
            A rank outside 0..W-1.
        """
        world = len(self.held)
        if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 0 <= rank < world:
            raise InputError(f"rank must be an int in 0..{world - 1}, got {quoted(rank)}")
        return [int(e) for e in self._expert[self.start[rank] : self.start[rank + 1]]]

    def expert_of(self, slot: int) -> int:
        """The expert whose copy has this slot.

        Parameters
        ----------
        slot : int
            A slot in 0..slots-1.

        Returns
        -------
        int
            The expert's id.
        """
        return int(self._expert[slot])

    def __str__(self) -> str:
        if self.slots == len(self.ranks):
            return str(self.ranks.tolist())
        return str(self.copies)


class Plan(ABC):
    """EP groups of the ranks, and a placement in each group: what a layer reads from an `aristos.planner.Plan`.

    groups: the ranks of each group, ascending. placement: for each group, {expert: the ranks that hold it}.
    """

    groups: list[list[int]]

    @property
    @abstractmethod
    def placement(self) -> list[dict[int, list[int]]]: ...

    @property
    def ranks(self) -> int:
        """The number of ranks in all groups."""
        return sum(len(members) for members in self.groups)

    @property
    def experts(self) -> int:
        """The number of experts, all of which every group holds."""
        return len(self.placement[0])


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)
