"""Draws the comparison. For each dtype, bars show peers' times over that of Aristos fused, on a linear axis from 0.

If an environment has several peers, the bar of a shape shows the fastest of them. figures.py computes all numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from figures import Spread, over_best
from report import OURS
from rounds import ShapeResults

BARS = {  # label -> colour; Aristos's bars, then a bar for each environment
    "Aristos fused": "#1b6ca8",
    "Aristos bulk": "#8ab6d6",
    "numpy": "#e07a3f",
    "torch": "#9a6fb0",
    "deepspeed": "#5b8c5a",
    "jax": "#c9b458",
}
TITLES = {
    "numpy": "Alltoallv + NumPy",
    "torch": "torch, its best of MPI, gloo, mm, grouped_mm, oneDNN packed",
    "deepspeed": "DeepSpeed",
    "jax": "JAX",
}


def draw(shapes: list[ShapeResults], path: Path, family: str) -> None:
    """Write a PNG. Raises ImportError if Matplotlib is not installed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, 1, figsize=(10, 7), layout="constrained")
    for axes, dtype in zip(rows, OURS):
        _bars(axes, shapes, dtype)
    handles = {label: handle for axes in rows for handle, label in zip(*axes.get_legend_handles_labels())}
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    ranks = shapes[0].world if shapes else 0
    figure.suptitle(f"Time of a layer's call over that of Aristos fused: {ranks} ranks, 1 thread each, {family}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def spread(m: ShapeResults, bar: str, dtype: str) -> Spread | None:
    """The time of a bar's peer, or of its environment's fastest peer, divided by that of Aristos fused.

    Returns None if one of the two was not timed.
    """
    ours = OURS[dtype][0]
    if bar.startswith("Aristos"):
        names = [ours if bar.endswith("fused") else {"fused": "bulk", "bf16": "bf16-bulk"}[ours]]
    else:
        names = [name for name in m.timed(dtype, ours=False) if m.entries[name].environment == bar]
    return over_best(m, names, ours)


def _bars(axes: Any, shapes: list[ShapeResults], dtype: str) -> None:
    shown = [bar for bar in BARS if any(spread(m, bar, dtype) for m in shapes)]
    width = 0.8 / max(1, len(shown))
    for i, bar in enumerate(shown):
        found = [(g + (i - (len(shown) - 1) / 2) * width, spread(m, bar, dtype)) for g, m in enumerate(shapes)]
        places = [place for place, s in found if s]
        spreads = [s for _, s in found if s]
        ends = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
        bars = axes.bar(
            places,
            [s.median for s in spreads],
            width,
            yerr=ends,
            color=BARS[bar],
            label=TITLES.get(bar, bar),
            capsize=2,
            error_kw={"linewidth": 0.8},
        )
        axes.bar_label(bars, [f"{s.median:.1f}" for s in spreads], fontsize=8, padding=1)
    axes.axhline(1.0, color=BARS["Aristos fused"], linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(shapes)), [m.shape.label for m in shapes], fontsize=8)
    axes.set_title(f"{dtype} (tokens a rank / H / F / E / k)", fontsize=10)
    axes.set_ylabel("times as long")
    axes.spines[["top", "right"]].set_visible(False)
