"""A lower bound on F for problems too large to prove otherwise: a mixed-integer programme over cells and sizes.

Let every group take at most b us a stage. How few groups can there be? A group belongs to the smallest cell v that
holds it. With x[t, v, s] the devices of type t in groups of size s of v, y[v, s] the number of those groups and
z[v, u, s, c] how many of them have c devices in v's child u, every partition obeys

    sum over v, s of x[t, v, s] = devices of type t           x[t, v, s] <= devices of type t * y[v, s]
    sum over t of x[t, v, s] = s y[v, s]                      x = 0 where comm of t exceeds what pi leaves of b
    sum over t of memory[t] x[t, v, s] >= experts y[v, s]
    sum over t of (rate[t] - layer_cost / (b - comm[t, v, s])) x[t, v, s] >= 0        (`literal`: layer_cost / s)
    sum over t in u of x[t, v, s] = sum over c of c z[v, u, s, c]       z = 0 where part of u exceeds the same
    sum over c of z[v, u, s, c] <= y[v, s]                    sum over u, c of z[v, u, s, c] >= 2 y[v, s]

with y and the sums over s of z whole. comm and part come from `reach.py`; the fourth line says that a group's rates
pay for pi within what communication leaves of b. The least sum of y is k(b), fewer with larger b, and T_rho grows with
k; so F < f is impossible if for every k the longest stage allowed, (f - T_rho(k)) / kappa, needs more than k groups.
The bound is the largest f of that kind that bisection finds. The solver is HiGHS; its own bound counts, not its
solution, so that a time limit costs sharpness and never truth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import cells
from .problem import Problem
from .reach import reach

Floats = NDArray[np.float64]
TIGHT = 1e-3  # relative: bisection ends there
ROUNDING = 1e-6  # of a count of groups, by which a solver may be off


SLACK = 1e-7  # relative, by which stages may be longer: solvers have tolerances
CALL_SECONDS = 6.0  # of one programme


@dataclass(frozen=True)
class Kind:
    """Devices that nothing here tells apart: of one smallest cell, of equal rate, memory and reach."""

    number: int
    rate: float
    memory: float
    comm: dict[int, Floats]  # by the index of a cell that holds it: [sizes + 1]


class Programme:
    """k(b) for one problem, as a linear relaxation or with whole counts."""

    def __init__(self, problem: Problem, grows: bool, until: float) -> None:
        self.problem, self.grows, self.until = problem, grows, until
        whole = cells.find(problem)
        self.reaches = [reach(problem, cell) for cell in whole.walk()]
        self.index = {id(r.cell): v for v, r in enumerate(self.reaches)}
        self.kinds, self.kinds_in = self._kinds()
        self._known: dict[bool, list[tuple[float, int]]] = {False: [], True: []}

    def _kinds(self) -> tuple[list[Kind], list[list[int]]]:
        """Kinds, and for each cell those in it."""
        p = self.problem
        memory = np.minimum(p.memory, p.experts)
        rows: dict[tuple, list[int]] = {}
        comm: dict[int, dict[int, Floats]] = {i: {} for i in range(p.n)}
        bottom = np.zeros(p.n, np.int64)
        for v, r in enumerate(self.reaches):
            for at, i in enumerate(r.cell.members):
                comm[int(i)][v] = r.comm[at]
                bottom[i] = v  # parents come first
        for i in range(p.n):
            key = (bottom[i], p.rate[i], memory[i], *(row.tobytes() for row in comm[i].values()))
            rows.setdefault(key, []).append(i)
        kinds = [Kind(len(m), float(p.rate[m[0]]), float(memory[m[0]]), comm[m[0]]) for m in rows.values()]
        kinds_in = [[t for t, kind in enumerate(kinds) if v in kind.comm] for v in range(len(self.reaches))]
        return kinds, kinds_in

    def fewest(self, b: float, enough: int, whole: bool) -> int:
        """A number of groups that stages of at most b us need at least; `enough` where none are possible."""
        known = self._known[whole]
        least = max((k for at, k in known if at >= b), default=1)
        if least >= enough:
            return least
        k = max(least, self._build(b * (1 + SLACK)).least(enough, self.until, whole))
        known.append((b, k))
        return k

    def _build(self, b: float) -> _Model:
        p, model = self.problem, _Model()
        uses: list[list[tuple[int, float]]] = [[] for _ in self.kinds]  # of each kind's devices, by groups
        for v, r in enumerate(self.reaches):
            members = r.cell.members
            fastest = np.cumsum(np.sort(p.rate[members])[::-1])
            parts: list[dict[int, list[tuple[int, float]]]] = [{} for _ in r.part]
            for s in range(1, len(members) + 1):
                least_pi = p.layer_cost * (s if self.grows else 1) / fastest[s - 1]
                self._add_groups(model, b, least_pi, v, s, uses, parts)
            for sums in parts:
                for entries in sums.values():
                    total = model.column(0.0, len(members), whole=True)
                    model.row(0.0, 0.0, [*entries, (total, -1.0)])
        for kind, used in zip(self.kinds, uses):
            model.row(kind.number, kind.number, used)
        return model

    def _add_groups(self, model: _Model, b: float, least_pi: float, v: int, s: int, uses, parts) -> None:
        """Groups of size s of cell v, if there can be any."""
        p, r = self.problem, self.reaches[v]
        here = [t for t in self.kinds_in[v] if self.kinds[t].comm[v][s] + least_pi <= b]
        if sum(self.kinds[t].number for t in here) < s:
            return
        count = model.column(1.0, len(r.cell.members) // s, whole=True)
        x = {t: model.column(0.0, self.kinds[t].number) for t in here}
        model.row(0.0, 0.0, [*((j, 1.0) for j in x.values()), (count, -float(s))])
        model.row(0.0, math.inf, [*((j, self.kinds[t].memory) for t, j in x.items()), (count, -float(p.experts))])
        rates = []
        for t, j in x.items():
            kind = self.kinds[t]
            left = b - kind.comm[v][s]
            need = p.layer_cost / left / (1 if self.grows else s) if left > 0 else 0.0
            rates.append((j, kind.rate - need))
            uses[t].append((j, 1.0))
            if kind.number > 1 or s > 1:
                model.row(-math.inf, 0.0, [(j, 1.0), (count, -float(min(kind.number, s)))])
        model.row(0.0, math.inf, rates)
        if r.part:
            self._add_parts(model, b - least_pi, v, s, count, x, parts)

    def _add_parts(self, model: _Model, most: float, v: int, s: int, count: int, x: dict[int, int], parts) -> None:
        """How those groups lie in the children of their cell."""
        r = self.reaches[v]
        all_parts = []
        for number, child in enumerate(r.cell.children):
            u = self.index[id(child)]
            z = []
            for c in range(1, min(len(child.members), s - 1) + 1):
                if r.part[number][s, c] <= most:
                    j = model.column(0.0, len(child.members) // c)
                    z.append((j, float(c)))
                    parts[number].setdefault(c, []).append((j, 1.0))
            inside = [(x[t], -1.0) for t in self.kinds_in[u] if t in x]
            if z or inside:
                model.row(0.0, 0.0, [*z, *inside])
            if z:
                model.row(-math.inf, 0.0, [*((j, 1.0) for j, _ in z), (count, -1.0)])
            all_parts += [(j, 1.0) for j, _ in z]
        model.row(0.0, math.inf, [*all_parts, (count, -2.0)])


class _Model:
    """Columns and rows as they come, handed to HiGHS at once."""

    def __init__(self) -> None:
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.whole: list[bool] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.start: list[int] = []
        self.index: list[int] = []
        self.value: list[float] = []

    def column(self, cost: float, upper: float, whole: bool = False) -> int:
        self.cost.append(cost)
        self.upper.append(float(upper))
        self.whole.append(whole)
        return len(self.cost) - 1

    def row(self, low: float, high: float, entries: list[tuple[int, float]]) -> None:
        self.low.append(float(low))
        self.high.append(float(high))
        self.start.append(len(self.index))
        self.index += [i for i, _ in entries]
        self.value += [float(v) for _, v in entries]

    def least(self, enough: int, until: float, whole: bool) -> int:
        """What the sum of costs is at least, rounded up; `enough` where no solution exists."""
        import highspy

        if not self.cost:
            return enough
        highs = highspy.Highs()
        highs.setOptionValue("output_flag", False)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.cost), len(self.low)
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = np.array(self.cost), np.zeros(len(self.cost)), np.array(self.upper)
        lp.row_lower_, lp.row_upper_ = np.array(self.low), np.array(self.high)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.array([*self.start, len(self.index)], np.int32)
        lp.a_matrix_.index_, lp.a_matrix_.value_ = np.array(self.index, np.int32), np.array(self.value)
        integer, real = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
        if whole:
            lp.integrality_ = [integer if w else real for w in self.whole]
        highs.setOptionValue("threads", 1)
        highs.setOptionValue("random_seed", 0)
        highs.setOptionValue("mip_rel_gap", 0.0)
        highs.setOptionValue("mip_abs_gap", 0.999)  # counts are whole
        highs.setOptionValue("time_limit", max(0.05, min(CALL_SECONDS, until - time.monotonic())))
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
    fewest: Callable[[float, int], int],
    reduce_us: Callable[[int], float],
    kappa: float,
    most: int,
    low: float,
    high: float,
    until: float,
) -> float:
    """The largest f in low..high found for which no partition costs less.

    fewest(b, enough): groups that stages of at most b us need at least. reduce_us(k): T_rho, growing with k. most:
    groups there is memory for. low: a bound already known. high: F of a partition.
    """
    if high <= low or kappa <= 0:
        return min(low, high)
    if _impossible(high * (1 - 1e-9), fewest, reduce_us, kappa, most):
        return high
    while high - low > TIGHT * high and time.monotonic() < until:
        middle = (low + high) / 2
        if _impossible(middle, fewest, reduce_us, kappa, most):
            low = middle
        else:
            high = middle
    return low


def _impossible(f: float, fewest, reduce_us, kappa: float, most: int) -> bool:
    """Does no partition cost less than f?"""
    k = 1
    while k <= most:
        b = (f - reduce_us(k)) / kappa
        if b <= 0:
            return True
        need = fewest(b, most + 1)
        if need <= k:
            return False
        k = need  # fewer groups need longer stages than these, and have less time for them than more groups leave
    return True
