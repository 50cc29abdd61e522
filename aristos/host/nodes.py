"""Which ranks share a node. Ranks store into the memory of local peers, and reach remote peers by MPI.

With two levels a rank puts rows for all ranks of a node into one ring there, its *stream* to the node. The ring lies at
the source's *rail*: the rank whose place in that node is the source's place in its own node. All ranks of the node read
the ring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Nodes:
    """Which ranks share a node. node_of: [world] a number for each rank's node. levels: 2 if nodes have streams."""

    node_of: tuple[int, ...]
    levels: int = 1

    @classmethod
    def split(cls, world: int, ranks_per_node: int | None = None) -> Nodes:
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
        # Split is called even without ranks_per_node: it is collective, and other ranks may have another value.
        own = node.Split(rank // (ranks_per_node or comm.Get_size()), key=rank)
        node.Free()
        return cls(tuple(comm.allgather(own.bcast(rank)))), own

    def local(self, rank: int) -> list[int]:
        """The other ranks of the node of `rank`."""
        return [p for p, node in enumerate(self.node_of) if node == self.node_of[rank] and p != rank]

    def remote(self, rank: int) -> list[int]:
        """The ranks of other nodes."""
        return [p for p, node in enumerate(self.node_of) if node != self.node_of[rank]]

    def with_streams(self) -> Nodes:
        """The same nodes with two levels."""
        return replace(self, levels=2)

    def members(self, rank: int) -> range:
        """The ranks of the node of `rank`, if they are consecutive."""
        first = self.node_of.index(self.node_of[rank])
        return range(first, first + self.node_of.count(self.node_of[rank]))

    def others(self, rank: int) -> list[range]:
        """For each other node its ranks. The ranks of each node must be consecutive."""
        first = [r for r, node in enumerate(self.node_of) if r == 0 or node != self.node_of[r - 1]]
        ranges = [range(start, end) for start, end in zip(first, [*first[1:], len(self.node_of)])]
        return [each for each in ranges if rank not in each]

    @property
    def consecutive(self) -> bool:
        """Whether the ranks of each node are consecutive. Two levels need that."""
        return all(self.node_of[p] == node for r, node in enumerate(self.node_of) for p in self.members(r))

    def readers(self, rank: int) -> range:
        """The ranks that read what remote ranks put for `rank`: with two levels its node, else `rank` alone."""
        return self.members(rank) if self.levels == 2 else range(rank, rank + 1)

    def rail(self, source: int, peer: int) -> int:
        """The rank at which the rows of `source` for `peer` lie.

        If nodes have different sizes, it is the rank whose place is the source's place modulo the size of the node.
        """
        if self.levels == 1 or self.node_of[source] == self.node_of[peer]:
            return peer
        node = self.members(peer)
        return node[(source - self.members(source)[0]) % len(node)]

    def stream(self, source: int, peer: int) -> range:
        """The ranks for which `source` puts rows into the ring at `peer`; none if it uses another ring of the node."""
        if self.levels == 1 or self.node_of[source] == self.node_of[peer]:
            return range(peer, peer + 1)
        return self.members(peer) if self.rail(source, peer) == peer else range(peer, peer)

    @property
    def count(self) -> int:
        """How many nodes there are."""
        return len(set(self.node_of))

    @property
    def single(self) -> bool:
        """Whether all ranks share a node."""
        return self.count == 1
