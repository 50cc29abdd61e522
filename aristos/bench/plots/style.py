"""The style of all pictures: the palette, marks, and helpers for axes in bytes, ECDFs and heat maps."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...results import Run, Table

STYLE: Any = {
    "figure.dpi": 130,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}

# Colours that colour-blind readers can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
SKY = "#56B4E9"
OF = {
    "fused": BLUE,
    "bulk": ORANGE,
    "one-sided": BLUE,
    "Alltoall": GREEN,
    "Alltoallv": ORANGE,
    "aristos": BLUE,
    "BLAS": ORANGE,
}
MARKS = {"fused": "o", "bulk": "s", "one-sided": "o", "Alltoall": "^", "Alltoallv": "s", "aristos": "o", "BLAS": "s"}


def subplots(lines: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Matplotlib's function of that name. A program that draws nothing does not import Matplotlib."""
    from matplotlib import pyplot

    return pyplot.subplots(lines, columns, **options)


def footer(figure: Any, run: Run, table: Table) -> None:
    """Write in small print below a picture where its numbers are from, and how they were disturbed."""
    a, disturbed = run.attributes, table.attributes.get("disturbed", "")
    ranks = f"{a['ranks']} ranks" if "ranks" in a else ""
    kernels = [str(table.attributes.get(name, "")) for name in ("dtype", "isa")]
    facts = (f"run {run.name}", a.get("gpu") or a.get("cpu", ""), *kernels, ranks, a.get("mpi_library", ""))
    text = " · ".join(filter(None, facts))
    text = textwrap.fill(text, int(figure.get_figwidth() * 17))  # characters of this size in a line
    text += "\n" if disturbed else ""  # room for the line about disturbance
    figure.supxlabel(text, fontsize=6.5, color=GREY, x=0.99, ha="right")
    if disturbed:
        figure.text(
            0.99, 0.002, f"hatched, hollow or ~: disturbed, {disturbed}", fontsize=7, color=RED, ha="right", va="bottom"
        )


def beside(first: Any, second: Any) -> Any:
    """One figure that shows two figures side by side. Panels at the same place get the same limits of y."""
    from matplotlib import pyplot
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for one, other in zip(first.axes, second.axes):
        if len(first.axes) == len(second.axes) and not one.images and not other.images:
            limits = [*one.get_ylim(), *other.get_ylim()]
            for axis in (one, other):
                axis.set_ylim(min(limits), max(limits))
    pictures = []
    for figure in (first, second):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba()).copy())
    high = max(len(each) for each in pictures)
    wide = sum(each.shape[1] for each in pictures)
    whole = np.full((high, wide, 4), 255, np.uint8)
    at = 0
    for each in pictures:
        whole[: len(each), at : at + each.shape[1]] = each
        at += each.shape[1]
    figure = pyplot.figure(figsize=(wide / first.dpi, high / first.dpi), dpi=first.dpi, layout="none")
    figure.figimage(whole)
    return figure


def hatch(bars: Any, marked: Any) -> None:
    """Hatch the bars of disturbed rows. marked: a truth value for each bar, see `disturbance.doubtful`."""
    for bar, each in zip(bars, np.atleast_1d(marked)):
        if each:
            bar.set(hatch="////", edgecolor="white")


def legend(figure: Any, colours: dict[str, str], columns: int = 3) -> None:
    """A legend of plain colours at the upper right, because some bars may be hatched. colours: label -> colour."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=columns)


def hollow(axis: Any, x: ArrayLike, y: ArrayLike, marked: np.ndarray, line: dict[str, Any]) -> None:
    """Draw the points of disturbed rows hollow, over the points of a line that is already drawn.

    line: the arguments with which the line was drawn.
    """
    if marked.any():
        at, values = np.asarray(x)[marked], np.asarray(y)[marked]
        look = {name: line[name] for name in ("color", "marker", "markersize")}
        axis.plot(at, values, linestyle="none", markerfacecolor="white", zorder=3, **look)


def byte_axis(axis: Any, sizes: ArrayLike) -> None:
    """Make the x axis logarithmic, labelled 8 B, 64 B, .. 4 MiB."""
    from ..pairs import bytes_text

    n = np.asarray(sizes, float)
    powers = np.arange(np.ceil(np.log2(n.min())), np.floor(np.log2(n.max())) + 1)
    step = max(1, -(-len(powers) // 8))
    ticks = 2.0 ** powers[::step]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [bytes_text(t) for t in ticks], rotation=30, ha="right")
    axis.minorticks_off()


def count_axis(axis: Any, counts: np.ndarray, label: str) -> None:
    """Make the x axis logarithmic, labelled with the counts."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(n) for n in counts])
    axis.minorticks_off()
    axis.set_xlabel(label)


def plain_log(axis: Any) -> None:
    """Label a logarithmic axis (`xaxis` or `yaxis`) with plain numbers (0.5, 20), not powers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def ecdf(axis: Any, values: ArrayLike, name: str, label: str, colour: str | None = None) -> None:
    """Draw the share of values that are at most x. colour: by default that of `name`."""
    v = np.asarray(values, float)
    v = v[np.isfinite(v)]
    axis.ecdf(
        v, label=label, color=colour or OF.get(name, GREY), linewidth=1.6, linestyle="-" if name != "bulk" else "--"
    )
    axis.set_ylim(0, 1.01)


def slowest(times: np.ndarray) -> np.ndarray:
    """times [..., rank, iteration] -> [..., iteration] of the slowest rank; NaN for iterations that were not run."""
    return times.max(axis=-2)


def heat_map(
    axis: Any, values: np.ndarray, title: str, unit: str, rows: str, columns: str, most: float | None = None
) -> Any:
    """Draw rank x rank values as colours. Returns the image. If there are few ranks, cells also have numbers.

    A cell with NaN, for example on the diagonal, is grey. unit: '' for a map without a bar of colours. most: value of
    the last colour, for maps that are compared; default the largest value.
    """
    import matplotlib

    shades = matplotlib.colormaps["viridis"].with_extremes(bad="#eeeeee")
    # Colours begin at zero, so that a small relative difference is a small difference of colours.
    image = axis.imshow(np.ma.masked_invalid(values), cmap=shades, vmin=0, vmax=most)
    axis.grid(False)
    axis.set(title=title, ylabel=rows, xlabel=columns)
    world = len(values)
    ticks = range(0, world, 1 if world <= 9 else 4 if world <= 32 else 32)
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)
    if world <= 12:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = image.norm(value) < 0.6
                look = {"color": "white" if dark else "black", "fontsize": 8 if world <= 6 else 6.5}
                axis.text(j, i, f"{value:.3g}", ha="center", va="center", **look)
    if unit:
        axis.figure.colorbar(image, ax=axis, label=unit, shrink=0.8)
    return image
