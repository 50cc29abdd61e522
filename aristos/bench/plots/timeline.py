"""A picture of timelines that `MoE.write_timeline` or `bench --timeline` wrote: one bar of steps for every worker."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

from kernel_cache import regular

from ...errors import ResultsError
from .labels import label
from .style import BLUE, GREEN, ORANGE, RED, SKY, legend, subplots

# kind of step -> colour; a bar is pale while its worker waits
COLOURS = {
    "route": RED,
    "pack": "#CC79A7",
    "dispatch": ORANGE,
    "expert": BLUE,
    "combine": GREEN,
    "wire": SKY,
    "wait": "#dddddd",
}
BAR = 0.8
MOST = 1 << 28  # the most bytes of a file
MOST_WORKERS = 500  # the most workers of one picture
SPAN: dict[str, Any] = {"pid": int, "tid": int, "cat": str, "ts": float, "dur": float}


def timelines(files: list[str]) -> Any:
    """The figure with one panel per file, all on one time axis. Raises ResultsError if a file is no timeline."""
    documents = [read(file) for file in files]
    if (count := sum(len(workers) for workers, *_ in documents)) > MOST_WORKERS:
        raise ResultsError(f"{', '.join(files)}: a picture shows at most {MOST_WORKERS} workers, got {count}")
    heights = [0.5 + 0.32 * len(workers) for workers, *_ in documents]
    figure, axes = subplots(
        len(files), 1, figsize=(10, 0.9 + sum(heights)), sharex=True, squeeze=False, height_ratios=heights
    )
    for axis, (workers, spans, facts) in zip(axes[:, 0], documents):
        _panel(axis, workers, spans)
        axis.set_title(_title(facts, spans), loc="left", fontsize=9)
    axes[-1, 0].set_xlabel("ms since the first step on any rank")
    used = {s["cat"] for _, spans, _ in documents for s in spans}
    legend(figure, {kind: colour for kind, colour in COLOURS.items() if kind in used}, len(COLOURS))
    return figure


def _panel(axis: Any, workers: dict[tuple[int, int], str], spans: list[dict[str, Any]]) -> None:
    """Draw the bars of a file."""
    rows = {worker: row for row, worker in enumerate(sorted(workers))}
    parts = defaultdict[tuple[int, str], list[tuple[float, float]]](list)
    for s in spans:
        if s["cat"] in COLOURS and (s["pid"], s["tid"]) in rows:
            parts[rows[s["pid"], s["tid"]], s["cat"]].append((s["ts"] * 1e-3, s["dur"] * 1e-3))
    order = list(COLOURS)
    for row, kind in sorted(parts, key=lambda key: (key[0], order.index(key[1]))):
        high = BAR / 2 if kind == "wire" else BAR  # a step of kind `wire` lies within a wait
        axis.broken_barh(parts[row, kind], (row - BAR / 2, high), color=COLOURS[kind], linewidth=0)
    axis.set_yticks(list(rows.values()), [label(workers[worker]) for worker in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def _title(facts: dict[str, Any], spans: list[dict[str, Any]]) -> str:
    waited = sum(s["dur"] for s in spans if s["cat"] == "wait")
    end = max((s["ts"] + s["dur"] for s in spans), default=0.0)
    said = [label(str(facts[key])) for key in ("layer", "schedule") if key in facts]
    said += [f'moves="{label(str(facts["moves"]))}"'] if facts.get("schedule") == "fused" and "moves" in facts else []
    return ", ".join([*said, f"{end * 1e-3:.3g} ms, waits {waited * 1e-3:.3g} ms over all workers"])


def read(file: str) -> tuple[dict[tuple[int, int], str], list[dict[str, Any]], dict[str, Any]]:
    """({(rank, worker): name}, complete events, facts) of a file. Raises ResultsError if it is no timeline."""
    try:
        document = json.loads(regular.text(file, MOST))
        events, facts = document["traceEvents"], dict(document.get("otherData", {}))
        names = [e for e in events if e["ph"] == "M" and e["name"] == "thread_name"]
        workers = {(int(e["pid"]), int(e["tid"])): f"rank {e['pid']}, {e['args']['name']}" for e in names}
        complete = [e for e in events if e["ph"] == "X"]
        spans = [
            {"name": str(e.get("name", e["cat"]))} | {key: kind(e[key]) for key, kind in SPAN.items()} for e in complete
        ]
    except OSError as error:
        raise ResultsError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ResultsError(
            f"{file} is no timeline of `aristos bench --timeline`: {type(error).__name__}: {error}"
        ) from None
    if not all(math.isfinite(s["ts"]) and math.isfinite(s["dur"]) for s in spans):
        raise ResultsError(f"{file}: every time of a timeline must be finite, got NaN or infinity")
    if not spans or not workers:
        raise ResultsError(f"{file}: a timeline must have at least one step")
    return workers, spans, facts
