"""Measurements that Aristos's team makes beside the rounds: the FMA peak, time outside kernels, and signals.

Each number comes from the library itself: kernels.fma_peak, CallStats, the suite `signal`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PEAK_SECONDS = 0.1
CALLS = 200
SIGNAL_SECONDS = 4.0
WRONG = "a payload of the signal suite did not come back as it was sent"


def peak(worker: Any) -> float:
    """GFLOP/s of this rank's float32 multiply-adds in registers, while the other ranks run theirs."""
    from aristos import kernels

    worker.barrier()
    return float(kernels.fma_peak(seconds=PEAK_SECONDS))


def outside(worker: Any, peer: str) -> NDArray[np.float64]:
    """The time of calls outside kernels and waits, on the slowest rank: [2, timed calls] seconds. Collective.

    The first tenth of the calls warms up and is not timed.

    The first row is the time that is neither in expert kernels nor in waits: routing, row copies, combine and the
    engine's own work. The second row is the engine's own work alone. Waits are the worker's idle time, which includes
    waits for peers.
    """
    mine = []
    for i in range(CALLS):
        worker.barrier()
        stats = worker.peers[peer].stats(i % worker.job.shape.inputs)
        mine.append((stats.call_seconds - stats.compute_seconds - stats.idle_seconds, stats.other_seconds))
    everyones = np.array(worker.comm.allgather(mine[CALLS // 10 :]))  # [world, calls, 2]
    slowest: NDArray[np.float64] = everyones.max(axis=0).T
    return slowest


def signal(worker: Any, seed: int) -> tuple[dict[int, list[float]], str]:
    """Run the suite `signal`. Returns (payload bytes -> microseconds of each round trip, why there are none).

    Collective. A run with a wrong payload has no times.
    """
    from aristos.bench import options, suites
    from aristos.bench.context import Context
    from aristos.bench.world import World

    if worker.world < 2:
        return {}, "needs 2 ranks"
    result = suites.known()["signal"].run(Context(World(worker.comm), options.Options(seed=seed), SIGNAL_SECONDS))
    if not all(worker.comm.allgather(bool(result.ok))):
        return {}, WRONG
    (table,) = result.tables
    trips = table.variables["round_trip"].values  # [origin, target, size, sample] seconds, NaN where not taken
    samples = {}
    for i, size in enumerate(table.dims["size"].values.tolist()):
        taken = trips[:, :, i][np.isfinite(trips[:, :, i])]
        samples[int(size)] = (1e6 * taken).tolist()
    return samples, ""
