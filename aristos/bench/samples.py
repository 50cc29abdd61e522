"""The rows of a results table: coordinates, the times of the calls, and whether they were disturbed.

A time is the slowest rank's time; for pairs of ranks, each pair has its own times. `disturbance.mark` decides whether a
row is disturbed, by the shares of cores that the table holds beside the times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernel_cache.texts import shown

from ..errors import ResultsError
from ..results import Table, Variable
from .disturbance import CORE_SHARE, PAIR_SHARE, mark, mark_pairs
from .pairs import bytes_of, bytes_text

SAMPLES = ("iteration", "turn", "pass", "step", "repeat", "round", "call", "sample", "put")  # dimensions of repetition
PAIR = ("origin", "target")
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """One row. key: (dimension, coordinate) pairs as text. place: the indices of these coordinates.

    seconds: [group, sample], NaN for samples that were not taken. A group is a pair of ranks; rows without pairs have
    one group. disturbed: what `disturbance.mark` says, or ''.
    """

    key: Key
    seconds: NDArray[np.float64]
    disturbed: str = ""
    place: tuple[int, ...] = ()

    @property
    def median(self) -> float:
        return float(np.median(np.nanmedian(self.seconds, axis=1)))

    @property
    def calls(self) -> int:
        """The number of samples of the group that has the fewest."""
        return int(np.isfinite(self.seconds).sum(axis=1).min())


def timed(table: Table) -> dict[str, Variable]:
    """The variables of a table that can be compared: those in seconds that have a dimension of repetition.

    If no variable in seconds has such a dimension, all variables in seconds can be compared.
    Raises ResultsError if a variable does not fit the table's dimensions, because the file is damaged.
    """
    for name, each in table.variables.items():
        shape = tuple(np.shape(table.dims[dim].values) if dim in table.dims else None for dim in each.dims)
        if shape != tuple((length,) for length in each.values.shape) or len(set(each.dims)) < len(each.dims):
            raise ResultsError(
                f"the table {shown(table.name)!r} is damaged: {shown(name)!r} does not fit its dimensions"
            )
    seconds = {
        name: each
        for name, each in table.variables.items()
        if each.units == "s" and each.values.size and each.values.dtype.kind in "iufb"
    }
    sampled = {name: each for name, each in seconds.items() if set(each.dims) & set(SAMPLES)}
    return sampled or seconds


def rows(table: Table, variable: Variable) -> Iterator[Row]:
    """The rows of a variable that have samples."""
    dims = variable.dims
    groups = PAIR if set(PAIR) <= set(dims) else tuple(name for name in dims if name == "rank")
    samples = tuple(name for name in dims if name in SAMPLES)
    given = tuple(name for name in dims if name not in (*samples, *groups))
    order = (*given, *groups, *samples)
    shape = tuple(len(table.dims[name].values) for name in order)
    places, inner = shape[: len(given)], shape[len(given) :]
    flat = (*places, int(np.prod(inner[: len(groups)])), int(np.prod(inner[len(groups) :])))
    seconds = _ordered(variable, order).reshape(flat)
    seconds = np.where(np.isfinite(seconds), seconds, np.nan)
    core = None if groups == PAIR else _shares(table, order, shape, flat)
    ends = _ends(table, given) if groups == PAIR else None
    for place in np.ndindex(places):
        each = seconds[place]
        if groups == PAIR:
            ran = np.isfinite(each).any(axis=1)
            marked = mark_pairs(ends[place], ran.reshape(inner[:2])) if ends is not None and ran.any() else {}
            each = each[ran]
        else:
            ran = np.isfinite(each).all(axis=0)  # a call for which some rank has no time was not run
            had = None if core is None else core[place][:, ran]
            with np.errstate(invalid="ignore", divide="ignore"):  # a wait may have taken no time
                marked = mark(had, *([each[:, ran]] if len(samples) == 1 else [])) if ran.any() else {}
            each = each[:, ran].max(axis=0, keepdims=True)
        if each.size:
            key = tuple((name, coordinate(table.dims[name], i)) for name, i in zip(given, place))
            yield Row(key, each, str(marked.get("disturbed", "")), place)


def named(key: Key, table: Table) -> str:
    """A row's coordinates in words: `24 tokens, fused`."""
    words = [text if table.dims[name].values.dtype.kind == "U" else f"{name} {text}" for name, text in key]
    return ", ".join(words) or "all"


def _ordered(variable: Variable, order: tuple[str, ...]) -> NDArray[np.float64]:
    """The values with axes in this order; dimensions that the variable lacks have length 1."""
    mine = [name for name in order if name in variable.dims]
    values = np.asarray(variable.values, float).transpose([variable.dims.index(name) for name in mine])
    return values.reshape([values.shape[mine.index(name)] if name in mine else 1 for name in order])


def _shares(
    table: Table, order: tuple[str, ...], shape: tuple[int, ...], flat: tuple[int, ...]
) -> NDArray[np.float64] | None:
    """[..., rank, sample] shares of a core in the calls; None if the table has none over the same ranks and calls."""
    needed = {name for name in order if name in SAMPLES or name == "rank"}
    for each in table.variables.values():
        if each.long_name == CORE_SHARE and needed <= set(each.dims) <= set(order):
            return np.broadcast_to(_ordered(each, order), shape).reshape(flat)
    return None


def _ends(table: Table, given: tuple[str, ...]) -> NDArray[np.float64] | None:
    """[..., origin, target, end] shares of a core; None if the table has none for these rows."""
    for each in table.variables.values():
        if each.long_name == PAIR_SHARE and set(each.dims) == {*given, *PAIR, "end"}:
            return _ordered(each, (*given, *PAIR, "end"))
    return None


def coordinate(coordinates: Variable, i: int) -> str:
    """A coordinate as text: `fused`, `16`, `4 KiB`. Different coordinates have different texts."""
    value = coordinates.values[i]
    unit = coordinates.units if coordinates.units not in ("", "1") else ""
    if coordinates.values.dtype.kind == "U":
        return str(value)
    if unit == "B" and np.isfinite(value) and bytes_of(rounded := bytes_text(float(value))) == value:
        return rounded
    number = f"{value:g}" if coordinates.values.dtype.kind == "f" else str(value)
    if coordinates.values.dtype.kind == "f" and np.isfinite(value) and coordinates.values.dtype.type(number) != value:
        number = str(value)
    return f"{number} {unit}" if unit else number
