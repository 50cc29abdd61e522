"""`ptxsim run`: programs of the shared CUDA runtime, and compressed PTX of fat binaries."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from driver_programs import PTX, run

from ptxsim.libcuda import build, fatbins, results

REGISTERED = (
    """#include <cstddef>
#include <cstdio>
struct dim3 { unsigned x, y, z; };
extern "C" {
void **__cudaRegisterFatBinary(void *);
void __cudaRegisterFunction(void **, const char *, char *, const char *, int, void *, void *, void *, void *, int *);
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int);
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void *);
int __cudaPopCallConfiguration(dim3 *, dim3 *, size_t *, void *);
int cudaLaunchKernel(const void *, dim3, dim3, void **, size_t, void *);
int cudaMalloc(void **, size_t), cudaMemcpy(void *, const void *, size_t, int), cudaFree(void *), cudaGetLastError();
int cudaMemcpyToSymbol(const void *, const void *, size_t, size_t, int);
int cudaGetDeviceCount(int *), cudaRuntimeGetVersion(int *);
int cudaStreamCreateWithFlags(void **, unsigned), cudaMemsetAsync(void *, int, size_t, void *);
int cudaDeviceSynchronize(), cudaDestroyTextureObject(unsigned long long);
const char *cudaGetErrorName(int), *cudaGetErrorString(int);
}
const char *ptx = R"("""
    + PTX
    + """)";
float factor;
void saxpy(float *x, float *y, unsigned n) {}
void other() {}
#define DO(call) if (int r = (call)) { printf("%s: %d %s\\n", #call, r, cudaGetErrorString(r)); return 7; }
int main(int argc, char **) {
    int count, version; const unsigned n = 1000; void *x, *y; float a[n], b[n], three = 3;
    struct { unsigned magic, version; const char *data; void *more; } image = {0x466243B1, 1, ptx, 0};
    void **handle = __cudaRegisterFatBinary(&image);
    __cudaRegisterFunction(handle, (const char *)saxpy, 0, "saxpy", -1, 0, 0, 0, 0, 0);
    __cudaRegisterVar(handle, (char *)&factor, 0, "factor", 0, 4, 0, 0);
    for (unsigned i = 0; i < n; i++) a[i] = i, b[i] = 1;
    DO(cudaGetDeviceCount(&count)); DO(cudaRuntimeGetVersion(&version));
    DO(cudaMalloc(&x, sizeof a)); DO(cudaMalloc(&y, sizeof b));
    DO(cudaMemcpy(x, a, sizeof a, 1)); DO(cudaMemcpy(y, b, sizeof b, 4));
    DO(cudaMemcpyToSymbol(&factor, &three, 4, 0, 1));
    dim3 grid, block; size_t shared; void *stream, *values[] = {&x, &y, (void *)&n};
    __cudaPushCallConfiguration({8, 1, 1}, {125, 1, 1}, 0, 0);
    DO(__cudaPopCallConfiguration(&grid, &block, &shared, &stream));
    DO(cudaLaunchKernel((void *)saxpy, grid, block, values, shared, stream));
    if (argc > 1) {
        void *free;
        DO(cudaStreamCreateWithFlags(&free, 1)); DO(cudaMemsetAsync(x, 0, sizeof a, free)); DO(cudaDeviceSynchronize());
    }
    DO(cudaMemcpy(b, y, sizeof b, 2));
    for (unsigned i = 0; i < n; i++) if (argc < 2 && b[i] != 3 * i + 1) return 1;
    int unknown = cudaLaunchKernel((void *)other, grid, block, values, 0, 0), bad = cudaFree((char *)x + 4);
    printf("%d %d %s %s %d %d\\n", version / 1000, count, cudaGetErrorName(unknown), cudaGetErrorName(bad),
           cudaGetLastError(), cudaDestroyTextureObject(0));
}
"""
)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
@pytest.mark.skipif(not build.libpython(), reason="this Python has no shared library")
@pytest.mark.parametrize("version", build.RUNTIMES)
def test_a_program_that_registers_its_kernels_as_nvcc_does(tmp_path, version):
    (tmp_path / "program.cpp").write_text(REGISTERED)
    words = ["g++", "-o", "program", "program.cpp", f"-L{build.folder()}", f"-l:libcudart.so.{version}"]
    subprocess.run([*words, f"-Wl,-rpath-link,{build.folder()}"], cwd=tmp_path, check=True, timeout=120)
    code, out, err = run("./program", cwd=tmp_path)
    lines = out.splitlines()
    assert lines[0] == f"{version} 1 cudaErrorInvalidDeviceFunction cudaErrorInvalidValue 1 801", (out, err)
    assert (code, lines[-1]) == (0, "0 reports"), (out, err)
    assert "the program calls cudaDestroyTextureObject, which the stand-in libcudart lacks" in err
    code, out, err = run("./program", "race", cwd=tmp_path)
    assert code == 1, (out, err)
    assert "cuMemsetD8Async" in out


