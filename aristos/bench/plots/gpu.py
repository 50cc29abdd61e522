"""Pictures of runs with `--backend cuda`: put, signal, gemm and layer, each beside its rivals.

Points are medians over turns; bands reach from the 5th to the 95th percentile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...results import Table
from .style import BLUE, GREEN, GREY, ORANGE, RED, byte_axis, count_axis, plain_log, subplots

GRAPH = "aristos graph"  # the name with which all other names are compared
COLORS, MARKS = (BLUE, ORANGE, GREEN, RED, GREY), "os^Dv"


def _line(axis: Any, x: ArrayLike, values: np.ndarray, name: str, number: int = 0) -> None:
    """Draw median and band over x. values: [x, turn], NaN if a turn was not run or its outputs were wrong."""
    there = ~np.isnan(values).all(axis=-1)
    if not there.any():
        return
    x, values = np.asarray(x)[there], values[there]
    low, middle, high = np.nanquantile(values, [0.05, 0.5, 0.95], axis=-1)
    color = COLORS[number % len(COLORS)]
    axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    axis.plot(x, middle, color=color, marker=MARKS[number % len(MARKS)], markersize=4, label=name)


def put(table: Table) -> Any:
    """GB/s of puts and of the driver's copy over the size of a row, with a panel for each way."""
    ways, sizes = table.dims["way"].values, table.dims["row_bytes"].values
    times = table.variables["time"].values  # [way, size, what, turn]
    figure, axes = subplots(1, len(ways), figsize=(4.6 * len(ways), 3.8), squeeze=False, sharey=True)
    for axis, way, of_way, nbytes in zip(axes[0], ways, times, table.variables["bytes"].values):
        for number, name in enumerate(table.dims["what"].values):
            _line(axis, sizes, nbytes / of_way[:, number] / 1e9, str(name), number)
        byte_axis(axis, sizes)
        axis.set(title=f"put, {way}", xlabel="bytes of a row", ylim=(0, None))
        axis.legend()
    axes[0, 0].set_ylabel("GB/s")
    return figure


def signal(table: Table) -> Any:
    """Round trip of a row and a signal by the size of the row."""
    sizes = table.dims["row_bytes"].values
    figure, axis = subplots(figsize=(5.5, 3.8))
    _line(axis, sizes, table.variables["round_trip"].values * 1e6, "put and signal")
    byte_axis(axis, sizes)
    axis.set(title="there and back between two blocks", xlabel="bytes of a row", ylabel="us", ylim=(0, None))
    return figure


def gemm(table: Table) -> Any:
    """TFLOP/s over rows, and for each other kernel that was measured the ratio of its time to ours."""
    rows, names = table.dims["rows"].values, table.dims["kernel"].values
    times = table.variables["time"].values  # [kernel, rows, turn]
    figure, axes = subplots(1, len(names), figsize=(4.8 * len(names), 3.8), squeeze=False)
    left = axes[0, 0]
    work = table.attributes["flops_a_row_of_every_expert"] * rows[:, None] / 1e12
    for number, name in enumerate(names):
        _line(left, rows, work / times[number], str(name), number)
    left.set(ylabel="TFLOP/s", ylim=(0, None), title="the product of every expert")
    left.legend()
    for axis, theirs, name in zip(axes[0, 1:], times[1:], names[1:]):
        _line(axis, rows, theirs / times[0], str(name))
        axis.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
        axis.set(ylim=(0, None), ylabel=f"time of {name} / time of {names[0]}", title=f"against {name}")
    for axis in axes[0]:
        count_axis(axis, rows, "rows of each expert")
    figure.suptitle(table.attributes["shape"], fontsize=9, x=0.01, ha="left")
    return figure


def layer(table: Table) -> Any:
    """Time of a call over tokens, and for each other way the ratio of its time to that of `aristos graph`."""
    tokens, names = table.dims["tokens"].values, [str(name) for name in table.dims["what"].values]
    times = table.variables["call_time"].values  # [tokens, what, turn]
    figure, (left, right) = subplots(1, 2, figsize=(9.6, 3.8))
    for number, name in enumerate(names):
        _line(left, tokens, times[:, number] * 1e3, name, number)
    left.set(ylabel="ms, slowest rank", yscale="log", title="one call")
    plain_log(left.yaxis)
    left.legend()
    base = names.index(GRAPH)
    for number, name in enumerate(names):
        if number != base:
            _line(right, tokens, times[:, number] / times[:, base], name, number)
    right.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    right.set(ylabel=f"time / time of {GRAPH}", ylim=(0, None), title=f"over {GRAPH}, turn by turn")
    right.legend()
    for axis in (left, right):
        count_axis(axis, tokens, "tokens per rank")
    figure.suptitle(table.attributes["shape"], fontsize=9, x=0.01, ha="left")
    return figure


PICTURES = {
    "put_cuda": [("put-cuda", put)],
    "signal_cuda": [("signal-cuda", signal)],
    "gemm_cuda": [("gemm-cuda", gemm)],
    "layer_cuda": [("layer-cuda", layer)],
}
