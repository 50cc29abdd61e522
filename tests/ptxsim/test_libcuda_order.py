"""`ptxsim run`: copies, fills and host functions in the order of streams, and default streams of threads."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from driver_programs import HEAD, PTX, run, run_python

from ptxsim.errors import MemoryProblem
from ptxsim.libcuda import build, memory, state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="there is no C compiler"),
]

MORE = """
free, other = do(cu.cuStreamCreate(1)), do(cu.cuStreamCreate(1))
blocking = do(cu.cuStreamCreate(0))
values = np.full(N, 5, np.float32)

def order(before, after):
    event = do(cu.cuEventCreate(0))
    do(cu.cuEventRecord(event, before))
    do(cu.cuStreamWaitEvent(after, event, 0))

def saxpy(stream):
    launch(b'saxpy', (x, y, N), (None, None, I), stream)
"""


@pytest.fixture
def program(tmp_path):
    """A function that runs a Python program: (exit code, its lines, the reports, each up to what is missing)."""

    def made(text, *options):
        code, out, err = run_python(tmp_path, MORE + text, *options)
        lines = out.splitlines()
        reports = [line.split(" [")[0] for line in lines if re.match(r"\w+: ", line) and "covered: " not in line]
        assert "Traceback" not in err, err
        return code, lines, reports

    return made


def line_of(text, words):
    """The number of the line with `words` in the program."""
    return 1 + next(number for number, line in enumerate((HEAD + MORE + text).splitlines()) if words in line)


RACES = """
do(cu.cuMemcpyHtoDAsync(x, values.ctypes.data, 4 * N, free))  # the copy
saxpy(other)
do(cu.cuCtxSynchronize())
"""


def test_a_copy_and_a_kernel_of_different_streams_race(program):
    code, _, reports = program(RACES)
    line = line_of(RACES, "# the copy")
    assert code == 1
    texts = " ".join(reports)
    assert f"race: program.py:{line}: cuMemcpyHtoDAsync: " in texts, reports
    assert "race: line 12: saxpy, block (" in texts
    assert f"cuMemcpyHtoDAsync (program.py:{line})" in texts
    assert "argument 1 of saxpy[" in texts


def test_events_streams_and_waiting_order_copies_fills_and_kernels(program):
    code, lines, reports = program("""
def fresh(first):
    for to, value in (x, first), (y, 1):
        values[:] = value
        do(cu.cuMemcpyHtoD(to, values.ctypes.data, 4 * N))

do(cu.cuMemcpyHtoDAsync(x, values.ctypes.data, 4 * N, free))  # pageable: read at the call
values[:] = 0
order(free, other)
saxpy(other)
order(other, free)
do(cu.cuMemcpyDtoHAsync(values.ctypes.data, y, 4 * N, free))  # pageable: waits
assert (values == 11).all(), values
do(cu.cuMemsetD32Async(x, 0x40000000, N, other))
order(other, free)
do(cu.cuMemcpyDtoDAsync(y, x, 4 * N, free))
do(cu.cuStreamSynchronize(free))
saxpy(other)
do(cu.cuStreamSynchronize(other))
assert (to_host(y) == 6).all()

pinned = do(cu.cuMemHostAlloc(4 * N, 0))
host = np.ctypeslib.as_array((ctypes.c_float * N).from_address(pinned))
host[:] = 1
do(cu.cuMemcpyHtoDAsync(x, pinned, 4 * N, free))  # pinned: read when it runs
host[:] = 3
do(cu.cuStreamSynchronize(free))
assert (to_host(x) == 3).all()
do(cu.cuMemsetD8Async(x, 0, 4 * N, free))
do(cu.cuMemcpyDtoHAsync(pinned, x, 4 * N, free))
assert (host == 3).all(), 'a copy to pinned memory does not wait'
do(cu.cuStreamSynchronize(free))
assert (host == 0).all()

fresh(2)
values[:] = 4
do(cu.cuMemcpyHtoDAsync(x, values.ctypes.data, 4 * N, blocking))
saxpy(0)  # the legacy stream waits for blocking streams, and they for it
do(cu.cuMemcpyDtoDAsync(x, y, 4 * N, blocking))
do(cu.cuStreamSynchronize(blocking))
assert (to_host(x) == 9).all()

registered = np.full(N, 8, np.float32)
do(cu.cuMemHostRegister(registered.ctypes.data, 4 * N, 0))
do(cu.cuMemcpyHtoDAsync(x, registered.ctypes.data, 4 * N, free))
do(cu.cuMemsetD32Async(y, 0, N, free))
do(cu.cuMemcpyDtoHAsync(registered.ctypes.data, y, 4 * N, free))
do(cu.cuStreamSynchronize(free))
assert (registered == 0).all() and (to_host(x) == 8).all()
print('right')
""")
    assert (code, lines[0], reports) == (0, "right", []), lines


def test_synchronous_copies_wait_for_blocking_streams_and_no_others(program):
    text = """
