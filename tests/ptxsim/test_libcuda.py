"""`ptxsim run`: programs of CUDA's driver API run unchanged through the stand-in libcuda."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")

from driver_programs import HEAD, PTX, command, environment, run, run_python

from ptxsim.libcuda import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="there is no C compiler"),
]

SAXPY = """
launch(b'saxpy', (x, y, N), (None, None, I))
assert (to_host(y) == 2 * np.arange(N) + 1).all()
pointer, size = do(cu.cuModuleGetGlobal(module, b'factor'))
assert size == 4
do(cu.cuMemcpyHtoD(pointer, np.array([3], np.float32).ctypes.data, 4))
launch(b'saxpy', (x, y, N), (None, None, I))
assert (to_host(y) == 5 * np.arange(N) + 1).all()
do(cu.cuModuleUnload(module))
module = do(cu.cuModuleLoadData(PTX))
launch(b'saxpy', (x, y, N), (None, None, I))
assert (to_host(y) == 7 * np.arange(N) + 1).all(), 'a module loaded again has its initial values'
assert cu.cuModuleGetFunction(module, b'other')[0] == cu.CUresult.CUDA_ERROR_NOT_FOUND
do(cu.cuMemFree(x))
print('right')
"""
STREAMS = """
one, two = do(cu.cuStreamCreate(1)), do(cu.cuStreamCreate(1))
event = do(cu.cuEventCreate(0))
launch(b'fill', (x, 4.0), (None, F), one)
if ORDERED:
    do(cu.cuEventRecord(event, one))
    do(cu.cuStreamWaitEvent(two, event, 0))
launch(b'saxpy', (x, y, N), (None, None, I), two)
do(cu.cuStreamSynchronize(two))
if ORDERED:
    assert (to_host(y) == 9).all()
print('done')
"""
KERNEL = 'const char *ptx = R"(' + PTX + ')";'
CPP = (
    """#include <cuda.h>
#include <cstdio>
#include <cstring>
#include <thread>
"""
    + KERNEL
    + """
#define DO(call) if (CUresult r = (call)) return printf("%s: %d\\n", #call, r), 7;
int main(int argc, char **argv) {
    const unsigned n = 1000;
    CUdevice device; CUcontext context; CUmodule module; CUfunction kernel; CUdeviceptr x; float *y; int major;
    DO(cuInit(0));
    DO(cuDeviceGet(&device, 0));
    DO(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device));
    DO(cuDevicePrimaryCtxRetain(&context, device));
    DO(cuCtxSetCurrent(context));
    DO(cuModuleLoadData(&module, ptx));
    DO(cuModuleGetFunction(&kernel, module, "saxpy"));
    DO(cuMemAlloc(&x, n * 4));
    DO(cuMemsetD32(x, 0x40000000, n));
    DO(cuMemHostAlloc((void **)&y, n * 4, 0));
    for (unsigned i = 0; i < n; i++) y[i] = i;
    unsigned shown = argc > 1 ? 2000 : n;
    void *values[] = {&x, &y, &shown};
    DO(cuLaunchKernel(kernel, 16, 1, 1, 64 * (argc > 1) + 64, 1, 1, 0, 0, values, 0));
    DO(cuCtxSynchronize());
    CUcontext kept = 0;
    std::thread other([&] { cuCtxSetCurrent(context); cuCtxGetCurrent(&kept); });
    other.join();
    if (kept != context) { printf("a thread lost its context\\n"); return 9; }
    unsigned header[16] = {0xba55ed50, 0x00100001, 256};
    CUmodule none;
    if (cuModuleLoadData(&none, header) != CUDA_ERROR_NO_BINARY_FOR_GPU) return 10;
    if (cuMemHostRegister(0, 64, 0) != CUDA_ERROR_INVALID_VALUE) return 11;
    CUdeviceptr freed;
    DO(cuMemAlloc(&freed, 4000));
    values[0] = &freed;
    DO(cuMemsetD32(freed, 0, 1000)); shown = 0; DO(cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, values, 0));
    DO(cuMemFreeAsync(freed, 0));
    if (cuMemFree(freed) != CUDA_ERROR_INVALID_VALUE) return 12;
    for (unsigned i = 0; i < n; i++) if (y[i] != i + 4) { printf("wrong at %u: %f\\n", i, y[i]); return 8; }
    printf("right on %d\\n", major);
    return 0;
}
"""
)


@pytest.fixture
def program(tmp_path):
    """A function that runs a Python program of the driver API: (exit code, stdout, stderr)."""
    return partial(run_python, tmp_path)


def test_numbers_module_globals_and_modules_that_are_loaded_again(program):
    code, out, err = program(SAXPY)
    assert out.splitlines()[0] == "right", err
    assert (code, out.splitlines()[-1]) == (0, "0 reports")
    assert "covered: 1 kernel, 3 launches, seed 0" in out


def test_modules_of_the_same_text_have_variables_of_their_own(program):
    code, out, err = program("""
