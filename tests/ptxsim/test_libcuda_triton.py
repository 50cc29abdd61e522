"""`ptxsim run` with Triton: unchanged programs, the stand-in for ptxas, and what Triton asks of the driver API."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

from ptxsim.libcuda import build
from ptxsim.libcuda import run as running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="there is no C compiler"),
]

TENSOR = '''
import sys
import numpy as np
import triton
import triton.language as tl
from cuda.bindings import driver as cu
from triton.tools.tensor_descriptor import TensorDescriptor


def done(found):
    assert int(found[0]) == 0, found[0]
    return found[1] if len(found) == 2 else None


class Tensor:
    """An array of the device, as Triton needs it."""

    def __init__(self, values):
        self.values, self.dtype, self.shape = values, values.dtype, list(values.shape)
        self.pointer = done(cu.cuMemAlloc(values.nbytes))
        done(cu.cuMemcpyHtoD(self.pointer, values.ctypes.data, values.nbytes))

    def data_ptr(self):
        return int(self.pointer)

    def stride(self):
        return [step // self.dtype.itemsize for step in self.values.strides]

    def read(self):
        values = np.empty_like(self.values)
        done(cu.cuMemcpyDtoH(values.ctypes.data, self.pointer, values.nbytes))
        return values


@triton.jit
def add(x, y, z, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z + at, tl.load(x + at, at < n) + tl.load(y + at, at < n), at < n)


@triton.jit
def product(a, b, c, K, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    total = tl.zeros((M, N), tl.float32)
    for k in tl.range(0, K, D):
        total = tl.dot(a.load([0, k]), b.load([0, k]).T, total)
    c.store([0, 0], total.to(tl.float16))


@triton.jit
def last(x):
    tl.store(x, tl.program_id(0))  # every block writes the same element


done(cu.cuInit(0))
done(cu.cuCtxSetCurrent(done(cu.cuDevicePrimaryCtxRetain(done(cu.cuDeviceGet(0))))))
'''
ADD = """
x, y, z = (Tensor(np.arange(1000, dtype=np.float32)) for _ in range(3))
add[(4,)](x, y, z, 1000, BLOCK=256)
assert (z.read() == 2 * np.arange(1000)).all()
print("right")
"""
PRODUCT = """
rng = np.random.default_rng(0)
a, b, c = (Tensor(rng.standard_normal((64, columns)).astype(np.float16)) for columns in (128, 128, 64))
maps = [TensorDescriptor.from_tensor(one, [64, 64]) for one in (a, b, c)]
product[(1,)](*maps, 128, M=64, N=64, D=64)
want = a.values.astype(np.float32) @ b.values.astype(np.float32).T
assert np.abs(c.read() - want).max() < 0.05, np.abs(c.read() - want).max()
print("right")
"""
CLUSTERS = """
x, y, z = (Tensor(np.arange(1000, dtype=np.float32)) for _ in range(3))
made = add[(4,)](x, y, z, 1000, BLOCK=256, num_ctas=2)
assert (z.read() == 2 * np.arange(1000)).all()
print(triton.runtime.driver.active.utils.cuOccupancyMaxActiveClusters(made.function, 0, 2))
"""


def triton_folder():
    """The folder that has the package triton: '' if this Python has it; skips without Triton for this Python."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in ("", str(Path(sys.prefix) / "peers" / "triton" / "lib" / version / "site-packages")):
        done = subprocess.run(
            [sys.executable, "-c", "import triton"], capture_output=True, env=os.environ | {"PYTHONPATH": folder}
        )
        if not done.returncode:
            return folder
    pytest.skip("Triton is not installed: `python bench/environments.py triton` installs it")


