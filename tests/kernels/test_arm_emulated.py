"""The micro-kernels for Arm, run by QEMU: LLVM's code computes what their plain Python bodies compute."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm import arm_assembly

from aristos.kernels.by_isa import module
from aristos.kernels.cpu import elements
from aristos.kernels.cpu.convert import BFLOAT16, FLOAT16
from aristos.kernels.cpu.micro_kernels import STEP, SUMS
from aristos.kernels.cpu.packed_kernels import BEGINS, ENDS, WHOLE, widen_scales, widen_zeros
from aristos.kernels.cpu.packed_panels import SCALE_CODES
from aristos.weight_types import FORMATS, SCALES

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
GROUPS = 3  # groups of k in packed weights
CALLER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
void kernel(long, long, long, long, long, long, long, long, long, long);
/* Read a file into memory that ends right before a page that nothing may touch. */
static char *all(const char *name, size_t n) {
    size_t page = 65536, inner = (n + page - 1) / page * page;
    char *p = mmap(0, inner + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FILE *f = fopen(name, "rb");
    if (p == MAP_FAILED || mprotect(p + inner, page, PROT_NONE) || !f) exit(9);
    p += inner - n;
    if (fread(p, 1, n, f) != n) exit(9);
    fclose(f);
    return p;
}
/* Each argument is a number, or the name and the size of a file: "name:size". Files are written back. */
int main(int count, char **v) {
    long a[10] = {0}, size[10] = {0};
    char *name[10] = {0};
    for (int i = 0; i < count - 1; i++) {
        char *colon = strchr(v[i + 1], ':');
        if (!colon) { a[i] = atol(v[i + 1]); continue; }
        *colon = 0;
        name[i] = v[i + 1];
        size[i] = atol(colon + 1);
        a[i] = (long)all(name[i], size[i]);
    }
    kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]);
    for (int i = 0; i < 10; i++) {
        if (!name[i]) continue;
        FILE *f = fopen(name[i], "wb");
        if (fwrite((char *)a[i], 1, size[i], f) != (size_t)size[i] || fclose(f)) return 8;
    }
    return 0;
}
"""
ISAS = [("neon", "neoverse-n1", "+neon"), ("neonbf16", "neoverse-v1", "+neon,+bf16")]


@pytest.mark.parametrize(("isa", "cpu", "features"), ISAS)
@pytest.mark.parametrize("element", [BFLOAT16, FLOAT16])
def test_products_of_16_bit_weights(isa, cpu, features, element, tmp_path):
    """There is a kernel for each number of rows. It starts from zero or adds to sums, and changes no other rows."""
    widened = module("widened", isa)
    rng, depth = np.random.default_rng(0), 32 * STEPS
    weights = rng.standard_normal((depth, 32), np.float32)
    rounded, packed = _rounded(weights, element)
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
            panel = np.frombuffer(packed, np.uint8)
            _, _, found, *_ = _call(program, a, panel, sums, 16 * STEPS, carry, 0, 16)
            wanted = sums.astype(np.float64)
            product = x.astype(np.float64) @ rounded[:, : widened.SPAN]
            wanted[:rows, : widened.SPAN] = product + (wanted[:rows, : widened.SPAN] if carry else 0)
            assert np.abs(found - wanted).max() < 2e-5
            assert np.array_equal(found[rows], sums[rows])
            assert np.array_equal(found[:, widened.SPAN :], sums[:, widened.SPAN :])


def _drawn(rng: np.random.Generator, form: str, nbytes: int) -> np.ndarray:
    """Codes of a format, none of them NaN."""
    codes = rng.integers(0, 256, nbytes, np.uint8)
    if form == "fp8":
        codes[codes & 0x7F == 0x7F] = 0
    return codes


def _both(program: Path, plain: Callable[..., None], *arguments: Any) -> tuple[list[Any], list[Any]]:
    """(the arguments after a kernel, the arguments after its plain Python body)."""
    copies = [each.copy() if isinstance(each, np.ndarray) else each for each in arguments]
    plain(*(each.ctypes.data if isinstance(each, np.ndarray) else each for each in copies))
    return _call(program, *arguments), copies


def _close(got: Any, wanted: Any) -> bool:
    return not isinstance(got, np.ndarray) or bool(np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("isa", "cpu", "features"), ISAS)
