"""Pictures of the suite `layer`: fused against bulk, and the distribution of the calls' times."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from .style import GREY, OF, plain_log, slowest
from .style import ecdf as draw_ecdf


def layer(table: Table) -> Any:
    """Times with p95 whiskers, rate against the kernel's peak, and overlap efficiency, by tokens and schedule."""
    from matplotlib import pyplot

    tokens, schedules = table.dims["tokens"].values, table.dims["schedule"].values
    times = slowest(table.variables["call_time"].values)  # [tokens, schedule, iteration]
    middle, high = np.nanmedian(times, axis=-1), np.nanquantile(times, 0.95, axis=-1)
    world = len(table.dims["rank"].values)
    rows = table.variables["rows"].values.sum(axis=-1)
    rate = rows[:, None] * table.attributes["flops_per_row"] / world / middle / 1e9
    peak = table.variables["peak"].values.mean(axis=-1)
    alone = np.nanmedian(table.variables["experts_time"].values, axis=-1).max(axis=-1)
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.8))
    place, width = np.arange(len(tokens)), 0.8 / len(schedules)
    for s, schedule in enumerate(schedules):
        at = place + (s - (len(schedules) - 1) / 2) * width
        bar = {"width": width * 0.92, "color": OF[schedule], "label": schedule}
        bars = axes[0].bar(at, middle[:, s] * 1e3, **bar)
        axes[0].bar_label(
            bars, [f"{v * 1e3:.3g}" for v in middle[:, s]], fontsize=7, label_type="center", color="white"
        )
        axes[0].errorbar(
            at, middle[:, s] * 1e3, [0 * high[:, s], (high - middle)[:, s] * 1e3], fmt="none", ecolor="#333333"
        )
        for axis, values in ((axes[1], rate[:, s] / peak), (axes[2], alone / middle[:, s])):
            axis.bar_label(axis.bar(at, values * 100, **bar), fmt="%.0f", fontsize=7)
    axes[0].set(title="one call: median, whisker to p95", ylabel="slowest rank (ms)", yscale="log")
    plain_log(axes[0].yaxis)
    axes[1].set(title="of the FMA peak", ylabel="GFLOP/s of a rank / peak (%)", ylim=(0, 119))
    top = max(119, 1.1 * axes[2].dataLim.ymax)
    axes[2].set(title="overlap efficiency", ylabel="experts alone / call (%)", ylim=(0, top))
    for axis in axes:
        axis.set_xticks(place, [str(t) for t in tokens])
        axis.set_xlabel("tokens per rank")
        axis.grid(axis="x", visible=False)
    for axis in axes[1:]:
        axis.axhline(100, color=GREY, linewidth=0.8, linestyle=":")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    figure.suptitle(table.attributes["shape"], fontsize=9, x=0.01, ha="left")
    return figure


def ecdf(table: Table) -> Any:
    """ECDFs of the calls' times, one panel per token count."""
    from matplotlib import pyplot

    tokens, schedules = table.dims["tokens"].values, table.dims["schedule"].values
    times = slowest(table.variables["call_time"].values) * 1e3
    figure, axes = pyplot.subplots(1, len(tokens), figsize=(4.6 * len(tokens), 3.6), squeeze=False, sharey=True)
    for t, axis in enumerate(axes[0]):
        for s, schedule in enumerate(schedules):
            draw_ecdf(axis, times[t, s], schedule, schedule)
        # Up to p99: one interrupted call would compress the rest to a vertical line.
        axis.set_xlim(0.98 * np.nanmin(times[t]), np.nanquantile(times[t], 0.99))
        axis.set(title=f"{tokens[t]} tokens per rank", xlabel="slowest rank's call (ms, up to p99)")
        axis.legend()
    axes[0, 0].set_ylabel("share of calls")
    return figure


PICTURES = {"layer": [("layer", layer), ("layer-ecdf", ecdf)]}
