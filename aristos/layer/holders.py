"""The ranks whose gradients are added: the holders of an expert's copies, and all ranks of all groups of a plan.

Each holder of an expert has gradients only from the rows that came to it. So the gradients of an expert with copies are
the sum over its holders. The tree of `aristos.reproducible_sum` adds them in one fixed order, with a piece for each
holder in rank order, so all holders get the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MismatchError
from ..placement import Placement, Plan
from ..reproducible import Node, total
from ..substrate.attach import attach
from ..transport.group import Group
from ..transport.limits import Limits
from .trained_weights import TrainedWeights

AT_ONCE = 4 << 20  # bytes of gradients that are added at once: they stay in caches and need no new pages

if TYPE_CHECKING:
    from ..substrate.runtime import Runtime


def holders_of(places: Placement, plan: Plan | None) -> list[list[int]]:
    """For each of the E experts the ranks that hold it, ascending; with a plan, the ranks of all its groups."""
    if plan is None:
        return [sorted(ranks) for ranks in places.copies]
    return [sorted(rank for group in plan.placement for rank in group[e]) for e in range(plan.experts)]


class Holders:
    """All ranks that train a layer together, and a communicator for each set of holders. Collective.

    own: the runtime of this rank's group. comm: the communicator of all groups of a plan, None without a plan. holders:
    see `holders_of`. isa: the instruction set of this rank's group. Raises MismatchError if the groups' instruction
    sets differ.
    """

    def __init__(
        self,
        own: Runtime,
        comm: Any,
        limits: Limits,
        ranks_per_node: int | None,
        holders: Sequence[Sequence[int]],
        isa: str | None,
    ) -> None:
        self._whole = None if comm is None else attach(comm, limits, ranks_per_node)
        self.group: Group = own.group if self._whole is None else self._whole.group
        self._sets: list[tuple[tuple[int, ...], list[int], Any]] = []
        try:
            self._meet(isa, holders)
        except BaseException:
            if self._whole is not None:
                self._whole.release()
            raise

    def _meet(self, isa: str | None, holders: Sequence[Sequence[int]]) -> None:
        """Compare instruction sets, and make the communicators."""
        isas = self.group.allgather(isa, "the instruction sets of a plan's groups")
        if len(set(isas)) > 1:
            raise MismatchError(
                f"train=True requires one instruction set in all groups of a plan, got {', '.join(map(str, isas))} on"
                " ranks 0, 1 and so on: set ARISTOS_ISA on all ranks to one that all have"
            )
        self._first = [ranks[0] for ranks in holders]
        experts: dict[tuple[int, ...], list[int]] = {}
        for expert, ranks in enumerate(holders):
            if len(ranks) > 1 and self.group.rank in ranks:
                experts.setdefault(tuple(ranks), []).append(expert)
        self._sets = [(ranks, experts[ranks], self._comm_of(ranks)) for ranks in sorted(experts)]

    def _comm_of(self, ranks: tuple[int, ...]) -> Any:
        """A communicator of `ranks`. All of them call this, in the same order."""
        comm = self.group.comm
        whole = comm.Get_group()
        part = whole.Incl(ranks)
        try:
            with self.group.bounded("the holders of an expert's copies (MPI_Comm_create_group)"):
                return comm.Create_group(part)
        finally:
            part.Free()
            whole.Free()

    def first(self, expert: int) -> bool:
        """Whether this rank is the first of those that hold an expert."""
        return self._first[expert] == self.group.rank

    def add_up(self, weights: TrainedWeights) -> None:
        """Add the gradients of experts with copies over their holders. Collective over them."""
        for ranks, experts, comm in self._sets:
            one = sum(part.nbytes for part in weights.partial_of(experts[:1]))
            several = max(1, AT_ONCE // one)
            for first in range(0, len(experts), several):
                part = experts[first : first + several]
                mine = np.concatenate([array.reshape(-1) for array in weights.partial_of(part)])
                with self.group.bounded(f"ranks {ranks} (gradients of experts with copies)"):
                    whole = total(comm, [Node(ranks.index(self.group.rank), 1, mine)], mine.dtype, mine.size)
                weights.add_whole(part, whole)

    def close(self, failed: bool) -> None:
        """Free the communicators; collective. failed: whether ranks may be lost. Then nothing waits for other ranks."""
        for _, _, comm in self._sets:
            if not failed:
                comm.Free()
        self._sets = []
        if self._whole is not None:
            self._whole.release()
            self._whole = None