@pytest.mark.parametrize("form", FORMATS)
def test_products_of_codes(isa, cpu, features, form, tmp_path):
    """A kernel for each number of rows computes whole groups and parts of a group, with and without zero points."""
    packed = module("packed", isa, form)
    together, span, rng = packed.TOGETHER, packed.SPAN, np.random.default_rng(0)
    for rows in range(1, packed.FEW + 1):
        program = _program(tmp_path / f"{rows}", arm_assembly(packed._kernels[rows], 10, cpu, features))
        for groups, pairs, flags in ((GROUPS, 16, WHOLE), (1, 5, WHOLE), (1, 16, BEGINS), (1, 16, 0), (1, 7, ENDS)):
            units = -(-groups * pairs // together)
            codes = _drawn(rng, form, together * (packed.PAIR * units - (32 - span)))
            a = np.zeros((rows, packed.PITCH // 4), np.float32)
            a[:, : 2 * groups * pairs] = rng.standard_normal((rows, 2 * groups * pairs), np.float32)
            sums, parts = (rng.standard_normal((rows, 32), np.float32) for _ in range(2))
            scales = rng.standard_normal((groups, packed.SCALE_BYTES // 4), np.float32)
            for x in (0, rng.standard_normal((rows, groups), np.float32))[: 1 + FORMATS[form].zeros]:
                got, wanted = _both(
                    program,
                    partial(packed.rows_by_codes, rows),
                    a,
                    codes,
                    sums,
                    groups,
                    pairs,
                    scales,
                    x,
                    4 * groups,
                    parts,
                    flags,
                )
                kept = 8 if flags & ENDS else 10  # nothing reads the sums of a group's parts after its end
                assert all(map(_close, got[:kept], wanted))
                assert np.array_equal(got[2][:, span:], sums[:, span:])


@pytest.mark.parametrize(("isa", "cpu", "features"), ISAS)
@pytest.mark.parametrize("form", FORMATS)
def test_codes_scales_and_zero_points_are_unpacked_as_in_python(isa, cpu, features, form, tmp_path):
    packed, rng, floats = module("packed", isa, form), np.random.default_rng(0), SUMS // 4

    def both(kernel: Any, plain: Callable[..., None], *arguments: Any) -> tuple[list[Any], list[Any]]:
        return _both(_program(tmp_path / "p", arm_assembly(kernel, len(arguments), cpu, features)), plain, *arguments)

    def same(got: list[Any], wanted: list[Any]) -> bool:
        return all(a.tobytes() == b.tobytes() for a, b in zip(got, wanted) if isinstance(a, np.ndarray))

    codes, panel = _drawn(rng, form, packed.PAIR * 32), np.zeros(2 * 2 * STEP, np.uint8)
    assert same(*both(packed._unpack, packed.unpack, codes, panel, 2, 0))
    wide = np.zeros((GROUPS - 1) * packed.SCALE_BYTES // 4 + floats, np.float32)
    for scale in FORMATS[form].scales:
        kernel, kind = widen_scales(scale, form, packed.REGISTER), np.dtype(SCALES[scale])
        plain = partial(packed.widen_scales, SCALE_CODES[scale])
        for shared in (0, 1):
            count = GROUPS if shared else 32 * GROUPS
            drawn = np.abs(rng.standard_normal(count, np.float32)).astype(kind)
            if scale == "e8m0":
                drawn = np.resize(np.array([0, 1, 127, 254], np.uint8), count)
            assert same(*both(kernel, plain, drawn, wide, GROUPS, shared))
    if packed.ZEROED:
        stored = rng.integers(0, 256, GROUPS * 32 * packed.BITS // 8, np.uint8)
        assert same(*both(widen_zeros(form), packed.widen_zeros, stored, wide, GROUPS))
    rows, scales = 3, rng.standard_normal((GROUPS, packed.SCALE_BYTES // 4), np.float32)
    parts, sums = (rng.standard_normal((n * rows, floats), np.float32) for n in (GROUPS, 1))
    pitch = SUMS * rows
    for x in (0, rng.standard_normal((rows, GROUPS), np.float32))[: 1 + FORMATS[form].zeros]:
        close = rows, GROUPS, parts, pitch, sums, scales, x, 4 * GROUPS
        got, wanted = both(packed._close_groups, packed.close_groups, *close)
        assert all(map(_close, got, wanted))


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


def _call(program: Path, *arguments: Any) -> list[Any]:
    """Run a kernel on integers and arrays; returns them as the kernel leaves them."""
    words, files = [str(argument) for argument in arguments], {}
    for i, argument in enumerate(arguments):
        if isinstance(argument, np.ndarray):
            files[i] = program.parent / f"argument{i}"
            files[i].write_bytes(argument.tobytes())
            words[i] = f"{files[i].name}:{argument.nbytes}"
    command = [EMULATOR, "-cpu", "max", str(program), *words]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)
    found = list(arguments)
    for i, file in files.items():
        found[i] = np.frombuffer(file.read_bytes(), found[i].dtype).reshape(found[i].shape)
    return found
