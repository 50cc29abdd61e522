"""The comparison as one picture: time over that of Aristos fused, and GFLOP/s per rank below the peak.

All numbers are computed by figures.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from figures import FUSED_OVER_BULK, OVER_PEERS, PEERS, gflops, ratio
from peers import ENTRIES
from rounds import ShapeResults

COLORS = {
    "fused": "#1b6ca8",
    "bulk": "#8ab6d6",
    "bf16": "#2a9d5c",
    "bf16-bulk": "#9fd5b5",
    "numpy": "#e07a3f",
    "torch-loop": "#9a6fb0",
    "torch-grouped": "#c9aed6",
}
ASKED = {"bulk": FUSED_OVER_BULK} | dict.fromkeys(PEERS, OVER_PEERS)


def draw(shapes: list[ShapeResults], path: Path) -> None:
    """Write a PNG. Raises ImportError if Matplotlib is not installed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    _ratios(left, shapes)
    _rates(right, shapes)
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _names(shapes: list[ShapeResults]) -> list[str]:
    return [name for name in ENTRIES if any(name in m.times for m in shapes)]


def _place(peers: list[str], i: int) -> tuple[float, float]:
    """(offset, width) of bar i within its shape's group."""
    width = 0.8 / max(1, len(peers))
    return (i - (len(peers) - 1) / 2) * width, width


def _ratios(axes: Any, shapes: list[ShapeResults]) -> None:
    peers = [p for p in _names(shapes) if p != "fused"]
    for i, peer in enumerate(peers):
        offset, width = _place(peers, i)
        for g, m in enumerate(shapes):
            spread = ratio(m, peer)
            if spread is None:
                continue
            ends = [[spread.median - spread.low], [spread.high - spread.median]]
            axes.bar(g + offset, spread.median, width, yerr=ends, color=COLORS[peer], capsize=2)
            asked = ASKED.get(peer, {}).get(m.shape.name)
            if asked:
                axes.hlines(asked, g + offset - width / 2, g + offset + width / 2, color="black", linewidth=2)
    axes.axhline(1.0, color=COLORS["fused"], linewidth=1)
    axes.set_title("Time over Aristos fused, same round (black: asked)")
    _finish(axes, shapes, "times as long; median, least and most")


def _rates(axes: Any, shapes: list[ShapeResults]) -> None:
    peers = _names(shapes)
    for i, peer in enumerate(peers):
        offset, width = _place(peers, i)
        named = False
        for g, m in enumerate(shapes):
            rate = gflops(m, peer)
            if rate is not None:
                label = None if named else ENTRIES[peer].title
                named = True
                axes.bar(g + offset, rate.median, width, color=COLORS[peer], label=label)
    with_peak = [(g, m.peak) for g, m in enumerate(shapes) if m.peak is not None]
    for g, peak in with_peak:
        label = "FMA peak" if g == with_peak[0][0] else None
        axes.hlines(np.median(peak), g - 0.45, g + 0.45, color="black", linestyle="--", label=label)
    axes.set_title("GFLOP/s per rank")
    _finish(axes, shapes, "GFLOP/s per rank, median")


def _finish(axes: Any, shapes: list[ShapeResults], y_label: str) -> None:
    ticks = [f"{m.shape.name}\n{m.shape}" if m.shape.name != str(m.shape) else str(m.shape) for m in shapes]
    axes.set_xticks(range(len(shapes)), ticks, fontsize=7)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
