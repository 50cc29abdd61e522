"""A program for tests under launchers: `slurm_layer.py [--parts N | --hold SECONDS [--late RANK]] [--alone]`.

The tokens of a job come in N parts; ranks take them in turns, so that any number of ranks, one included, gives the same
outputs. Rank 0 prints one hash over the outputs of all parts in order, and the transports. With --hold every rank
prints its pid instead and repeats one call for SECONDS, with short pauses, so that a test can end it from outside. With
--late one rank pauses so long that the others wait for its call.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

import aristos
from aristos import reference
from aristos.host.nodes import Nodes
from aristos.transport import choice

CFG = aristos.MoEConfig(hidden=32, ffn=48, experts=32, top_k=3, max_tokens=24)
PAUSE = 0.5  # seconds between the calls of --hold, because other processes use the cores too
LATE = 100.0  # seconds between the calls of the rank of --late
ABSENT = 4.0  # how many seconds the others wait for a call of that rank


def tokens(part: int) -> np.ndarray:
    """x: [S, H] of one part, S different for each."""
    return np.random.default_rng([7, part]).standard_normal((24 - part % 5, CFG.hidden), np.float32)


def hashes(moe: aristos.MoE, parts: int) -> list[tuple[int, str]]:
    """(part, hash of its outputs) for each part of this rank. If ranks outnumber parts, some bring no tokens."""
    made = []
    for first in range(0, parts, moe.world):
        part = first + moe.rank
        y = moe(tokens(part)[: None if part < parts else 0])
        if part < parts:
            made.append((part, hashlib.sha256(y.tobytes()).hexdigest()))
    return made


def hold(moe: aristos.MoE, seconds: float, late: int | None, options: dict[str, Any]) -> None:
    """Repeat a call until the time is over. late: the rank that pauses longer, if any."""
    moe(tokens(moe.rank))
    with aristos.MoE(replace(CFG, max_tokens=48), moe.comm, **options):  # the engine grows and makes new windows
        print(f"rank {moe.rank} pid {os.getpid()}", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            moe(tokens(moe.rank))
            time.sleep(LATE if moe.rank == late else PAUSE)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--hold", type=float)
    parser.add_argument("--late", type=int)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--ranks-per-node", type=int, help="pretend nodes of this many ranks")
    parser.add_argument("--alone", action="store_true", help="one process without MPI")
    asked = parser.parse_args()
    comm = None
    if not asked.alone:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    options: dict[str, Any] = {"threads": 1, "timeout": asked.timeout, "ranks_per_node": asked.ranks_per_node}
    if asked.late is not None:
        options["absent_timeout"] = ABSENT
    with aristos.MoE(CFG, comm, **options) as moe:
        moe.load(**reference.weights(CFG, seed=3))
        if asked.hold is not None:
            hold(moe, asked.hold, asked.late, options)
            return 0
        mine = hashes(moe, asked.parts)
    every = comm.allgather(mine) if comm is not None else [mine]
    nodes = Nodes.shared(comm, asked.ranks_per_node)[0] if comm is not None else Nodes.split(1)
    if moe.rank == 0:
        parts = sorted(part for rank in every for part in rank)
        whole = hashlib.sha256("".join(h for _, h in parts).encode()).hexdigest()
        print(f"outputs {whole} of {asked.parts} parts by {', '.join(choice.names(nodes))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
