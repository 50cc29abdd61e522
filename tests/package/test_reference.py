"""The float64 reference against a simpler one: Python floats, one token and one neuron at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from aristos import reference
from aristos.config import ACTIVATIONS, SCORES, MoEConfig, Router
from aristos.errors import InputError

SMALL = MoEConfig(hidden=5, ffn=4, experts=3, top_k=2, max_tokens=64)


SCALAR_ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda v: v if v > 0 else 0.0,
    "gelu": lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2)),
    "gelu_tanh": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v * v * v))),
    "silu": lambda v: v / (1 + math.exp(-v)),
    "swiglu_oai": lambda v: v / (1 + math.exp(-1.702 * v)),
    "relu2": lambda v: v * v if v > 0 else 0.0,
}


def dot(row, matrix, column) -> float:
    return sum(float(row[i]) * float(matrix[i][column]) for i in range(len(row)))


def scalar_expert(cfg, x, e, w):
    hidden = []
    for f in range(cfg.ffn):
        u = dot(x, w["up"][e], f) + (float(w["up_bias"][e][f]) if cfg.bias else 0.0)
        if cfg.gated:
            g = dot(x, w["gate"][e], f) + (float(w["gate_bias"][e][f]) if cfg.bias else 0.0)
            if cfg.limit is not None:
                g, u = min(g, cfg.limit), max(-cfg.limit, min(u, cfg.limit))
            factor = u + 1 if cfg.activation == "swiglu_oai" else u
            hidden.append(SCALAR_ACTIVATIONS[cfg.activation](g) * factor)
        else:
            hidden.append(SCALAR_ACTIVATIONS[cfg.activation](u))
    bias = w["down_bias"][e] if cfg.bias else [0.0] * cfg.hidden
    return [dot(hidden, w["down"][e], h) + float(bias[h]) for h in range(cfg.hidden)]


def exponentials(scores):
    return [math.exp(s) for s in scores]


def mixed(best, scores, before):
    """A choice's weight: its share of the softmax over remaining scores near it (transformers' modeling_phimoe.py)."""
    rest = list(scores)
    for taken in before:
        rest.remove(taken)
    return 1 / sum(math.exp(s - best) for s in rest if not (best - s) / max(abs(s), best) > 2 * 0.01)


# score -> the weights of chosen scores, computed from (chosen scores, all scores)
SCALAR_SCORES: dict[str, Callable[[list[float], list[float]], list[float]]] = {
    "softmax": lambda chosen, scores: [e / sum(exponentials(scores)) for e in exponentials(chosen)],
    "softmax_topk": lambda chosen, scores: [e / sum(exponentials(chosen)) for e in exponentials(chosen)],
    "sigmoid": lambda chosen, scores: [1 / (1 + math.exp(-s)) for s in chosen],
    "sqrtsoftplus": lambda chosen, scores: [math.sqrt(math.log1p(math.exp(s))) for s in chosen],
    "sparsemixer": lambda chosen, scores: [mixed(s, scores, chosen[:j]) for j, s in enumerate(chosen)],
}


def scalar_route(cfg, x, router):
    scores = [dot(x, router, e) for e in range(cfg.experts)]
    chosen = sorted(range(cfg.experts), key=lambda e: (-scores[e], e))[: cfg.top_k]
    w = SCALAR_SCORES[cfg.router.score]([scores[e] for e in chosen], scores)
    if cfg.router.renormalize and cfg.router.score != "sparsemixer":
        w = [v / sum(w) for v in w]
    return chosen, [v * cfg.router.scale for v in w]


def scalar_moe(cfg, x, w, routing):
    y = []
    for row, (ids, ws) in zip(x, routing):
        out = [0.0] * cfg.hidden
        for e, weight in zip(ids, ws):
            if e >= 0:
                out = [o + float(weight) * f for o, f in zip(out, scalar_expert(cfg, row, e, w))]
        y.append(out)
    return np.array(y).reshape(-1, cfg.hidden)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_equals_scalar_loops(activation, gated, bias):
    if ACTIVATIONS[activation].gate_only and not gated:
        pytest.skip("needs a gate")
    cfg = replace(SMALL, activation=activation, gated=gated, bias=bias)
    w = reference.weights(cfg, seed=1)
    x = np.random.default_rng(2).standard_normal((7, cfg.hidden), dtype=np.float32) * 3
    routing = [scalar_route(cfg, row, w["router"]) for row in x]
    assert reference.error(reference.moe(cfg, x, **w), scalar_moe(cfg, x, w, routing)) < 1e-13


@pytest.mark.parametrize("activation", ["swiglu_oai", "silu", "relu"])
@pytest.mark.parametrize("limit", [None, 0.4])
def test_gates_equal_scalar_loops(activation, limit):
    cfg = replace(SMALL, activation=activation, gated=True, limit=limit)
    w = reference.weights(cfg, seed=1)
    x = np.random.default_rng(2).standard_normal((7, cfg.hidden), dtype=np.float32) * 3
    routing = [scalar_route(cfg, row, w["router"]) for row in x]
    assert reference.error(reference.moe(cfg, x, **w), scalar_moe(cfg, x, w, routing)) < 1e-13


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_router_equals_scalar_loops(score, renormalize, top_k):
    router = Router(score=score, renormalize=renormalize, scale=2.5)
    cfg = MoEConfig(hidden=6, ffn=2, experts=4, top_k=top_k, router=router)
    matrix = reference.weights(cfg, seed=3)["router"]
    x = np.random.default_rng(4).standard_normal((9, cfg.hidden))
    ids, weights = reference.route(cfg, x, matrix)
    assert (ids.dtype, weights.dtype) == (np.int64, np.float64)
    for row, got_ids, got_weights in zip(x, ids, weights):
        want_ids, want_weights = scalar_route(cfg, row, matrix)
        assert got_ids.tolist() == want_ids
        assert got_weights == pytest.approx(want_weights, rel=1e-13)


def test_weights_sum_to_scale_only_when_renormalised():
    cfg = MoEConfig(hidden=6, ffn=2, experts=8, top_k=2, router=Router(renormalize=True, scale=3.0))
    x, matrix = np.random.default_rng(5).standard_normal((4, 6)), reference.weights(cfg)["router"]
    assert reference.route(cfg, x, matrix)[1].sum(axis=1) == pytest.approx(3.0)
    plain = replace(cfg, router=Router(renormalize=False, scale=3.0))
    assert (reference.route(plain, x, matrix)[1].sum(axis=1) < 2.9).all()


def test_ties_go_to_the_lowest_id_even_where_softmax_rounds_scores_together():
    cfg = MoEConfig(hidden=1, ffn=1, experts=4, top_k=2)
    assert reference.route(cfg, [[1.0]], [[1.0, 2.0, 2.0, 2.0]])[0].tolist() == [[1, 2]]
    assert reference.route(cfg, [[0.0]], [[1.0, 2.0, 3.0, 4.0]])[0].tolist() == [[0, 1]]
    far = [[-2000.0, -1000.0, 0.0, -3000.0]]  # all but expert 2 have probability 0
    ids, weights = reference.route(cfg, [[1.0]], far)
    assert ids.tolist() == [[2, 1]]
    assert weights.tolist() == [[1.0, 0.0]]


def test_routing_from_outside_with_choices_not_taken():
    cfg = replace(SMALL, bias=True)
    w = reference.weights(cfg, seed=6)
    x = np.random.default_rng(7).standard_normal((4, cfg.hidden))
    ids = np.array([[0, -1, 2], [-1, -1, -1], [2, 1, 0], [-1, 1, -1]], dtype=np.int32)
    ws = np.random.default_rng(8).standard_normal(ids.shape)
    y = reference.moe(cfg, x, **w, ids=ids, weights=ws)
    assert reference.error(y, scalar_moe(cfg, x, w, zip(ids.tolist(), ws))) < 1e-13
    assert (y[1] == 0).all()


def test_shapes_of_the_input_are_kept():
    w = reference.weights(SMALL)
    x = np.random.default_rng(9).standard_normal((2, 3, SMALL.hidden))
    y = reference.moe(SMALL, x, **w)
    assert y.shape == x.shape
    assert np.array_equal(y.reshape(6, -1), reference.moe(SMALL, x.reshape(6, -1), **w))
    assert reference.moe(SMALL, x[:0], **w).shape == (0, 3, SMALL.hidden)
    assert reference.moe(SMALL, x[0, 0], **w).shape == (SMALL.hidden,)


def test_weights_are_seeded_and_follow_the_config():
    cfg = replace(SMALL, gated=True, bias=True)
    made, again, other = (reference.weights(cfg, seed) for seed in (1, 1, 2))
    assert set(made) == {"router", "up", "down", "gate", "up_bias", "gate_bias", "down_bias"}
    assert set(reference.weights(SMALL)) == {"router", "up", "down"}
    assert all(value.dtype == np.float32 for value in made.values())
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert not np.array_equal(made["up"], other["up"])


def test_activations_at_the_ends_of_the_range():
    ends = np.array([-1e4, -40.0, 0.0, 40.0, 1e4])
    for name, act in reference.ACTIVATIONS.items():
        assert np.isfinite(act(ends)).all(), name
    for name in ("relu", "gelu", "gelu_tanh", "silu", "swiglu_oai"):
        assert reference.ACTIVATIONS[name](ends) == pytest.approx(np.maximum(ends, 0.0), abs=1e-12), name


def test_error_is_relative_to_the_largest_entry_and_infinite_for_nan():
    assert reference.error([1.0, 3.9], [1.0, 4.0]) == pytest.approx(0.025)
    assert reference.error([0.5], [0.0]) == 0.5
    assert reference.error([], []) == 0.0
    assert reference.error([np.nan, 1.0], [1.0, 1.0]) == math.inf
    assert reference.error([1.0], [np.inf]) == math.inf
    with pytest.raises(InputError, match=r"shape of ref \(2,\), got \(3,\)"):
        reference.error(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize("router", [Router(), Router("sigmoid", groups=2, topk_groups=1), Router(capacity=1)])
def test_a_call_without_tokens(router):
    cfg = MoEConfig(hidden=5, ffn=4, experts=4, top_k=1, max_tokens=4, router=router)
    x, w = np.zeros((0, 5)), reference.weights(cfg)
    assert reference.moe(cfg, x, **w).shape == (0, 5)
    found = reference.backward(cfg, x, x, **w)
    assert found["x"].shape == (0, 5)
    assert not any(found[name].any() for name in w)


def test_small_shares_keep_their_digits():
    """Weights are right where two experts' shares of a softmax underflow in float64, and where a sigmoid is 1e-40."""
    cfg = MoEConfig(hidden=1, ffn=4, experts=3, top_k=2)
    ids, weights = reference.route(cfg, [[1.0]], [[900.0, 0.0, 1.0]], select_bias=[-2.0, 0.0, 0.0])
    assert ids.tolist() == [[1, 2]]
    assert weights == pytest.approx(np.array([[1 / (1 + math.e), 1 / (1 + 1 / math.e)]]))
    assert reference.sigmoid(np.array([-92.0, -1e4, 0.0, 1e4])) == pytest.approx([math.exp(-92), 0, 0.5, 1], rel=1e-12)


