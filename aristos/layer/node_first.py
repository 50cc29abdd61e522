"""The all-to-all of rows in bulk calls: direct with one level; with two first within each node, then between nodes.

With two levels, rows for a target on another node go first to a rank of the source's own node, their carrier. The
carrier sends the rows of its whole node to the target in one message. It has the same place in its node as the target
in the other (`Nodes.rail`). So a rank sends a message to each local peer and, if nodes have equal sizes, one to each
other node, instead of one to every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..host.nodes import Nodes
from ..primitives.buffers import aligned
from ..transport.group import Group

ROWS = 2  # tag of the messages between nodes

Blocking = Callable[[str, Callable[[Any], object], np.ndarray], None]  # (what, MPI calls on a communicator, bytes)
AllToAll = Callable[[Blocking, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], None]


def all_to_all(group: Group) -> AllToAll:
    """The function that exchanges rows between all ranks of a group. For its arguments see `NodeFirst.__call__`."""
    return direct if group.nodes.levels == 1 or group.nodes.single else NodeFirst(group)


def direct(
    blocking: Blocking, out: np.ndarray, sent: np.ndarray, into: np.ndarray, came: np.ndarray, stride: int
) -> None:
    """Do what `NodeFirst.__call__` does, by one MPI_Alltoallv over all ranks."""
    from mpi4py import MPI

    row = MPI.BYTE.Create_contiguous(stride).Commit()
    both = [[buffer, (rows, np.cumsum(rows) - rows), row] for buffer, rows in ((out, sent), (into, came))]
    try:
        blocking("MPI_Alltoallv of rows", lambda comm: comm.Alltoallv(*both), sent * stride)
    finally:
        row.Free()


def carriers(nodes: Nodes, me: int) -> tuple[list[list[int]], dict[int, range]]:
    """(for each rank of `me`'s node the targets of the rows that it gets; carrier -> sources of the rows for `me`).

    Within a node a rank gets the rows for itself, and those that it carries to ranks of other nodes.
    """
    members = nodes.members(me)
    taken, sources = [[rank] for rank in members], {}
    for other in nodes.others(me):
        for i, q in enumerate(other):
            taken[i % len(taken)].append(q)
        sources[other[(me - members[0]) % len(other)]] = other  # as in `Nodes.rail`
    return [sorted(ranks) for ranks in taken], sources


class NodeFirst:
    """The all-to-all of one rank. It keeps its buffer between calls."""

    def __init__(self, group: Group) -> None:
        nodes, me = group.nodes, group.rank
        self._group, self._members = group, nodes.members(me)
        self._taken, self._sources = carriers(nodes, me)
        self._own = self._taken[me - self._members[0]]
        self._carried = aligned((0,), np.uint8)

    def __call__(
        self, blocking: Blocking, out: np.ndarray, sent: np.ndarray, into: np.ndarray, came: np.ndarray, stride: int
    ) -> None:
        """Send rows; collective.

        out, into: rows of `stride` bytes by target, and by source. sent, came: [W] rows to and from each rank.
        blocking: makes MPI calls under the watchdog; it gets the bytes for each rank.
        """
        from mpi4py import MPI

        row = MPI.BYTE.Create_contiguous(stride).Commit()
        made = [row]

        def blocks(lengths: np.ndarray, starts: np.ndarray) -> Any:
            made.append(row.Create_indexed(lengths.tolist(), starts.tolist()).Commit())
            return made[-1]

        try:
            self._within(blocking, out, sent, stride, blocks)
            self._between(blocking, into, came, stride, row)
        finally:
            for each in made:
                each.Free()

    def _within(self, blocking: Blocking, out: np.ndarray, sent: np.ndarray, stride: int, blocks: Any) -> None:
        """Exchange rows within the node. Received rows are kept by target, and for each target by source."""
        node, size = self._group.node, len(self._members)
        counts = np.zeros((size, self._group.world), np.int64)
        each = np.zeros(self._group.world, np.int64)
        each[self._members] = sent.nbytes
        blocking("MPI_Allgather of row counts", lambda _: node.Allgather(np.ascontiguousarray(sent), counts), each)
        self._counts = counts[:, self._own]  # [sources on this node, targets of the rows that this rank gets]
        ends = np.cumsum(self._counts.T.ravel()).reshape(len(self._own), size).T
        starts = ends - self._counts
        total = int(self._counts.sum()) * stride
        if self._carried.size < total:
            self._carried = aligned((total,), np.uint8)
        offset = np.cumsum(sent) - sent
        to = [blocks(sent[taken], offset[taken]) for taken in self._taken]
        come = [blocks(self._counts[i], starts[i]) for i in range(size)]
        each[self._members] = [sent[taken].sum() * stride for taken in self._taken]
        ones, zeros = [1] * size, [0] * size
        blocking(
            "MPI_Alltoallw of rows within the node",
            lambda _: node.Alltoallw([out, (ones, zeros), to], [self._carried, (ones, zeros), come]),
            each,
        )

    def _between(self, blocking: Blocking, into: np.ndarray, came: np.ndarray, stride: int, row: Any) -> None:
        """Copy the rows for this rank into `into`, send the rows that it carries, and receive those of other nodes."""
        from mpi4py import MPI

        rows, start = self._counts.sum(axis=0), np.cumsum(came) - came
        ends = np.cumsum(rows)
        each = np.zeros(self._group.world, np.int64)

        def exchange(comm: Any) -> None:
            requests = []
            for carrier, members in self._sources.items():
                if count := int(came[members].sum()):
                    place = into[start[members[0]] * stride :]
                    requests.append(comm.Irecv([place, count, row], carrier, ROWS))
            for q, count, end in zip(self._own, rows.tolist(), ends.tolist()):
                at = (end - count) * stride
                if q == self._group.rank:
                    first = int(start[self._members[0]]) * stride
                    into[first : first + count * stride] = self._carried[at : at + count * stride]
                elif count:
                    requests.append(comm.Isend([self._carried[at:], count, row], q, ROWS))
            MPI.Request.Waitall(requests)

        each[self._own] = rows * stride
        each[self._group.rank] = 0
        blocking("messages of rows between nodes", exchange, each)
