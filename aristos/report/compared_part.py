"""The part of a page about two sides: what got faster or slower, what is noise, and every row."""

from __future__ import annotations

from . import compared, figures, words
from .compared import Compared, Comparison
from .figures import Plot
from .markup import Markup, joined, table, tag

MOST_LISTED = 12  # rows that sentences name


def part(found: Comparison, plot: Plot, place: str) -> Markup:
    """The section of a comparison. place: the `id` of the section."""
    sides = [("first", found.first), ("second", found.second)]
    named = [joined(tag("dt", name), tag("dd", f"{side.names}, of {side.file}")) for name, side in sides]
    differs = table(
        "Facts in which the two differ",
        ["fact", "first", "second"],
        [[name, *both] for name, both in found.differs.items()],
    )
    return tag(
        "section",
        tag("h2", f"What changed from {found.first.last.name} to {found.second.last.name}", id=place),
        tag("dl", named),
        tag("p", words.summary(found)),
        _listed(found, compared.FASTER),
        _listed(found, compared.SLOWER),
        tag("p", f"{words.NOTE[0].upper()}{words.NOTE[1:]}."),
        differs if found.differs else tag("p", "The facts that the files record do not differ."),
        [tag("p", f"{each[0].upper()}{each[1:]}.") for each in words.lines(found)],
        [_rows(name.name, rows, plot) for name, rows in compared.by_table(found.rows)],
        tag(
            "p",
            "Words: ",
            "; ".join(f"{word}: {meaning}" for word, meaning in compared.WORDS.items()) + f"; {words.CHANCE}.",
        ),
        aria_labelledby=place,
    )


def refused(first: str, second: str, why: str, place: str) -> Markup:
    """The section about two sides that cannot be compared."""
    return tag(
        "section",
        tag("h2", f"What changed from {first} to {second}", id=place),
        tag("p", f"Nothing could be compared: {why}."),
        aria_labelledby=place,
    )


def _listed(found: Comparison, word: str) -> Markup:
    """The rows with this word, as sentences. Those that changed most come first."""
    rows = sorted(found.with_word(word), key=lambda row: abs(row.ratio - 1), reverse=True)
    if not rows:
        return Markup()
    items = [tag("li", sentence(row)) for row in rows[:MOST_LISTED]]
    if len(rows) > MOST_LISTED:
        items.append(tag("li", f"and {len(rows) - MOST_LISTED} more, in the tables below"))
    return joined(tag("h3", word.capitalize()), tag("ul", items))


def sentence(row: Compared) -> str:
    """A row as a sentence.

    For example `layer: tokens 16, fused: +12.0 % (between +10.1 % and +13.2 %), from 4.03 ms to 4.51 ms`.
    """
    factor, unit = figures.scale(min(row.first, row.second))
    between = f"between {words.percent(row.low or 1)} and {words.percent(row.high or 1)}"
    took = f"from {row.first * factor:.4g} {unit} to {row.second * factor:.4g} {unit}"
    return f"{row.what}: {words.percent(row.ratio)} ({between}), {took}"


def _rows(name: str, rows: list[Compared], plot: Plot) -> Markup:
    factor, unit = figures.scale(min(row.first for row in rows))
    head = ["row", "second is", f"first ({unit})", f"second ({unit})", "second / first", "low", "high", "calls"]
    marked = any(row.why for row in rows)
    lines = [
        [
            figures.name(row),
            row.word,
            *(f"{each * factor:.4g}" for each in (row.first, row.second)),
            *("-" if each is None else f"{each:.3f}" for each in (row.ratio, row.low, row.high)),
            " / ".join(str(each) for each in row.calls),
            *([row.why] if marked else []),
        ]
        for row in rows
    ]
    return tag(
        "section",
        tag("h3", f"{name}, row by row"),
        plot(figures.ratios(rows), f"{name}: second / first with its 95 % interval; below 1 the second is faster"),
        table(
            f"{name}: medians, their ratio and its 95 % interval",
            head + ["disturbed"] * marked,
            lines,
            numbers=range(2, 8),
            classes=[row.word.split()[0] for row in rows],
        ),
    )
