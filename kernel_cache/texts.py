"""Reads numbers in text from outside, and makes such text safe to show. Also writes ranges and tables for people.

Python's own conversions accept too much: `isdigit` takes superscripts, `int` takes digits of every script and
underscores. `int` also fails above 4,300 digits. A terminal obeys control characters in names.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

MOST = 10**18 - 1
_DIGITS = 18
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format such as bidirectional marks, surrogates, line separators


def whole(text: str, most: int = MOST) -> int | None:
    """The number that a text of 1 to 18 ASCII digits stands for. None for other texts, and for numbers above `most`."""
    if not 0 < len(text) <= _DIGITS or not text.isascii() or not text.isdigit():
        return None
    number = int(text)
    return number if number <= most else None


def plain(text: str) -> bool:
    """Whether a text holds nothing but characters that can be shown: no escapes, line breaks or surrogates."""
    return (text.isascii() and text.isprintable()) or not any(unicodedata.category(c) in _HIDDEN for c in text)


def shown(text: str) -> str:
    r"""The text with all characters that cannot be shown escaped: \x1b for the escape character."""
    if plain(text):
        return text
    hidden = {c: repr(c)[1:-1] for c in set(text) if unicodedata.category(c) in _HIDDEN}
    return "".join(hidden.get(c, c) for c in text)


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The runs of consecutive numbers as (first, last), ascending: [8, 0, 1, 2] -> [(0, 2), (8, 8)]."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def ranges(numbers: Iterable[int], between: str = ",") -> str:
    """The runs of consecutive numbers as text: {8, 0, 1, 2} -> '0-2,8'."""
    return between.join(f"{low}-{high}" if low < high else str(low) for low, high in runs(numbers))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table. Each column is as wide as its widest cell. rows: all have the same number of cells."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
