"""`ptxsim run` with CuPy: unchanged programs, with kernels by NVRTC and those that CuPy's wheel has compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from driver_programs import command, environment

from ptxsim.libcuda import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="there is no C compiler"),
]
PYTHON = Path(sys.prefix) / "peers" / "cupy" / "bin" / "python"
needs_cupy = pytest.mark.skipif(
    not PYTHON.exists(), reason="CuPy 12 is not installed: `python bench/environments.py cupy` installs it"
)

TOTAL = r"""
import sys
import cupy
code = r'''
extern "C" __global__ void total(const float *x, float *out, int n) {
    __shared__ float parts[128];
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += 128) sum += x[i];
    parts[threadIdx.x] = sum;
#ifdef REPAIRED
    __syncthreads();
#endif
    for (int half = 64; half > 0; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[0] = parts[0];
}
'''
total = cupy.RawKernel(code, "total", options=tuple(sys.argv[1:]))
x, out = cupy.arange(1000, dtype=cupy.float32), cupy.zeros(1, cupy.float32)
total((1,), (128,), (x, out, cupy.int32(1000)))
print(out[0])
"""
ALL = r"""
import warnings
import cupy, cupyx
import numpy as np
from cupyx import jit

warnings.simplefilter("ignore")
host = np.random.default_rng(0).standard_normal(600).astype(np.float32)
x = cupy.asarray(host)


def same(found, want):
    assert np.allclose(cupy.asnumpy(found), want, rtol=1e-4, atol=1e-4), (found, want)


same(x * 2 + 1, host * 2 + 1)
same(x.reshape(30, 20).mean(axis=1), host.reshape(30, 20).mean(1))
same(x.sum(), host.sum())  # by CUB, compiled in CuPy's wheel
same(cupy.sort(x), np.sort(host))  # by Thrust
same(cupy.cumsum(x), np.cumsum(host))
same(cupy.ElementwiseKernel("float32 x", "float32 y", "y = x * x", "squared")(x), host * host)
same(cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "norm")(x), np.linalg.norm(host))
twice = "template <typename T> __global__ void twice(T *x) { x[blockIdx.x * blockDim.x + threadIdx.x] *= 2; }"
copy = x.copy()
module = cupy.RawModule(code=twice, options=("-std=c++14",), name_expressions=("twice<float>",))
module.get_function("twice<float>")((6,), (100,), (copy,))
same(copy, 2 * host)


@jit.rawkernel()
def thrice(x, y):
    i = jit.blockIdx.x * jit.blockDim.x + jit.threadIdx.x
    y[i] = x[i] * 3


thrice[6, 100](x, copy)
same(copy, 3 * host)
cupy.cuda.Device().synchronize()
one, two = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
with one:
    y = x + 1
    two.wait_event(one.record())
with two:
    z = y * 2
two.synchronize()
same(z, host * 2 + 2)
pinned = cupyx.empty_pinned((600,), np.float32)
x.get(out=pinned)
same(pinned, host)
pool = cupy.get_default_memory_pool()
assert pool.used_bytes() > 0
pool.free_all_blocks()
assert cupy.random.default_rng(0).random(3).shape == (3,)
for call in (lambda: x.reshape(20, 30) @ x.reshape(30, 20), lambda: cupy.fft.fft(x), lambda: cupy.random.rand(3)):
    try:
        call()
    except Exception as error:
        print(error)
print("right")
"""


def run(folder: Path, text: str, *words: str, schedules: int = 1) -> tuple[int, list[str], str]:
    """(exit code, lines of stdout, stderr) of `ptxsim run` with a program that uses CuPy."""
    (folder / "program.py").write_text(text)
    line = command("--schedules", schedules, "--", PYTHON, "program.py", *words)
    setting = environment() | {"CUPY_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=400, env=setting)
    return done.returncode, done.stdout.splitlines(), done.stderr


@needs_cupy
def test_a_race_in_a_raw_kernel_is_found_and_the_repaired_one_is_clean(tmp_path):
    line = 1 + next(at for at, text in enumerate(TOTAL.split("code = r'''")[1].splitlines()) if "+ half]" in text)
    code, lines, err = run(tmp_path, TOTAL, schedules=3)
    races = [one for one in lines if one.startswith("race: ")]
    assert (code, len(races)) == (1, 1), (lines, err)
    assert races[0].startswith("race: cache/"), "the source that CuPy keeps"
    file, first = races[0].split()[1].rstrip(":").rsplit(":", 1)
    assert str(line) in (first, races[0].split("line ")[1].split()[0]), races
    assert "half /= 2" in (tmp_path / file).read_text().splitlines()[line - 2]
    assert "missing barrier: __syncthreads()" in races[0]
    code, lines, err = run(tmp_path, TOTAL, "-DREPAIRED", schedules=3)
    assert (code, lines[:3], lines[-1]) == (0, ["499500.0"] * 3, "0 reports"), (lines, err)
    assert not err, "CuPy unloads modules after the end without an error"


@needs_cupy
def test_what_cupy_does_without_nvidias_libraries_is_right(tmp_path):
    code, lines, err = run(tmp_path, ALL)
    assert "right" in lines, (lines, err)
    assert (code, lines[-1]) == (0, "0 reports"), (lines, err)
    missing = {"cublasCreate_v2": "cuBLAS", "cufftCreate": "cuFFT", "curandCreateGenerator": "cuRAND"}
    for name, library in missing.items():
        assert f"the program calls {name}, and there is no {library}, whose machine code" in err, err


def test_every_function_of_the_absent_libraries_is_there(tmp_path):
    """Python's loader needs all of them when CuPy is imported."""
    for file, (_, code, functions) in build.absent().items():
        assert len(functions) > 10
        text = f"import ctypes\nlibrary = ctypes.CDLL({file!r})\nfound = [library[n]() for n in {functions}]\n"
        setting = os.environ | {"LD_LIBRARY_PATH": str(build.folder() / "absent")}
        words = [sys.executable, "-c", f"{text}assert set(found) == {{{code}}}"]
        done = subprocess.run(words, env=setting, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(done.stderr.splitlines()) == len(functions)
