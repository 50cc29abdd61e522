"""Measures what a call of 16 tokens costs outside kernels and waits: `mpirun -n 2 python bench/overhead.py`.

For each shape the program prints the median time of a call as its caller sees it, the time that statistics attribute to
kernels (routing, row copies, experts, combining) and to waits, and the difference: the time of Python, of checks of
arguments and of the engine's steps. The small shape's weights stay in the caches; in every call the weights of shape C
push the interpreter's own code out of the caches.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
from jobs import SHAPES, Shape
from mpi4py import MPI

import aristos
from aristos import reference

MEASURED = (Shape("small", 16, 64, 64, 8, 2), replace(SHAPES["C"], tokens=16))


def measure(shape: Shape, calls: int, comm: MPI.Comm) -> tuple[float, float]:
    """Median seconds on the slowest rank: (a call without statistics, kernels and waits of a call with statistics)."""
    cfg = aristos.MoEConfig(
        shape.hidden, shape.ffn, experts=shape.experts, top_k=shape.top_k, activation="relu", max_tokens=shape.tokens
    )
    rng = np.random.default_rng(comm.rank)
    x = rng.standard_normal((shape.tokens, shape.hidden), np.float32)
    ids = np.argsort(rng.random((shape.tokens, shape.experts)), axis=1)[:, : shape.top_k]
    weights = rng.random((shape.tokens, shape.top_k), np.float32)
    seconds, inside = [], []
    with aristos.MoE(cfg, comm, threads=1, backend="cpu", moves="tokens") as moe:
        moe.load(0, **reference.weights(cfg))
        for _ in range(calls):
            start = time.perf_counter()
            moe(x, ids=ids, weights=weights)
            seconds.append(time.perf_counter() - start)
        for _ in range(calls):
            _, stats = moe(x, ids=ids, weights=weights, return_stats=True)
            inside.append(stats.call_seconds - float(stats.other_seconds))
    first = calls // 5  # the calls before it warm the caches
    return max(comm.allgather((float(np.median(seconds[first:])), float(np.median(inside[first:])))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500, help="calls of each shape (%(default)s)")
    calls = parser.parse_args().calls
    if calls < 5:
        parser.error(f"--calls must be at least 5, got {calls}")
    comm = MPI.COMM_WORLD
    if comm.rank == 0:
        print(f"float32, {comm.size} ranks x 1 thread, medians in microseconds")
        print(f"{'tokens/H/F/E/k':<20}{'call':>10}{'kernels, waits':>16}{'outside':>10}")
    for shape in MEASURED:
        call, inside = measure(shape, calls, comm)
        if comm.rank == 0:
            row = f"{1e6 * call:10.1f}{1e6 * inside:16.1f}{1e6 * (call - inside):10.1f}"
            print(f"{shape.label:<20}{row}", flush=True)


if __name__ == "__main__":
    main()
