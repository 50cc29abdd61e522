"""`aristos doctor`: check MPI, launcher, memory, cores, GPUs, Slurm; under mpirun or srun, compare the ranks.

Exit codes: 0 no check failed, 2 usage, 3 a check failed, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse

from ..bench.arguments import seconds
from ..host import launch_environment

SUMMARY = "check this machine, alone or on all ranks: mpirun -n 2 aristos doctor"
LIMIT = 60.0


def options(argv: list[str]) -> argparse.Namespace:
    parser = launch_environment.OneRankParser(
        prog="aristos doctor",
        description="Check MPI, launcher, memory, cores, GPUs and Slurm, and whether MPI makes progress by itself. "
        "Under mpirun or srun also whether the ranks are alike and reach each other.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=LIMIT,
        metavar="SECONDS",
        help="end the job if an MPI call takes longer (%(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    from ..doctor import main as doctor

    asked = options(argv)
    return doctor.run_doctor(asked.json, asked.timeout)
