"""`aristos doctor`: check MPI, launcher, memory, cores, GPUs, Slurm; under mpirun or srun, compare the ranks.

Exit codes: 0 nothing failed, 2 usage, 3 something failed, 130 Ctrl-C.
"""

from __future__ import annotations

from ..bench.arguments import seconds
from ..host import launch_environment

SUMMARY = "check this machine, alone or on all ranks: mpirun -n 2 aristos doctor"
LIMIT = 60.0


def main(argv: list[str]) -> int:
    from ..doctor import main as doctor

    parser = launch_environment.Parser(
        prog="aristos doctor",
        description="Check MPI, launcher, memory, cores, GPUs and Slurm, and how far MPI makes progress by itself. "
        "Under mpirun or srun also: are the ranks alike, and do they reach each other?",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=LIMIT,
        metavar="SECONDS",
        help="end a call to MPI that takes longer (%(default)s)",
    )
    asked = parser.parse_args(argv)
    try:
        return doctor.run(asked.json, asked.timeout)
    except KeyboardInterrupt:
        return doctor.INTERRUPTED
