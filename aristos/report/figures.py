"""The plots of a page, as the dicts that plotly.js draws: times of a table, and ratios of two sides.

Colours have names here; the page's script gives them values for light and dark pages and for print.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..bench.pairs import bytes_text
from ..bench.samples import Row, coordinate
from ..results import Table, Variable
from . import compared
from .compared import Compared
from .markup import Markup, label

MOST_LINES, MOST_POINTS = 24, 400
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
WIDE = 16  # an axis is logarithmic if its values differ by more than this factor
LOOKS = {  # word -> (colour, symbol)
    compared.FASTER: ("good", "triangle-left"),
    compared.SLOWER: ("bad", "triangle-right"),
    compared.NOISE: ("text", "circle"),
    compared.DISTURBED: ("faint", "circle-open"),
    compared.FEW: ("faint", "diamond-open"),
}

Figure = dict[str, Any]
Plot = Callable[[Figure | None, str], Markup]  # (figure, what it shows) -> the element where the page draws it


def scale(seconds: float) -> tuple[float, str]:
    """(factor, unit) in which a time is shown."""
    return (1e3, "ms") if seconds >= 1e-4 else (1e6, "us")


def times(table: Table, name: str, rows: list[Row]) -> Figure | None:
    """Medians over one dimension, with bars from the 5th to the 95th percentile.

    There is a line for each combination of the other coordinates. Disturbed rows are hollow. `left_out` says how many
    rows are not drawn. None if there is no dimension, or only one row.
    """
    dims = [dim for dim, _ in rows[0].key]
    if not dims or len(rows) < 2:
        return None
    numbers = [dim for dim in dims if table.dims[dim].values.dtype.kind in "iuf"]
    x = dims.index([*numbers, *dims][0])
    lines: dict[str, list[Row]] = {}
    for row in rows[:MOST_POINTS]:
        lines.setdefault(", ".join(words(table, each) for i, each in enumerate(row.key) if i != x), []).append(row)
    factor, unit = scale(min(row.median for row in rows))
    axis = _axis(table.dims[dims[x]], dims[x])
    category = axis["type"] == "category"
    traces = []
    for number, (line, of) in enumerate(list(lines.items())[:MOST_LINES]):
        low, middle, high = (
            [float(np.nanquantile(row.seconds, q)) * factor if q != 0.5 else row.median * factor for row in of]
            for q in (0.05, 0.5, 0.95)
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label(line or name),
                "x": [_x(table.dims[dims[x]], row.place[x], category) for row in of],
                "y": middle,
                "error_y": _whiskers(middle, low, high, thickness=1, width=3),
                "marker": {
                    "size": 8,
                    "symbol": [SYMBOLS[number % len(SYMBOLS)] + ("-open" if row.disturbed else "") for row in of],
                },
                "line": {"width": 1.5},
                "text": [label(row.disturbed and f"disturbed, {row.disturbed}") for row in of],
                "hovertemplate": f"%{{x}}: %{{y:.4g}} {unit}<br>%{{text}}",
            }
        )
    every = [value for trace in traces for value in trace["y"]]
    layout = {
        "xaxis": axis,
        "yaxis": {"title": {"text": label(f"{name} ({unit})")}, **_kind(every, zero=True)},
        "showlegend": len(traces) > 1 or bool(lines.keys() - {""}),
    }
    drawn = sum(len(trace["y"]) for trace in traces)
    left_out = f"the first {drawn} of {len(rows)} rows" if drawn < len(rows) else ""
    return {"data": traces, "layout": layout, "height": 380 + 12 * len(traces), "left_out": left_out}


def ratios(rows: list[Compared]) -> Figure:
    """The ratio of each row with its interval, and a line at 1. The first row is at the top.

    Of more than MOST_POINTS rows, those that changed most are drawn, and `left_out` says so.
    """
    left_out = f"the {MOST_POINTS} of {len(rows)} rows that changed most" if len(rows) > MOST_POINTS else ""
    most = set(sorted(range(len(rows)), key=lambda i: -abs(rows[i].ratio - 1))[:MOST_POINTS])
    rows = [row for i, row in enumerate(rows) if i in most]
    traces = []
    for word, (colour, symbol) in LOOKS.items():
        of = [(i, row) for i, row in enumerate(rows) if row.word == word]
        if of:
            ends = [(row.ratio, row.low or row.ratio, row.high or row.ratio) for _, row in of]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": word,
                    "x": [row.ratio for _, row in of],
                    "y": [i for i, _ in of],
                    "error_x": _whiskers(*zip(*ends), thickness=1.5, width=0, color=colour),
                    "marker": {"size": 9, "symbol": symbol, "color": colour},
                    "text": [label(f"{name(row)}: {row.ratio:.3f} {row.why}") for _, row in of],
                    "hovertemplate": "%{text}",
                }
            )
    layout = {
        "xaxis": {"title": {"text": "second / first"}},
        "yaxis": rows_axis([cut(name(row)) for row in rows]),
        "shapes": [{"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1}}],
        "showlegend": True,
    }
    return {"data": traces, "layout": layout, "height": 150 + 19 * len(rows), "left_out": left_out}


def _whiskers(middle: Sequence[float], low: Sequence[float], high: Sequence[float], **look: Any) -> dict[str, Any]:
    """The lines from low to high through the marks at `middle`."""
    up, down = ([max(0.0, a - b) for a, b in zip(*ends)] for ends in ((high, middle), (middle, low)))
    return {"type": "data", "array": up, "arrayminus": down, **look}


def rows_axis(names: list[str]) -> dict[str, Any]:
    """An axis with a named row for each whole number. The first row is at the top."""
    count = len(names)
    ticks = {"tickvals": list(range(count)), "ticktext": [label(each) for each in names]}
    return {**ticks, "range": [count - 0.5, -0.5], "automargin": True}


def name(row: Compared) -> str:
    """A compared row without its table's name."""
    return row.what.removeprefix(f"{row.table.name}: ")


