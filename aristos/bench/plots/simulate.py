"""Pictures of `aristos simulate`: each rank's time, waits, bytes put between nodes, what-if changes, and scaling."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from . import idle
from .any_table import COLOURS as OF_LINES
from .style import BLUE, GREY, count_axis, heat_map, legend, subplots
from .timeline import COLOURS

MOST_LABELS = 24  # links whose names are written


def ranks(table: Table) -> Any:
    """Where each rank's time went in the last call, and the rows of its experts over the mean."""
    share, rows = (table.variables[name].values for name in ("share", "rows"))
    figure, (upper, lower) = subplots(
        2, 1, figsize=(10, 4.6), sharex=True, height_ratios=[2.4, 1], layout="constrained"
    )
    place, under, used = np.arange(len(share)), np.zeros(len(share)), {}
    wide = 1.0 if len(place) > 64 else 0.9
    for i, activity in enumerate(table.dims["activity"].values):
        name = "wait" if activity == "idle" else str(activity)
        if share[:, i].any():
            used[str(activity)] = COLOURS.get(name, GREY)
        upper.bar(place, 100 * share[:, i], wide, under, color=COLOURS.get(name, GREY), linewidth=0)
        under += 100 * share[:, i]
    received = rows.sum(axis=0)
    lower.bar(place, received / max(1e-9, received.mean()), wide, color=BLUE, linewidth=0)
    lower.axhline(1, color=GREY, linewidth=0.8)
    upper.set(ylabel="share of its call (%)", ylim=(0, 100))
    lower.set(ylabel="rows / mean", xlabel="rank")
    lower.xaxis.get_major_locator().set_params(integer=True)
    for axis in (upper, lower):
        axis.grid(axis="x", visible=False)
        axis.margins(x=0.01)
    legend(figure, used)
    figure.suptitle(_title(table), fontsize=9, x=0.01, ha="left")
    return figure


def links(table: Table) -> Any:
    """Left: MiB that each node put to each other node in a call. Right: the share of each link that was in use."""
    sent, in_use = table.variables["sent"].values / 2**20, table.variables["in_use"].values * 100
    names = [str(name) for name in table.dims["link"].values]
    figure, (left, right) = subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    values = np.where(np.eye(len(sent)), np.nan, sent)
    heat_map(left, values, "put in a call", "MiB", "node that puts", "to node")
    few = len(names) <= MOST_LABELS
    bars = right.barh(np.arange(len(names)), in_use, 0.8 if few else 1.0, color=BLUE, linewidth=0)
    if few:
        right.set_yticks(range(len(names)), names)
        right.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
    right.invert_yaxis()
    right.set(title="links in use, over all calls", xlabel="% of capacity", ylabel="" if few else "link")
    right.margins(x=0.12)
    right.grid(axis="y", visible=False)
    figure.suptitle(_title(table), fontsize=9, x=0.01, ha="left")
    return figure


def what_if(table: Table) -> Any:
    """The time of a call with each change, and the share of the ranks' time without work."""
    changes = [str(each) for each in table.dims["change"].values]
    times, waits = (table.variables[name].values[:, 0] for name in ("call_time", "idle"))
    figure, (left, right) = subplots(1, 2, figsize=(10, 1.3 + 0.34 * len(changes)), sharey=True)
    colours = [GREY, *[BLUE] * (len(changes) - 1)]  # the first one is the base
    place = np.arange(len(changes))
    left.bar_label(left.barh(place, times * 1e3, color=colours), fmt="%.4g", fontsize=7.5, padding=2)
    right.bar_label(right.barh(place, waits * 100, color=colours), fmt="%.0f", fontsize=7.5, padding=2)
    left.axvline(times[0] * 1e3, color=GREY, linewidth=0.8)
    left.set_yticks(place, changes)
    left.invert_yaxis()
    left.set(xlabel="call (ms)")
    right.set(xlabel="idle (% of the ranks' time)")
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.12)
    figure.suptitle(_title(table), fontsize=9, x=0.01, ha="left")
    return figure


def scaling(table: Table) -> Any:
    """The time of a call, the efficiency and the idle share, by the number of nodes, with a line for each change."""
    nodes = table.dims["nodes"].values
    rate = table.variables["tokens_per_s"].values / nodes
    panels = (
        ("call (ms)", table.variables["call_time"].values * 1e3),
        ("tokens/s of a node (% of the first)", 100 * rate / rate[:, :1]),
        ("idle (% of the ranks' time)", 100 * table.variables["idle"].values),
    )
    figure, axes = subplots(1, len(panels), figsize=(12, 3.6))
    for axis, (what, values) in zip(axes, panels):
        for i, change in enumerate(table.dims["change"].values):
            colour = OF_LINES[i % len(OF_LINES)]
            axis.plot(nodes, values[i], "o-", color=colour, markersize=3.5, label=str(change))
        count_axis(axis, nodes, "nodes")
        axis.set(ylabel=what, ylim=(0, None))
    if len(table.dims["change"].values) > 1:
        axes[0].legend()
    title = f"{table.attributes['scaling']} scaling, {_title(table)}"
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure


def _title(table: Table) -> str:
    return f"simulated: {table.attributes['shape']}"


PICTURES = {
    "simulate": [("simulate-ranks", ranks), ("simulate-wait", idle.wait)],
    "links": [("simulate-links", links)],
    "what-if": [("simulate-what-if", what_if)],
    "scaling": [("simulate-scaling", scaling)],
}
