"""Picture of the suite `gemm`: the expert kernel and BLAS under the roofline, and by rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from ..disturbance import doubtful
from .style import GREY, MARKS, OF, count_axis, hollow, slowest, subplots


def roofline(table: Table) -> Any:
    """Left: GFLOP/s over intensity under min(peak, intensity x bandwidth). Right: GFLOP/s over rows."""
    rows, kernels = table.dims["rows"].values, table.dims["kernel"].values
    intensity = table.variables["intensity"].values
    peak = float(table.variables["peak"].values.mean())
    bandwidth = float(table.variables["read_bandwidth"].values.mean()) / 1e9
    raw = table.variables["call_time"].values
    middle = np.nanmedian(slowest(raw), axis=-1)  # [kernel, rows]
    marked = doubtful(raw, table.variables["core_share"].values)
    rate = rows * table.attributes["flops_per_row"] / middle / 1e9
    figure, (left, right) = subplots(1, 2, figsize=(9.5, 4))
    span = np.geomspace(intensity.min() / 1.5, max(intensity.max(), peak / bandwidth) * 1.5, 200)
    roof = f"{bandwidth:.1f} GB/s from memory,\n{peak:.0f} GFLOP/s in registers"
    left.plot(span, np.minimum(peak, span * bandwidth), color=GREY, label=roof)
    right.axhline(peak, color=GREY, linestyle=":", label=f"FMA peak {peak:.0f}")
    for k, kernel in enumerate(kernels):
        line = {"color": OF[kernel], "marker": MARKS[kernel], "markersize": 4, "label": kernel}
        left.plot(intensity, rate[k], linewidth=0.8, **line)
        right.plot(rows, rate[k], **line)
        for axis, at in ((left, intensity), (right, rows)):
            hollow(axis, at, rate[k], marked[k], line)
    shown = 0.0
    for m, at, y in zip(rows, intensity, np.minimum(*rate) if len(rate) > 1 else rate[0]):
        if at > 1.3 * shown:  # closer labels would overlap
            left.annotate(f"{m}", (at, y), textcoords="offset points", xytext=(0, -12), fontsize=7, ha="center")
            shown = at
    left.set(xscale="log", yscale="log", xlabel="intensity (FLOP / byte)", ylabel="GFLOP/s, slowest rank")
    left.set_ylim(bottom=rate.min() / 2)
    left.set_title("roofline; numbers are rows")
    right.set(ylabel="GFLOP/s, slowest rank", ylim=(0, None), title="by rows")
    count_axis(right, rows, "rows of one expert")
    left.legend()
    right.legend()
    return figure


PICTURES = {"gemm": [("gemm-roofline", roofline)]}
