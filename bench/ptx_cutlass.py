"""Run a product of CUTLASS 3's interface (cutlass_gemm.cu) on the PTX machine, and compare it with NumPy's.

    python bench/ptx_cutlass.py CUTLASS/include [--schedules N]

The headers are in CUTLASS' repository in `include`, and in the wheel nvidia-cutlass 4.2.0.0 in
`cutlass_library/source/include`. The exit code is 1 if results are wrong or anything is reported.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import ptxsim
from ptxsim import nvrtc

SOURCE = Path(__file__).parent / "cutlass_gemm.cu"
GEMM = "cutlass::device_kernel<Kernel>"
M, N, K, TILE = 128, 192, 256, 64


def run(ptx: str, names: dict[str, str], seed: int) -> tuple[float, list[ptxsim.Report]]:
    """(the largest error of the product's elements, the reports) of one schedule."""
    rng = np.random.default_rng(1)
    a, b = ((rng.random((rows, K)) - 0.5).astype(np.float16) for rows in (M, N))
    c = rng.random((M, N)).astype(np.float32)
    machine = ptxsim.Machine(arch="sm_90a", seed=seed)
    device = machine.device(0)
    sizes = device.array(np.zeros(3, np.int32))
    device.launch(ptx, 1, 1, sizes, entry=names["sizes"])
    size, shared, threads = map(int, sizes.copy_to_host())
    maps = [
        device.array(np.frombuffer(ptxsim.tensor_map(device.array(x[None]), (1, TILE, TILE), swizzle=128), np.uint8))
        for x in (a, b)
    ]
    params, out = device.array(np.zeros(size, np.uint8)), device.empty((M, N), np.float32)
    device.launch(ptx, 1, 1, params, *maps, device.array(c), out, M, N, K, entry=names["prepare"])
    filled = params.copy_to_host().tobytes()
    device.launch(ptx, (M // TILE, N // TILE), threads, filled, shared=shared, entry=names[GEMM])
    machine.run()
    want = a.astype(np.float64) @ b.astype(np.float64).T + 2 * c
    return float(np.abs(out.copy_to_host() - want).max()), machine.reports


def main() -> int:
    """Print a line for each schedule and the reports. Returns the exit code."""
    options = argparse.ArgumentParser(description="Run a product of CUTLASS 3 on the PTX machine.")
    options.add_argument("include", type=Path)
    options.add_argument("--schedules", type=int, default=3)
    given = options.parse_args()
    wanted = ("sizes", "prepare", GEMM)
    flags = (f"-I{given.include}",)
    ptx, names = nvrtc.compiled_kernels(SOURCE.read_text(), str(SOURCE), (9, 0, "a"), wanted, flags)
    failed = 0
    for seed in range(given.schedules):
        begun = time.process_time()
        error, reports = run(ptx, names, seed)
        print(f"seed {seed}: largest error {error:.1e}, {len(reports)} reports, {time.process_time() - begun:.1f} s")
        print(*reports, sep="\n", end="\n" if reports else "")
        failed |= not error < 1e-5 or bool(reports)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
