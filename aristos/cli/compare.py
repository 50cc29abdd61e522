"""`aristos compare FIRST.h5 SECOND.h5`: compares two runs, or with one file its last two runs.

It prints medians, their ratio, and the facts that differ, and draws pictures of both runs side by side.

Exit codes. 0: fine. 2: wrong usage, or runs that cannot be compared. 3: a file is missing or damaged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SUMMARY = "two runs of results files side by side: aristos compare before.h5 after.h5"


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aristos compare", description="Compare the times of two runs.")
    parser.add_argument("files", nargs="+", metavar="FILE.h5", help="two results files (the last run of each), or one")
    parser.add_argument(
        "--run", action="append", default=[], metavar="NAME", help="twice: the two runs' names, or their first letters"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the pictures (default: FIRST-compared)")
    parser.add_argument("--no-plots", action="store_true", help="draw no pictures")
    asked = parser.parse_args(argv)
    if len(asked.files) > 2:
        parser.error(f"give two results files, or one with two runs, got {len(asked.files)} files")
    if len(asked.run) not in (0, 2):
        parser.error(f"--run names both runs or none, got {len(asked.run)} names")
    return asked


def main(argv: list[str]) -> int:
    from ..bench import compared, plots
    from ..bench.tables import Reporter
    from ..errors import AristosError, EnvironmentProblem, InputError

    asked = options(argv)
    try:
        first, second = plots.two(asked.files, asked.run)
        sheets, refused = compared.compare(first, second)
        reporter = Reporter(quiet=False)
        for name, run in (("first", first), ("second", second)):
            reporter.line(f"# {name}: {run.name}, {run.attributes.get('command', 'no command')}")
        for line in compared.facts(first, second):
            reporter.line(f"# differs: {line}")
        for sheet in sheets:
            reporter.show(sheet)
        reporter.line(f"\n# {compared.SENTENCE}")
        for line in refused:
            reporter.line(f"# not compared: {line}")
        if not asked.no_plots:
            folder = Path(asked.out or f"{Path(asked.files[0]).with_suffix('')}-compared")
            try:
                for path in plots.draw_both((first, second), folder):
                    print(path)
            except EnvironmentProblem as why:  # pictures are optional: the tables were printed
                print(f"aristos compare: no pictures: {why}", file=sys.stderr)
    except InputError as why:
        print(f"aristos compare: {why}", file=sys.stderr)
        return 2
    except (AristosError, OSError) as why:
        print(f"aristos compare: {why}", file=sys.stderr)
        return 3
    return 0
