"""What the placement of a plan achieves, devices that hold nothing, inference, and why nothing fits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import planning
import pytest

from aristos import planner
from aristos.cli.__main__ import main as aristos
from aristos.models import MODELS
from aristos.planner import baselines, machine, placing, published, search, solver
from aristos.planner.achieved import achieve
from aristos.planner.words import report

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS_OF_COST = ("work_conserving", "literal")


def near(value: float):
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def equal_devices(n: int, experts: int, memory: int, rates: list[float] | None = None, **changes) -> dict:
    """A problem with equal devices behind one switch. They form one group, because the gradients are huge."""
    links = [[0.0 if i == j else 2.0 for j in range(n)] for i in range(n)]
    return {
        "experts": experts,
        "layer_cost": 100.0,
        "payload_mib": 8.0,
        "crossings": 4,
        "stages": n,
        "gradient_mib": 1e6,
        "devices": [{"rate": r, "memory": memory} for r in rates or [1.0] * n],
        "alpha_us": links,
        "beta_us_per_mib": links,
        **changes,
    }


def held(plan: planner.Plan, group: int) -> list[int]:
    found = [d for owners in plan.placement[group].values() for d in owners]
    return [found.count(d) for d in plan.groups[group]]


@pytest.mark.parametrize(
    ("n", "experts", "memory"), [(16, 8, 1), (16, 8, 2), (12, 8, 2), (6, 4, 4), (9, 3, 1), (4, 8, 2), (4, 8, 8)]
)
def test_whole_experts_that_divide_give_the_objective(n, experts, memory):
    """If devices outnumber experts, they get copies where memory allows, so that all compute their part."""
    plan = planner.solve(planner.parse(equal_devices(n, experts, memory)))
    assert len(plan.groups) == 1
    assert plan.achieved.pi_us[0] == near(plan.cost.pi_us[0])
    assert min(held(plan, 0)) == max(held(plan, 0)) > 0
    assert "busiest" not in report(plan, 0.0).splitlines()[2]


def test_copies_that_do_not_divide_and_slow_devices_are_said():
    plan = planner.solve(planner.parse(equal_devices(12, 8, 1)))
    assert min(held(plan, 0)) == 1  # the other four hold copies, which do not shorten the stage
    assert plan.achieved.pi_us[0] == near(1.5 * plan.cost.pi_us[0])
    line = report(plan, 0.0).splitlines()[2]
    assert "the busiest device of group 0 computes 1.5 times its share of Equation 1" in line
    slow = planner.solve(planner.parse(equal_devices(3, 2, 2, [1.0, 1.0, 0.01])))
    assert held(slow, 0) == [1, 1, 0]


@pytest.mark.parametrize("model", MODELS_OF_COST)
def test_the_step_of_the_placement_differs_by_rounding(model):
    """The step equals that of plain loops.

    Its compute is at most that of the fractional split rounded up to whole experts.
    """
    copied = 0
    for seed in range(40):
        p = planning.draw(seed, 1 + seed % 9, model=model)
        if seed % 2:
            p["experts"] = 1 + seed % 5
            for d in p["devices"]:
                d["memory"] = seed % 3 + (p["experts"] + len(p["devices"]) - 1) // len(p["devices"])
        if seed % 5 == 4:
            p = planning.idle(p, seed)
        problem = planner.parse(p)
        try:
            plan = planner.solve(problem)
        except planner.Infeasible:
            continue
        step = 0.0
        for g, (group, placement) in enumerate(zip(plan.groups, plan.placement)):
            pi, comm = planning.placed(p, group, placement, model)
            assert (plan.achieved.pi_us[g], plan.achieved.comm_us[g]) == (near(pi), near(comm)), seed
            assert pi >= plan.cost.pi_us[g] * (1 - 1e-9), seed
            count = min(len(owners) for owners in placement.values())
            even = count if len(group) % count == 0 else 1
            assert pi <= planning.busiest(p, group, even, model) * (1 + 1e-9), seed
            if len(group) > p["experts"] and all(p["devices"][i]["memory"] >= p["experts"] for i in group):
                whole = planning.busiest(p, group, len(group), model)
                assert pi <= whole * (1 + 1e-9), seed
                copied += 1
            slack = max(
                p["crossings"] * p["payload_mib"] * sum(p["beta_us_per_mib"][i][j] for j in group) for i in group
            )
            if len({p["devices"][i]["rate"] for i in group}) == 1:
                assert abs(comm - plan.cost.comm_us[g]) <= slack / p["experts"] + 1e-9, seed
            step = max(step, pi + comm)
        assert plan.achieved.step_us == near(plan.cost.kappa * step + plan.cost.allreduce_us), seed
    assert copied > 1


def test_the_step_of_a_compressed_cluster_is_that_of_its_matrices():
    tree = json.loads((EXAMPLES / "mixtral.json").read_text())
    problem = planner.parse(tree)
    alpha, beta = problem.tree.matrices()
    whole = planner.parse(
        {
            **{k: v for k, v in tree.items() if k != "cluster"},
            "alpha_us": alpha.tolist(),
            "beta_us_per_mib": beta.tolist(),
            "devices": [{"rate": 900, "memory": 2}] * 16,
        }
    )
    for groups in (
        [list(range(16))],
        [list(range(8)), list(range(8, 16))],
        [[0, 4, 8, 12, 1], [*range(2, 4), *range(5, 8), 9, 10, 11, 13, 14, 15]],
    ):
        mine, other = achieve(problem, groups, 7.0, True), achieve(whole, groups, 7.0, True)
        assert mine.comm_us.tolist() == near(other.comm_us.tolist())
        assert mine.step_us == near(other.step_us)


@pytest.mark.parametrize("model", MODELS_OF_COST)
@pytest.mark.parametrize("gradient", [pytest.param(100.0, marks=pytest.mark.slow), None])
def test_devices_that_hold_nothing_do_not_count(model, gradient, monkeypatch):
    """Optima and bounds agree with a search of all partitions. In inference (gradient None) nothing is reduced."""
    monkeypatch.setattr(search, "ROUNDS", 1)
    monkeypatch.setattr(search, "STEPS", 10_000)
    for seed, n in ((0, 5), (1, 6), (2, 7), (3, 8)):
        p = {**planning.idle(planning.draw(seed, n), seed), "gradient_mib": gradient}
        problem = planner.parse(p)
        optimum = planning.best(p, model, "any")
        if math.isinf(optimum):
            continue
        plan = planner.solve(problem, model)
        assert plan.objective_us == near(optimum), seed
        assert plan.objective_us == near(planning.price(p, plan.groups, model, "any"))
        assert p["devices"][plan.bottleneck["device"]]["memory"] or plan.bottleneck["term"] != "pi"
        for most in (160, 0):
            monkeypatch.setattr(solver, "CELLS_MOST", most)
            large = _large(problem, model)
            assert large.lower_bound_us <= optimum * (1 + 1e-9), (seed, most)
            assert large.objective_us >= optimum * (1 - 1e-9), (seed, most)


def _large(problem: planner.Problem, model: str) -> planner.Plan:
    import time

    now = time.monotonic()
    groups = baselines.one_group(problem)
    return solver._Large(problem, model, "any", now, now + 0.3, 0).solve(groups, "one group")


def test_copies_of_equal_experts_stay_within_memory():
    rng = np.random.default_rng(3)
    for _ in range(60):
        n, experts = int(rng.integers(1, 40)), int(rng.integers(1, 12))
        memory = rng.integers(0, 5, n)
        memory[0] += max(0, experts - int(memory.sum()))
        found = placing.alike(experts, rng.choice([0.5, 1.0, 2.0], n), memory)
        assert len(found) == experts
        assert all(owners and owners == sorted(set(owners)) for owners in found)
        assert (np.bincount([d for owners in found for d in owners], minlength=n) <= memory).all()


# ---------------------------------------------------------------- models on a cluster


def run(capsys, *words: str) -> tuple[int, str, str]:
    try:
        code = aristos(["plan", *words])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_example_problem_is_that_of_the_model_on_the_example_cluster(capsys):
    wrote = json.loads((EXAMPLES / "mixtral.json").read_text())
    cluster = machine.load(EXAMPLES / "cluster-4x4.json")
    mine, made = planner.parse(wrote), published.build(MODELS["mixtral-8x7b"], 4096, cluster)
    for name in ("experts", "layer_cost", "payload_mib", "crossings", "stages", "gradient_mib", "expert_gb"):
        assert getattr(mine, name) == near(getattr(made, name)), name
        assert name in wrote["about"]
    assert mine.memory.tolist() == made.memory.tolist() == [2] * 16
    assert mine.rate.tolist() == made.rate.tolist()
    assert mine.tree.up.tolist() == made.tree.up.tolist()
    code, out, said = run(capsys, str(EXAMPLES / "mixtral.json"))
    assert (code, said) == (0, "")
    other = run(capsys, "--model", "mixtral-8x7b", "--cluster", str(EXAMPLES / "cluster-4x4.json"))[1]
    assert out.splitlines()[1:] == other.splitlines()[1 : len(out.splitlines())]
    assert "an expert takes 90.2 GB in all layers; experts that fit into a device: 2" in out


def test_inference_pays_no_all_reduce(capsys):
    words = ("--model", "mixtral-8x7b", "--cluster", str(EXAMPLES / "cluster-4x4.json"), "--inference", "--json")
    out = json.loads(run(capsys, *words)[1])
    assert len(out["groups"]) > 1
    assert out["terms"]["allreduce_us"] == 0


def test_why_nothing_fits_and_what_would(tmp_path, capsys):
    small = json.loads((EXAMPLES / "cluster-4x4.json").read_text())
    leaf = small["children"][0]["children"][0]
    leaf["memory_gb"] = 80
    path = tmp_path / "cluster.json"
    words = ("--model", "mixtral-8x7b", "--cluster", str(path))
    path.write_text(json.dumps(small))
    code, _, said = run(capsys, *words)
    assert code == 1
    assert "all devices (16) together hold 0 of 8 experts: an expert takes 90.2 GB in all layers, at 16 bytes" in said
    assert "a device has 37.6 GB for experts (0.9 of its memory, less 34.4 GB" in said
    assert "What would fit: 16 devices of at least 139 GB, or at most 9.2 bytes a parameter (--bytes), or --inf" in said
    assert run(capsys, *words, "--bytes", "9.2", "--deadline", "5")[0] == 0
    assert run(capsys, *words, "--bytes", "9.4", "--deadline", "5")[0] == 1
    assert run(capsys, *words, "--inference", "--deadline", "5")[0] == 0
    leaf["memory_gb"] = 139
    path.write_text(json.dumps(small))
    assert run(capsys, *words, "--deadline", "5")[0] == 0
    leaf["memory_gb"] = 138
    path.write_text(json.dumps(small))
    assert run(capsys, *words, "--deadline", "5")[0] == 1
    leaf["memory_gb"] = 20
    path.write_text(json.dumps(small))
    said = run(capsys, *words)[2]
    assert "device 0 (cluster.children[0].children[0]) has 18 GB for parameters" in said
    assert "too small are 16 of 16 devices" in said


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[]", "cluster.json: cluster must be"),
        ("{", "cluster.json: cluster is not JSON"),
        ('{"children": []}', "cluster.children must be a list of at least one child"),
        ('{"children": [' * 17 + "{}" + "]}" * 17, "cluster" + ".children[0]" * 17 + " is deeper than 16 levels"),
        (
            '{"alpha_us": 1, "beta_us_per_mib": 1, "children": [{"tflops": 3}]}',
            "cluster.children[0].memory_gb is missing",
        ),
        ('{"children": [{"tflops": 3, "memory_gb": 400}]}', "cluster.alpha_us is missing"),
    ],
)
def test_a_wrong_cluster_file_is_an_error(text, word, tmp_path, capsys):
    path = tmp_path / "cluster.json"
    path.write_text(text)
    code, out, said = run(capsys, "--model", "olmoe-1b-7b", "--cluster", str(path))
    assert (code, out) == (2, "")
    assert word in said


def test_the_models_are_listed(capsys):
    code, out, _ = run(capsys, "--model", "?")
    assert (code, out.split()) == (0, list(MODELS))


def test_missing_memory_of_a_file_is_said_in_gb(tmp_path, capsys):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**equal_devices(2, 8, 3), "expert_gb": 5}))
    code, _, said = run(capsys, str(path))
    assert code == 1
    assert "memory for 2 more is missing, 10 GB (an expert takes 5 GB)" in said
