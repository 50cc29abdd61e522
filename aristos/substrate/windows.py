"""The memory of one rank's engine: windows for near and far peers, outboxes, and the tables that say where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import int64

from ..engine import words
from ..engine.layout import (
    CODED_BYTES,
    LINE,
    PairLayout,
    Shape,
    local_bytes,
    local_region,
    outbox_bytes,
    remote_bytes,
    remote_region,
)
from ..host.nodes import Nodes
from ..primitives import wire
from ..primitives.buffers import aligned
from ..primitives.compile import warm_up
from ..transport.group import Calling, Group
from ..transport.rma import RmaWindow
from ..transport.window import Window


def window_bytes(shape: Shape, nodes: Nodes, rank: int) -> tuple[int, int, int]:
    """Bytes of a rank's near window, far window, and outboxes."""
    outboxes = outbox_bytes(shape) * len(nodes.remote(rank))
    return local_bytes(shape, nodes, rank), remote_bytes(shape, nodes, rank), outboxes


def card_rows_bytes(shape: Shape, nodes: Nodes, rank: int) -> int:
    """Bytes of the rows that wait on a rank's card to be put: a ring and as many outputs for each far peer."""
    return 2 * shape.ring_rows * shape.stride * len(nodes.remote(rank))


def _zeros(nbytes: int) -> np.ndarray:
    room = aligned((nbytes,), np.uint8)
    room[:] = 0
    return room


class Memory:
    """What `Shape` needs on this rank; collective.

    window: makes the window for near peers, of so many bytes; shared memory by default. room: makes the memory of the
    outboxes, uint8 zeros. far: the ranks of other nodes. wire: address of the wire to them, 0 without any.
    """

    def __init__(
        self,
        group: Group,
        shape: Shape,
        window: Callable[[int], Window] | None = None,
        room: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.shape, self.group = shape, group
        self.layout = PairLayout.of(shape)
        self.far = group.nodes.remote(group.rank)
        near, far, outboxes = window_bytes(shape, group.nodes, group.rank)
        self._near = (window or group.window)(near)
        self._far: RmaWindow | None = None
        self.wire = 0
        self._outbox: Any = (room or _zeros)(outboxes)
        warm_up([(wire.pace, (int64,)), (wire.take, (int64,)), (wire.leave, (int64,))])
        if not group.nodes.single:
            self._far = group.far_window(far)
            self.wire = self._far.wire

    def fill(self, state: np.ndarray, starts: dict[int, int]) -> None:
        """Write into a state where everything is."""
        me, nodes, shape = self.group.rank, self.group.nodes, self.shape

        def put(table: int, peer: int, value: int) -> None:
            state[starts[table] + peer] = value

        near = dict(zip(sorted([me, *nodes.local(me)]), self._near.base))
        for p, base in near.items():
            put(words.T_RETURN_ROWS, p, base)
            put(words.T_ROWS_BACK, p, near[me])
            if p != me:
                put(words.T_REGION_TO, p, base + local_region(shape, nodes, p, me))
                for table in (words.T_REGION_FROM, words.T_LINE_FROM):
                    put(table, p, near[me] + local_region(shape, nodes, me, p))
        at = self._outbox.ctypes.data
        for p in self.far:
            assert self._far is not None
            put(words.T_REMOTE, p, 1)
            put(words.T_ROWS_BACK, p, self._far.base)
            put(words.T_REGION_FROM, p, self._far.base + remote_region(shape, nodes, me, p))
            put(words.T_PUT_REGION, p, self._far.shift[p] + remote_region(shape, nodes, p, me))
            put(words.T_PUT_RETURN_ROWS, p, self._far.shift[p])
            put(words.T_REGION_TO, p, at)
            put(words.T_OUT_RING, p, at + self.layout.ring)
            at += self.layout.remote_bytes
            put(words.T_LINE_FROM, p, at)
            put(words.T_CODED, p, at + LINE)
            put(words.T_STAGED, p, at + LINE + CODED_BYTES)
            at += LINE + CODED_BYTES + shape.ring_rows * shape.stride

    @property
    def calling(self) -> Calling | None:
        """Tells what MPI is being called about; None without far peers."""
        return None if self._far is None else self._far.calling

    def in_call(self, yes: bool) -> None:
        """Say whether workers look after MPI's progress themselves."""
        if self._far is not None:
            self._far.in_call(yes)

    def close(self) -> None:
        """Give it all back; collective."""
        self._near.close()
        if self._far is not None:
            self._far.close()
