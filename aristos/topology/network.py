"""The network between nodes: the switch, block, ring or torus of each node, and the distance of two nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Network:
    """The network between nodes, as Slurm describes it.

    Blocks and tori count as switches. The parents of a block are the bigger blocks that contain it.

    Attributes
    ----------
    kind : str
        "tree", "block", "ring", "torus3d", "flat" or "unknown".
    parents : mapping of str to tuple of str
        The switches above a switch or a node.
    nodes : frozenset of str
        The nodes' names.
    rings : tuple of tuples of str
        The nodes of each ring, in order.
    """

    kind: str = "unknown"
    parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()
    rings: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def _neighbours(self) -> dict[tuple[bool, str], list[tuple[bool, str]]]:
        """The graph of switches and nodes, in which a switch and a node may have the same name."""
        graph: dict[tuple[bool, str], list[tuple[bool, str]]] = {}
        for name, above in self.parents.items():
            below = (name in self.nodes, name)
            for parent in above:
                graph.setdefault(below, []).append((False, parent))
                graph.setdefault((False, parent), []).append(below)
        return graph

    def distance(self, a: str, b: str) -> int | None:
        """The number of switches that a message between two nodes passes.

        The number is 1 for two nodes on the same leaf switch or in the same block, and 3 for two nodes below the same
        spine or in the same next bigger block. On a ring it is the number of links of the shorter way.

        Parameters
        ----------
        a, b : str
            The nodes' names.

        Returns
        -------
        int or None
            0 from a node to itself. None if no path is known. None in a torus, because Slurm's files do not contain the
            places of its nodes.
        """
        if a == b:
            return 0
        for ring in self.rings:
            if a in ring and b in ring:
                apart = abs(ring.index(a) - ring.index(b))
                return min(apart, len(ring) - apart)
        if self.kind in ("ring", "torus3d", "flat"):
            return None
        return self.reach(a).get(b)

    def reach(self, start: str) -> dict[str, int]:
        """The number of switches on the shortest way from a node to every other node that can be reached.

        Parameters
        ----------
        start : str
            The node's name.

        Returns
        -------
        dict of str to int
            The number of switches by node.
        """
        found, seen = {start: 0}, {(True, start)}
        queue = deque([((True, start), 0)])
        while queue:
            at, passed = queue.popleft()
            for each in self._neighbours.get(at, ()):
                if each in seen:
                    continue
                seen.add(each)
                if each[0]:
                    found[each[1]] = passed  # the way ends at a node, because nodes do not forward
                else:
                    queue.append((each, passed + 1))
        return found
