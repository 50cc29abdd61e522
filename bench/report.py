"""The run as Markdown: times, ratios, and the asked figures beside the reached ones.

The text goes between two marker comments of a page, which name the family of CPUs: another family adds a section, and
the prose around the sections stays. All numbers are computed by figures.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import Figure, Spread, gflops, peak_share, ratio
from peers import BFLOAT16_BOUND, ENTRIES, FLOAT32_BOUND
from rounds import ShapeResults

BEGIN = "<!-- compare:begin {} (written by bench/compare.py; edit outside the markers) -->"
END = "<!-- compare:end {} -->"
PAGE = "# Performance\n\nWritten by `make compare`.\n"


def markdown(shapes: list[ShapeResults], asked: list[Figure], facts: list[str], picture: str | None) -> str:
    """The text between the markers."""
    parts = ["\n".join(f"- {fact}" for fact in facts), _times(shapes), _ratios(shapes), _asked(asked)]
    notes = _notes(shapes)
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    if picture:
        parts.append(f"![The comparison as bars]({picture})")
    return "\n\n".join(parts) + "\n"


def splice(path: Path, text: str, family: str) -> None:
    """Put the text between the markers of a family on the page; a new family's section comes after the others.

    A page without sections gets them at its end; a missing page is created. Raises ValueError if there is one marker
    only.
    """
    page = path.read_text(encoding="utf-8") if path.exists() else PAGE
    first, last = BEGIN.format(family), END.format(family)
    begin, end = page.find(first), page.find(last)
    if (begin < 0) != (end < 0) or begin > end:
        raise ValueError(f"{path} must have both markers or none, in order: {first!r} and {last!r}")
    if begin < 0:
        others = [found.end() for found in re.finditer(re.escape(END).replace(r"\{\}", ".*"), page)]
        at = max(others, default=len(page.rstrip("\n")))
        page = f"{page[:at]}\n\n## On {family}\n\n{first}\n{last}{page[at:]}"
        begin, end = page.find(first), page.find(last)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(page[: begin + len(first)] + f"\n\n{text}\n" + page[end:], encoding="utf-8")
    aside.replace(path)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _peers(shapes: list[ShapeResults]) -> list[str]:
    return [name for name in ENTRIES if any(name in m.times for m in shapes)]


def _label(m: ShapeResults) -> str:
    return str(m.shape) if m.shape.name == str(m.shape) else f"{m.shape.name} {m.shape}"


def _times(shapes: list[ShapeResults]) -> str:
    """The table of milliseconds and GFLOP/s per rank."""
    peers = _peers(shapes)
    head = ["tokens/H/F/E/k", *(ENTRIES[p].title for p in peers), "FMA peak", "busiest rank"]
    rows = []
    for m in shapes:
        cells = [_cell(m, p) for p in peers]
        peak = "-" if m.peak is None else f"({np.median(m.peak):.0f})"
        share = f"{100 * m.busiest.mean() / m.mean.mean() - 100:+.1f} %" if m.iters else "-"
        rows.append([_label(m), *cells, peak, share])
    says = (
        "Milliseconds of a call, in brackets GFLOP/s per rank: the slowest rank of each call, the median of a turn's "
        "calls, the median over rounds. Last column: rows of the rank with most of them, over the mean."
    )
    return f"{says}\n\n{table(head, rows)}"


def _cell(m: ShapeResults, peer: str) -> str:
    rate = gflops(m, peer)
    if rate is None:
        return "wrong" if peer in m.wrong() else "-"
    ms = 1e3 * float(np.median(m.turns(peer)))
    return f"{number(ms)} ({rate.median:.0f})"


def _ratios(shapes: list[ShapeResults]) -> str:
    """The table of times over that of Aristos fused, and of shares of the peak."""
    peers = [p for p in _peers(shapes) if p != "fused"]
    head = ["shape", *(ENTRIES[p].title for p in peers), "fused, share of peak", "bulk, share of peak", "error"]
    rows = []
    for m in shapes:
        shares = [peak_share(m, p) for p in ("fused", "bulk")]
        percents = [_spread(s, lambda v: f"{100 * v:.1f}", " %") for s in shares]
        exact = [error for peer, error in m.errors.items() if ENTRIES[peer].bound == FLOAT32_BOUND]
        error = f"{max(exact):.1e}" if exact else "-"
        rows.append([m.shape.name, *(_spread(ratio(m, p), _two, "") for p in peers), *percents, error])
    says = (
        "Time of each peer over that of Aristos fused in the same round: median (least - most) over rounds. Share of "
        "peak: what the busiest rank's GEMMs take at the FMA peak, measured in the same round, over the "
        f"time of the call. Error: the largest of any float32 peer, relative to float64 (bound {FLOAT32_BOUND:.0e}; "
        f"bfloat16: {BFLOAT16_BOUND:.0e})."
    )
    return f"{says}\n\n{table(head, rows)}"


def _asked(asked: list[Figure]) -> str:
    rows = []
    for figure in asked:
        sign = "≥" if figure.at_least else "<"
        bound = f"{sign} {figure.asked:g} {figure.unit}".rstrip()
        if figure.reached is None:
            rows.append([figure.what, bound, figure.why, "not measured"])
        else:
            unit = f" {figure.unit}" if figure.unit else ""
            rows.append([figure.what, bound, _spread(figure.reached, number, unit), "yes" if figure.met else "no"])
    met = sum(figure.met for figure in asked)
    head = ["figure", "asked", "reached", "met"]
    return f"Asked and reached: {met} of {len(asked)} met.\n\n{table(head, rows)}"


def _notes(shapes: list[ShapeResults]) -> list[str]:
    """Remarks that qualify the numbers."""
    notes = []
    busiest = max((load for m in shapes for load in m.load), default=0.0)
    if shapes and busiest > shapes[0].world + 1:
        notes.append(
            f"The machine was not this run's alone (load average up to {busiest:.1f} with {shapes[0].world} ranks): "
            "distrust the milliseconds and the shares of peak, and the ratios where least and most lie far apart."
        )
    for peer in ENTRIES:
        whys = {m.absent[peer] for m in shapes if peer in m.absent}
        notes += [f"{ENTRIES[peer].title} did not run: {why}." for why in sorted(whys)]
        wrong = [m.shape.name for m in shapes if peer in m.wrong()]
        if wrong:
            notes.append(f"{ENTRIES[peer].title} gave WRONG outputs on {', '.join(wrong)} and was not timed there.")
    bits = [m.same_bits for m in shapes if m.same_bits is not None]
    if bits:
        notes.append(f"Fused and bulk outputs are {'equal' if all(bits) else 'NOT EQUAL'} bit for bit on every shape.")
    notes.append(
        "Every peer computes the same rows: no padding, no drops, routing from outside, one thread, float32 or the "
        "dtype in its title."
    )
    return notes


def number(value: float) -> str:
    """Three significant digits; an exponent for tiny values only."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _spread(spread: Spread | None, show: Callable[[float], str], unit: str) -> str:
    if spread is None:
        return "-"
    if spread.low == spread.high:
        return show(spread.median) + unit
    return f"{show(spread.median)}{unit} ({show(spread.low)} - {show(spread.high)})"
