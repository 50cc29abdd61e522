"""Training with copies of experts and with a plan's groups: an expert's gradients are summed over all its holders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import MoE, tokens
from group_plans import plan_of
from mpi import ranks_each

from aristos import MoEConfig, reference
from aristos.errors import CheckpointError, InputError, MismatchError, PeerInputError
from aristos.train import Adam

TRAINED = MoEConfig(
    hidden=24, ffn=40, experts=4, top_k=2, activation="silu", gated=True, bias=True, shared_ffn=8, max_tokens=40
)
W = reference.weights(TRAINED)


def inputs(rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, dy, dlogits of a rank."""
    rng = np.random.default_rng(rank)
    x, dy = (tokens(TRAINED, 12 + 2 * rank, seed=10 * rank + i) for i in range(2))
    return x, dy, rng.standard_normal((len(x), TRAINED.experts)).astype("f4")


def call(moe: Any, comm: Any) -> np.ndarray:
    x, dy, dlogits = inputs(comm.rank)
    return np.array(moe.backward(dy, moe.forward(x)[1], dlogits, 2))


def named(moe: Any, arrays: dict[str, np.ndarray]) -> dict[tuple[str, int], np.ndarray]:
    """Copies of arrays by (name, expert). The router and the shared expert have -1."""
    held, found = moe.placement.mine(moe.rank), {}
    for name, array in arrays.items():
        of_experts = name.removesuffix("_bias") in ("up", "gate", "down")
        found |= {(name, e): part.copy() for e, part in (zip(held, array) if of_experts else [(-1, array)])}
    return found


def same_everywhere(comm: Any, mine: dict[tuple[str, int], np.ndarray]) -> None:
    """Check that all ranks that hold an array have the same bits."""
    for theirs in comm.allgather({key: array.tobytes() for key, array in mine.items()}):
        for key in mine.keys() & theirs.keys():
            assert mine[key].tobytes() == theirs[key], key


def are_right(moe: Any, comm: Any, calls: int) -> None:
    """Check gradients: `calls` times those of all ranks' tokens in float64, with equal bits on all holders."""
    x, dy, dlogits = (np.concatenate(each) for each in zip(*map(inputs, range(comm.size))))
    right = reference.backward(TRAINED, x, dy, dlogits=dlogits, **W)
    found = named(moe, moe.grads())
    for (name, expert), gradient in found.items():
        wanted = calls * (right[name] if expert < 0 else right[name][expert])
        assert np.abs(gradient - wanted).max() <= 1e-5 * np.abs(right[name]).max() + 1e-7, (name, expert)
    same_everywhere(comm, found)


@ranks_each(2, 4)
def test_gradients_of_copies_are_summed_over_their_holders(comm, world):
    """A second `reduce_grads` changes nothing. Later calls add to the sums. Fused and bulk calls give equal bits."""
    places = [[0, 1], 1, [1, 0], 0] if world == 2 else [[0, 3], 1, [3, 1, 0], 2]
    kept = []
    for options in ({"schedule": "bulk"}, {"ranks_per_node": 2 if world == 4 else 1}):
        with MoE(TRAINED, comm, placement=places, threads=1, train=True, **options) as moe:
            moe.load(**W)
            dx = call(moe, comm)
            moe.reduce_grads()
            are_right(moe, comm, 1)
            moe.reduce_grads()
            call(moe, comm)
            call(moe, comm)
            moe.reduce_grads()
            are_right(moe, comm, 3)
            optimizer = Adam(moe, 0.01, clip=0.1)
            norms = [optimizer.step()]
            moe.zero_grads()
            call(moe, comm)
            norms.append(optimizer.step())
            weights = named(moe, moe.params())
            same_everywhere(comm, weights)
            kept.append([dx.tobytes(), norms, {key: array.tobytes() for key, array in weights.items()}])
    assert kept[0] == kept[1]


@pytest.mark.ranks(2)
def test_saved_copies(comm, tmp_path_factory):
    """Each expert is written by one of its holders. A restored layer goes on with training as the saved one does."""
    folder = comm.bcast(tmp_path_factory.mktemp("saved") if comm.rank == 0 else None)
    found = []
    with MoE(TRAINED, comm, placement=[[0, 1], 1, [1, 0], 0], threads=1, train=True) as moe:
        moe.load(**W)
        optimizer = Adam(moe, 0.01)
        for again in range(2):
            if again:
                moe.restore(folder, optimizer)
            else:
                moe.save(folder, optimizer)
            moe.zero_grads()
            call(moe, comm)
            optimizer.step()
            found.append({key: array.tobytes() for key, array in named(moe, moe.params()).items()})
    assert found[0] == found[1]
    with MoE(TRAINED, comm, placement=[1, 1, 0, 0], threads=1, train=True) as moe:
        moe.load(**W)
        moe.restore(folder)
        assert all(
            np.array_equal(array, W[name] if e < 0 else W[name][e])
            for (name, e), array in named(moe, moe.params()).items()
        )


@pytest.mark.ranks(4)
def test_the_groups_of_a_plan_train_together(comm, tmp_path_factory):
    """Groups are uneven, and one has a copy of an expert. A refusal on one rank reaches the other group."""
    base = comm.bcast(tmp_path_factory.mktemp("saved") if comm.rank == 0 else None)
    plan = plan_of([3, 1, 2, 2])
    assert plan.groups == [[0, 1], [2, 3]]
    for options in ({}, {"schedule": "bulk"}):
        folder = base / (options.get("schedule") or "fused")
        with MoE(TRAINED, comm, plan=plan, threads=1, train=True, **options) as moe:
            moe.load(**W)
            call(moe, comm)
            moe.reduce_grads()
            are_right(moe, comm, 1)
            call(moe, comm)
            moe.reduce_grads()
            are_right(moe, comm, 2)
            optimizer = Adam(moe, 0.01, clip=0.1)
            wrong = {"other": np.zeros(1, np.float32)} if comm.rank == 2 else None
            with pytest.raises(InputError if comm.rank == 2 else PeerInputError, match="dense"):
                optimizer.step(wrong)
            assert len(set(comm.allgather(optimizer.step()))) == 1
            moe.save(folder, optimizer)
            weights = named(moe, moe.params())
            same_everywhere(comm, weights)
            moe.update(up=np.zeros_like(moe.params()["up"]))
            moe.restore(folder, optimizer)
            for key, array in named(moe, moe.params()).items():
                assert np.array_equal(array, weights[key]), key
            with (
                pytest.raises(CheckpointError, match="does not exist")
                if comm.rank == 0
                else pytest.raises(PeerInputError)
            ):
                moe.restore(folder if comm.rank else folder / "none", optimizer)
            if moe.group == 0:
                call(moe, comm)  # the other group makes no call
            with pytest.raises(MismatchError, match="same backward calls before reduce_grads"):
                moe.reduce_grads()
