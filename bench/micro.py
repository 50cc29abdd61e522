"""Measurements beside the rounds: the FMA peak, a matrix product's share of it, time outside kernels, and signals.

Each number comes from the library itself: kernels.fma_peak, kernels.Matrix, CallStats, the suite `signal`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jobs import INPUTS, Job
from numpy.typing import NDArray

Rates = dict[int, NDArray[np.float64]]  # rows -> GFLOP/s

PEAK_SECONDS = 0.1
PRODUCT = 1024, 4096  # K and N of the matrix whose product is timed
PRODUCT_ROWS = (64, 128, 256, 512)
ROUNDS = 9
CALLS = 200
SIGNAL_SECONDS = 4.0
WRONG = "a payload of the signal suite did not come back as it was sent"


def peak() -> float:
    """GFLOP/s of this rank's multiply-adds in registers, while the other ranks run theirs."""
    from aristos import kernels

    return float(kernels.fma_peak(seconds=PEAK_SECONDS))


def products(comm: Any) -> Rates:
    """GFLOP/s of a matrix product and of multiply-adds in registers, in turns, on all ranks at once. Collective.

    rows -> [2, round, rank].
    """
    from aristos import kernels

    rng = np.random.default_rng(comm.rank)
    matrix = kernels.Matrix(rng.standard_normal(PRODUCT, np.float32))
    rates = {}
    for rows in PRODUCT_ROWS:
        x = rng.standard_normal((rows, PRODUCT[0]), np.float32)
        out = np.empty((rows, PRODUCT[1]), np.float32)
        flops, mine = 2 * rows * PRODUCT[0] * PRODUCT[1], []
        matrix(x, out=out)
        for _ in range(ROUNDS):
            comm.Barrier()
            start, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - start < PEAK_SECONDS:
                matrix(x, out=out)
                calls += 1
            mine.append((calls * flops / (time.perf_counter() - start) / 1e9, kernels.fma_peak(PEAK_SECONDS)))
        rates[rows] = np.array(comm.allgather(mine)).transpose(2, 1, 0)
    return rates


def outside(comm: Any, job: Job, peer: Any) -> NDArray[np.float64]:
    """[2, calls] seconds of the slowest rank. Collective.

    First the time neither in expert kernels nor in waits: routing, row copies, combine and the engine's own work; then
    the engine's own work alone. Waits are the worker's idle time, which includes waits for peers.
    """
    mine = []
    for i in range(CALLS):
        x, ids, weights = job.xs[i % INPUTS], job.ids[i % INPUTS], job.weights[i % INPUTS]
        comm.Barrier()
        stats = peer.stats(x, ids, weights)
        mine.append((stats.call_seconds - stats.compute_seconds - stats.idle_seconds, stats.other_seconds))
    everyones = np.array(comm.allgather(mine[CALLS // 10 :]))  # [world, calls, 2]
    slowest: NDArray[np.float64] = everyones.max(axis=0).T
    return slowest


def signal(comm: Any, seed: int) -> tuple[dict[int, list[float]], str]:
    """(payload bytes -> microseconds of each round trip, the reason if there are none), from the suite `signal`.

    A run with a wrong payload has no times. Collective.
    """
    from aristos.bench import options, suites
    from aristos.bench.context import Context
    from aristos.bench.world import World

    if comm.size < 2:
        return {}, "needs 2 ranks"
    result = suites.known()["signal"].run(Context(World(comm), options.Options(seed=seed), SIGNAL_SECONDS))
    if not all(comm.allgather(bool(result.ok))):
        return {}, WRONG
    (table,) = result.tables
    trips = table.variables["round_trip"].values  # [origin, target, size, sample] seconds, NaN where not taken
    samples = {}
    for i, size in enumerate(table.dims["size"].values.tolist()):
        taken = trips[:, :, i][np.isfinite(trips[:, :, i])]
        samples[int(size)] = (1e6 * taken).tolist()
    return samples, ""
