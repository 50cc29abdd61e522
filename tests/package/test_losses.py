"""Losses on a routing: values against loops written from the papers, gradients against finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from cases import MoE, tokens
from mpi import ranks_each

import aristos
from aristos import Router, losses, reference
from aristos.config import BIASED
from aristos.errors import InputError, PeerInputError
from aristos.routing import Routing, routing_of

EXPERTS, K = 5, 2


def made(count: int, seed: int, shape: tuple[int, ...] | None = None, beyond: bool = True) -> Routing:
    """A routing by softmax. beyond: whether some choices exceed the capacity."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((count, EXPERTS)).astype(np.float32)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :K]
    if beyond and count:
        ids[rng.random(ids.shape) < 0.2] *= -1
        ids = np.where(ids < 0, ids - 2, ids)
    lead = shape or (count,)
    return routing_of(ids.reshape(*lead, K), np.ones((*lead, K), "f4"), logits.reshape(*lead, EXPERTS), EXPERTS)


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(v) for v in row]
    return [p / sum(powers) for p in powers]


def by_loops(name: str, groups: list[Routing], coefficient: float, lengths: list[list[int]]) -> float:
    """The loss of several ranks' tokens, computed by loops over tokens and experts."""
    tokens = [(row, ids) for g in groups for row, ids in zip(flat(g.logits), flat(g.chosen))]
    if name == "z":
        return coefficient * sum(math.log(sum(map(math.exp, row))) ** 2 for row, _ in tokens) / len(tokens)
    if name == "switch":
        loss = 0.0
        for e in range(EXPERTS):
            f = sum(list(ids).count(e) for _, ids in tokens) / (K * len(tokens))
            loss += f * sum(softmax(row)[e] for row, _ in tokens) / len(tokens)
        return coefficient * EXPERTS * loss
    if name == "gshard":
        parts = []
        for g in groups:
            rows, firsts = flat(g.logits), [ids[0] for ids in flat(g.chosen)]
            if rows:
                means = [sum(softmax(row)[e] for row in rows) / len(rows) for e in range(EXPERTS)]
                parts.append(sum(firsts.count(e) / len(rows) * means[e] for e in range(EXPERTS)) / EXPERTS)
        return coefficient * sum(parts) / len(parts)
    parts = []
    for g, each in zip(groups, lengths):
        rows, chosen, first = flat(g.logits), flat(g.chosen), 0
        for n in each:
            part = 0.0
            for e in range(EXPERTS):
                f = EXPERTS / (K * n) * sum(list(ids).count(e) for ids in chosen[first : first + n])
                s = [[1 / (1 + math.exp(-v)) for v in row] for row in rows[first : first + n]]
                part += f * sum(row[e] / sum(row) for row in s) / n
            parts.append(part)
            first += n
    return coefficient * sum(parts) / len(parts)


def flat(array: np.ndarray) -> list[list]:
    return array.reshape(-1, array.shape[-1]).tolist()


NAMES = ("switch", "gshard", "z", "sequence")


@pytest.mark.parametrize("name", NAMES)
def test_values_equal_loops(name):
    routing = made(12, 0)
    loss, back = getattr(losses, name)(routing, 0.3)
    assert loss == pytest.approx(by_loops(name, [routing], 0.3, [[12]]), rel=1e-12)
    assert (back.shape, back.dtype) == (routing.logits.shape, np.float32)
    split = losses.sequence(routing, 0.3, lengths=[3, 5, 4])[0]
    assert split == pytest.approx(by_loops("sequence", [routing], 0.3, [[3, 5, 4]]), rel=1e-12)
    batch = made(12, 0, (3, 4))
    assert losses.sequence(batch, 1.0)[0] == pytest.approx(losses.sequence(routing, 1.0, lengths=[4, 4, 4])[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in NAMES), *(("sequence", {"score": score}) for score in BIASED)],
)
def test_gradients_equal_finite_differences(name, options):
    """Central differences of the loss in float64, with the choices held fixed."""
    routing = made(6, 1, (2, 3))
    wide = replace(routing, logits=routing.logits.astype("f8"))
    _, back = getattr(losses, name)(wide, 0.7, **options)
    for at in np.ndindex(*wide.logits.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = wide.logits.copy()
            moved[at] += step
            ends.append(getattr(losses, name)(replace(wide, logits=moved), 0.7, **options)[0])
        assert back[at] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-8)


