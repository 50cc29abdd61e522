"""Packed weights that all ranks of a node can read. Also: which experts of local peers a rank may compute in place.

Each rank stores the experts of all layers of an object in its part of a `NodeMemory`. One rule lays out all parts, so a
rank knows where the experts of its local peers lie.
"""

from __future__ import annotations

import numpy as np

from ..engine import words
from ..engine.layout import lines
from ..host.nodes import Nodes
from ..placement import Placement
from ..primitives.arithmetic import ExpertWeights
from ..transport.group import Group
from ..transport.memfd import NodeMemory


def foreign_slots(placement: Placement, nodes: Nodes, rank: int) -> list[tuple[int, int]]:
    """The copies on local peers to which this rank would send rows: (slot, rank that holds it), ordered by slot."""
    used = set(placement.slots_for(rank).tolist())
    start = placement.start.tolist()
    return [(slot, p) for p in nodes.local(rank) for slot in range(start[p], start[p + 1]) if slot in used]


def most_foreign(placement: Placement, nodes: Nodes) -> int:
    """The most experts of local peers that a rank may compute."""
    return max(len(foreign_slots(placement, nodes, rank)) for rank in range(len(nodes.node_of)))


class NodeWeights:
    """The packed experts of all layers of an object on the ranks of a node.

    layers: for each layer the bytes of each array of one expert, by name. held: how many experts each rank holds.
    """

    def __init__(self, memory: NodeMemory, layers: list[dict[str, int]], held: list[int], rank: int) -> None:
        self._memory, self._layers, self._held, self._rank = memory, layers, held, rank

    @staticmethod
    def nbytes(layers: list[dict[str, int]], held: int) -> int:
        """How many bytes a rank's part has if the rank holds `held` experts."""
        return sum(lines(held * each) for layer in layers for each in layer.values())

    @classmethod
    def open(
        cls, group: Group, layers: list[dict[str, int]], held: list[int], isa: str, small_pages: bool
    ) -> NodeWeights:
        """Reserve memory for all layers. It succeeds on all ranks or on none; collective.

        isa: the instruction set for which experts are packed. small_pages: whether to accept memory without huge pages.
        """
        memory = NodeMemory(group, cls.nbytes(layers, held[group.rank]), f"kernels for {isa}", small_pages)
        return cls(memory, layers, held, group.rank)

    @property
    def problem(self) -> str:
        """Why the memory could not be reserved; empty if it was."""
        return self._memory.problem

    def _offset(self, rank: int, layer: int, name: str) -> int:
        """Bytes from the start of a rank's part to an array of its first expert."""
        before = self.nbytes(self._layers[:layer], self._held[rank])
        for other, each in self._layers[layer].items():
            if other == name:
                return before
            before += lines(self._held[rank] * each)
        raise KeyError(name)

    def own(self, layer: int, name: str) -> np.ndarray:
        """[held, bytes] uint8: an array of every expert that this rank holds."""
        held, each = self._held[self._rank], self._layers[layer][name]
        start = self._offset(self._rank, layer, name)
        return self._memory.own[start : start + held * each].reshape(held, each)

    def prepare(self, layer: int) -> None:
        """Prepare the memory into which this rank will write its experts of a layer."""
        held = self._held[self._rank]
        start = self.nbytes(self._layers[:layer], held)
        self._memory.prepare(start, self.nbytes([self._layers[layer]], held))

    def fill(self, job: np.ndarray, layer: int) -> None:
        """Write into a job where the experts of local peers lie."""
        first: dict[int, int] = {}  # the first slot of each rank
        start = job[job[words.SLOT_START] :]
        for expert in range(int(job[words.HELD]), int(job[words.COMPUTED])):
            record = int(words.foreign(job, expert))
            owner, slot = int(job[words.foreign_owner(record)]), int(job[words.foreign_slot(record)])
            number = slot - first.setdefault(owner, int(start[owner]))
            for name in ExpertWeights._fields:
                each = self._layers[layer].get(name)
                at = 0 if each is None else self._memory.base[owner] + self._offset(owner, layer, name) + each * number
                job[getattr(words, f"foreign_{name}")(record)] = at

    def close(self) -> None:
        """Release the memory."""
        self._memory.close()