def cut(said: str, most: int = 44) -> str:
    """The text, without its middle if it is long."""
    return said if len(said) <= most else f"{said[: most // 2 - 1]}…{said[-(most // 2 - 1) :]}"


def words(table: Table, part: tuple[str, str]) -> str:
    """A coordinate as text, such as `fused` or `tokens 16`. part: (dimension, value)."""
    dim, value = part
    return value if table.dims[dim].values.dtype.kind == "U" else f"{dim} {value}"


def _x(of: Variable, i: int, category: bool) -> Any:
    return label(coordinate(of, i)) if category else of.values[i].item()


def _axis(of: Variable, dim: str) -> dict[str, Any]:
    title = label(of.long_name or dim)
    if of.values.dtype.kind == "U" or not np.isfinite(of.values.astype(float)).all():
        return {"title": {"text": title}, "type": "category"}
    if of.units != "B":
        unit = f" ({label(of.units)})" if of.units not in ("", "1") else ""
        return {"title": {"text": title + unit}, **_kind(of.values)}
    axis = {"title": {"text": title}, **_kind(of.values)}
    if axis["type"] == "linear":  # 0 bytes have no place on a logarithmic axis
        return {"title": {"text": title}, "type": "category"}
    some = of.values[:: max(1, len(of.values) // 8)]
    return axis | {"tickvals": some.tolist(), "ticktext": [bytes_text(float(each)) for each in some]}


def _kind(values: Any, zero: bool = False) -> dict[str, Any]:
    """The type of an axis for these values, with plain numbers as ticks of a logarithmic axis.

    zero: whether a linear axis begins at 0.
    """
    found = np.asarray(values, float)
    if not len(found) or found.min() <= 0 or found.max() <= WIDE * found.min():
        return {"type": "linear"} | ({"rangemode": "tozero"} if zero else {})
    first, last = int(np.floor(np.log10(found.min()))), int(np.ceil(np.log10(found.max())))
    steps = (1.0, 2.0, 5.0) if last - first <= 4 else (1.0,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{each:g}" for each in ticks]}
