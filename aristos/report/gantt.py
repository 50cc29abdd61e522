"""Timelines of calls as plots: a row for each worker of each rank, a bar for each step."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench.plots import timeline
from .figures import Figure, rows_axis
from .markup import label

MOST_BARS = 4000
MOST_WORKERS = 512
KINDS = tuple(timeline.COLOURS)
WAIT_FOR = "wait for "


@dataclass(frozen=True)
class Rank:
    """What a rank did: when its first step began and its last one ended, in seconds.

    working, waiting: seconds, added over the rank's workers. waited_for: the rank for which it waited longest, or "".
    """

    number: int
    began: float
    ended: float
    working: float
    waiting: float
    waited_for: str


@dataclass(frozen=True)
class Timeline:
    """The timeline of one file. seconds: by kind of step, over all workers.

    hidden: how many bars are not drawn, and how many us the longest of them takes. ranks: in the order of their
    numbers. workers: names of the workers that are shown. left_out: how many other workers the file has.
    """

    title: str
    facts: dict[str, Any]
    workers: list[str]
    seconds: dict[str, float]
    ranks: list[Rank]
    end: float
    figure: Figure
    hidden: tuple[int, float]
    left_out: int


def read(file: str) -> Timeline:
    """The timeline that `bench --timeline` or `MoE.write_timeline` wrote. Raises ResultsError for another file."""
    named, spans, facts = timeline.read(file)
    order = {worker: row for row, worker in enumerate(sorted(named))}
    order = {worker: row for worker, row in order.items() if row < MOST_WORKERS}
    spans = [span for span in spans if (span["pid"], span["tid"]) in order and span["cat"] in KINDS]
    spans.sort(key=lambda span: span["dur"], reverse=True)
    seconds = {kind: sum(s["dur"] for s in spans if s["cat"] == kind) * 1e-6 for kind in KINDS}
    left = spans[MOST_BARS:]
    workers = [named[worker] for worker in order]
    bars = [_bars(kind, [s for s in spans[:MOST_BARS] if s["cat"] == kind], order) for kind in KINDS]
    layout = {
        "barmode": "overlay",
        "xaxis": {"title": {"text": "ms since the first step on any rank"}},
        "yaxis": rows_axis(workers),
        "showlegend": True,
    }
    return Timeline(
        Path(file).name,
        facts,
        workers,
        {kind: value for kind, value in seconds.items() if value},
        _ranks(spans),
        max((s["ts"] + s["dur"] for s in spans), default=0.0) * 1e-6,
        {"data": [each for each in bars if each["y"]], "layout": layout, "height": 170 + 30 * len(workers)},
        (len(left), left[0]["dur"] if left else 0.0),
        len(named) - len(workers),
    )


def _ranks(spans: list[dict[str, Any]]) -> list[Rank]:
    """What each rank did, from its spans."""
    by_rank = defaultdict[int, list[dict[str, Any]]](list)
    for span in spans:
        by_rank[span["pid"]].append(span)
    return [_rank(number, by_rank[number]) for number in sorted(by_rank)]


def _rank(number: int, spans: list[dict[str, Any]]) -> Rank:
    waits = defaultdict[str, float](float)
    for span in spans:
        if span["cat"] == "wait":
            waits[span["name"]] += span["dur"] * 1e-6
    named = {name: value for name, value in waits.items() if name.startswith(WAIT_FOR)}
    return Rank(
        number,
        min(s["ts"] for s in spans) * 1e-6,
        max(s["ts"] + s["dur"] for s in spans) * 1e-6,
        sum(s["dur"] for s in spans if s["cat"] not in ("wait", "wire")) * 1e-6,
        sum(waits.values()),
        max(named, key=lambda name: named[name]).removeprefix(WAIT_FOR) if named else "",
    )


def _bars(kind: str, spans: list[dict[str, Any]], order: dict[tuple[int, int], int]) -> dict[str, Any]:
    high = 0.4 if kind == "wire" else 0.8  # steps of the wire lie within a wait
    return {
        "type": "bar",
        "orientation": "h",
        "name": kind,
        "y": [order[s["pid"], s["tid"]] for s in spans],
        "base": [s["ts"] * 1e-3 for s in spans],
        "x": [s["dur"] * 1e-3 for s in spans],
        "width": high,
        "offset": -0.4,
        "marker": {"color": "faint" if kind == "wait" else timeline.COLOURS[kind], "line": {"width": 0}},
        "hovertext": [label(s["name"]) for s in spans],
        "hovertemplate": "%{hovertext}: from %{base:.4f} ms, %{x:.4f} ms",
    }
