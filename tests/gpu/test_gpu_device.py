"""substrate/cuda/device.py on a real GPU: memory, copies, kernels with much shared memory, time, IPC."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[cuda12]'")
from aristos.substrate.cuda.device import CudaDevice, count

if not count():
    pytest.skip("no GPU: the driver is missing or shows none", allow_module_level=True)
from cuda_kernels import FILL, REVERSE, WORDS

from aristos.errors import EnvironmentProblem, MemoryProblem
from aristos.substrate.cuda import device_puts
from aristos.substrate.cuda.driver import call
from aristos.transport.ipc import IpcWindow


@pytest.fixture(scope="module")
def own():
    return CudaDevice.find(0)


def read(gpu, address, words, stream=0):
    """[words] int64 of device memory."""
    found = np.empty(words, np.int64)
    gpu.copy_out(found, address, stream)
    return found


def test_properties(own):
    assert own.uuid.startswith("GPU-")
    assert own.arch.startswith("sm_")
    assert own.sms > 0
    assert own.ordinal_of(own.uuid) == own.ordinal
    assert own.ordinal_of("GPU-00000000-0000-0000-0000-000000000000") is None
    assert own.can_access(own.ordinal)


def test_memory(own):
    address = own.allocate(1 << 24)
    assert not read(own, address, 1 << 21).any()
    values = np.arange(1000)
    own.copy_in(address + 800, values)
    np.testing.assert_array_equal(read(own, address + 800, 1000), values)
    own.clear(address + 800, 80, own.stream)
    np.testing.assert_array_equal(read(own, address + 800, 1000), np.where(values < 10, 0, values))
    own.free(address)
    with pytest.raises(MemoryProblem, match=r"cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: \d+ of \d+ MiB"):
        own.allocate(1 << 50)


def test_the_probe_of_puts_from_device_memory(own, monkeypatch):
    """The answer depends on the MPI library, but the child process must at least try a put."""
    monkeypatch.delenv(device_puts.VARIABLE, raising=False)
    answer = device_puts.probe(own.ordinal)
    untried = ("exit code", "has not started", "did not start")
    assert answer.supported or not any(word in answer.why for word in untried), answer


def test_kernels_and_streams(own):
    """Kernels write device memory and mapped host memory, in the order of a stream."""
    stream, loaded = own.new_stream(), own.load(FILL)
    assert own.load(FILL) is loaded
    address = own.allocate(8 * 1000)
    array, mapped = own.host(8 * 1000)
    own.launch(loaded, 8, 0, address, 1000, 5, stream=stream)
    own.launch(loaded, (8, 1), 0, mapped, 1000, -5, stream=stream)
    np.testing.assert_array_equal(read(own, address, 1000, stream), 5 + np.arange(1000))
    np.testing.assert_array_equal(array.view(np.int64), np.arange(1000) - 5)
    own.free_host(array)
    own.free(address)


def test_more_than_48_kb_of_shared_memory(own):
    loaded = own.load(REVERSE)
    assert own.resident(loaded, REVERSE.shared_bytes) >= 1
    source, target = own.allocate(8 * WORDS), own.allocate(8 * WORDS)
    own.copy_in(source, np.arange(WORDS))
    own.launch(loaded, 1, REVERSE.shared_bytes, source, target)
    np.testing.assert_array_equal(read(own, target, WORDS), np.arange(WORDS)[::-1])
    with pytest.raises(EnvironmentProblem, match=r"reverse needs .* bytes of shared memory in each block"):
        own.resident(loaded, 1 << 20)
    own.free(source)
    own.free(target)


def test_time(own):
    a, b, stream = own.event(), own.event(), own.new_stream()
    address = own.allocate(1 << 28)
    own.record(a, stream)
    own.clear(address, 1 << 28, stream)
    own.record(b, stream)
    assert 0 < own.elapsed(a, b) < 1
    own.free(address)


def test_the_callers_context_stays(own):
    """The current context of CuPy or Numba is unchanged."""
    before = int(call("cuCtxGetCurrent"))
    own.free(own.allocate(8))
    assert int(call("cuCtxGetCurrent")) == before


@pytest.mark.ranks(2, timeout=300)
def test_memory_of_another_process(comm):
    """Each rank stores into the other rank's window with a kernel. Both ranks may use one GPU."""
    gpu = CudaDevice.find(comm.rank)
    window = IpcWindow(comm, gpu, 8 * 1000)
    loaded, peer = gpu.load(FILL), 1 - comm.rank
    comm.Barrier()
    gpu.launch(loaded, 8, 0, window.base[peer], 1000, 1000 * comm.rank)
    gpu.synchronize()
    comm.Barrier()
    np.testing.assert_array_equal(read(gpu, window.base[comm.rank], 1000), 1000 * peer + np.arange(1000))
    comm.Barrier()
    window.close()
    again = IpcWindow(comm, gpu, 8)
    assert not read(gpu, again.base[peer], 1).any(), "a window starts as zeros"
    again.close()
