"""Pictures of the suite `idle`: idle share, straggler ECDFs and waits between ranks, fused against bulk."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from .style import OF, heat_map, slowest
from .style import ecdf as draw_ecdf


def idle(table: Table) -> Any:
    """Median idle share by routing with whiskers to p95, and the median time of a call."""
    from matplotlib import pyplot

    from ..suites.idle import idle_share

    patterns, schedules = table.dims["pattern"].values, table.dims["schedule"].values
    times, lost = table.variables["call_time"].values, table.variables["idle_time"].values
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.8))
    place, width = np.arange(len(patterns)), 0.8 / len(schedules)
    for s, schedule in enumerate(schedules):
        share = np.array([idle_share(times[p, s], lost[p, s], table.attributes["threads"]) for p in place]) * 100
        middle, high = np.nanmedian(share, axis=-1), np.nanquantile(share, 0.95, axis=-1)
        at = place + (s - (len(schedules) - 1) / 2) * width
        bars = left.bar(at, middle, width * 0.92, color=OF[schedule], label=schedule)
        left.errorbar(at, middle, [0 * high, high - middle], fmt="none", ecolor="#333333", linewidth=0.8)
        left.bar_label(bars, fmt="%.0f", fontsize=7, label_type="center", color="white")
        calls = np.nanmedian(slowest(times[:, s]), axis=-1) * 1e3
        right.bar_label(right.bar(at, calls, width * 0.92, color=OF[schedule]), fmt="%.3g", fontsize=7)
    left.set(title="worker time without a runnable tile", ylabel="idle (% of workers x slowest call)")
    right.set(title="one call, median", ylabel="slowest rank (ms)")
    for axis in (left, right):
        axis.set_xticks(place, patterns)
        axis.set_xlabel("routing")
        axis.margins(y=0.12)
        axis.grid(axis="x", visible=False)
    figure.legend(loc="outside upper right", ncols=2)
    title = f"{table.attributes['shape']}, {table.variables['tokens'].values.max()} tokens per rank"
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure


def ecdf(table: Table) -> Any:
    """Straggler figure: the slowest rank's call over its minimum, one panel per routing; p50 and p95 in the legend."""
    from matplotlib import pyplot

    patterns, schedules = table.dims["pattern"].values, table.dims["schedule"].values
    times = slowest(table.variables["call_time"].values)
    columns = min(2, len(patterns))
    lines = -(-len(patterns) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.7 * columns, 3.1 * lines), squeeze=False, sharey=True)
    for p, axis in zip(range(len(patterns)), axes.flat):
        most = 1.0
        for s, schedule in enumerate(schedules):
            ratio = times[p, s] / np.nanmin(times[p, s])
            p50, p95 = np.nanquantile(ratio, [0.5, 0.95])
            most = max(most, float(np.nanquantile(ratio, 0.99)))
            draw_ecdf(axis, ratio, schedule, f"{schedule}: p50 {p50:.2f}, p95 {p95:.2f}")
        axis.set(title=str(patterns[p]), xlim=(1, max(1.05, most)), xlabel="call / fastest call (up to p99)")
        axis.legend()
    for axis in axes[:, 0]:
        axis.set_ylabel("share of calls")
    return figure


def wait(table: Table) -> Any:
    """Rank x rank: the wait of each rank for each other in a call with a late rank, one panel per schedule."""
    from matplotlib import pyplot

    patterns, schedules = list(table.dims["pattern"].values), table.dims["schedule"].values
    pattern = "late rank" if "late rank" in patterns else patterns[-1]
    waits = table.variables["wait_time"].values[patterns.index(pattern)] * 1e3
    figure, axes = pyplot.subplots(
        1, len(schedules), figsize=(4.8 * len(schedules), 4.4), squeeze=False, layout="compressed"
    )
    for s, axis in enumerate(axes[0]):
        values = waits[s] + np.where(np.eye(len(waits[s])), np.nan, 0)
        heat_map(
            figure,
            axis,
            values,
            f"{schedules[s]}, {pattern}",
            "wait per call (ms)",
            "rank that waits",
            "for rank",
            waits.max(),
        )
    return figure


PICTURES = {"idle": [("idle", idle), ("idle-ecdf", ecdf), ("idle-wait", wait)]}