def test_even_loads_give_the_coefficient():
    logits = np.zeros((10, EXPERTS), np.float32)
    ids = np.stack([np.arange(10) % 5, (np.arange(10) + 1) % 5], axis=1)
    even = routing_of(ids, np.ones((10, 2), "f4"), logits, EXPERTS)
    assert losses.switch(even, 0.01)[0] == pytest.approx(0.01)
    assert losses.sequence(even, 0.01)[0] == pytest.approx(0.01)
    assert losses.z(even, 1.0)[0] == pytest.approx(math.log(5) ** 2)


def test_no_tokens_and_no_logits():
    for name in NAMES:
        loss, back = getattr(losses, name)(made(0, 0), 1.0)
        assert (loss, back.shape) == (0.0, (0, EXPERTS))
        with pytest.raises(InputError, match="needs the logits of the routing, got none: the call got ids"):
            getattr(losses, name)(replace(made(3, 0), logits=None), 1.0)
    for lengths in ([1, 1], [4, -1], [1.0, 2.0], [[3]], [[1], [1, 1]]):
        with pytest.raises(InputError, match="lengths must be positive ints whose sum is 3"):
            losses.sequence(made(3, 0), 1.0, lengths=lengths)
    with pytest.raises(InputError, match=f"score must be one of {', '.join(BIASED)}, got 'relu'"):
        losses.sequence(made(3, 0), 1.0, score="relu")  # type: ignore[arg-type]


@ranks_each(2, 3)
def test_losses_over_ranks(comm, world):
    """Ranks have different numbers of tokens; one has none.

    Each rank gets the gradient of the loss by its own logits.
    """
    counts = [7, 4, 0][-world:]
    everyone = [made(n, seed=n) for n in counts]
    mine = everyone[comm.rank]
    alone = made(sum(counts), 0)  # the same tokens on one rank
    alone = replace(
        alone,
        logits=np.concatenate([g.logits for g in everyone]),
        chosen=np.concatenate([g.chosen for g in everyone]),
        counts=sum(g.counts for g in everyone),
    )
    first = sum(counts[: comm.rank])
    for name in NAMES:
        loss, back = getattr(losses, name)(mine, 0.3, comm)
        assert loss == pytest.approx(by_loops(name, everyone, 0.3, [[n] if n else [] for n in counts]), rel=1e-12)
        assert comm.allgather(loss) == [loss] * world
        if name in ("switch", "z"):
            whole = getattr(losses, name)(alone, 0.3)[1]
            assert np.abs(back - whole[first : first + len(back)]).max(initial=0) < 1e-7
        with pytest.raises(PeerInputError if comm.rank else InputError, match="needs the logits of the routing"):
            getattr(losses, name)(mine if comm.rank else replace(mine, logits=None), 0.3, comm)


def test_losses_of_a_call():
    cfg = aristos.MoEConfig(hidden=40, ffn=24, experts=EXPERTS, top_k=K, router=Router(capacity_factor=0.5))
    w, x = reference.weights(cfg), tokens(cfg, 20, seed=0)
    with MoE(cfg, threads=1) as moe:
        moe.load(**w)
        _, routing = moe(x, return_routing=True)
    assert routing.dropped > 0
    assert (routing.chosen >= 0).all()
    assert losses.switch(routing, 0.1)[0] == pytest.approx(by_loops("switch", [routing], 0.1, []), rel=1e-12)


