"""`python -m ptxsim.cases [--schedules N] [NAME ...]` runs the published bugs and prints what the machine reports.

The exit code is 0 if the machine reports each bug in at least one schedule, and never reports a repaired kernel.
Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys

from ..command import at_least
from .table import CASES, table


def main(argv: list[str] | None = None) -> int:
    """Run the cases that `argv` names, or all. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ptxsim.cases", description="Run published bugs on the machine.")
    parser.add_argument("--schedules", type=at_least(1), default=4, help="schedules of each kernel (%(default)s)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases; by default all")
    asked = parser.parse_args(argv)
    unknown = set(asked.names) - {case.name for case in CASES}
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}; the cases are {', '.join(c.name for c in CASES)}")
    text, wrong = table([case for case in CASES if not asked.names or case.name in asked.names], asked.schedules)
    print(text)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
