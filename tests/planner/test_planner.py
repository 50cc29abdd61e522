"""The planner: terms, optima, bounds and baselines against an independent definition in planning.py."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import planning
import pytest

from aristos import planner
from aristos.cli.__main__ import main as aristos
from aristos.errors import InputError
from aristos.planner import baselines, exact, search, solver
from aristos.planner.words import explain, report, seconds_text

MODELS = ("work_conserving", "literal")
CHOICES = [(m, a) for m in MODELS for a in planner.ALLREDUCES]
NEAR = 1e-9


def near(value: float):
    return pytest.approx(value, rel=NEAR, abs=1e-9)


def command(*words: str, timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "aristos", "plan", *words], capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture
def pair() -> dict:
    """Two devices that could each hold all experts."""
    return {
        "experts": 2,
        "layer_cost": 10.0,
        "payload_mib": 1.0,
        "crossings": 2,
        "stages": 4,
        "gradient_mib": 1.0,
        "devices": [{"rate": 1.0, "memory": 2}, {"rate": 4.0, "memory": 2}],
        "alpha_us": [[0, 1.0], [1.0, 0]],
        "beta_us_per_mib": [[0, 2.0], [2.0, 0]],
    }


# ---------------------------------------------------------------- terms


def test_terms_by_hand(pair):
    problem = planner.parse(pair)
    together = planner.evaluate(problem, [[0, 1]])
    assert together.kappa == 2
    assert together.pi_us.tolist() == [2 * 10 / 5]
    assert together.comm_us.tolist() == [2 * (1 + 2 * 1 / 2)]
    assert together.allreduce_us == 0
    assert together.objective_us == 2 * (4 + 4)
    apart = planner.evaluate(problem, [[0], [1]])
    assert apart.pi_us.tolist() == [10, 2.5]
    assert apart.comm_us.tolist() == [0, 0]
    assert apart.allreduce_us == 2 * 1 * (1 + 2 * 1 / 2)
    assert planner.evaluate(problem, [[0, 1]], "literal").pi_us.tolist() == [2]


def test_alpha_stays_without_gradients(pair):
    cost = planner.evaluate(planner.parse({**pair, "gradient_mib": 0}), [[0], [1]])
    assert cost.allreduce_us == 2


@pytest.mark.parametrize(("model", "allreduce"), CHOICES)
def test_terms_of_random_partitions(model, allreduce):
    for seed in range(30):
        n = 1 + seed % 11
        p = planning.draw(seed, n, integers=seed % 3 == 0)
        where = [random.Random(seed).randrange(4) for _ in range(n)]
        groups = [[i for i in range(n) if where[i] == g] for g in sorted(set(where))]
        cost = planner.evaluate(planner.parse(p), groups, model, allreduce)
        assert cost.objective_us == near(planning.price(p, groups, model, allreduce))


def test_groups_that_are_no_partition_are_errors(pair):
    problem = planner.parse(pair)
    for groups, word in (([[0]], "device 1"), ([[0, 1], [1]], "device 1"), ([[0], [], [1]], "empty"), ([[0, 2]], "2")):
        with pytest.raises(InputError, match=word):
            planner.evaluate(problem, groups)


# ---------------------------------------------------------------- optima


def test_shared_instances(shared_dir):
    ran = 0
    for path in sorted((shared_dir / "planner").glob("*.json")):
        instance = json.loads(path.read_text())
        if "optimum_us" not in instance:  # it is another kind of file, which lies among the instances
            continue
        optimum, problem = instance["optimum_us"], planner.load(path)
        if optimum is None:
            with pytest.raises(planner.Infeasible):
                planner.solve(problem)
            continue
        started = time.monotonic()
        plan = planner.solve(problem)
        assert plan.objective_us == near(optimum), path.name
        assert plan.lower_bound_us == near(optimum), path.name
        assert time.monotonic() - started < 20, path.name
        ran += 1
    assert ran >= 8


@pytest.mark.parametrize(("model", "allreduce"), CHOICES)
def test_random_problems_against_all_partitions(model, allreduce):
    for seed in range(24):
        n = 1 + seed % 8
        p = planning.draw(seed, n, integers=seed % 4 == 3)
        optimum = planning.best(p, model, allreduce)
        if math.isinf(optimum):
            with pytest.raises(planner.Infeasible):
                planner.solve(planner.parse(p), model, allreduce)
            continue
        plan = planner.solve(planner.parse(p), model, allreduce)
        assert plan.objective_us == near(optimum), seed
        assert plan.objective_us == near(planning.price(p, plan.groups, model, allreduce)), seed
        assert plan.gap == 0


@pytest.mark.parametrize(("model", "allreduce"), CHOICES)
@pytest.mark.parametrize(("seed", "n"), [(100, 10), (101, 11), pytest.param(102, 12, marks=pytest.mark.slow)])
def test_larger_random_problems_against_all_partitions(seed, n, model, allreduce):
    p = planning.draw(seed, n)
    assert planner.solve(planner.parse(p), model, allreduce).objective_us == near(planning.best(p, model, allreduce))


@pytest.mark.compiled
def test_sixteen_devices_in_time():
    problem = planner.parse(planning.draw(5, 16))
    planner.solve(planner.parse(planning.draw(5, 4)))  # this call compiles
    for allreduce in planner.ALLREDUCES:
        started = time.process_time()
        assert planner.solve(problem, allreduce=allreduce).gap == 0
        assert time.process_time() - started < 5


@pytest.mark.parametrize(("model", "allreduce"), CHOICES)
def test_the_order_of_devices_does_not_matter(model, allreduce):
    for seed in (1, 4, 9):
        p = planning.draw(seed, 9)
        value = planner.solve(planner.parse(p), model, allreduce).objective_us
        order = list(range(9))
        random.Random(seed).shuffle(order)
        assert planner.solve(planner.parse(planning.relabel(p, order)), model, allreduce).objective_us == near(value)


@pytest.mark.parametrize(("model", "allreduce"), CHOICES)
def test_baselines_are_never_better(model, allreduce):
    for seed in range(12):
        problem = planner.parse(planning.draw(seed, 4 + seed % 7))
        plan = planner.solve(problem, model, allreduce)
        for _name, (_, cost) in baselines.all_baselines(problem, model, allreduce).items():
            assert cost.objective_us >= plan.objective_us * (1 - NEAR)


def test_the_greedy_of_2024_by_hand():
    """Two devices merge by their fast link, since neither has room alone. The third one joins where F rises least."""
    p = {
        "experts": 4,
        "layer_cost": 10.0,
        "payload_mib": 1.0,
        "crossings": 1,
        "stages": 5,
        "gradient_mib": 0.0,
        "devices": [{"rate": 1, "memory": m} for m in (2, 2, 2, 2, 1)],
        "alpha_us": [[0 if i == j else 1 if i // 2 == j // 2 else 9 for j in range(5)] for i in range(5)],
        "beta_us_per_mib": [[0.0] * 5 for _ in range(5)],
    }
    p["alpha_us"][4][2] = p["alpha_us"][2][4] = 5
    p["alpha_us"][4][3] = p["alpha_us"][3][4] = 5
    assert baselines.greedy(planner.parse(p)) == [[0, 1], [2, 3, 4]]


# ---------------------------------------------------------------- files


WRONG = [
    ("experts", 0),
    ("experts", 2.5),
    ("experts", True),
    ("layer_cost", -1.0),
    ("layer_cost", math.nan),
    ("payload_mib", "much"),
    ("crossings", None),
    ("stages", math.inf),
    ("gradient_mib", -0.5),
    ("model", "best"),
    ("devices", []),
    ("devices", {"rate": 1}),
    ("alpha_us", [[0.0]]),
    ("alpha_us", [[0.0, 1.0], [2.0, 0.0]]),
    ("alpha_us", [[0.0, -1.0], [-1.0, 0.0]]),
    ("alpha_us", [[1.0, 1.0], [1.0, 0.0]]),
    ("alpha_us", [[0.0, math.nan], [math.nan, 0.0]]),
    ("beta_us_per_mib", [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]),
    ("beta_us_per_mib", [[0.0, 1.0], [1.0]]),
    ("beta_us_per_mib", [[0.0, "1"], ["1", 0.0]]),
    ("beta_us_per_mib", [[0.0, True], [True, 0.0]]),
    ("beta_us_per_mib", 3),
    ("loads", [1.0]),
    ("loads", [1.0, -1.0]),
    ("loads", [True, 1.0]),
    ("experts", 1 << 40),
    ("experts", 10**400),
    ("layer_cost", 1e308),
    ("layer_cost", 10**400),
    ("stages", "4"),
    ("model", ["literal"]),
    ("devices", [{"rate": 1e-320, "memory": 2}, {"rate": 1.0, "memory": 2}]),
    ("devices", [{"rate": 1.0, "memory": 2, "name": 5}, {"rate": 1.0, "memory": 2}]),
    ("alpha_us", [[0.0, 1e308], [1e308, 0.0]]),
    ("alpha_us", [[0, 10**400], [10**400, 0]]),
    ("alpha_us", [0, 0]),
    ("cluster", None),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_field_is_named(pair, field, value):
    with pytest.raises(planner.ProblemError, match=f"^{field}"):
        planner.parse({**pair, field: value})


def run_here(capsys, *words: str) -> tuple[int, str, str]:
    """Run the command in this process. Returns (exit code, stdout, stderr); a traceback fails the test."""
    try:
        code = aristos(["plan", *words, "--json", "--deadline", "2"])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"\x00", b"9" * 5000, b"NaN"],
)
def test_text_that_is_no_problem(text, tmp_path, capsys):
    path = tmp_path / "p.json"
    path.write_bytes(text)
    code, out, said = run_here(capsys, str(path))
    assert (code, out) == (2, "")
    assert said.startswith(f"aristos plan: {path}: problem ")
    assert text or said.endswith("is not JSON: the file is empty\n")


def test_wrong_paths_and_options_are_errors(pair, tmp_path, capsys):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(pair))
    for words, word in (
        ([], "PROBLEM.json"),
        ([str(tmp_path)], str(tmp_path)),
        (["--model", "olmoe-1b-7b", "--topology", str(tmp_path)], str(tmp_path)),
        (["--model", "olmoe-1b-7b"], "--topology"),
        (["--model", "mixtral"], "mixtral-8x7b"),
        ([str(path), "--plot", ""], "--plot"),
        ([str(path), "--plot", str(tmp_path)], "--plot"),
        ([str(path), "--seed", "-1"], "--seed"),
        ([str(path), "--tokens", "0"], "--tokens"),
        ([str(path), "--tokens", "8"], "--tokens"),
        ([str(path), "--inference"], "--inference"),
        *(([str(path), "--deadline", wrong], "--deadline") for wrong in ("0", "-1", "nan", "inf", "x")),
    ):
        try:
            code = aristos(["plan", *words])
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        assert (code, said.out) == (2, ""), words
        assert word in said.err, words


def test_a_picture_replaces_nothing_but_a_regular_file(pair, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path, pipe = tmp_path / "p.json", tmp_path / "pipe.png"
    path.write_text(json.dumps(pair))
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)  # without a reader, a writer would wait
    code, _, said = run_here(capsys, str(path), "--plot", str(pipe))
    os.close(held)
    assert (code, said) == (
        3,
        f"aristos plan: {pipe} cannot be drawn: must be a regular file, but it is a pipe\n",
    )


def test_a_list_of_models_into_a_closed_pipe():
    command = f"set -o pipefail; {sys.executable} -m aristos plan --model '?' | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
def test_odd_problems_have_plans(pair, tmp_path, capsys):
    """Problems have one device, one expert, costs of 0, or devices without memory or with far too much of it."""
    path, n = tmp_path / "p.json", 20
    links = [[0.0 if i == j else 3.0 for j in range(n)] for i in range(n)]
    none = [[0.0] * n for _ in range(n)]
    many = {**pair, "devices": [{"rate": 1.0, "memory": 1}] * n, "alpha_us": links, "beta_us_per_mib": links}
    one = {**pair, "devices": pair["devices"][:1], "alpha_us": [[0]], "beta_us_per_mib": [[0]]}
    free = dict.fromkeys(("layer_cost", "crossings", "stages", "gradient_mib", "payload_mib"), 0)
    for p in (
        one,
        {**pair, "experts": 1},
        {**pair, **free},
        {**many, "crossings": 0},
        {**many, "layer_cost": 0},
        {**many, **free, "alpha_us": none, "beta_us_per_mib": none},
        {**many, "devices": [{"rate": 1.0, "memory": 4 * (i % 2)} for i in range(n)]},
        {**many, "devices": [{"rate": 10.0 ** (i - 10), "memory": 1 << 47} for i in range(n)]},
        {**many, "layer_cost": 1e-320, "alpha_us": none},
    ):
        path.write_text(json.dumps(p))
        for words in ((), ("--allreduce", "crossing", "--objective", "literal")):
            code, out, said = run_here(capsys, str(path), *words)
            assert (code, said) == (0, "")
            found = json.loads(out)
            groups = found["groups"]
            objective = "literal" if words else "work_conserving"
            value = planning.price(p, groups, objective, "crossing" if words else "any")
            assert found["objective_us"] == near(value)
            assert found["lower_bound_us"] <= value * (1 + NEAR)


@pytest.mark.parametrize("field", ["experts", "stages", "devices", "alpha_us", "crossings"])
def test_a_missing_field_is_named(pair, field):
    del pair[field]
    with pytest.raises(planner.ProblemError, match=f"^{field} is missing"):
        planner.parse(pair)


@pytest.mark.parametrize(("key", "value"), [("rate", 0), ("rate", math.nan), ("memory", -1), ("memory", 1.5)])
def test_a_wrong_device_is_named(pair, key, value):
    pair["devices"][1][key] = value
    with pytest.raises(planner.ProblemError, match=rf"^devices\[1\]\.{key}"):
        planner.parse(pair)


# ---------------------------------------------------------------- the command


KEYS = {
    "feasible",
    "objective_us",
    "achieved_us",
    "lower_bound_us",
    "gap",
    "groups",
    "placement",
    "terms",
    "bottleneck",
    "method",
}


def test_the_command_prints_json_alone(pair, tmp_path, capsys):
    path = tmp_path / "pair.json"
    path.write_text(json.dumps(pair))
    ran = command(str(path), "--json")
    assert ran.returncode == 0, ran.stderr
    out = json.loads(ran.stdout)
    assert set(out) == KEYS
    assert out["objective_us"] == near(planning.best(pair, "work_conserving", "any"))
    terms, n = out["terms"], 2
    longest = max(pi + comm for pi, comm in zip(terms["pi_us"], terms["comm_us"]))
    assert out["objective_us"] == near(terms["kappa"] * longest + terms["allreduce_us"])
    assert sorted(i for g in out["groups"] for i in g) == list(range(n))
    for members, placement in zip(out["groups"], out["placement"]):
        assert sorted(placement, key=int) == ["0", "1"]
        assert {d for devices in placement.values() for d in devices} <= set(members)
    assert out["bottleneck"]["device"] in out["groups"][out["bottleneck"]["group"]]
    assert aristos(["plan", str(path)]) == 0
    words = capsys.readouterr().out
    assert "bottleneck" in words
    assert max(map(len, words.splitlines())) <= 120


@pytest.mark.parametrize("model", MODELS)
def test_every_term_of_the_json(model):
    """The terms of plans with several groups, and of their bottleneck, equal the definition."""
    seen = set()
    for seed in range(30):
        p = planning.draw(seed, 6)
        plan = planner.solve(planner.parse(p), model)
        out, n = plan.to_json(), 6
        groups, terms = out["groups"], out["terms"]
        assert terms["kappa"] == near(p["stages"] / n)
        link = planning.by_slowness(p)[0]
        assert terms["allreduce_us"] == near(planning.reduction(p, len(groups), link))
        comm = []
        for g in groups:
            share = p["payload_mib"] / len(g)
            comm.append(
                {
                    i: p["crossings"]
                    * sum(p["alpha_us"][i][j] + p["beta_us_per_mib"][i][j] * share for j in g if j != i)
                    for i in g
                }
            )
        assert terms["comm_us"] == near([max(each.values()) for each in comm])
        both = [planning.stage(p, tuple(g), model) for g in groups]
        assert [a + b for a, b in zip(terms["pi_us"], terms["comm_us"])] == near(both)
        found = out["bottleneck"]
        g = found["group"]
        sizes = {"pi": terms["kappa"] * terms["pi_us"][g], "comm": terms["kappa"] * terms["comm_us"][g]}
        if found["term"] == "allreduce":
            assert found["device"] in groups[g]
            assert found["device"] in link
            slow = both.index(max(both))
            assert terms["allreduce_us"] >= terms["kappa"] * max(terms["pi_us"][slow], terms["comm_us"][slow])
        else:
            assert both[g] == near(max(both))
            assert sizes[found["term"]] == max(sizes.values())
            rates = {i: p["devices"][i]["rate"] for i in groups[g]}
            if found["term"] == "pi":
                assert rates[found["device"]] == min(rates.values())
            else:
                assert comm[g][found["device"]] == near(max(comm[g].values()))
            assert terms["allreduce_us"] <= max(sizes.values())
        seen.add(found["term"])
    assert seen == {"pi", "comm", "allreduce"}
    assert replace(plan, lower_bound_us=plan.objective_us * 0.75).gap == near(0.25)


def test_the_report_names_what_shortens_the_step(pair):
    """The step with the group's slower device at twice its rate was computed by hand."""
    pair["devices"] = [{"rate": 1.0, "memory": 1}, {"rate": 4.0, "memory": 1}]
    said = explain(planner.solve(planner.parse({**pair, "layer_cost": 30.0})))
    assert "compute of group 0, 12 us of its stage's 16 us" in said
    assert "device 0 at rate 1" in said
    assert "With twice the rate, a step takes 28 us" in said
    said = explain(planner.solve(planner.parse({**pair, "layer_cost": 1.0})))
    assert "the links of device 0" in said
    assert "twice as fast, a step takes 4.8 us" in said


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_equally_slow_groups_are_all_reported(pair, count):
    """Each of several equal devices is a group. All stages are equally long, and the report calls none shorter."""
    p = {**pair, "devices": [{"rate": 2.0, "memory": 2}] * count}
    for key in ("alpha_us", "beta_us_per_mib"):
        p[key] = [[0 if i == j else 1e6 for j in range(count)] for i in range(count)]
    problem = planner.parse({**p, "stages": 1e15})
    groups = [[i] for i in range(count)]
    cost = planner.evaluate(problem, groups)
    plan = planner.Plan(problem, "work_conserving", "any", groups, cost, 0.0, "by hand")
    said = report(plan, 0.0)
    want = {
        1: "",
        2: "; group 1 takes as long",
        3: "; groups 1-2 take as long",
        30: "; groups 1-29 take as long",
    }
    assert want[count] in said
    assert ("as long" in said) == (count > 1)
    assert "shorter" not in said
    assert ("6 more groups, whose stages are not longer" in said) == (count == 30)


