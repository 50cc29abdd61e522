"""The report: a verdict in its first line, figures beside predictions, parts, clocks, tables, last lines of output."""

from __future__ import annotations

from typing import Any

from . import figures
from .parts import Part, Ran
from .samples import HEAD, Samples

SHOWN = 400  # how many lines of a part that failed or hung are shown


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def verdict(ran: list[Ran], left: tuple[Part, ...] = (), whole: int = 0) -> str:
    """The outcome in one line, which a reader needs before any figure.

    left: parts that have not ended. whole: the number of parts.
    """
    said = [
        f"{words}: {', '.join(found)}"
        for words, found in (
            ("WRONG RESULTS", [each.part.name for each in ran if each.wrong]),
            ("HUNG", [each.part.name for each in ran if each.hung]),
            ("failed", [each.part.name for each in ran if each.failed]),
            ("out of time", [each.part.name for each in ran if each.late]),
            ("not run", [each.part.name for each in ran if each.skipped]),
            ("not finished", [part.name for part in left]),
        )
        if found
    ]
    if said:
        return "; ".join(said)
    return f"{'every part' if len(ran) >= whole else f'{len(ran)} of {whole} parts'} ran, every output was right"


def markdown(
    facts: dict[str, Any],
    ran: list[Ran],
    left: tuple[Part, ...] = (),
    samples: Samples | None = None,
    notes: tuple[str, ...] = (),
    whole: int = 0,
) -> str:
    """The report as Markdown."""
    parts = [f"# Aristos on {facts['gpu']}: {verdict(ran, left, whole)}", _list(facts)]
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    rehearsal = "rehearsal" in facts
    parts.append(table(figures.HEAD, [each.line(ran, rehearsal) for each in figures.figures(facts["gpu_arch"])]))
    bounds = figures.floors(facts["gpu"], ran)
    parts += [table(figures.FLOOR_HEAD, bounds)] if bounds else []
    rows = [[each.part.name, each.outcome, f"{each.seconds:.0f}", _last(each)] for each in ran]
    parts.append(table(["part", "outcome", "seconds", "last line of output"], rows))
    parts.append(_clocks(ran, samples, rehearsal))
    for each in ran:
        for suite in each.document.get("suites", {}).values():
            parts += [text for sheet in suite["tables"] for text in _sheet(sheet)]
    for each in ran:
        if not each.ok and not each.skipped and each.said:
            lines = [line.replace("```", "'''") for line in each.said[-SHOWN:]]
            parts.append(f"## What {each.part.name} said last\n\n```\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts) + "\n"


def _list(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _last(each: Ran) -> str:
    return each.said[-1][:200] if each.said else ""


def _clocks(ran: list[Ran], samples: Samples | None, rehearsal: bool) -> str:
    if samples is None or not samples.rows:
        why = "the PTX machine has none" if rehearsal else "NVML did not answer"
        return f"Clocks, power and throttling were not sampled: {why}."
    return table(HEAD, [samples.line(each.part.name) for each in ran if samples.of_part(each.part.name)])


def _sheet(sheet: dict[str, Any]) -> list[str]:
    keys = list(dict.fromkeys(key for row in sheet["rows"] for key in row))
    texts = [f"## {sheet['title']}"]
    texts += [table(keys, [[_cell(row.get(key)) for key in keys] for row in sheet["rows"]])] if keys else []
    return texts + [f"- {note}" for note in sheet["notes"]]


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
