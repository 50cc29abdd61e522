"""Calls with one level, with two, with sums, and bulk with two, in virtual time, for the table of docs/two_levels.md.

python bench/levels.py --machine FILE                      256 tokens a rank, 2, 4 and 8 nodes of 8 ranks
python bench/levels.py --machine FILE --tokens 1024 --nodes 8

Each line has the times; the ratios of the time of one level, and of bulk, to those of two levels and of sums;
the ratios of all bytes between nodes; and, with one level, the share of the capacity of the busiest link that is in
use, and the least share of a rank's time in which it computes experts. With combine="sums" a node's outputs for a token
come back as one row.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
from jobs import SHAPES

from aristos import models
from aristos.config import MoEConfig
from aristos.host.nodes import Nodes
from aristos.placement import Placement
from aristos.simulate import machines
from aristos.simulate.machine import Machine
from aristos.simulate.outcome import Outcome
from aristos.simulate.rank import Layer
from aristos.simulate.simulation import Schedule, Simulation

NAMES = ("olmoe-1b-7b", "deepseek-v3", "E", "G")


def config(name: str, world: int, tokens: int) -> MoEConfig:
    """The layer of a published model, or of a shape of the comparison."""
    if name not in SHAPES:
        return models.shape(name, world, scale=1, tokens=(tokens,), dtype="bfloat16").cfg
    return replace(oracle.config(SHAPES[name]), max_tokens=tokens, dtype="bfloat16")


def call(cfg: MoEConfig, nodes: Nodes, machine: Machine, schedule: Schedule = "fused") -> Outcome:
    """The outcome of calls with a uniform routing."""
    world, rng = len(nodes.node_of), np.random.default_rng(0)
    shape = cfg.max_tokens, cfg.experts
    ids = [rng.random(shape).argsort(axis=1)[:, : cfg.top_k].astype(np.int64) for _ in range(world)]
    sim = Simulation(Layer(cfg, Placement(None, cfg.experts, world), ids), nodes, machine, schedule=schedule)
    sim.run()
    return Outcome.from_simulation(sim)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machine", type=Path, required=True, help="a machine file of aristos simulate")
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--models", nargs="+", default=NAMES, help=f"names of models, or of {', '.join(SHAPES)}")
    asked = parser.parse_args()
    machine = machines.load(asked.machine)
    heads = "layer", "nodes", "one level", "two levels", "sums", "bulk", "one / two", "one / sums"
    heads += "bulk / two", "bulk / sums", "bytes, one / two", "bytes, one / sums", "link", "experts"
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in asked.models:
        for count in asked.nodes:
            nodes = Nodes.split(8 * count, 8)
            cfg = config(name, 8 * count, asked.tokens)
            streams, sums = nodes.with_streams(), replace(cfg, levels=2, combine="sums")
            made = [call(cfg, nodes, machine), call(cfg, streams, machine), call(sums, streams, machine)]
            made.append(call(cfg, streams, machine, "bulk"))
            times, moved = [o.calls[-1] for o in made], [o.put_bytes.sum() for o in made]
            cells = [name, str(count), *(f"{time:.1f} ms" for time in times)]
            cells += [f"{of[k] / of[i]:.2f}" for of, k in ((times, 0), (times, 3), (moved, 0)) for i in (1, 2)]
            cells += [f"{made[0].busiest_link[1]:.0%}", f"{made[0].shares['expert'].min():.0%}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
