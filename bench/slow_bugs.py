"""Plants bugs that only make calls slower, and compares what they cost in real calls and in simulated ones:

    python bench/slow_bugs.py

Each bug is a change of one line of the engine, in a copy of the package. Two real ranks and a simulation of them run
the unchanged and the changed engine in turns. A bug counts as seen if real and simulated calls get slower
by more than CLEAR. The first run compiles the engine for every bug, which takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("aristos", "kernel_cache")
CLEAR = 0.03
ROUNDS, SECONDS = 3, 1.0


@dataclass(frozen=True)
class Bug:
    """A planted bug: in a file of the package, `right` becomes `wrong`. layer, link: the case in which it costs time.

    layer: tokens of each rank, hidden, ffn, experts, top_k. link: us and GB/s of the emulated link.
    """

    name: str
    file: str
    right: str
    wrong: str
    layer: tuple[int, int, int, int, int]
    link: tuple[float, float]


FEW, MANY = (32, 512, 1024, 8, 2), (384, 512, 512, 8, 2)
BUGS = (
    Bug(
        "a run never waits for rows that are announced, so weights are read twice",
        "aristos/engine/experts.py",
        "if rows < job[words.MERGE_ROWS] and more_can_land(job, st, expert):",
        "if rows < 0 and more_can_land(job, st, expert):",
        FEW,
        (0.5, 2.0),
    ),
    Bug(
        "rows are sent only after a poll that found nothing else to do",
        "aristos/engine/steps.py",
        "    kind = dispatch.claim(job, st, worker)\n",
        "    kind = dispatch.claim(job, st, worker) if st[words.IDLE_SWEEPS] > 0 else codes.IDLE\n",
        MANY,
        (200.0, 5.0),
    ),
)


def call(layer: tuple[int, int, int, int, int], ranks: int) -> tuple[Any, list[np.ndarray]]:
    """(configuration, ids of each rank)."""
    from aristos.config import MoEConfig

    tokens, hidden, ffn, experts, top_k = layer
    rng = np.random.default_rng(0)
    ids = [np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k].astype(np.int64) for _ in range(ranks)]
    return MoEConfig(hidden, ffn, experts, top_k, max_tokens=tokens, activation="relu"), ids


def real(asked: argparse.Namespace) -> None:
    """Rank 0 prints the median milliseconds of a call."""
    from functools import partial

    from aristos.bench.delay.network import Network
    from aristos.bench.measure import in_turns
    from aristos.bench.workload import Call, Workload, execute
    from aristos.bench.world import connect

    world = connect()
    cfg, ids = call(asked.layer, world.size)
    work = Workload(world, cfg, seed=0)
    stacked = work.weights()
    layers = {name: work.layer(name, 1, stacked, moves="tokens") for name in ("fused", "bulk")}
    mine = ids[world.rank]
    of = Call(work.tokens(len(mine)), mine, np.ones(mine.shape, np.float32))
    out = np.empty_like(of.x)
    network = Network(layers["fused"].runtime, layers["bulk"]._backend.bulk)
    network.set(*asked.link)
    run: dict[str, Callable[[], object]] = {"fused": partial(execute, layers["fused"], of, out)}
    with network:
        first = in_turns(world, run, 5)["fused"].max(axis=0).min()
        count = int(world.bcast(max(5, SECONDS / first)))
        times = in_turns(world, run, count)["fused"].max(axis=0)
    if world.lead:
        print(json.dumps(1e3 * float(np.median(times))))
    network.close()
    for layer in layers.values():
        layer.close()


def simulated(asked: argparse.Namespace) -> None:
    """Print the milliseconds of a simulated call with the kernel of this core."""
    from dataclasses import replace

    from aristos.host.nodes import Nodes
    from aristos.placement import Placement
    from aristos.simulate import calibrate
    from aristos.simulate.machine import Costs, Machine
    from aristos.simulate.outcome import Outcome
    from aristos.simulate.rank import Layer
    from aristos.simulate.simulation import Simulation

    cfg, ids = call(asked.layer, 2)
    costs = replace(Costs(), local=1e3 * asked.link[0], local_kib=1024 / asked.link[1])
    machine = Machine(costs=costs, kernel=calibrate.kernel(cfg, cfg.experts // 2))
    sim = Simulation(Layer(cfg, Placement(None, cfg.experts, 2), ids), Nodes.split(2), machine, calls=3)
    sim.run()
    print(json.dumps(float(Outcome.from_simulation(sim).calls[-1])))


def planted(bug: Bug, folder: Path) -> Path:
    """A folder with the package, in which the bug is planted."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / bug.file
    text = path.read_text(encoding="utf-8")
    if text.count(bug.right) != 1:
        sys.exit(f"{bug.file} must have this line once: {bug.right.strip()}")
    path.write_text(text.replace(bug.right, bug.wrong), encoding="utf-8")
    return folder


def milliseconds(package: Path, part: str, bug: Bug, launcher: list[str]) -> float:
    """Run a part of this file, "real" or "simulated", with a package. Returns the milliseconds that the part prints."""
    values = [*map(str, bug.layer), *map(str, bug.link)]
    here = str(Path(__file__).resolve())
    start = f"import runpy, sys; sys.path[0] = {str(package)!r}; runpy.run_path({here!r}, run_name='__main__')"
    words = [*(launcher if part == "real" else []), sys.executable, "-c", start, part, *values]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=env, cwd=package, capture_output=True, text=True, timeout=600)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def compare(asked: argparse.Namespace) -> None:
    """Print a table of all bugs. Exit code 1 if one is not seen."""
    lines, unseen = ["| bug | real, ms | simulated, ms | seen |", "| --- | ---: | ---: | --- |"], 0
    with tempfile.TemporaryDirectory() as folder:
        for number, bug in enumerate(BUGS):
            wrong = planted(bug, Path(folder) / str(number))
            cells, seen = [], True
            for part in ("real", "simulated"):
                pairs = [
                    [milliseconds(package, part, bug, asked.mpiexec.split()) for package in (ROOT, wrong)]
                    for _ in range(ROUNDS)
                ]
                right, slow = np.median(pairs, axis=0)
                ratio = float(np.median([b / a for a, b in pairs]))
                cells.append(f"{right:.3g} to {slow:.3g} ({ratio:.2f})")
                seen &= ratio > 1 + CLEAR
            unseen += not seen
            lines.append(f"| {bug.name} | {cells[0]} | {cells[1]} | {'yes' if seen else 'no'} |")
            print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))
    sys.exit(1 if unseen else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(sys.executable).with_name("mpiexec")
    launcher = f"{beside if beside.exists() else 'mpiexec'} -n 2"
    parser.add_argument("--mpiexec", default=launcher, help="starts the real ranks (%(default)s)")
    parser.set_defaults(run=compare)
    parts = parser.add_subparsers()
    for name, run in (("real", real), ("simulated", simulated)):
        part = parts.add_parser(name, help="one measurement; this program starts it")
        part.set_defaults(run=run)
        part.add_argument("numbers", type=float, nargs=7, help="layer and link of a bug")
    asked = parser.parse_args()
    if "numbers" in asked:
        asked.layer, asked.link = tuple(int(n) for n in asked.numbers[:5]), tuple(asked.numbers[5:])
    asked.run(asked)


if __name__ == "__main__":
    main()
