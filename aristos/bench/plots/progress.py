"""Picture of the suite `progress`: the time of a put by the target's activity, and the target's slow-down."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from .style import BLUE, GREEN, GREY, RED, byte_axis, subplots

COLORS = {"waits": GREY, "computes": RED, "thread": BLUE, "worker": GREEN}


def progress(table: Table) -> Any:
    """Left: median time of a put and a flush by size, one line per mode.

    Right: the target's time under puts over its time without puts."""
    modes, sizes = list(table.dims["mode"].values), table.dims["size"].values
    puts = np.nanmedian(table.variables["put_time"].values, axis=(2, 3)) * 1e6  # [mode, size]
    spent = np.median(table.variables["compute_time"].values, axis=2)  # [mode, traffic]
    figure, (left, right) = subplots(1, 2, figsize=(9.5, 4))
    for m, mode in enumerate(modes):
        left.plot(sizes, puts[m], "o-", color=COLORS[mode], markersize=3.5, label=f"target: {mode}")
        if mode in ("thread", "worker"):
            right.plot(sizes, spent[m, 1:] / spent[m, 0], "o-", color=COLORS[mode], markersize=3.5, label=mode)
    left.set(title="one put and a flush", ylabel="time (us)", yscale="log", xlabel="size of a put")
    right.axhline(1.0, color=GREY, linestyle=":")
    right.set(title="the target's computation", ylabel="time under puts / without", xlabel="size of a put")
    for axis in (left, right):
        byte_axis(axis, sizes)
        axis.legend()
    return figure


PICTURES = {"progress": [("progress", progress)]}
