"""Run products of CUTLASS' kernels on the PTX machine, and compare them with NumPy's.

    python bench/ptx_cutlass.py CUTLASS/include [--schedules N] [--only NAME]

cutlass_gemm.cu has a product of version 3's interface, cutlass_gemm2.cu those of version 2's. The headers are in
CUTLASS' repository in `include`, and in the wheel nvidia-cutlass 4.2.0.0 in `cutlass_library/source/include`. A line
for each schedule has the largest error, the number of reports of each verdict, and the processor time. The exit code is
1 if results are wrong or anything is reported.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ptxsim
from ptxsim import nvrtc

HERE = Path(__file__).parent
M, N, K, TILE = 128, 192, 256, 64


@dataclass(frozen=True)
class Product:
    """A kernel and its operands. error: how far from NumPy's a result may be."""

    name: str
    arch: tuple[Any, ...]
    kernel: str
    operand: type[np.generic]
    result: type[np.generic]
    error: float
    slices: int = 1  # blocks that share the k of one tile
    flags: tuple[str, ...] = ()


TWO = "cutlass::Kernel<Kernel>"
PRODUCTS = (
    Product("2-f16", (8, 0), TWO, np.float16, np.float16, 0.01, flags=("-DPRODUCT=0",)),
    Product("2-int8", (8, 0), TWO, np.int8, np.int32, 0, flags=("-DPRODUCT=1",)),
    Product("2-f32", (8, 0), TWO, np.float32, np.float32, 1e-5, flags=("-DPRODUCT=2",)),
    Product("2-f16-shared-k", (8, 0), TWO, np.float16, np.float16, 0.01, 2, ("-DPRODUCT=3",)),
    Product("3-f16", (9, 0, "a"), "cutlass::device_kernel<Kernel>", np.float16, np.float32, 1e-5),
)


def numbers(rng: np.random.Generator, shape: tuple[int, int], kind: type[np.generic]) -> np.ndarray:
    """Random operands: integers in [-100, 100), floats in [-0.5, 0.5)."""
    if np.issubdtype(kind, np.integer):
        return rng.integers(-100, 100, shape).astype(kind)
    return (rng.random(shape) - 0.5).astype(kind)


def run(product: Product, ptx: str, names: dict[str, str], seed: int) -> tuple[float, list[ptxsim.Report]]:
    """(the largest error of the product's elements, the reports) of one schedule."""
    rng = np.random.default_rng(1)
    a, b = (numbers(rng, (rows, K), product.operand) for rows in (M, N))
    c = numbers(rng, (M, N), product.result)
    machine = ptxsim.Machine(arch="sm_" + "".join(map(str, product.arch)), seed=seed)
    device = machine.device(0)
    sizes = device.array(np.zeros(3, np.int32))
    device.launch(ptx, 1, 1, sizes, entry=names["sizes"])
    size, shared, threads = map(int, sizes.copy_to_host())
    params, out = device.array(np.zeros(size, np.uint8)), device.empty((M, N), product.result)
    grid: tuple[int, ...] = (M // TILE, N // TILE)
    if product.kernel == TWO:
        flags = device.array(np.zeros(grid, np.int32), "flags")
        given = (device.array(a, "a"), device.array(b, "b"), device.array(c, "c"), out, flags, M, N, K, product.slices)
        grid += (product.slices,)
    else:
        maps = [
            device.array(
                np.frombuffer(ptxsim.tensor_map(device.array(x[None]), (1, TILE, TILE), swizzle=128), np.uint8)
            )
            for x in (a, b)
        ]
        given = (*maps, device.array(c), out, M, N, K)
    device.launch(ptx, 1, 1, params, *given, entry=names["prepare"])
    filled = params.copy_to_host().tobytes()
    device.launch(ptx, grid, threads, filled, shared=shared, entry=names[product.kernel])
    machine.run()
    want = a.astype(np.float64) @ b.astype(np.float64).T + 2 * c.astype(np.float64)
    return float(np.abs(out.copy_to_host() - want).max()), machine.reports


def main() -> int:
    """Print a line for each schedule and the reports. Returns the exit code."""
    options = argparse.ArgumentParser(description="Run products of CUTLASS on the PTX machine.")
    options.add_argument("include", type=Path)
    options.add_argument("--schedules", type=int, default=3)
    options.add_argument("--only", choices=[product.name for product in PRODUCTS])
    given = options.parse_args()
    failed = 0
    for product in PRODUCTS:
        if given.only not in (None, product.name):
            continue
        source = HERE / ("cutlass_gemm2.cu" if product.kernel == TWO else "cutlass_gemm.cu")
        wanted, flags = ("sizes", "prepare", product.kernel), (f"-I{given.include}", *product.flags)
        begun = time.process_time()
        ptx, names = nvrtc.compiled_kernels(source.read_text(), str(source), product.arch, wanted, flags)
        print(f"{product.name}: compiled in {time.process_time() - begun:.0f} s")
        for seed in range(given.schedules):
            begun = time.process_time()
            error, reports = run(product, ptx, names, seed)
            counted = Counter(report.verdict for report in reports)
            said = ", ".join(f"{count} {verdict}" for verdict, count in counted.items()) or "none"
            took = time.process_time() - begun
            print(f"  seed {seed}: largest error {error:.1e}, reports: {said}, {took:.1f} s")
            print(*reports, sep="\n", end="\n" if reports else "")
            failed |= not error <= product.error or bool(reports)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
