"""Read a docstring in numpydoc's form, and write it as Markdown. It knows the sections below and no others."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from typing import NamedTuple

# Sections of entries: a line `name : kind`, and a text.
ENTRIES = ("Parameters", "Attributes", "Returns", "Yields", "Raises")
TEXTS = ("Notes", "Examples", "Source")
NAMED = ("Parameters", "Attributes", "Raises")  # an entry without a colon is a name; elsewhere it is a kind
_HEADING = re.compile(rf"^({'|'.join(ENTRIES + TEXTS)})\n-+\n", re.MULTILINE)


class Entry(NamedTuple):
    """An entry of a section: the line `name : kind`, with one name, several or none, and the text below it."""

    names: tuple[str, ...]
    kind: str
    text: str


@dataclass
class Docstring:
    """A docstring by its parts: the text before the first section, sections of entries, and sections of text."""

    text: str
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def named(self, section: str) -> dict[str, Entry]:
        """Name -> entry of a section."""
        return {name: entry for entry in self.entries.get(section, ()) for name in entry.names}


def read(found: object) -> Docstring:
    """The docstring of an object."""
    parts = _HEADING.split(inspect.getdoc(found) or "")
    doc = Docstring(parts[0].rstrip())
    for name, body in zip(parts[1::2], parts[2::2]):
        if name in ENTRIES:
            doc.entries[name] = list(_entries(name, body))
        else:
            doc.texts[name] = body.strip("\n")
    return doc


def _entries(section: str, body: str) -> list[Entry]:
    found = []
    for block in re.split(r"^(?=\S)", body.strip("\n"), flags=re.MULTILINE):
        if block:
            head, _, text = block.partition("\n")
            left, colon, right = head.partition(" : ")
            names, kind = (left, right) if colon or section in NAMED else ("", left)
            split = tuple(name.strip().lstrip("*") for name in names.split(",")) if names else ()
            found.append(Entry(split, kind.strip(), inspect.cleandoc(text)))
    return found


def markdown(found: object) -> str:
    """The docstring of an object, its entries as lists, its examples as code."""
    doc = read(found)
    parts = [doc.text]
    for section, entries in doc.entries.items():
        parts += [f"**{section}**", "\n".join(_item(entry) for entry in entries)]
    for section, text in doc.texts.items():
        parts += [f"**{section}**", f"```python\n{text}\n```" if section == "Examples" else text]
    return "\n\n".join(parts)


def _item(entry: Entry) -> str:
    head = ", ".join(f"`{name}`" for name in entry.names)
    if entry.kind:
        head += f" ({entry.kind})" if head else entry.kind
    text = re.sub(r"\n(?=.)", "\n  ", entry.text)
    return f"- {head}: {text}" if text else f"- {head}"