@pytest.fixture
def triton(tmp_path):
    """A function that runs a Triton program and gives (exit code, lines of stdout, stderr)."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), triton_folder())))

    def made(text, *options, environment=None):
        (tmp_path / "program.py").write_text(TENSOR + text)
        code = "import sys; from ptxsim.command import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, "run", *options, "--", sys.executable, "program.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path / "cache")} | (environment or {}),
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return made


def test_a_sum_is_right_and_its_cache_is_apart_from_the_users(triton, tmp_path, monkeypatch):
    home = {"TRITON_HOME": str(tmp_path / "home"), "TRITON_CACHE_DIR": ""}
    code, out, err = triton(ADD, environment=home)
    assert (code, out[:1], out[-1:]) == (0, ["right"], ["0 reports"]), err
    assert "covered: 1 kernel, 1 launch" in out[-2]
    assert not (tmp_path / "home").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    cache = Path(running.environment(build.folder(), "", {})["TRITON_CACHE_DIR"])
    assert list(cache.glob("*/add.cubin"))
    shutil.rmtree(cache)


def test_a_cache_that_the_user_names_gets_the_ptx(triton, tmp_path):
    code, _, err = triton(ADD, environment={"TRITON_CACHE_DIR": str(tmp_path / "mine")})
    assert code == 0, err
    (kernel,) = (tmp_path / "mine").glob("*/add.cubin")
    assert ".visible .entry add" in kernel.read_text()


def test_a_race_names_the_line_of_the_triton_program(triton):
    code, out, err = triton("last[(2,)](Tensor(np.zeros(1, np.int32)))")
    line = 1 + TENSOR.splitlines().index("    tl.store(x, tl.program_id(0))  # every block writes the same element")
    assert code == 1, err
    assert out[0].startswith(f"race: program.py:{line}: last, block"), err
    assert out[-1] == "1 report"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_a_product_with_tensor_maps_of_the_host(triton, arch):
    """From sm_90 on the kernel gets encoded maps, and asks for more than 48 KiB of shared memory."""
    code, out, err = triton(PRODUCT, "--arch", arch)
    assert out[:1] == ["right"], err
    reports = out[1:-2]
    assert all("[formal]" in report for report in reports), reports
    assert code == bool(reports)


SUMS = """
@triton.jit
def total(x, out, N: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, N)), axis=0))


@triton.jit
def rows(x, out, N: tl.constexpr):
    values = tl.load(x + tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :])
    tl.store(out + tl.arange(0, N), tl.max(values, axis=1))


x, out = Tensor(np.arange(1024, dtype=np.float32)), Tensor(np.zeros(32, np.float32))
total[(1,)](x, out, N=64)
assert out.read()[0] == 63 * 32
rows[(1,)](x, out, N=32)
assert (out.read() == np.arange(32) * 32 + 31).all()
"""


def test_the_ready_rules_leave_out_what_tritons_code_does_by_design(triton):
    code, out, err = triton(SUMS)
    assert code == 1, err
    assert all("[same value]" in line for line in out[:-2]), out
    assert len(out) > 2
    code, out, err = triton(SUMS + "last[(2,)](x, )\n", "--suppress", "triton")
    assert code == 1, err
    assert [line for line in out if line.startswith("race")] == [out[0]], out
    assert out[0].startswith("race: program.py:"), out
    assert re.match(r"suppressed [1-9]\d*: same_value_in_shared \*: Triton: threads that hold copies", out[1])
    code, out, err = triton(SUMS, "--suppress", "triton")
    assert (code, out[-1]) == (0, "0 reports"), (out, err)


def test_clusters_and_how_many_are_active(triton):
    code, out, err = triton(CLUSTERS, "--arch", "sm_90")
    assert (code, out[-1:]) == (0, ["0 reports"]), err
    assert int(out[0]) == 2 * 16  # 4 SMs hold 16 blocks of 128 threads each


# ---- without Triton ----
def test_the_stand_in_for_ptxas(tmp_path):
    ptxas = build.folder() / "ptxas"
    said = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    assert "release 12.9" in said
    (tmp_path / "kernel.ptx").write_text(".version 8.0\n")
    words = [
        "-lineinfo",
        "-v",
        "--regAllocOptLevel=2",
        "--opt-level",
        "1",
        "--gpu-name=sm_90a",
        "kernel.ptx",
        "-o",
        "made",
    ]
    subprocess.run([ptxas, *words], cwd=tmp_path, check=True)
    assert (tmp_path / "made").read_text() == ".version 8.0\n"
    failed = subprocess.run([ptxas, "-v"], capture_output=True, text=True)
    assert (failed.returncode, "needs one file of PTX" in failed.stderr) == (2, True)


def test_the_variables_for_triton(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    library = build.folder()
    made = running.environment(library, "", {})
    assert made["TRITON_LIBCUDA_PATH"] == str(library)
    assert made["TRITON_PTXAS_PATH"] == made["TRITON_PTXAS_BLACKWELL_PATH"] == str(library / "ptxas")
    assert Path(made["TRITON_CACHE_DIR"]).is_relative_to(library)
    monkeypatch.chdir(tmp_path)  # Triton would take another folder's kernel, with that folder's file in its lines
    assert running.environment(library, "", {})["TRITON_CACHE_DIR"] != made["TRITON_CACHE_DIR"]
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    assert running.environment(library, "", {})["TRITON_CACHE_DIR"] == "/mine"


ENCODE = """
import ctypes
from cuda.bindings import driver as cu
T = cu.CUtensorMapDataType
none, zero = cu.CUtensorMapInterleave(0), cu.CUtensorMapL2promotion(0)

