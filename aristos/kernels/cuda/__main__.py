"""`python -m aristos.kernels.cuda --arch sm_80,sm_90,sm_100 --out DIR` writes every kernel as PTX, cubin and SASS.

The command needs no GPU and no driver. report.json records the resources of each kernel, and how many of its blocks an
SM holds. report.md shows the same figures as a table.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from ...errors import AristosError, InputError
from .assemble import ARCHS, TARGETS
from .compile_report import build_all


def architectures(text: str) -> list[str]:
    """The names in a comma-separated list; raises InputError for an unsupported one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARCHS]
    if unknown or not names:
        what = ", ".join(unknown) or "nothing"
        raise InputError(f"--arch must be one or more of {', '.join(ARCHS)}, separated by commas, got {what}")
    return list(dict.fromkeys(names))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m aristos.kernels.cuda", description=__doc__)
    parser.add_argument("--arch", default=",".join(TARGETS), help="architectures, separated by commas (%(default)s)")
    parser.add_argument(
        "--kernels", default="", help="regular expression: write only kernels with a match in NAME.ARCH"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the files; made if it does not exist")
    given = parser.parse_args(arguments)
    try:
        archs = architectures(given.arch)
        from ...substrate.cuda import counted, persistent  # fails without numba-cuda; that error is reported below
        from .catalogue import kernels

        rows = build_all(archs, given.out, (kernels, persistent.kernels, counted.kernels), given.kernels)
    except (AristosError, OSError, re.error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"kernels: {len(rows)}, report: {given.out / 'report.json'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
