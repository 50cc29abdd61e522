"""The memory of simulated ranks: regions and outboxes without rows, and the tables of addresses in each rank's state.

A rank has a region for each source, and an outbox for each peer. Both are laid out as on a real machine (`PairLayout`),
except that the ring lies at FAR, where addresses have no bytes. The line of arrived words and the buffer of coded words
follow the outbox. Behind all outboxes lie the rank's bells, and its words about bells. All ranks' memory is one
array, so an address shows in which rank's memory it lies.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..engine import words
from ..engine.layout import CODED_BYTES, EngineShape, PairLayout, answered_bytes, bell_bytes
from ..host.nodes import Nodes
from ..primitives.buffers import LINE
from ..substrate.windows import fill_bells
from .control import FAR


class Regions:
    """Where the ranks' memory lies. layout: byte offsets in a region. rank_bytes: of one rank."""

    def __init__(self, shape: EngineShape, nodes: Nodes) -> None:
        full = PairLayout.from_shape(shape)
        self.shape, self.nodes, self.layout = shape, nodes, replace(full, ring=FAR, staged=full.ring, marks=full.ring)
        self.region_bytes = full.ring + full.local_bytes - full.marks
        self.outbox_bytes = 0 if nodes.single else self.region_bytes + LINE + CODED_BYTES
        self._bells = shape.world * (self.region_bytes + self.outbox_bytes)
        bells = [bell_bytes(nodes, rank) + answered_bytes(nodes, rank) for rank in range(shape.world)]
        self.rank_bytes = self._bells + max(bells)
        self.memory = np.zeros(0, np.uint8)

    def allocate(self) -> None:
        """Allocate zeros for all ranks. Pages that no rank touches take no memory."""
        self.memory = np.zeros(self.shape.world * self.rank_bytes + 2 * LINE, np.uint8)

    @property
    def base(self) -> int:
        """The address of the first rank's memory, at the start of a line."""
        return -(-self.memory.ctypes.data // LINE) * LINE

    def region(self, target: int, source: int) -> int:
        """The address of the region that `source` writes at `target`."""
        return self.base + target * self.rank_bytes + source * self.region_bytes

    def outbox(self, rank: int, peer: int) -> int:
        """The address of a rank's outbox for a remote peer."""
        return self.base + rank * self.rank_bytes + self.shape.world * self.region_bytes + peer * self.outbox_bytes

    def bells(self, rank: int) -> int:
        """The address of the bells at a rank."""
        return self.base + rank * self.rank_bytes + self._bells

    def fill(self, me: int, state: np.ndarray, starts: dict[int, int]) -> None:
        """Write the addresses of all peers' regions into a state, as `EngineMemory.fill` does."""
        local = self.nodes.local(me)
        for p in range(self.shape.world):
            here, stream = self.region(me, p), self.nodes.stream(me, p)
            found = {
                words.T_RETURN_ROWS: FAR,
                words.T_ROWS_BACK: FAR,
                words.T_REGION_FROM: here,
                words.T_STREAM_FROM: self.region(self.nodes.rail(p, me), p),
                words.T_STREAM_FIRST: stream.start,
                words.T_STREAM_END: stream.stop,
            }
            if p == me or p in local:
                there = self.region(p, me)
                found |= {words.T_REGION_TO: there, words.T_OUT_RING: FAR, words.T_LINE_FROM: here}
            else:
                box = self.outbox(me, p)
                line = box + self.region_bytes
                found |= {
                    words.T_REMOTE: 1,
                    words.T_PUT_REGION: self.region(p, me),
                    words.T_PUT_RETURN_ROWS: FAR,
                    words.T_REGION_TO: box,
                    words.T_OUT_RING: FAR,
                    words.T_LINE_FROM: line,
                    words.T_CODED: line + LINE,
                    words.T_STAGED: FAR,
                }
            for table, value in found.items():
                state[starts[table] + p] = value
        fill_bells(state, starts, self.nodes, me, self.bells(me) + bell_bytes(self.nodes, me), self.bells, self.bells)
