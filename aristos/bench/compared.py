"""The comparison of two runs of results files: medians of the times that both have, their ratio, and facts that differ.

A time is that of the slowest rank; for pairs of ranks, it is the median over pairs of each pair's median. The spread of
a ratio comes from drawing the samples of both runs again, DRAWS times. It shows how certain the medians are, not how
much the machine changed between the runs. This module measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..results import Run, Table, Variable
from .context import Column, Sheet
from .pairs import bytes_text

SAMPLES = ("iteration", "turn", "pass", "step", "repeat", "round", "call", "sample", "put")  # dimensions of repetition
PAIR = ("origin", "target")
DRAWS, LOW, HIGH = 400, 0.05, 0.95
EQUAL = "-"  # shown if the spread of the ratio includes 1
# facts that differ between any two runs
OWN = ("started_utc", "load_average", "load_average_end", "command", "suite_seconds", "finished", "interrupted",
       "options.out", "options.json", "options.timeline", "options.seconds", "schema", "gpu_uuid")  # fmt: skip
FIRST = ("commit", "isa", "cpu", "mpi_library", "ranks")  # facts that are named first

SENTENCE = "5 %, 95 %: of the ratio, with samples drawn again from each run; changes of load between runs not included"
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Samples:
    """Times of one row. values: [group, sample] seconds, NaN for samples that were not taken.

    A group is a pair of ranks.
    """

    values: NDArray[np.float64]

    @property
    def median(self) -> float:
        return float(np.median(np.nanmedian(self.values, axis=1)))

    def drawn(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """[DRAWS] medians of samples that are drawn again, with replacement."""
        groups = [row[np.isfinite(row)] for row in self.values]
        medians = [np.median(rng.choice(row, (DRAWS, len(row))), axis=1) for row in groups]
        found: NDArray[np.float64] = np.median(medians, axis=0)
        return found


def timed(table: Table) -> dict[str, Variable]:
    """The variables of a table to compare: those in seconds over a dimension of repetition; if there are none, all in
    seconds."""
    seconds = {name: each for name, each in table.variables.items() if each.units == "s" and each.values.size}
    sampled = {name: each for name, each in seconds.items() if set(each.dims) & set(SAMPLES)}
    return sampled or seconds


def rows(table: Table, variable: Variable) -> Iterator[tuple[Key, Samples]]:
    """The rows of a variable that have samples: their coordinates, and their times."""
    dims, values = list(variable.dims), np.asarray(variable.values, float)
    if "rank" in dims:
        at = dims.index("rank")
        values = values.max(axis=at)  # NaN if a rank has no time, because then the sample was not run
        del dims[at]
    groups = PAIR if set(PAIR) <= set(dims) else ()
    samples = [name for name in dims if name in SAMPLES]
    given = [name for name in dims if name not in (*samples, *groups)]
    ordered = values.transpose([dims.index(name) for name in (*given, *groups, *samples)])
    shape = ordered.shape[: len(given)]
    count = int(np.prod(ordered.shape[len(given) : len(given) + len(groups)], dtype=int))
    ordered = ordered.reshape(*shape, count, -1)
    for place in np.ndindex(shape):
        each = ordered[place]
        each = each[np.isfinite(each).any(axis=1)]
        if len(each):
            yield tuple((name, _text(table.dims[name], i)) for name, i in zip(given, place)), Samples(each)


def _text(coordinates: Variable, i: int) -> str:
    value = coordinates.values[i]
    unit = coordinates.units if coordinates.units not in ("", "1") else ""
    if coordinates.values.dtype.kind == "U":
        return str(value)
    if unit == "B":
        return bytes_text(float(value))
    number = str(value) if coordinates.values.dtype.kind in "iu" else f"{value:g}"
    return f"{number} {unit}" if unit else number


def named(key: Key, table: Table) -> str:
    """A row's coordinates in words: `24 tokens, fused`."""
    words = [text if table.dims[name].values.dtype.kind == "U" else f"{name} {text}" for name, text in key]
    return ", ".join(words) or "all"


