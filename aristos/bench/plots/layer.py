"""Pictures of the suite `layer`: fused against bulk, and the distribution of the calls' times."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from ..disturbance import doubtful
from .style import GREY, OF, hatch, legend, slowest, subplots
from .style import ecdf as draw_ecdf


def layer(table: Table) -> Any:
    """Draw the calls' median times with whiskers to p95, in a panel for each token count.

    Two more panels show the rate as a share of the FMA peak, and the overlap efficiency.
    """
    tokens, schedules = table.dims["tokens"].values, table.dims["schedule"].values
    raw = table.variables["call_time"].values
    times, marked = slowest(raw), doubtful(raw, table.variables["core_share"].values)  # [tokens, schedule, iteration]
    middle, high = np.nanmedian(times, axis=-1), np.nanquantile(times, 0.95, axis=-1)
    world = len(table.dims["rank"].values)
    rows = table.variables["rows"].values.sum(axis=-1)
    rate = rows[:, None] * table.attributes["flops_per_row"] / world / middle / 1e9
    peak = table.variables["peak"].values.mean(axis=-1)
    alone = np.nanmedian(table.variables["experts_time"].values, axis=-1).max(axis=-1)
    width, count = 0.8 / len(schedules), len(tokens)
    ratios = [max(1.2, 2 / count)] * count + [0.6 + 0.8 * count] * 2
    figure, axes = subplots(1, count + 2, figsize=(1.6 * sum(ratios) + 1, 3.8), width_ratios=ratios)
    for s, schedule in enumerate(schedules):
        at = (s - (len(schedules) - 1) / 2) * width
        bar = {"width": width * 0.92, "color": OF[schedule]}
        for t, axis in enumerate(axes[:count]):
            typical, top = middle[t, s] * 1e3, high[t, s] * 1e3
            hatch(axis.bar(at, typical, **bar), marked[t, s])
            axis.errorbar(at, typical, [[0], [top - typical]], fmt="none", ecolor="#333333")
            axis.annotate(f"{typical:.3g}", (at, typical), (2, 2), textcoords="offset points", fontsize=7)
        for axis, values in zip(axes[count:], (rate[:, s] / peak, alone / middle[:, s])):
            bars = axis.bar(np.arange(count) + at, values * 100, **bar)
            axis.bar_label(bars, fmt="%.0f", fontsize=7)
            hatch(bars, marked[:, s])
    for t, axis in enumerate(axes[:count]):
        axis.set_xticks([0], [str(tokens[t])])
        axis.set_ylim(0, 1.1 * high[t].max() * 1e3)
    axes[0].set_ylabel("slowest rank (ms)")
    axes[0].set_title("one call: median, whisker to p95", loc="left")
    axes[count].set(title="of the FMA peak", ylabel="GFLOP/s of a rank / peak (%)", ylim=(0, 119))
    top = max(119, 1.1 * axes[-1].dataLim.ymax)
    axes[-1].set(title="overlap efficiency", ylabel="experts alone / call (%)", ylim=(0, top))
    for axis in axes[count:]:
        axis.set_xticks(range(count), [str(t) for t in tokens])
        axis.axhline(100, color=GREY, linewidth=0.8, linestyle=":")
    for axis in axes:
        axis.set_xlabel("tokens per rank")
        axis.grid(axis="x", visible=False)
    legend(figure, {schedule: OF[schedule] for schedule in schedules})
    figure.suptitle(table.attributes["shape"], fontsize=9, x=0.01, ha="left")
    return figure


def ecdf(table: Table) -> Any:
    """ECDFs of the calls' times, one panel per token count."""
    tokens, schedules = table.dims["tokens"].values, table.dims["schedule"].values
    times = slowest(table.variables["call_time"].values) * 1e3
    figure, axes = subplots(1, len(tokens), figsize=(4.6 * len(tokens), 3.6), squeeze=False, sharey=True)
    for t, axis in enumerate(axes[0]):
        for s, schedule in enumerate(schedules):
            draw_ecdf(axis, times[t, s], schedule, schedule)
        # Shown up to p99, because one interrupted call would compress the rest to a vertical line.
        axis.set_xlim(0.98 * np.nanmin(times[t]), np.nanquantile(times[t], 0.99))
        axis.set(title=f"{tokens[t]} tokens per rank", xlabel="slowest rank's call (ms, up to p99)")
        axis.legend()
    axes[0, 0].set_ylabel("share of calls")
    return figure


PICTURES = {"layer": [("layer", layer), ("layer-ecdf", ecdf)]}