second = do(cu.cuModuleLoadData(PTX))
pointer, _ = do(cu.cuModuleGetGlobal(second, b'factor'))
do(cu.cuMemcpyHtoD(pointer, np.array([3], np.float32).ctypes.data, 4))
do(cu.cuModuleUnload(module))
third = do(cu.cuModuleLoadData(PTX))
module = second
launch(b'saxpy', (x, y, N), (None, None, I))
assert (to_host(y) == 3 * np.arange(N) + 1).all(), 'another module of the same text changed the variable'
print('right')
""")
    assert (code, out.splitlines()[0]) == (0, "right"), err


def test_an_event_orders_two_streams_and_without_it_the_race_is_reported(program):
    code, out, err = program("ORDERED = True" + STREAMS)
    assert (code, out.splitlines()[-1]) == (0, "0 reports"), err
    code, out, err = program("ORDERED = False" + STREAMS, "--schedules", "2")
    assert code == 1, err
    assert out.startswith("done\n"), err
    assert "race: line" in out
    assert "argument 1 of fill" in out
    assert "reports without a file name lines of the PTX: nvcc -lineinfo" in out
    assert "[--seed 0]" in out


def test_cuda_core_with_memory_that_host_and_device_share(program):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    code, out, err = program(
        """
import sys
import numpy as np
from cuda.core import Device, LaunchConfig, LegacyPinnedMemoryResource, ObjectCode, launch
device = Device(0)
device.set_current()
stream, memory = device.create_stream(), LegacyPinnedMemoryResource()
kernel = ObjectCode.from_ptx(open(sys.argv[1], 'rb').read()).get_kernel('saxpy')
x, y = memory.allocate(4000), memory.allocate(4000)
a, b = (np.from_dlpack(one).view(np.float32) for one in (x, y))
a[:], b[:] = np.arange(1000), 1
launch(stream, LaunchConfig(grid=8, block=125), kernel, x, y, np.uint32(1000))
stream.sync()
print((b == 2 * np.arange(1000) + 1).all())
""",
        head="",
    )
    assert (code, out.splitlines()[0], out.splitlines()[-1]) == (0, "True", "0 reports"), err


def test_results_exit_codes_and_what_is_not_there(program):
    code, out, err = program("""
