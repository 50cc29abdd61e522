"""Set partitioning by columns: a sharper lower bound, and groups, for problems of few devices and little structure.

Let every stage take at most b us, and let each device have a price. A group is worth the sum of its devices' prices. If
no group with such a stage is worth more than v, then k groups that hold every device once are worth at most k v. So
there are at least (sum of prices) / v groups, whatever the prices are. The best prices are the duals of a linear
programme over the groups found so far (`master.py`). The group that is worth most at these prices is the next column
(`pricing.py`). The set of groups is relaxed: it may contain impossible groups, but it contains every possible one.
Groups have classes by their cell, their size s and a number c: a group has at least c devices in every lowest cell that
it touches, and exactly c in one of them. `reach.py` computes a lower bound on the time that some device of such a group
pays for its links. The group must compute in the rest of b, so its sum of rates has a lower bound too. Memory and rates
are counted in units, rounded up. Columns whose real stages are short enough are combined to partitions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import pricing, terms
from .bounds import ROUNDING, SLACK, impossible
from .cells import Cell, find
from .cost import stage_us
from .master import Master
from .problem import Problem
from .reach import by_parts, reach

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
MOST = 96  # devices
LISTED = 10  # most devices of a lowest cell whose groups are listed one by one
EACH_MOST = 8  # each number c below this one has a class of its own; all larger numbers share one class
STATES = 120_000  # the most states of one size's dynamic programme; units are made so coarse that it has no more
UNITS = 64  # the most units of memory
TIGHT = 1e-3  # relative width at which bisection ends
STEP = 1.15  # a level of cells begins where link costs rise by this ratio; less would split noisy nodes
SMOOTH = 0.5  # weight of the best prices so far in the next prices
DEAR = 4.0  # cost of leaving a device out, in groups
WHOLE_SECONDS = 4.0  # time limit of one search for a partition of whole columns
WHOLE_MOST = 800  # the most columns of one search: with many thousands the solver overruns its time limit
KINDS, PARTS = 8, 32  # units are the KINDS largest values, divided by 1..PARTS
LITTLE = 1e-3  # rounding up to a unit may add this share of the sum of values more than rounding up to the best unit
UP, DOWN = 1e-9, 1e-6  # the most rounding error of a value, and of a sum of under 1000 values, in units
PARTITIONS = 4  # the most searches in a row; each finds more groups, whose all-reduce leaves less time for stages


@dataclass(frozen=True)
class _Class:
    """Groups in one cell, with at least `each` devices in every lowest cell that they touch.

    members: devices, lowest cell by lowest cell. last: True for the last device of each lowest cell. comm: [sizes + 1]
    lower bound in us on max C of a group with exactly `each` devices in some cell. fastest: [sizes + 1] sums of the
    largest rates.
    """

    members: Counts
    last: NDArray[np.bool_]
    each: int
    comm: Floats
    fastest: Floats


@dataclass
class _Column:
    """A group and its stage. stage: the shortest stage that the relaxation allows, us.

    real: the real stage, us; infinite if the group cannot hold all experts."""

    members: tuple[int, ...]
    stage: float
    real: float


class Columns:
    """One problem's columns. grows: whether the objective is `work_conserving`. until: deadline, of time.monotonic.

    offer: a function that takes groups and returns F of the best groups so far.
    """

    def __init__(self, problem: Problem, grows: bool, offer: Callable[[list[list[int]]], float], until: float) -> None:
        self.problem, self.grows, self.offer, self.until = problem, grows, offer, until
        self.columns: dict[tuple[int, ...], _Column] = {}
        self._prices: Floats | None = None  # the prices that gave the best bound so far
        self._classes: list[_Class] = []
        self._listed: list[tuple[NDArray[np.bool_], Floats]] = []  # groups inside lowest cells and their stages
        for cell in find(problem, STEP).walk():
            if cell.children:
                self._add_cell(cell)
            elif len(cell.members) <= LISTED:
                self._list(cell.members)
            else:
                comm, _ = reach(problem, cell)
                self._add_class(cell.members, np.arange(len(cell.members)) == len(cell.members) - 1, 1, comm.min(0))

    def _add_class(self, members: Counts, last: NDArray[np.bool_], each: int, comm: Floats) -> None:
        if not np.isfinite(comm).any():
            return
        fastest = np.concatenate([[0.0], np.cumsum(np.sort(self.problem.rate[members])[::-1])])
        self._classes.append(_Class(members, last, each, comm, fastest))

    def _add_cell(self, cell: Cell) -> None:
        """Add the classes of groups that lie in this cell and in none of its children."""
        p, m, n = self.problem, cell.members, len(cell.members)
        lowest = [each.members for each in cell.walk() if not each.children]
        rows = [np.searchsorted(m, each) for each in lowest]
        own = [np.full((n + 1, len(each) + 1), np.inf) for each in lowest]
        alpha, beta = p.alpha_us[np.ix_(m, m)], p.beta_us_per_mib[np.ix_(m, m)]
        # a lower bound on max C of s devices that lie in several children: one of them has at most s // 2
        split = np.full(n + 1, np.inf)
        comm, parts = reach(p, cell)
        for s in range(2, n + 1):
            w = terms.comm_us(p.crossings, alpha, beta, terms.share_mib(p.payload_mib, s))
            for row, mine in zip(rows, own):
                found = np.sort(by_parts(w, row, s), axis=0)
                for c in range(1, len(row) + 1):
                    mine[s, c] = found[c - 1, c]
            split[s] = max(min(part[s, 1 : s // 2 + 1].min() for part in parts), comm[:, s].min())
        sizes = sorted((len(each) for each in lowest), reverse=True)
        widest = sizes[1] if len(sizes) > 1 else 0  # a group touches at least two lowest cells
        order = np.concatenate(lowest)
        last = np.zeros(n, bool)
        last[np.cumsum([len(each) for each in lowest]) - 1] = True
        for each in range(1, min(widest, EACH_MOST) + 1):
            to = each if each < EACH_MOST else widest
            bound = np.min([mine[:, each : to + 1].min(1) for mine in own if mine.shape[1] > each], axis=0)
            bound[: 2 * each] = np.inf
            self._add_class(order, last, each, np.where(np.isfinite(bound), np.maximum(bound, split), np.inf))

    def _list(self, members: Counts) -> None:
        """List all groups inside a lowest cell that can hold all experts."""
        count = len(members)
        inside = (np.arange(1, 1 << count)[:, None] >> np.arange(count) & 1).astype(bool)
        inside = inside[inside @ self.problem.memory[members] >= self.problem.experts]
        whole = np.zeros((len(inside), self.problem.n), bool)
        whole[:, members] = inside
        self._listed.append(
            (whole, np.array([stage_us(self.problem, np.flatnonzero(each), self.grows) for each in whole]))
        )

    def add_groups(self, groups: list[list[int]]) -> None:
        """Add columns for groups that were found elsewhere."""
        for group in groups:
            self._add(np.array(sorted(group)), math.inf)

    def _add(self, group: Counts, stage: float) -> bool:
        """Add a column. Returns whether it is new with a finite stage, or allowed for shorter stages."""
        key = tuple(int(i) for i in group)
        had = self.columns.get(key)
        if had is None:
            real = stage_us(self.problem, group, self.grows)
            self.columns[key] = _Column(key, min(stage, real), real)
            return math.isfinite(min(stage, real))
        if stage < had.stage:
            had.stage = stage
            return True
        return False

    def close(self, reduce_us: Callable[[int], float], most: int, low: float, high: float) -> float:
        """Bisect between a bound and F of the best groups. The parameters are those of `bounds.lower_bound`.

        Returns the raised bound; offers better groups on the way.
        """
        p, end = self.problem, high
        while end - low > TIGHT * end and time.monotonic() < self.until:
            middle = (low + end) / 2
            if impossible(middle, self.fewest, reduce_us, p.kappa, most):
                low = middle
                continue
            end = middle
            high = self._partition(middle, reduce_us, high)
            end = min(end, high)
        for share in (0.75, 0.5, 0.25, 0.0):
            high = self._partition(low + (high - low) * (1 - share), reduce_us, high)
        return low

    def fewest(self, b: float, k: int, enough: int) -> int:
        """Lower bound on the number of groups if stages take at most b us; `enough` if no such partition exists.

        The search stops early if the best provable bound is not above k.
        """
        b *= 1 + SLACK
        tables = [table for each in self._classes if (table := self._table(each, b)) is not None]
        master = Master(self.problem.n, [c.members for c in self.columns.values() if c.stage <= b], DEAR)
        proved, smooth = 0.0, SMOOTH if self._prices is not None else 0.0
        while time.monotonic() < self.until:
            solved = master.solve(self.until)
            if solved is None or (solved.whole and math.ceil(solved.value - ROUNDING) <= k):
                break
            best = solved.prices if self._prices is None else self._prices
            asked = smooth * best + (1 - smooth) * solved.prices
            worth, fresh = self._price(tables, b, asked, solved.prices)
            master.add(fresh)
            total = float(asked.sum())
            if total > 0:
                bound = total / worth if worth > 1e-9 * total else math.inf
                if bound > proved:
                    proved, self._prices = bound, asked
            if proved > k + ROUNDING:
                break
            if fresh:
                smooth = SMOOTH
            elif smooth:
                smooth = 0.0
            elif solved.whole or not master.dearer():
                break
        return enough if proved >= enough else max(1, math.ceil(proved - ROUNDING))

    def _table(self, of: _Class, b: float) -> tuple[Any, ...] | None:
        """Input of a class's dynamic programme, in units; None if the class has no groups."""
        p = self.problem
        sizes = np.arange(len(of.comm))
        left = b - of.comm
        positive = np.where(left > 0, left, 1.0)
        wanted = np.where(left > 0, terms.rates_for(p.layer_cost, sizes, positive, self.grows), np.inf)
        wanted[0] = np.inf
        wanted[wanted > of.fastest[: len(wanted)] * (1 + 1e-9)] = np.inf
        if not np.isfinite(wanted).any():
            return None
        most = int(np.flatnonzero(np.isfinite(wanted))[-1])
        wanted = wanted[: most + 1]
        memory = np.minimum(p.memory[of.members], p.experts).astype(np.float64)
        needed, memories = _in_units(memory, np.array([float(p.experts)]), UNITS)
        least = max(8, STATES // ((most + 1) * (int(needed[0]) + 1)))
        need, rates = _in_units(p.rate[of.members], np.where(np.isfinite(wanted), wanted, 0.0), least)
        return of, memories, rates, int(needed[0]), np.where(np.isfinite(wanted), need, -1)

    def _price(self, tables: list[Any], b: float, asked: Floats, prices: Floats) -> tuple[float, list[tuple[int, ...]]]:
        """(the most that a group is worth at the prices `asked`, the new groups worth more than 1 at `prices`).

        The first is infinite if time is up.
        """
        most = 0.0
        fresh: list[tuple[int, ...]] = []

        def add(group: Counts, stage: float) -> None:
            if prices[group].sum() > 1 + ROUNDING and self._add(group, stage):
                fresh.append(tuple(int(i) for i in group))

        for inside, stages in self._listed:
            fits = np.flatnonzero(stages <= b)
            if len(fits):
                worth = inside[fits] @ asked
                most = max(most, float(worth.max()))
                for at in fits[np.argsort(-worth, kind="stable")[:3]]:
                    add(np.flatnonzero(inside[at]), float(stages[at]))
        for of, memory, speed, experts, need in tables:
            if time.monotonic() > self.until:
                return math.inf, fresh
            value, chosen = pricing.price(asked[of.members], memory, speed, of.last, of.each, experts, need)
            most = max(most, float(value.max()))
            for size in np.flatnonzero(np.isfinite(value)):
                add(np.sort(of.members[chosen[size]]), b)
        return most, fresh

    def _partition(self, f: float, reduce_us: Callable[[int], float], high: float) -> float:
        """Offer partitions into real columns that cost less than f. Returns F of the best so far."""
        k = 1
        for _ in range(PARTITIONS):
            b = (f - reduce_us(k)) / self.problem.kappa
            groups = self._whole(b)
            if groups is None:
                break
            high = min(high, self.offer(groups))
            if len(groups) <= k:
                break
            k = len(groups)
        return high

    def _whole(self, b: float) -> list[list[int]] | None:
        """The fewest real columns of at most b us that hold each device once; None if none are found in time."""
        groups = [c.members for c in self.columns.values() if c.real <= b]
        if len(groups) > WHOLE_MOST and self._prices is not None:  # the most valuable groups
            prices = self._prices
            groups = sorted(groups, key=lambda g: -float(prices[list(g)].sum()))[:WHOLE_MOST]
        seconds = min(WHOLE_SECONDS, self.until - time.monotonic())
        return Master(self.problem.n, groups, None).partition(seconds) if groups and seconds > 0 else None


def _in_units(values: Floats, sums: Floats, most: int) -> tuple[Counts, Counts]:
    """(sums, values) in whole units. The largest sum has at most `most` units.

    Values are rounded up, so a set that reaches a sum still reaches it. The unit is the largest unit with which
    rounding adds little.
    """
    top = float(sums.max())
    if top <= 0:
        return np.zeros(len(sums), np.int64), np.zeros(len(values), np.int64)
    kinds = np.unique(values[values > 0])[-KINDS:]
    units = np.unique(np.concatenate([[top / most], *(kinds / d for d in range(1, PARTS + 1))]))
    units = units[(units >= top / most) & (units <= max(top, top / most))]
    held = np.minimum(values, top)
    grown = [float((np.ceil(held / unit - UP) * unit - held).sum()) for unit in units]
    unit = units[max(np.flatnonzero(np.array(grown) <= min(grown) + LITTLE * held.sum()))]
    return np.ceil(sums / unit - DOWN).astype(np.int64), np.ceil(held / unit - UP).astype(np.int64)
