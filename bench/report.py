"""A part of the comparison as Markdown: times, ratios, and the goals beside the figures reached.

The text goes between two marker comments of a page, which name the family of CPUs and the part. Each family has a
section, and each part a block in it; the prose around the blocks stays. figures.py computes all numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import Figure, Spread, gflops, peak_share, ratio
from peers import BOUNDS, HIGH, INT8_ROWS, Entry
from rounds import ShapeResults

from aristos.primitives.aside import write_text

BEGIN = "<!-- compare:begin {}: {} (written by bench/compare.py; edit outside the markers) -->"
END = "<!-- compare:end {}: {} -->"
PAGE = "# Performance\n\nWritten by `make compare`.\n"
WIDEST = 10  # the most columns of a table; a wider table is transposed, so that each job has a row
OURS = {  # the entry of Aristos that peers of a dtype are compared with: for layers, products, steps, modules
    "float32": ("fused", "product", "step", "hf"),
    "bfloat16": ("bf16", "product-bf16", "bf16-step", "hf-bf16"),
}
TIMES = (  # docs/performance.md says what these times and errors mean
    "Milliseconds (GFLOP/s per rank), and the largest error (bounds: "
    f"{', '.join(f'{dtype} {bound:.0e}' for dtype, bound in BOUNDS.items())}):"
)
RATIOS = "Time over that of Aristos {}:"
NOT_SEEN = (
    "the time of a model with 6 layers less that of one with 2, divided by 4; a layer has an attention with one head, "
    "and routing and codes of its own. Its output cannot be compared, so its error is not seen."
)


def markdown(
    title: str, shapes: list[ShapeResults], figures: list[Figure], facts: list[str], picture: str | None = None
) -> str:
    """The text between the markers."""
    parts = [f"### {title}", "\n".join(f"- {fact}" for fact in facts), *_tables(shapes)]
    parts += [_goals(figures)] if figures else []
    notes = _notes(shapes)
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    parts += [f"![The comparison as bars]({picture})"] if picture else []
    return "\n\n".join(parts) + "\n"


def splice(path: Path, text: str, family: str, part: str) -> None:
    """Put the text between the markers of a family's part on the page.

    A new part comes after the other parts of its family, a new family's section after those of other families, or at
    the end of a page without sections. A missing page is created. Raises ValueError if only one marker is there.
    """
    page = path.read_text(encoding="utf-8") if path.exists() else PAGE
    first, last = BEGIN.format(family, part), END.format(family, part)
    begin, end = page.find(first), page.find(last)
    if (begin < 0) != (end < 0) or begin > end:
        raise ValueError(f"{path} must have both markers or none, in order: {first!r} and {last!r}")
    if begin < 0:
        of_family, of_any = _ends(page, re.escape(family)), _ends(page, ".*")
        heading = "" if of_family else f"\n\n## On {family}"
        at = max(of_family or of_any or [len(page.rstrip("\n"))])
        page = f"{page[:at]}{heading}\n\n{first}\n{last}{page[at:]}"
        begin, end = page.find(first), page.find(last)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page[: begin + len(first)] + f"\n\n{text}\n" + page[end:])


def _ends(page: str, family: str) -> list[int]:
    return [found.end() for found in re.finditer(f"<!-- compare:end {family}(: .*)? -->", page)]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table. The first column is left-aligned, the others are right-aligned. A wide table is transposed."""
    if len(head) > WIDEST:
        head, *rows = ([*column] for column in zip(head, *rows))
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def entries(shapes: list[ShapeResults]) -> list[Entry]:
    """The peers that were timed on some shape, in the order of their list."""
    known = {name: entry for m in shapes for name, entry in m.entries.items()}
    return [entry for name, entry in known.items() if any(name in m.times for m in shapes)]


def _name(entry: Entry) -> str:
    return entry.title + ("" if entry.dtype == "float32" else f", {entry.dtype}")


def _kind(dtype: str, weights: str = "", **_: str) -> str:
    """Text of the dtype and the type of weights, from a peer's entry or from what it ran."""
    return f"{dtype} with weights of {weights}" if weights else dtype


def _tables(shapes: list[ShapeResults]) -> list[str]:
    """The tables of times and ratios. Each type of codes has its own, and so have peers that round rows to int8."""
    kinds = list(dict.fromkeys(getattr(m.shape, "weights", "") for m in shapes))
    if not any(kinds):
        known = entries(shapes)
        of_modules = any(entry.name in ("hf", "hf-bf16") for entry in known)
        ours = "in transformers with the same dtype" if of_modules else "(fused) with the same dtype"
        return [TIMES, _times(shapes, known), RATIOS.format(ours), _ratios(shapes, known)]
    parts = [TIMES, RATIOS.format("with the same type of weights")]
    for kind in kinds:
        its = [m for m in shapes if getattr(m.shape, "weights", "") == kind]
        known = entries(its)
        wide, rounded = ([e for e in known if e.int8_rows == apart] for apart in (False, True))
        parts += [f"Weights of {kind}, rows of bfloat16:", _times(its, wide), _ratios(its, wide)]
        if rounded:
            says = f"Weights of {kind}, rows that the peer rounds to int8 (bound of its error: {INT8_ROWS:.0e}):"
            parts += [says, _times(its, rounded), _ratios(its, rounded)]
    return parts


