"""HTML from Python. Every text is escaped, except markup that these functions made."""

from __future__ import annotations

import html
import json
from collections.abc import Container, Iterable
from typing import Any

from kernel_cache.texts import shown

from ..bench.tables import plain

MOST = 500  # the most characters of a text from a file
FOLDED = 16  # most rows of a table that is not folded


class Markup(str):
    """HTML that is not escaped again."""

    __slots__ = ()


Part = str | Markup | Iterable[str | Markup]
VOID = ("meta", "br")


def text(value: Any) -> str:
    """A value as text that can be shown, cut to MOST characters; not escaped."""
    found = str(value)
    return shown(found if len(found) <= MOST else f"{found[:MOST]}...")


def tag(name: str, /, *parts: Part, **attributes: str | bool) -> Markup:
    """An element. attributes: name -> value; True: without a value; False: left out.

    In a name `_` stands for `-`. A `_` at the end is dropped, so `class_` is possible.
    """
    said = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(text(value))}"')
        for key, value in attributes.items()
        if value is not False
    )
    return Markup(f"<{name}{said}>" if name in VOID else f"<{name}{said}>{joined(*parts)}</{name}>")


def joined(*parts: Part) -> Markup:
    """The parts one after another. Parts that are no markup are escaped."""
    found: list[str] = []
    for part in parts:
        if isinstance(part, Markup):
            found.append(part)
        elif isinstance(part, str):
            found.append(html.escape(text(part)))
        else:
            found += [joined(each) for each in part]
    return Markup("".join(found))


def label(value: Any) -> str:
    """A text for a plot, escaped because the plot library reads tags and entities."""
    return html.escape(text(value))


def data(value: Any) -> Markup:
    """JSON for a script element. No text in it can end the element. Infinities and NaN become null."""
    said = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    for each in "<>&\u2028\u2029":
        said = said.replace(each, f"\\u{ord(each):04x}")
    return Markup(said)


def table(
    caption: str,
    head: list[str],
    rows: Iterable[list[str]],
    numbers: Container[int] = (),
    classes: list[str] | None = None,
    folded: bool | None = None,
) -> Markup:
    """A table in a box of its own that scrolls.

    numbers: the columns that hold numbers. classes: the class of each row. folded: whether the reader must open
    the table to see it; None: only if it has more than FOLDED rows.
    """
    kinds = ["number" if i in numbers else False for i in range(len(head))]
    columns = tag("tr", [tag("th", each, scope="col", class_=kind) for each, kind in zip(head, kinds)])
    body = []
    for number, (first, *others) in enumerate(rows):
        cells = [tag("th", first, scope="row"), *(tag("td", e, class_=kind) for e, kind in zip(others, kinds[1:]))]
        body.append(tag("tr", cells, class_=classes[number] if classes and classes[number] else False))
    whole = tag("table", tag("caption", tag("span", caption)), tag("thead", columns), tag("tbody", body))
    box = tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)
    if not (len(body) > FOLDED if folded is None else folded):
        return box
    return tag("details", tag("summary", f"Table of {len(body)} rows: {caption}"), box)
