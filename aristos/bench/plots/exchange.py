"""Picture of the suite `exchange`: all-to-all times and bus bandwidth by size, one-sided against MPI."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from ..disturbance import doubtful
from .style import MARKS, OF, byte_axis, hollow, slowest, subplots


def exchange(table: Table) -> Any:
    """One row per pattern (equal, uneven): time on the left, bus bandwidth on the right."""
    patterns, methods = table.dims["pattern"].values, table.dims["method"].values
    size = table.variables["size"].values
    raw = table.variables["call_time"].values
    times = slowest(raw)  # [pattern, method, block, iteration]
    marked = doubtful(raw, table.variables["core_share"].values)
    world = len(table.dims["rank"].values)
    figure, axes = subplots(len(patterns), 2, figsize=(9.5, 3.4 * len(patterns)), squeeze=False, sharex=True)
    for p, pattern in enumerate(patterns):
        for m, method in enumerate(methods):
            ran = np.isfinite(times[p, m]).any(axis=-1) & (size[p] > 0)
            if not ran.any():
                continue
            n, t = size[p][ran], times[p, m][ran]
            middle = np.nanmedian(t, axis=-1)
            line = {"color": OF[method], "marker": MARKS[method], "markersize": 3.5, "label": method}
            axes[p, 0].plot(n, middle * 1e6, **line)
            high = np.nanquantile(t, 0.95, axis=-1)
            axes[p, 0].fill_between(n, middle * 1e6, high * 1e6, color=OF[method], alpha=0.15, linewidth=0)
            rate = n / middle * (world - 1) / world / 1e9
            axes[p, 1].plot(n, rate, **line)
            hollow(axes[p, 0], n, middle * 1e6, marked[p, m][ran], line)
            hollow(axes[p, 1], n, rate, marked[p, m][ran], line)
        axes[p, 0].set(title=f"{pattern} blocks: median, band to p95", ylabel="slowest rank (us)", yscale="log")
        axes[p, 1].set(title=f"{pattern} blocks: bus bandwidth", ylabel="busbw (GB/s)", yscale="log")
        for axis in axes[p]:
            byte_axis(axis, size[size > 0])
            axis.legend()
    for axis in axes[-1]:
        axis.set_xlabel("bytes that a rank sends in all")
    return figure


PICTURES = {"exchange": [("exchange", exchange)]}
