"""The comparison of two sides row by row: medians, their ratio with an interval, and one word.

Rows are paired by table, variable and coordinates. A row in which calls were disturbed is not judged; if a side has
several runs, the runs in which the row was disturbed are left out. This module measures nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..bench import samples
from ..errors import InputError
from ..results import Run, Table
from . import interval
from .facts import facts
from .markup import text
from .sides import Side

MOST_NAMED = 8  # the most rows that a sentence names
FASTER, SLOWER, NOISE, DISTURBED, FEW = "faster", "slower", "noise", "disturbed", "too few calls"
WORDS = {
    FASTER: "the interval of second / first lies below 1",
    SLOWER: "the interval lies above 1",
    NOISE: "the interval includes 1",
    DISTURBED: "calls were disturbed: not judged",
    FEW: f"fewer than {interval.FEWEST} calls: not judged",
}


@dataclass(frozen=True)
class Compared:
    """One row of both sides. what: its table and coordinates in words.

    first, second: medians in seconds. low, high: the interval of second / first, None if the row is not judged. calls:
    how many calls each side has. word: one of WORDS. why: how the row was disturbed, if it was.
    """

    table: Table
    variable: str
    key: samples.Key
    what: str
    first: float
    second: float
    low: float | None
    high: float | None
    calls: tuple[int, int]
    word: str
    why: str = ""

    @property
    def ratio(self) -> float:
        return self.second / self.first

    def regressed(self, limit: float) -> bool:
        """Whether the whole interval lies above 1 + limit."""
        return self.low is not None and self.low > 1 + limit


@dataclass
class Comparison:
    """Two sides and their rows.

    differs: facts with both values. only_first, only_second: rows that only this side has, in words. refused: sentences
    about tables that are not compared.
    """

    first: Side
    second: Side
    differs: dict[str, tuple[str, str]]
    rows: list[Compared] = field(default_factory=list)
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def with_word(self, word: str) -> list[Compared]:
        return [row for row in self.rows if row.word == word]

    @property
    def judged(self) -> list[Compared]:
        return [row for row in self.rows if row.low is not None]

    def regressed(self, limit: float) -> list[Compared]:
        return [row for row in self.rows if row.regressed(limit)]


@dataclass
class _Row:
    """A row of one side: its samples in each of the side's runs, and the table of the first run that has it."""

    table: Table
    variable: str
    each: list[samples.Row] = field(default_factory=list)


_Rows = dict[tuple[str, str, samples.Key], _Row]  # by table, variable and coordinates


def compare(first: Side, second: Side) -> Comparison:
    """Compare two sides. Raises InputError if they have no row in common."""
    if _same(first.last, second.last):
        raise InputError(f"a comparison needs two different runs, got {first.last.name} twice")
    found = Comparison(first, second, facts(first.last, second.last))
    works = {table.name: table for side in (second, first) for run in side.runs for table in run.tables}
    one, other = (_rows(side, works, found.refused) for side in (first, second))
    several = {table for side in (one, other) for table, count in _variables(side).items() if count > 1}
    for at, row in one.items():
        what = _words(at, row, several)
        if at not in other:
            found.only_first.append(what)
        elif (each := _compared(row, other[at], what)) is not None:
            found.rows.append(each)
        else:
            found.refused.append(f"{what}: no ratio, because times are 0 or negative")
    found.only_second += [_words(at, row, several) for at, row in other.items() if at not in one]
    if not found.rows:
        why = some(found.refused, "; ") or _nothing_in_common(found, one, other)
        raise InputError(f"{first.names} and {second.names} cannot be compared: {why}")
    return found


def _same(one: Run, other: Run) -> bool:
    """Whether two runs are the same run, or copies of it.

    Equal names are not enough: a user's own program may give two runs one name.
    """

    def values(run: Run) -> dict[tuple[str, str], bytes]:
        return {
            (table.name, name): each.values.tobytes() for table in run.tables for name, each in table.variables.items()
        }

    return one.name == other.name and values(one) == values(other)


