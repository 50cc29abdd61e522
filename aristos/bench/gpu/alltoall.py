"""All-to-alls of bytes between the GPUs of ranks, as the fused layer's rivals move rows: by NCCL, or by MPI.

Both move `sends[p]` bytes to each rank p and `gets[p]` bytes from it. NCCL's is queued on the stream, and so may be
captured in a graph. MPI's goes through pinned memory of the hosts, because few MPI libraries that people have take GPU
memory; it waits for the stream.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EnvironmentProblem
from .clock import BenchGpu

Bytes = NDArray[np.int64]  # [W], of each rank


def starts(counts: Bytes) -> Bytes:
    """Where each rank's part begins if all lie side by side."""
    return np.cumsum(counts) - counts


class Nccl:
    """NCCL's communicator of all ranks, by CuPy's binding. Collective.

    Raises EnvironmentProblem on every rank if one has no NCCL or two share a GPU, which NCCL refuses.
    """

    name, captured = "NCCL", True

    def __init__(self, gpu: BenchGpu) -> None:
        self.gpu, world = gpu, gpu.world
        try:
            self._nccl: Any = importlib.import_module("cupy.cuda.nccl")
            missing = "" if self._nccl.available else "CuPy finds no NCCL"
        except ImportError as error:
            missing = f"CuPy cannot be imported ({error})"
        offers = world.allgather((missing, gpu.device.uuid))
        lacking = [f"rank {rank}: {why}" for rank, (why, _) in enumerate(offers) if why]
        if lacking:
            raise EnvironmentProblem(f"no NCCL ({lacking[0]}): pip install 'aristos[cuda12]' has CuPy and NCCL")
        if len({uuid for _, uuid in offers}) < world.size:
            raise EnvironmentProblem("no NCCL: ranks share a GPU, and NCCL takes one rank a GPU")
        key = world.bcast(self._nccl.get_unique_id() if world.rank == 0 else None)
        with gpu.device.current(), world.bounded("NCCL's start"):
            self._comm = self._nccl.NcclCommunicator(world.size, key, world.rank)

    def __call__(self, to: int, source: int, sends: Bytes, gets: Bytes) -> None:
        """Queue it. to, source: addresses of the parts of all ranks, side by side."""
        stream, kind = self.gpu.stream, self._nccl.NCCL_INT8
        with self.gpu.device.current():
            self._nccl.groupStart()
            for p, (n, at) in enumerate(zip(sends.tolist(), starts(sends).tolist())):
                if n:
                    self._comm.send(source + at, n, kind, p, stream)
            for p, (n, at) in enumerate(zip(gets.tolist(), starts(gets).tolist())):
                if n:
                    self._comm.recv(to + at, n, kind, p, stream)
            self._nccl.groupEnd()

    def close(self) -> None:
        """Free the communicator. Collective."""
        with self.gpu.device.current():
            self._comm.destroy()


class Staged:
    """MPI_Alltoallv through pinned memory of the hosts. most: of the bytes that a rank sends or gets."""

    name, captured = "MPI, staged", False

    def __init__(self, gpu: BenchGpu, most: int) -> None:
        self.gpu = gpu
        self._host = [gpu.device.host(most)[0] for _ in range(2)]

    def __call__(self, to: int, source: int, sends: Bytes, gets: Bytes) -> None:
        """Move the bytes; waits for the stream before and after MPI. Arguments as those of `Nccl`. Collective."""
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


def nccl_or_why(gpu: BenchGpu) -> tuple[Nccl | None, str]:
    """(NCCL, "") or (None, why there is none). Collective."""
    try:
        return Nccl(gpu), ""
    except EnvironmentProblem as missing:
        return None, str(missing)