def test_without_time_the_best_baseline_is_the_plan():
    for seed in (7, 8, 9):
        problem = planner.parse(planning.draw(seed, 30))
        plan = planner.solve(problem, deadline_s=1e-3)
        known = [cost.objective_us for _, cost in baselines.all_baselines(problem).values()]
        assert plan.objective_us == near(min(known))


def test_the_command_on_infeasible_and_wrong_problems(pair, tmp_path, capsys):
    path = tmp_path / "problem.json"
    short = copy.deepcopy(pair)
    short["devices"][0]["memory"], short["devices"][1]["memory"] = 0, 1
    path.write_text(json.dumps(short))
    ran = command(str(path), "--json")
    assert ran.returncode == 1
    out = json.loads(ran.stdout)
    assert (out["feasible"], out["missing_memory"]) == (False, 1)
    for text, word in (
        (json.dumps({**pair, "alpha_us": [[0, 1], [2, 0]]}), "alpha_us"),
        (json.dumps({**pair, "gradient_mib": math.nan}), "gradient_mib"),
        ("{", "JSON"),
    ):
        path.write_text(text)
        code, printed, said = run_here(capsys, str(path))
        assert (code, printed) == (2, "")
        assert word in said
    code, _, said = run_here(capsys, str(tmp_path / "none.json"))
    assert code == 2
    assert "none.json" in said


