"""`aristos topo`: shows the devices, links and network of this machine, or those in files, as text, JSON or a drawing.

Exit codes: 0 fine, 2 usage, 3 a text that is not a topology or a file that cannot be read or written, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..bench.arguments import nonempty
from ..host import launch_environment

SUMMARY = "this machine, its links and the network: aristos topo --json"
PROBLEM = 3


def options(argv: list[str]) -> argparse.Namespace:
    parser = launch_environment.OneRankParser(
        prog="aristos topo",
        description="Show the GPUs, NICs, NUMA domains and CPUs of this machine, the class of every link, the network "
        "of the Slurm job, and their faults. With files: the machine and network that these describe.",
    )
    parser.add_argument(
        "--nvidia-smi", type=nonempty, metavar="FILE", help="output of `nvidia-smi topo -m`; - reads stdin"
    )
    parser.add_argument(
        "--slurm-topology",
        type=nonempty,
        metavar="FILE",
        help="topology.conf, topology.yaml or the output of `scontrol show topology`; - reads stdin",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    parser.add_argument(
        "--plot", type=nonempty, metavar="FILE", help="draw the machine: .png, .svg or .pdf (needs matplotlib)"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="under aristos run, mpirun or srun: measure the links between the ranks, and each rank's rate and memory; "
        "in one process, or with --nvidia-smi: take the figures of the GPUs from a table",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("aristos-links.json"),
        metavar="FILE",
        help="where --measure writes its figures (%(default)s)",
    )
    parser.add_argument(
        "--again", action="store_true", help="measure again, even if the links of these ranks are in the cache"
    )
    asked = parser.parse_args(argv)
    if asked.nvidia_smi == asked.slurm_topology == "-":
        parser.error("only one file can be stdin: give --nvidia-smi - or --slurm-topology -, the other as a file")
    if asked.again and not asked.measure:
        parser.error("--again needs --measure")
    if asked.measure and (asked.slurm_topology or asked.plot):
        parser.error("--measure takes --nvidia-smi, --out, --again and --json, not --slurm-topology or --plot")
    return asked


def main(argv: list[str]) -> int:
    from ..errors import AristosError

    asked = options(argv)
    if not launch_environment.prints() and (asked.nvidia_smi or not asked.measure):
        return 0  # one rank of a job prints; all ranks measure
    try:
        if asked.measure:
            from ..bench import links_main

            return links_main.run_links(asked, _read(asked.nvidia_smi))
        return run(asked)
    except BrokenPipeError:  # | head
        return launch_environment.unread()
    except (AristosError, OSError) as why:
        print(f"aristos topo: {why}", file=sys.stderr)
        return PROBLEM


def run(asked: argparse.Namespace) -> int:
    from ..topology import discover, from_text, serialize

    file = bool(asked.nvidia_smi or asked.slurm_topology)
    topology = from_text(_read(asked.nvidia_smi), _read(asked.slurm_topology)) if file else discover()
    if asked.plot:
        from ..topology.drawing import draw

        try:
            draw(topology, Path(asked.plot))
        except OSError as why:
            print(f"aristos topo: {asked.plot} cannot be drawn: {why.strerror or why}", file=sys.stderr)
            return PROBLEM
    if asked.json:
        print(json.dumps(serialize.as_json(topology, file), indent=2), flush=True)
    else:
        print(serialize.table(topology), flush=True)
    return 0


def _read(name: str | None) -> str | None:
    from ..topology import texts

    return None if name is None else texts.read(name)
