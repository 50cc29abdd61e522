"""The parts of the bound, compared with all partitions: the fewest groups for a stage, and the least all-reduce."""

from __future__ import annotations

import itertools
import math
import random
import time

import planning
import pytest

from aristos import planner
from aristos.planner import cells, columns, reach, tree_reach
from aristos.planner.reducing import least_reduce
from aristos.planner.solver import _Large

SEEDS = range(10)


def drawn(seed: int) -> dict:
    return planning.draw(seed, 4 + seed % 4, integers=seed % 5 == 4)


def fewest_by(problem: planner.Problem, model: str):
    """(name, function) of every method. A function takes b and the true number, and returns the method's bound: the
    fewest groups with stages of at most b."""
    grows = model == "work_conserving"
    far = time.monotonic() + 60
    alike, _ = _Large(problem, model, "any", 0.0, far, 0)._tree()
    for name, programme in (
        ("cells", reach.programme(problem, grows)),
        ("tree", tree_reach.programme(alike, grows)),
    ):
        for whole in (False, True):
            yield f"{name} {whole}", lambda b, _, p=programme, w=whole: p.fewest(b, problem.n + 1, w)
    made = columns.Columns(problem, grows, lambda groups: 0.0, far)
    yield "columns", lambda b, true: max(made.fewest(b, k, problem.n + 1) for k in (true, true - 1))


