"""The facts in which two runs differ: commit, ISA, CPU, MPI library, options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..results import Run

# facts that differ between any two runs
OWN = ("started_utc", "load_average", "load_average_end", "command", "suite_seconds", "finished", "interrupted",
       "options.out", "options.json", "options.timeline", "options.seconds", "options.watch", "schema", "gpu_uuid",
       "disturbed")  # fmt: skip
FIRST = ("commit", "isa", "cpu", "mpi_library", "ranks")  # facts that are named first


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The facts that differ: name -> both values as text. The names in FIRST come first."""

    def own(name: str) -> bool:
        return any(name == each or name.startswith(f"{each}.") for each in OWN)

    every = [*FIRST, *sorted({*first, *second} - set(FIRST))]
    return {
        name: (str(first.get(name, "none")), str(second.get(name, "none")))
        for name in every
        if not own(name) and first.get(name) != second.get(name)
    }


def facts(first: Run, second: Run) -> dict[str, tuple[str, str]]:
    """The facts in which two runs differ, or their tables of one name: name -> both values as text.

    A fact of a table has the name `table, fact`.
    """
    found = differing(first.attributes, second.attributes)
    others = {table.name: table for table in second.tables}
    for table in first.tables:
        if table.name in others:
            of_table = differing(table.attributes, others[table.name].attributes)
            found |= {f"{table.name}, {name}": both for name, both in of_table.items() if found.get(name) != both}
    return found
