"""`aristos simulate`: how long calls of a layer would take on another machine. The shipped steps run in virtual time.

Exit codes: 0 simulated, 1 the simulated calls could not end, 2 usage or a wrong machine file,
3 a machine file that cannot be read, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bench.arguments import not_negative, positive
from ..errors import InputError
from ..host import launch_environment
from ..row_types import ON_CPUS
from ._listing import listed, unknown

if TYPE_CHECKING:
    from ..config import MoEConfig
    from ..simulate.machine import Machine
    from ..simulate.outcome import Outcome

SUMMARY = "how long a call takes on ranks you do not hold: aristos simulate --model olmoe-1b-7b --nodes 8"
FAILED = 1
MOST_RANKS = 1024


def options(argv: list[str]) -> argparse.Namespace:
    from ..bench.routing import GENERATORS
    from ..models import PRESETS

    parser = launch_environment.OneRankParser(
        prog="aristos simulate",
        description="Run the engine's own compiled steps in virtual time, over a modelled network between nodes.",
    )
    parser.add_argument(
        "--machine", default="perlmutter-cpu", metavar="NAME|FILE", help="'?' lists names (%(default)s)"
    )
    parser.add_argument("--nodes", type=positive, default=2, help="(%(default)s)")
    parser.add_argument("--ranks-per-node", type=positive, default=1, help="(%(default)s)")
    parser.add_argument("--threads", type=positive, default=1, help="workers of a rank (%(default)s)")
    parser.add_argument("--model", default="olmoe-1b-7b", metavar="NAME", help="'?' lists names (%(default)s)")
    parser.add_argument("--tokens", type=positive, default=1024, help="of each rank and call (%(default)s)")
    parser.add_argument("--dtype", choices=list(ON_CPUS), default="bfloat16", help="of rows and weights (%(default)s)")
    parser.add_argument("--routing", choices=GENERATORS, default="uniform", help="(%(default)s)")
    parser.add_argument("--calls", type=positive, default=2, help="the last one is reported (%(default)s)")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the routing (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    asked = parser.parse_args(argv)
    for name, known in (("model", list(PRESETS)), ("machine", None)):
        if getattr(asked, name) == "?":
            print(_names(name), flush=True)
            parser.exit(0)
        if known is not None and getattr(asked, name) not in known:
            parser.error(f"--{name}: {unknown(getattr(asked, name), known, f'`aristos simulate --{name} ?`')}")
    if asked.nodes * asked.ranks_per_node > MOST_RANKS:
        ranks = asked.nodes * asked.ranks_per_node
        parser.error(f"at most {MOST_RANKS} ranks can be simulated, got {ranks}: lower --nodes or --ranks-per-node")
    return asked


def _names(option: str) -> str:
    from ..models import PRESETS
    from ..simulate import machines

    if option == "model":
        return "\n".join(PRESETS)
    return listed({name: preset.source for name, preset in machines.PRESETS.items()})


def machine_of(asked: argparse.Namespace, cfg: MoEConfig) -> tuple[Machine, str]:
    """The machine, and a sentence on where its kernel's rates come from. Raises InputError."""
    from ..simulate import calibrate, machines
    from ..simulate.machine import Costs, Kernel, Machine

    preset = machines.PRESETS.get(asked.machine)
    if preset is None:
        path = Path(asked.machine)
        if not path.is_file():
            known = ", ".join(machines.PRESETS)
            raise InputError(f"--machine must be a file or one of {known}, got {asked.machine!r}")
        machine = machines.load(path)
        machine.links.routes(asked.nodes)  # a network that has fewer nodes is refused before anything is measured
        if machine.kernel != Kernel():
            return machine, f"rates of the expert kernel: {asked.machine}"
    else:
        machine = Machine(links=preset.network)
    print("aristos simulate: measuring the expert kernel on this core", file=sys.stderr, flush=True)
    costs = calibrate.rows_costs(cfg, machine.costs) if machine.costs == Costs() else machine.costs
    return replace(
        machine, kernel=calibrate.kernel(cfg), costs=costs
    ), "rates of the expert kernel: measured on this core"


def main(argv: list[str]) -> int:
    return simulate(options(argv))


def simulate(asked: argparse.Namespace) -> int:
    """Simulate what the options ask for, and print it."""
    from .. import models
    from ..bench import routing
    from ..host.nodes import Nodes
    from ..placement import Placement
    from ..simulate.outcome import Outcome
    from ..simulate.rank import Layer
    from ..simulate.simulation import Simulation, SimulationEnded

    world = asked.nodes * asked.ranks_per_node
    cfg = models.shape(asked.model, world, scale=1, tokens=(asked.tokens,), dtype=asked.dtype).cfg
    placement = Placement(None, cfg.experts, world)
    rng = np.random.default_rng(asked.seed)
    ids = [
        routing.generate(asked.routing, rng, asked.tokens, cfg.experts, cfg.top_k, placement.held[0])
        for _ in range(world)
    ]
    machine, rates = machine_of(asked, cfg)
    nodes = Nodes.of(world, asked.ranks_per_node)
    sim = Simulation(Layer(cfg, placement, ids), nodes, machine, asked.threads, asked.calls)
    started = time.monotonic()
    try:
        sim.run(_progress(started))
    except SimulationEnded as why:
        print(f"aristos simulate: {why}", file=sys.stderr)
        return FAILED
    found = Outcome.of(sim)
    facts = found.facts(world * asked.tokens)
    about = {
        "machine": asked.machine,
        "nodes": asked.nodes,
        "ranks": world,
        "threads": asked.threads,
        "model": asked.model,
        "tokens": asked.tokens,
        "dtype": asked.dtype,
        "routing": asked.routing,
        "seed": asked.seed,
    }
    if asked.json:
        print(json.dumps({**about, **facts}))
    else:
        print(table(about, facts, found, rates, time.monotonic() - started))
    return 0


def _progress(started: float) -> Any:
    """A function that reports virtual time on stderr once a second, from the third second on."""
    last = [started + 2]

    def report(now: int) -> None:
        if time.monotonic() - last[0] > 1:
            last[0] = time.monotonic()
            print(f"aristos simulate: {now * 1e-6:.3f} ms of virtual time", file=sys.stderr, flush=True)

    return report


def table(about: dict[str, Any], facts: dict[str, Any], found: Outcome, rates: str, seconds: float) -> str:
    """The outcome as text."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in facts["shares"].items())
    link = facts["busiest_link"]
    lines = [
        "{model}, {tokens} tokens a rank, {dtype}, {routing} routing".format(**about),
        "{ranks} ranks on {nodes} nodes of {machine}, {threads} workers a rank; ".format(**about) + rates,
        "",
        f"call           {facts['call_ms'][-1]:.3f} ms",
        f"tokens/s       {facts['tokens_per_s']:,.0f}",
        f"a rank's time  {shares}",
        f"idle           {facts['idle_of_busiest']:.1%} on one rank at least, {facts['idle_of_idlest']:.1%} at most",
        f"rows           busiest owner over mean: {facts['rows_of_busiest_over_mean']:.2f}",
        f"between nodes  {facts['bytes_between_nodes'] / len(found.calls) / 2**20:,.1f} MiB a call"
        + (f"; {link} is {facts['busiest_link_share']:.0%} in use" if link else ""),
        f"binds          {facts['binds']}",
        "",
        f"{facts['events']:,} events in {seconds:.1f} s. These times have not been compared with a real machine's; see"
        " docs/simulate.md.",
    ]
    return "\n".join(lines)