saxpy(free)
do(cu.cuMemcpyHtoD(x, values.ctypes.data, 4 * N))  # the copy
do(cu.cuCtxSynchronize())
"""
    code, _, reports = program(text)
    line = line_of(text, "# the copy")
    assert code == 1
    assert len(reports) == 2
    assert all("cuMemcpyHtoD" in one and f"program.py:{line}" in one for one in reports), reports
    code, _, reports = program(text.replace("free", "blocking"))
    assert (code, reports) == (0, [])


def test_fills_and_copies_within_devices_do_not_wait(program):
    """CUDA's reference: they may return before they are done, so streams that wait for no other need an event."""
    text = """
do(cu.cuMemsetD32(x, 0, N))  # the fill
saxpy(free)
do(cu.cuCtxSynchronize())
"""
    code, _, reports = program(text)
    assert code == 1
    assert any(f"race: program.py:{line_of(text, '# the fill')}: cuMemsetD32: " in one for one in reports), reports
    code, _, reports = program(text.replace("cuMemsetD32(x, 0, N)", "cuMemcpyDtoD(x, y, 4 * N)"))
    assert code == 1
    assert any("cuMemcpyDtoD: " in one and "saxpy" in one for one in reports), reports
    code, _, reports = program(text.replace("saxpy(free)", "do(cu.cuStreamSynchronize(0))\nsaxpy(free)"))
    assert (code, reports) == (0, [])


def test_launches_between_which_the_host_waits_for_a_third_still_race(program):
    """The first kernel has run, for the sake of a query, when the second is launched. Nothing orders the two."""
    code, _, reports = program(
        """
launch(b'fill', (x, 1.0), (None, F), free)
do(cu.cuLaunchHostFunc(free, cu.CUhostFn(int(ctypes.cast(nothing, ctypes.c_void_p).value)), 0))
do(cu.cuMemcpyHtoD(y, values.ctypes.data, 4 * N))
saxpy(other)
do(cu.cuCtxSynchronize())
""".replace("launch(", "nothing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: None)\nlaunch(", 1)
    )
    assert code == 1
    assert any("fill" in one and "saxpy" in one for one in reports) or len(reports) == 2, reports


def test_a_host_function_may_wait_for_another_threads_call(program):
    code, lines, _ = program("""
import threading
done = threading.Event()

def other_thread():
    do(cu.cuCtxSetCurrent(context))
    do(cu.cuMemcpyHtoD(y, values.ctypes.data, 4 * N))
    done.set()

def called(data):
    thread.start()
    print('waited:', done.wait(120), flush=True)

thread = threading.Thread(target=other_thread)
kept = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(called)
launch(b'fill', (x, 1.0), (None, F), free)
do(cu.cuLaunchHostFunc(free, cu.CUhostFn(int(ctypes.cast(kept, ctypes.c_void_p).value)), 0))
do(cu.cuCtxSynchronize())
assert (to_host(y) == 5).all()
""")
    assert (code, lines[0]) == (0, "waited: True"), lines


CPP = (
    """#define CUDA_API_PER_THREAD_DEFAULT_STREAM
#include <cuda.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
const char *ptx = R"("""
    + PTX
    + """)";
#define DO(call) if (CUresult r = (call)) { printf("%s: %d\\n", #call, r); exit(7); }
CUcontext context; CUfunction fill; CUdeviceptr x;
void launch(float value, CUstream stream) {
    void *values[] = {&x, &value};
    DO(cuCtxSetCurrent(context));
    DO(cuLaunchKernel(fill, 1, 1, 1, 32, 1, 1, 0, stream, values, 0));
}
int main(int argc, char **argv) {
    CUdevice device; CUmodule module;
    DO(cuInit(0)); DO(cuDeviceGet(&device, 0)); DO(cuDevicePrimaryCtxRetain(&context, device));
    DO(cuCtxSetCurrent(context)); DO(cuModuleLoadData(&module, ptx)); DO(cuModuleGetFunction(&fill, module, "fill"));
    DO(cuMemAlloc(&x, 4096));
    CUstream stream = 0;
    if (!strcmp(argv[1], "own")) stream = CU_STREAM_PER_THREAD;
    if (!strcmp(argv[1], "legacy")) stream = CU_STREAM_LEGACY;
    launch(1, 0);
    if (!strcmp(argv[1], "between")) launch(3, CU_STREAM_LEGACY);
    std::thread other([&] { launch(2, stream); });
    other.join();
    DO(cuCtxSynchronize());
    printf("done\\n");
    return 0;
}
"""
)


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
@pytest.mark.skipif(not build.libpython(), reason="this Python has no shared library")
def test_each_thread_has_a_default_stream_of_its_own(tmp_path):
    header = Path(pytest.importorskip("nvidia.cuda_runtime", reason="CUDA's headers are not installed").__path__[0])
    (tmp_path / "program.cpp").write_text(CPP)
    words = ["g++", "-o", "program", "program.cpp", f"-I{header}/include", f"-L{build.folder()}", "-lcuda", "-pthread"]
    subprocess.run(words, cwd=tmp_path, check=True, timeout=120)
    code, out, err = run("./program", "threads", cwd=tmp_path)
    assert (code, out.splitlines()[0]) == (1, "done"), err
    assert "race: line 21: fill" in out
    for how in ("own", "legacy", "between"):  # the legacy stream waits for them, and they for it
        code, out, err = run("./program", how, cwd=tmp_path)
        assert (code, out.splitlines()[0]) == (int(how == "own"), "done"), (how, out, err)


