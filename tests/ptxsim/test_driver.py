"""Numba's arrays, streams and errors on a machine, with driver.py in place of the CUDA driver."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from numba import cuda, float32
from numba.cuda.cudadrv.driver import CudaAPIError

import ptxsim
from ptxsim.errors import InputError


@cuda.jit
def double(a, out):
    i = cuda.grid(1)
    if i < a.size:
        out[i] = 2 * a[i]


@cuda.jit(debug=True, opt=False)
def careful(a):
    if cuda.grid(1) == 3:
        raise ValueError("three")


@cuda.jit
def past_the_end(a):
    a[cuda.grid(1)] = 1


@cuda.jit
def dynamic(out):
    s = cuda.shared.array(0, float32)
    i = cuda.threadIdx.x
    s[i] = i
    cuda.syncthreads()
    out[i] = s[cuda.blockDim.x - 1 - i]


@pytest.fixture
def machine():
    with ptxsim.use(ptxsim.Machine(devices=2)) as machine:
        yield machine
    assert not machine.reports


def test_host_and_device_arrays(machine):
    a = np.arange(100.0)
    out = np.zeros(100)
    double[1, 128](a, out)
    np.testing.assert_array_equal(out, 2 * a)
    device = cuda.to_device(a)
    result = cuda.device_array_like(device)
    double[1, 128](device[10:20], result[10:20])
    np.testing.assert_array_equal(result[10:20].copy_to_host(), 2 * a[10:20])
    device[::2] = 7.0
    np.testing.assert_array_equal(device.copy_to_host()[:4], [7, 1, 7, 3])


@pytest.mark.parametrize("kind", ["managed_array", "mapped_array"])
def test_host_sees_shared_memory_at_its_own_address(machine, kind):
    a = getattr(cuda, kind)(100)
    a[:] = 3
    double[1, 128](a, a)
    cuda.to_device(np.zeros(1 << 24))  # the machine's memory grows, but does not move
    cuda.synchronize()
    np.testing.assert_array_equal(np.asarray(a), np.full(100, 6.0))


def test_host_memory_is_mapped_inside_a_context(machine):
    a = np.arange(8.0)
    with cuda.mapped(a) as mapped:
        double[1, 32](mapped, mapped)
    np.testing.assert_array_equal(a, 2.0 * np.arange(8))


def test_each_device_has_its_own_memory(machine):
    with cuda.gpus[1]:
        a = cuda.to_device(np.ones(4))
        assert machine.memory.at(a.device_ctypes_pointer.value).device == 1
        double[1, 32](a, a)
        np.testing.assert_array_equal(a.copy_to_host(), np.full(4, 2.0))


def test_dynamic_shared_memory_and_streams(machine):
    stream = cuda.stream()
    with stream.auto_synchronize():
        out = cuda.to_device(np.zeros(64, np.float32), stream=stream)
        dynamic[1, 64, stream, 256](out)
    np.testing.assert_array_equal(out.copy_to_host(), np.arange(64)[::-1])


def test_debug_kernels_raise_exceptions(machine):
    with pytest.raises(ValueError, match=r"tid=\[0, 0, 3\] ctaid=\[0, 0, 0\]: three"):
        careful[1, 32](np.zeros(4))


def test_a_wrong_kernel_is_reported_with_its_line_and_name():
    with ptxsim.use(ptxsim.Machine()) as machine:
        past_the_end[1, 32](cuda.to_device(np.zeros(31)))
    (report,) = machine.reports
    assert report.kind == "out_of_bounds"
    assert report.line == past_the_end.py_func.__code__.co_firstlineno + 2
    assert "a[31]" in report.message + report.address


def test_kernels_link_cuda_sources(machine):
    source = cuda.CUSource('extern "C" __device__ int twice(int *r, int a) { *r = 2 * a; return 0; }')
    twice = cuda.declare_device("twice", "int32(int32)", link=source)

    @cuda.jit
    def kernel(out):
        out[cuda.grid(1)] = twice(cuda.grid(1))

    out = np.zeros(32, np.int32)
    kernel[1, 32](out)
    np.testing.assert_array_equal(out, 2 * np.arange(32))


HEAP = """
extern "C" __device__ int squares(int *result, int n) {
    int *p = (int *)malloc(n * sizeof(int));
    if (!p) { *result = -1; return 0; }
    int sum = 0;
    for (int i = 0; i < n; i++) p[i] = i * i;
    for (int i = 0; i < n; i++) sum += p[i];
    free(p);
    *result = sum;
    return 0;
}
"""


def test_device_code_has_a_heap(machine):
    squares = cuda.declare_device("squares", "int32(int32)", link=cuda.CUSource(HEAP))

    @cuda.jit
    def kernel(out, n):
        out[cuda.grid(1)] = squares(n)

    out = np.zeros(64, np.int32)
    kernel[2, 32](out, 10)
    np.testing.assert_array_equal(out, sum(i * i for i in range(10)))
    kernel[1, 1](out, 1 << 23)
    assert out[0] == -1  # the heap has 8 MiB


def test_linking_a_cubin_is_rejected(machine):
    other = cuda.declare_device("other", "int32(int32)", link=cuda.Cubin(b"\x7fELF"))

    @cuda.jit
    def kernel(out):
        out[0] = other(1)

    with pytest.raises(InputError, match="PTX and CUDA C\\+\\+"):
        kernel[1, 1](np.zeros(1, np.int32))


def test_the_driver_fails_as_cuda_does(machine):
    with pytest.raises(CudaAPIError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        cuda.device_array(1 << 45, np.uint8)
    with pytest.raises(CudaAPIError, match="CUDA_ERROR_NOT_SUPPORTED"):
        _ = cuda.get_current_device().MAX_PITCH


def test_a_machine_leaves_no_trace_in_numba():
    before = cuda.cudadrv.driver.driver.initialization_error
    with ptxsim.use(ptxsim.Machine()) as machine:
        kept = cuda.to_device(np.ones(4))
        address = kept.device_ctypes_pointer.value
    del kept  # it is freed late, and must not touch the next machine's memory
    with ptxsim.use(ptxsim.Machine()) as other:
        array = cuda.to_device(np.ones(4))
        assert array.device_ctypes_pointer.value == address
        cuda.current_context().memory_manager.deallocations.clear()
        assert not other.memory.at(address).freed
    assert cuda.cudadrv.driver.driver.initialization_error == before
    assert not machine.reports


def test_an_unreferenced_machine_is_collected():
    machine = ptxsim.Machine()
    with ptxsim.use(machine):
        array = cuda.to_device(np.zeros(32))
        double[1, 32](array, array)
        double[1, 32](np.zeros(32), np.zeros(32))
        array.copy_to_host()
    gone = weakref.ref(machine)
    del machine, array
    gc.collect()
    assert gone() is None


def test_threads_launch_concurrently(machine):
    def work(number):
        out = np.zeros(256)
        for _ in range(5):
            double[2, 128](np.full(256, float(number)), out)
            assert (out == 2 * number).all()
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


def test_streams_and_events_keep_the_order_of_launches(machine):
    a = cuda.to_device(np.arange(100.0))
    out = cuda.device_array_like(a)
    first, second = cuda.stream(), cuda.stream()
    done = cuda.event()
    double[1, 128, first](a, out)
    done.record(first)
    done.wait(second)
    assert done.query()
    with cuda.profiling():
        double[1, 128, second](out, a)
    cuda.synchronize()
    np.testing.assert_array_equal(a.copy_to_host(), 4 * np.arange(100.0))


@pytest.mark.parametrize("waits", [True, False])
def test_streams_run_at_the_same_time_unless_an_event_orders_them(machine, waits):
    a, middle, out = cuda.to_device(np.arange(100.0)), cuda.to_device(np.zeros(100)), cuda.to_device(np.zeros(100))
    first, second = cuda.stream(), cuda.stream()
    done = cuda.event()
    double[1, 128, first](a, middle)
    done.record(first)
    if waits:
        done.wait(second)
    double[1, 128, second](middle, out)
    cuda.synchronize()
    assert {(report.kind, report.missing) for report in machine.reports} == (
        set() if waits else {("race", "order of launches")}
    )
    machine.reports.clear()


def test_contexts_of_devices_see_each_other_and_can_be_reset(machine):
    with cuda.gpus[1]:
        there = cuda.current_context()
        assert cuda.current_context().device.id == 1
    here = cuda.current_context()
    assert here.can_access_peer(1)
    here.enable_peer_access(there.handle)
    array = cuda.to_device(np.arange(10.0))
    begin, end = cuda.cudadrv.driver.device_extents(array)
    assert (begin, end - begin) == (array.device_ctypes_pointer.value, array.nbytes)
    del array
    cuda.get_current_device().reset()
    assert cuda.to_device(np.arange(3)).copy_to_host().tolist() == [0, 1, 2]
