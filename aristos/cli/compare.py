"""`aristos compare FIRST.h5 SECOND.h5`: compares two runs, or with one file its last two runs.

The command prints medians, their ratio with an interval, one word for each row, and the facts that differ. With
`--regression 5%` the exit code is 1 if the whole interval of a row lies above +5 %.

Exit codes. 0: fine. 1: slower than `--regression` allows. 2: wrong usage, or runs that cannot be compared. 3: a file is
missing, damaged or of another format, or with `--regression` no row could be judged. 130: Ctrl-C. 141: nobody read the
output to its end.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..report.compared import Comparison

from ..bench.arguments import nonempty

SUMMARY = "what got faster or slower between two runs: aristos compare before.h5 after.h5"
SLOWER, ENVIRONMENT = 1, 3


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="aristos compare",
        description="Compare the times of two runs row by row: faster, slower, or noise.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=nonempty,
        metavar="FILE.h5",
        help="two results files (the last run of each), or one (its last two runs)",
    )
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="NAME",
        help="a run's name or its first letters; give it twice, once for each run",
    )
    parser.add_argument("--all", action="store_true", help="use all runs of each file, as repetitions of one another")
    parser.add_argument(
        "--regression",
        type=share,
        metavar="SHARE",
        help="exit with code 1 if a row's whole interval is slower by more than this share, 5%% or 0.05",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    parser.add_argument(
        "--out", type=nonempty, metavar="DIR", help="draw the pictures of both runs side by side in this folder"
    )
    asked = parser.parse_args(argv)
    if len(asked.files) > 2:
        parser.error(f"give two results files, or one with two runs, got {len(asked.files)} files")
    if len(asked.run) not in (0, 2):
        parser.error(f"--run must be given twice or not at all, got {len(asked.run)} names")
    if asked.all and (asked.run or len(asked.files) != 2):
        parser.error("--all takes two files and no --run")
    return asked


def share(text: str) -> float:
    """`5%` and `0.05` -> 0.05."""
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a share such as 5% or 0.05, below 1, got {text}")
    return value


def main(argv: list[str]) -> int:
    from ..bench.tables import plain
    from ..errors import EnvironmentProblem
    from ..report import sides, words
    from ..report.compared import compare

    asked = options(argv)
    if sys.stdout is None:
        raise EnvironmentProblem("stdout is closed: if no tables are wanted, redirect it to /dev/null")
    found = compare(*sides.two(asked.files, asked.run, asked.all))
    if asked.json:
        print(json.dumps(plain(words.document(found, asked.regression)), indent=1, allow_nan=False), flush=True)
    else:
        show(found)
    if asked.out:
        from ..bench import plots

        for path in plots.draw_both((found.first.last, found.second.last), Path(asked.out)):
            print(path, file=sys.stderr if asked.json else sys.stdout)
    if asked.regression is None:
        return 0
    if not found.judged:
        how = "Measure again, longer (--seconds), on cores that nothing else uses"
        print(f"aristos compare: no row could be judged. {words.summary(found)} {how}", file=sys.stderr)
        return ENVIRONMENT
    slower = found.regressed(asked.regression)
    if slower:
        print(f"aristos compare: {words.regressions(slower, asked.regression)}", file=sys.stderr)
    return SLOWER if slower else 0


def show(found: Comparison) -> None:
    """Print a comparison."""
    from ..bench.tables import Reporter
    from ..report import words
    from ..report.markup import text

    reporter = Reporter(quiet=False)
    for name, side in (("first", found.first), ("second", found.second)):
        reporter.line(f"# {name}: {side.names}, {text(side.last.attributes.get('command', 'no command'))}")
    for fact, (mine, theirs) in found.differs.items():
        reporter.line(f"# differs: {fact}: {text(mine)} | {text(theirs)}")
    for sheet in words.sheets(found):
        reporter.show(sheet)
    reporter.line(f"\n# {words.NOTE}")
    reporter.line(f"# {words.CHANCE}")
    for line in words.lines(found):
        reporter.line(f"# {line}")
    reporter.line(f"# {words.summary(found)}")
