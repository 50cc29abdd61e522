"""Texts of commands for a terminal: lists and sentences of at most WIDTH columns, and errors for unknown names."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Mapping

WIDTH = 120


def wrapped(text: str) -> str:
    """The text with lines of at most WIDTH columns. A longer line continues on the next one, indented."""
    return "\n".join(
        line
        if len(line) <= WIDTH
        else textwrap.fill(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def listed(known: Mapping[str, str]) -> str:
    """A line for each name, with its meaning. A long meaning continues on the next line, below its beginning."""
    wide = max(map(len, known)) + 4
    return "\n".join(
        textwrap.fill(
            f"  {name:{wide - 2}s}{what}", WIDTH, subsequent_indent=" " * wide, break_on_hyphens=False
        ).rstrip()
        for name, what in known.items()
    )


def unknown(name: str, known: Iterable[str], lists: str) -> str:
    """The text of an error for an unknown name: similar names, and the command that lists all."""
    near = ", ".join(difflib.get_close_matches(name, list(known), 3, 0.5))
    return f"{name!r} is not known{near and f' (similar: {near})'}; {lists} lists all names"
