"""Compares calls that send a token to a rank of the node once with calls that send a row for each choice.

    mpirun -n 2 python bench/once.py k=8 k=8,dtype=bfloat16 hidden=2048,ffn=512,experts=32,k=8

Both kinds of calls take turns, and their outputs must have equal bits. The engine's own rule, which chooses between the
two kinds, is not used. A line for each case has:

    the median time of a call with a row for each choice, on the slowest rank
    the time of a call whose tokens cross once, divided by that time: median (quartiles), ratio of the shortest
    the rows that cross once, divided by the choices for experts of other ranks
    the choices for experts of other ranks, divided by the tokens
"""

from __future__ import annotations

import sys
import time
from typing import Any

import ml_dtypes
import numpy as np
from mpi4py import MPI

from aristos import MoE, MoEConfig, reference
from aristos.engine import words

CASE = {"hidden": 2048, "ffn": 128, "experts": 16, "k": 8, "tokens": 1024, "pairs": 40, "dtype": "float32"}


def parse(text: str) -> dict[str, Any]:
    """The values of CASE, changed as `name=value,name=value` says."""
    given = dict(item.split("=") for item in text.split(","))
    if unknown := set(given) - set(CASE):
        raise SystemExit(f"a case may have {', '.join(CASE)}, got {', '.join(sorted(unknown))}")
    return CASE | {name: value if name == "dtype" else int(value) for name, value in given.items()}


def measure(comm: MPI.Comm, case: dict[str, Any]) -> str:
    """Measure a case. Returns its line."""
    cfg = MoEConfig(
        hidden=case["hidden"],
        ffn=case["ffn"],
        experts=case["experts"],
        top_k=case["k"],
        max_tokens=case["tokens"],
        dtype=case["dtype"],
    )
    x = np.random.default_rng(comm.rank).standard_normal((case["tokens"], cfg.hidden), np.float32)
    x = x.astype(ml_dtypes.bfloat16) if cfg.dtype == "bfloat16" else x
    times: dict[bool, list[float]] = {True: [], False: []}
    made, moved = {}, {}
    with MoE(cfg, comm, moves="tokens", threads=1) as moe:
        moe.load(**reference.weights(cfg))
        moe(x)
        job = moe._backend._jobs.open(0)
        job[words.ONCE_SHARE] = 0
        for n in range(2 * case["pairs"] + 2):
            once = (n + n // 2) % 2 == 0  # each kind is the first of every second pair of calls
            job[words.ONCE_ROWS] = int(once)
            comm.Barrier()
            start = time.perf_counter()
            y, stats = moe(x, return_stats=True)
            taken = comm.allreduce(time.perf_counter() - start, op=MPI.MAX)
            made[once] = y.tobytes()
            moved[once] = sum(stats.moved_bytes_to_peer)
            if n >= 2:
                times[once].append(taken)
    assert made[True] == made[False], "outputs differ"
    ratios = np.array(times[True]) / np.array(times[False])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    least = min(times[True]) / min(times[False])
    return (
        f"{np.median(times[False]) * 1e3:9.2f} ms  {middle:.3f} ({low:.3f} - {high:.3f})  {least:.3f}"
        f"  {moved[True] / moved[False]:.2f}  {moved[False] / x[0].nbytes / len(x):.2f}"
    )


def main() -> None:
    comm = MPI.COMM_WORLD
    for text in sys.argv[1:]:
        line = measure(comm, parse(text))
        if comm.rank == 0:
            print(f"{text:44s}{line}", flush=True)


if __name__ == "__main__":
    main()
