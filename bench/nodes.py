"""Times two ranks on two nodes, and two ranks on one node.

    launch/virtual_slurm run --nodes 2 -- srun -N2 -n4 --mpi=pmi2 python bench/nodes.py

Of four ranks on two (virtual) nodes, ranks 0 and 1 share a node, ranks 0 and 2 do not. Rank 0 runs the shapes of
bench/compare.py with rank 1 and with rank 2 in turns, fused and bulk, on the same weights and routing; meanwhile the
other ranks sleep. So both figures come from one run on one machine. All outputs must be equal bit for bit.
"""

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[_name] = "1"

import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402

import aristos  # noqa: E402
from aristos import reference  # noqa: E402
from aristos.host import launch_environment  # noqa: E402

SHAPES = {
    "A": (1024, 1024, 4096, 8, 2, 3),
    "B": (4096, 128, 128, 8, 2, 30),
    "C": (32, 512, 1024, 8, 2, 60),
    "D": (16, 2048, 512, 32, 8, 30),
    "E": (1024, 2048, 512, 32, 8, 3),
}  # tokens a rank, H, F, E, k, calls in a turn


class Pair:
    """Two ranks with a fused and a bulk layer; other ranks have no layers. Collective over all ranks."""

    def __init__(self, comm, ranks, cfg, weights) -> None:
        from mpi4py import MPI

        inside = comm.rank in ranks
        self.comm = comm.Split(0 if inside else MPI.UNDEFINED, comm.rank)
        self.layers = {}
        if inside:
            for schedule in ("fused", "bulk"):
                layer = aristos.MoE(cfg, self.comm, schedule=schedule, threads=1, moves="tokens")
                layer.load(**weights)
                self.layers[schedule] = layer

    def turn(self, schedule, x, ids, scale, calls):
        """Make a call for warm-up, then timed ones. Returns (seconds of each call on the slower rank, last output)."""
        layer = self.layers[schedule]
        y = layer(x, ids=ids, weights=scale)
        seconds = []
        for _ in range(calls):
            self.comm.Barrier()
            start = time.perf_counter()
            y = layer(x, ids=ids, weights=scale)
            seconds.append(max(self.comm.allgather(time.perf_counter() - start)))
        return seconds, y

    def close(self) -> None:
        for layer in self.layers.values():
            layer.close()


def wait_asleep(comm) -> None:
    """A barrier whose waiters sleep, so that the working ranks have the cores."""
    barrier = comm.Ibarrier()
    while not barrier.Test():
        time.sleep(0.005)


def measure(comm, name, rounds):
    """Time one shape. Returns {(pair, schedule): [the median seconds of a call in each round]}."""
    tokens, hidden, ffn, experts, top_k, calls = SHAPES[name]
    cfg = aristos.MoEConfig(hidden=hidden, ffn=ffn, experts=experts, top_k=top_k, activation="relu", max_tokens=tokens)
    weights = reference.weights(cfg)
    place = min(comm.rank, 1)  # ranks 1 and 2 have equal inputs
    rng = np.random.default_rng([7, place])
    x = rng.standard_normal((tokens, hidden), np.float32)
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k]
    scale = rng.random((tokens, top_k), np.float32)
    pairs = {"one node": Pair(comm, (0, 1), cfg, weights), "two nodes": Pair(comm, (0, 2), cfg, weights)}
    found: dict[tuple[str, str], list[float]] = {(p, s): [] for p in pairs for s in ("fused", "bulk")}
    outputs = []
    for _ in range(rounds):
        for (where, schedule), medians in found.items():
            wait_asleep(comm)
            if pairs[where].layers:
                seconds, y = pairs[where].turn(schedule, x, ids, scale, calls)
                medians.append(statistics.median(seconds))
                outputs.append(y.tobytes())
    wait_asleep(comm)
    for pair in pairs.values():
        pair.close()
    equal = comm.allreduce(len(set(outputs)) <= 1)
    return found, equal == comm.size


def ratio(over: list[float], under: list[float]) -> str:
    """Text of the ratio of two times over rounds: median (least - most)."""
    all_ = sorted(a / b for a, b in zip(over, under))
    return f"{statistics.median(all_):.2f} ({all_[0]:.2f} - {all_[-1]:.2f})"


def main() -> int:
    parser = launch_environment.OneRankParser(
        prog="srun -N2 -n4 --mpi=pmi2 python bench/nodes.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--shapes", default=",".join(SHAPES), help="shapes of bench/compare.py (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all pairs and schedules (%(default)s)")
    asked = parser.parse_args()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    nodes = [ranks[0] for ranks in comm.allgather(tuple(node.allgather(comm.rank)))]
    if comm.size < 3 or nodes[0] != nodes[1] or nodes[0] == nodes[2]:
        if comm.rank == 0:
            print(f"needs ranks 0 and 1 on one node and rank 2 on another, got nodes {nodes}: srun -N2 -n4 --mpi=pmi2")
        return 3
    fine = True
    if comm.rank == 0:
        ratios = "fused, two over one | two nodes, bulk over fused"
        print(f"| shape | one node, fused | bulk | two nodes, fused | bulk | {ratios} |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for name in asked.shapes.split(","):
        found, equal = measure(comm, name, asked.rounds)
        fine &= equal
        if comm.rank == 0:
            ms = " | ".join(f"{statistics.median(s) * 1e3:.2f}" for s in found.values())
            one, two = found["one node", "fused"], found["two nodes", "fused"]
            print(f"| {name} | {ms} | {ratio(two, one)} | {ratio(found['two nodes', 'bulk'], two)} |", flush=True)
    if comm.rank == 0:
        print("all outputs equal bit for bit" if fine else "OUTPUTS DIFFER")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
