"""Placing experts by rate and memory, by loads, and with copies; moving tokens or weights."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import planning
import pytest
from mpi import FLAG, LAUNCHER_VARIABLES, find_mpiexec

from aristos import planner
from aristos.cli.__main__ import main as aristos
from aristos.errors import InputError
from aristos.models import MODELS
from aristos.planner import moving, placing, published, replicas
from aristos.topology.links import from_json


def test_shares_are_optimal():
    rng = np.random.default_rng(0)
    for _ in range(40):
        devices, experts = int(rng.integers(1, 4)), int(rng.integers(1, 9))
        rate = rng.choice([0.4, 1.0, 2.5], devices)
        memory = rng.integers(0, 9, devices)
        if memory.sum() < experts:
            continue
        held = placing.shares(experts, rate, memory)
        assert held.sum() == experts
        assert (held <= memory).all()
        every = itertools.product(*(range(m + 1) for m in memory))
        best = min(max(h / r for h, r in zip(split, rate)) for split in every if sum(split) == experts)
        assert (held / rate).max() == pytest.approx(best)


def check(placement: list[list[int]], memory: np.ndarray, experts: int) -> None:
    assert len(placement) == experts
    for places in placement:
        assert places
        assert len(set(places)) == len(places)
    held = np.bincount([d for places in placement for d in places], minlength=len(memory))
    assert (held <= memory).all()


def test_loads_are_placed_within_memory_and_more_memory_is_never_worse():
    rng = np.random.default_rng(1)
    for _ in range(30):
        devices, experts = int(rng.integers(1, 6)), int(rng.integers(1, 20))
        loads = rng.pareto(1.2, experts) * 100
        rate = rng.choice([0.5, 1.0, 2.0], devices)
        memory = rng.integers(1, experts + 1, devices)
        memory[0] += max(0, experts - memory.sum())
        before = np.inf
        for most in (experts, experts + 2, None):
            placement = replicas.replicate(loads, rate, memory, most)
            check(placement, memory, experts)
            value = replicas.longest(placement, loads, rate)
            assert value >= loads.sum() / rate.sum() * (1 - 1e-12)
            assert value <= before * (1 + 0.2)
            before = min(before, value)


def test_a_hot_expert_gets_copies():
    placement = replicas.replicate(np.array([90.0, 10, 10, 10]), np.ones(3), np.full(3, 4))
    assert len(placement[0]) == 3
    assert replicas.longest(placement, np.array([90.0, 10, 10, 10]), np.ones(3)) == pytest.approx(40)


def test_a_plan_places_by_loads():
    p = planning.draw(3, 6)
    p["loads"] = [1000.0] + [1.0] * (p["experts"] - 1)
    for device in p["devices"]:
        device["memory"] = p["experts"]
    plan = planner.solve(planner.parse(p))
    for members, placement in zip(plan.groups, plan.placement):
        assert sorted(placement) == list(range(p["experts"]))
        assert len(placement[0]) == len(members)
        assert all(set(places) <= set(members) for places in placement.values())


def eplb(loads: np.ndarray, devices: int, slots: int) -> replicas.Placement:
    """DeepSeek's global balancing: `slots` copies in all, the same number on every device.

    Copies are added one by one, always to the expert with the largest load per copy. Then, from heavy to light, each
    copy goes to the least loaded device with a free slot, even if that device already holds a copy of the expert.
    slots: a multiple of devices.
    """
    copies = replicas.copies_of(loads, slots, slots)
    share = np.repeat(loads / copies, copies)
    expert = np.repeat(np.arange(len(loads)), copies)
    load, left = np.zeros(devices), np.full(devices, slots // devices)
    placement: replicas.Placement = [[] for _ in loads]
    for at in np.argsort(-share, kind="stable"):
        d = int(np.argmin(np.where(left > 0, load, np.inf)))
        load[d] += share[at]
        left[d] -= 1
        placement[expert[at]].append(d)
    return placement


def test_eplb_by_hand():
    placement = eplb(np.array([8.0, 5, 2, 2]), 2, 6)
    assert sorted(len(places) for places in placement) == [1, 1, 2, 2]
    assert len(placement[0]) == len(placement[1]) == 2


def histograms(folder) -> list[np.ndarray]:
    """Expert loads of every layer of the recorded models."""
    found = []
    counts = np.load(folder / "olmoe_1b_7b" / "alpaca_sequence_counts.npz")["counts"]
    found += list(counts.sum(0).astype(np.float64))
    ids = np.load(folder / "deepseek_v2_lite_esft" / "law.npz")["expert_ids"]
    found += [np.bincount(ids[:, layer].ravel(), minlength=64).astype(np.float64) for layer in range(ids.shape[1])]
    return found


def test_no_worse_than_eplb_on_recorded_loads(shared_dir):
    ratios = []
    for loads in histograms(shared_dir / "traces"):
        for copies in (0, 16):
            slots = len(loads) + copies
            theirs = replicas.longest(eplb(loads, 8, slots), loads, np.ones(8))
            mine = replicas.replicate(loads, np.ones(8), np.full(8, slots // 8))
            check(mine, np.full(8, slots // 8), len(loads))
            ratios.append(replicas.longest(mine, loads, np.ones(8)) / theirs)
    assert len(ratios) >= 80
    assert max(ratios) <= 1.01
    assert np.mean(ratios) <= 1.0


def test_moving_tokens_or_weights():
    few = moving.compare(4, 7168, 2048, 256, 8, True, 8)
    many = moving.compare(1 << 20, 7168, 2048, 8, 2, True, 8)
    assert (few.move, many.move) == ("tokens", "weights")
    assert few.token_bytes == 2 * 4 * 8 * 7 / 8 * 7168 * 2
    assert many.weight_bytes == pytest.approx(8 * 7 / 8 * 3 * 7168 * 2048 * 2)
    assert moving.compare(100, 8, 8, 4, 2, False, 1).token_bytes == 0


def test_shapes_of_published_models(shared_dir):
    shared = json.loads((shared_dir / "traces" / "moe_models.json").read_text())["models"]
    by_name = {m["name"]: m for m in shared}
    assert len(MODELS) >= 56
    compared = [name for name in MODELS if name in by_name]
    assert len(compared) >= 25
    for name in compared:
        m, theirs = MODELS[name], by_name[name]
        mine = (m.hidden, m.ffn, m.experts, m.top_k, m.moe_layers)
        assert mine == tuple(
            theirs[key] for key in ("hidden_size", "expert_intermediate_size", "num_experts", "top_k", "num_moe_layers")
        ), name
        assert m.gated == theirs["gated"]
        assert (m.layers, m.shared) == (theirs["num_layers"], theirs["shared_intermediate_size"]), name
        if m.layers > m.moe_layers:  # one model's file gives no width for dense layers: theirs is the experts'
            assert m.dense_ffn == (theirs["dense_intermediate_size"] or m.ffn), name
        assert m.source


def links(n: int, gigabytes: float) -> dict:
    """A file of `aristos topo --measure` for two nodes."""
    alpha = [[0.0 if i == j else 3.0 if i // (n // 2) == j // (n // 2) else 15.0 for j in range(n)] for i in range(n)]
    span = {"alpha_us": alpha, "beta_us_per_mib": [[3 * x for x in row] for row in alpha]}
    return {
        "schema": "aristos-links/1",
        "hosts": ["a"] * (n // 2) + ["b"] * (n - n // 2),
        "devices": [
            {"name": "GPU", "label": f"GPU{i}", "rate_gflops": 795e3, "memory_bytes": int(gigabytes * 1e9)}
            for i in range(n)
        ],
        "classes": [["NET"] * n for _ in range(n)],
        "small": span,
        "large": span,
        "residual": [[None] * n for _ in range(n)],
        "from": [["table"] * n for _ in range(n)],
    }


def test_a_model_on_measured_links(tmp_path, capsys):
    path = tmp_path / "links.json"
    path.write_text(json.dumps(links(8, 80)))
    words = ["--model", "olmoe-1b-7b", "--topology", str(path), "--json"]
    assert aristos(["plan", *words]) == 0
    out = json.loads(capsys.readouterr().out)
    assert sorted(i for g in out["groups"] for i in g) == list(range(8))
    assert len(out["placement"][0]) == 64
    broken = links(8, 80)
    broken["devices"][2]["rate_gflops"] = "fast"
    for wrong, word in (
        ({**links(8, 80), "schema": "aristos-links/9"}, "schema"),
        (broken, "devices[2].rate_gflops"),
        ({**links(8, 80), "large": {"alpha_us": [[0]]}}, "large.alpha_us"),
    ):
        path.write_text(json.dumps(wrong))
        code = aristos(["plan", *words])
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        assert word in said.err


@pytest.mark.slow
@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
def test_a_model_on_this_machine(tmp_path):
    """Ranks that the command starts measure the links. If the machine has GPUs, their links come from a table."""
    words = [sys.executable, "-m", "aristos", "plan", "--model", "olmoe-1b-7b", "--tokens", "64", "--inference"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_VARIABLES, "SLURM_")) and k != FLAG}
    alone = kept | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [*words, "--discover", "--json"], env=alone, capture_output=True, text=True, timeout=150, cwd=tmp_path
    )
    assert ran.returncode in (0, 1), ran.stderr  # a small machine has too little memory for the model
    out = json.loads(ran.stdout)
    assert out["feasible"] == (ran.returncode == 0)
    if out["feasible"]:
        assert len(out["terms"]["pi_us"]) == len(out["groups"])
        assert min(out["terms"]["pi_us"]) > 0
        assert len(out["placement"][0]) == 64
    assert not list(tmp_path.iterdir())
    job = subprocess.run(
        [*words, "--discover"],
        env={**alone, "PMI_SIZE": "2", "PMI_RANK": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert job.returncode == 2
    assert "--topology" in job.stderr


def test_numbers_of_a_model():
    m = MODELS["olmoe-1b-7b"]
    problem = published.build(m, 1024, from_json(links(4, 80)))
    expert = 3 * 2048 * 1024
    assert problem.layer_cost == pytest.approx(1024 * 8 * 2 * expert / 1e6)
    assert problem.payload_mib == 1024 * 8 * 2048 * 2 / 2**20
    assert problem.kappa == 3 * 16
    assert problem.rate.tolist() == [795.0] * 4
    left = 0.9 * 80e9 - 4 * 2048**2 * 16 * 16
    assert problem.memory.tolist() == [min(64, int(left // (expert * 16 * 16)))] * 4
    forward = published.build(m, 1024, from_json(links(4, 80)), inference=True)
    assert (forward.crossings, forward.gradient_mib, forward.kappa) == (2, None, 16)
    broken = links(4, 80)
    broken["devices"][2]["rate_gflops"] = None
    with pytest.raises(InputError, match="rate of device 2"):
        published.build(m, 1024, from_json(broken))


def test_parameters_outside_the_experts():
    """These are the parameters of attention, of experts that all tokens share, and of layers without experts."""
    h = 7168
    assert MODELS["deepseek-v3"].dense == 61 * 4 * h**2 + 58 * 3 * h * 2048 + 3 * 3 * h * 18432
    assert MODELS["mixtral-8x7b"].dense == 32 * 4 * 4096**2
    assert MODELS["switch-base-128"].dense == 24 * 4 * 768**2 + 12 * 2 * 768 * 3072


def test_a_device_too_small_for_the_dense_parameters(tmp_path, capsys):
    some = links(4, 80)
    some["devices"][1]["memory_bytes"] = 2 * 10**9
    m = MODELS["olmoe-1b-7b"]
    with pytest.raises(planner.Infeasible) as said:
        published.build(m, 1024, from_json(some))
    needs, expert = 4 * 2048**2 * 16 * 16, 3 * 2048 * 1024 * 16 * 16
    held = 3 * int((0.9 * 80e9 - needs) // expert)
    assert said.value.missing == math.ceil((needs - 1.8e9) / expert) + max(0, 64 - held)
    assert "device 1 (a:GPU1) has 1.8 GB for parameters" in str(said.value)
    assert "need 4.29 GB at 16 bytes each; too small are 1 of 4 devices" in str(said.value)
    assert published.build(m, 1024, from_json(some), inference=True).n == 4
    path = tmp_path / "links.json"
    path.write_text(json.dumps(some))
    assert aristos(["plan", "--model", "olmoe-1b-7b", "--topology", str(path), "--json"]) == 1
    printed = capsys.readouterr()
    out = json.loads(printed.out)
    assert (out["feasible"], out["missing_memory"]) == (False, said.value.missing)
    assert str(said.value) in printed.err


def test_a_picture(tmp_path):
    from aristos.planner import picture

    plan = planner.solve(planner.parse(planning.draw(1, 7)))
    picture.draw(plan, str(tmp_path / "plan.png"))
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"
