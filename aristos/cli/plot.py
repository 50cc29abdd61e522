"""`aristos plot FILE.h5` draws pictures of a run in a results file, beside the file.

`aristos plot FILE.json ...` draws one picture of timelines, one below the other.

Exit codes: 0 fine, 2 usage, 3 the environment: a package or file is missing, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..bench.arguments import nonempty

SUMMARY = "pictures of a results file: aristos plot aristos-results.h5"
FORMATS = ("png", "svg", "pdf")


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aristos plot", description="Draw the pictures of one run, or timelines.")
    parser.add_argument(
        "files",
        nargs="+",
        type=nonempty,
        metavar="FILE",
        help="results of `aristos bench` (FILE.h5), or its timelines (FILE.json), which become one picture",
    )
    parser.add_argument("--run", metavar="NAME", help="a run's name or its first letters (default: the last run)")
    parser.add_argument("--out", type=nonempty, metavar="DIR", help="folder for the pictures (default: FILE-plots)")
    parser.add_argument("--format", choices=FORMATS, default="png", help="type of the pictures' files (%(default)s)")
    asked = parser.parse_args(argv)
    asked.timelines = all(file.endswith(".json") for file in asked.files)
    if not asked.timelines and len(asked.files) > 1:
        parser.error(
            f"give one results file, or timelines (FILE.json), got {' '.join(asked.files)}: `aristos compare` sets two"
            " runs side by side"
        )
    if asked.timelines and asked.run is not None:
        parser.error("--run needs a results file, got timelines")
    return asked


def main(argv: list[str]) -> int:
    from ..bench import plots

    asked = options(argv)
    first = Path(asked.files[0])
    folder = Path(asked.out or f"{first.with_suffix('') if first.name else first}-plots")
    if asked.timelines:
        written = [plots.draw_timelines(asked.files, folder / f"timeline.{asked.format}")]
    else:
        written = plots.draw(asked.files[0], folder, run=asked.run, form=asked.format)
    for path in written:
        print(path)
    return 0
