"""The table of all injections: a CSV file with a line for each one, and its summary.

python tests/faults/table.py docs/faults.csv
"""

from __future__ import annotations

import csv
import fcntl
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from draw import KINDS, SURVIVES, Job
from driver import Ended

COLUMNS = ("kind", "transport", "mpi", "seed", "operation", "right", "seconds")
NAMES = {"mpich": "MPICH", "openmpi": "Open MPI", "impi": "Intel MPI"}


def add(path: Path, job: Job, ended: Ended, problems: list[str]) -> None:
    """Add a line for each injection that was made.

    Its seconds are those from a fault that ends the job to the last rank's end.
    """
    survives = KINDS[job.faults[0]["kind"]].outcome == SURVIVES
    known = [s for s in ended.seconds if s is not None]
    seconds = "" if survives or not known or not ended.code else f"{max(known):.2f}"
    with open(path, "a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rows = csv.writer(file, lineterminator="\n")
        if not file.tell():
            rows.writerow(COLUMNS)
        for fault in job.faults[: ended.made]:
            operation = job.operations[fault["operation"] - 1]
            rows.writerow([fault["kind"], job.transport, job.mpi, job.seed, operation, int(not problems), seconds])


def lines(rows: Iterable[dict[str, str]]) -> list[str]:
    """A Markdown table. For each fault and MPI library it has the number of injections, and how many ended right."""
    cells: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    slowest: dict[str, float] = defaultdict(float)
    for row in rows:
        cell = cells[row["kind"], row["mpi"]]
        cell[0] += 1
        cell[1] += int(row["right"])
        slowest[row["kind"]] = max(slowest[row["kind"]], float(row["seconds"] or 0))
    found = [f"| fault | {' | '.join(NAMES.values())} | slowest |", f"|---|{'---:|' * (len(NAMES) + 1)}"]
    for kind in KINDS.values():
        mine = [cells.get((kind.name, mpi), [0, 0]) for mpi in NAMES]
        if sum(tried for tried, _ in mine):
            shown = [f"{right} of {tried}" if tried else "" for tried, right in mine]
            time = f"{slowest[kind.name]:.1f} s" if slowest[kind.name] else ""
            found.append(f"| {kind.about} | {' | '.join(shown)} | {time} |")
    return found


if __name__ == "__main__":
    with open(sys.argv[1], newline="") as file:
        print("\n".join(lines(csv.DictReader(file))))
