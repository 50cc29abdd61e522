"""Finds which of the columns CPU Affinity, NUMA Affinity and GPU NUMA ID a row's last cells belong to.

nvidia-smi leaves cells empty (WSL, containers, cgroups), so their order is not enough; tab stops decide. A row that is
still ambiguous is an error.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernel_cache.texts import whole

from ..errors import TopologyError
from . import cpusets

NONE = "N/A"
STOP = 8  # columns between tab stops
Affinity = tuple[str | None, str | None, str | None]  # CPUs, NUMA domain, the GPU's own NUMA domain


@dataclass
class Row:
    """A row of the matrix: its label, its lines (several if it was wrapped), and the width of the wrapping."""

    label: str
    lines: list[str]
    width: int = 0

    @property
    def shown(self) -> str:
        """The row in messages."""
        return " ".join(" ".join(self.lines).split())[:400]

    def texts(self) -> list[str]:
        """Possible texts of the row before it was wrapped, without the label; the likeliest first.

        A line of full width was broken within or between cells; a shorter one has lost white space at its end.
        """
        likely = self.lines[0]
        for before, line in itertools.pairwise(self.lines):
            likely += line if len(before.rstrip().expandtabs()) >= self.width else f" {line}"
        joined = dict.fromkeys([likely, "".join(self.lines), " ".join(self.lines)])
        return [text.lstrip().removeprefix(self.label) for text in joined]


def affinities(
    rows: Sequence[tuple[Row, tuple[str, ...]]], columns: int, is_gpu: Callable[[str], bool]
) -> dict[str, Affinity]:
    """GPU -> its affinities. rows: (row, cells after the links); columns: number of headings, 0 to 3.

    Raises TopologyError.
    """
    found: dict[str, Affinity] = {}
    most = max((len(rest) for row, rest in rows if is_gpu(row.label)), default=0)
    for row, rest in rows:
        if len(rest) > columns or (rest and not is_gpu(row.label) and set(rest) != {NONE}):
            raise TopologyError(f"{len(rest)} cells after the links under {columns} headings: {row.shown!r}")
        if is_gpu(row.label):
            if columns < 3 and len(rest) < most == columns and _ends_early(row, rest):
                raise TopologyError(f"other rows have {most} cells after the links, this one is cut: {row.shown!r}")
            found[row.label] = _assigned(row, rest, columns)
    _uncut(rows, found)
    return found


def _assigned(row: Row, rest: tuple[str, ...], columns: int) -> Affinity:
    values = [None if cell == NONE else cell for cell in rest]
    if len(rest) == columns:
        cpus, numa, gpu_numa = [*values, None, None, None][:3]
    elif not any(values):
        if columns == 3 and not rest:
            raise TopologyError(f"the row ends before GPU NUMA ID, which is N/A at least: {row.shown!r}")
        return None, None, None
    else:
        cpus, numa, gpu_numa = _placed(row, rest, values, columns)
    if gpu_numa is not None and whole(gpu_numa) is None:
        raise TopologyError(f"GPU NUMA ID must be a number or N/A, got {gpu_numa!r} in {row.shown!r}")
    return cpus, numa, gpu_numa


def _placed(row: Row, rest: tuple[str, ...], values: list[str | None], columns: int) -> Affinity:
    """By tab stops. With three headings a row's cells are CPUs, NUMA, an empty one, the GPU's NUMA domain."""
    cells: list[str | None] = [None, None, None]
    places = _stops(row, rest)
    target = {0: 0, 1: 1, 3: 2} if columns == 3 else {0: 0, 1: 1, 2: 1}
    if any(value and not _even(value) for value in values):
        raise TopologyError(f"cells are missing or stick together, and it is unclear which: {row.shown!r}")
    if places is None and len(row.lines) == 1 and columns == 2 and values[0] and "," in values[0] and "-" in values[0]:
        places = [0]  # no NUMA domain looks like this
    if places is None or any(p not in target for p in places) or (columns == 3 and places[-1] != 3):
        raise TopologyError(f"cells are missing, and it is unclear which: {row.shown!r}")
    for place, value in zip(places, values):
        cells[target[place]] = value
    cpus, numa, gpu_numa = cells
    return cpus, numa, gpu_numa


def _ends_early(row: Row, rest: tuple[str, ...]) -> bool:
    """Whether the line was cut before the last columns, rather than having empty cells."""
    if re.search(r"\t\s*$| {8}$", row.lines[-1]):  # X alone has a blank on either side
        return False
    places = _stops(row, rest) if rest else []
    return not places or places[-1] == 0


def _even(numbers: str) -> bool:
    """Whether all ranges have one width, as a domain's threads do; 0-23,48-710 is 0-23,48-71 and 0 stuck together."""
    widths = {int(high or low) - int(low) for low, _, high in (part.partition("-") for part in numbers.split(","))}
    return len(widths) == 1


def _stops(row: Row, rest: tuple[str, ...]) -> list[int] | None:
    """Tab stops between the link cells and each cell of `rest`; None if the white space is lost."""
    if len(row.lines) > 1:
        return None
    line = row.lines[0].rstrip()
    if "\t" in line:
        cells = [cell.strip() for cell in line.split("\t")]
        first = _last_link(cells) + 1
        places = [at - first for at in range(first, len(cells)) if cells[at]]
        return places if tuple(cells[first + p] for p in places) == rest else None
    return _expanded(line.lstrip(), rest)


def _last_link(cells: list[str]) -> int:
    return max((at for at, cell in enumerate(cells) if re.fullmatch(r"X|NV\d+|[A-Z]{3,4}", cell)), default=0)


def _expanded(line: str, rest: tuple[str, ...]) -> list[int] | None:
    """`_stops` if tabs have become spaces: every cell starts at a tab stop, X one column later."""
    words = [(found.start(), found[0]) for found in re.finditer(r"\S+", line)]
    links, tail = words[1 : len(words) - len(rest)], words[len(words) - len(rest) :]
    start = (len(words[0][1]) // STOP + 1) * STOP
    for at, (column, word) in enumerate(links):
        if column != start + at * STOP + (word == "X"):
            return None
    expected, stop, places = start + len(links) * STOP, 0, []
    for column, word in tail:
        if column % STOP or column < expected:
            return None
        stop += (column - expected) // STOP
        places.append(stop)
        stop, expected = stop + 1, column + (len(word) // STOP + 1) * STOP
    return places


def _uncut(rows: Sequence[tuple[Row, tuple[str, ...]]], found: dict[str, Affinity]) -> None:
    """Raise if a row's list of CPUs is the start of another row's and overlaps with it: the line was cut."""
    lists = {cpus for cpus, _, _ in found.values() if cpus is not None}
    for row, _ in rows:
        cpus = found.get(row.label, (None,))[0]
        for other in lists if cpus is not None else ():
            if other != cpus and other.startswith(cpus or "") and cpusets.parse(other) & cpusets.parse(cpus or ""):
                raise TopologyError(f"CPUs {cpus} here, {other} in another row, so this one is cut: {row.shown!r}")
