"""`aristos explore`: run the engine's protocol under schedules that a checker decides, and look for races and hangs.

Exit codes: 0 nothing found, 1 a bug was found, 2 usage, 3 an exhaustive search ran out of time, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from .. import arguments

SUMMARY = "look for races and hangs in the protocol: aristos explore --schedules 300"
USAGE, INTERRUPTED = 2, 130


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="aristos explore",
        description="Run the engine's steps, uncompiled, under many schedules of all ranks, workers and the network; "
        "check every access and every result.",
    )
    parser.add_argument("--ranks", type=int, default=2, help="1 to 8 (%(default)s)")
    parser.add_argument("--rows", type=int, help="rows of a ring; 0: drawn from 1 to 4 (4; exhaustive: 2)")
    parser.add_argument("--calls", type=int, default=2, help="calls of every rank; 0: drawn from 1 to 5 (%(default)s)")
    parser.add_argument("--transport", choices=("shm", "rma", "mixed", "ring"), default="shm",
                        help="ring: the descriptor ring of a device alone (%(default)s)")  # fmt: skip
    parser.add_argument("--strategy", choices=("pct", "random", "exhaustive"), default="pct", help="(%(default)s)")
    parser.add_argument("--schedules", type=int, default=300, help="how many (%(default)s)")
    parser.add_argument("--tokens", type=int, default=3, help="of each rank's call, exhaustive only (%(default)s)")
    parser.add_argument("--seconds", type=arguments.seconds, help="stop after so many (exhaustive: 1800)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first schedule (%(default)s)")
    parser.add_argument(
        "--mutation",
        metavar="NAME|all",
        help="put a deliberate bug in, on ranks and a transport where it can show, and find it; ? lists them",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    asked = parser.parse_args(argv)
    for name, least, most in (
        ("ranks", 1, 8),
        ("rows", 0, 64),
        ("calls", 0, 64),
        ("schedules", 1, 10**9),
        ("tokens", 0, 6),
    ):
        if getattr(asked, name) is not None and not least <= getattr(asked, name) <= most:
            parser.error(f"--{name} must be in {least}..{most}, got {getattr(asked, name)}")
    if asked.transport != "shm" and asked.ranks < 2:
        parser.error(f"--transport {asked.transport} needs at least 2 ranks, got {asked.ranks}")
    if asked.strategy == "exhaustive":
        if asked.ranks != 2 or asked.mutation == "all" or asked.transport in ("mixed", "ring"):
            parser.error("--strategy exhaustive takes 2 ranks, shm or rma, and not all mutations at once")
        asked.rows, asked.calls = asked.rows or 2, asked.calls or 2
    elif asked.rows is None:
        asked.rows = 4
    asked.rows, asked.calls = asked.rows or None, asked.calls or None
    return asked


def main(argv: list[str]) -> int:
    asked = options(argv)
    try:
        if os.environ.get("NUMBA_DISABLE_JIT") != "1":  # Numba decides when a module is imported
            again = [sys.executable, "-m", "aristos", "explore", *argv]
            return subprocess.call(again, env={**os.environ, "NUMBA_DISABLE_JIT": "1"})
        from ..explore.main import run
        from ..explore.mutation import load

        if asked.mutation not in (None, "all", *load()):
            names = "\n".join(f"  {name:32s}{bug.what}" for name, bug in load().items())
            print(f"aristos explore: the mutations are all of\n{names}", file=sys.stderr)
            return USAGE
        return run(asked)
    except KeyboardInterrupt:
        return INTERRUPTED
