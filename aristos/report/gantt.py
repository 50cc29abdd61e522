"""Timelines of calls as plots: a row for each worker of each rank, a bar for each step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench.plots import timeline
from .figures import Figure
from .markup import label

MOST_BARS = 4000
MOST_WORKERS = 512
KINDS = tuple(timeline.COLOURS)


@dataclass(frozen=True)
class Timeline:
    """One file. seconds: by kind of step, over all workers. hidden: bars that are not drawn, with the longest's us."""

    title: str
    facts: dict[str, Any]
    workers: list[str]
    seconds: dict[str, float]
    end: float
    figure: Figure
    hidden: tuple[int, float]


def read(file: str) -> Timeline:
    """The timeline of a file of `bench --timeline` or `MoE.write_timeline`. Raises ResultsError if it is none."""
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
        "yaxis": {
            "tickvals": list(range(len(workers))),
            "ticktext": [label(each) for each in workers],
            "range": [len(workers) - 0.5, -0.5],
            "automargin": True,
        },
        "showlegend": True,
    }
    return Timeline(
        Path(file).name,
        facts,
        workers,
        {kind: value for kind, value in seconds.items() if value},
        max((s["ts"] + s["dur"] for s in spans), default=0.0) * 1e-6,
        {"data": [each for each in bars if each["y"]], "layout": layout, "height": 170 + 30 * len(workers)},
        (len(left), left[0]["dur"] if left else 0.0),
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
        "hovertemplate": f"{kind}: from %{{base:.4f}} ms, %{{x:.4f}} ms",
    }
