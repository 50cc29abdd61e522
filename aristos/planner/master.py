"""Chooses the fewest of the known groups such that each device is in exactly one of them.

The linear programme may choose a fraction of a group; its duals are prices of devices. If it may choose only whole
groups, its solutions are partitions. Only the number of groups counts here, not the time of their stages.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bounds import solver

Group = tuple[int, ...]
DEAREST = 1e4  # limit of the cost of leaving a device out, in groups
USED = 1e-6  # a column counts as used from this value on


@dataclass(frozen=True)
class Solved:
    """A solution. value: the number of groups plus the cost of devices left out. prices: [devices] duals.

    whole: whether no device is left out."""

    value: float
    prices: NDArray[np.float64]
    whole: bool


class Master:
    """n devices and groups of them. dear: cost of leaving a device out, in groups; None: no device may be left out."""

    def __init__(self, n: int, groups: list[Group], dear: float | None) -> None:
        self.n, self.dear = n, dear
        self.groups: list[Group] = []
        self._module = solver()
        self._highs = self._module.Highs()
        self._highs.setOptionValue("output_flag", False)
        self._highs.setOptionValue("threads", 1)
        self._highs.setOptionValue("random_seed", 0)
        self._highs.addVars(n, np.zeros(n), np.full(n, np.inf if dear is not None else 0.0))
        for i in range(n):
            self._highs.changeColCost(i, dear or 0.0)
            self._highs.addRow(1.0, 1.0, 1, np.array([i], np.int32), np.ones(1))
        self.add(groups)

    def add(self, groups: list[Group]) -> None:
        """Add groups; the next solution starts from the previous one."""
        self.groups += groups
        count = len(groups)
        if count:
            starts = np.cumsum([0, *map(len, groups)])[:-1].astype(np.int32)
            index = np.array([i for each in groups for i in each], np.int32)
            self._highs.addCols(
                count,
                np.ones(count),
                np.zeros(count),
                np.full(count, np.inf),
                len(index),
                starts,
                index,
                np.ones(len(index)),
            )

    def dearer(self) -> bool:
        """Raise the cost of leaving devices out. Returns False if that cost is at its limit."""
        assert self.dear is not None
        self.dear *= 8
        for i in range(self.n):
            self._highs.changeColCost(i, self.dear)
        return self.dear <= DEAREST

    def solve(self, until: float) -> Solved | None:
        """The linear programme's solution; None if time is up. until: deadline, of time.monotonic."""
        self._limit(until - time.monotonic())
        self._highs.run()
        if self._highs.getModelStatus() != self._module.HighsModelStatus.kOptimal:
            return None
        solution = self._highs.getSolution()
        out = np.array(solution.col_value)[: self.n]
        value = self._highs.getInfo().objective_function_value
        return Solved(value, np.array(solution.row_dual), bool(out.max() < USED))

    def partition(self, seconds: float) -> list[list[int]] | None:
        """The fewest groups that hold each device once; None if none are found in time."""
        columns = self.n + len(self.groups)
        kind = self._module.HighsVarType.kInteger
        self._highs.changeColsIntegrality(columns, np.arange(columns, dtype=np.int32), np.full(columns, kind))
        self._limit(seconds)
        self._highs.run()
        solution = self._highs.getSolution()
        if not solution.value_valid:
            return None
        used = np.flatnonzero(np.array(solution.col_value)[self.n :] > 0.5)
        found = [list(self.groups[at]) for at in used]
        return found if sorted(i for g in found for i in g) == list(range(self.n)) else None

    def _limit(self, seconds: float) -> None:
        """Set a time limit that starts now, although HiGHS counts from the creation of the object."""
        self._highs.setOptionValue("time_limit", self._highs.getRunTime() + max(0.05, seconds))
