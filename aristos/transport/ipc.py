"""Transport `ipc`: CUDA IPC between the ranks of a node. A put is a store into a peer's memory.

Rows are not copied through other memory: if a rank's GPU cannot reach a peer's memory, every rank raises an error.
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

GRAIN = 2 << 20  # bytes of the blocks that the driver shares whole, with everything that lies in them

SHOW_ALL = (
    "let every rank see all GPUs of the node (each uses the GPU of its local rank): use srun --gpus-per-node=N"
    " --gpu-bind=none, without --gpus-per-task or another --gpu-bind; set the same CUDA_VISIBLE_DEVICES on all ranks;"
    " start containers with --gpus all or --nv"
)
NO_PATH = (
    "`nvidia-smi topo -p2p r` shows which pairs of GPUs have one; use GPUs that NVLink or one PCIe root connects,"
    " without MIG, with the IOMMU off or passing through (iommu=pt), and with PCIe ACS off"
)


@dataclass(frozen=True)
class _Seat:
    """What other ranks must know of a rank's GPU. visible: the rank's CUDA_VISIBLE_DEVICES."""

    host: str
    uuid: str
    name: str
    visible: str | None

    def __str__(self) -> str:
        seen = "" if self.visible is None else f", CUDA_VISIBLE_DEVICES={self.visible}"
        return f"{self.name} {self.uuid} on {self.host}{seen}"


class IpcWindow:
    """`nbytes` of device memory on each rank, which every rank of `comm` can load and store from its GPU. Collective.

    comm: ranks of one node; several may share a GPU. device: a `CudaDevice` of aristos.substrate.cuda. base: address of
    every rank's part on this rank's GPU, in rank order. The memory starts as zeros. If one rank fails, all ranks raise
    EnvironmentProblem, and nothing stays open.
    """

    def __init__(self, comm: Any, device: Any, nbytes: int) -> None:
        check_one_node(comm, "ipc")
        self.nbytes = nbytes
        self.base: list[int] = []
        self._comm, self._device = comm, device
        self._own = 0
        self._opened: list[int] = []
        seats = comm.allgather(_Seat(platform.node(), device.uuid, device.name, os.environ.get("CUDA_VISIBLE_DEVICES")))
        self._on_all(lambda: _reach(comm.rank, device, seats))
        try:
            handles = self._on_all(self._allocate)
            self._on_all(lambda: self._open(handles, seats))
        except EnvironmentProblem:
            self.close()
            raise

    def _on_all(self, step: Callable[[], Any]) -> list[Any]:
        """Run a step on all ranks. Returns the step's results in rank order.

        If the step fails on a rank, all ranks raise the error of the lowest rank that failed.
        """
        made, failed = None, None
        try:
            made = step()
        except EnvironmentProblem as error:
            failed = error
        answers = self._comm.allgather((made, failed))
        for rank, (_, why) in enumerate(answers):
            if why is not None:
                raise failed if failed is not None and rank == self._comm.rank else why
        return [each for each, _ in answers]

    def _allocate(self) -> bytes:
        try:
            self._own = self._device.allocate(max(1, -(-self.nbytes // GRAIN)) * GRAIN)
            return self._device.handle(self._own)
        except EnvironmentProblem as error:
            whose = f"transport ipc: rank {self._comm.rank} on {self._device.name} {self._device.uuid}"
            raise type(error)(f"{whose} cannot share {self.nbytes} bytes: {error}") from error

    def _open(self, handles: list[bytes], seats: list[_Seat]) -> None:
        rank = self._comm.rank
        for peer, handle in enumerate(handles):
            if peer == rank:
                self.base.append(self._own)
                continue
            try:
                address = self._device.open(handle)
            except EnvironmentProblem as error:
                hidden = self._device.ordinal_of(seats[peer].uuid) is None
                why = f"; that GPU is hidden from rank {rank}: {SHOW_ALL}" if hidden else ""
                raise EnvironmentProblem(
                    f"transport ipc: rank {rank} ({seats[rank]}) cannot open the memory of rank {peer} ({seats[peer]}):"
                    f" {error}{why}"
                ) from error
            self._opened.append(address)
            self.base.append(address)

    def close(self) -> None:
        """Close the peers' memory and free this rank's; collective. No kernel that uses it may still run."""
        if self._comm is None:
            return
        comm, self._comm = self._comm, None
        with contextlib.ExitStack() as stack:  # a failing close must not leave the other ranks waiting
            stack.callback(self._free)
            stack.callback(comm.Barrier)
            for address in self._opened:
                stack.callback(self._device.close, address)
        self._opened, self.base = [], []

    def _free(self) -> None:
        if self._own:
            own, self._own = self._own, 0
            self._device.free(own)


def _reach(rank: int, device: Any, seats: list[_Seat]) -> None:
    """Raise EnvironmentProblem for the first peer whose memory this rank's GPU surely cannot load and store.

    For a GPU that is hidden from this process, this is known only when its memory is opened.
    """
    mine = seats[rank]
    for peer, seat in enumerate(seats):
        whose = f"transport ipc: rank {rank} ({mine}) cannot reach the memory of rank {peer} ({seat})"
        if seat.uuid == mine.uuid:
            continue
        ordinal = device.ordinal_of(seat.uuid)  # None: CUDA_VISIBLE_DEVICES hides it; IPC may still open its memory
        if ordinal is not None and not device.can_access(ordinal):
            raise EnvironmentProblem(f"{whose}: the driver has no path between the two GPUs: {NO_PATH}")