CU = r"""
#include <cstdio>
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
__managed__ int managed = 3;
__device__ int counters[4];
__constant__ int added[2];
template <typename T> __global__ void scale(T *x, T by) { x[blockIdx.x * blockDim.x + threadIdx.x] *= by; }
__global__ void grid(int *x) {
    auto all = cg::this_grid();
    x[all.thread_rank()] = added[1];
    all.sync();
    if (all.thread_rank()) return;
    for (int i = 1; i < 128; i++) x[0] += x[i];
    managed++;
}
__global__ void count() { atomicAdd(&counters[1], 1); }
void CUDART_CB called(void *data) { *(int *)data += 1; }
#define DO(call) if (cudaError_t r = (call)) { printf("%s: %s\n", #call, cudaGetErrorString(r)); return 7; }
int main(int argc, char **) {
    int seen = 0, one[2] = {0, 1}, got[4], *y, blocks, size;
    float *x, host[256];
    cudaStream_t a, b;
    cudaEvent_t event;
    cudaGraph_t graph;
    cudaGraphExec_t made;
    cudaDeviceProp properties;
    DO(cudaGetDeviceProperties(&properties, 0));
    DO(cudaStreamCreate(&a)); DO(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking)); DO(cudaEventCreate(&event));
    DO(cudaMalloc(&x, sizeof host));
    for (float &v : host) v = 2;
    DO(cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, a));
    scale<float><<<2, 128, 0, a>>>(x, 3.f);
    DO(cudaEventRecord(event, a));
    if (argc < 2) DO(cudaStreamWaitEvent(b, event, 0));
    scale<float><<<2, 128, 0, b>>>(x, 2.f);
    DO(cudaLaunchHostFunc(b, called, &seen));
    DO(cudaMemcpyAsync(host, x, sizeof host, cudaMemcpyDeviceToHost, b));
    DO(cudaStreamSynchronize(b));
    DO(cudaMemcpyToSymbol(added, one, sizeof one));
    DO(cudaMallocManaged(&y, 512));
    void *values[] = {&y};
    DO(cudaLaunchCooperativeKernel(grid, dim3(2), dim3(64), values));
    DO(cudaDeviceSynchronize());
    DO(cudaOccupancyMaxPotentialBlockSize(&blocks, &size, count));
    DO(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < 2; i++) count<<<1, 32, 0, a>>>();
    DO(cudaStreamEndCapture(a, &graph));
    DO(cudaGraphInstantiate(&made, graph, 0));
    for (int i = 0; i < 3; i++) DO(cudaGraphLaunch(made, a));
    DO(cudaStreamSynchronize(a));
    DO(cudaMemcpyFromSymbol(got, counters, sizeof got));
    cudaGraphNode_t copy, kernel, back, last;
    float values_[256] = {}, out[256], two = 2;
    void *arguments[] = {&x, &two};
    cudaKernelNodeParams how = {};
    how.func = (void *)scale<float>, how.gridDim = dim3(2), how.blockDim = dim3(128), how.kernelParams = arguments;
    cudaHostNodeParams then = {called, &seen};
    cudaMemcpy3DParms there = {};
    there.srcPtr = make_cudaPitchedPtr(x, 1024, 256, 1), there.dstPtr = make_cudaPitchedPtr(out, 1024, 256, 1);
    there.extent = make_cudaExtent(1024, 1, 1), there.kind = cudaMemcpyDeviceToHost;
    DO(cudaGraphCreate(&graph, 0));
    DO(cudaGraphAddMemcpyNode1D(&copy, graph, 0, 0, x, values_, 1024, cudaMemcpyHostToDevice));
    DO(cudaGraphAddKernelNode(&kernel, graph, &copy, 1, &how));
    DO(cudaGraphAddMemcpyNode(&back, graph, &kernel, 1, &there));
    DO(cudaGraphAddHostNode(&last, graph, &back, 1, &then));
    DO(cudaGraphInstantiate(&made, graph, 0));
    for (float &v : values_) v = 5;
    DO(cudaGraphLaunch(made, b));
    DO(cudaStreamSynchronize(b));
    if (out[255] != 10 || seen != 2) { printf("wrong graph: %g %d\n", out[255], seen); return 1; }
    printf("%d %g %d %d ", properties.multiProcessorCount, argc < 2 ? host[7] : 0, seen, y[0]);
    printf("%d %d %d\n", managed, got[1], size);
}
"""