def encode(type_, pointer, dims, strides, box, swizzle, fill, interleave=none):
    u32, u64 = cu.cuuint32_t, cu.cuuint64_t
    return cu.cuTensorMapEncodeTiled(
        type_, len(dims), pointer, [u64(n) for n in dims], [u64(n) for n in strides], [u32(n) for n in box],
        [u32(1) for _ in dims], interleave, cu.CUtensorMapSwizzle(swizzle), zero, cu.CUtensorMapFloatOOBfill(fill))

print(int(cu.cuInit(0)[0]))
for name, width in (('UINT8', 1), ('UINT16', 2), ('INT32', 4), ('FLOAT16', 2), ('FLOAT32', 4), ('FLOAT64', 8),
                    ('BFLOAT16', 2), ('FLOAT32_FTZ', 4), ('TFLOAT32', 4), ('TFLOAT32_FTZ', 4)):
    code, made = encode(getattr(T, 'CU_TENSOR_MAP_DATA_TYPE_' + name), 1 << 40, [64, 8], [64 * width],
                        [32 // width, 4], 1, int('FLOAT' in name))
    print(name, int(code), bytes(ctypes.string_at(made.getPtr(), 128)).hex())
print(int(cu.cuTensorMapReplaceAddress(made, 1 << 41)[0]), int(cu.cuTensorMapReplaceAddress(made, 8)[0]),
      ctypes.c_uint64.from_address(made.getPtr()).value == 1 << 41)
print(int(encode(T(7), (1 << 40) + 4, [64, 8], [256], [8, 4], 0, 0)[0]))
print(int(encode(T(7), 1 << 40, [64, 8], [256], [8, 4], 0, 0, cu.CUtensorMapInterleave(1))[0]))
"""


def test_encoded_tensor_maps_are_those_of_ptxsim_tensor_map(tmp_path):
    """The types of the driver API have other numbers than those of tensormap.replace."""
    from ptxsim.tensor_maps import SIZES, TYPES, encoded

    (tmp_path / "encode.py").write_text(ENCODE)
    done = subprocess.run(
        [sys.executable, "encode.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | running.environment(build.folder(), str(tmp_path), {"arch": "sm_90"}),
    )
    assert not done.returncode, done.stderr
    first, *lines, replaced, address, interleaved = done.stdout.splitlines()
    assert first == "0", done.stderr
    assert len(lines) == 10
    for line in lines:
        name, code, data = line.split()
        number = TYPES[name.lower()]
        size = SIZES[number]
        want = encoded(number, 1 << 40, (64, 8), (64 * size,), (32 // size, 4), (1, 1), 1, 0, int("FLOAT" in name))
        assert (code, data) == ("0", want.hex()), name
    assert replaced == "0 1 True"
    assert (address, interleaved) == ("1", "801"), done.stderr
    assert "address must be a multiple of 16" in done.stderr
    assert "no interleaved tensor maps" in done.stderr
