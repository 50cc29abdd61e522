"""A CudaDevice with a fake driver: memory, copies, kernels, time, IPC handles, error messages, late imports."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed: pip install 'aristos[simt]'")
import fake_cuda
from cases import ROOT
from fake_cuda import Machine, Process

from aristos.errors import EnvironmentProblem, InputError, MemoryProblem
from aristos.kernels.cuda.build import Built
from aristos.substrate.cuda import device
from aristos.substrate.cuda import driver as calls
from aristos.substrate.cuda.device import CudaDevice


@dataclass(frozen=True)
class Kernel:
    """Like catalogue.Kernel, which needs numba-cuda."""

    name: str
    types: tuple[str, ...]
    threads: int


KERNEL = Kernel("fill", ("int64",) * 3, 128)


@pytest.fixture
def machine():
    return Machine(gpus=2)


@pytest.fixture
def driver(machine, monkeypatch):
    """The fake driver, in place of the module. At the end no call may have left its context on the stack."""
    made = fake_cuda.Driver(Process(machine))
    monkeypatch.setitem(sys.modules, calls.MODULE, made)
    monkeypatch.setattr(device, "build", lambda kernel, arch: Built(f"{kernel.name}_{arch}", b"\x7fELF fill_sm_90"))
    yield made
    assert made.process.stack() == []
    assert not machine.violations


def test_the_properties_of_a_gpu(driver):
    assert device.count() == CudaDevice.count() == 2
    gpu = CudaDevice(1)
    assert (gpu.ordinal, gpu.name, gpu.arch, gpu.sms, gpu.driver) == (1, "NVIDIA Made-up", "sm_90", 132, "12.9")
    assert gpu.uuid == "GPU-a1a1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a1"
    assert [CudaDevice.find(rank).ordinal for rank in range(5)] == [0, 1, 0, 1, 0]


def test_an_ordinal_that_is_not_visible(driver):
    with pytest.raises(EnvironmentProblem, match=r"and below 2, .* got 2: .*--gpu-bind=none"):
        CudaDevice(2)
    with pytest.raises(EnvironmentProblem, match=r"at least 0 and below 2, .* got -1"):
        CudaDevice(-1)


def test_a_process_without_visible_gpus(driver):
    driver.first.visible = []
    assert device.count() == 0
    with pytest.raises(EnvironmentProblem, match=r"cuInit: CUDA_ERROR_NO_DEVICE: no GPU is visible .*nvidia-smi -L"):
        CudaDevice.find(0)


def test_the_current_context_stays(driver):
    """The current device of another library stays, also after an error."""
    gpu, stack = CudaDevice(1), driver.process.stack()
    stack.append(100)
    gpu.free(gpu.allocate(8))
    with pytest.raises(EnvironmentProblem):
        gpu.free(12345)
    assert stack == [100]
    stack.clear()


def test_memory_starts_as_zeros_and_holds_copies(driver, machine):
    gpu = CudaDevice(0)
    address = gpu.allocate(1000)
    assert not machine.allocations[gpu.handle(address)].data.any(), "another process may read it, so it must be zero"
    values = np.arange(100, dtype=np.int64)
    gpu.copy_in(address + 8, values)
    back = np.zeros(100, np.int64)
    gpu.copy_out(back, address + 8)
    np.testing.assert_array_equal(back, values)
    gpu.clear(address + 8, 80, gpu.stream)
    gpu.copy_out(back, address + 8)
    np.testing.assert_array_equal(back, np.where(values < 10, 0, values))
    gpu.copy_in(address, np.zeros(0))
    gpu.free(address)
    assert machine.used(0) == 0
    with pytest.raises(EnvironmentProblem, match="cuMemcpyDtoHAsync: CUDA_ERROR_INVALID_VALUE"):
        gpu.copy_out(back, address)


def test_copies_follow_their_stream_and_copies_of_pageable_memory_are_complete_at_once(driver):
    """Copies of pinned memory are asynchronous. After other copies the array may be reused at once."""
    gpu = CudaDevice(0)
    address, stream = gpu.allocate(800), gpu.new_stream()
    values = np.arange(100.0)
    gpu.copy_in(address, values, stream)
    values[:] = 0
    pinned, _ = gpu.host(800)
    numbers = pinned.view(np.float64)
    gpu.copy_out(numbers, address, stream)
    assert not numbers.any(), "the copy was complete before the stream was waited for"
    gpu.synchronize(stream)
    np.testing.assert_array_equal(numbers, np.arange(100.0))
    gpu.copy_in(address, numbers[:50] + 1, stream)
    gpu.copy_in(address, numbers[50:], stream)
    numbers[50:] = 7  # this changes the result, because the copy has not been made yet
    gpu.synchronize(stream)
    back = np.zeros(50)
    gpu.copy_out(back, address, stream)
    np.testing.assert_array_equal(back, np.full(50, 7.0))


def test_pinned_memory(driver):
    gpu = CudaDevice(0)
    array, address = gpu.host(64)
    assert array.shape == (64,)
    assert array.dtype == np.uint8
    assert not array.any()
    assert address != array.ctypes.data, "it must be the driver's address, not the host's"
    assert address == fake_cuda.address(array.ctypes.data - driver.process.machine.arena.base)
    gpu.free_host(array)
    assert not driver.process.pinned
    with pytest.raises(InputError, match=r"free_host needs an array that CudaDevice\.host returned"):
        gpu.free_host(array)


def test_memory_allocated_elsewhere_is_pinned_if_possible(driver):
    gpu, memory = CudaDevice(0), np.zeros(4096, np.uint8)
    assert gpu.pin(memory.ctypes.data, 4096)
    assert not gpu.pin(memory.ctypes.data, 4096)  # already pinned; nothing is raised
    gpu.unpin(memory.ctypes.data)
    assert not driver.process.pinned


def test_wrong_arrays(driver):
    gpu = CudaDevice(0)
    address = gpu.allocate(800)
    with pytest.raises(InputError, match="contiguous"):
        gpu.copy_in(address, np.zeros((10, 10)).T[1:])
    with pytest.raises(InputError, match="contiguous"):
        gpu.copy_out(np.zeros(20)[::2], address)
    constant = np.zeros(4)
    constant.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        gpu.copy_out(constant, address)
    for take in (gpu.allocate, gpu.host):
        with pytest.raises(InputError, match="nbytes must be positive, got 0"):
            take(0)


def test_out_of_memory(driver):
    gpu = CudaDevice(1)
    gpu.allocate(1 << 29)
    with pytest.raises(
        MemoryProblem, match=r"cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: 512 of the GPU's 1024 MiB are free: lower"
    ):
        gpu.allocate((1 << 29) + 1)


# ---- kernels ------------------------------------------------------------------------------------------------------


def test_a_kernel_is_loaded_once_and_launched(driver, machine):
    gpu = CudaDevice(0)
    loaded = gpu.load(KERNEL)
    assert gpu.load(KERNEL) is loaded
    assert sum(name == "cuModuleLoadData" for _, name in machine.log) == 1
    assert (loaded.registers, loaded.static) == (fake_cuda.KERNEL_REGISTERS, fake_cuda.KERNEL_STATIC)
    stream = gpu.new_stream()
    gpu.launch(loaded, 7, 0, 1 << 40, np.int64(100), -1, stream=stream)
    gpu.launch(loaded, (2, 3), 1024, 1, 2, 3)
    assert not driver.process.launches
    gpu.synchronize(stream)
    (first,) = driver.process.launches
    assert (first.grid, first.block, first.shared, first.stream) == ((7, 1, 1), (128, 1, 1), 0, stream)
    assert first.values == (1 << 40, 100, -1)
    gpu.synchronize()
    assert driver.process.launches[1].grid == (2, 3, 1)


def test_shared_memory_above_48_kb_is_asked_for_once(driver, machine):
    gpu = CudaDevice(0)
    loaded = gpu.load(KERNEL)
    assert gpu.resident(loaded, 4096) == min(2048 // 128, (228 << 10) // (4096 + 1024 + fake_cuda.KERNEL_STATIC))
    assert gpu.resident(loaded, 48 << 10) == 4, "static and dynamic together are above 48 KB"
    assert gpu.resident(loaded, 100 << 10) == 2
    gpu.launch(loaded, 1, 100 << 10, 1, 2, 3)
    gpu.launch(loaded, 1, 10 << 10, 1, 2, 3)
    assert sum(name == "cuFuncSetAttribute" for _, name in machine.log) == 2
    fresh = CudaDevice(0)
    fresh.launch(fresh.load(KERNEL), 1, 200 << 10, 1, 2, 3)
    with pytest.raises(EnvironmentProblem, match=r"fill needs 234496 bytes .* has 232448: choose a smaller tile"):
        gpu.launch(loaded, 1, 228 << 10, 1, 2, 3)


def test_wrong_launches(driver):
    gpu = CudaDevice(0)
    loaded = gpu.load(KERNEL)
    with pytest.raises(InputError, match="kernel fill takes 3 arguments, got 2"):
        gpu.launch(loaded, 1, 0, 1, 2)
    with pytest.raises(InputError, match="must be int64, got 9223372036854775808"):
        gpu.launch(loaded, 1, 0, 1 << 63, 0, 0)
    for grid in (0, (1, 0), (1, 1, 1, 1), ()):
        with pytest.raises(InputError, match="grid must be"):
            gpu.launch(loaded, grid, 0, 1, 2, 3)


def test_time(driver):
    gpu = CudaDevice(0)
    stream, a, b = gpu.new_stream(), gpu.event(), gpu.event()
    gpu.record(a, stream)
    gpu.record(b, stream)
    assert gpu.elapsed(a, b) == pytest.approx(0.0025)


def test_copies_and_graphs(driver):
    """Captured work does not run; each replay runs it once, in the order of the stream."""
    gpu = CudaDevice(0)
    stream, a, b = gpu.new_stream(), gpu.allocate(64), gpu.allocate(64)
    gpu.copy_in(a, np.arange(8), stream)
    graph = gpu.graph(stream, lambda: gpu.copy(b + 8, a, 32, stream))
    found = np.empty(8, np.int64)
    gpu.copy_out(found, b, stream)
    assert not found.any()
    for first in (10, 20):
        gpu.copy_in(a, np.arange(first, first + 8), stream)
        gpu.replay(graph, stream)
        gpu.copy_out(found, b, stream)
        np.testing.assert_array_equal(found[:5], [0, *range(first, first + 4)])
        assert not found[5:].any()


# ---- other processes ----------------------------------------------------------------------------------------------


def test_memory_of_another_process(driver, machine):
    """The other process uses another GPU, where the same bytes have a different address."""
    other = Process(machine)
    mine = CudaDevice(0)
    address = mine.allocate(100)
    mine.copy_in(address, np.arange(100, dtype=np.uint8))
    code = mine.handle(address)
    assert len(code) == 64
    driver.here.process = other
    theirs = CudaDevice(1)
    opened = theirs.open(code)
    assert opened != address
    back = np.zeros(100, np.uint8)
    theirs.copy_out(back, opened)
    np.testing.assert_array_equal(back, np.arange(100))
    theirs.close(opened)
    with pytest.raises(EnvironmentProblem, match="cuIpcCloseMemHandle: CUDA_ERROR_INVALID_VALUE"):
        theirs.close(opened)
    with pytest.raises(InputError, match="a handle must have 64 bytes, got 3"):
        theirs.open(b"abc")
    del driver.here.process
    with pytest.raises(EnvironmentProblem, match=r"INVALID_CONTEXT: CUDA does not find the process .*--pid=host"):
        mine.open(code)
    mine.free(address)


def test_which_gpus_reach_each_other(driver, machine):
    machine.gpus[0].reaches.clear()
    gpus = CudaDevice(0), CudaDevice(1)
    assert gpus[0].can_access(0)
    assert not gpus[0].can_access(1)
    assert gpus[1].can_access(0)
    assert gpus[0].ordinal_of(gpus[1].uuid) == 1
    driver.first.visible = [1]
    alone = CudaDevice(0)
    assert alone.uuid == gpus[1].uuid
    assert alone.ordinal_of(gpus[0].uuid) is None
    assert alone.ordinal_of(alone.uuid) == 0


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "error", "act", "advice"),
    [
        ("cuCtxPushCurrent", "CUDA_ERROR_NOT_INITIALIZED", lambda gpu: gpu.new_stream(), "does not survive a fork"),
        ("cuCtxPushCurrent", "CUDA_ERROR_INVALID_CONTEXT", lambda gpu: gpu.event(), "'spawn'"),
        ("cuStreamSynchronize", "CUDA_ERROR_ILLEGAL_ADDRESS", lambda gpu: gpu.synchronize(), "compute-sanitizer"),
        ("cuStreamQuery", "CUDA_ERROR_ILLEGAL_ADDRESS", lambda gpu: gpu.done(gpu.stream), "compute-sanitizer"),
        ("cuIpcOpenMemHandle", "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", lambda gpu: gpu.open(bytes(64)), "topo -p2p r"),
        ("cuIpcOpenMemHandle", "CUDA_ERROR_MAP_FAILED", lambda gpu: gpu.open(bytes(64)), "--pid=host"),
        ("cuDeviceGetCount", "CUDA_ERROR_SYSTEM_NOT_READY", lambda gpu: CudaDevice(0), "nvidia-fabricmanager"),
        ("cuDevicePrimaryCtxRetain", "CUDA_ERROR_DEVICE_UNAVAILABLE", lambda gpu: CudaDevice(0), "nvidia-smi -c 0"),
        ("cuInit", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", lambda gpu: CudaDevice.find(0), "reboot"),
        (
            "cuStreamWaitEvent",
            "CUDA_ERROR_NOT_SUPPORTED",
            lambda gpu: gpu.wait(gpu.stream, gpu.event(), True),
            "a loop",
        ),
        ("cuMemHostAlloc", "CUDA_ERROR_UNKNOWN", lambda gpu: gpu.host(8), "reference"),
        ("cuMemFree", "CUDA_ERROR_MPS_CONNECTION_FAILED", lambda gpu: gpu.free(1), "CUDA_MPS_PIPE_DIRECTORY"),
    ],
)
def test_errors_name_the_function_and_what_to_do(driver, function, error, act, advice):
    gpu = CudaDevice(0)
    driver.fail[function] = error
    with pytest.raises(EnvironmentProblem) as raised:
        act(gpu)
    assert str(raised.value).startswith(f"{function}: {error}: ")
    assert advice in str(raised.value)


def test_advice_is_for_errors_that_exist():
    names = {error.name for error in fake_cuda.REAL.CUresult}
    assert set(calls.ADVICE) <= names
    assert {error for errors in calls.OF_CALL.values() for error in errors} <= names
    assert all(callable(getattr(fake_cuda.REAL, function)) for function in calls.OF_CALL)


@pytest.mark.skipif(not fake_cuda.no_driver(), reason="this computer has NVIDIA's driver")
def test_without_a_driver():
    assert device.count() == 0
    with pytest.raises(EnvironmentProblem, match=r"cuInit: NVIDIA's driver \(libcuda.so.1\) is missing.*--gpus all"):
        CudaDevice.find(0)


def test_without_the_packages():
    """The packages are imported only when a device is made. Then the error names them."""
    code = (
        "import sys; sys.modules['numba_cuda'] = sys.modules['cuda'] = sys.modules['cuda.bindings'] = None\n"
        "from aristos.substrate.cuda import device; from aristos.transport import ipc\n"
        "print(device.count())\n"
        "try: device.CudaDevice(0)\nexcept device.EnvironmentProblem as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("0\nGPUs need numba-cuda and cuda-bindings: pip install 'aristos[cuda12]'"), done


def test_querying_a_stream_does_not_wait(driver):
    gpu = CudaDevice(0)
    stream, address = gpu.new_stream(), gpu.allocate(64)
    assert gpu.done(stream)
    for _ in range(3):
        gpu.clear(address, 64, stream)
    assert [gpu.done(stream) for _ in range(3)] == [False, False, True]
