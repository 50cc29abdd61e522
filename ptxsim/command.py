"""`ptxsim check FILE`, `ptxsim profile SCRIPT.py`, `ptxsim run PROGRAM`: run CUDA kernels on the PTX machine.

`check` prints the checker's reports of a Python script, or of CUDA C++ or PTX. `profile` also prints the counters of a
script's kernels. `run` prints the reports of any program that uses CUDA's driver API.
Exit codes: 0 no reports, 1 reports or a failed script, 2 usage, 3 numba-cuda or NVRTC is missing, 130 Ctrl-C. Without
reports `profile` returns the script's own exit code.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from kernel_cache import errors, texts

USAGE, INCOMPLETE, INTERRUPTED = 2, 3, 130


def options(argv: list[str], prog: str = "ptxsim") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description="Run CUDA kernels on the PTX machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check_options(commands)
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
    machine_options(one)
    one.add_argument("script", metavar="SCRIPT.py")
    one.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    run_options(commands)
    return parser.parse_args(argv)


def run_options(commands: Any) -> None:
    """Add the command `run`."""
    one = commands.add_parser(
        "run",
        help="run a program that uses CUDA's driver API, and print the checker's reports",
        description="Run any program that uses CUDA's driver API (libcuda.so.1), by cuda.bindings or C++. A stand-in "
        "for this library runs the program's kernels on the machine, with the checker; see docs/ptxsim-run.md.",
    )
    one.add_argument("--no-check", action="store_true", help="no checker: faster")
    one.add_argument("--schedules", type=at_least(1), default=1, help="how often to run the program (%(default)s)")
    suppress_option(one)
    one.add_argument("--folder", action="store_true", help="print the folder of the stand-in libcuda, for g++ -L")
    machine_options(one)
    one.add_argument("program", metavar="PROGRAM", nargs=argparse.REMAINDER, help="the program and its arguments")


def check_options(commands: Any) -> None:
    """Add the command `check`."""
    one = commands.add_parser(
        "check",
        help="run the kernels of a script, of CUDA C++ or of PTX, and print the checker's reports",
        description="Run the kernels of a Python script, or of files of CUDA C++ or PTX, with the checker. For CUDA "
        "C++ and PTX a launch is a comment in the file, '// simt: add<<<8, 128>>>(float32[1000]=seed:1, float32[1000], "
        "1000)', or an option. docs/ptxsim-check.md has all forms of arguments.",
    )
    one.add_argument(
        "--launch",
        action="append",
        default=[],
        metavar="'NAME<<<GRID, BLOCK>>>(ARGUMENTS)'",
        help="a launch of CUDA C++ or PTX, instead of those in comments; can be repeated",
    )
    one.add_argument(
        "--schedules", "--seeds", dest="seeds", type=at_least(1), default=1, help="how many schedules (%(default)s)"
    )
    suppress_option(one)
    one.add_argument(
        "--shorten",
        action="store_true",
        help="print a short schedule that shows the first fault of each file",
    )
    one.add_argument("--save", metavar="FOLDER", help="write the arrays that launches name to FOLDER/NAME.npy")
    one.add_argument("--github", action="store_true", help="print reports as annotations of GitHub Actions")
    one.add_argument(
        "-I", dest="folders", action="append", default=[], metavar="FOLDER", help="folder with headers of CUDA C++"
    )
    one.add_argument("-D", dest="macros", action="append", default=[], metavar="NAME[=VALUE]", help="macro of CUDA C++")
    machine_options(one)
    one.add_argument("file", metavar="FILE.cu|FILE.ptx|SCRIPT.py")
    one.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script; for CUDA C++ and PTX, more files")


def suppress_option(one: argparse.ArgumentParser) -> None:
    """Add the option --suppress."""
    one.add_argument(
        "--suppress",
        action="append",
        default=[],
        metavar="FILE",
        help="a file of known reports, with reasons, not to print; `triton` for those of Triton's code",
    )


def machine_options(one: argparse.ArgumentParser) -> None:
    """Add the options of a machine."""
    one.add_argument("--seed", type=at_least(0), default=0, help="seed of the schedule (%(default)s)")
    one.add_argument("--devices", type=at_least(1), default=1, help="simulated GPUs (%(default)s)")
    one.add_argument("--sm-count", type=at_least(1), default=4, help="streaming multiprocessors of a GPU (%(default)s)")
    one.add_argument("--arch", default="sm_90", help="the architecture that kernels are compiled for (%(default)s)")
    one.add_argument("--limit", type=at_least(1), default=10**11, help="most warp instructions of a run (%(default)s)")
    one.add_argument(
        "--patience",
        type=at_least(1),
        default=50_000_000,
        help="warp instructions without any change after which threads count as stuck (%(default)s)",
    )
    one.add_argument("--no-stale", action="store_true", help="let no read return an older value; races are still found")


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse that takes whole numbers from `least` on."""

    def number(text: str) -> int:
        found = texts.whole(text)
        if found is None or found < least:
            raise argparse.ArgumentTypeError(f"must be a whole number, at least {least}, got {texts.shown(text)}")
        return found

    return number


def main(argv: list[str] | None = None, prog: str = "ptxsim") -> int:
    """Run the command in `argv`. Returns its exit code. prog: the name that messages give the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may have characters that the terminal lacks
    asked = options(sys.argv[1:] if argv is None else argv, prog)
    machine = {
        "devices": asked.devices,
        "sm_count": asked.sm_count,
        "arch": asked.arch,
        "seed": asked.seed,
        "limit": asked.limit,
        "patience": asked.patience,
        "stale": not asked.no_stale,
    }
    try:
        if asked.command == "check":
            from .check import check

            flags = [f"-I{folder}" for folder in asked.folders] + [f"-D{macro}" for macro in asked.macros]
            more = {"suppress": asked.suppress, "shorten": asked.shorten, "save": asked.save, **machine}
            code = check(asked.file, asked.args, asked.launch, asked.seeds, asked.github, tuple(flags), **more)
        elif asked.command == "run":
            from .libcuda import build, run

            if asked.folder:
                print(build.folder())
                return 0
            program = asked.program[1:] if asked.program[:1] == ["--"] else asked.program
            if not program:
                raise errors.InputError("give a program to run, such as `ptxsim run python SCRIPT.py`")
            code = run.run(program, asked.schedules, asked.suppress, check=not asked.no_check, **machine)
        else:
            from .profile import profile

            code = profile(asked.script, asked.args, asked.json, check=not asked.no_check, **machine)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of stdout has ended, such as `| head`
        # Python flushes stdout at exit, and would report an error for the closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except errors.InputError as why:
        print(f"{prog} {asked.command}: {why}", file=sys.stderr)
        return USAGE
    except errors.EnvironmentProblem as why:
        print(f"{prog} {asked.command}: {why}", file=sys.stderr)
        return INCOMPLETE
