"""GPUs of the PTX machine with the methods of `CudaDevice`, and ranks that are threads of one process.

As soon as all ranks wait, the machine runs their launches concurrently, as GPUs do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import leftovers
import numpy as np
from kept_ptx import ptx

import ptxsim
from aristos.host.nodes import Nodes
from aristos.kernels.cuda.target import Target
from kernel_cache.sm_limits import limits_of, resident
from ptxsim import isa


class Together:
    """The threads that are the ranks of a group, and the machine they share."""

    def __init__(self, world: int, machine: Any, seconds: float = 120.0) -> None:
        self.world, self.machine, self.seconds = world, machine, seconds
        self._barrier = threading.Barrier(world)
        self._gathered: list[Any] = [None] * world
        self.lock, self.arrived = threading.Lock(), 0
        self.posted: dict[int, dict[int, np.ndarray]] = {}  # number of the collective call -> what each rank has sent

    def allgather(self, rank: int, value: Any) -> list[Any]:
        self._gathered[rank] = value
        self._barrier.wait(self.seconds)
        found = list(self._gathered)
        self._barrier.wait(self.seconds)
        return found

    def run(self, rank: int) -> None:
        """All ranks wait here while one of them runs the machine."""
        if self._barrier.wait(self.seconds) == 0:
            self.machine.run(strict=False)
        self._barrier.wait(self.seconds)

    def abort(self) -> None:
        self._barrier.abort()


class MachineGpu:
    """A rank's GPU, with the number `gpu`. blocks: how many of a kernel are resident at once."""

    name, driver = "PTX machine", "none"

    def __init__(self, together: Together, rank: int, gpu: int, blocks: int = 2) -> None:
        # a device runs one launch after another, so each rank has a device of its own, even if ranks share a GPU
        self.together, self.rank, self.ordinal = together, rank, rank
        self.machine = together.machine
        self.arch, self.uuid, self.sms = self.machine.arch, f"GPU-{gpu}", 1
        self.target = Target.named(self.arch)
        self._blocks = blocks
        self._arrays: dict[int, Any] = {}
        self._queued, self.recorded = False, 0
        self._times: list[int] = []
        self._timed: set[int] = set()
        self._pinned: dict[int, int] = {}
        self.stream = 7
        self._graphs: list[Callable[[], object]] = []

    # ---- memory
    def allocate(self, nbytes: int) -> int:
        array = self.machine.device(self.ordinal).array(np.zeros(-(-nbytes // 4), np.int32))
        self._arrays[array.ptr] = array
        return array.ptr

    def free(self, address: int) -> None:
        self._arrays.pop(address).free()

    def _bytes(self, address: int, count: int) -> np.ndarray:
        start = address - isa.GLOBAL_START
        self.machine.memory.init[start : start + count] = 1
        return self.machine.memory.data[start : start + count]

    def copy_in(self, address: int, array: np.ndarray, stream: int = 0) -> None:
        assert array.flags.c_contiguous
        self._bytes(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

    def copy_out(self, array: np.ndarray, address: int, stream: int = 0) -> None:
        self.synchronize(stream)
        array.reshape(-1).view(np.uint8)[:] = self._bytes(address, array.nbytes)

    def host(self, nbytes: int) -> tuple[np.ndarray, int]:
        """Pinned memory. Kernels here only poll it, and always read zeros."""
        array = np.zeros(nbytes, np.uint8)
        self._pinned[array.ctypes.data] = self.allocate(nbytes)
        return array, self._pinned[array.ctypes.data]

    def free_host(self, array: np.ndarray) -> None:
        self.free(self._pinned.pop(array.ctypes.data))

    # ---- kernels
    def load(self, kernel: Any) -> Any:
        return _Loaded(kernel)

    def resident(self, loaded: Any, shared_bytes: int) -> int:
        assert resident(limits_of((9, 0)), loaded.kernel.threads, shared_bytes, 64) > 0
        return self._blocks

    def launch(self, loaded: Any, grid: int, shared_bytes: int, *args: int, stream: int = 0) -> None:
        kernel = loaded.kernel
        assert len(args) == len(kernel.types)
        text, entry = ptx(kernel, self.arch)
        device = self.machine.device(self.ordinal)
        device.launch(text, grid, kernel.threads, *map(int, args), shared=shared_bytes, entry=entry)
        self._queued = True

    def done(self, stream: int = 0) -> bool:
        self.synchronize(stream)
        return True

    def synchronize(self, stream: int = 0) -> None:
        if self._queued:
            self._queued = False
            self.together.run(self.rank)

    def copy(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        self.synchronize(stream)
        self._bytes(to, nbytes)[:] = self._bytes(source, nbytes)

    def clear(self, address: int, nbytes: int, stream: int = 0) -> None:
        self.synchronize(stream)
        self._bytes(address, nbytes)[:] = 0

    # ---- streams, events and graphs, kept as numbers; an event's time is the number of events before it
    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def new_stream(self) -> int:
        return 7

    def event(self, timed: bool = True) -> int:
        self._times.append(0)
        if timed:
            self._timed.add(len(self._times) - 1)
        return len(self._times) - 1

    def record(self, event: int, stream: int = 0, capturing: bool = False) -> None:
        if event in self._timed:
            self.synchronize(stream)
            self.recorded += 1
            self._times[event] = self.recorded

    def wait(self, stream: int, event: int, capturing: bool = False) -> None:
        pass  # launches run in the order in which they are queued

    def passed(self, event: int) -> bool:
        self.synchronize()
        return True

    def capturing(self, stream: int) -> bool:
        return False

    def elapsed(self, a: int, b: int) -> float:
        return (self._times[b] - self._times[a]) * 1e-6

    def graph(self, stream: int, body: Callable[[], object]) -> int:
        self._graphs.append(body)
        return len(self._graphs) - 1

    def replay(self, graph: int, stream: int = 0) -> None:
        self._graphs[graph]()

    # ---- other processes' memory
    def handle(self, address: int) -> bytes:
        return address.to_bytes(64, "little")

    def open(self, handle: bytes) -> int:
        return int.from_bytes(handle, "little")

    def close(self, address: int) -> None:
        pass

    def can_access(self, other: int) -> bool:
        return True

    def ordinal_of(self, uuid: str) -> int:
        return int(uuid.removeprefix("GPU-"))


class _Loaded:
    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel


class FakeGroup:
    """The functions of an MPI group that the layer uses. Its ranks belong to no job."""

    def __init__(self, size: int) -> None:
        self.size = size

    def Get_size(self) -> int:
        return self.size

    def Translate_ranks(self, ranks: Iterable[int], group: Any) -> list[int]:
        return [-1 for _ in ranks]

    def Free(self) -> None:
        pass


class FakeComm:
    """The functions of an MPI communicator that the layer uses, between threads."""

    def __init__(self, together: Together, rank: int) -> None:
        self.together, self.rank, self.size = together, rank, together.world

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size

    def Dup(self) -> FakeComm:
        return self

    def Get_group(self) -> FakeGroup:
        return FakeGroup(self.size)

    def Free(self) -> None:
        pass

    def allgather(self, value: Any) -> list[Any]:
        return self.together.allgather(self.rank, value)

    def bcast(self, value: Any, root: int = 0) -> Any:
        return self.allgather(value)[root]

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        found = self.allgather(value)
        return found if self.rank == root else None

    def Alltoallv(self, sends: Any, gets: Any) -> None:
        """Exchange bytes. Each side gives (array, (counts, starts), type)."""
        source, (counts, starts), _ = sends
        blocks = [source[at : at + n].copy() for n, at in zip(counts, starts)]
        found = self.allgather(blocks)
        into, (counts, starts), _ = gets
        for rank, (n, at) in enumerate(zip(counts, starts)):
            into[at : at + n] = found[rank][self.rank]
        self.Barrier()

    def Split(self, color: int, key: int) -> FakeComm:
        """The threads of the same color, in order of rank, on the same machine."""
        colors = self.allgather(color)
        members = [rank for rank, other in enumerate(colors) if other == color]
        if self.rank == members[0]:
            part = Together(len(members), self.together.machine, self.together.seconds)
        parts = self.allgather(part if self.rank == members[0] else None)
        return FakeComm(parts[members[0]], members.index(self.rank))

    def Barrier(self) -> None:
        self.together.allgather(self.rank, None)

    def Ibarrier(self) -> _Request:
        nothing = np.empty(0, np.int64)
        return self.Iallgather(nothing, np.empty((self.size, 0), np.int64))

    def Iallgather(self, mine: np.ndarray, found: np.ndarray) -> _Request:
        return _Request(self.together, self.rank, mine, found)

    def iprobe(self, tag: int) -> bool:
        """Always False: no failed rank sends a message, since its thread aborts all others."""
        return False

    def isend(self, value: Any, to: int, tag: int) -> None:
        pass

    def Abort(self, code: int) -> None:
        self.together.abort()


class _Request:
    """An allgather that is polled: complete when every rank has started it."""

    def __init__(self, together: Together, rank: int, mine: np.ndarray, found: np.ndarray) -> None:
        with together.lock:
            self.posted = together.posted.setdefault(together.arrived // together.world, {})
            self.posted[rank] = mine.copy()
            together.arrived += 1
        self.found = found

    def Test(self) -> bool:
        if len(self.posted) < len(self.found):
            return False
        for rank, words in self.posted.items():
            self.found[rank] = words
        return True


def as_threads(
    together: Together, body: Callable[[Any, int], Any], *patches: Any, first_here: bool = False
) -> list[Any]:
    """Run body(comm, rank) on threads that are the ranks of a group; returns their results, raises the first error.

    patches: context managers that are open meanwhile. first_here: rank 0 is the calling thread.
    """
    world = together.world
    results: list[Any] = [None] * world
    errors: list[Any] = [None] * world

    def run(rank: int) -> None:
        try:
            results[rank] = body(FakeComm(together, rank) if world > 1 else None, rank)
        except BaseException as error:
            errors[rank] = error
            together.abort()

    hooks = leftovers.registered()
    with ExitStack() as stack:
        for target, value in (
            ("aristos.substrate.cuda.runtime.LOCAL_RANK", ()),
            ("aristos.host.nodes.Nodes.shared", lambda comm, ranks=None: (Nodes.split(comm.size, ranks), comm)),
            ("aristos.transport.ipc.check_one_node", lambda comm, transport: None),
            ("aristos.layer.collective.check_comm", lambda comm: None),
            ("aristos.layer.grouped.check_comm", lambda comm: None),
            ("aristos.substrate.attach._key", id),
            ("aristos.transport.group.Group.abort_at_exit", lambda group, why, comm=None: None),
            ("aristos.transport.group.end_job", lambda comm, code, last_words="": comm.Abort(code)),
        ):
            stack.enter_context(mock.patch(target, value))
        for each in patches:
            stack.enter_context(each)
        threads = [threading.Thread(target=run, args=(r,), daemon=True) for r in range(int(first_here), world)]
        for thread in threads:
            thread.start()
        if first_here:
            run(0)
        for thread in threads:
            thread.join(300)
        assert not any(thread.is_alive() for thread in threads)
    first = [error for error in errors if error is not None and not isinstance(error, threading.BrokenBarrierError)]
    if first:
        leftovers.drop_since(hooks)  # a rank that failed has not closed its layers
        raise first[0]
    return results


def on_ranks(
    world: int,
    body: Callable[[Any, int], Any],
    gpus: int | None = None,
    blocks: int = 2,
    seed: int = 0,
    check: bool = True,
) -> list[Any]:
    """Run body(comm, rank) on `world` threads, each a rank with a GPU of one machine; returns their results.

    gpus: if fewer than ranks, ranks share them. Raises the first rank's error; fails if the machine reports anything.
    """
    machine = ptxsim.Machine(devices=world, seed=seed, check=check)
    together = Together(world, machine)
    local = threading.local()
    held: dict[int, MachineGpu] = {}

    def run(comm: Any, rank: int) -> Any:
        local.rank = rank
        return body(comm, rank)

    def find(_: int) -> MachineGpu:
        if local.rank not in held:
            held[local.rank] = MachineGpu(together, local.rank, local.rank % (gpus or world), blocks)
        return held[local.rank]

    results = as_threads(together, run, mock.patch("aristos.substrate.cuda.runtime.CudaDevice.find", find))
    assert not machine.reports, "\n".join(str(report) for report in machine.reports[:8])
    return results