def _times(shapes: list[ShapeResults], known: list[Entry]) -> str:
    """The table of milliseconds and GFLOP/s per rank."""
    head = ["peer", *(m.shape.label for m in shapes), "error"]
    rows = []
    for entry in known:
        error = f"{max(m.errors.get(entry.name, 0.0) for m in shapes):.0e}" if entry.checked else "not seen"
        rows.append([_name(entry), *(_cell(m, entry.name) for m in shapes), error])
    if any(entry.int8_rows for entry in known):
        return table(head, rows)
    if any(m.peak is not None for m in shapes):
        peaks = ["-" if m.peak is None else f"({np.median(m.peak):.0f})" for m in shapes]
        rows.append(["float32 FMA peak", *peaks, ""])
    if any(m.world > 1 for m in shapes):
        over = [f"{100 * m.busiest.mean() / m.mean.mean() - 100:+.0f} %" if m.iters else "-" for m in shapes]
        rows.append(["rows of the busiest rank, over the mean", *over, ""])
    return table(head, rows)


def _cell(m: ShapeResults, peer: str) -> str:
    rate = gflops(m, peer)
    if rate is None:
        return "wrong" if peer in m.wrong() else "-"
    ms = 1e3 * float(np.median(m.turns(peer)))
    return f"{number(ms)} ({rate.median:.0f})"


def _ours(entry: Entry, m: ShapeResults) -> str:
    if coded := getattr(m.shape, "weights", ""):
        return str(coded)
    of_layers, *others = OURS[entry.dtype]
    return next((name for name in others if name in m.times), of_layers)


def _ratios(shapes: list[ShapeResults], known: list[Entry]) -> str:
    """The table of times divided by that of Aristos in the same dtype, and of shares of the peak."""
    head = ["peer", *(m.shape.name for m in shapes)]
    rows = []
    for entry in known:
        if all(entry.name == _ours(entry, m) for m in shapes):
            continue
        cells = [_spread(ratio(m, entry.name, _ours(entry, m)), _two, "") for m in shapes]
        rows.append([_name(entry), *cells])
    for title, peer in zip(("Aristos fused, share of peak", *["Aristos, share of peak"] * 3), OURS["float32"]):
        shares = [_spread(peak_share(m, peer), lambda v: f"{100 * v:.0f}", " %") for m in shapes]
        rows += [[title, *shares]] if any(share != "-" for share in shares) else []
    return table(head, rows)


def _goals(figures: list[Figure]) -> str:
    rows = []
    for figure in figures:
        sign = "≥" if figure.at_least else "<"
        bound = f"{sign} {figure.goal:g} {figure.unit}".rstrip()
        if figure.reached is None:
            rows.append([figure.what, bound, figure.why, "not measured"])
        else:
            unit = f" {figure.unit}" if figure.unit else ""
            rows.append([figure.what, bound, _spread(figure.reached, number, unit), "yes" if figure.met else "no"])
    met = sum(figure.met for figure in figures)
    head = ["figure", "goal", "reached", "met"]
    return f"Goals: {met} of {len(figures)} met.\n\n{table(head, rows)}"


def _notes(shapes: list[ShapeResults]) -> list[str]:
    """Remarks that qualify the numbers."""
    notes = []
    busiest = max((load for m in shapes for load in m.load), default=0.0)
    if shapes and busiest > shapes[0].world + 1:
        notes.append(
            f"The machine was not this run's alone (load average up to {busiest:.1f} with {shapes[0].world} ranks): "
            "distrust the milliseconds and the shares of peak, and the ratios where least and most lie far apart."
        )
    reasons: dict[str, list[str]] = {}
    for entry in {name: entry for m in shapes for name, entry in m.entries.items()}.values():
        for why in sorted({m.absent[entry.name] for m in shapes if entry.name in m.absent}):
            reasons.setdefault(why, []).append(_name(entry))
        if entry.bound == HIGH and {m.ran[entry.name]["precision"] for m in shapes if entry.name in m.ran} == {
            "highest"
        }:
            notes.append(f"{_name(entry)} has the kernels of highest precision here: only AMX has others.")
        others = {_kind(**m.ran[entry.name]) for m in shapes if entry.name in m.other_dtype()}
        if others:
            ran, kind = " and ".join(sorted(others)), _kind(entry.dtype, entry.weights)
            notes.append(f"{_name(entry)} computed in {ran} instead of {kind} and was not timed there.")
        wrong = [m.shape.name for m in shapes if entry.name in m.wrong() and entry.name not in m.other_dtype()]
        if wrong:
            notes.append(f"{_name(entry)} gave WRONG outputs on {', '.join(wrong)} and was not timed there.")
    unseen = [entry for entry in entries(shapes) if not entry.checked]
    if unseen:
        isas = {m.ran[entry.name]["isa"] for m in shapes for entry in unseen if entry.name in m.ran}
        notes.append(
            f"{'; '.join(entry.title for entry in unseen)}, kernels for {' and '.join(sorted(isas))}: {NOT_SEEN}"
        )
    notes += [f"Did not run: {'; '.join(names)}: {why}." for why, names in reasons.items()]
    bits = [m.same_bits for m in shapes if m.same_bits is not None]
    if bits:
        notes.append(f"Fused and bulk outputs are {'equal' if all(bits) else 'NOT EQUAL'} bit for bit on every shape.")
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
