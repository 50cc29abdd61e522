"""Pictures of the suite `overlap`: the latencies and bandwidths at which a fused call is faster than a bulk call."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from ..disturbance import doubtful
from .style import OF, hollow, plain_log, slowest, subplots


def _medians(table: Table) -> np.ndarray:
    """[case, alpha, rate, schedule] median over calls of the slowest rank's seconds."""
    return np.nanmedian(slowest(table.variables["call_time"].values), axis=-1)


def _doubtful(table: Table) -> np.ndarray:
    """[case, alpha, rate, schedule] whether a point was disturbed."""
    return doubtful(table.variables["call_time"].values, table.variables["core_share"].values)


def _latency(seconds: float) -> str:
    return f"{seconds * 1e3:g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:g} us"


def _rates(table: Table) -> list[str]:
    """The rates as text, see `rate_text`."""
    from ..suites.overlap import rate_text

    copy = table.attributes["copy_gb_per_s"]
    return [rate_text(rate, copy) for rate in table.dims["rate"].values]


def _panels(table: Table, wide: float, more: float, ylabel: str, **style: Any) -> tuple[Any, Any, Any]:
    """(figure, its axes, the axes of each layer), five layers in a row. wide: inches of a layer. more: other inches."""
    count = len(table.dims["case"].values)
    columns = min(5, count)
    lines = -(-count // columns)
    size = (max(6.0, wide * columns + more), 2.3 * lines + more)
    figure, axes = subplots(lines, columns, figsize=size, squeeze=False, **style)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    for axis in axes[-1]:
        axis.set_xlabel("bandwidth (GB/s)")
    return figure, axes, axes.flat[:count]


def heat(table: Table) -> Any:
    """The time of a bulk call over that of a fused call for each latency and bandwidth, with a panel for each layer.

    Above 1 (blue), overlap pays; ~ means disturbed.
    """
    import matplotlib
    from matplotlib.colors import LogNorm

    times, cases = _medians(table), table.dims["case"].values
    schedules = list(table.dims["schedule"].values)
    ratio = times[..., schedules.index("bulk")] / times[..., schedules.index("fused")]
    marked = np.asarray(_doubtful(table).any(axis=-1))
    alphas, rates = table.dims["alpha"].values, _rates(table)
    figure, axes, of_cases = _panels(table, 2.6, 0.7, "latency of a link", layout="compressed")
    most = max(1.1, float(np.nanmax(ratio)), 1 / float(np.nanmin(ratio)))
    norm, shades = LogNorm(1 / most, most), matplotlib.colormaps["RdBu"]
    for c, axis in enumerate(of_cases):
        image = axis.imshow(ratio[c], cmap=shades, norm=norm, aspect="auto")
        for (i, j), value in np.ndenumerate(ratio[c]):
            dark = abs(norm(value) - 0.5) > 0.35
            text = f"{'~' if marked[c, i, j] else ''}{value:.2f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axis.grid(False)
        axis.set(title=str(cases[c]))
        axis.set_xticks(range(len(rates)), rates)
        axis.set_yticks(range(len(alphas)), [_latency(a) for a in alphas])
    bar = figure.colorbar(image, ax=axes, label="bulk / fused", shrink=0.8)
    plain_log(bar.ax.yaxis)
    marks = "*: copying a row takes at least half the link's time;  ~: disturbed"
    figure.suptitle(f"time of a bulk call / of a fused call;  {marks}", fontsize=9, x=0.01, ha="left")
    return figure


def efficiency(table: Table) -> Any:
    """The time of the experts alone over the time of the call, by bandwidth, with a panel for each layer.

    Solid lines belong to the lowest latency."""
    times, cases = _medians(table), table.dims["case"].values
    alone, marked = table.variables["experts_time"].values, _doubtful(table)
    alphas, rates = table.dims["alpha"].values, _rates(table)
    figure, axes, of_cases = _panels(table, 2.5, 0.7, "experts alone / call (%)", sharex=True, sharey=True)
    for c, axis in enumerate(of_cases):
        for s, schedule in enumerate(table.dims["schedule"].values):
            for a, style in zip(range(len(alphas)), ("-", "--", ":", "-.") * len(alphas)):
                label = f"{schedule}, {_latency(alphas[a])}"
                share = alone[c] / times[c, a, :, s] * 100
                line = {"color": OF[schedule], "marker": "o", "markersize": 3}
                axis.plot(range(len(rates)), share, style, label=label, **line)
                hollow(axis, range(len(rates)), share, marked[c, a, :, s], line)
        axis.set(title=str(cases[c]), ylim=(0, 110))
        axis.set_xticks(range(len(rates)), rates)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=7)
    return figure


PICTURES = {"overlap": [("overlap", heat), ("overlap-efficiency", efficiency)]}
