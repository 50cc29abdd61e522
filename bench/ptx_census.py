"""Which PTX files the machine can load, and which instructions of the others it lacks. Nothing is run.

    python bench/ptx_census.py FOLDER_OR_FILE.ptx ...

Each folder is one row of the table that is printed; files that are named are one more row. Below the table stand the
instructions that the machine lacks, those of the most files first. docs/ptxsim.md has the results.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from ptxsim import lower, parser
from ptxsim.decode import decode
from ptxsim.errors import InputError
from ptxsim.heap import heap_for


def lacking(text: str) -> set[str]:
    """The instructions of a module that the machine does not have, and other reasons why it cannot be loaded."""
    found = set()

    def tried(low: Any, instruction: Any) -> None:
        try:
            decode(low, instruction)
        except InputError as error:
            found.add(f"{instruction.text}: {str(error).rpartition(': ')[2]}")

    lower.decode = tried
    try:
        lower.lower(parser.parse(text + heap_for(text)))
    except InputError as error:
        found.add(str(error))
    finally:
        lower.decode = decode
    return found


def rows(paths: list[Path]) -> dict[str, list[Path]]:
    """The PTX files of each row of the table."""
    found = {str(path): sorted(path.glob("**/*.ptx")) for path in paths if path.is_dir()}
    alone = [path for path in paths if not path.is_dir()]
    return {**found, "files": alone} if alone else found


def main() -> None:
    options = argparse.ArgumentParser(description="Count the PTX files that the machine can load.")
    options.add_argument("paths", nargs="+", type=Path, metavar="FOLDER|FILE.ptx")
    lacks: Counter[str] = Counter()
    print("| kernels | files | load | % |\n|---|---:|---:|---:|")
    for name, files in rows(options.parse_args().paths).items():
        missing = [lacking(file.read_text(errors="replace")) for file in files]
        loads = sum(not each for each in missing)
        lacks.update(reason for each in missing for reason in each)
        print(f"| {name} | {len(files)} | {loads} | {100 * loads / max(len(files), 1):.0f} |", flush=True)
    for reason, count in lacks.most_common():
        print(f"{count:5} {reason}")


if __name__ == "__main__":
    main()
