"""Which ranks share a node. Ranks store into the memory of local peers, and reach remote peers by MPI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Nodes:
    """Which ranks share a node. node_of: [world] a number for each rank's node."""

    node_of: tuple[int, ...]

    @classmethod
    def of(cls, world: int, ranks_per_node: int | None = None) -> Nodes:
        """Nodes of `ranks_per_node` consecutive ranks (the last one may have fewer); None: one node."""
        return cls(tuple(rank // (ranks_per_node or world) for rank in range(world)))

    @classmethod
    def shared(cls, comm: Any, ranks_per_node: int | None = None) -> tuple[Nodes, Any]:
        """The nodes of a communicator, and a communicator of this node's ranks. Collective.

        ranks_per_node: each group of this many ranks counts as a node, although more ranks share memory.
        """
        from mpi4py import MPI

        rank = comm.Get_rank()
        node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=rank)
        # This is done even without ranks_per_node: it is collective, and other ranks may have another value.
        own = node.Split(rank // (ranks_per_node or comm.Get_size()), key=rank)
        node.Free()
        return cls(tuple(comm.allgather(own.bcast(rank)))), own

    def local(self, rank: int) -> list[int]:
        """The other ranks of the node of `rank`."""
        return [p for p, node in enumerate(self.node_of) if node == self.node_of[rank] and p != rank]

    def remote(self, rank: int) -> list[int]:
        """The ranks of other nodes."""
        return [p for p, node in enumerate(self.node_of) if node != self.node_of[rank]]

    @property
    def count(self) -> int:
        """How many nodes there are."""
        return len(set(self.node_of))

    @property
    def single(self) -> bool:
        """Whether all ranks share a node."""
        return self.count == 1
