"""`aristos plot FILE.h5`: pictures of a run in a results file, written next to it.

Exit codes: 0 fine, 2 usage, 3 the environment: a package or file is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SUMMARY = "pictures of a results file: aristos plot aristos-results.h5"
FORMATS = ("png", "svg", "pdf")


def main(argv: list[str]) -> int:
    from ..errors import AristosError, InputError

    parser = argparse.ArgumentParser(prog="aristos plot", description="Draw the pictures of one run.")
    parser.add_argument("file", metavar="FILE.h5", help="file written by `aristos bench`")
    parser.add_argument("--run", metavar="NAME", help="a run's name or its first letters (default: the last run)")
    parser.add_argument("--out", metavar="DIR", help="folder for the pictures (default: FILE-plots)")
    parser.add_argument("--format", choices=FORMATS, default="png")
    asked = parser.parse_args(argv)
    try:
        from ..bench import plots

        folder = Path(asked.out or f"{asked.file.removesuffix('.h5')}-plots")
        for path in plots.draw(asked.file, folder, run=asked.run, form=asked.format):
            print(path)
    except InputError as why:
        print(f"aristos plot: {why}", file=sys.stderr)
        return 2
    except (AristosError, OSError) as why:
        print(f"aristos plot: {why}", file=sys.stderr)
        return 3
    return 0
