"""All-to-alls of bytes between the GPUs of ranks, by NCCL or by MPI, for the fused layer's rivals.

Each all-to-all moves `sends[p]` bytes to each rank p and `gets[p]` bytes from it. NCCL's is queued on the stream, and
so may be captured in a graph. MPI's waits for the stream, and goes through pinned memory of the hosts, because few
installed MPI libraries take GPU memory.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EnvironmentProblem
from .clock import BenchGpu
from .libraries import Library

Bytes = NDArray[np.int64]  # [W] a number of bytes for each rank
INT8 = 0  # ncclDataType_t
START_SECONDS = 60.0  # time that NCCL may take to start; without a limit it would wait for ever for a rank that failed
LATE = "ncclCommInitRank has not returned"


def starts(counts: Bytes) -> Bytes:
    """Where each rank's part begins if all parts lie side by side."""
    return np.cumsum(counts) - counts


class UniqueId(ctypes.Structure):
    """ncclUniqueId, which NCCL takes by value."""

    _fields_ = (("internal", ctypes.c_char * 128),)


def library() -> Library:
    """Load NCCL. Raises EnvironmentProblem if there is none."""
    return Library("NCCL", ("libnccl.so.2",), "ncclResult_t")


class Nccl:
    """NCCL's communicator of all ranks. used: library, version and path. Collective.

    Raises EnvironmentProblem on every rank if a rank has no NCCL or cannot start it within START_SECONDS, or if two
    ranks share a GPU, which NCCL refuses.
    """

    name, captured = "NCCL", True

    def __init__(self, gpu: BenchGpu) -> None:
        self.gpu, world = gpu, gpu.world
        missing, key, self._comm = "", UniqueId(), ctypes.c_void_p()
        try:
            self._nccl = library()
            version = self._nccl.number("ncclGetVersion")
            self.used = f"NCCL {version // 10000}.{version // 100 % 100}.{version % 100} ({self._nccl.path})"
            if world.rank == 0:
                self._nccl.call("ncclGetUniqueId", ctypes.byref(key))
        except EnvironmentProblem as error:
            missing = str(error)
        self._agree(missing)
        if len(set(world.allgather(gpu.device.uuid))) < world.size:
            raise EnvironmentProblem("NCCL is not measured: it allows one rank on a GPU, and here ranks share a GPU")
        self._agree(self._started(UniqueId.from_buffer_copy(world.bcast(bytes(key)))))

    def _agree(self, why: str) -> None:
        """Raise EnvironmentProblem on every rank if any rank cannot use NCCL. Collective.

        why: why this rank cannot use NCCL, or ''. Only one rank's reason is raised, if possible one that is not LATE.
        """
        reasons = enumerate(self.gpu.world.allgather(why))
        if found := sorted((f"rank {rank}: {why}" for rank, why in reasons if why), key=lambda each: LATE in each):
            raise EnvironmentProblem(found[0])

    def _started(self, key: UniqueId) -> str:
        """Start NCCL in another thread, which is abandoned if it does not return.

        Returns why NCCL has not started, or ''.
        """
        world = self.gpu.world
        outcome = [f"{LATE} after {START_SECONDS:g} s: another rank has failed or cannot be reached"]

        def start() -> None:
            try:
                size, rank = ctypes.c_int(world.size), ctypes.c_int(world.rank)
                self._call("ncclCommInitRank", ctypes.byref(self._comm), size, key, rank)
                outcome.append("")
            except Exception as error:
                outcome.append(str(error))

        thread = threading.Thread(target=start, daemon=True, name="NCCL's start")
        thread.start()
        thread.join(START_SECONDS)
        return outcome[-1]

    def _call(self, name: str, *arguments: Any) -> None:
        with self.gpu.device.current():
            self._nccl.call(name, *arguments)

    def __call__(self, to: int, source: int, sends: Bytes, gets: Bytes) -> None:
        """Queue the all-to-all. to, source: addresses of the parts of all ranks, side by side."""
        rest = self._comm, ctypes.c_void_p(self.gpu.stream)
        self._call("ncclGroupStart")
        for name, start, counts in (("ncclSend", source, sends), ("ncclRecv", to, gets)):
            for p, (n, at) in enumerate(zip(counts.tolist(), starts(counts).tolist())):
                if n:
                    where = ctypes.c_void_p(start + at), ctypes.c_size_t(n)
                    self._call(name, *where, ctypes.c_int(INT8), ctypes.c_int(p), *rest)
        self._call("ncclGroupEnd")

    def close(self) -> None:
        """Free the communicator. Collective."""
        self._call("ncclCommDestroy", self._comm)


class Staged:
    """MPI_Alltoallv through pinned memory of the hosts. most: the most bytes that a rank sends or gets."""

    name, captured = "MPI, staged", False

    def __init__(self, gpu: BenchGpu, most: int) -> None:
        self.gpu = gpu
        self._host = [gpu.device.host(most)[0] for _ in range(2)]

    def __call__(self, to: int, source: int, sends: Bytes, gets: Bytes) -> None:
        """Move the bytes, with a wait for the stream before and after MPI. Collective. Arguments: those of `Nccl`."""
        from mpi4py import MPI

        device, stream = self.gpu.device, self.gpu.stream
        out, into = (array[: int(n.sum())] for array, n in zip(self._host, (sends, gets)))
        device.copy_out(out, source, stream)
        device.synchronize(stream)
        with self.gpu.world.bounded("Alltoallv"):
            self.gpu.world.comm.Alltoallv(
                [out, (sends, starts(sends)), MPI.BYTE], [into, (gets, starts(gets)), MPI.BYTE]
            )
        device.copy_in(to, into, stream)
        device.synchronize(stream)

    def close(self) -> None:
        """Free the memory."""
        for array in self._host:
            self.gpu.device.free_host(array)
