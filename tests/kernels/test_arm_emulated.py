"""The micro-kernels for Arm, run by QEMU: what LLVM makes of them computes their plain Python meaning."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from arm import arm_assembly

from aristos.kernels.by_isa import module
from aristos.kernels.cpu import elements
from aristos.kernels.cpu.convert import BFLOAT16, FLOAT16
from aristos.kernels.cpu.micro_kernels import STEP, SUMS

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason=f"no {COMPILER} or no {EMULATOR}; on Debian: apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
        " qemu-user",
    ),
]
STEPS = 3  # blocks of 32 k
CALLER = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
void kernel(long, long, long, long, long, long, long);
static char *all(const char *name, size_t n) {
    char *p = aligned_alloc(64, (n + 127) / 64 * 64);
    FILE *f = fopen(name, "rb");
    if (!p || !f || fread(p, 1, n, f) != n) exit(9);
    fclose(f);
    return p;
}
int main(int n, char **v) {
    char *a = all(v[1], atol(v[2])), *b = all(v[3], atol(v[4])), *s = all(v[5], atol(v[6]));
    kernel((long)a, (long)b, (long)s, atol(v[7]), atol(v[8]), (long)b, 16);
    FILE *f = fopen(v[9], "wb");
    return fwrite(s, 1, atol(v[6]), f) != atol(v[6]) || fclose(f);
}
"""


@pytest.mark.parametrize(("isa", "cpu", "features"), [
    ("neon", "neoverse-n1", "+neon"), ("neonbf16", "neoverse-v1", "+neon,+bf16"),
])  # fmt: skip
@pytest.mark.parametrize("element", [BFLOAT16, FLOAT16])
def test_products_of_16_bit_weights(isa, cpu, features, element, tmp_path):
    """Every number of rows that a kernel has, from zero and from sums that are there; other rows stay as they are."""
    widened = module("widened", isa)
    rng, depth = np.random.default_rng(0), 32 * STEPS
    weights = rng.standard_normal((depth, 32), np.float32)
    rounded, packed = _rounded(weights, element)
    (tmp_path / "b").write_bytes(packed)
    for rows in range(1, widened.ROWS + 1):
        x, _ = _rounded(rng.standard_normal((rows, depth), np.float32), element)
        a = np.zeros((rows, widened.PITCH), np.uint8)
        narrow = element == BFLOAT16 and widened.DOT
        left = (x.view(np.uint32) >> 16).astype(np.uint16) if narrow else x
        a[:, : left[0].nbytes] = left.view(np.uint8).reshape(rows, -1)
        sums = rng.standard_normal((rows + 1, SUMS // 4), np.float32)
        kernel = widened._kernels[rows + widened.ROWS * (element - 1)]
        program = _program(tmp_path / f"{rows}", arm_assembly(kernel, 7, cpu, features))
        for carry in (0, 1):
            found = _run(tmp_path, program, a, len(packed), sums, carry)
            wanted = sums.astype(np.float64)
            product = x.astype(np.float64) @ rounded[:, : widened.SPAN]
            wanted[:rows, : widened.SPAN] = product + (wanted[:rows, : widened.SPAN] if carry else 0)
            assert np.abs(found - wanted).max() < 2e-5
            assert np.array_equal(found[rows], sums[rows])
            assert np.array_equal(found[:, widened.SPAN :], sums[:, widened.SPAN :])


def _rounded(values: np.ndarray, element: int) -> tuple[np.ndarray, bytes]:
    """(values as float32 with the bits of an element type, the same packed as weights)."""
    if element == FLOAT16:
        return values.astype(np.float16).astype(np.float32), bytes(
            elements.pack_columns(values.astype(np.float16).view(np.uint16))
        )
    bits = elements.narrow(BFLOAT16, values)
    packed = bytes(elements.pack_pairs(bits)) if values.shape[1] == 32 else b""
    assert not packed or len(packed) == STEP * 2 * (len(values) // 32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32), packed


def _program(at: Path, assembly: str) -> Path:
    source, caller = at.with_suffix(".s"), at.with_suffix(".c")
    source.write_text(assembly)
    caller.write_text(CALLER)
    arch = "-march=armv8.6-a+bf16"
    command = [COMPILER, "-O1", "-static", arch, str(caller), str(source), "-o", str(at)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return at


def _run(folder: Path, program: Path, a: np.ndarray, b_bytes: int, sums: np.ndarray, carry: int) -> np.ndarray:
    (folder / "a").write_bytes(a.tobytes())
    (folder / "s").write_bytes(sums.tobytes())
    words = ["a", a.nbytes, "b", b_bytes, "s", sums.nbytes, 16 * STEPS, carry, "out"]
    command = [EMULATOR, "-cpu", "max", str(program), *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return np.frombuffer((folder / "out").read_bytes(), np.float32).reshape(sums.shape)