def test_wrong_input_is_refused_with_its_value():
    w = reference.weights(SMALL)
    x = np.zeros((2, SMALL.hidden))
    with pytest.raises(InputError, match=r"up must have shape \(3, 5, 4\), got \(3, 4, 5\)"):
        reference.moe(SMALL, x, router=w["router"], up=w["up"].transpose(0, 2, 1), down=w["down"])
    with pytest.raises(InputError, match=r"ids must lie in -1\.\.2, got 0\.\.3"):
        reference.moe(SMALL, x, **w, ids=[[0], [3]], weights=[[1], [1]])
    with pytest.raises(InputError, match="ids and weights together"):
        reference.moe(SMALL, x, **w, ids=[[0], [1]])
    for wide, wrong in ((np.zeros((1, 10)), r"\[1, 10\]"), (np.float64(1), r"\[\]")):
        with pytest.raises(InputError, match=rf"x must have shape \[\.\.\., 5\], got {wrong}"):
            reference.moe(SMALL, wide, **w)
    for ids, weights, words in (
        (np.zeros((3, 1), int), np.ones((3, 1)), r"ids must be integers of shape \[2, 'n'\], got int64 \[3, 1\]"),
        (0, 1.0, r"ids must be integers of shape \[2, 'n'\], got int64 \[\]"),
        ([[0.0], [1.0]], [[1], [1]], "ids must be integers .*got float64"),
        ([[0], [1]], [[1, 1], [1, 1]], r"weights must have the shape of ids \[2, 1\], got \[2, 2\]"),
    ):
        with pytest.raises(InputError, match=words):
            reference.moe(SMALL, x, **w, ids=ids, weights=weights)
    for e in (-1, 3):
        with pytest.raises(InputError, match=rf"e must be in 0\.\.2, got {e}"):
            reference.expert(SMALL, x, e, up=w["up"], down=w["down"])
    with pytest.raises(InputError, match="finite"):
        reference.moe(SMALL, x * np.nan, **w)
    with pytest.raises(InputError, match="gate must be given"):
        reference.moe(replace(SMALL, gated=True), x, **w)