# ---------------------------------------------------------------- larger problems


def large(problem: planner.Problem, model: str, allreduce: str, seconds: float = 30.0) -> planner.Plan:
    """The plan of a problem, which is solved by the method for problems with too many subsets to try all."""
    start = time.monotonic()
    name, (groups, _) = min(
        baselines.all_baselines(problem, model, allreduce).items(), key=lambda item: item[1][1].objective_us
    )
    return solver._Large(problem, model, allreduce, start, start + seconds, 0).solve(groups, name)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "allreduce"), CHOICES)
def test_bounds_are_never_above_the_optimum(model, allreduce, monkeypatch):
    """The bounds use cells, or the equal cells of a tree whose links are no slower than the problem's."""
    monkeypatch.setattr(search, "ROUNDS", 1)
    monkeypatch.setattr(search, "STEPS", 20_000)
    gaps = []
    for seed in range(10):
        p = planning.draw(seed, 4 + seed % 5, integers=seed % 5 == 4)
        problem = planner.parse(p)
        try:
            optimum = planner.solve(problem, model, allreduce).objective_us
        except planner.Infeasible:
            continue
        for most in (exact.MOST, 0):
            monkeypatch.setattr(solver, "CELLS_MOST", most)
            plan = large(problem, model, allreduce)
            assert plan.lower_bound_us <= optimum * (1 + NEAR), (seed, most)
            assert plan.objective_us >= optimum * (1 - NEAR), (seed, most)
            gaps.append((plan.objective_us - optimum) / optimum if optimum else 0.0)
    assert len(gaps) > 10
    assert sorted(gaps)[len(gaps) // 2] < 1e-6


def cluster(*nodes: tuple[int, int, float, int], alpha: float = 15.0, beta: float = 47.0) -> dict:
    """A compressed cluster: kinds of nodes (how many, devices, rate, memory) behind one switch."""
    children = [
        {"count": c, "alpha_us": 3, "beta_us_per_mib": 4.5, "children": [{"count": d, "rate": r, "memory": m}]}
        for c, d, r, m in nodes
    ]
    return {"alpha_us": alpha, "beta_us_per_mib": beta, "children": children}


def compressed(tree: dict, **changes) -> dict:
    p = {
        "experts": 64,
        "layer_cost": 1900.0,
        "payload_mib": 134,
        "crossings": 4,
        "stages": 2304,
        "gradient_mib": 19300,
        "cluster": tree,
    }
    return {**p, **changes}


def spelled_out(p: dict) -> dict:
    """A compressed problem as one with matrices, made without the package."""
    devices, path = [], []

    def add(node: dict, above: list) -> None:
        if "children" not in node:
            devices.append({"rate": node["rate"], "memory": node["memory"]})
            path.append(above)
            return
        for child in node["children"]:
            for _ in range(child.get("count", 1)):
                here = object()
                add(child, [*above, (here, node)])

    add(p["cluster"], [])
    n = len(devices)
    alpha, beta = [[0.0] * n for _ in range(n)], [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            if i != j:
                meet = next(a[1] for a, b in zip(path[i], path[j]) if a[0] is not b[0])
                alpha[i][j], beta[i][j] = meet["alpha_us"], meet["beta_us_per_mib"]
    return {
        **{k: v for k, v in p.items() if k != "cluster"},
        "devices": devices,
        "alpha_us": alpha,
        "beta_us_per_mib": beta,
    }


@pytest.mark.parametrize(("payload", "shape"), [(1, cluster((2, 4, 100.0, 3))), (50, cluster((8, 4, 100.0, 3)))])
def test_the_report_of_a_compressed_cluster_is_that_of_its_matrices(payload, shape):
    """The report is that of the same problem given as matrices, solved as a small and as a large problem."""
    p = compressed(shape, experts=8, layer_cost=1000.0, payload_mib=payload, stages=800, gradient_mib=10)
    plan = planner.solve(planner.parse(p), deadline_s=3)
    assert plan.bottleneck["term"] == "comm"
    said = explain(plan)
    whole = planner.parse(spelled_out(p))
    assert said == explain(replace(plan, problem=whole))
    # by hand: halve the links within the group of the named device
    group, device = plan.groups[plan.bottleneck["group"]], plan.bottleneck["device"]
    better = spelled_out(p)
    for key in ("alpha_us", "beta_us_per_mib"):
        for j in group:
            better[key][device][j] = better[key][j][device] = better[key][device][j] / 2
    after = planner.evaluate(planner.parse(better), plan.groups)
    step = plan.cost.kappa * float((after.pi_us + after.comm_us).max()) + plan.cost.allreduce_us
    assert (
        f"the device's links in the group twice as fast, a step takes {seconds_text(step)} with the same groups" in said
    )


def nested(levels: int) -> dict:
    """A device below this many switches."""
    found = {"rate": 1, "memory": 1}
    for _ in range(levels):
        found = {"alpha_us": 1, "beta_us_per_mib": 1, "children": [found]}
    return found


TREES = [
    cluster((3, 4, 1.0, 26)),
    cluster((2, 4, 1.0, 12), (1, 3, 0.4, 20)),
    {"alpha_us": 20, "beta_us_per_mib": 90, "children": [cluster((2, 2, 1.0, 30)), cluster((1, 3, 2.5, 22))]},
    {"alpha_us": 2, "beta_us_per_mib": 3, "children": [cluster((2, 2, 1.0, 40)), {"count": 3, "rate": 1, "memory": 9}]},
    {
        "alpha_us": 9,
        "beta_us_per_mib": 99,
        "children": [cluster((2, 2, 1.0, 40)), {"count": 2, "rate": 1, "memory": 70}],
    },
]


@pytest.mark.parametrize("allreduce", planner.ALLREDUCES)
@pytest.mark.parametrize("tree", TREES)
def test_the_compressed_form_is_the_same_problem(tree, allreduce):
    p = compressed(tree)
    whole = spelled_out(p)
    short, long = planner.parse(p), planner.parse(whole)
    rng = random.Random(3)
    for _ in range(10):
        where = [rng.randrange(3) for _ in range(short.n)]
        groups = [[i for i in range(short.n) if where[i] == g] for g in sorted(set(where))]
        mine = planner.evaluate(short, groups, allreduce=allreduce)
        other = planner.evaluate(long, groups, allreduce=allreduce)
        assert mine.objective_us == near(other.objective_us)
        assert mine.comm_us.tolist() == near(other.comm_us.tolist())
        assert mine.allreduce_us == near(other.allreduce_us)
        assert mine.link == other.link
    optimum = planner.solve(long, allreduce=allreduce).objective_us
    assert planner.solve(short, allreduce=allreduce).objective_us == near(optimum)
    plan = large(short, "work_conserving", allreduce)
    assert plan.lower_bound_us <= optimum * (1 + NEAR)
    assert optimum * (1 - NEAR) <= plan.objective_us <= optimum * 1.3


@pytest.mark.compiled
def test_a_thousand_regular_devices():
    p = compressed(cluster((128, 8, 1.0, 26)), stages=192 * 1024)
    started = time.process_time()
    plan = planner.solve(planner.parse(p))
    assert time.process_time() - started < 10
    assert plan.gap <= 0.05
    assert sorted(i for g in plan.groups for i in g) == list(range(1024))


@pytest.mark.slow
@pytest.mark.compiled
def test_the_deadline_is_kept():
    problem = planner.parse(planning.draw(7, 40))
    planner.solve(planner.parse(planning.draw(7, 20)), deadline_s=0.2)  # this call compiles
    started = time.monotonic()
    plan = planner.solve(problem, deadline_s=1)
    assert time.monotonic() - started < 12  # a call to the solver and a piece of annealing may still run
    for _name, (_, cost) in baselines.all_baselines(problem).items():
        assert plan.objective_us <= cost.objective_us * (1 + NEAR)


@pytest.mark.parametrize("model", MODELS)
def test_stages_that_take_no_time(model, monkeypatch):
    """Without compute and with free links all stages take no time, also those of empty groups."""
    monkeypatch.setattr(search, "STEPS", 20_000)
    p = planning.draw(7, 20)
    p.update(layer_cost=0.0, payload_mib=0.0, alpha_us=[[0.0] * 20 for _ in range(20)])
    plan = large(planner.parse(p), model, "any", 3.0)
    assert (plan.objective_us, plan.gap) == (0.0, 0.0)
    found = search.GroupSearch(plan.problem, model, "any", [list(range(20))], 0)
    found.offer(found.best)
    found.anneal(time.monotonic() + 20, lambda: False)
    assert sorted(i for g in found.best for i in g) == list(range(20))


@pytest.mark.parametrize("model", MODELS)
def test_without_time_the_bound_is_that_of_the_rates(model):
    for seed in range(6):
        p = planning.draw(seed, 7)
        problem = planner.parse(p)
        try:
            optimum = planner.solve(problem, model).objective_us
        except planner.Infeasible:
            continue
        low = large(problem, model, "any", 0.0).lower_bound_us
        rates = sum(d["rate"] for d in p["devices"])
        assert low == near(p["stages"] / 7 * (7 if model == "work_conserving" else 1) * p["layer_cost"] / rates)
        assert low <= optimum * (1 + NEAR)


def test_cuts_keep_the_time_limit(monkeypatch):
    """Computing cuts in small pieces gives the same cuts. When time is up, the search stops even within an order."""
    problem = planner.parse(planning.draw(3, 40))
    found = search.GroupSearch(problem, "literal", "any", [list(range(40))], 0)
    whole = found._cuts(np.arange(40), math.inf)
    for n, most in ((1, 1), (40, 40), (2000, 1), (2000, 500), (2048, 2048)):
        ranges = list(search.pieces(n, most))
        assert [i for begin, end in ranges for i in range(begin, end)] == list(range(1, n + 1))
        assert all(sum(i * (i + most) for i in range(*each)) <= search.CUT_WORK for each in ranges)
    monkeypatch.setattr(search, "CUT_WORK", 1)
    pieces = found._cuts(np.arange(40), math.inf)
    assert all((a == b).all() for a, b in zip(whole, pieces))
    ticks = iter(range(1000))
    monkeypatch.setattr(search, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    assert found._cuts(np.arange(40), 10) is None
    assert next(ticks) == 12


@pytest.mark.slow
@pytest.mark.compiled
def test_equal_seeds_give_equal_groups(monkeypatch):
    monkeypatch.setattr(search, "ROUNDS", 2)
    monkeypatch.setattr(search, "STEPS", 10_000)
    # It has a time limit, so it may change the bound; it never changes groups.
    monkeypatch.setattr(solver._Large, "sharpen", lambda *_: None)
    problem = planner.parse(planning.draw(2, 30))
    plans = [planner.solve(problem, seed=5) for _ in range(2)]
    assert plans[0].groups == plans[1].groups


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ([], "cluster"),
        (None, "cluster"),
        (nested(300), r"cluster(.children\[0\]){17}"),
        ({"alpha_us": 1, "beta_us_per_mib": 1, "children": ["x"]}, r"cluster.children\[0\]"),
        (
            {"alpha_us": 1, "beta_us_per_mib": 1, "children": [{"rate": 1, "memory": 1, "count": True}]},
            r"cluster.children\[0\].count",
        ),
        ({"alpha_us": 1, "beta_us_per_mib": 1e308, "children": [{"rate": 1, "memory": 1}]}, "cluster.beta_us_per_mib"),
        (
            {
                "alpha_us": 1,
                "beta_us_per_mib": 1,
                "children": [
                    {
                        "count": 1000,
                        "alpha_us": 1,
                        "beta_us_per_mib": 1,
                        "children": [{"count": 1001, "rate": 1, "memory": 1}],
                    }
                ],
            },
            "cluster",
        ),
        ({"alpha_us": 1}, "cluster.rate"),
        ({"alpha_us": 1, "beta_us_per_mib": 1, "children": []}, "cluster.children"),
        ({"beta_us_per_mib": 1, "children": [{"rate": 1, "memory": 1}]}, "cluster.alpha_us"),
        ({"alpha_us": math.nan, "beta_us_per_mib": 1, "children": [{"rate": 1, "memory": 1}]}, "cluster.alpha_us"),
        (
            {"alpha_us": 1, "beta_us_per_mib": 1, "children": [{"rate": 1, "memory": -1}]},
            r"cluster.children\[0\].memory",
        ),
        (
            {"alpha_us": 1, "beta_us_per_mib": 1, "children": [{"rate": 1, "memory": 1, "count": 0}]},
            r"cluster.children\[0\].count",
        ),
    ],
)
def test_a_wrong_field_of_a_compressed_cluster_is_named(data, field):
    with pytest.raises(planner.ProblemError, match=f"^{field} "):
        planner.parse(compressed(data))


@pytest.mark.parametrize("name", ["a\x1b]0;owned\x07", "a\nb", "\ud800", "x\u202ey"])
def test_a_name_that_cannot_be_shown_is_refused(pair, name):
    devices = [{"rate": 1.0, "memory": 4, "name": name}, {"rate": 1.0, "memory": 4}]
    with pytest.raises(InputError, match=r"devices\[0\]\.name must have no control characters"):
        planner.parse({**pair, "devices": devices})


@pytest.mark.parametrize("value", [10**5000, "x" * 5_000_000, [[0] * 100_000]], ids=["digits", "text", "list"])
def test_messages_about_huge_values_are_short(pair, value):
    for field in ("experts", "stages", "model", "loads", "devices", "alpha_us"):
        with pytest.raises(InputError) as caught:
            planner.parse({**pair, field: value})
        assert len(str(caught.value)) <= 400
    with pytest.raises(InputError) as caught:
        planner.parse({**pair, "devices": [{"rate": value, "memory": 1}, value]})
    assert len(str(caught.value)) <= 400


def test_a_terminal_without_the_characters_of_a_name_shows_escapes(pair, tmp_path):
    devices = [{"rate": 1.0, "memory": 4, "name": "carte-é"}, {"rate": 1.0, "memory": 4}]
    (tmp_path / "p.json").write_text(json.dumps({**pair, "devices": devices}))
    words = [sys.executable, "-m", "aristos", "plan", str(tmp_path / "p.json")]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert r"carte-\xe9" in done.stdout


@pytest.mark.parametrize(
    ("data", "option"),
    [
        ({"alpha_us": 1, "beta_us_per_mib": 1, "children": []}, "--cluster"),
        ({"cluster": {"children": []}}, "--cluster"),
        ({"schema": "x", "hosts": [], "classes": []}, "--topology"),
    ],
)
def test_a_file_of_a_machine_alone_names_the_option_that_takes_it(data, option):
    with pytest.raises(planner.ProblemError, match=rf"experts is missing: .* so give --model NAME {option} FILE"):
        planner.parse(data)
