"""Transport `rma` with two levels: MPI windows whose parts lie in memory that all ranks of a node map.

A remote rank puts into one rank's part, and the other ranks of that rank's node read the part too. MPI does not promise
that these ranks see what was put; `two_levels.py` tests whether they do.
"""

from __future__ import annotations

from ..errors import EnvironmentProblem
from .group import Group
from .memfd import NodeMemory
from .rma import RmaWindow


class NodeWindow(RmaWindow):
    """`nbytes` of memory on each rank of a group, mapped by the ranks of its node. Collective."""

    def __init__(self, group: Group, nbytes: int) -> None:
        self._memory = NodeMemory(group, nbytes, "rings of a node", small_pages=True, writable=True)
        if self._memory.problem:
            raise EnvironmentProblem(f"levels=2 needs memory that the ranks of a node share: {self._memory.problem}")
        with group.together("the other ranks to allocate windows"):
            super().__init__(group.comm, nbytes, self._memory.own[:nbytes])
        self.bases = self._memory.base

    def close(self) -> None:
        """Free the window; collective."""
        super().close()
        self._memory.close()
