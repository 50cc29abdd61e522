"""Costs of a machine that real calls show, for bench/truth.py: copies, combining, collectives, and calls as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aristos.simulate.machine import Costs

KIB = 1024
COLLECTIVES = 3  # collectives of a bulk call: one for the counts of rows, two for rows


@dataclass(frozen=True)
class Observed:
    """Real calls of a layer on one rank.

    tokens: how many tokens the rank has. row_bytes: bytes of a row. choices: rows that a token combines. moved: rows
    copied to peers. collective_kib: KiB that a bulk call's collectives copy. Times are in ns. dispatch, combine: the
    times of these activities in a fused call. outside: a fused call's time before and after its loop. between: a bulk
    call's time without kernels and copies, on the rank whose kernels and copies take longest.
    """

    tokens: int
    row_bytes: int
    choices: float
    moved: int
    collective_kib: float
    dispatch: float
    combine: float
    outside: float
    between: float


def least(same: Sequence[Observed]) -> Observed:
    """The least value of each time in observations of one layer, because other work only slows calls down."""
    names = ("dispatch", "combine", "outside", "between")
    return replace(same[0], **{name: min(getattr(each, name) for each in same) for name in names})


def costs(given: Costs, observed: Sequence[Observed]) -> Costs:
    """Costs that fit the observed calls best, relative to each call. Costs that calls do not show are those of `given`.

    A call's cost outside of its loop is taken from the layer with the fewest tokens, because its calls vary least.
    """
    copies = _fitted([(o.moved, o.moved * o.row_bytes / KIB, o.dispatch) for o in observed])
    combined = _fitted([(o.tokens, o.tokens * o.choices * o.row_bytes / KIB, o.combine) for o in observed])
    call = max(0.0, min(observed, key=lambda o: o.tokens).outside)
    collective = _fitted([(COLLECTIVES, o.collective_kib, max(0.0, o.between - call)) for o in observed])
    return replace(
        given,
        copy_row=copies[0],
        copy_kib=copies[1],
        combine_token=combined[0],
        combine_kib=combined[1],
        call=call,
        collective=collective[0],
        collective_kib=collective[1],
    )


def _fitted(equations: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(x, y), not negative, for which the equations a x + b y = c have the least sum of squared relative errors.

    equations: (a, b, c) of each.
    """
    table = np.array([each for each in equations if each[2] > 0], float)
    if not len(table):
        return 0.0, 0.0
    scaled, ones = table[:, :2] / table[:, 2:], np.ones(len(table))
    both = np.linalg.lstsq(scaled, ones, rcond=None)[0]
    alone = [float(column @ ones / max(1e-300, column @ column)) for column in scaled.T]
    found = [(float(both[0]), float(both[1])), (alone[0], 0.0), (0.0, alone[1])]
    return min(
        (each for each in found if min(each) >= 0),
        key=lambda each: float(((scaled @ np.array(each) - ones) ** 2).sum()),
    )
