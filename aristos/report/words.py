"""A comparison in words: tables for a terminal, one JSON object for programs, and sentences."""

from __future__ import annotations

from typing import Any

from ..bench.context import Column, Sheet, counted
from . import compared, figures
from .compared import Compared, Comparison
from .sides import Side

SCHEMA = "aristos-compare/1"
NOTE = (
    "second / first: the ratio of the medians, with its 95 % interval by the bootstrap over calls;"
    " the interval covers differences between runs only if a side has several runs (--all)"
)
CHANCE = "of 100 rows that did not change, about 5 are called faster or slower, by little"
MOST_WHAT = 80  # characters of a row's coordinates in a table, so that its numbers fit beside them


def sheets(found: Comparison) -> list[Sheet]:
    """A sheet for each table that both sides have."""
    made = []
    for table, rows in compared.by_table(found.rows):
        scale, unit = figures.scale(min(row.first for row in rows))
        columns = (
            Column("what", "of"),
            Column("first", f"first\n{unit}", ".3f"),
            Column("second", f"second\n{unit}", ".3f"),
            Column("ratio", "second\n/first", ".3f"),
            Column("low", "low", ".3f"),
            Column("high", "high", ".3f"),
            Column("word", "second is"),
        )
        made.append(Sheet(f"{table.name}: medians of two {'runs' if _single(found) else 'sets of runs'}", columns))
        for row in rows:
            record = {
                "what": figures.cut(figures.name(row), MOST_WHAT),
                "first": row.first * scale,
                "second": row.second * scale,
                "ratio": row.ratio,
                "low": row.low,
                "high": row.high,
                "word": row.word,
            }
            made[-1].records.append(record | ({"disturbed": row.why} if row.why else {}))
    return made


def summary(found: Comparison) -> str:
    """One sentence: how many rows got faster or slower, by how much, and how many are noise or not judged."""
    parts = []
    for word, worst in ((compared.FASTER, min), (compared.SLOWER, max)):
        if rows := found.with_word(word):
            most = worst(rows, key=lambda row: row.ratio)
            parts.append(f"{len(rows)} {word} (the most {percent(most.ratio)}: {most.what})")
    parts += [f"{len(found.with_word(word))} {said}" for word, said in SAID.items() if found.with_word(word)]
    return f"Of {counted(len(found.rows), 'row')}, " + ", ".join(parts) + "."


SAID = {
    compared.NOISE: "within noise",
    compared.DISTURBED: "disturbed and not judged",
    compared.FEW: "with too few calls to judge",
}


def percent(ratio: float) -> str:
    """A ratio of times as a change, such as `+12.3 %`."""
    return f"{100 * (ratio - 1):+.1f} %"


def regressions(rows: list[Compared], limit: float) -> str:
    """A sentence that names the rows that are slower by more than a limit."""
    named = compared.some([f"{row.what} ({percent(row.ratio)})" for row in rows])
    return f"{counted(len(rows), 'row')} slower by more than {100 * limit:g} %: {named}"


def lines(found: Comparison) -> list[str]:
    """Sentences about what was not compared."""
    said = [f"not compared: {compared.some(found.refused, '; ')}"] if found.refused else []
    for which, only in (("first", found.only_first), ("second", found.only_second)):
        if only:
            said.append(f"only in the {which}: {compared.some(only, '; ')}")
    return said


def document(found: Comparison, limit: float | None) -> dict[str, Any]:
    """The JSON object, with times in seconds. limit: that of --regression, or None.

    "ok" in the object: whether the exit code is 0.
    """
    slower = [] if limit is None else found.regressed(limit)
    return {
        "schema": SCHEMA,
        "ok": limit is None or bool(found.judged and not slower),
        "first": _side(found.first),
        "second": _side(found.second),
        "differs": {name: list(both) for name, both in found.differs.items()},
        "regression": limit,
        "rows": [
            {
                "suite": row.table.suite,
                "table": row.table.name,
                "variable": row.variable,
                "row": dict(row.key),
                "first_s": row.first,
                "second_s": row.second,
                "ratio": row.ratio,
                "low": row.low,
                "high": row.high,
                "calls": list(row.calls),
                "word": row.word,
                "disturbed": row.why,
                "regressed": limit is not None and row.regressed(limit),
            }
            for row in found.rows
        ],
        "only_in_first": found.only_first,
        "only_in_second": found.only_second,
        "not_compared": found.refused,
        "summary": summary(found),
    }


def _side(side: Side) -> dict[str, Any]:
    last = side.last.attributes
    named = {"command": str(last.get("command", "")), "commit": str(last.get("commit", ""))}
    return {"file": side.file, "runs": [run.name for run in side.runs], **named}


def _single(found: Comparison) -> bool:
    return len(found.first.runs) == len(found.second.runs) == 1
