"""The whole page: one HTML file with its style, script and data, which loads nothing.

A policy in the page forbids all requests, and all scripts except the page's own two. So no text of a file can start a
script.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from .._version import __version__
from ..bench.context import counted
from ..errors import InputError
from . import compared_part, gantt, library, run_part, sides, timeline_part
from .compared import compare
from .figures import Figure
from .gantt import Timeline
from .markup import Markup, data, joined, tag
from .sides import Side

HERE = Path(__file__).parent
BEGINS = "<!doctype html>"


@dataclass
class Figures:
    """The figures of a page."""

    found: list[Figure] = field(default_factory=list)

    def add(self, figure: Figure | None, caption: str) -> Markup:
        """The element in which the page's script draws a figure; nothing if there is none."""
        if figure is None:
            return Markup()
        self.found.append(figure)
        name = f"figure-{len(self.found)}"
        caption += f" ({figure['left_out']})" if figure.get("left_out") else ""
        said = f"Plot. {caption}. The table below has its numbers."
        box = tag("div", data_figure=name, role="group", aria_label=said)
        return tag("figure", box, tag("figcaption", caption))

    def scripts(self) -> Markup:
        """The figures as data of the page."""
        return joined(
            tag("script", data(each), type="application/json", id=f"figure-{number}")
            for number, each in enumerate(self.found, 1)
        )


def page(files: list[str], every: bool = False) -> str:
    """The page of results files (FILE.h5) and timelines (FILE.json).

    The other results files are compared with the first. Raises what `results.load` and `gantt.read` raise, and
    EnvironmentProblem if the library of plots is not installed.
    """
    script = library.script()
    timelines = [gantt.read(file) for file in files if file.endswith(".json")]
    found = sides.each([file for file in files if not file.endswith(".json")], every)
    figures = Figures()
    changes = [_compared(found[0], each, figures, f"changed-{i}") for i, each in enumerate(found[1:], 1)]
    runs = [run_part.part(each.last, each.file, figures.add, f"run-{i}") for i, each in enumerate(found, 1)]
    calls = [timeline_part.part(each, figures.add, f"timeline-{i}") for i, each in enumerate(timelines, 1)]
    links = [
        *((f"changed-{i}", f"What changed to {each.last.name}") for i, each in enumerate(found[1:], 1)),
        *((f"run-{i}", f"Run {each.last.name}") for i, each in enumerate(found, 1)),
        *((f"timeline-{i}", f"Timeline {each.title}") for i, each in enumerate(timelines, 1)),
    ]
    body = [
        tag("a", "Skip to the results", class_="skip", href="#main"),
        tag("header", tag("h1", _title(found, timelines)), tag("p", _lead(found))),
        tag("nav", tag("ul", [tag("li", tag("a", said, href=f"#{at}")) for at, said in links]), aria_label="Contents"),
        tag("main", changes, runs, calls, id="main", tabindex="-1"),
        tag("footer", tag("p", f"Made by aristos {__version__}. Hollow marks, grey rows: disturbed calls. ", _KEYS)),
        figures.scripts(),
    ]
    return _whole(_title(found, timelines), joined(body), [script, (HERE / "page.js").read_text(encoding="utf-8")])


_KEYS = (
    "Plots: draw a box or press + to zoom, click twice to go back, point at a mark for its values;"
    " the tables have the same values."
)


def _whole(title: str, body: Markup, scripts: list[str]) -> str:
    """The document. The policy names the scripts by their hashes."""
    scripts = [each.replace("</script", "<\\/script") for each in scripts]
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    policy = "; ".join(
        (
            "default-src 'none'",
            "script-src " + " ".join(f"'sha256-{each}'" for each in hashes),
            "style-src 'unsafe-inline'",  # plotly.js writes styles
            "img-src data: blob:",
        )
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup((HERE / "page.css").read_text(encoding="utf-8"))),
    )
    whole = tag("html", head, tag("body", body, [tag("script", Markup(each)) for each in scripts]), lang="en")
    return f"{BEGINS}\n{whole}\n"


def _title(found: list[Side], timelines: list[Timeline]) -> str:
    parts = [counted(len(found), "run") if found else "", counted(len(timelines), "timeline") if timelines else ""]
    return f"Aristos: {' and '.join(filter(None, parts))}"


def _lead(found: list[Side]) -> str:
    """A sentence about what the last run ran, and where."""
    if not found:
        return "What every worker of every rank did during one call."
    facts = run_part.readable(found[-1].last.attributes)
    where = ", ".join(filter(None, (facts.get("gpu") or facts.get("cpu"), facts.get("isa"), facts.get("mpi_library"))))
    suites = ", ".join(dict.fromkeys(each.suite for each in found[-1].last.tables)) or "nothing"
    ranks = f" on {facts['ranks']} ranks" if facts.get("ranks") else ""
    return f"{suites}{ranks}{f': {where}' if where else ''}."


def _compared(first: Side, second: Side, figures: Figures, place: str) -> Markup:
    try:
        return compared_part.part(compare(first, second), figures.add, place)
    except InputError as why:
        return compared_part.refused(first.last.name, second.last.name, str(why), place)
