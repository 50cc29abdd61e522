"""A GPU of the PTX machine for each rank of a real MPI job. The ranks of a node share its memory.

Each process has a machine of one device, whose memory is a part of one file. An address means the same in all
processes, so an IPC handle is simply an address. There is no checker, because it would not see the writes of other
processes. Only the thread that made a GPU may use it: the proxy may not call the driver. MPI_Put can be replaced by one
that also takes the machine's addresses.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from simt_gpu import MachineGpu, Together

import ptxsim
from aristos.primitives import wire
from aristos.substrate.cuda.device_puts import Answer
from aristos.transport.rma import RmaWindow, mpi_library
from ptxsim import isa
from ptxsim.address_space import GAP, FreeRuns

PART = 1 << 28  # bytes of a rank's part; untouched pages take no memory
CALLS = {
    "allocate",
    "free",
    "copy_in",
    "copy_out",
    "copy",
    "clear",
    "load",
    "launch",
    "synchronize",
    "done",
    "passed",
    "record",
    "wait",
}
PUT = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * 8)


class Shared:
    """Memory that processes share. bytes: a mapping of a whole file; freed parts are set to zero."""

    def __init__(self, path: Path, size: int) -> None:
        with open(path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), size)
        self.bytes = np.frombuffer(self.map, np.uint8)

    def clear(self, start: int, end: int) -> None:
        self.bytes[start:end] = 0

    def expect(self, start: int, end: int) -> None:
        """Make no pages: the file's pages are made when they are written."""


class ProcessGpu(MachineGpu):
    """This process's GPU; path: a file of PART zero bytes a rank."""

    def __init__(self, path: Path, rank: int, world: int, blocks: int) -> None:
        machine = ptxsim.Machine(check=False, seed=rank)
        machine.patience = 1 << 60  # other processes may be slow
        memory = machine.memory
        memory.whole = Shared(path, PART * world)
        memory.data, memory.runs = memory.whole.bytes, FreeRuns(PART * rank + GAP, PART * (rank + 1))
        memory.publish()
        super().__init__(Together(1, machine), 0, rank, blocks)
        self._hosts: dict[int, Any] = {}
        self.put_from = 0  # bytes of this GPU's memory that MPI has put

    def __getattribute__(self, name: str) -> Any:
        """The proxy may not call the driver: another thread may hold its lock until the kernel has ended."""
        if name in CALLS and threading.current_thread().name == "aristos-proxy":
            raise AssertionError(f"the proxy thread calls {name}")
        return super().__getattribute__(name)

    def host(self, nbytes: int) -> tuple[np.ndarray, int]:
        made = self.machine.host_array(np.zeros(nbytes, np.uint8))
        array = self._bytes(made.ptr, nbytes)
        self._hosts[array.ctypes.data] = made
        return array, made.ptr

    def free_host(self, array: np.ndarray) -> None:
        self._hosts.pop(array.ctypes.data).free()

    def pin(self, address: int, nbytes: int) -> int:
        return 0


def taking(gpu: ProcessGpu) -> Callable[..., np.ndarray]:
    """A replacement for RmaWindow._connect whose MPI_Put also takes addresses of the GPU's memory."""
    connect = RmaWindow._connect
    real = ctypes.cast(mpi_library().MPI_Put, ctypes.c_void_p).value or 0

    def put(source: int, count: int, *rest: int) -> int:
        if any(a.ptr <= source < a.ptr + a.nbytes for a in list(gpu._arrays.values())):
            source += gpu.machine.memory.data.ctypes.data - isa.GLOBAL_START
            gpu.put_from += count
        return int(PUT(real)(source, count, *rest))

    gpu.kept = PUT(put)

    def connected(self: RmaWindow, comm: Any) -> np.ndarray:
        words = connect(self, comm)
        words[wire.PUT] = ctypes.cast(gpu.kept, ctypes.c_void_p).value or 0
        return words

    return connected


@contextlib.contextmanager
def gpus(comm: Any, folder: Path, blocks: int = 2, takes: bool = False) -> Iterator[ProcessGpu]:
    """In the `with` block, layers with backend="cuda" find this rank's GPU. Collective; all ranks give the same folder.

    takes: MPI can put from GPU memory, and the probe reports that it can.
    """
    path = folder / "memory"
    if comm.rank == 0:
        with open(path, "wb") as file:
            file.truncate(PART * comm.size)
    comm.Barrier()
    gpu = ProcessGpu(path, comm.rank, comm.size, blocks)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("aristos.substrate.cuda.runtime.CudaDevice.find", return_value=gpu))
        stack.enter_context(mock.patch("aristos.substrate.cuda.device_puts.probe", return_value=Answer(takes)))
        if takes:
            stack.enter_context(mock.patch.object(RmaWindow, "_connect", taking(gpu)))
        yield gpu
    reports = gpu.machine.reports
    assert not reports, "\n".join(map(str, reports))
    comm.Barrier()
