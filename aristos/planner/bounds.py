"""A lower bound on F for problems too large to solve exactly: a mixed-integer programme over cells and sizes.

How few groups can there be if every stage takes at most b us? A group belongs to the smallest cell v that contains it.
Let x[t, v, s] be the devices of kind t in v's groups of size s. Let y[v, s] be the number of those groups, and
z[v, u, s, c] the number of those groups that have c devices in v's child u. Every partition obeys

    sum over v, s of x[t, v, s] = devices of kind t           x[t, v, s] <= devices of kind t * y[v, s]
    sum over t of x[t, v, s] = s y[v, s]                      x = 0 where comm[t, v, s] + least pi > b
    sum over t of memory[t] x[t, v, s] >= experts y[v, s]
    sum over t of (rate[t] - layer_cost / (b - comm[t, v, s])) x[t, v, s] >= 0        (`literal`: layer_cost / s)
    sum over t in u of x[t, v, s] = sum over c of c z[v, u, s, c]      z = 0 where part[u][s, c] + least pi > b
    sum over c of z[v, u, s, c] <= y[v, s]                    sum over u, c of z[v, u, s, c] >= 2 y[v, s]

where y and the sums over s of z are whole numbers. comm and part come from `reach.py`. The fourth line says that a
group's rates suffice to compute pi in the time b - comm. The least sum of y is k(b), which falls as b grows. T_rho
grows with k. A partition of k groups with F < f has stages of less than b = (f - T_rho(k)) / kappa us. If for every k
stages of at most b us need more than k groups, no partition has F < f. The bound is the largest such f that bisection
finds. The solver is HiGHS. The bound that it proves is used, not its solution, so a time limit can make k(b) lower but
not wrong.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EnvironmentProblem
from .problem import Problem
from .terms import pi_us, rate_each

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
TIGHT = 1e-3  # relative width at which bisection ends
ROUNDING = 1e-6  # error of the solver in a count of groups
FINEST = 1e-6  # the smallest coefficient, relative to the largest of its row
SLACK = 1e-7  # relative; added to stages, because solvers have tolerances
CALL_SECONDS = {False: 20.0, True: 6.0}  # time limit of one programme; the key says whether counts are whole


@dataclass(frozen=True)
class Kind:
    """Devices that the programme does not distinguish. number: how many the whole cluster has."""

    number: int
    rate: float
    memory: float


@dataclass(frozen=True)
class Part:
    """How the groups of a cell may lie in equal children of the cell. place: a child's index in `Programme.places`.

    number: how many such children the cell has. low, high: [counts] the fewest and the most devices in a child
    for which a column z stands. cost: [bins, counts] lower bound on a group's largest C, us. memory, rate: [counts] the
    most that this many devices of a child have together.
    """

    place: int
    number: int
    low: Counts
    high: Counts
    cost: Floats
    memory: Floats
    rate: Floats


@dataclass(frozen=True)
class EqualCells:
    """One cell, which may stand for several equal cells. number: how many cells it stands for. size: devices in one.

    low, high: [bins] range of group sizes.
    fastest: [bins] the sum of rates of the `high` fastest devices. quickest: [bins] the mean rate of the `low` fastest.
    comm: by kind, [bins] lower bound on C of a device of that kind, us. parts: the cell's children, one entry for equal
    children; empty if no finer structure is known.
    """

    number: int
    size: int
    low: Counts
    high: Counts
    fastest: Floats
    quickest: Floats
    comm: dict[int, Floats]
    parts: list[Part]


@dataclass
class Programme:
    """The programme that computes k(b) for one problem, as a linear relaxation or with whole counts."""

    problem: Problem
    grows: bool
    kinds: list[Kind]
    places: list[EqualCells]
    until: float = math.inf  # deadline, of time.monotonic
    known: dict[bool, list[tuple[float, int]]] = field(default_factory=lambda: {False: [], True: []})

    def fewest(self, b: float, enough: int, whole: bool) -> int:
        """Lower bound on the number of groups if stages take at most b us; `enough` if no such partition exists."""
        known = self.known[whole]
        least = max((k for at, k in known if at >= b), default=1)
        if least >= enough:
            return least
        k = max(least, self._build(b * (1 + SLACK)).least(enough, self.until, whole))
        known.append((b, k))
        return k

    def _build(self, b: float) -> _Model:
        model = _Model()
        uses: list[list[tuple[int, float]]] = [[] for _ in self.kinds]  # how many devices of each kind the groups use
        for place in self.places:
            sums: list[dict[int, list[tuple[int, float]]]] = [{} for _ in place.parts]
            for s in range(len(place.low)):
                self._add_groups(model, b, place, s, uses, sums)
            for part, by_count in zip(place.parts, sums):
                for entries in by_count.values():
                    total = model.column(0.0, self.places[part.place].number * self.places[part.place].size, whole=True)
                    model.row(0.0, 0.0, [*entries, (total, -1.0)])
        for kind, used in zip(self.kinds, uses):
            model.row(kind.number, kind.number, used)
        return model

    def _add_groups(self, model: _Model, b: float, place: EqualCells, s: int, uses, sums) -> None:
        """Add the columns and rows of a place's groups whose sizes lie in bin s, if such groups are possible.

        uses, sums: the lists (column, coefficient) that this method extends."""
        p, low, high = self.problem, float(place.low[s]), float(place.high[s])
        least_pi = pi_us(p.layer_cost, 1, place.quickest[s] if self.grows else place.fastest[s], self.grows)
        spare = {}  # by kind: a device's rate minus the rate that pi needs of each device
        for t, comm in place.comm.items():
            left = b - comm[s]
            if left >= least_pi:
                need = rate_each(p.layer_cost, high, left, self.grows) if left > 0 else 0.0
                spare[t] = self.kinds[t].rate - need
        spare = balanced(spare, high)
        here = list(spare)
        if sum(self.kinds[t].number for t in here) < low:
            return
        count = model.column(1.0, place.number * (place.size // int(low)), whole=True)
        x = {t: model.column(0.0, self.kinds[t].number, whole=self.kinds[t].number < low) for t in here}
        devices = [(j, 1.0) for j in x.values()]
        model.row(0.0, math.inf, [*devices, (count, -low)])
        if high > low:
            model.row(-math.inf, 0.0, [*devices, (count, -high)])
        else:
            model.row(-math.inf, 0.0, [*devices, (count, -low)])
        model.row(0.0, math.inf, [*((j, self.kinds[t].memory) for t, j in x.items()), (count, -float(p.experts))])
        for t, j in x.items():
            uses[t].append((j, 1.0))
            model.row(-math.inf, 0.0, [(j, 1.0), (count, -min(float(self.kinds[t].number), high))])
        if min(spare.values()) < 0:
            model.row(0.0, math.inf, [(x[t], each) for t, each in spare.items()])
        if place.parts:
            self._add_parts(model, b - least_pi, place, s, count, x, sums)

    def _add_parts(
        self, model: _Model, most: float, place: EqualCells, s: int, count: int, x: dict[int, int], sums
    ) -> None:
        """Add the columns that say how a place's groups lie in the place's children."""
        every = []
        for part, by_count in zip(place.parts, sums):
            child = self.places[part.place]
            z = []
            for c in np.flatnonzero(part.cost[s] <= most):
                j = model.column(0.0, child.number * (child.size // int(part.low[c])))
                z.append((j, int(c)))
                by_count.setdefault(int(c), []).append((j, 1.0))
            mine = [t for t in child.comm if t in x]
            held = [(x[t], -1.0) for t in mine]
            if z or mine:
                model.row(0.0, math.inf, [*((j, float(part.high[c])) for j, c in z), *held])
                model.row(-math.inf, 0.0, [*((j, float(part.low[c])) for j, c in z), *held])
            for most_of, of in (
                (part.memory, [self.kinds[t].memory for t in mine]),
                (part.rate, [self.kinds[t].rate for t in mine]),
            ):
                if len(set(of)) > 1:
                    top = max(of)
                    best = [(j, max(float(most_of[c]) / top, FINEST)) for j, c in z]
                    taken = [(x[t], -each / top) for t, each in zip(mine, of) if each >= FINEST * top]
                    model.row(0.0, math.inf, [*best, *taken])
            if z:
                model.row(-math.inf, 0.0, [*((j, 1.0) for j, _ in z), (count, -float(part.number))])
            every += [(j, 1.0) for j, _ in z]
        model.row(0.0, math.inf, [*every, (count, -2.0)])


def balanced(spare: dict[int, float], size: float) -> dict[int, float]:
    """Spare rates by kind, divided by the largest lack. A lack is a negative spare rate, without its sign.

    After the division, values are large compared with the solver's tolerances.

    A kind that lacks more than all other devices of a group of `size` can spare is left out, because no group can hold
    it. A spare rate above what all other devices of a group can lack together is lowered to that amount. So no sum
    that was at least 0 becomes negative. Values smaller than FINEST are rounded up.
    """
    most = (size - 1) * max(0.0, *spare.values()) if spare else 0.0
    kept = {t: each for t, each in spare.items() if each >= -most}
    lack = -min(kept.values(), default=0.0)
    if lack <= 0:
        return dict.fromkeys(kept, 0.0)
    found = {t: min(each / lack, size - 1) for t, each in kept.items()}
    return {t: (0.0 if each <= 0 else FINEST) if abs(each) < FINEST else each for t, each in found.items()}


@cache
def solver() -> Any:
    """The HiGHS module. Some versions print a banner on stdout, where a command's JSON goes; the banner is discarded.

    Raises EnvironmentProblem if HiGHS is not installed.
    """
    try:
        import highspy
    except ImportError:
        raise EnvironmentProblem("highspy is not installed: pip install 'aristos[plan]'") from None
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        highspy.Highs()
        ctypes.CDLL(None).fflush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
    return highspy


class _Model:
    """Collects columns and rows, and passes them to HiGHS at once."""

    def __init__(self) -> None:
        self.columns: list[tuple[float, float, bool]] = []
        self.rows: list[tuple[float, float, list[tuple[int, float]]]] = []

    def column(self, cost: float, upper: float, whole: bool = False) -> int:
        self.columns.append((cost, upper, whole))
        return len(self.columns) - 1

    def row(self, low: float, high: float, entries: list[tuple[int, float]]) -> None:
        self.rows.append((low, high, entries))

    def least(self, enough: int, until: float, whole: bool) -> int:
        """Lower bound on the sum of costs, rounded up; `enough` if no solution exists."""
        if not self.columns:
            return enough
        cost, upper, integer = zip(*self.columns)
        low, high, rows = zip(*self.rows)
        index, value = zip(*(entry for row in rows for entry in row))
        highspy = solver()
        highs = highspy.Highs()
        highs.setOptionValue("output_flag", False)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(cost), len(low)
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = np.array(cost, float), np.zeros(len(cost)), np.array(upper, float)
        lp.row_lower_, lp.row_upper_ = np.array(low, float), np.array(high, float)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        lp.a_matrix_.index_, lp.a_matrix_.value_ = np.array(index, np.int32), np.array(value, float)
        if whole:
            kinds = highspy.HighsVarType
            lp.integrality_ = [kinds.kInteger if each else kinds.kContinuous for each in integer]
        highs.setOptionValue("threads", 1)
        highs.setOptionValue("random_seed", 0)
        highs.setOptionValue("mip_rel_gap", 0.0)
        highs.setOptionValue("mip_abs_gap", 0.999)  # counts are whole
        highs.setOptionValue("time_limit", max(0.05, min(CALL_SECONDS[whole], until - time.monotonic())))
        highs.passModel(lp)
        highs.run()
        status = highs.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return enough
        info = highs.getInfo()
        bound = info.mip_dual_bound if whole else info.objective_function_value
        if not whole and status != highspy.HighsModelStatus.kOptimal:
            return 1
        return max(1, math.ceil(bound - ROUNDING)) if math.isfinite(bound) else 1


def lower_bound(
    fewest: Callable[[float, int, int], int],
    reduce_us: Callable[[int], float],
    kappa: float,
    most: int,
    low: float,
    high: float,
    until: float,
) -> float:
    """The largest number f found in low..high such that no partition costs less than f.

    fewest(b, k, enough): lower bound on the number of groups with stages of at most b us, or `enough` if no such groups
    exist; a result of k or less need not be the best bound, because only results above k are used. reduce_us(k): T_rho,
    which grows with k. most: the most groups that memory allows. low: a known bound. high: F of a partition.
    """
    if high <= low or kappa <= 0:
        return min(low, high)
    almost = high * (1 - 1e-5)
    if almost > low and impossible(almost, fewest, reduce_us, kappa, most):
        return almost
    while high - low > TIGHT * high and time.monotonic() < until:
        middle = (low + high) / 2
        if impossible(middle, fewest, reduce_us, kappa, most):
            low = middle
        else:
            high = middle
    return low


def impossible(
    f: float, fewest: Callable[[float, int, int], int], reduce_us: Callable[[int], float], kappa: float, most: int
) -> bool:
    """Whether it is proved that no partition costs less than f. The parameters are those of `lower_bound`."""
    k = 1
    while k <= most:
        b = (f - reduce_us(k)) / kappa
        if b <= 0:
            return True
        need = fewest(b, k, most + 1)
        if need <= k:
            return False
        k = need  # such stages need at least `need` groups, whose all-reduce leaves less time for stages: check again
    return True
