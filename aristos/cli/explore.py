"""`aristos explore`: run the engine's protocol under schedules that a checker chooses, and look for races and hangs.

Exit codes: 0 nothing found (with --mutation: every bug was found), 1 a bug was found (with --mutation: one was not),
2 usage, no stdout to write to, no greenlet, or no deliberate bugs, 3 an exhaustive search ran out of time, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from ..bench import arguments
from ..errors import EnvironmentProblem
from ._listing import listed, unknown

SUMMARY = "look for races and hangs in the protocol: aristos explore --schedules 300"
FINE, USAGE = 0, 2
SIZES = ("ranks", "rows", "calls", "transport")


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="aristos explore",
        description="Run the engine's steps, uncompiled, under many schedules of all ranks, workers and the network; "
        "check every access and every result.",
    )
    parser.add_argument("--ranks", type=int, help="number of ranks, 1 to 8 (2; exhaustive with --transport levels: 3)")
    parser.add_argument("--rows", type=int, help="rows of a ring; 0: drawn from 1 to 4 (4; exhaustive: 2)")
    parser.add_argument("--calls", type=int, help="calls of each rank; 0: drawn from 1 to 5 (2)")
    parser.add_argument(
        "--transport",
        choices=("shm", "rma", "mixed", "levels", "proxy"),
        help="how puts reach a rank; shm: one node; rma: each rank is a node; mixed: nodes of several ranks; levels:"
        " the same with two levels; proxy: between nodes, for ranks on GPUs (shm)",
    )
    parser.add_argument(
        "--stay",
        type=int,
        help="this many or more rows for an expert of a local peer are not sent; 0: all are sent (drawn;"
        " exhaustive: 0)",
    )
    parser.add_argument(
        "--scalars",
        action="store_true",
        help="every second call has a scalar beside each row (default: drawn; exhaustive: none)",
    )
    parser.add_argument(
        "--backward",
        action="store_true",
        help="every second call is a backward call (default: drawn; exhaustive: none)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="send a token once to a rank that has several of its experts, also within a node; with --strategy"
        " exhaustive only in some calls (default: drawn; exhaustive: never)",
    )
    parser.add_argument(
        "--sums",
        action="store_true",
        help="a node's outputs of a token come back as one row, only with --transport levels (default: drawn;"
        " exhaustive: never)",
    )
    parser.add_argument(
        "--strategy",
        choices=("pct", "random", "exhaustive"),
        default="pct",
        help="how schedules are drawn (%(default)s)",
    )
    parser.add_argument("--schedules", type=int, default=300, help="number of schedules (%(default)s)")
    parser.add_argument("--tokens", type=int, help="tokens of each rank's call, only with --strategy exhaustive (3)")
    parser.add_argument(
        "--seconds", type=arguments.seconds, help="time limit; with --mutation the limit of each bug (exhaustive: 1800)"
    )
    parser.add_argument("--seed", type=int, default=0, help="number of the first schedule (%(default)s)")
    parser.add_argument(
        "--mutation",
        metavar="NAME|all",
        help="insert a deliberate bug and find it, by default in its own case; needs a clone of Aristos; ? lists all",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    asked = parser.parse_args(argv)
    for name, least, most in (
        ("ranks", 1, 8),
        ("rows", 0, 64),
        ("calls", 0, 64),
        ("schedules", 1, 10**9),
        ("seed", 0, 2**63 - 1),
        ("tokens", 0, 6),
        ("stay", 0, 64),
    ):
        if getattr(asked, name) is not None and not least <= getattr(asked, name) <= most:
            parser.error(f"--{name} must be in {least}..{most}, got {getattr(asked, name)}")
    exhaustive = asked.strategy == "exhaustive"
    if asked.tokens is not None and not exhaustive:
        parser.error("--tokens needs --strategy exhaustive: other strategies draw the number of tokens")
    if asked.sums and asked.transport != "levels":
        parser.error(f"--sums needs --transport levels, got {asked.transport or 'shm'}")
    if asked.sums and (asked.scalars or asked.backward):
        parser.error("--sums takes neither --scalars nor --backward: only forward calls of layers have sums")
    asked.given = {name for name in SIZES if getattr(asked, name) is not None}
    asked.transport = asked.transport or "shm"
    if asked.ranks is None:
        asked.ranks = 3 if exhaustive and asked.transport == "levels" else 2
    if asked.ranks < 2 and (asked.transport != "shm" or (asked.mutation and not exhaustive)):
        what = f"--transport {asked.transport}" if asked.transport != "shm" else "--mutation"
        parser.error(f"{what} needs at least 2 ranks, got {asked.ranks}")
    if exhaustive:
        if asked.transport == "levels":
            check_levels(parser, asked)
        elif asked.ranks != 2 or asked.mutation == "all" or asked.transport == "mixed":
            what = "2 ranks with --transport shm, rma or proxy, 3 with levels, and not --mutation all"
            parser.error(f"--strategy exhaustive takes {what}")
        asked.rows, asked.calls = asked.rows or 2, asked.calls or 2
        asked.tokens = 3 if asked.tokens is None else asked.tokens
    asked.rows = (4 if asked.rows is None else asked.rows) or None
    asked.calls = (2 if asked.calls is None else asked.calls) or None
    return asked


def check_levels(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Refuse options that a search of all schedules with two levels does not have."""
    if asked.ranks != 3 or asked.mutation == "all" or (asked.tokens or 1) != 1:
        parser.error("--strategy exhaustive --transport levels takes 3 ranks and 1 token, and not --mutation all")
    for name in ("scalars", "backward", "once", "stay"):
        if getattr(asked, name):
            parser.error(f"--strategy exhaustive --transport levels takes no --{name}")


def main(argv: list[str]) -> int:
    asked = options(argv)
    if sys.stdout is None:
        print("aristos explore: stdout is closed: redirect it to /dev/null if no report is wanted", file=sys.stderr)
        return USAGE
    if importlib.util.find_spec("greenlet") is None:
        print("aristos explore: greenlet is not installed: pip install 'aristos[explore]'", file=sys.stderr)
        return USAGE
    try:
        if os.environ.get("NUMBA_DISABLE_JIT") != "1":  # @jit decides when its module is imported
            again = [sys.executable, "-m", "aristos", "explore", *argv]
            os.execve(sys.executable, again, {**os.environ, "NUMBA_DISABLE_JIT": "1"})
        from ..explore.catalogue import load
        from ..explore.main import run_explorer

        if asked.mutation is not None and asked.mutation not in ("all", *load()):
            if asked.mutation == "?":
                print(listed({name: bug.what for name, bug in load().items()}), flush=True)
                return FINE
            why = unknown(asked.mutation, ["all", *load()], "`aristos explore --mutation ?`")
            print(f"aristos explore: --mutation: {why}", file=sys.stderr)
            return USAGE
        if asked.strategy == "exhaustive" and asked.mutation:  # search where the bug can show
            own = load()[asked.mutation].asked
            asked.transport = asked.transport if "transport" in asked.given else own.transport
            asked.sums = asked.sums or dict(own.fixed).get("sums", False)
        code = run_explorer(asked)
        sys.stdout.flush()
        return code
    except EnvironmentProblem as why:  # no clone, so no deliberate bugs
        print(f"aristos explore: {why}", file=sys.stderr)
        return USAGE
    except OSError as why:
        print(f"aristos explore: cannot write to stdout: {why}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that flushing the rest at exit does not fail again
        return USAGE
