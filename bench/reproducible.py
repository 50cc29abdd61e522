"""Times a training step with and without equal bits on any number of ranks: mpirun -n 2 python bench/reproducible.py.

Two kinds of steps take turns. One adds gradients piece by piece, and pieces by a fixed tree. The other has one piece on
each rank, and adds the same arrays by MPI's Allreduce, so that bits depend on the number of ranks. The program prints
the medians of the slowest rank's step, and quartiles of the ratios.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from mpi4py import MPI

from aristos import MoE, MoEConfig, reference

TOKENS, PIECES = 2048, 2
CFG = MoEConfig(
    hidden=2048, ffn=512, experts=32, top_k=8, activation="silu", gated=True, shared_ffn=512, max_tokens=TOKENS
)
REPLICATED = ("router", "shared_up", "shared_gate", "shared_down")


def step(moe: MoE, x: np.ndarray, pieces: int) -> float:
    """The slowest rank's seconds for forward, backward and the sums over ranks. Collective."""
    comm = MPI.COMM_WORLD
    comm.Barrier()
    began = time.perf_counter()
    moe.zero_grads()
    _, tape = moe.forward(x, save="hidden")
    moe.backward(x, tape, pieces=pieces)
    if pieces > 1:
        moe.reduce_grads()
    else:
        for name in REPLICATED:
            comm.Allreduce(MPI.IN_PLACE, moe.grads()[name])
    return float(comm.allreduce(time.perf_counter() - began, op=MPI.MAX))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="steps of each kind that are timed (default 7)")
    turns = parser.parse_args().turns
    comm = MPI.COMM_WORLD
    x = np.random.default_rng(comm.rank).standard_normal((TOKENS, CFG.hidden), np.float32)
    with MoE(CFG, comm, threads=1, train=True) as moe:
        moe.load(**reference.weights(CFG))
        for pieces in (PIECES, 1):
            step(moe, x, pieces)
        times = np.array([[step(moe, x, pieces) for pieces in (PIECES, 1)] for _ in range(turns)])
    if comm.rank == 0:
        equal, plain = 1e3 * np.median(times, axis=0)
        low, middle, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75))
        print(f"{equal:.0f} ms with equal bits, {plain:.0f} ms without: {middle:.3f} ({low:.3f} - {high:.3f})")


if __name__ == "__main__":
    main()
