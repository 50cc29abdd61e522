"""What a call of 16 tokens costs outside kernels and waits: `mpirun -n 2 python bench/overhead.py`.

Prints for each shape the median call as its caller sees it, and for calls with statistics what these attribute to
kernels (routing, row copies, experts, combining) and to waits, and the rest: Python, checks of arguments, the engine's
steps, and the statistics themselves, some 20 microseconds. The first shape's weights stay in the caches; those of C and
D push the interpreter's own code out of them in every call.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from mpi4py import MPI

import aristos
from aristos import reference
from aristos.errors import InputError

SHAPES = {"small": (64, 64, 8, 2), "C": (512, 1024, 8, 2), "D": (2048, 512, 32, 8)}  # hidden, ffn, experts, top_k
TOKENS = 16
KERNELS = ("route_seconds", "dispatch_seconds", "compute_seconds", "combine_seconds")


def measure(shape: tuple[int, int, int, int], calls: int, comm: MPI.Comm) -> np.ndarray:
    """Medians in seconds of the rank with the largest rest: call, and with statistics kernels, waits and rest."""
    hidden, ffn, experts, top_k = shape
    cfg = aristos.MoEConfig(hidden, ffn, experts=experts, top_k=top_k, activation="relu", max_tokens=TOKENS)
    rng = np.random.default_rng(comm.rank)
    x = rng.standard_normal((TOKENS, hidden), np.float32)
    ids = np.argsort(rng.random((TOKENS, experts)), axis=1)[:, :top_k]
    weights = rng.random((TOKENS, top_k), np.float32)
    rows = np.empty((calls, 4))
    with aristos.MoE(cfg, comm, threads=1, backend="cpu") as moe:
        moe.load(0, **reference.weights(cfg))
        for row in rows:
            start = time.perf_counter()
            moe(x, ids=ids, weights=weights)
            row[0] = time.perf_counter() - start
        for row in rows:
            start = time.perf_counter()
            _, stats = moe(x, ids=ids, weights=weights, return_stats=True)
            call = time.perf_counter() - start
            row[1] = sum(float(np.sum(getattr(stats, name))) for name in KERNELS)
            row[2] = float(np.sum(stats.wait_seconds))
            row[3] = call - row[1] - row[2]
    medians = comm.allgather(np.median(rows[calls // 5 :], axis=0))
    return max(medians, key=lambda row: float(row[3]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500, help="calls of each shape")
    calls = parser.parse_args().calls
    if calls < 5:
        raise InputError(f"--calls must be at least 5, got {calls}")
    comm = MPI.COMM_WORLD
    if comm.rank == 0:
        print(f"{TOKENS} tokens a rank, float32, {comm.size} ranks x 1 thread; medians in microseconds")
        print(f"{'shape':<8}{'call':>9}{'kernels':>9}{'waits':>9}{'rest':>9}")
    for name, shape in SHAPES.items():
        row = measure(shape, calls, comm)
        if comm.rank == 0:
            print(f"{name:<8}" + "".join(f"{1e6 * value:9.1f}" for value in row), flush=True)


if __name__ == "__main__":
    main()
