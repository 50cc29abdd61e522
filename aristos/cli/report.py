"""`aristos report RESULTS.h5`: one page for a browser, with tables, plots, what changed, and timelines.

Exit codes: 0 fine, 2 usage or a file without runs, 3 a package or a file is missing, damaged or of another format.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SUMMARY = "a page of runs for a browser, compared: aristos report before.h5 after.h5 --out report.html"
USAGE, ENVIRONMENT = 2, 3


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="aristos report",
        description="Write one HTML page that needs no network: what ran where, tables, plots, and what changed since "
        "the first file. Of one file, its last two runs.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="results (FILE.h5), and timelines of `bench --timeline` or MoE.write_timeline (FILE.json)",
    )
    parser.add_argument("--out", default="report.html", metavar="FILE.html", help="the page (%(default)s)")
    parser.add_argument(
        "--all", action="store_true", help="all runs of each file: their rows are repetitions of one another"
    )
    asked = parser.parse_args(argv)
    if not asked.out or "" in asked.files:
        parser.error("a file must have a name, got '': was a variable of the shell not set?")
    if asked.out in asked.files:
        parser.error(f"--out would replace {asked.out}: give the page another name")
    return asked


def main(argv: list[str]) -> int:
    from ..errors import AristosError, InputError

    asked = options(argv)
    try:
        from kernel_cache import regular

        from ..primitives.aside import write_text
        from ..report.page import page

        target = Path(asked.out)
        regular.refuse_others(target)
        whole = page(asked.files, asked.all)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, whole)
        print(target)
    except InputError as why:
        print(f"aristos report: {why}", file=sys.stderr)
        return USAGE
    except (AristosError, OSError) as why:
        print(f"aristos report: {why}", file=sys.stderr)
        return ENVIRONMENT
    return 0
