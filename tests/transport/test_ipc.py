"""Windows of device memory between ranks. Ranks are threads, each a process of a fake driver, or ranks of MPI."""

from __future__ import annotations

import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed: pip install 'aristos[simt]'")
import fake_cuda
from fake_cuda import Machine, Process

from aristos.errors import EnvironmentProblem, MemoryProblem
from aristos.substrate.cuda import driver as calls
from aristos.substrate.cuda.device import CudaDevice
from aristos.transport.ipc import GRAIN, IpcWindow

SECONDS = 20


class Threads:
    """What the ranks of a communicator share. nodes: the number of nodes, which have equal sizes."""

    def __init__(self, size, nodes=1):
        self.size, self.nodes = size, nodes
        self.barrier = threading.Barrier(size, timeout=SECONDS)
        self.slots = [b""] * size


class Comm:
    """A communicator whose ranks are threads. Objects travel as bytes, as in MPI."""

    def __init__(self, shared, rank):
        self.shared, self.rank, self.size = shared, rank, shared.size

    def Barrier(self):
        self.shared.barrier.wait()

    def allgather(self, value):
        self.shared.slots[self.rank] = pickle.dumps(value)
        self.Barrier()
        found = [pickle.loads(each) for each in self.shared.slots]
        self.Barrier()
        return found

    def Split_type(self, kind):
        return SimpleNamespace(size=self.size // self.shared.nodes, Free=lambda: None)


class Job:
    """Ranks of one machine. Each is a thread, and for the driver a process of its own."""

    def __init__(self, machine, visible, monkeypatch, nodes=1, permitted=None):
        self.machine, self.visible, self.nodes = machine, visible, nodes
        allowed = permitted or [None] * len(visible)
        self.processes = [Process(machine, *each) for each in zip(visible, allowed)]
        self.driver = fake_cuda.Driver(self.processes[0])
        monkeypatch.setitem(sys.modules, calls.MODULE, self.driver)

    def run(self, work):
        """For each rank the result of `work(comm, local rank)`, or the error that it raised."""
        shared = Threads(len(self.visible), self.nodes)

        def rank(number):
            self.driver.here.process = self.processes[number]
            try:
                return work(Comm(shared, number), number)
            except EnvironmentProblem as error:
                return error

        with ThreadPoolExecutor(len(self.visible)) as pool:
            found = list(pool.map(rank, range(len(self.visible))))
        assert not self.machine.violations
        return found


def all_closed(machine):
    return all(each.freed and not each.open for each in machine.allocations.values())


def exchange(comm, local_rank):
    """Every rank stores its number into each window, and reads the numbers in its own."""
    device = CudaDevice.find(local_rank)
    window = IpcWindow(comm, device, 8 * comm.size)
    start = np.empty(8 * comm.size, np.uint8)
    device.copy_out(start, window.base[comm.rank])
    comm.Barrier()
    for address in window.base:
        device.copy_in(address + 8 * comm.rank, np.array([comm.rank + 1]))
    comm.Barrier()
    words = np.zeros(comm.size, np.int64)
    device.copy_out(words, window.base[comm.rank])
    addresses = list(window.base)
    window.close()
    window.close()
    assert not window.base
    return words.tolist(), not start.any(), addresses


@pytest.mark.parametrize(("gpus", "ranks"), [(1, 1), (1, 3), (2, 2), (2, 5), (4, 4)])
def test_every_rank_reaches_every_part(monkeypatch, gpus, ranks):
    """Several ranks may share a GPU."""
    machine = Machine(gpus=gpus)
    found = Job(machine, [None] * ranks, monkeypatch).run(exchange)
    for words, zeroed, addresses in found:
        assert words == [rank + 1 for rank in range(ranks)]
        assert zeroed
        assert len(set(addresses)) == ranks
    assert all_closed(machine)
    assert all(each.nbytes % GRAIN == 0 for each in machine.allocations.values()), (
        "no other allocation may lie in the shared block"
    )


def test_peers_close_before_the_owner_frees(monkeypatch):
    """One rank closes late. The machine reports memory that is freed while another process has it open."""
    machine = Machine(gpus=2)
    slow = threading.Event()

    def work(comm, local_rank):
        device = CudaDevice.find(local_rank)
        window = IpcWindow(comm, device, 64)
        comm.Barrier()
        if comm.rank == 2:
            slow.wait(0.3)
        window.close()

    assert Job(machine, [None] * 3, monkeypatch).run(work) == [None] * 3
    assert all_closed(machine)
    order = [name for _, name in machine.log if name in ("cuIpcCloseMemHandle", "cuMemFree")]
    assert order == ["cuIpcCloseMemHandle"] * 6 + ["cuMemFree"] * 3


def test_a_gpu_that_a_variable_hides_is_opened(monkeypatch):
    """CUDA_VISIBLE_DEVICES shows each rank one GPU. IPC opens the memory of the other GPU."""
    machine = Machine(gpus=2)
    found = Job(machine, [[0], [1]], monkeypatch).run(exchange)
    assert [words for words, _, _ in found] == [[1, 2]] * 2
    assert all_closed(machine)


def test_a_gpu_that_the_system_hides(monkeypatch):
    """Each task may use only its own GPU. All ranks raise an error that names both ranks and says what to change."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    machine = Machine(gpus=2)
    found = Job(machine, [[0], [1]], monkeypatch, permitted=[[0], [1]]).run(exchange)
    texts = {str(error) for error in found}
    assert len(texts) == 1
    (text,) = texts
    first, second = (f"NVIDIA Made-up GPU-{d * 4}-{d * 2}-{d * 2}-{d * 2}-{d * 6} on " for d in ("a0", "a1"))
    assert text.startswith(f"transport ipc: rank 0 ({first}")
    assert f"cannot open the memory of rank 1 ({second}" in text
    assert "CUDA_VISIBLE_DEVICES=0)" in text
    assert "cuIpcOpenMemHandle: CUDA_ERROR_INVALID_VALUE" in text
    assert "that GPU is hidden from rank 0" in text
    for word in ("--gpus-per-node=N", "--gpu-bind=none", "--gpus-per-task", "--gpus all"):
        assert word in text
    assert all_closed(machine), "nothing stays open"


def test_gpus_without_a_path(monkeypatch):
    """Only rank 1's GPU cannot reach another; ranks 0 and 2 raise the same error."""
    machine = Machine(gpus=3)
    machine.gpus[1].reaches = {0}
    found = Job(machine, [None] * 3, monkeypatch).run(exchange)
    assert len({str(error) for error in found}) == 1
    assert "rank 1 (" in str(found[0])
    assert "cannot reach the memory of rank 2 (" in str(found[0])
    assert "no path between the two GPUs: `nvidia-smi topo -p2p r` shows" in str(found[0])


def test_different_orders_of_the_same_gpus(monkeypatch):
    """CUDA_VISIBLE_DEVICES may reorder ordinals: GPUs are identified by UUID."""
    machine = Machine(gpus=2)
    machine.gpus[0].reaches, machine.gpus[1].reaches = {1}, {0}
    found = Job(machine, [[0, 1], [0, 1], [1, 0]], monkeypatch).run(exchange)
    assert [words for words, _, _ in found] == [[1, 2, 3]] * 3
    assert all_closed(machine)


def test_one_rank_out_of_memory(monkeypatch):
    """All ranks raise MemoryProblem. The other rank frees its memory."""
    machine = Machine(gpus=2)
    machine.gpus[1].memory = 1 << 20
    found = Job(machine, [None] * 2, monkeypatch).run(exchange)
    assert {type(error) for error in found} == {MemoryProblem}
    for error in found:
        assert "transport ipc: rank 1 on NVIDIA Made-up GPU-a1" in str(error)
        assert "cannot share 16 bytes: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: 1 of the GPU's 1 MiB" in str(error)
    assert len(machine.allocations) == 1
    assert all_closed(machine)


def test_one_rank_that_cannot_open(monkeypatch):
    """Containers with their own PID namespaces cause this. Opened memory is closed, and allocated memory is freed."""
    machine = Machine(gpus=2)
    job = Job(machine, [None] * 3, monkeypatch)
    opens = job.driver.do_cuIpcOpenMemHandle

    def refused(self, process, handle, flags):
        if process is job.processes[2]:
            raise fake_cuda.Failure("CUDA_ERROR_INVALID_CONTEXT")
        return opens(process, handle, flags)

    monkeypatch.setattr(fake_cuda.Driver, "do_cuIpcOpenMemHandle", refused)
    found = job.run(exchange)
    assert len({str(error) for error in found}) == 1
    assert "rank 2 (" in str(found[0])
    assert "cannot open the memory of rank 0 (" in str(found[0])
    assert "cuIpcOpenMemHandle: CUDA_ERROR_INVALID_CONTEXT" in str(found[0])
    assert "--pid=host" in str(found[0])
    assert len(machine.allocations) == 3
    assert all_closed(machine)


def test_a_failing_close_does_not_block_the_others(monkeypatch):
    machine = Machine(gpus=2)
    job = Job(machine, [None] * 2, monkeypatch)
    closes = job.driver.do_cuIpcCloseMemHandle

    def refused(self, process, address):
        closes(process, address)
        if process is job.processes[0]:
            raise fake_cuda.Failure("CUDA_ERROR_LAUNCH_FAILED")

    monkeypatch.setattr(fake_cuda.Driver, "do_cuIpcCloseMemHandle", refused)
    found = job.run(exchange)
    assert "cuIpcCloseMemHandle: CUDA_ERROR_LAUNCH_FAILED" in str(found[0])
    assert found[1][0] == [1, 2]
    assert all_closed(machine)


def test_ranks_of_two_nodes(monkeypatch):
    found = Job(Machine(gpus=4), [None] * 4, monkeypatch, nodes=2).run(exchange)
    assert {str(error) for error in found} == {
        "transport ipc needs all 4 ranks on one node, but this rank's node has 2 of them"
    }


class PaperDevice:
    """A device without memory, for ranks of MPI. A handle contains its rank; an address is a number plus that rank."""

    name = "NVIDIA Made-up"

    def __init__(self, rank, hidden):
        self.rank, self.hidden, self.done = rank, hidden, []
        self.uuid = f"GPU-{rank // 2}"

    def allocate(self, nbytes):
        return 1000 + self.rank

    def handle(self, address):
        return bytes([self.rank]) * 64

    def open(self, handle):
        return 2000 + handle[0]

    def close(self, address):
        self.done.append(address)

    def free(self, address):
        self.done.append(address)

    def ordinal_of(self, uuid):
        return None if self.hidden else int(uuid[4:])

    def can_access(self, ordinal):
        return True


@pytest.mark.ranks(3)
def test_over_mpi(comm):
    """The window's collectives work with mpi4py as with threads."""
    device = PaperDevice(comm.rank, hidden=False)
    window = IpcWindow(comm, device, 64)
    assert window.base == [(1000 if rank == comm.rank else 2000) + rank for rank in range(3)]
    window.close()
    assert sorted(device.done[:2]) == [2000 + rank for rank in range(3) if rank != comm.rank]
    assert device.done[2:] == [1000 + comm.rank]
    hidden = IpcWindow(comm, PaperDevice(comm.rank, hidden=True), 64)
    assert len(hidden.base) == 3, "a hidden GPU's memory must be opened as any other"
    hidden.close()
