"""Pictures of the suites `put` and `signal`: times and rates by size for every pair, and rank x rank heat maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from ..fit import Fit, Segment, alpha_beta
from ..pairs import bytes_text
from .style import BLUE, GREEN, GREY, RED, byte_axis, heat_map


def _medians(table: Table, name: str) -> np.ndarray:
    """[origin, target, size] median over iterations; NaN on the diagonal."""
    values = table.variables[name].values
    out = np.full(values.shape[:-1], np.nan)
    ran = np.isfinite(values).any(axis=-1)
    out[ran] = np.nanmedian(values[ran], axis=-1)
    return out


def _pairs(medians: np.ndarray) -> np.ndarray:
    """[pair, size] without the diagonal."""
    return medians[~np.eye(len(medians), dtype=bool)]


def _fit_text(fit: Fit) -> str:
    def part(s: Segment) -> str:
        rate = f" + n / {s.bandwidth / 1e9:.3g} GB/s" if s.resolved else ", bandwidth not resolved"
        return f"{s.alpha * 1e6:.3g} us{rate}"

    return "\n".join([*map(part, fit.segments), fit.trust])


def put(table: Table) -> Any:
    """Latency and bandwidth by size, log-log: every pair, their median, and the alpha-beta fit of the median."""
    from matplotlib import pyplot

    sizes = table.dims["size"].values
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 4))
    each = _pairs(_medians(table, "latency")) * 1e6
    middle = np.median(each, axis=0)
    fit = alpha_beta(sizes, middle * 1e-6)
    left.plot(sizes, each.T, color=BLUE, alpha=0.25, linewidth=0.8)
    left.plot(sizes, middle, "o-", color=BLUE, markersize=3.5, label=f"median of {len(each)} pairs")
    left.plot(sizes, fit(sizes) * 1e6, "--", color=RED, label=_fit_text(fit))
    left.set(title="one put and a quiet", ylabel="latency (us)", yscale="log", xlabel="size of a put")
    rate = sizes / _pairs(_medians(table, "put_time")) / 1e9
    right.plot(sizes, rate.T, color=BLUE, alpha=0.25, linewidth=0.8)
    right.plot(sizes, np.median(rate, axis=0), "o-", color=BLUE, markersize=3.5, label="several puts, one quiet")
    right.plot(sizes, sizes / middle * 1e-3, "s:", color=GREEN, markersize=3.5, label="one put, one quiet")
    right.set(title="bandwidth", ylabel="bandwidth (GB/s)", yscale="log", xlabel="size of a put")
    for axis in (left, right):
        byte_axis(axis, sizes)
        axis.legend()
    return figure


def put_heatmap(table: Table) -> Any:
    """Rank x rank: latency of the smallest put and bandwidth of the largest."""
    from matplotlib import pyplot

    sizes = table.dims["size"].values
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4.4), layout="compressed")
    latency = _medians(table, "latency")[..., 0] * 1e6
    heat_map(figure, left, latency, f"put of {bytes_text(sizes[0])}", "latency (us)", "origin rank", "target rank")
    rate = sizes[-1] / _medians(table, "put_time")[..., -1] / 1e9
    title = f"puts of {bytes_text(sizes[-1])}"
    heat_map(figure, right, rate, title, "bandwidth (GB/s)", "origin rank", "target rank")
    return figure


def signal(table: Table) -> Any:
    """Round trips by payload, and the message rate of one sender."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 4))
    sizes = table.dims["size"].values
    trips = _pairs(_medians(table, "round_trip")) * 1e6
    sized = sizes > 0
    left.plot(sizes[sized], trips[:, sized].T, color=BLUE, alpha=0.25, linewidth=0.8)
    left.plot(
        sizes[sized], np.median(trips, axis=0)[sized], "o-", color=BLUE, markersize=3.5, label="payload and signal"
    )
    if not sized.all():
        alone = float(np.median(trips[:, ~sized]))
        left.axhline(alone, color=GREY, linestyle=":", label=f"signal alone: {alone:.3g} us")
    left.set(title="there and back", ylabel="round trip (us)", yscale="log", xlabel="payload")
    byte_axis(left, sizes[sized])
    left.legend()
    messages = table.dims["message_size"].values
    rate = 1e-6 / _pairs(_medians(table, "message_time"))
    right.plot(messages, rate.T, color=BLUE, alpha=0.25, linewidth=0.8)
    right.plot(messages, np.median(rate, axis=0), "o-", color=BLUE, label=f"median of {len(rate)} pairs")
    right.set(title="message rate", ylabel="million messages per second", xlabel="payload", ylim=(0, None))
    byte_axis(right, messages)
    right.legend()
    return figure


def signal_heatmap(table: Table) -> Any:
    """Rank x rank: round trip of 8 bytes and a signal."""
    from matplotlib import pyplot

    sizes = table.dims["size"].values
    figure, axis = pyplot.subplots(figsize=(4.8, 4.4), layout="compressed")
    at = int(np.argmax(sizes >= 8))
    trips = _medians(table, "round_trip")[..., at] * 1e6
    title = f"{bytes_text(sizes[at])} and a signal, there and back"
    heat_map(figure, axis, trips, title, "round trip (us)", "rank that begins", "rank that answers")
    return figure


PICTURES = {
    "put": [("put", put), ("put-heatmap", put_heatmap)],
    "signal": [("signal", signal), ("signal-heatmap", signal_heatmap)],
}
