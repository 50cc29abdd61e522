"""Results files and timelines that are written without measuring, for what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from aristos import results
from aristos.bench.disturbance import CORE_SHARE, PAIR_SHARE
from aristos.results import Run, Table

FACTS: dict[str, Any] = {
    "started_utc": "2026-12-01T05:36:25Z",
    "command": "python -m aristos.bench layer put",
    "ranks": 2,
    "hosts": ["node1", "node1"],
    "node_of_rank": [0, 0],
    "cores_of_rank": ["0", "1"],
    "cpu": "Some CPU",
    "isa": "avx512",
    "machine": "Linux 6.1 x86_64",
    "transports": "shm",
    "mpi_library": "MPICH Version: 5.0.2",
    "launcher": "mpirun",
    "commit": "0123456789abcdef",
    "finished": True,
    "versions": {"aristos": "0.1.0", "numpy": "2.4.6"},
    "suite_seconds": {"layer": 12.3},
}


def layer(slower: float = 1.0, seed: int = 0, busy: bool = False) -> Table:
    """Calls of a layer. slower: factor of the fused calls. busy: whether rank 1 lacked its core for few tokens."""
    rng = np.random.default_rng(seed)
    times = 1e-3 * np.array([1.0, 8.0, 64.0])[:, None, None, None] * (1 + 0.02 * rng.random((3, 2, 2, 40)))
    times[:, 1] *= 0.7 * slower
    core = np.ones((3, 2, 2, 40))
    core[0, :, 1] = 0.5 if busy else 1.0
    table = Table("layer", attributes={"shape": "H 512 F 256 E 64 k 8", "dtype": "bfloat16", "isa": "avx512"})
    table.dim("tokens", [16, 128, 1024], "1", "tokens per rank and call").dim("schedule", ["bulk", "fused"])
    table.dim("rank", range(2)).dim("iteration", range(40))
    table.add("call_time", ("tokens", "schedule", "rank", "iteration"), times, "s", "one layer call on one rank")
    table.add("core_share", ("tokens", "schedule", "rank", "iteration"), core, "1", CORE_SHARE)
    return table.add("error", ("tokens", "schedule"), np.full((3, 2), 1e-6), "1", "against float64")


def put(slower: float = 1.0, seed: int = 1) -> Table:
    """Puts between two ranks, of no bytes too."""
    rng = np.random.default_rng(seed)
    sizes = np.array([0, 8, 4096, 1 << 20])
    times = np.full((2, 2, 4, 30), np.nan)
    for pair in ((0, 1), (1, 0)):
        times[pair] = (1e-7 + 1e-10 * sizes[:, None]) * (1 + 0.02 * rng.random((4, 30))) * slower
    table = Table("put").dim("origin", range(2)).dim("target", range(2)).dim("size", sizes, "B", "bytes of a put")
    table.dim("iteration", range(30)).dim("end", ["origin", "target"])
    table.add("latency", ("origin", "target", "size", "iteration"), times, "s", "one put and a quiet")
    return table.add("core_share", ("origin", "target", "end", "size"), np.ones((2, 2, 2, 4)), "1", PAIR_SHARE)


def write(path: Path, name: str, *tables: Table, **facts: Any) -> str:
    """Append a run to a file. Returns its path."""
    return str(results.append(path, Run(name, FACTS | facts, [*tables])))


def timeline(path: Path, ranks: int = 2, steps: int = 20) -> str:
    """A timeline of two workers a rank. Returns its path."""
    kinds = ("route", "pack", "dispatch", "expert", "wait", "combine")
    events: list[dict[str, Any]] = []
    for rank in range(ranks):
        for worker in range(2):
            named = {"name": f"worker {worker}"}
            events.append({"name": "thread_name", "ph": "M", "pid": rank, "tid": worker, "args": named})
            events += [
                {
                    "ph": "X",
                    "name": kind,
                    "cat": kind,
                    "pid": rank,
                    "tid": worker,
                    "ts": 10.0 * i + rank,
                    "dur": 8.0 + i,
                }
                for i in range(steps)
                for kind in [kinds[i % len(kinds)]]
            ]
    path.write_text(json.dumps({"traceEvents": events, "otherData": {"schedule": "fused", "layer": "demo"}}))
    return str(path)
