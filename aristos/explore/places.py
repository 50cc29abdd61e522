"""Addresses as numbers, for the windows and the private memory of every rank. This module stores no bytes.

Rank r has the numbers from FIRST + r * SPAN on. They are for its window for local peers, its window for remote peers,
its outboxes, its private memory, and experts that local peers read. On a GPU it also has numbers for the mirror of the
remote window and for the words that its proxy has accepted. The tables of addresses are filled by the layer's own code
(`substrate.windows.EngineMemory`, `substrate.cuda.outboxes.DeviceMemory`), which gets a group without MPI for that.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ..engine.layout import LINE, EngineShape
from ..host.nodes import Nodes
from ..substrate.cuda.outboxes import DeviceMemory, Sides
from ..substrate.windows import EngineMemory

FIRST = 1 << 60
SPAN = 1 << 40  # the distance between the numbers of two ranks
PART_BITS = 37
PART = 1 << PART_BITS
LOCAL, REMOTE, OUTBOX, MIRROR, ACCEPTED, HOME = range(6)  # parts of a rank; HOME: experts that local peers read
PRIVATE = SPAN // PART - 1

# areas of the private part
AREA_BITS = PART_BITS - 5
AREA = 1 << AREA_BITS
AREA_MASK = PART // AREA - 1
(
    STATE, LOCK, WIRE, X, Y, IDS, WEIGHTS, SCRATCH, LANDED, OUT, GATE, SCALARS_OUT, SCALARS_BACK, STORE, TAPE, TAPED,
) = range(16)  # fmt: skip
COPIES = 1 << 20  # the distance from a rank's wire to its wire for copies to its GPU


def address(rank: int, part: int, offset: int = 0) -> int:
    """The address of a byte of one of a rank's parts."""
    return FIRST + SPAN * rank + PART * part + offset


def private(rank: int, area: int, offset: int = 0) -> int:
    """The address of a byte of one of a rank's private areas."""
    return address(rank, PRIVATE, AREA * area + offset)


def where(at: int) -> tuple[int, int, int]:
    """(rank, part, offset there) of an address."""
    rank, rest = divmod(at - FIRST, SPAN)
    return rank, *divmod(rest, PART)


def shift(rank: int) -> int:
    """Bytes from the start of a rank's MPI window to its remote window. The number differs from rank to rank."""
    return 8 * (rank % 7)


def put_target(rank: int, at: int) -> int:
    """The address of byte `at` of a rank's MPI window, as MPI_Put counts."""
    return address(rank, REMOTE, at - shift(rank))


class _Group:
    """The part of a group that `EngineMemory` needs."""

    def __init__(self, nodes: Nodes, rank: int, wire: int) -> None:
        self.nodes, self.rank, self.wire, self.world = nodes, rank, wire, len(nodes.node_of)
        self.asked = {LOCAL: 0, REMOTE: 0}

    def local_window(self, nbytes: int) -> Any:
        self.asked[LOCAL] = nbytes
        ranks = sorted([self.rank, *self.nodes.local(self.rank)])
        return SimpleNamespace(base=[address(p, LOCAL) for p in ranks])

    def remote_window(self, nbytes: int) -> Any:
        self.asked[REMOTE] = nbytes
        shifts = [shift(p) for p in range(len(self.nodes.node_of))]
        bases = {p: address(p, REMOTE) for p in self.nodes.readers(self.rank)}
        return SimpleNamespace(base=bases[self.rank], bases=bases, shift=shifts, wire=self.wire, calling=None)

    def watch_calls(self, calling: Any) -> None:
        pass


def fill(shape: EngineShape, nodes: Nodes, rank: int, state: Any, starts: dict[int, int], wire: int = 1) -> list[int]:
    """Write a rank's addresses into its state. Returns the bytes of its local window, remote window and outboxes."""
    group = _Group(nodes, rank, wire)
    memory = EngineMemory(group, shape, remote=group.remote_window)  # type: ignore[arg-type]
    outboxes = memory._outbox.size
    memory._outbox = _at(address(rank, OUTBOX))
    memory.fill(state, starts)
    return [group.asked[LOCAL], group.asked[REMOTE], outboxes]


def _at(number: int) -> Any:
    """An array with an address but without bytes."""
    return SimpleNamespace(ctypes=SimpleNamespace(data=number))


class _Device:
    """The part of a GPU that `DeviceMemory` needs, for a GPU that does not map the MPI window."""

    def __init__(self, rank: int) -> None:
        self.parts = [address(rank, part) for part in (OUTBOX, MIRROR)]  # in the order in which DeviceMemory makes them

    def host(self, nbytes: int) -> tuple[Any, int]:
        at = self.parts.pop(0)
        return _at(at), at

    def pin(self, address: int, nbytes: int) -> int:
        return 0


def fill_gpu(shape: EngineShape, nodes: Nodes, rank: int, state: Any, starts: dict[int, int]) -> Sides:
    """Write the addresses that a rank's GPU has into the rank's state. Returns the sides of its proxy."""
    group: Any = _Group(nodes, rank, private(rank, WIRE))
    memory = DeviceMemory(group, shape, group.local_window, _Device(rank))
    memory._accepted = _at(address(rank, ACCEPTED))
    memory._locks = _at(private(rank, LOCK, LINE))
    filled = np.zeros(len(state), np.int64)
    memory.fill(filled, starts)
    state[:] = filled.tolist()
    return memory.sides(private(rank, WIRE, COPIES), (0, 0))
