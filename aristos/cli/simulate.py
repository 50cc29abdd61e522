"""`aristos simulate`: how long calls of a layer would take on another machine. The shipped steps run in virtual time.

Exit codes: 0 simulated, 1 the simulated calls could not end, 2 usage or a wrong machine file,
3 a file that cannot be read or written, 130 Ctrl-C. After Ctrl-C, what has been simulated is printed and saved.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.arguments import counts, nonempty, not_negative, positive
from ..bench.options import is_file
from ..config import MOVES
from ..errors import InputError
from ..host import launch_environment
from ..row_types import ON_CPUS
from . import _simulating, _studies
from ._listing import listed, unknown

if TYPE_CHECKING:
    from ..config import MoEConfig
    from ..simulate.machine import Machine

SUMMARY = "how long a call takes on ranks that you do not have: aristos simulate --model olmoe-1b-7b --nodes 8"
MOST_RANKS = 1024


def options(argv: list[str]) -> argparse.Namespace:
    """The options, checked. Their attribute `changed` lists a `_studies.Point` for each change of `--what-if`."""
    parser = make_parser()
    asked = check(parser, argv, None)
    if len(asked.nodes) > 1 and not asked.scaling:
        parser.error(f"--nodes takes several numbers only with --scaling, got {','.join(map(str, asked.nodes))}")
    if asked.timeline and asked.scaling:
        parser.error("--timeline needs one number of nodes: leave out --scaling")
    if asked.timeline and asked.schedule == "bulk":
        parser.error("--timeline shows steps of the fused schedule, got --schedule bulk")
    try:
        asked.changed = _studies.parsed(asked.what_if, asked, lambda words, base: check(parser, words, base))
    except ValueError as why:
        parser.error(f"--what-if {why}")
    return asked


def make_parser() -> argparse.ArgumentParser:
    from ..bench.routing import GENERATORS
    from ..substrate.cpu.runtime import BATCH, TILE

    parser = launch_environment.OneRankParser(
        prog="aristos simulate",
        description="Run the engine's own compiled steps in virtual time, over a modelled network between nodes.",
    )
    parser.add_argument(
        "--machine",
        default="perlmutter-cpu",
        metavar="NAME|FILE",
        help="machine and network; '?' lists names (%(default)s)",
    )
    parser.add_argument(
        "--kernel",
        type=nonempty,
        metavar="FILE.h5",
        help="take the expert kernel's rates from suite gemm in a results file (default: those of --machine,"
        " else measured)",
    )
    parser.add_argument(
        "--nodes", type=counts, default=(2,), metavar="N[,N..]", help="number of nodes; several with --scaling (2)"
    )
    parser.add_argument("--ranks-per-node", type=positive, default=1, help="ranks of a node (%(default)s)")
    parser.add_argument("--threads", type=positive, default=1, help="workers of a rank (%(default)s)")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="model of the layer; '?' lists names (default: that of --routing FILE, else olmoe-1b-7b)",
    )
    parser.add_argument("--tokens", type=positive, default=1024, help="tokens of a rank in a call (%(default)s)")
    parser.add_argument(
        "--dtype", choices=list(ON_CPUS), default="bfloat16", help="type of rows and weights (%(default)s)"
    )
    parser.add_argument(
        "--routing",
        type=nonempty,
        default="uniform",
        metavar="NAME|FILE.npz",
        help=f"how experts are chosen: {', '.join(GENERATORS)} (only experts of rank 0), or a recorded routing "
        "(%(default)s)",
    )
    parser.add_argument(
        "--layer", type=not_negative, metavar="N", help="layer of a recorded routing (default: the one in the middle)"
    )
    parser.add_argument(
        "--schedule", choices=("fused", "bulk"), default="fused", help="schedule of a call (%(default)s)"
    )
    parser.add_argument(
        "--moves", choices=MOVES, default="auto", help="what a fused call sends within a node (%(default)s)"
    )
    parser.add_argument("--levels", type=int, choices=(1, 2), default=1, help="levels of the wire (%(default)s)")
    parser.add_argument(
        "--tile", type=positive, default=TILE, help=f"most rows of a tile, at most {BATCH} (%(default)s)"
    )
    parser.add_argument(
        "--calls", type=positive, default=2, help="number of calls; the last one is reported (%(default)s)"
    )
    parser.add_argument("--seed", type=not_negative, default=0, help="seed of the routing (%(default)s)")
    several = parser.add_argument_group("several simulations")
    several.add_argument(
        "--what-if",
        nargs="+",
        default=[],
        metavar="NAME=VALUE,..",
        help=f"also simulate with each of these values, one change at a time: {', '.join(_studies.CHANGED)}",
    )
    several.add_argument(
        "--scaling",
        choices=("weak", "strong"),
        help="simulate every number of --nodes; weak: each rank has --tokens; strong: all ranks"
        " together keep as many tokens as with the first number",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    output.add_argument("--out", type=nonempty, metavar="FILE.h5", help="results file to append to")
    output.add_argument(
        "--timeline", type=nonempty, metavar="FILE.json", help="write a Perfetto timeline of some ranks"
    )
    return parser


def check(parser: argparse.ArgumentParser, words: list[str], base: argparse.Namespace | None) -> argparse.Namespace:
    """The options in `words`, and the others of `base`. Ends the command with one line if they are wrong."""
    from ..bench.routing import GENERATORS
    from ..models import PRESETS
    from ..substrate.cpu.runtime import BATCH

    asked = parser.parse_args(words, base)
    for name in ("model", "machine"):
        if getattr(asked, name) == "?":
            print(_names(name), flush=True)
            parser.exit(0)
    if asked.model is not None and asked.model not in PRESETS:
        parser.error(f"--model: {unknown(asked.model, PRESETS, '`aristos simulate --model ?`')}")
    if asked.routing == "router" or (is_file(asked.routing) and not Path(asked.routing).is_file()):
        parser.error(f"--routing must be a file or one of {', '.join(GENERATORS)}, got {asked.routing!r}")
    if asked.layer is not None and not is_file(asked.routing):
        parser.error(f"--layer needs a recorded routing, --routing FILE.npz, got --routing {asked.routing}")
    if asked.tile > BATCH:
        parser.error(f"--tile must be at most {BATCH}, got {asked.tile}")
    if (ranks := max(asked.nodes) * asked.ranks_per_node) > MOST_RANKS:
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
    from ..simulate import calibrate, kernel_rates, machines
    from ..simulate.machine import Costs, Kernel, Machine

    preset = machines.PRESETS.get(asked.machine)
    if preset is None:
        path = Path(asked.machine)
        if not path.is_file():
            known = ", ".join(machines.PRESETS)
            raise InputError(f"--machine must be a file or one of {known}, got {asked.machine!r}")
        machine = machines.load(path)
    else:
        machine = Machine(links=preset.network)
    machine.links.routes(asked.nodes)  # a network that has fewer nodes is refused before anything is measured
    if asked.kernel is not None:
        kernel, source = kernel_rates.from_results(Path(asked.kernel), cfg.dtype)
        return replace(machine, kernel=kernel), f"rates of the expert kernel: {source}"
    if machine.kernel != Kernel():
        return machine, f"rates of the expert kernel: {asked.machine}"
    print("aristos simulate: measuring the expert kernel on this core", file=sys.stderr, flush=True)
    costs = calibrate.rows_costs(cfg, machine.costs) if machine.costs == Costs() else machine.costs
    return replace(
        machine, kernel=calibrate.kernel(cfg), costs=costs
    ), "rates of the expert kernel: measured on this core"


def main(argv: list[str]) -> int:
    return _simulating.simulate_points(options(argv), argv, machine_of)
