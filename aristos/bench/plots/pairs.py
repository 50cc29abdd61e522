"""Pictures of the suites `put` and `signal`: times and rates by size for every pair, and rank x rank heat maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from ..fit import Fit, Segment, alpha_beta
from ..pairs import bytes_text, medians
from .style import BLUE, GREEN, GREY, ORANGE, RED, SKY, byte_axis, heat_map, subplots

# for each transport three colours: of the pairs and their median, of the fit, of single puts
COLOURS = ((BLUE, RED, GREEN), (ORANGE, GREY, SKY))


def _medians(table: Table, name: str) -> np.ndarray:
    """[origin, target, size] median over iterations; NaN on the diagonal."""
    values = table.variables[name].values
    out = np.full(values.shape[:-1], np.nan)
    ran = np.isfinite(values).any(axis=-1)
    out[ran] = np.nanmedian(values[ran], axis=-1)
    return out


def _transports(table: Table) -> list[tuple[str, np.ndarray, tuple[str, str, str]]]:
    """For each transport (text for labels, [W, W] which pairs use it, colours).

    The text is empty if there is only one transport.
    """
    names = table.variables["transport"].values
    found = [str(name) for name in np.unique(names) if name]
    return [(f"{name}, " if len(found) > 1 else "", names == name, colours) for name, colours in zip(found, COLOURS)]


def _fit_text(fit: Fit) -> str:
    def part(s: Segment) -> str:
        rate = f" + n / {s.bandwidth / 1e9:.3g} GB/s" if s.resolved else ", bandwidth not resolved"
        return f"{s.alpha * 1e6:.3g} us{rate}"

    return "\n".join([*map(part, fit.segments), fit.trust])


def put(table: Table) -> Any:
    """Latency and bandwidth by size, log-log, for each transport.

    Lines: every pair's median, the median over pairs, and the alpha-beta fit of that. A bandwidth is the size over such
    a median, as in the table."""
    sizes = table.dims["size"].values
    figure, (left, right) = subplots(1, 2, figsize=(9.5, 4))
    for text, pairs, (colour, fitted, single) in _transports(table):
        each, middle = medians(table.variables["latency"].values[pairs])
        fit = alpha_beta(sizes, middle)
        left.plot(sizes, each.T * 1e6, color=colour, alpha=0.25, linewidth=0.8)
        label = f"{text}median of {len(each)} pairs"
        left.plot(sizes, middle * 1e6, "o-", color=colour, markersize=3.5, label=label)
        left.plot(sizes, fit(sizes) * 1e6, "--", color=fitted, label=_fit_text(fit))
        several, usual = medians(table.variables["put_time"].values[pairs])
        right.plot(sizes, (sizes / several / 1e9).T, color=colour, alpha=0.25, linewidth=0.8)
        mark = {"markersize": 3.5}
        right.plot(sizes, sizes / usual / 1e9, "o-", color=colour, label=f"{text}several puts, one quiet", **mark)
        right.plot(sizes, sizes / middle / 1e9, "s:", color=single, label=f"{text}one put, one quiet", **mark)
    left.set(title="one put and a quiet", ylabel="latency (us)", yscale="log", xlabel="size of a put")
    right.set(title="bandwidth", ylabel="bandwidth (GB/s)", yscale="log", xlabel="size of a put")
    for axis in (left, right):
        byte_axis(axis, sizes)
        axis.legend()
    return figure


def put_heatmap(table: Table) -> Any:
    """Rank x rank: latency of the smallest put and bandwidth of the largest."""
    sizes = table.dims["size"].values
    figure, (left, right) = subplots(1, 2, figsize=(9, 4.4), layout="compressed")
    latency = _medians(table, "latency")[..., 0] * 1e6
    heat_map(left, latency, f"put of {bytes_text(sizes[0])}", "latency (us)", "origin rank", "target rank")
    rate = sizes[-1] / _medians(table, "put_time")[..., -1] / 1e9
    title = f"puts of {bytes_text(sizes[-1])}"
    heat_map(right, rate, title, "bandwidth (GB/s)", "origin rank", "target rank")
    return figure


def signal(table: Table) -> Any:
    """Round trips by payload, and the message rate of one sender, for each transport."""
    figure, (left, right) = subplots(1, 2, figsize=(9.5, 4))
    sizes, messages = table.dims["size"].values, table.dims["message_size"].values
    sized = sizes > 0
    for text, pairs, (colour, dotted, _) in _transports(table):
        trips, trip = (each * 1e6 for each in medians(table.variables["round_trip"].values[pairs]))
        left.plot(sizes[sized], trips[:, sized].T, color=colour, alpha=0.25, linewidth=0.8)
        label = f"{text}payload and signal"
        left.plot(sizes[sized], trip[sized], "o-", color=colour, markersize=3.5, label=label)
        if not sized.all():
            alone = float(trip[~sized][0])
            left.axhline(alone, color=dotted, linestyle=":", label=f"{text}signal alone: {alone:.3g} us")
        each, usual = medians(table.variables["message_time"].values[pairs])
        right.plot(messages, (1e-6 / each).T, color=colour, alpha=0.25, linewidth=0.8)
        right.plot(messages, 1e-6 / usual, "o-", color=colour, label=f"{text}median of {len(each)} pairs")
    left.set(title="there and back", ylabel="round trip (us)", yscale="log", xlabel="payload")
    byte_axis(left, sizes[sized])
    right.set(title="message rate", ylabel="million messages per second", xlabel="payload", ylim=(0, None))
    byte_axis(right, messages)
    left.legend()
    right.legend()
    return figure


def signal_heatmap(table: Table) -> Any:
    """Rank x rank: round trip of 8 bytes and a signal."""
    sizes = table.dims["size"].values
    figure, axis = subplots(figsize=(4.8, 4.4), layout="compressed")
    at = int(np.argmax(sizes >= 8))
    trips = _medians(table, "round_trip")[..., at] * 1e6
    title = f"{bytes_text(sizes[at])} and a signal, there and back"
    heat_map(axis, trips, title, "round trip (us)", "rank that begins", "rank that answers")
    return figure


PICTURES = {
    "put": [("put", put), ("put-heatmap", put_heatmap)],
    "signal": [("signal", signal), ("signal-heatmap", signal_heatmap)],
}
