"""Pictures of the suite `idle`: idle share, straggler ECDFs and waits between ranks.

Each picture compares ways: the bulk schedule, and the fused schedule with each value of `moves` that was measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from ..disturbance import doubtful
from .style import BLUE, GREEN, ORANGE, SKY, hatch, heat_map, legend, slowest, subplots
from .style import ecdf as draw_ecdf

# (schedule, moves) of the suite -> label, colour
WAYS = {
    ("bulk", "tokens"): ("bulk", ORANGE),
    ("fused", "tokens"): ('fused, moves="tokens"', SKY),
    ("fused", "auto"): ('fused, moves="auto"', BLUE),
    ("fused", "experts"): ('fused, moves="experts"', GREEN),
}


def _ways(table: Table, name: str) -> list[tuple[str, str, np.ndarray]]:
    """(label, colour, [pattern, ...] values) of each way that was measured."""
    schedules, moves = list(table.dims["schedule"].values), list(table.dims["moves"].values)
    values = table.variables[name].values
    return [
        (label, colour, values[:, schedules.index(schedule), moves.index(move)])
        for (schedule, move), (label, colour) in WAYS.items()
        if schedule in schedules and move in moves
    ]


def idle(table: Table) -> Any:
    """Median idle share by routing with whiskers to p95, and the median time of a call."""
    from ..suites.idle import idle_share

    patterns = table.dims["pattern"].values
    ways = _ways(table, "call_time")
    figure, (left, right) = subplots(1, 2, figsize=(12, 3.8))
    place, width = np.arange(len(patterns)), 0.84 / len(ways)
    others = zip(_ways(table, "idle_time"), _ways(table, "core_share"))
    for w, ((_, colour, times), ((_, _, lost), (_, _, core))) in enumerate(zip(ways, others)):
        share = np.array([idle_share(times[p], lost[p], table.attributes["threads"]) for p in place]) * 100
        middle, high = np.nanmedian(share, axis=-1), np.nanquantile(share, 0.95, axis=-1)
        at = place + (w - (len(ways) - 1) / 2) * width
        bars = left.bar(at, middle, width * 0.92, color=colour)
        left.errorbar(at, middle, [0 * high, high - middle], fmt="none", ecolor="#333333", linewidth=0.8)
        for x, value, top in zip(at, middle, high):
            left.annotate(f"{value:.0f}", (x, top), (0, 2), textcoords="offset points", ha="center", fontsize=7)
        calls = np.nanmedian(slowest(times), axis=-1) * 1e3
        shown = right.bar(at, calls, width * 0.92, color=colour)
        right.bar_label(shown, fmt="%.3g", fontsize=6.5)
        for each in (bars, shown):
            hatch(each, doubtful(times, core))
    left.set(title="worker time without a runnable tile", ylabel="idle (% of workers x slowest call)")
    right.set(title="one call, median", ylabel="slowest rank (ms)")
    for axis in (left, right):
        axis.set_xticks(place, [str(p).replace(", ", ",\n").replace(" ", "\n") for p in patterns])
        axis.set_xlabel("routing")
        axis.margins(y=0.12)
        axis.grid(axis="x", visible=False)
    legend(figure, {label: colour for label, colour, _ in ways})
    title = f"{table.attributes['shape']}, {table.variables['tokens'].values[0]} tokens per rank"
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure


def ecdf(table: Table) -> Any:
    """ECDFs of the slowest rank's time over its minimum, one panel per routing; the legend has p50 and p95."""
    patterns, ways = table.dims["pattern"].values, _ways(table, "call_time")
    columns = min(2, len(patterns))
    lines = -(-len(patterns) // columns)
    figure, axes = subplots(lines, columns, figsize=(4.7 * columns, 3.1 * lines), squeeze=False, sharey=True)
    for p, axis in zip(range(len(patterns)), axes.flat):
        most = 1.0
        for label, colour, times in ways:
            calls = slowest(times[p])
            ratio = calls / np.nanmin(calls)
            p50, p95 = np.nanquantile(ratio, [0.5, 0.95])
            most = max(most, float(np.nanquantile(ratio, 0.99)))
            draw_ecdf(axis, ratio, "", f"{label}: p50 {p50:.2f}, p95 {p95:.2f}", colour)
        axis.set(title=str(patterns[p]), xlim=(1, max(1.05, most)), xlabel="call / fastest call (up to p99)")
        axis.legend(fontsize=7, frameon=True, framealpha=0.6, edgecolor="none")  # curves may run behind the legend
    for axis in axes.flat[len(patterns) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of calls")
    return figure


def wait(table: Table) -> Any:
    """Heat maps of the mean wait of each rank for each other rank in a call: a column per routing, a row per way."""
    patterns, ways = table.dims["pattern"].values, _ways(table, "wait_time")
    most = max(float(np.nanmax(waits)) for *_, waits in ways) * 1e3
    size = (2.2 * len(patterns) + 1.2, 2.2 * len(ways) + 0.5)
    figure, axes = subplots(
        len(ways), len(patterns), figsize=size, squeeze=False, layout="compressed", sharex=True, sharey=True
    )
    for (label, _, waits), line in zip(ways, axes):
        for p, axis in enumerate(line):
            values = waits[p] * 1e3 + np.where(np.eye(len(waits[p])), np.nan, 0)
            rows = f"{label}\nrank that waits" if p == 0 else ""
            title = str(patterns[p]) if label == ways[0][0] else ""
            columns = "for rank" if label == ways[-1][0] else ""
            image = heat_map(axis, values, title, "", rows, columns, most)
    figure.colorbar(image, ax=axes, label="wait per call (ms)", shrink=0.6)
    return figure


PICTURES = {"idle": [("idle", idle), ("idle-ecdf", ecdf), ("idle-wait", wait)]}