def test_the_address_of_a_function_for_per_thread_streams(program):
    code, lines, _ = program("""
flag = cu.CUdriverProcAddress_flags
def address(name, flags):
    return int(do(cu.cuGetProcAddress(name, 12090, int(flags)))[0])
own = address(b'cuLaunchKernel', flag.CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)
assert own not in (0, address(b'cuLaunchKernel', 0)) and own == address(b'cuLaunchKernel', 2)
assert address(b'cuInit', 2) == address(b'cuInit', 0)
print('found')
""")
    assert lines[0] == "found", lines
    assert code == 2
    assert build.per_thread()["cuMemcpyHtoD_v2_ptds"] == "cuMemcpyHtoD_v2"
    assert build.per_thread()["cuLaunchKernel_ptsz"] == "cuLaunchKernel"
    assert not set(build.per_thread().values()) - set(build.symbols())


def test_arguments_packed_without_a_buffer_are_refused(program):
    code, lines, _ = program("""
kernel = do(cu.cuModuleGetFunction(module, b'fill'))
size = ctypes.c_size_t(12)
words = (ctypes.c_void_p * 3)(2, ctypes.addressof(size), 0)
found = cu.cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, 0, 0, ctypes.addressof(words))
assert found[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE, found
launch(b'fill', (x, 1.0), (None, F))
print('refused')
""")
    assert (code, lines[0]) == (0, "refused"), lines


def test_memory_of_pools_is_freed_in_the_order_of_the_stream(program):
    text = """
pool = do(cu.cuDeviceGetDefaultMemPool(device))
assert int(do(cu.cuDeviceGetMemPool(device))) == int(pool)
P = cu.CUmemPool_attribute
assert int(do(cu.cuMemPoolGetAttribute(pool, P.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD))) == 0
do(cu.cuMemPoolSetAttribute(pool, P.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, cu.cuuint64_t(1 << 30)))
assert int(do(cu.cuMemPoolGetAttribute(pool, P.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD))) == 1 << 30
properties = cu.CUmemPoolProps()
properties.allocType = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
properties.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
mine = do(cu.cuMemPoolCreate(properties))
do(cu.cuDeviceSetMemPool(device, mine))
assert int(do(cu.cuDeviceGetMemPool(device))) == int(mine) != int(pool)
x, z = do(cu.cuMemAllocFromPoolAsync(4 * N, mine, free)), do(cu.cuMemAllocAsync(4 * N, free))
do(cu.cuMemcpyHtoDAsync(x, values.ctypes.data, 4 * N, free))
saxpy(free)
do(cu.cuMemFreeAsync(x, free))
assert cu.cuMemFreeAsync(x, free)[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE
do(cu.cuMemPoolDestroy(mine))
assert cu.cuMemPoolDestroy(pool)[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE
assert cu.cuMemAllocFromPoolAsync(4, mine, free)[0] == cu.CUresult.CUDA_ERROR_INVALID_HANDLE
do(cu.cuStreamSynchronize(free))
assert (to_host(y) == 11).all()
assert cu.cuMemFree(x)[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE
print('right')
"""
    code, lines, reports = program(text)
    assert (code, lines[0], reports) == (0, "right", []), lines
    code, _, reports = program(text + "saxpy(free)\ndo(cu.cuCtxSynchronize())\n")
    assert code == 1
    assert reports
    assert all(one.startswith("use_after_free: ") for one in reports), reports


def test_memory_that_queued_work_frees_is_found_before_an_allocation_fails():
    free, calls = [0], []

    def take(size, device, granule, name, initialised):
        calls.append(size)
        if size > free[0]:
            raise MemoryProblem("there is none")
        return "memory"

    machine = SimpleNamespace(lock=nullcontext(), memory=SimpleNamespace(allocate=take))
    now = SimpleNamespace(machine=machine, finish=lambda: free.__setitem__(0, 100))
    assert memory.allocate(now, 60, 0) == "memory"
    assert calls == [60, 60]
    with pytest.raises(state.Refused, match="ERROR_OUT_OF_MEMORY"):
        memory.allocate(now, 160, 0)
