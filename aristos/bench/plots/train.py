"""Picture of the suite `train`: the times of the parts of a training step."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from ..disturbance import doubtful
from .style import BLUE, GREEN, GREY, ORANGE, hatch, slowest, subplots


def train(table: Table) -> Any:
    """Bars with the medians of a step's parts, for each token count and `save`, and a dot for every step."""
    parts = list(table.dims["part"].values)
    cases = [(tokens, save) for tokens in table.dims["tokens"].values for save in table.dims["save"].values]
    raw = table.variables["time"].values
    times = slowest(raw) * 1e3  # [tokens, save, part, iteration]
    marked = doubtful(raw[:, :, parts.index("step")], table.variables["core_share"].values).ravel()
    times = times.reshape(len(cases), *times.shape[2:])
    figure, axes = subplots(1, len(cases), figsize=(3.2 * len(cases) + 1, 3.6), squeeze=False)
    for c, axis in enumerate(axes[0]):
        for p, color in enumerate((BLUE, ORANGE, GREEN, GREY)):
            here = times[c, p][~np.isnan(times[c, p])]
            bars = axis.bar(p, np.median(here), color=color)
            axis.bar_label(bars, fmt="%.3g", fontsize=7)
            hatch(bars, marked[c])
            axis.plot(np.full(len(here), p), here, "o", color="#333333", markersize=2, alpha=0.5)
        axis.set_xticks(range(len(parts)), parts, rotation=20)
        axis.set(title="{} tokens per rank, save {}".format(*cases[c]))
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("slowest rank (ms): median, every step")
    figure.suptitle(table.attributes["shape"], fontsize=9, x=0.01, ha="left")
    return figure


PICTURES = {"train": [("train", train)]}
