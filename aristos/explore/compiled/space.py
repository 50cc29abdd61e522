"""One space of addresses for all ranks, needed because each process maps a window at another address.

Windows, outboxes and private memory get the numbers that they have in `explore/places.py`, which also names them. All
other memory belongs to one rank; its number is made of address and rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engine import words
from ...engine.layout import EngineShape, StateLayout, bell_bytes, local_bytes, outbox_bytes, remote_bytes
from ...host.nodes import Nodes
from ...substrate.cpu.runtime import CpuRuntime
from .. import places
from ..regions import PLAIN, Regions

OTHER, OTHER_BITS = 1 << 61, 48
WORD = 8


@dataclass
class Range:
    """`nbytes` bytes at address `start` of a process, which begin at `number` in the common space.

    name: for messages.
    """

    start: int
    nbytes: int
    number: int
    name: str = ""


@dataclass
class Mapped:
    """A rank's report about its process. shift: the shifts of its RmaWindow. labels: names of memory elsewhere."""

    ranges: list[Range]
    shift: list[int]
    labels: list[Range]


def other(rank: int, address: int) -> int:
    """The number of an address of memory that other ranks do not map."""
    return OTHER | rank << OTHER_BITS | address


def ranges_of(runtime: CpuRuntime, home: Any) -> Mapped:
    """The ranges of a rank's process: the windows and its own memory. home: its `NodeWeights`, or None."""
    group, shape, memory = runtime.group, runtime.shape, runtime._memory
    assert shape is not None
    assert memory is not None
    me, nodes = group.rank, group.nodes
    found = [
        Range(base, local_bytes(shape, nodes, p), places.address(p, places.LOCAL))
        for p, base in zip(sorted([me, *nodes.local(me)]), memory._local.base)
    ]
    if memory._remote is not None:
        found += [
            Range(base, remote_bytes(shape, nodes, p), places.address(p, places.REMOTE))
            for p, base in memory._remote.bases.items()
        ]
        nbytes = outbox_bytes(shape, nodes, me)
        found.append(Range(memory._outbox.ctypes.data, nbytes, places.address(me, places.OUTBOX)))
        found.append(Range(memory.wire, WORD * memory._remote._words.size, places.private(me, places.WIRE)))
    for area, array in (
        (places.STATE, runtime.state),
        (places.LOCK, runtime._lock),
        (places.SCRATCH, runtime._scratch),
    ):
        found.append(Range(array.ctypes.data, array.nbytes, places.private(me, area)))
    if home is not None:
        for p, base in home._memory.base.items():
            found.append(Range(base, home.nbytes(home._layers, home._held[p]), places.address(p, places.HOME)))
    shift = [0] * group.world if memory._remote is None else list(memory._remote.shift)
    return Mapped(sorted(found, key=lambda each: each.start), shift, [])


class Space:
    """The common space of all ranks of a runtime."""

    def __init__(self, shape: EngineShape, nodes: Nodes, tables: StateLayout, mapped: list[Mapped]) -> None:
        self.shape, self.nodes, self.mapped = shape, nodes, mapped
        self.regions = Regions.from_shape(shape, nodes)
        self._starts = sorted((start, name) for name, start in tables.starts.items())

    def numbers(self, ranks: np.ndarray, addresses: np.ndarray) -> np.ndarray:
        """The numbers of addresses in the processes of these ranks."""
        made = addresses | ranks << OTHER_BITS | OTHER
        for rank, mapped in enumerate(self.mapped):
            mine = ranks == rank
            at = addresses[mine]
            new = made[mine]
            for each in mapped.ranges:
                inside = (at >= each.start) & (at < each.start + each.nbytes)
                new[inside] = at[inside] - each.start + each.number
            made[mine] = new
        return made

    def put_target(self, peer: int, at: int) -> int:
        """The number of the byte at offset `at` of a rank's MPI window."""
        return places.address(peer, places.REMOTE, at - self.mapped[peer].shift[peer])

    def put_kind(self, number: int) -> int:
        """What MPI puts there: CODED for a {value, complement}, BELL for the byte of a bell, or another kind."""
        return self.regions.place(number).kind if places.where(number)[1] == places.REMOTE else PLAIN

    def bells(self, rank: int) -> range:
        """The numbers of the bells in a rank's window for remote peers."""
        end = places.address(rank, places.REMOTE, remote_bytes(self.shape, self.nodes, rank))
        return range(end - bell_bytes(self.nodes, rank), end)

    def in_area(self, numbers: np.ndarray, area: int) -> np.ndarray:
        """Which numbers lie in this private area of any rank."""
        private = self.in_part(numbers, places.PRIVATE)
        return private & ((numbers >> places.AREA_BITS & places.AREA_MASK) == area)

    def in_part(self, numbers: np.ndarray, part: int) -> np.ndarray:
        """Which numbers lie in this part of any rank's memory."""
        inside = (numbers >= places.FIRST) & (numbers < OTHER)
        return inside & ((numbers >> places.PART_BITS & places.PRIVATE) == part)

    def ranks(self, numbers: np.ndarray) -> np.ndarray:
        """The ranks to whose parts these numbers belong."""
        return (numbers - places.FIRST) // places.SPAN

    def name(self, number: int) -> str:
        """The name of a number, for messages."""
        if number >= OTHER:
            rank, address = (number ^ OTHER) >> OTHER_BITS, number & ((1 << OTHER_BITS) - 1)
            for label in self.mapped[rank].labels:
                if label.start <= address < label.start + label.nbytes:
                    return f"{label.name}, byte {address - label.start}, of rank {rank}"
            return f"memory at {address:#x} of rank {rank}"
        rank, part, offset = places.where(number)
        if part == places.HOME:
            return f"weights, byte {offset}, of rank {rank}"
        if part == places.PRIVATE and offset // places.AREA == places.STATE:
            i = offset % places.AREA // WORD
            table = max(((start, name) for start, name in self._starts if start <= i), default=None)
            if table is None:
                return f"{_state_word(i)} of rank {rank}"
            return f"{_table(table[1])}[{i - table[0]}] of rank {rank}"
        return self.regions.name(number)


def _table(start: int) -> str:
    return next(name for name, value in vars(words).items() if name.startswith("T_") and value == start)[2:].lower()


def _state_word(i: int) -> str:
    from ...engine import schema

    return schema.STATE_WORDS[i].name if i < len(schema.STATE_WORDS) else f"word {i} of the state"
