"""`aristos run -n 8 -- python model.py`: start a job here or in an allocation, with each rank close to its device.

Exit codes: the job's own; 2 usage, 3 the environment, 128 + N when signal N ended it.
"""

from __future__ import annotations

import argparse
import shlex

from ..bench.arguments import counts, positive

MOST_RESTARTS = 1000
SUMMARY = "start a job, each rank bound close to its device: aristos run -n 8 -- python model.py"


def options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(the options of `aristos run`, the program with its own options)."""
    parser = argparse.ArgumentParser(
        prog="aristos run",
        usage="aristos run [options] -- PROGRAM ...",
        description="Start a job with the mpiexec of the MPI in use, or with srun inside a Slurm allocation. Each rank "
        "is bound to cores close to its GPU, or to its part of a NUMA domain. `python` is this Python.",
    )
    parser.add_argument(
        "-n",
        type=positive,
        dest="ranks",
        metavar="RANKS",
        help="number of ranks (default: one for each GPU of every node, without GPUs one for each NUMA domain)",
    )
    parser.add_argument(
        "--per",
        choices=("numa",),
        help="start one rank for each NUMA domain whose CPUs may be used; a rank is bound to all cores of the"
        " domain and "
        "gets no GPU; with -n only RANKS of these domains, spread evenly",
    )
    parser.add_argument("--smt", action="store_true", help="bind to all hardware threads of a core, not to one")
    parser.add_argument(
        "--launcher",
        choices=("mpirun", "srun"),
        help="what starts the ranks (default: srun in an allocation, else mpirun)",
    )
    parser.add_argument(
        "--restarts",
        type=positive,
        default=0,
        metavar="N",
        help="start the job again, at most N times, if it fails; the program finds the number of this start in "
        "ARISTOS_RESTART and goes on from what it has saved",
    )
    parser.add_argument(
        "--restart-ranks",
        type=counts,
        metavar="RANKS,...",
        help="numbers of ranks of restarts 1, 2 and so on; later restarts use the last number (default: as before)",
    )
    parser.add_argument(
        "--clean",
        action="store_true",
        help="remove the files that ended jobs of MPI have left in /dev/shm, before and after the job; do not use "
        "it where a container shares /dev/shm, because the container's processes are not visible here",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the command, and the cores and the GPU of each rank"
    )
    parser.add_argument(
        "--nvidia-smi",
        metavar="FILE",
        help="with --dry-run: place ranks on the machine that this output of `nvidia-smi topo -m` shows; - reads stdin",
    )
    own, program = _split(argv)
    asked, rest = parser.parse_known_args(own)
    if rest:
        at = next((own.index(word) for word in rest if not word.startswith("-")), None)
        hint = ""
        if at is not None:
            hint = f"; put -- before the program: aristos run {shlex.join([*own[:at], '--', *own[at:]])}"
        parser.error(f"unrecognized arguments: {shlex.join(rest)}{hint}")
    if asked.nvidia_smi == "":
        parser.error("--nvidia-smi must name a file or be -, got '': check that the shell's variable is set")
    if asked.restarts > MOST_RESTARTS:
        parser.error(f"--restarts must be at most {MOST_RESTARTS}, got {asked.restarts}")
    return asked, program


def main(argv: list[str]) -> int:
    from ..launcher import main as launcher

    return launcher.launch(*options(argv))


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Options, and the program after `--`."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]