@pytest.mark.parametrize("listed", [columns.LISTED, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", planner.OBJECTIVES)
def test_the_bound_on_groups_is_valid(model, listed, monkeypatch):
    """The bound is valid even if the stage may be just as long as that of the best partition into k groups."""
    monkeypatch.setattr(columns, "LISTED", listed)
    sharp: dict[str, list[bool]] = {}
    for seed in SEEDS:
        p = drawn(seed)
        best = planning.longest_stages(p, model)
        for name, fewest in fewest_by(planner.parse(p), model):
            if listed == 0 and name != "columns":
                continue
            for b in best.values():
                if not math.isfinite(b):
                    continue
                true = min(k for k, longest in best.items() if longest <= b * (1 + 1e-12))
                found = fewest(b * (1 + 1e-12), true)
                assert found <= true, (seed, name, b)
                sharp.setdefault(name, []).append(found == true)
    assert all(sum(right) > 0.9 * len(right) for right in sharp.values()), sharp


def apart(rates: str, memory: tuple[int, ...], width: int, links: tuple[float, float, float], **rest) -> dict:
    """Nodes of `width` devices with rates 1e6 (+) and 1e-3 (-).

    links: alpha between nodes, beta inside and between nodes.
    """
    n, (alpha, near, far) = len(rates), links
    same = [[i // width == j // width for j in range(n)] for i in range(n)]
    return {
        "devices": [{"rate": 1e6 if r == "+" else 1e-3, "memory": m} for r, m in zip(rates, memory)],
        "alpha_us": [[0.0 if same[i][j] else alpha for j in range(n)] for i in range(n)],
        "beta_us_per_mib": [[0.0 if i == j else near if same[i][j] else far for j in range(n)] for i in range(n)],
        "gradient_mib": 0,
        **rest,
    }


APART = [
    (apart("--+---", (6, 15, 6, 10, 11, 11), 3, (5.0, 0.0, 47.0), experts=16, layer_cost=50, payload_mib=0.5,
           crossings=4, stages=72), 50000.0),
    (apart("+++---++-", (60,) * 9, 2, (0.0, 4.5, 47.0), experts=60, layer_cost=3000, payload_mib=5, crossings=1,
           stages=9), 3000008.24998875),
]  # fmt: skip


@pytest.mark.parametrize(("p", "b"), APART)
def test_very_different_rates_keep_the_bound_valid(p, b):
    """One group of all devices has a stage of less than b.

    HiGHS once found two groups, for rows with unscaled rates.
    """
    assert planning.stage(p, tuple(range(len(p["devices"]))), "work_conserving") < b
    for name, fewest in fewest_by(planner.parse(p), "work_conserving"):
        for more in (0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1):
            started = time.monotonic()
            assert fewest(b * (1 + more), 1) == 1, (name, more)
            assert time.monotonic() - started < 30, name


def test_the_bound_of_a_class_holds_for_each_group():
    for seed in SEEDS:
        p, rng = planning.draw(seed + 50, 8), random.Random(seed)
        for i, j in itertools.combinations(range(8), 2):
            some = rng.uniform(1.0, 1.5)  # the links of a cell differ from each other, and so do its devices
            for key in ("alpha_us", "beta_us_per_mib"):
                p[key][i][j] = p[key][j][i] = p[key][i][j] * some
        problem = planner.parse(p)
        made = columns.Columns(problem, True, lambda groups: 0.0, time.monotonic() + 60)
        classes = {(frozenset(each.members.tolist()), each.each): each.comm for each in made._classes}
        walk = cells.find(problem, columns.STEP).walk()
        checked = 0
        for size in range(2, 9):
            for group in itertools.combinations(range(8), size):
                if sum(p["devices"][i]["memory"] for i in group) < p["experts"]:
                    continue
                cell = min((c for c in walk if set(group) <= set(c.members)), key=lambda c: len(c.members))
                if not cell.children:
                    continue
                touched = [len(set(group) & set(c.members)) for c in walk if not c.children]
                each = min(count for count in touched if count)
                s = planning.stage({**p, "layer_cost": 0.0}, group, "literal")
                assert classes[frozenset(cell.members.tolist()), each][size] <= s * (1 + 1e-9), (seed, group)
                checked += 1
        assert checked or not walk[0].children


@pytest.mark.parametrize("allreduce", planner.ALLREDUCES)
@pytest.mark.parametrize("above", [(0, 0), (5, 1), (1e5, 0)])
def test_a_switch_of_one_child_is_no_link(allreduce, above):
    """The all-reduce below such a switch costs the same as without the switch."""
    leaf = {"count": 2, "rate": 100, "memory": 8}
    inner = [{"count": c, "alpha_us": 1, "beta_us_per_mib": b, "children": [leaf]} for c, b in ((2, 5), (1, 90))]
    tree = {"alpha_us": 15, "beta_us_per_mib": 40, "children": inner}
    p = {"experts": 8, "layer_cost": 1000, "payload_mib": 1, "crossings": 2, "stages": 60, "gradient_mib": 10}
    plain = least_reduce(planner.parse({**p, "cluster": tree}), allreduce, "literal", math.inf)
    over = {"alpha_us": above[0], "beta_us_per_mib": above[1], "children": [tree]}
    problem = planner.parse({**p, "cluster": over})
    found = least_reduce(problem, allreduce, "literal", math.inf)
    assert [found(k) for k in range(1, 7)] == [plain(k) for k in range(1, 7)]
    for groups in planning.partitions(6):
        cost = planner.evaluate(problem, groups, allreduce=allreduce)
        assert found(len(groups)) <= cost.allreduce_us * (1 + 1e-12)


@pytest.mark.parametrize("model", planner.OBJECTIVES)
@pytest.mark.parametrize("allreduce", planner.ALLREDUCES)
def test_the_bound_on_the_all_reduce_is_valid(model, allreduce):
    for seed in SEEDS:
        p = {**drawn(seed), "gradient_mib": 100.0}
        problem = planner.parse(p)
        n = problem.n
        priced = [(g, planning.price(p, g, model, allreduce)) for g in planning.partitions(n)]
        ranked = sorted(value for _, value in priced if math.isfinite(value))
        pairs = planning.by_slowness(p)
        for incumbent in ranked[1 :: max(1, len(ranked) // 16)]:
            least = least_reduce(problem, allreduce, model, incumbent)
            for groups in (groups for groups, value in priced if value < incumbent):
                where = {i: at for at, g in enumerate(groups) for i in g}
                link = pairs[0] if allreduce == "any" else next((x for x in pairs if where[x[0]] != where[x[1]]), None)
                assert least(len(groups)) <= planning.reduction(p, len(groups), link) * (1 + 1e-12), seed
