"""Costs of a machine from real calls on it: copies, combining, collectives, and calls outside of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .machine import Costs

KIB = 1024


@dataclass(frozen=True)
class Observed:
    """Real calls of a layer on one rank, and how long a simulation with free calls and collectives says they take.

    tokens: of the rank. row_bytes: of a row. choices: rows that a token combines. moved: rows copied to peers.
    collective_kib: KiB that a bulk call's collectives copy. Times are in ns: dispatch, combine (all of a fused call's),
    fused, bulk (a call's), simulated_fused, simulated_bulk.
    """

    tokens: int
    row_bytes: int
    choices: float
    moved: int
    collective_kib: float
    dispatch: float
    combine: float
    fused: float
    bulk: float
    simulated_fused: float = 0.0
    simulated_bulk: float = 0.0


def rows(costs: Costs, observed: Sequence[Observed]) -> Costs:
    """Costs with the costs of copying and combining rows that fit the observed calls best, relative to each."""
    copies = _fitted([(o.moved, o.moved * o.row_bytes / KIB, o.dispatch) for o in observed])
    combined = _fitted([(o.tokens, o.tokens * o.choices * o.row_bytes / KIB, o.combine) for o in observed])
    return replace(costs, copy_row=copies[0], copy_kib=copies[1], combine_token=combined[0], combine_kib=combined[1])


def calls(costs: Costs, observed: Sequence[Observed], collectives: int = 3) -> Costs:
    """Costs with the costs of calls and collectives that simulated times lack.

    The cost of a call is the median of what simulated fused calls lack. A bulk call has `collectives` collectives.
    """
    call = max(0.0, float(np.median([o.fused - o.simulated_fused for o in observed])))
    lacking = [(float(collectives), o.collective_kib, o.bulk - o.simulated_bulk - call) for o in observed]
    collective, kib = _fitted([(a, b, max(0.0, c)) for a, b, c in lacking])
    return replace(costs, call=call, collective=collective, collective_kib=kib)


def _fitted(equations: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(x, y), not negative, with a x + b y = c for each (a, b, c) with the least sum of squared relative errors."""
    table = np.array([each for each in equations if each[2] > 0], float)
    if not len(table):
        return 0.0, 0.0
    scaled, ones = table[:, :2] / table[:, 2:], np.ones(len(table))
    best, least = (0.0, 0.0), np.inf
    both = np.linalg.lstsq(scaled, ones, rcond=None)[0]
    alone = [float(column @ ones / max(1e-300, column @ column)) for column in scaled.T]
    for x, y in ((both[0], both[1]), (alone[0], 0.0), (0.0, alone[1])):
        error = float(((scaled @ [x, y] - ones) ** 2).sum())
        if x >= 0 and y >= 0 and error < least:
            best, least = (float(x), float(y)), error
    return best
