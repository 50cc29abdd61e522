"""Which ranks share a node: they store into each other's memory (near), the others are put to by MPI (far)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Nodes:
    """Which ranks are near each other. node_of: [world] a number for each rank's node."""

    node_of: tuple[int, ...]

    @classmethod
    def of(cls, world: int, ranks_per_node: int | None = None) -> Nodes:
        """Nodes of so many ranks each, the last one perhaps with fewer; None: one node."""
        return cls(tuple(rank // (ranks_per_node or world) for rank in range(world)))

    def near(self, rank: int) -> list[int]:
        """The other ranks of the node of `rank`."""
        return [p for p, node in enumerate(self.node_of) if node == self.node_of[rank] and p != rank]

    def far(self, rank: int) -> list[int]:
        """The ranks of other nodes."""
        return [p for p, node in enumerate(self.node_of) if node != self.node_of[rank]]

    @property
    def single(self) -> bool:
        """Do all ranks share a node?"""
        return len(set(self.node_of)) == 1
