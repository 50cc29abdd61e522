"""Transport `ipc`: CUDA IPC between the ranks of a node. A put is a store into a peer's memory.

It never stages a copy: where a rank's card cannot reach a peer's, every rank says so and what to change.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import EnvironmentProblem
from .shm import check_one_node

GRAIN = 2 << 20  # bytes: the driver shares whole blocks of so many, with whatever else lies in them

SHOW_ALL = (
    "give every rank all cards of the node, each takes the one of its local rank: srun --gpus-per-node=N"
    " --gpu-bind=none (neither --gpus-per-task nor another --gpu-bind), no CUDA_VISIBLE_DEVICES of its own, containers"
    " with --gpus all or --nv"
)
NO_PATH = (
    "nvidia-smi topo -p2p r shows which pairs can; take cards joined by NVLink or under one PCIe root, without MIG,"
    " with the IOMMU off or passing through (iommu=pt) and PCIe ACS off"
)


@dataclass(frozen=True)
class _Seat:
    """What a rank tells the others of its card. visible: CUDA_VISIBLE_DEVICES there."""

    host: str
    uuid: str
    name: str
    visible: str | None

    def __str__(self) -> str:
        seen = "" if self.visible is None else f", CUDA_VISIBLE_DEVICES={self.visible}"
        return f"{self.name} {self.uuid} on {self.host}{seen}"


class IpcWindow:
    """`nbytes` of device memory a rank, that every rank of `comm` can load and store from its card. Collective.

    comm: ranks of one node; several may share a card. card: a substrate.device.Card. base: address of every rank's part
    on this rank's card, in rank order. The memory starts as zeros. Raises EnvironmentProblem on all ranks where one
    fails, and leaves nothing open.
    """

    def __init__(self, comm: Any, card: Any, nbytes: int) -> None:
        check_one_node(comm, "ipc")
        self.nbytes = nbytes
        self.base: list[int] = []
        self._comm, self._card = comm, card
        self._own = 0
        self._opened: list[int] = []
        seats = comm.allgather(_Seat(platform.node(), card.uuid, card.name, os.environ.get("CUDA_VISIBLE_DEVICES")))
        self._together(lambda: _reach(comm.rank, card, seats))
        try:
            handles = self._together(self._allocate)
            self._together(lambda: self._open(handles, seats))
        except EnvironmentProblem:
            self.close()
            raise

    def _together(self, step: Callable[[], Any]) -> list[Any]:
        """What a step gave each rank; where it failed, all ranks raise what the lowest of those that failed says."""
        gave, failed = None, None
        try:
            gave = step()
        except EnvironmentProblem as error:
            failed = error
        answers = self._comm.allgather((gave, failed))
        for rank, (_, why) in enumerate(answers):
            if why is not None:
                raise failed if failed is not None and rank == self._comm.rank else why
        return [each for each, _ in answers]

    def _allocate(self) -> bytes:
        try:
            self._own = self._card.allocate(max(1, -(-self.nbytes // GRAIN)) * GRAIN)
            return self._card.handle(self._own)
        except EnvironmentProblem as error:
            whose = f"transport ipc: rank {self._comm.rank} on {self._card.name} {self._card.uuid}"
            raise type(error)(f"{whose} cannot share {self.nbytes} bytes: {error}") from error

    def _open(self, handles: list[bytes], seats: list[_Seat]) -> None:
        rank = self._comm.rank
        for peer, handle in enumerate(handles):
            if peer == rank:
                self.base.append(self._own)
                continue
            try:
                address = self._card.open(handle)
            except EnvironmentProblem as error:
                raise EnvironmentProblem(
                    f"transport ipc: rank {rank} ({seats[rank]}) cannot open the memory of rank {peer} ({seats[peer]}):"
                    f" {error}"
                ) from error
            self._opened.append(address)
            self.base.append(address)

    def close(self) -> None:
        """Close the peers' memory and free this rank's; collective. No kernel that uses it may still run."""
        if self._comm is None:
            return
        comm, self._comm = self._comm, None
        with contextlib.ExitStack() as stack:  # a close that fails must not leave the others waiting
            stack.callback(self._free)
            stack.callback(comm.Barrier)
            for address in self._opened:
                stack.callback(self._card.close, address)
        self._opened, self.base = [], []

    def _free(self) -> None:
        if self._own:
            own, self._own = self._own, 0
            self._card.free(own)


def _reach(rank: int, card: Any, seats: list[_Seat]) -> None:
    """Raises EnvironmentProblem for the first peer whose card this rank's cannot load and store."""
    mine = seats[rank]
    for peer, seat in enumerate(seats):
        whose = f"transport ipc: rank {rank} ({mine}) cannot reach the memory of rank {peer} ({seat})"
        if seat.uuid == mine.uuid:
            continue
        ordinal = card.ordinal_of(seat.uuid)
        if ordinal is None:
            raise EnvironmentProblem(f"{whose}: that card is hidden from rank {rank}: {SHOW_ALL}")
        if not card.can_access(ordinal):
            raise EnvironmentProblem(f"{whose}: the driver has no path between the two cards: {NO_PATH}")
