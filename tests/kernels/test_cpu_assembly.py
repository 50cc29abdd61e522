"""The machine code of micro-kernels for several families of CPUs, including families that this machine does not have.

LLVM compiles for any CPU. Nothing here runs the code: `test_cpu_kernels` compares its results with NumPy's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from arm import arm_assembly

from aristos.kernels.by_isa import module
from aristos.kernels.cpu.convert import BFLOAT16, FLOAT16

AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cmov,+cx8,+avx,+avx2,+fma,+bmi,+bmi2,+f16c"
AVX512 = f"{AVX2},+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx512cd"
SCRIPT = """
from aristos.kernels.cpu import gemm, panels
from numba.core import types
gemm.panel_rows.compile((types.int64,) * 9)
print(panels.LANES, panels.VECTORS, panels.ROWS)
print(*gemm.panel_rows.inspect_asm().values())
"""


def innermost_loops(assembly: str) -> list[str]:
    """The text of every loop that contains no other loop, from its label to the jump back."""
    lines, at, found = assembly.splitlines(), {}, []
    for i, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            at[label[1]] = i
        jump = re.match(r"\s+(?:j\w+|b\.\w+)\s+(\.L\w+)", line)
        if jump and jump[1] in at:
            found.append((at[jump[1]], i))
    inner = [(a, b) for a, b in found if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in found)]
    return ["\n".join(lines[a : b + 1]) for a, b in inner]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "features", "register"),
    [("sapphirerapids", AVX512, "zmm"), ("znver4", AVX512, "ymm"), ("znver3", AVX2, "ymm")],
    ids=["sapphirerapids", "znver4", "znver3"],
)
def test_the_inner_loop_keeps_its_sums_in_registers(cpu, features, register, tmp_path):
    """There is a loop of FMAs for each number of rows and vectors, and none moves a vector to the stack or back."""
    env = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "ARISTOS_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shape, assembly = done.stdout.split("\n", 1)
    _, vectors, rows = map(int, shape.split())
    loops = [loop for loop in innermost_loops(assembly) if "vfmadd" in loop]
    fmas = [len(re.findall(rf"\bvfmadd\w+ps\b.*%{register}", loop)) for loop in loops]
    assert len(loops) >= rows * vectors
    assert rows * vectors in fmas
    for loop, count in zip(loops, fmas):
        assert count == len(re.findall("vfmadd", loop)) > 0, f"FMAs of another width:\n{loop}"
        assert "prefetch" in loop
        spills = [line for line in loop.splitlines() if "%rsp" in line and "mm" in line.split("#")[0]]
        assert not spills, f"spilled:\n{loop}"


CODES = """
from aristos.kernels.by_isa import module
from numba.core import types
packed = module("packed", "{isa}", "{form}")
packed.by_codes.compile((types.int64,) * 11)
print(packed.FEW * packed.SPAN // packed.REGISTER, packed.LEAN)
print(*packed.by_codes.inspect_asm().values())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("isa", "cpu", "features", "form"),
    [
        ("avx512bf16", "znver4", f"{AVX512},+avx512vbmi,+avx512bf16", "int4"),
        ("avx512bf16", "znver4", f"{AVX512},+avx512vbmi,+avx512bf16", "fp8"),
        ("avx512bf16", "znver4", f"{AVX512},+avx512vbmi,+avx512bf16", "int8"),
        ("avx512", "sapphirerapids", AVX512, "fp8"),
        ("avx512", "cascadelake", AVX512, "int4"),
        ("avx512", "znver4", AVX512, "mxfp4"),
        ("avx2", "znver3", AVX2, "int4"),
        ("avx2", "znver3", AVX2, "mxfp4"),
    ],
)
def test_loops_over_codes_keep_their_sums_in_registers(isa, cpu, features, form, tmp_path):
    """Loops over rows of float32, and loops of dot products if there are any, move no vector to or from the stack."""
    env = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "ARISTOS_CACHE": str(tmp_path)}
    script = [sys.executable, "-c", CODES.format(isa=isa, form=form)]
    done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shape, assembly = done.stdout.split("\n", 1)
    sums, lean = map(int, shape.split())
    loops = [loop for loop in innermost_loops(assembly) if re.search("vfmadd|vdpbf16", loop)]
    pairs = 1 if form in ("fp8", "int8") else 4  # pairs of k in a turn of a loop: codes of 8 bits have one in two bytes
    for instruction, of_pair in (("vfmadd", 2), ("vdpbf16ps", 1 if isa == "avx512bf16" else 0)):
        most = max(len(re.findall(instruction, loop)) for loop in loops)
        turn = pairs * of_pair * sums
        assert turn <= most <= 2 * turn, (
            f"the largest loop has {most} {instruction} for {sums} sums"
        )  # LLVM unrolls some
    for loop in loops:
        assert "prefetch" in loop
        spills = [line for line in loop.splitlines() if "%rsp" in line and "mm" in line.split("#")[0]]
        if "+avx512f" in features and len(re.findall("vfmadd", loop)) > 4 * pairs * 10:
            spills = spills[6:]  # with 11 or 12 rows three vectors of codes may spill
        assert not spills, f"spilled:\n{loop}"
    assert lean == (0 if isa != "avx512" else 12 if form == "fp8" else 4)
    if isa == "avx512bf16":  # codes become words of two bfloat16 at once
        words = "vperm[it]2b" if form in ("fp8", "int8") else "vpermw"
        assert all(re.search(words, loop) for loop in loops if "vdpbf16ps" in loop)
    few = [loop for loop in loops if "prefetcht0" in loop]
    assert sorted(len(re.findall("vfmadd", loop)) for loop in few) == [4 * pairs * n for n in range(1, lean + 1)]
    for loop in few:
        assert len(re.findall(r"vfmadd.*\(%r\w+\)\{1to16\}", loop)) == len(re.findall("vfmadd", loop)), loop
        offsets = re.findall(r"vmovdqu64\s+(\d*)\(", loop)
        assert all(int(offset or 0) % 64 == 0 for offset in offsets), f"loads across lines:\n{loop}"