assert cu.cuModuleLoadData(b'\\x7fELF machine code')[0] == cu.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU
assert cu.cuModuleLoadData(b'.version 8.0 nonsense')[0] == cu.CUresult.CUDA_ERROR_INVALID_PTX
newer = PTX.replace(b'sm_90', b'sm_100a')
assert cu.cuModuleLoadData(newer)[0] == cu.CUresult.CUDA_ERROR_INVALID_PTX
assert cu.cuIpcGetMemHandle(x)[0] == cu.CUresult.CUDA_ERROR_NOT_SUPPORTED
assert cu.cuMemAlloc(0)[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE
assert cu.cuMemcpyHtoD(x, np.zeros(N + 1, np.float32).ctypes.data, 4 * N + 4)[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE
assert cu.cuStreamSynchronize(cu.CUstream(77))[0] == cu.CUresult.CUDA_ERROR_INVALID_HANDLE
assert do(cu.cuGetErrorString(cu.CUresult.CUDA_ERROR_INVALID_PTX)) == b'a PTX JIT compilation failed'
kernel = do(cu.cuModuleGetFunction(module, b'fill'))
large = cu.cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 65536, 0, ((x, 1.0), (None, F)), 0)
assert large[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE
launch(b'fill', (x, 1.0), (None, F))
sys.exit(5)
""")
    assert code == 1, err
    assert out.splitlines()[-1] == "0 reports", err
    assert "ended with exit code 5" in err
    assert "the machine runs PTX" in err
    assert err.count("calls cuIpcGetMemHandle, which the stand-in libcuda lacks") == 1
    assert "is for sm_100a, and the machine is sm_90: add --arch sm_100a before the program" in err
    assert "MAX_DYNAMIC_SHARED" in err
    assert "Traceback" not in err


def test_a_program_without_launches_and_programs_that_cannot_start(program, tmp_path):
    code, _, err = program("", head="print('nothing')")
    assert code == 2
    assert "launched no kernel" in err
    code, _, err = run("no-such-program")
    assert code == 2
    assert "there is no program no-such-program" in err
    (tmp_path / "text").write_text("no first line that names a shell")
    (tmp_path / "text").chmod(0o700)
    code, _, err = run("./text", cwd=tmp_path)
    assert code == 2, err
    assert "cannot run ./text: " in err


def test_a_program_that_does_not_come_to_its_end_is_said(program):
    code, out, err = program("import os\nlaunch(b'saxpy', (x, y, N), (None, None, I))\nos._exit(0)\n")
    assert (code, out.splitlines()[-1]) == (1, "0 reports"), err
    assert "kernels that it had queued may not have run" in err
    assert "launched no kernel" not in err


def test_addresses_that_are_no_memory_of_a_device_are_refused(program):
    code, out, err = program("""
here = np.ones(N, np.float32)
for found in (
    cu.cuMemcpyHtoD(here.ctypes.data, here.ctypes.data, 4),
    cu.cuMemcpyDtoH(here.ctypes.data, 0x1234, 4),
    cu.cuMemcpyDtoD(x, here.ctypes.data, 4),
    cu.cuMemsetD8(0x1234, 0, 1),
):
    assert found[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE, found
do(cu.cuMemcpy(int(x), here.ctypes.data, 4))
launch(b'saxpy', (x, y, N), (None, None, I))
print('refused')
""")
    assert (code, out.splitlines()[0]) == (0, "refused"), err
    assert "cuMemsetD8: 0x1234 is not memory of a device" in err


def test_each_function_has_a_place_in_the_library():
    from ptxsim.libcuda import session
    from ptxsim.libcuda.calls import ARGUMENTS

    assert not session.FUNCTIONS.keys() - set(build.symbols())
    assert all(len(types) <= ARGUMENTS for _, types in session.FUNCTIONS.values())
    assert len(session.FUNCTIONS) > 150
    assert build.versions()["cuMemAlloc"] == [2000, 3020]


INTERRUPTED = """
one, two = do(cu.cuStreamCreate(1)), do(cu.cuStreamCreate(1))
launch(b'fill', (x, 4.0), (None, F), one)
launch(b'saxpy', (x, y, N), (None, None, I), two)
do(cu.cuCtxSynchronize())
print('started', flush=True)
WAIT
"""
POLL = """
loop = PTX.split(b'.visible')[0] + (
    b'.visible .entry loop(.param .u64 x) { .reg .u64 %x; .reg .u32 %v; ld.param.u64 %x, [x]; '
    b'L: ld.volatile.global.u32 %v, [%x]; add.u32 %v, %v, 1; st.volatile.global.u32 [%x], %v; bra L; }') + bytes(1)
kernel = do(cu.cuModuleGetFunction(do(cu.cuModuleLoadData(loop)), b'loop'))
do(cu.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, ((x,), (None,)), 0))
"""


@pytest.mark.parametrize("wait", ["import time; time.sleep(60)", "do(cu.cuCtxSynchronize())"])
def test_after_ctrl_c_the_reports_so_far_are_printed(tmp_path, wait):
    """In the program's own code, and in kernels that do not end. What is queued then does not run."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    (tmp_path / "kernels.ptx").write_text(PTX)
    (tmp_path / "program.py").write_text(HEAD + INTERRUPTED.replace("WAIT", POLL + wait))
    words = command("--schedules", "3", "--", sys.executable, "program.py", "kernels.ptx")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout.readline() == "started\n"
            time.sleep(1)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=100)
        finally:
            signal.signal(signal.SIGINT, before)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert out.startswith("race: "), err
    assert "[--seed 0]" in out
    assert "started" not in out, "there is no second schedule"
    assert "these are the reports so far" in err


FORK = """
import os
launch(b'saxpy', (x, y, N), (None, None, I))
child = os.fork()
if not child:
    found = cu.cuMemAlloc(16)[0]
    os._exit(int(found == cu.CUresult.CUDA_ERROR_NOT_INITIALIZED))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
child = os.fork()
if not child:
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (to_host(y) == 2 * np.arange(N) + 1).all()
print('parent')
"""


def test_a_process_that_is_forked_after_the_start_gets_an_error_and_disturbs_nothing(program):
    code, out, err = program(FORK)
    assert (code, out.splitlines()[0], out.splitlines()[-1]) == (0, "parent", "0 reports"), err
    assert "covered: 1 kernel, 1 launch," in out


def test_the_library_is_compiled_again_for_other_options_and_by_several_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(build.compiler, "cache_folder", lambda: tmp_path / "cache")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: build.folder(), range(4)))
    (first,) = found
    libraries = ["absent", "libcuda.so", "libcuda.so.1", "libcudart.so.12", "libcudart.so.13", "nvrtc12", "nvrtc13"]
    assert sorted(path.name for path in first.iterdir()) == [*libraries, "ptxas"]
    ctypes.CDLL(str(first / "libcuda.so.1"))
    monkeypatch.setattr(build, "OPTIONS", [*build.OPTIONS, "-DOTHER"])
    assert build.folder() != first


