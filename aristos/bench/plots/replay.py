"""Picture of the suite `replay`: the distribution of the steps' times, and each step against its imbalance."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from .style import MARKS, OF, ecdf, slowest, subplots


def replay(table: Table) -> Any:
    """Left: ECDF of all steps' times. Right: each step's median time against the rows of its busiest rank."""
    schedules = table.dims["schedule"].values
    times = table.variables["call_time"].values  # [schedule, rank, step, pass]
    steps = slowest(np.moveaxis(times, 1, 2)) * 1e3  # [schedule, step, pass]
    rows = table.variables["rows"].values.max(axis=1)
    figure, (left, right) = subplots(1, 2, figsize=(9.5, 3.8))
    for s, schedule in enumerate(schedules):
        ecdf(left, steps[s].ravel(), schedule, schedule)
        middle = np.nanmedian(steps[s], axis=-1)
        right.scatter(rows, middle, s=14, color=OF[schedule], marker=MARKS[schedule], label=schedule, alpha=0.8)
    # The axis ends at p99, because one interrupted call would compress the rest to a vertical line.
    left.set_xlim(0.98 * np.nanmin(steps), np.nanquantile(steps, 0.99))
    left.set(xlabel="slowest rank's call (ms, up to p99)", ylabel="share of steps", title=table.name.replace("_", ", "))
    right.set(
        xlabel="rows of the busiest rank",
        ylabel="slowest rank, median (ms)",
        title="one point per step",
        ylim=(0, None),
    )
    left.legend()
    right.legend()
    return figure


PHASES = ("prefill", "decode", "call_1", "call_16", "call_256")
PICTURES = {f"replay_{name}": [(f"replay-{name.replace('_', '-')}", replay)] for name in PHASES}
