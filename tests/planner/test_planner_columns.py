"""Column generation: the priced group, rounding to units, bounds and partitions are compared with plain enumeration."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import planning
import pytest

from aristos import planner
from aristos.planner import baselines, columns, pricing
from aristos.planner.cost import evaluate
from aristos.planner.master import Master
from aristos.planner.reducing import least_reduce

NEAR = 1e-9


def test_the_most_valuable_group_is_found():
    rng = np.random.default_rng(0)
    for _ in range(40):
        n, each = int(rng.integers(2, 9)), int(rng.integers(1, 4))
        last = rng.random(n) < 0.4
        last[-1] = True
        cell = np.concatenate([[0], np.cumsum(last)[:-1]])
        worth = rng.normal(0.3, 1.0, n)
        memory, speed = rng.integers(0, 5, n), rng.integers(1, 5, n)
        room, most = int(rng.integers(1, 10)), int(rng.integers(1, n + 1))
        need = rng.integers(-1, 12, most + 1)
        need[0] = -1
        if need.max() < 0:
            continue
        value, inside = pricing.price(worth, memory, speed, last, each, room, need)
        for size in range(1, most + 1):
            best = -math.inf
            for group in itertools.combinations(range(n), size):
                g = list(group)
                touched = np.bincount(cell[g])
                fits = memory[g].sum() >= room and speed[g].sum() >= need[size] and need[size] >= 0
                if fits and (touched[touched > 0] >= each).all():
                    best = max(best, worth[g].sum())
            assert value[size] == pytest.approx(best)
            if math.isfinite(best):
                g = np.flatnonzero(inside[size])
                touched = np.bincount(cell[g])
                assert len(g) == size
                assert memory[g].sum() >= room
                assert speed[g].sum() >= need[size]
                assert (touched[touched > 0] >= each).all()
                assert worth[g].sum() == pytest.approx(best)


def test_rounding_to_units_keeps_sums_reachable():
    rng = np.random.default_rng(1)
    for most in (1, 3, 10, 64):
        for _ in range(50):
            values = rng.choice([0.0, 0.4, 1.0, 2.5, rng.random(), 60.0], 7)
            held = np.array([values[list(g)].sum() for r in range(8) for g in itertools.combinations(range(7), r)])
            sums = rng.choice(held, 4)  # some devices reach these sums exactly
            need, each = columns._in_units(values, sums, most)
            assert need.max() <= most
            units = np.array([each[list(g)].sum() for r in range(8) for g in itertools.combinations(range(7), r)])
            for exact, rounded in zip(sums, need):
                assert (units[held >= exact] >= rounded).all()
    need, each = columns._in_units(np.array([0.4, 1.0, 2.5, 0.0]), np.array([0.0, 7.0]), 100)
    assert (need.tolist(), each.tolist()) == ([0, 70], [4, 10, 25, 0])  # rounding loses nothing if a unit divides all


@pytest.mark.compiled
@pytest.mark.parametrize("listed", [columns.LISTED, 0])
@pytest.mark.parametrize("model", planner.OBJECTIVES)
@pytest.mark.parametrize("allreduce", planner.ALLREDUCES)
def test_bounds_and_groups_against_the_optimum(model, allreduce, listed, monkeypatch):
    monkeypatch.setattr(columns, "LISTED", listed)
    gaps = []
    for seed in range(6):
        p = planning.draw(seed, 3 + seed, integers=seed == 4)
        problem = planner.parse(p)
        optimum = planner.solve(problem, model, allreduce).objective_us
        found = []

        def offer(groups, problem=problem, found=found):
            found.append(evaluate(problem, groups, model, allreduce).objective_us)
            return min(found)

        for groups, _ in baselines.all_baselines(problem, model, allreduce).values():
            offer(groups)
        made = columns.Columns(problem, model == "work_conserving", offer, time.monotonic() + 30)
        most = int(problem.memory.sum()) // problem.experts
        start = min(found)
        bound = made.close(least_reduce(problem, allreduce, model, start), min(most, problem.n), 0.0, start)
        assert bound <= optimum * (1 + NEAR)
        assert min(found) >= optimum * (1 - NEAR)
        gaps.append((optimum - bound) / optimum)
    assert sorted(gaps)[len(gaps) // 2] < 0.05


def mixed(n: int) -> dict:
    """Nodes of four devices, which all differ. A bound that uses only counts of devices is bad here."""
    rates, memories = (0.4, 2.5, 1.0, 0.4, 1.0), (60, 12, 26, 9, 60, 26, 12)
    links = [[0 if i == j else i // 4 == j // 4 for j in range(n)] for i in range(n)]
    return {
        "experts": 128,
        "layer_cost": 1900.0,
        "payload_mib": 8.0,
        "crossings": 4,
        "stages": 192 * n,
        "gradient_mib": 0.0,
        "devices": [{"rate": rates[i % 5], "memory": memories[i * 3 % 7]} for i in range(n)],
        "alpha_us": [
            [0.0 if i == j else 3.0 if near else 15.0 for j, near in enumerate(row)] for i, row in enumerate(links)
        ],
        "beta_us_per_mib": [
            [0.0 if i == j else 11.65 if near else 47.66 for j, near in enumerate(row)] for i, row in enumerate(links)
        ],
    }


@pytest.mark.slow
def test_devices_that_differ_one_by_one():
    plan = planner.solve(planner.parse(mixed(20)), deadline_s=60)
    assert plan.gap < 0.05
    assert plan.objective_us == pytest.approx(planning.price(mixed(20), plan.groups, "work_conserving", "any"))


def test_partitions_of_columns_and_their_prices():
    groups = [(0, 1), (2,), (1, 2), (0,), (0, 1, 2)]
    master = Master(3, groups[:4], 4.0)
    solved = master.solve(time.monotonic() + 10)
    assert solved is not None
    assert (solved.value, solved.whole) == (pytest.approx(2), True)
    assert all(solved.prices[list(g)].sum() <= 1 + 1e-7 for g in groups[:4])
    assert solved.prices.sum() == pytest.approx(2)
    master.add(groups[4:])
    assert master.solve(time.monotonic() + 10).value == pytest.approx(1)
    assert Master(3, groups, None).partition(5.0) == [[0, 1, 2]]
    assert Master(3, [(0, 1), (1, 2)], None).partition(5.0) is None
    alone = Master(3, [(0, 1)], 4.0).solve(time.monotonic() + 10)
    assert alone.whole is False


def test_a_search_for_a_partition_gets_a_limited_number_of_columns(monkeypatch):
    """With many thousands of columns HiGHS once took 81 s instead of the 4 s allowed."""
    monkeypatch.setattr(columns, "WHOLE_MOST", 3)
    given = []

    class Counted(Master):
        def partition(self, seconds):
            given.append(len(self.groups))
            return super().partition(seconds)

    problem = planner.parse(planning.draw(0, 8))
    made = columns.Columns(problem, True, lambda groups: 0.0, time.monotonic() + 30)
    made.fewest(1e9, 1, 9)
    made.add_groups([list(range(8)), *([i, j] for i in range(8) for j in range(i))])
    monkeypatch.setattr(columns, "Master", Counted)
    made._whole(math.inf)
    assert given == [3]
