"""Costs, searches, the exact solver and the bounds follow each change of a term in `terms.py`.

Each case makes a term cheaper, in a process that compiles nothing. If a module had a formula of its own, its bound
would then be above the optimum, or its values would differ from the cost.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import planning
import pytest

from aristos import planner
from aristos.planner import columns, exact, moves, reach, search, solver, terms, tree_reach
from aristos.planner.cost import stage_us
from aristos.planner.reducing import least_reduce
from aristos.planner.words import explain, seconds_text

CHANGES: dict[str, dict[str, Callable]] = {
    "compute": {
        "pi_us": lambda layer_cost, size, rates, grows: (size if grows else 1) * layer_cost / (3 * rates),
        "rates_for": lambda layer_cost, size, limit_us, grows: (size if grows else 1) * layer_cost / (3 * limit_us),
        "rate_each": lambda layer_cost, size, limit_us, grows: layer_cost / limit_us / (3 if grows else 3 * size),
    },
    "network": {"comm_us": lambda crossings, alpha, beta, share: crossings * (alpha / 2 + beta * share / 3)},
    "share": {"share_mib": lambda payload_mib, size: payload_mib / (size + 2)},
    "all-reduce": {"allreduce_us": lambda k, alpha, beta, gradient_mib: (k - 1) * (alpha + beta * gradient_mib / k)},
}
SEEDS = (1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_every_solver_follows_a_changed_term(change):
    ran = subprocess.run(
        [sys.executable, __file__, change],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr


def test_the_inverses_of_compute_time():
    for grows in (True, False):
        rates = terms.rates_for(40.0, 5, 7.0, grows)
        assert terms.pi_us(40.0, 5, rates, grows) == pytest.approx(7.0)
        assert terms.rate_each(40.0, 5, 7.0, grows) * 5 == pytest.approx(rates)


def replace_terms(change: dict[str, Callable]) -> None:
    """Put new functions in the place of terms, in every module of the planner."""
    for name, new in change.items():
        old = getattr(terms, name)
        for module in [m for key, m in sys.modules.items() if key.startswith("aristos.planner")]:
            if getattr(module, name, None) is old:
                setattr(module, name, new)


def check(seed: int, model: str, allreduce: str) -> None:
    p = {**planning.draw(seed, 5), "payload_mib": 8.0, "gradient_mib": 100.0}
    problem, grows = planner.parse(p), model == "work_conserving"
    n, far = problem.n, time.monotonic() + 60
    priced = [(groups, planner.evaluate(problem, groups, model, allreduce)) for groups in planning.partitions(n)]
    best = min(cost.objective_us for _, cost in priced)
    if math.isinf(best):
        return
    whole = [list(range(n))]
    found = exact.solve(problem, model, allreduce, whole)
    assert math.isclose(planner.evaluate(problem, found, model, allreduce).objective_us, best), "exact, subsets"
    tried = search.GroupSearch(problem, model, allreduce, whole, 0)
    check_search(tried, grows)
    assert tried.best_us >= best * (1 - 1e-9)

    large = solver._Large(problem, model, allreduce, 0.0, far, 0)
    assert large.low <= best * (1 + 1e-9), "solver"
    stages = {}
    for groups, cost in priced:
        if math.isfinite(cost.objective_us):
            longest = float((cost.pi_us + cost.comm_us).max())
            stages[len(groups)] = min(longest, stages.get(len(groups), math.inf))
    made = columns.Columns(problem, grows, lambda groups: 0.0, far)
    programmes = reach.programme(problem, grows), tree_reach.programme(large._tree()[0], grows)
    for b in stages.values():
        true = min(k for k, longest in stages.items() if longest <= b * (1 + 1e-12))
        for programme in programmes:
            assert programme.fewest(b * (1 + 1e-12), n + 1, True) <= true, "bounds, reach, tree_reach"
        assert made.fewest(b * (1 + 1e-12), true, n + 1) <= true, "columns"
    for incumbent in (best * 1.01, best * 1.5, math.inf):
        least = least_reduce(problem, allreduce, model, incumbent)
        for groups, cost in priced:
            if cost.objective_us < incumbent:
                assert least(len(groups)) <= cost.allreduce_us * (1 + 1e-12), "reducing"
    check_words(p, priced, model, allreduce)


def check_search(tried: search.GroupSearch, grows: bool) -> None:
    """Check that the stages and F of the compiled loops are those of the cost."""
    p, n = tried.problem, tried.problem.n
    order = np.arange(n)
    longest, starts = tried._cuts(order, math.inf)
    for k in np.flatnonzero(np.isfinite(longest[: tried.most + 1]))[1:]:
        groups, end = [], n
        for left in range(k, 0, -1):
            groups.append(order[starts[left, end] : end])
            end = starts[left, end]
        assert math.isclose(longest[k], max(stage_us(p, group, grows) for group in groups)), "moves.cuts"
    numbers = np.array([p.experts, p.layer_cost, grows, p.crossings, p.payload_mib], np.float64)
    nearest = np.array([[j for j in range(n) if j != i] for i in range(n)])
    labels, value = moves.anneal(
        np.zeros(n, np.int64), n, p.alpha_us, p.beta_us_per_mib, p.rate, p.memory, numbers, tried._link, tried._pairs,
        p.gradient_mib, p.kappa, nearest, 100, 0.3, 0.01, 0,
    )  # fmt: skip
    assert math.isclose(value, tried.offer(search.groups_of(labels))), "moves.anneal"


def check_words(p: dict, priced: list, model: str, allreduce: str) -> None:
    """Check that the step which the report gives for faster links equals the cost with these links."""
    for groups, cost in priced:
        if math.isinf(cost.objective_us):
            continue
        plan = planner.Plan(planner.parse(p), model, allreduce, groups, cost, 0.0, "")
        if plan.bottleneck["term"] != "comm":
            continue
        device = plan.bottleneck["device"]
        members = groups[plan.bottleneck["group"]]
        faster = {key: [[*row] for row in p[key]] for key in ("alpha_us", "beta_us_per_mib")}
        for matrix in faster.values():
            for j in members:
                matrix[device][j] = matrix[j][device] = matrix[device][j] / 2
        after = planner.evaluate(planner.parse({**p, **faster}), groups, model)
        step = cost.kappa * float((after.pi_us + after.comm_us).max()) + cost.allreduce_us
        assert f"a step takes {seconds_text(step)} with" in explain(plan), "words"


if __name__ == "__main__":
    replace_terms(CHANGES[sys.argv[1]])
    for seed in SEEDS:
        for model in planner.OBJECTIVES:
            for allreduce in planner.ALLREDUCES:
                check(seed, model, allreduce)
