"""A card of the PTX machine for a rank that is a process: memory that the ranks of a node share, for real MPI jobs.

Each process has a machine of one device, whose memory is a part of one file: an address means the same in all of them,
so an IPC handle is an address. No checker: what other processes write is unknown to it. A copy for the proxy is made
when its stream is waited for, the last one first. MPI_Put can be one that takes the machine's addresses too.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from simt_card import MachineCard, Together

from aristos import simt
from aristos.primitives import wire
from aristos.simt import isa
from aristos.simt.address_space import GAP, Room
from aristos.substrate.cuda.device_puts import Answer
from aristos.transport.rma import RmaWindow, mpi_library

PART = 1 << 28  # bytes of a rank; pages that nobody touches take no room
DRIVER = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * 4)
PUT = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * 8)


class Shared:
    """bytes: a mapping of a whole file; what is given back is zeroed."""

    def __init__(self, path: Path, size: int) -> None:
        with open(path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), size)
        self.bytes = np.frombuffer(self.map, np.uint8)

    def clear(self, start: int, end: int) -> None:
        self.bytes[start:end] = 0


class ProcessCard(MachineCard):
    """This process's card; path: a file of PART bytes a rank, of zeros."""

    def __init__(self, path: Path, rank: int, world: int, blocks: int) -> None:
        machine = simt.Machine(check=False, seed=rank)
        machine.patience = 1 << 60  # others move on in their own time
        memory = machine.memory
        memory.whole = Shared(path, PART * world)
        memory.data, memory.room = memory.whole.bytes, Room(PART * rank + GAP, PART * (rank + 1))
        memory.publish()
        super().__init__(Together(1, machine), 0, rank, blocks)
        self._hosts: dict[int, Any] = {}
        self._copies: list[tuple[int, int, int]] = []
        self.copied = 0
        self.put_from = 0  # bytes of this card's memory that MPI has put
        self._functions = DRIVER(self._copy_later), DRIVER(self._wait)

    def host(self, nbytes: int) -> tuple[np.ndarray, int]:
        made = self.machine.host_array(np.zeros(nbytes, np.uint8))
        array = self._bytes(made.ptr, nbytes)
        self._hosts[array.ctypes.data] = made
        return array, made.ptr

    def free_host(self, array: np.ndarray) -> None:
        self._hosts.pop(array.ctypes.data).free()

    def pin(self, address: int, nbytes: int) -> bool:
        return False

    def copier(self) -> tuple[int, int]:
        copy, wait = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in self._functions)
        return copy, wait

    def _copy_later(self, to: int, source: int, nbytes: int, stream: int) -> int:
        self._copies.append((to, source, nbytes))
        return 0

    def _wait(self, stream: int, *_: int) -> int:
        for to, source, nbytes in reversed(self._copies):
            ctypes.memmove(self.machine.memory.data.ctypes.data + to - isa.GLOBAL_START, source, nbytes)
            self.copied += 1
        self._copies.clear()
        return 0


def taking(card: ProcessCard) -> Callable[..., np.ndarray]:
    """RmaWindow._connect for an MPI that puts from the card's memory as from the host's."""
    connect = RmaWindow._connect
    real = ctypes.cast(mpi_library().MPI_Put, ctypes.c_void_p).value or 0

    def put(source: int, count: int, *rest: int) -> int:
        if any(a.ptr <= source < a.ptr + a.nbytes for a in list(card._arrays.values())):
            source += card.machine.memory.data.ctypes.data - isa.GLOBAL_START
            card.put_from += count
        return int(PUT(real)(source, count, *rest))

    card.kept = PUT(put)

    def connected(self: RmaWindow, comm: Any) -> np.ndarray:
        words = connect(self, comm)
        words[wire.PUT] = ctypes.cast(card.kept, ctypes.c_void_p).value or 0
        return words

    return connected


@contextlib.contextmanager
def cards(comm: Any, folder: Path, blocks: int = 2, takes: bool = False) -> Iterator[ProcessCard]:
    """This rank's card, which layers with backend="cuda" find inside; collective. folder: the same on all ranks.

    takes: MPI puts from the memory of this rank's card, if its node asks this rank.
    """
    path = folder / "memory"
    if comm.rank == 0:
        with open(path, "wb") as file:
            file.truncate(PART * comm.size)
    comm.Barrier()
    card = ProcessCard(path, comm.rank, comm.size, blocks)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("aristos.substrate.cuda.runtime.Device.find", return_value=card))
        stack.enter_context(mock.patch("aristos.substrate.cuda.device_puts.probe", return_value=Answer(takes)))
        if takes:
            stack.enter_context(mock.patch.object(RmaWindow, "_connect", taking(card)))
        yield card
    reports = card.machine.reports
    assert not reports, "\n".join(map(str, reports))
    comm.Barrier()
