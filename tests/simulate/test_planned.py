"""A plan's groups are simulated, and Equation 1 is compared with them term by term: `aristos plan --check simulate`."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from aristos import planner
from aristos.cli import plan as command
from aristos.config import MoEConfig
from aristos.planner.cost import evaluate
from aristos.planner.plan import Plan
from aristos.simulate import planned

TOKENS, HIDDEN, FFN, EXPERTS, TOP_K = 256, 256, 512, 8, 2
CFG = MoEConfig(HIDDEN, FFN, EXPERTS, TOP_K, gated=True, max_tokens=TOKENS, dtype="bfloat16")
COST = TOKENS * TOP_K * 6 * HIDDEN * FFN / 1e6  # MFLOP


def plan(groups, beta=50.0, rates=(0.05,) * 8, **more):
    """A plan with these groups of 8 devices, whose links are equal."""
    links = {"alpha_us": 2.0, "beta_us_per_mib": beta}
    problem = planner.parse(
        {
            "experts": EXPERTS,
            "layer_cost": COST,
            "payload_mib": TOKENS * TOP_K * HIDDEN * 2 / 2**20,
            "crossings": 2,
            "stages": 8,
            "gradient_mib": None,
            "devices": [{"rate": rate, "memory": EXPERTS} for rate in rates],
            **{name: (value * (1 - np.eye(8))).tolist() for name, value in links.items()},
        }
    )
    problem = replace(problem, **more)
    return Plan(problem, "work_conserving", "any", groups, evaluate(problem, groups), 0.0, "test")


def checked(of, alike):
    return planned.check(of, alike, CFG, TOKENS, 0, lambda now: None)


def test_equal_groups_are_simulated_once():
    halves = [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert planned.distinct(plan(halves)) == [[0, 1]]
    assert planned.distinct(plan(halves, rates=(0.05,) * 7 + (0.04,))) == [[0], [1]]
    assert planned.distinct(plan([[0], [1, 2], [3, 4], [5, 6, 7]])) == [[0], [1, 2], [3]]


@pytest.mark.slow
def test_compute_is_that_of_equation_1_where_experts_are_even():
    alone = checked(plan([[each] for each in range(8)]), list(range(8)))
    assert alone.devices == 1
    assert alone.compute == pytest.approx(alone.pi, rel=1e-3)
    assert (alone.comm, alone.network) == (0, 0)
    four = checked(plan([[0, 1, 2, 3], [4, 5, 6, 7]]), [0, 1])
    assert four.pi < four.compute < 1.25 * four.pi  # the busiest of four devices has more rows than the mean
    assert four.compute + four.network + four.steps == pytest.approx(four.stage, rel=0.02)


@pytest.mark.slow
def test_slower_links_and_devices_make_their_terms_longer():
    halves = [[0, 1, 2, 3], [4, 5, 6, 7]]
    fast, slow = (checked(plan(halves, beta), [0, 1]) for beta in (50.0, 20_000.0))
    assert slow.comm > 100 * fast.comm
    assert slow.network > 10 * fast.network
    assert 0.5 < slow.comm / slow.network < 2
    assert slow.compute == pytest.approx(fast.compute, rel=0.2)
    lame = checked(plan(halves, rates=(0.025, 0.05, 0.05, 0.05) * 2), [0, 1])
    assert lame.compute > 1.05 * fast.compute


@pytest.mark.slow
def test_the_command_adds_the_check(tmp_path, capsys):
    file = tmp_path / "cluster.json"
    links = {"alpha_us": 2, "beta_us_per_mib": 42}
    file.write_text(json.dumps({**links, "children": [{"count": 4, "tflops": 0.9, "memory_gb": 64}]}))
    words = ["--model", "olmoe-1b-7b", "--cluster", str(file), "--tokens", "32", "--inference", "--check", "simulate"]
    assert command.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(group for each in found["check"] for group in each["alike"]) == list(range(len(found["groups"])))
    one = found["check"][0]
    assert one["predicted"]["pi_us"] == pytest.approx(found["terms"]["pi_us"][0])
    assert one["error"]["pi_us"] == pytest.approx(one["predicted"]["pi_us"] / one["simulated"]["pi_us"] - 1)
    assert command.main(words) == 0
    assert "Equation 1, checked by a simulation" in capsys.readouterr().out


def test_a_problem_without_a_model_cannot_be_checked(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["examples/mixtral.json", "--check", "simulate"])
    assert end.value.code == 2
    assert "--check needs --model NAME" in capsys.readouterr().err