@pytest.mark.parametrize("score", ["sigmoid", "sqrtsoftplus"])
def test_scores_of_very_low_logits_have_a_gradient(score):
    """The slope is right if e^x is far below 1. If e^x is 0, it is not 0 / 0."""
    row = [1.0, -60.0, -38.0, -800.0, -3e38]
    ids = np.array([[0, 2]])
    routing = routing_of(ids, np.ones((1, K), "f4"), np.array([row], "f4"), EXPERTS)
    loss, back = losses.sequence(routing, 1.0, score=score)
    logistic = [1 / (1 + math.exp(-v)) if v > -700 else 0.0 for v in row]
    s, slope = logistic, [p * (1 - p) for p in logistic]
    if score == "sqrtsoftplus":
        s = [math.sqrt(math.log1p(math.exp(v))) for v in row]
        slope = [p / (2 * r) if r else 0.0 for p, r in zip(logistic, s)]
    f = [EXPERTS / K * (e in ids) for e in range(EXPERTS)]
    shares = [v / sum(s) for v in s]
    assert loss == pytest.approx(sum(a * b for a, b in zip(f, shares)), rel=1e-12)
    mean = sum(a * b for a, b in zip(f, shares))
    expected = [(a - mean) / sum(s) * b for a, b in zip(f, slope)]
    assert back[0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-40)
    assert back[0, 1] < 0


@ranks_each(2, 3)
def test_losses_have_equal_bits_on_any_number_of_ranks(comm, world):
    """Ranks share the logits [20, E] of five sequences. Loss and gradient have equal bits for every share."""
    whole = made(20, 3, (5, 4))
    first, end = np.linspace(0, 5, world + 1).astype(int)[comm.rank :][:2]
    mine = replace(
        whole,
        logits=whole.logits[first:end],
        chosen=whole.chosen[first:end],
        ids=whole.ids[first:end],
        counts=np.bincount(whole.chosen[first:end].ravel(), minlength=EXPERTS),
    )
    for name in ("switch", "z", "sequence"):
        expected, gradient = getattr(losses, name)(whole, 0.3)
        loss, back = getattr(losses, name)(mine, 0.3, comm)
        assert loss == expected, name
        assert back.tobytes() == gradient[first:end].tobytes(), name
    counts = np.array([3, 3, 0, 9, 0]) + comm.rank
    bias = losses.bias_step(np.zeros(EXPERTS), counts, 0.5, comm)
    assert bias.tolist() == [0.0, 0.0, 0.5, -0.5, 0.5]
    with pytest.raises(PeerInputError if comm.rank else InputError, match="counts must be integers"):
        losses.bias_step(np.zeros(EXPERTS), counts * (1.0 if comm.rank == 0 else 1), 0.5, comm)


def test_a_step_of_the_bias():
    """The bias falls above the mean count, rises below it, and stays at it. The mean need not be a whole number."""
    before = np.array([0.1, -0.2, 0.3], np.float32)
    after = losses.bias_step(before, np.array([5, 1, 3]), 0.01)
    assert after.dtype == np.float32
    assert (after - before).tolist() == pytest.approx([-0.01, 0.01, 0.0])
    assert losses.bias_step(before, np.array([1, 2, 2]), 0.01)[1] < before[1]
    for bias, counts, rate in ((before, [1, 2], 0.1), (before, [1.0, 2.0, 3.0], 0.1), (before, [1, 2, 3], -1)):
        with pytest.raises(InputError, match="must be"):
            losses.bias_step(bias, np.array(counts), rate)


def test_a_fixed_point_sum_is_exact_and_keeps_what_is_not_finite():
    values = np.array([[1.0, 1e300], [2.0**-40, -1e300], [-1.0, 3.0]])
    assert losses._fixed_sum(values[:, :1], None)[0] == 2.0**-40
    assert losses._fixed_sum(values, None)[1] == 0.0  # 3 is below the last bit of 1e300
    assert np.isnan(losses._fixed_sum(np.array([[np.nan]]), None)[0])
    assert losses._fixed_sum(np.zeros((0, 2)), None).tolist() == [0.0, 0.0]
