"""`aristos report RESULTS.h5`: one page for a browser, with tables, plots, what changed, and timelines.

Exit codes: 0 fine, 2 usage or a file without runs, 3 a package or a file is missing, damaged or of another format,
130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from ..bench.arguments import nonempty

SUMMARY = "a page of runs for a browser, compared: aristos report before.h5 after.h5 --out report.html"


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="aristos report",
        description="Write one HTML page that needs no network: what ran where, tables, plots, and what changed since "
        "the first file. With one file, the page compares its last two runs.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=nonempty,
        metavar="FILE",
        help="results (FILE.h5), and timelines of `bench --timeline` or MoE.write_timeline (FILE.json)",
    )
    parser.add_argument(
        "--out", type=nonempty, default="report.html", metavar="FILE.html", help="the page (%(default)s)"
    )
    parser.add_argument("--all", action="store_true", help="use all runs of each file, as repetitions of one another")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    from ..primitives.aside import write_text
    from ..report.page import page

    asked = options(argv)
    target = Path(os.path.realpath(asked.out))  # a symbolic link is followed, because a new file would replace the link
    refuse_others(target)
    whole = page(asked.files, asked.all)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, whole)
    print(asked.out)
    return 0


def refuse_others(target: Path) -> None:
    """Raise InputError if the page would replace a file that is no page, such as results."""
    from kernel_cache import regular

    from ..errors import InputError
    from ..report.page import BEGINS

    with contextlib.suppress(FileNotFoundError), regular.opened(target) as file:
        begins = file.read(len(BEGINS))
        if begins and begins.lower() != BEGINS.encode():
            raise InputError(f"--out would replace {target}, which is no page: give the page another name")
