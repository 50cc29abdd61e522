"""`solve`, which chooses the solvers for a problem, and returns the best of their plans and of the baselines."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from . import columns, exact, packing, reach, tree_reach
from .baselines import all_baselines
from .bounds import Programme, lower_bound, solver
from .condense import from_matrices
from .cost import ALLREDUCES, check_choice, evaluate
from .plan import Plan, ordered
from .problem import OBJECTIVES, Problem
from .reducing import least_reduce
from .search import GroupSearch
from .terms import pi_us
from .values import number

TIMELY = 0.93  # the share of the deadline after which no solver is started
CLOSE = 1e-4  # gap at which the search ends
CELLS_MOST = 160  # most devices that the bound treats one by one; with more, equal cells are treated as one
PACKED = 0.7  # the share of the time after which packing ends
PLAIN, ANNEALED, PARTITIONED = 0.2, 0.4, 0.8  # shares of the time at which the first bound, annealing and columns end
NUMBERS_SECONDS = 15.0  # time limit of the programmes that give the first bound


def solve(
    problem: Problem,
    objective: str | None = None,
    allreduce: str = "any",
    deadline_s: float = 60.0,
    seed: int = 0,
) -> Plan:
    """The groups with the least F found, and a bound that no partition beats.

    Parameters
    ----------
    problem : Problem
        Devices, links and the layer's costs.
    objective : str or None, default None
        "work_conserving": every device brings its tokens. "literal": Equation 1 as the poster has it. None:
        `problem.objective`.
    allreduce : str, default "any"
        "any": the all-reduce uses the slowest of all links. "crossing": the slowest link between groups.
    deadline_s : float, default 60.0
        Seconds until the best plan so far is returned.
    seed : int, default 0
        Equal seeds give equal plans, unless a time limit ends a search early.

    Returns
    -------
    Plan
        The groups, their terms and the bound.

    Raises
    ------
    Infeasible
        No partition fits.
    InputError
        `objective` or `allreduce` is unknown, or the deadline is no positive number.
    EnvironmentProblem
        The problem has so many devices that it needs HiGHS (`highspy`), which is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from aristos import planner
    >>> alpha = np.where(np.eye(4), 0.0, 5.0)
    >>> problem = planner.Problem(
    ...     experts=8, layer_cost=100.0, payload_mib=1.0, crossings=2, stages=4, gradient_mib=None,
    ...     rate=np.ones(4), memory=np.full(4, 4), alpha_us=alpha, beta_us_per_mib=10 * alpha,
    ... )
    >>> plan = planner.solve(problem)
    >>> [len(group) for group in plan.groups], plan.gap
    ([2, 2], 0.0)
    """
    objective = check_choice("objective", objective or problem.objective, OBJECTIVES)
    check_choice("allreduce", allreduce, ALLREDUCES)
    started = time.monotonic()
    until = started + TIMELY * number("deadline_s", deadline_s, positive=True)
    problem.check_feasible()
    most = exact.MOST if deadline_s < exact.SECONDS_WITH_TIME else exact.MOST_WITH_TIME
    if problem.tree is not None and problem.n <= most:
        alpha, beta = problem.tree.matrices()
        small = replace(problem, alpha_us=alpha, beta_us_per_mib=beta, tree=None)
        plan = solve(small, objective, allreduce, deadline_s, seed)
        return replace(plan, problem=problem)
    known = all_baselines(problem, objective, allreduce)
    name = min(known, key=lambda name: known[name][1].objective_us)
    best = known[name][0]
    if problem.n <= most:
        groups = ordered(exact.solve(problem, objective, allreduce, best))
        cost = evaluate(problem, groups, objective, allreduce)
        return Plan(problem, objective, allreduce, groups, cost, cost.objective_us, "exact: all subsets")
    solver()  # raises before the search if HiGHS is missing
    return _Large(problem, objective, allreduce, started, until, seed).solve(best, name)


class _Large:
    """A problem too large for the exact solver. Searches improve its plan, and programmes raise its bound."""

    def __init__(
        self, problem: Problem, objective: str, allreduce: str, started: float, until: float, seed: int
    ) -> None:
        self.problem, self.objective, self.allreduce = problem, objective, allreduce
        self.started, self.until, self.seed = started, until, seed
        # `work_conserving`: some group's mean rate is at most the mean rate of all devices. `literal`: no group's sum
        # of rates exceeds that of all devices
        least_pi = pi_us(problem.layer_cost, problem.n, float(problem.rate.sum()), objective == "work_conserving")
        self.low, self.by = problem.kappa * least_pi, "the sum of rates"
        self._programme: Programme | None = None
        self._cluster: tuple[Problem, np.ndarray] | None = None

    def solve(self, best: list[list[int]], name: str) -> Plan:
        p = self.problem
        method = name
        packed = self._pack()
        if packed is not None and self._value(packed) < self._value(best):
            best, method = packed, "packing of subtrees"
        if p.tree is not None:
            self.sharpen(self._value(best), min(self.until, time.monotonic() + NUMBERS_SECONDS))
            return self._plan(best, method)
        search = GroupSearch(p, self.objective, self.allreduce, best, self.seed)
        search.offer(best)
        search.cut(self.until)
        method = method if search.best is best else "cuts of clustered orders"
        best = search.best
        self.sharpen(search.best_us, min(self._at(PLAIN), time.monotonic() + NUMBERS_SECONDS))
        search.anneal(self._at(ANNEALED), lambda: self.low >= search.best_us * (1 - CLOSE))
        method, best = method if search.best is best else "cuts and annealing", search.best
        self._partition(search, self._at(PARTITIONED))
        method, best = method if search.best is best else "columns", search.best
        self.sharpen(search.best_us, self.until)
        return self._plan(search.best, method)

    def _at(self, share: float) -> float:
        """The time at which this share of the deadline has passed."""
        return self.started + share * (self.until - self.started)

    def _partition(self, search: GroupSearch, until: float) -> None:
        """Raise the bound by columns, and offer the groups that the columns give to the search."""
        p, high = self.problem, search.best_us
        if p.n > columns.MOST or p.kappa <= 0 or self.low >= high * (1 - CLOSE) or time.monotonic() > until:
            return
        made = columns.Columns(p, self.objective == "work_conserving", search.offer, until)
        for _, groups in search.starts.values():
            made.add_groups(groups)
        reduce_us = least_reduce(p, self.allreduce, self.objective, high)
        low = made.close(reduce_us, search.most, self.low, high)
        if low > self.low:
            self.low, self.by = low, "columns"

    def _value(self, groups: list[list[int]]) -> float:
        return evaluate(self.problem, groups, self.objective, self.allreduce).objective_us

    def _plan(self, groups: list[list[int]], method: str) -> Plan:
        groups = ordered(groups)
        cost = evaluate(self.problem, groups, self.objective, self.allreduce)
        low = min(self.low, cost.objective_us)
        return Plan(self.problem, self.objective, self.allreduce, groups, cost, low, f"{method}; bound by {self.by}")

    def _tree(self) -> tuple[Problem, np.ndarray]:
        """(the problem in compressed form, [n] the original device at each place of that form)."""
        if self._cluster is None:
            p = self.problem
            if p.tree is not None:
                self._cluster = p, np.arange(p.n)
            else:
                laid, order = from_matrices(p)
                none = np.zeros((0, 0))
                alike = replace(
                    p, rate=laid.rate, memory=laid.memory, alpha_us=none, beta_us_per_mib=none, names=(), tree=laid
                )
                self._cluster = alike, order
        return self._cluster

    def _pack(self) -> list[list[int]] | None:
        """Packed groups of a large problem, or None if a search by devices is better."""
        if self.problem.n <= CELLS_MOST and self.problem.tree is None:
            return None
        alike, order = self._tree()
        end = self._at(PACKED)
        groups = packing.best(alike, self.objective, self.allreduce, end)
        return [sorted(int(order[i]) for i in g) for g in groups]

    def sharpen(self, high: float, until: float) -> None:
        """Raise the lower bound by a linear programme, then by the same programme with whole counts."""
        p, grows = self.problem, self.objective == "work_conserving"
        if self.low >= high * (1 - CLOSE) or time.monotonic() > until:
            return
        if self._programme is None:
            if p.n <= CELLS_MOST and p.tree is None:
                self._programme = reach.programme(p, grows)
            else:
                alike, _ = self._tree()
                self._programme = tree_reach.programme(alike, grows)
        programme = self._programme
        programme.until = until
        reduce_us = least_reduce(p, self.allreduce, self.objective, high)
        most = int(p.memory.sum()) // p.experts
        for whole in (False, True):
            if self.low < high * (1 - CLOSE) and time.monotonic() < until:
                low = lower_bound(
                    lambda b, _, enough: programme.fewest(b, enough, whole),  # noqa: B023
                    reduce_us,
                    p.kappa,
                    min(most, p.n),
                    self.low,
                    high,
                    until,
                )
                if low > self.low:
                    self.low, self.by = low, "an integer programme"