def compare(first: Run, second: Run) -> tuple[list[Sheet], list[str]]:
    """(a sheet for each table that both runs have, sentences about what cannot be compared).

    Raises InputError if nothing can be compared.
    """
    if first.name == second.name:
        raise InputError(f"a comparison needs two different runs, got {first.name} twice")
    others = {table.name: table for table in second.tables}
    sheets, refused = [], []
    for table in first.tables:
        if table.name in others:
            why = different_work(table, others[table.name])
            if why:
                refused.append(why)
            elif found := _sheet(table, others[table.name]):
                sheets.append(found)
            else:
                refused.append(f"{table.name}: the runs have no row in common")
    if not sheets:
        names = (", ".join(table.name for table in run.tables) or "no table" for run in (first, second))
        why = "; ".join(refused) or "the tables of the first run are {}, of the second {}".format(*names)
        raise InputError(f"{first.name} and {second.name} cannot be compared: {why}")
    return sheets, refused


def different_work(one: Table, other: Table) -> str:
    """A text that says why the times of two tables with one name are of different work; '' if the work is the same."""
    for name in ("shape", "trace"):
        values = [str(table.attributes.get(name, "none")) for table in (one, other)]
        if values[0] != values[1]:
            return f"{one.name}: the {name} differs, {values[0]!r} and {values[1]!r}"
    return ""


def _sheet(one: Table, other: Table) -> Sheet | None:
    found: list[tuple[str, Samples, Samples]] = []
    names = [name for name in timed(one) if name in timed(other)]
    for name in names:
        others = dict(rows(other, timed(other)[name]))
        text = f"{name}: " if len(names) > 1 else ""
        found += [
            (text + named(key, one), mine, others[key])
            for key, mine in rows(one, timed(one)[name])
            if key in others and mine.median > 0 and others[key].median > 0  # because a wait may take no time
        ]
    if not found:
        return None
    scale, unit = (1e3, "ms") if min(mine.median for _, mine, _ in found) >= 1e-4 else (1e6, "us")
    columns = (
        Column("what", "of"),
        Column("first", f"first\n{unit}", ".3f"),
        Column("second", f"second\n{unit}", ".3f"),
        Column("ratio", "second\n/first", ".2f"),
        Column("low", "5 %", ".2f"),
        Column("high", "95 %", ".2f"),
        Column("change", "second is"),
    )
    sheet = Sheet(f"{one.name}: medians of two runs", columns)
    rng = np.random.default_rng(0)
    for what, mine, theirs in found:
        low, high = (float(each) for each in np.quantile(theirs.drawn(rng) / mine.drawn(rng), [LOW, HIGH]))
        sheet.records.append(
            {
                "what": what,
                "first": mine.median * scale,
                "second": theirs.median * scale,
                "ratio": theirs.median / mine.median,
                "low": low,
                "high": high,
                "change": "slower" if low > 1 else "faster" if high < 1 else EQUAL,
            }
        )
    return sheet


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Both values, as text, of each fact that differs, by name; those of FIRST come first."""

    def own(name: str) -> bool:
        return any(name == each or name.startswith(f"{each}.") for each in OWN)

    every = [*FIRST, *sorted({*first, *second} - set(FIRST))]
    return {
        name: (str(first.get(name, "none")), str(second.get(name, "none")))
        for name in every
        if not own(name) and first.get(name) != second.get(name)
    }


def facts(first: Run, second: Run) -> list[str]:
    """A line for each fact of the runs and of their common tables that differs."""
    of_runs = differing(first.attributes, second.attributes)
    lines = [f"{name}: {mine} | {theirs}" for name, (mine, theirs) in of_runs.items()]
    others = {table.name: table for table in second.tables}
    for table in first.tables:
        if table.name in others:
            of_tables = differing(table.attributes, others[table.name].attributes)
            lines += [
                f"{table.name}, {name}: {' | '.join(both)}"
                for name, both in of_tables.items()
                if of_runs.get(name) != both
            ]
    return lines