def nvcc() -> Path | None:
    """nvcc on PATH, or that of the environment with CUDA 13."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    mine = Path(sys.prefix) / "cuda13" / "lib" / version / "site-packages" / "nvidia" / "cu13" / "bin" / "nvcc"
    found = shutil.which("nvcc") or (mine if mine.exists() else None)
    return Path(found) if found else None


@pytest.mark.slow
@pytest.mark.skipif(not build.libpython(), reason="this Python has no shared library")
@pytest.mark.skipif(nvcc() is None or not shutil.which("g++"), reason="there is no nvcc or no C++ compiler")
def test_a_program_by_nvcc_runs_unchanged(tmp_path):
    compiler = nvcc()
    assert compiler is not None
    (tmp_path / "program.cu").write_text(CU)
    libraries = compiler.parents[1] / "lib"
    for real in libraries.glob("libcudart.so.*"):  # the name that the linker looks for, which wheels lack
        (tmp_path / "libcudart.so").symlink_to(real)
    words = [compiler, "-cudart", "shared", "-lineinfo", "-arch=compute_90", f"-L{tmp_path}", "-o", "program"]
    path = f"{compiler.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([*words, "program.cu"], cwd=tmp_path, check=True, timeout=300, env=os.environ | {"PATH": path})
    code, out, err = run("./program", cwd=tmp_path)
    assert (code, out.splitlines()[0]) == (0, "4 12 2 128 4 192 1024"), (out, err)
    code, out, err = run("./program", "race", cwd=tmp_path)
    line = 1 + next(at for at, text in enumerate(CU.splitlines()) if "void scale" in text)
    assert code == 1, (out, err)
    assert f"race: program.cu:{line}: scale<float>, block" in out


@pytest.mark.slow
def test_nvidias_own_runtime_is_refused_with_what_to_do(tmp_path):
    """The bindings of the runtime contain it. It unloads libcuda, which must not end the program by a crash."""
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    (tmp_path / "program.py").write_text(
        "from cuda.bindings import runtime\nprint(int(runtime.cudaGetDeviceCount()[0]))\n"
    )
    code, out, err = run("--", sys.executable, "program.py", cwd=tmp_path)
    assert (code, out.splitlines()[:1]) == (2, ["801"]), (out, err)
    assert "link the shared runtime (nvcc -cudart shared)" in err


# ---- compressed PTX ----
def fatbin(*entries):
    """A fat binary with entries (architecture, flags, data, bytes when uncompressed)."""
    made = b""
    for arch, flags, data, size in entries:
        made += fatbins.ENTRY.pack(1, 0x101, 64, len(data), len(data), 0, 5, 9, arch, 0, 0, flags, 0, size) + data
    return ctypes.create_string_buffer(b"\x50\xed\x55\xba\x01\x00\x10\x00" + len(made).to_bytes(8, "little") + made)


TEXT = ".version 8.0 " + "ab" * 150 + "xyz"


def lz4_block():
    """TEXT as a block of LZ4: 15 bytes, a copy of 298 from 2 bytes before, 3 bytes."""
    return b"\xff\x00" + TEXT[:15].encode() + b"\x02\x00" + b"\xff" + bytes([298 - 4 - 15 - 255]) + b"\x30xyz"


def test_compressed_ptx_and_the_choice_of_an_architecture():
    image = fatbin((80, 0, b"old\0", 4), (90, fatbins.BY_LZ4, lz4_block(), len(TEXT)), (100, 0, b"new\0", 4))
    place = ctypes.addressof(image)
    assert fatbins.ptx_of(place, 80) == "old"
    assert fatbins.ptx_of(place, 90) == fatbins.ptx_of(place, 91) == TEXT
    assert fatbins.ptx_of(place, 120) == "new"
    assert fatbins.ptx_of(place, 75) == "old"
    for broken in (lz4_block()[:-4], b"\xff", b""):
        image = fatbin((90, fatbins.BY_LZ4, broken, len(TEXT)))
        with pytest.raises(results.Refused) as caught:
            fatbins.ptx_of(ctypes.addressof(image), 90)
        assert "compressed PTX is broken" in caught.value.why


def test_ptx_by_zstandard_needs_the_library(monkeypatch):
    frame = bytes.fromhex("28b52ffd2003190000616263")  # abc
    place = fatbin((90, fatbins.BY_ZSTANDARD, frame, 3))
    if ctypes.util.find_library("zstd"):
        assert fatbins.ptx_of(ctypes.addressof(place), 90) == "abc"
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(results.Refused) as caught:
        fatbins.ptx_of(ctypes.addressof(place), 90)
    assert "libzstd" in caught.value.why
