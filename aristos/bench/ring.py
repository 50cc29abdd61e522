"""A ring all-reduce of k ranks over links of a set latency and bandwidth, in 2 (k-1) turns, each with 1/k of the data.

T_rho in Equation 1 predicts the time of this algorithm: a reduce-scatter, then an all-gather. For speed use the
all-reduce of MPI.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WaitTimeout

MIB = 1 << 20
SECONDS = 60.0  # time limit of one message


def allreduce(comm: Any, values: NDArray[np.float32], alpha_us: float, beta_us_per_mib: float) -> None:
    """Sum `values` over comm, in place. alpha_us, beta_us_per_mib: of this rank's link to the next rank. Collective.

    Raises WaitTimeout if a message of a neighbour does not arrive.
    """
    rank, k = comm.Get_rank(), comm.Get_size()
    parts = np.array_split(values, k)
    incoming = np.empty_like(parts[0])
    for turn in range(2 * (k - 1)):
        mine, theirs = parts[(rank - turn) % k], parts[(rank - turn - 1) % k]
        adds = turn < k - 1
        into = incoming[: len(theirs)] if adds else theirs
        coming = comm.Irecv(into, (rank - 1) % k)
        time.sleep((alpha_us + beta_us_per_mib * mine.nbytes / MIB) * 1e-6)
        going = comm.Isend(mine, (rank + 1) % k)
        end = time.monotonic() + SECONDS
        while not (coming.Test() and going.Test()):
            if time.monotonic() > end:
                raise WaitTimeout(f"rank {rank} waited {SECONDS:g} s for its neighbours in the ring")
            time.sleep(0)
        if adds:
            theirs += incoming[: len(theirs)]
