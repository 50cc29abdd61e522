"""A layer with a plan: groups, uneven placements and copies of experts give the bits of one group."""

from __future__ import annotations

import numpy as np
import pytest
from cases import MoE, same, tokens
from group_plans import plan_of

import aristos
from aristos import reference
from aristos.errors import InputError, MismatchError

CFG = aristos.MoEConfig(hidden=24, ffn=40, experts=4, top_k=2, max_tokens=40)
W = reference.weights(CFG)


def one_group(x: np.ndarray) -> np.ndarray:
    with MoE(CFG) as moe:
        moe.load(0, **W)
        return np.array(moe(x))


@pytest.mark.ranks(4, timeout=300)  # the first test may have to compile kernels
def test_a_plan_forms_groups_that_compute_separately(comm):
    plan = plan_of([3, 1, 2, 2])
    assert plan.groups == [[0, 1], [2, 3]]
    x = tokens(CFG, 10 + comm.rank, seed=comm.rank)
    wanted = one_group(x)
    for options in ({}, {"schedule": "bulk"}, {"ranks_per_node": 1}):
        with MoE(CFG, comm, plan=plan, threads=1, **options) as moe:
            assert moe.world == 2
            assert moe.group == comm.rank // 2
            assert moe.placement.held == ([3, 1] if comm.rank < 2 else [2, 2])
            moe.load(0, **W)
            for _ in range(3):
                assert same(moe(x), wanted)


@pytest.mark.core
@pytest.mark.ranks(3, timeout=300)
def test_copies_of_hot_experts_give_the_same_bits(comm):
    plan = plan_of([3, 3, 3], loads=[90.0, 1.0, 1.0, 1.0], fast=3)
    assert plan.groups == [[0, 1, 2]]
    assert len(plan.placement[0][0]) > 1
    x = tokens(CFG, 30, seed=comm.rank)
    wanted = one_group(x)
    for options in ({}, {"schedule": "bulk"}, {"ranks_per_node": 1}, {"ranks_per_node": 2}):
        with MoE(CFG, comm, plan=plan, threads=1, **options) as moe:
            moe.load(0, **W)
            assert same(moe(x), wanted)
            _, stats = moe(x, return_stats=True)
            assert sum(stats.rows_to_peer) == 30 * CFG.top_k


@pytest.mark.ranks(2)
def test_plans_that_do_not_fit_are_refused(comm):
    for plan, word in ((plan_of([4, 4, 4]), "3 devices"), ("two groups", "Plan")):
        with pytest.raises(InputError, match=word):
            MoE(CFG, comm, plan=plan)
    good = plan_of([4, 4])
    with pytest.raises(InputError, match="not both"):
        MoE(CFG, comm, plan=good, placement=[0, 0, 1, 1])
    other = plan_of([4, 4]) if comm.rank == 0 else plan_of([2, 2], fast=2)
    with pytest.raises(aristos.AristosError):
        MoE(CFG, comm, plan=other)
    with pytest.raises(MismatchError, match="a plan with groups"):
        MoE(CFG, comm, plan=good if comm.rank == 0 else None)
    with MoE(CFG, comm, plan=good) as moe:
        moe.load(0, **W)
        assert same(moe(tokens(CFG, 5, seed=1)), one_group(tokens(CFG, 5, seed=1)))


def test_a_plan_needs_ranks():
    with pytest.raises(InputError, match="comm"):
        aristos.MoE(CFG, plan=plan_of([4, 4]))


def test_each_source_has_its_copy():
    from aristos.placement import Placement

    p = Placement([[0, 2], 1, [2, 0, 1], 0], 4, 3)
    assert p.held == [3, 2, 2]
    assert [p.mine(r) for r in range(3)] == [[0, 2, 3], [1, 2], [0, 2]]
    owner = np.repeat(np.arange(3), p.held)
    for source in range(3):
        assert owner[p.slots_for(source)].tolist() == [[0, 2][source % 2], 1, [2, 0, 1][source % 3], 0]


@pytest.mark.parametrize("wrong", [[[0, 0], 1], [[], 1], [[0, 3], 1], [[0, True], 1], [[0, 1]], [["a"], 1]])
def test_copies_that_are_refused(wrong):
    from aristos.placement import Placement

    with pytest.raises(InputError, match="placement"):
        Placement(wrong, 2, 2)