ALONE = """
from aristos.kernels.cpu import widened
from numba import njit, types
for rows in (1, 4, 5):
    kernel = widened._kernels[rows + widened.ROWS * (widened._ALONE - 1)]
    call = njit(lambda a, b, sums, pairs, carry, ahead, pace: kernel(a, b, sums, pairs, carry, ahead, pace))
    call.compile((types.int64,) * 7)
    print("rows", rows, *call.inspect_asm().values())
"""


def test_zen_4_reads_panels_of_few_rows_by_one_load_without_prefetches(tmp_path):
    """Its own prefetchers follow one load through all lines of a panel. With more rows the kernel prefetches."""
    features = f"{AVX512},+avx512vbmi,+avx512bf16"
    env = os.environ | {"NUMBA_CPU_NAME": "znver4", "NUMBA_CPU_FEATURES": features, "ARISTOS_CACHE": str(tmp_path)}
    script = [sys.executable, "-c", ALONE]
    done = subprocess.run(script, env=env | {"ARISTOS_ISA": "avx512bf16"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for rows, assembly in zip((1, 4, 5), done.stdout.split("rows ")[1:]):
        loops = [loop for loop in innermost_loops(assembly) if "vdpbf16ps" in loop]
        assert loops
        for loop in loops:
            assert ("prefetch" in loop) == (rows > 4), loop
            assert rows > 4 or loop.count("vdpbf16ps") == rows, f"more than one line in a turn:\n{loop}"


@pytest.mark.parametrize(
    ("isa", "cpu", "features"),
    [("neon", "neoverse-n1", "+neon"), ("neonbf16", "neoverse-v1", "+neon,+bf16"), ("neon", "apple-m1", "+neon")],
)
def test_the_inner_loops_for_arm_keep_their_sums_in_registers(isa, cpu, features):
    """Each vector of sums has one multiply-add or matrix product of 128 bits. Nothing moves to the stack or back."""
    gemm, widened = module("gemm", isa), module("widened", isa)
    assert (gemm.LANES, gemm.NR, gemm.ROWS) == (4, 12, 8)
    vectors, rows = widened.SPAN // widened.REGISTER, widened.ROWS
    dots = isa == "neonbf16"
    for kernel, count, instruction, wanted in (
        (gemm._kernels[gemm.ROWS * gemm.VECTORS], 8, "fmla", 24),
        (widened._kernels[rows + rows * (BFLOAT16 - 1)], 7, "bfmmla" if dots else "fmla", rows * vectors * (2 - dots)),
        (widened._kernels[rows + rows * (FLOAT16 - 1)], 7, "fmla", rows * vectors),
    ):
        (loop,) = innermost_loops(arm_assembly(kernel, count, cpu, features))
        assert len(re.findall(rf"\t{instruction}\tv\d+\.4s", loop)) == wanted
        assert not re.search(r"\[sp\b", loop), f"spilled:\n{loop}"
        assert "prfm" in loop
