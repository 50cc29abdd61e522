"""Times the same work on as many ranks as there are cores, and on twice as many ranks.

`python bench/crowded.py` runs both jobs in turns and prints the ratio. It takes a minute or two on two idle cores.
There is no MPI barrier between calls: ranks that spin in it would take the cores from ranks that still compute.
`aristos bench` cannot change the number of its ranks, so this is not one of its suites.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

SHAPES = {"A/2": (1024, 2048, 8, 2, 1024), "B/2": (128, 128, 8, 2, 4096), "C": (512, 1024, 8, 2, 64)}
CALLS, WARM, ROUNDS = 40, 8, 5


def rank() -> None:
    """Run one rank of a job. Rank 0 prints the median seconds of a call for each shape."""
    import numpy as np
    from mpi4py import MPI

    import aristos

    comm = MPI.COMM_WORLD
    for name, (hidden, ffn, experts, top_k, tokens) in SHAPES.items():
        cfg = aristos.MoEConfig(
            hidden=hidden, ffn=ffn, experts=experts, top_k=top_k, activation="relu", max_tokens=tokens
        )
        rng = np.random.default_rng(0)
        up = rng.standard_normal((experts, hidden, ffn), np.float32)
        down = rng.standard_normal((experts, ffn, hidden), np.float32)
        router = rng.standard_normal((hidden, experts), np.float32)
        x = np.array_split(rng.standard_normal((tokens, hidden), np.float32), comm.size)[comm.rank]
        with aristos.MoE(cfg, comm, threads=1, moves="tokens") as moe:
            moe.load(up=up, down=down, router=router)
            ends = []
            for _ in range(CALLS):
                moe(x)
                ends.append(time.perf_counter())
            if comm.rank == 0:
                print(name, statistics.median(b - a for a, b in zip(ends[WARM:], ends[WARM + 1 :])), flush=True)


def job(ranks: int) -> dict[str, float]:
    """Run a job of `ranks` ranks. Returns the seconds of a call for each shape."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if mpiexec is None:
        sys.exit("no mpiexec beside python or on PATH: pip install '.[mpich]'")
    command = [mpiexec, "-n", str(ranks), sys.executable, __file__, "rank"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    return {name: float(seconds) for name, seconds in (line.split() for line in out.splitlines())}


def main() -> None:
    """Run the two jobs in turns; print median times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="rounds of both jobs (%(default)s)")
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {asked.rounds}")
    cores = len(os.sched_getaffinity(0))
    rounds = [(job(cores), job(2 * cores)) for _ in range(asked.rounds)]
    print(
        f"load average {os.getloadavg()[0]:.1f}; {asked.rounds} rounds; ms per call, medians;"
        " ratio: median (min-max) of rounds"
    )
    for name in SHAPES:
        few, many = ([r[i][name] for r in rounds] for i in (0, 1))
        ratios = sorted(b / a for a, b in zip(few, many))
        print(
            f"{name:4} {cores} ranks {statistics.median(few) * 1e3:8.2f}   {2 * cores} ranks"
            f" {statistics.median(many) * 1e3:8.2f}   ratio {statistics.median(ratios):.2f}"
            f" ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["rank"] else main()
