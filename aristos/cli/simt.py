"""`aristos simt profile SCRIPT.py`: run a script's CUDA kernels on the PTX machine; print its reports and counters.

Exit codes: 0 no reports, 1 reports or a failed script, 2 usage, 3 numba-cuda is missing, 130 Ctrl-C; without reports,
the script's own exit code. Runs only Python files.
"""

from __future__ import annotations

import argparse
import sys

from ..bench import arguments
from ..host import launch_environment

SUMMARY = "run a script's CUDA kernels without a GPU, checked: aristos simt profile SCRIPT.py"
USAGE, INCOMPLETE, INTERRUPTED = 2, 3, 130


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aristos simt", description="Run CUDA kernels on the PTX machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser(
        "profile",
        help="run a script and print the checker's reports and the counters of each source line",
        description="Run a Python script. Kernels that it launches as k[grid, block](...) run on the machine. "
        "Prints the checker's reports, and the counters of each source line of the kernels.",
    )
    one.add_argument(
        "--json", action="store_true", help="one JSON object on stdout; the script's own output goes to stderr"
    )
    one.add_argument("--no-check", action="store_true", help="only counters, no checker: faster")
    one.add_argument("--seed", type=arguments.not_negative, default=0, help="of the schedule (%(default)s)")
    one.add_argument("--devices", type=arguments.positive, default=1, help="simulated GPUs (%(default)s)")
    one.add_argument(
        "--sm-count", type=arguments.positive, default=4, help="streaming multiprocessors of each (%(default)s)"
    )
    one.add_argument("--arch", default="sm_90", help="the architecture that kernels are compiled for (%(default)s)")
    one.add_argument("--limit", type=arguments.positive, default=10**11,
                     help="stop a run after so many warp instructions (%(default)s)")  # fmt: skip
    one.add_argument("script", metavar="SCRIPT.py")
    one.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    asked = options(argv)
    from ..errors import EnvironmentProblem, InputError

    try:
        from ..simt.profile import profile

        code = profile(
            asked.script, asked.args, asked.json, devices=asked.devices, sm_count=asked.sm_count, arch=asked.arch,
            seed=asked.seed, check=not asked.no_check, limit=asked.limit,
        )  # fmt: skip
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return launch_environment.unread()
    except KeyboardInterrupt:
        return INTERRUPTED
    except InputError as why:
        print(f"aristos simt profile: {why}", file=sys.stderr)
        return USAGE
    except EnvironmentProblem as why:
        print(f"aristos simt profile: {why}", file=sys.stderr)
        return INCOMPLETE