def _nothing_in_common(found: Comparison, one: _Rows, other: _Rows) -> str:
    """Why two sides have no row in common."""
    sides = {"first": found.first, "second": found.second}
    names = [", ".join(dict.fromkeys(t.name for run in side.runs for t in run.tables)) for side in sides.values()]
    which = "the tables of the first are {}, of the second {}".format(*(each or "none" for each in names))
    for name, rows in zip(sides, (one, other)):
        which += "" if rows else f"; the {name} has no times in seconds"
    if one and other and names[0] == names[1]:
        which += f"; rows are such as {found.only_first[0]} in the first, {found.only_second[0]} in the second"
    return f"they have no row in common: {which}"


def different_work(one: Table, other: Table) -> str:
    """Why the times of two tables with one name measure different work, as a text; '' if the work is the same."""
    for name in ("shape", "trace"):
        values = [str(table.attributes.get(name, "none")) for table in (one, other)]
        if values[0] != values[1]:
            return f"{one.name}: the {name} differs, {values[0]!r} and {values[1]!r}"
    return ""


def _rows(side: Side, works: dict[str, Table], refused: list[str]) -> _Rows:
    """The rows of a side's tables.

    works: name -> a table whose work all tables of this name must measure. Rows of a table that measures other work are
    left out, and `refused` gets a sentence about that table.
    """
    found: _Rows = {}
    for run in side.runs:
        for table in run.tables:
            if why := different_work(works[table.name], table):
                if why not in refused:
                    refused.append(why)
                continue
            for name, variable in samples.timed(table).items():
                for row in samples.rows(table, variable):
                    found.setdefault((table.name, name, row.key), _Row(table, name)).each.append(row)
    return found


def _variables(side: _Rows) -> Counter[str]:
    """The number of variables of each table."""
    return Counter(table for table, _ in {at[:2] for at in side})


def _words(at: tuple[str, str, samples.Key], row: _Row, several: set[str]) -> str:
    """A row in words. several: tables whose variables are named too."""
    table, variable, key = at
    return text(f"{table}: {f'{variable}: ' if table in several else ''}{samples.named(key, row.table)}")


def _compared(one: _Row, other: _Row, what: str) -> Compared | None:
    """The row of both sides; None if there is no ratio, because times are 0 or negative."""
    sides = [[row.seconds for row in _undisturbed(each)] for each in (one, other)]
    first, second = (interval.median(each) for each in sides)
    if min(first, second) <= 0:
        return None
    mine, theirs = (sum(row.calls for row in _undisturbed(each)) for each in (one, other))
    why = "; ".join(_why(each, name) for each, name in ((one, "first"), (other, "second")) if _why(each, name))
    low, high, word = None, None, DISTURBED if why else FEW
    if not why and min(mine, theirs) >= interval.FEWEST:
        low, high = interval.of_ratio(*sides)
        if math.isnan(low + high):
            return None
        word = SLOWER if low > 1 else FASTER if high < 1 else NOISE
    key = one.each[0].key
    return Compared(one.table, one.variable, key, what, first, second, low, high, (mine, theirs), word, why)


def _undisturbed(row: _Row) -> list[samples.Row]:
    """The row in the runs in which it was not disturbed; in all runs if it was disturbed in each."""
    return [each for each in row.each if not each.disturbed] or row.each


def _why(row: _Row, name: str) -> str:
    """How the row was disturbed in a side's last run; '' if there is a run in which it was not disturbed."""
    marks = [each.disturbed for each in row.each]
    return f"{name} {marks[-1]}" if all(marks) else ""


def some(names: list[str], between: str = ", ") -> str:
    """The first MOST_NAMED names, and how many more there are."""
    more = f"{between}and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return between.join(names[:MOST_NAMED]) + more


def by_table(rows: list[Compared]) -> Iterator[tuple[Table, list[Compared]]]:
    """The rows of each table, in order."""
    for name in dict.fromkeys(row.table.name for row in rows):
        of = [row for row in rows if row.table.name == name]
        yield of[0].table, of
