"""The picture of a table that has no picture of its own: each variable over one dimension, in one line per coordinate.

The dimension is the first one that has numbers, else the first of all. There is a line for each coordinate of the other
dimensions. Points are medians over repetitions; times are those of the slowest rank. Bands reach from the 5th to the
95th percentile.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from ..samples import SAMPLES
from .style import BLUE, GREEN, GREY, ORANGE, RED, SKY, subplots

MOST_PANELS, MOST_LINES, MOST_TICKS = 6, 8, 40
COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, GREY)


def drawable(table: Table) -> list[str]:
    """The variables that can be drawn: numbers over at least one dimension."""
    return [
        name
        for name, each in table.variables.items()
        if each.dims and each.values.size and each.values.dtype.kind in "iuf"
    ][:MOST_PANELS]


def along(table: Table, dims: tuple[str, ...]) -> str:
    """The dimension of the x axis: the first one with numbers that is no rank or repetition, else the first of all."""
    kept = [name for name in dims if name not in (*SAMPLES, "rank")]
    numbers = [name for name in kept if table.dims[name].values.dtype.kind in "iuf"]
    return [*numbers, *kept, *dims][0]


def lines(table: Table, name: str) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """(dimension of the x axis, (label, [x, sample] values) of each line of a variable)."""
    variable = table.variables[name]
    x, dims, values = along(table, variable.dims), list(variable.dims), np.asarray(variable.values, float)
    if "rank" in dims and x != "rank":
        at = dims.index("rank")
        values = values.max(axis=at) if variable.units == "s" else np.median(values, axis=at)
        del dims[at]
    samples = [each for each in dims if each in SAMPLES and each != x]
    others = [each for each in dims if each not in (*samples, x)]
    ordered = values.transpose([dims.index(each) for each in (*others, x, *samples)])
    shape = ordered.shape[: len(others)]
    flat = ordered.reshape(*shape, len(table.dims[x].values), -1)
    labels = {
        place: ", ".join(f"{table.dims[each].values[i]}" for each, i in zip(others, place))
        for place in np.ndindex(shape)
    }
    return x, [(labels[place], flat[place]) for place in np.ndindex(shape)][:MOST_LINES]


def any_table(table: Table) -> Any:
    """Draw a panel for each variable."""
    names = drawable(table)
    figure, axes = subplots(1, len(names), figsize=(4.4 * len(names) + 0.4, 3.6), squeeze=False)
    for axis, name in zip(axes[0], names):
        variable, (x, found) = table.variables[name], lines(table, name)
        of = table.dims[x]
        text = of.values.dtype.kind == "U"
        at = np.arange(len(of.values)) if text else of.values
        for number, (label, values) in enumerate(found):
            colour, ran = COLOURS[number % len(COLOURS)], np.isfinite(values).any(axis=1)
            low, middle, high = np.nanquantile(values[ran], [0.05, 0.5, 0.95], axis=1)
            axis.fill_between(at[ran], low, high, color=colour, alpha=0.2, linewidth=0)
            axis.plot(at[ran], middle, "o-", color=colour, markersize=3.5, label=label or None)
        if text and len(at) <= MOST_TICKS:
            axis.set_xticks(at, [str(each) for each in of.values], rotation=20)
        unit = f" ({variable.units})" if variable.units not in ("", "1") else ""
        axis.set(title=name, ylabel=(variable.long_name or name) + unit, xlabel=of.long_name or x)
        if any(label for label, _ in found):
            axis.legend()
    figure.suptitle(table.name, fontsize=9, x=0.01, ha="left")
    return figure