def test_a_folder_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    from ptxsim.errors import EnvironmentProblem

    with pytest.raises(EnvironmentProblem, match=r"cannot be written to .*No such file"):
        build.compiled(tmp_path / "missing")

    def full(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(build.private, "make", full)
    monkeypatch.setattr(build.compiler, "cache_folder", lambda: tmp_path)
    with pytest.raises(EnvironmentProblem, match=r"has no place in .*Permission denied"):
        build.folder()


def test_no_compiler_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    from ptxsim.errors import EnvironmentProblem

    with pytest.raises(EnvironmentProblem, match="needs a C compiler"):
        build.compiled(tmp_path)


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
@pytest.mark.skipif(not build.libpython(), reason="this Python has no shared library")
def test_a_program_of_cpp(tmp_path):
    header = Path(pytest.importorskip("nvidia.cuda_runtime", reason="CUDA's headers are not installed").__path__[0])
    (tmp_path / "program.cpp").write_text(CPP)
    words = ["g++", "-o", "program", "program.cpp", f"-I{header}/include", f"-L{build.folder()}", "-lcuda", "-pthread"]
    subprocess.run(words, cwd=tmp_path, check=True, timeout=120)
    code, out, err = run("./program", cwd=tmp_path)
    assert (code, out.splitlines()[0], out.splitlines()[-1]) == (0, "right on 9", "0 reports"), err
    code, out, err = run("./program", "beyond", cwd=tmp_path)
    assert code == 1, err
    assert "out_of_bounds" in out, err
