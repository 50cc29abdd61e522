"""The layer with routers of published models, and what `return_routing` returns, on any cluster shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import published_routers as published
import pytest
from cases import MoE, routing, same, tokens
from mpi import ranks_each
from rounded import numpy_dtype

import aristos
from aristos import Router, _reference_backward, reference
from aristos.config import BIASED
from aristos.errors import InputError, PeerInputError

CFG = aristos.MoEConfig(hidden=40, ffn=72, experts=8, top_k=3, activation="silu", gated=True, max_tokens=70)
W: dict[str, Any] = dict(reference.weights(CFG))
BIAS = np.random.default_rng(7).uniform(-0.3, 0.3, 8).astype(np.float32)
ROUTER_BIAS = np.random.default_rng(8).standard_normal(8).astype(np.float32)
Oracle = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# (router, its biases, top_k, the model's own code, which takes scores [S, E])
MODELS: dict[str, tuple[Router, dict[str, np.ndarray], int, Oracle]] = {
    "DeepSeek-V2": (
        Router("softmax", renormalize=False, scale=16.0, groups=4, topk_groups=2),
        {},
        3,
        lambda s: published.deepseek_v2(s, 3, 4, 2, 16.0),
    ),
    "DeepSeek-V3": (
        Router("sigmoid", scale=2.5, groups=4, topk_groups=2, group_score="sum_top2"),
        {"select_bias": BIAS},
        3,
        lambda s: published.deepseek_v3(s, BIAS, 3, 4, 2, 2.5, True),
    ),
    "groups without a bias": (
        Router("sigmoid", renormalize=False, groups=2, topk_groups=1, group_score="sum_top2"),
        {},
        4,
        lambda s: published.deepseek_v3(s, 0.0, 4, 2, 1, 1.0, False),
    ),
    "Kimi-K2": (
        Router("sigmoid", scale=2.827),
        {"select_bias": BIAS},
        3,
        lambda s: published.deepseek_v3(s, BIAS, 3, 1, 1, 2.827, True),
    ),
    "DeepSeek-V4": (
        Router("sqrtsoftplus", scale=1.5),
        {"select_bias": BIAS},
        2,
        lambda s: published.deepseek_v4(s, BIAS, 2, 1.5),
    ),
    "Phi-3.5-MoE": (Router("sparsemixer"), {}, 2, published.phimoe),
    "ERNIE-4.5": (
        Router("softmax"),
        {"select_bias": BIAS, "router_bias": ROUTER_BIAS},
        3,
        lambda s: (lambda ids, w: (ids, w / w.sum(1, keepdims=True)))(*published.longcat(s + ROUTER_BIAS, BIAS, 3, 1)),
    ),
}


def clear(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """[S] bool: whether both route a token alike. A few differ: float32 and float64 may order near ties differently."""
    alike = (got == want).all(axis=1)
    assert alike.mean() > 0.97
    return alike


@pytest.mark.parametrize("model", MODELS)
def test_published_routers(model):
    """Ids, weights, logits and outputs of the layer equal those of the model's own code."""
    router, biases, k, oracle = MODELS[model]
    cfg = replace(CFG, router=router, top_k=k)
    x = 2 * tokens(cfg, 70, seed=1)
    scores = x.astype("f8") @ W["router"].astype("f8")
    want_ids, want = oracle(scores)
    with MoE(cfg, threads=1) as moe:
        moe.load(**W, **biases)
        y, stats, found = moe(x, return_stats=True, return_routing=True)
    ok = clear(found.ids, want_ids)
    assert np.abs(found.weights - want)[ok].max() < 2e-6 * np.abs(want).max()
    assert np.abs(found.logits - scores - biases.get("router_bias", 0)).max() < 1e-5 * np.abs(scores).max()
    assert found.counts.tolist() == np.bincount(found.ids.ravel(), minlength=8).tolist() == list(stats.expert_rows)
    assert stats.balance == pytest.approx(found.counts.max() / found.counts.mean())
    assert (found.dropped, stats.dropped_rows) == (0, 0)
    y_ref = reference.moe(cfg, x, ids=want_ids, weights=want, **{n: a for n, a in W.items() if n != "router"})
    assert np.abs(y - y_ref)[ok].max() < 1e-5 * np.abs(y_ref).max()
    ref_ids, ref = reference.route(cfg, x, W["router"], **biases)
    assert np.array_equal(ref_ids, want_ids)
    assert np.abs(ref - want).max() < 1e-12 * np.abs(want).max()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_bits_on_any_cluster_shape(comm, dtype):
    """The layers have every router, also with identity experts and with weights on the input."""
    x = tokens(CFG, 50 + 9 * comm.rank, seed=comm.rank).astype(numpy_dtype(dtype))
    by = tokens(CFG, len(x), seed=5).astype(x.dtype)
    cases = [(replace(CFG, router=r, top_k=k), W, biases) for r, biases, k, _ in MODELS.values()]
    wide = reference.weights(replace(CFG, identity_experts=3))
    cases.append((replace(CFG, router=Router(scale=6.0, renormalize=False), identity_experts=3), wide, {}))
    cases.append((replace(CFG, router=Router("sigmoid", renormalize=False, weight_on="input"), top_k=1), W, {}))
    for cfg, w, biases in (cases[1], cases[5], *cases[7:]):
        cfg = replace(cfg, dtype=dtype)
        call = routing(cfg, len(x), "some", seed=1)
        results = []
        for group, options in (
            (None, {"threads": 1}),
            (None, {"threads": 3}),
            (comm, {}),
            (comm, {"ranks_per_node": 1}),
            (comm, {"schedule": "bulk"}),
            (comm, {"placement": [[0, 1], 0, 1, [1, 0], 0, 1, 1, 0]}),
        ):
            with MoE(cfg, group, backend="cpu", **options) as moe:
                moe.load(**w, **biases)
                y, found = moe(x, return_routing=True)
                z, given = moe(x, **call, return_routing=True)
                second = moe.start(x, router_x=by, return_routing=True).wait()
                assert given.logits is None
                assert same(given.ids, call["ids"])
                assert same(given.weights, call["weights"])
                results.append([y, z, second[0], found.ids, found.weights, found.logits, second[1].logits])
        for each in results[1:]:
            assert all(same(a, b) for a, b in zip(each, results[0])), cfg.router
        assert not same(results[0][0], results[0][2])


def test_identity_experts_return_the_token():
    """LongCat's layer equals its published router and a loop over experts, where an identity expert adds w x."""
    cfg = replace(CFG, identity_experts=4, router=Router(renormalize=False, scale=6.0), top_k=4)
    w = reference.weights(cfg, seed=2)
    bias = np.random.default_rng(3).uniform(-0.1, 0.1, 12).astype(np.float32)
    x = tokens(cfg, 60, seed=0)
    want_ids, want = published.longcat(x.astype("f8") @ w["router"], bias, 4, 6.0)
    experts = {n: a for n, a in w.items() if n != "router"}
    y_ref = reference.moe(CFG, x, ids=np.where(want_ids < 8, want_ids, -1), weights=want, **experts)
    y_ref += (want * (want_ids >= 8)).sum(1, keepdims=True) * x
    with MoE(cfg, threads=2) as moe:
        moe.load(**w, select_bias=bias)
        y, stats, found = moe(x, return_stats=True, return_routing=True)
        ok = clear(found.ids, want_ids)
        assert np.abs(y - y_ref)[ok].max() < 1e-5 * np.abs(y_ref).max()
        assert (found.ids >= 8).any()
        assert found.counts.tolist() == np.bincount(found.ids.ravel(), minlength=12).tolist()
        assert list(stats.expert_rows) == found.counts[:8].tolist()
        only = np.tile([8, -1, 11, -1], (60, 1))
        half = np.full((60, 4), 0.5, np.float32)
        assert same(moe(x, only, half), x)
        only[3, 2] = 12
        with pytest.raises(InputError, match=r"ids of token 3 must be in -1\.\.11, got \[8, -1, 12"):
            moe(x, only, half)
        only[3, 2] = 11
    for narrow in ("bfloat16", "float16"):  # rows of 40 columns end within a block of 32
        z = x.astype(numpy_dtype(narrow))
        with MoE(replace(cfg, dtype=narrow), threads=1, backend="cpu") as moe:
            moe.load(**w, select_bias=bias)
            assert same(moe(z, only, half), z)


@pytest.mark.parametrize("k", [1, 2])
def test_capacity(k):
    """As in Switch and GShard, choices beyond the capacity are dropped and add nothing."""
    for factor in (0.5, 1.0, 1.25):
        cfg = replace(CFG, top_k=k, router=Router(renormalize=False, capacity_factor=factor))
        x = tokens(cfg, 61, seed=k)
        free = replace(cfg, router=Router(renormalize=False))
        with MoE(free, threads=1) as moe:
            moe.load(**W)
            every = moe(x, return_routing=True)[1]
        fits = published.gshard_mask(every.ids, 8, factor)
        ids = np.where(fits, every.ids, -1)
        for schedule in ("fused", "bulk"):
            with MoE(cfg, threads=2, schedule=schedule) as moe:
                moe.load(**W)
                y, stats, found = moe(x, return_stats=True, return_routing=True)
                assert same(found.ids, ids)
                assert found.counts.tolist() == every.counts.tolist()
                assert found.dropped == stats.dropped_rows == (~fits).sum() > 0
                assert sum(stats.expert_rows) + found.dropped == 61 * k
                assert same(y, moe(x, ids, every.weights))
                assert moe(x, every.ids, every.weights, return_routing=True)[1].dropped == 0  # given ids: no capacity
                assert moe.summary().dropped_rows == found.dropped
        assert np.array_equal(reference.route(cfg, x, W["router"])[0], ids)


@pytest.mark.ranks(2)
def test_capacity_counts_a_rank_s_own_tokens_before_copies(comm):
    """A capacity counts the choices of an expert, not those of each copy. A rank without tokens takes part."""
    cfg = replace(CFG, router=Router(capacity_factor=0.75))
    x = tokens(cfg, 40 * comm.rank, seed=0)
    for options in ({}, {"placement": [[0, 1]] * 8}, {"ranks_per_node": 1, "schedule": "bulk"}):
        with MoE(cfg, comm, **options) as moe:
            moe.load(**W)
            y, found = moe(x, return_routing=True)
            assert reference.error(y, reference.moe(cfg, x, **W)) < 1e-5
            assert found.dropped == (reference.route(cfg, x, W["router"])[0] < 0).sum()
            assert moe.summary().dropped_rows == comm.allreduce(found.dropped)


def test_weights_on_the_input():
    """As in Llama 4, y = expert(sigmoid(best score) x)."""
    cfg = replace(CFG, top_k=1, router=Router("sigmoid", renormalize=False, weight_on="input"))
    x = tokens(cfg, 70, seed=0)
    scores = x.astype("f8") @ W["router"]
    best = 1 / (1 + np.exp(-scores.max(1)))
    experts = {n: a for n, a in W.items() if n != "router"}
    ids, ones = scores.argmax(1)[:, None], np.ones((70, 1))
    y_ref = reference.moe(replace(CFG, top_k=1), best[:, None] * x, ids=ids, weights=ones, **experts)
    for options in ({"threads": 1}, {"threads": 3}, {"schedule": "bulk"}):
        with MoE(cfg, **options) as moe:
            moe.load(**W)
            before = x.copy()
            y, found = moe(x, return_routing=True)
            assert reference.error(y, y_ref) < 1e-5
            assert np.array_equal(found.ids, ids)
            assert np.abs(found.weights[:, 0] - best).max() < 1e-6
            assert same(moe(x, found.ids, found.weights), y)
            assert same(x, before)
    assert reference.error(reference.moe(cfg, x, **W), y_ref) < 1e-12


def test_a_bias_that_excludes_the_best_experts_does_not_make_weights_inexact():
    """The chosen shares are 1e-14, or less than float32 holds. Weights and gradients are right, also with groups."""
    x, dy = 100 * tokens(CFG, 60, seed=3), tokens(CFG, 60, seed=4)
    for groups in ({}, {"groups": 4, "topk_groups": 3, "group_score": "sum_top2"}):
        cfg = replace(CFG, router=Router("softmax", **groups), top_k=2)
        bias = np.where(np.arange(8) < 4, -9, 0).astype(np.float32)
        ids, want = reference.route(cfg, x, W["router"], None, bias)
        shares = np.take_along_axis(reference.softmax(reference.scores_of(cfg, x, W["router"])), ids, axis=1).sum(1)
        assert (shares < 1e-38).any()
        with MoE(cfg, threads=1, train=True) as moe:
            moe.load(**W, select_bias=bias)
            _, tape = moe.forward(x)
            alike = (tape.routing.ids == ids).all(axis=1)
            assert alike[(shares > 1e-30) & (shares < 1e-12)].sum() > 5
            assert np.abs(tape.routing.weights - want)[alike].max() < 1e-4  # scores near 100 are rounded to float32
            dx, by = moe.backward(dy, tape), tape.routing
        right = reference.backward(cfg, x, dy, ids=by.ids, weights=by.weights, **{n: W[n] for n in W if n != "router"})
        slopes = _reference_backward.by_logits(cfg, by.logits, by.ids, right["weights"]) @ W["router"].T
        assert reference.error(dx, right["x"] + slopes) < 1e-5


def test_a_routing_owns_its_arrays():
    with MoE(CFG, threads=1) as moe:
        moe.load(**W)
        x = tokens(CFG, 24, seed=0).reshape(4, 6, 40)
        _, found = moe(x, return_routing=True)
        assert [a.shape for a in (found.ids, found.weights, found.logits)] == [(4, 6, 3), (4, 6, 3), (4, 6, 8)]
        copies = [a.copy() for a in (found.ids, found.weights, found.logits)]
        ids = found.ids.copy()
        _, given = moe(x, ids, found.weights, return_routing=True)
        ids[:] = 0
        moe(-x, return_routing=True)
        assert all(same(a, b) for a, b in zip((found.ids, found.weights, found.logits), copies))
        assert same(given.ids, copies[0])
        empty = moe(x[:0], return_routing=True)[1]
        assert empty.counts.tolist() == [0] * 8
        assert empty.logits.shape == (0, 6, 8)


@pytest.mark.ranks(2)
def test_the_summary_keeps_the_load_of_every_expert(comm):
    with MoE(CFG, comm, layers=2) as moe:
        moe.load(0, **W)
        moe.load(1, **W)
        counts = np.zeros((2, 8), np.int64)
        for layer in (0, 1, 1):
            counts[layer] += moe(tokens(CFG, 30, seed=comm.rank + layer), layer=layer, return_routing=True)[1].counts
        total = comm.allreduce(counts)
        summary = moe.summary()
        assert summary.expert_rows.tolist() == total.tolist()
        assert summary.balance == pytest.approx(total.max(1) / total.mean(1))
        assert "times the mean" in str(summary)


def test_configurations_without_meaning_are_refused():
    for options, words in (
        ({"score": "top"}, "score must be one of softmax, .*, sparsemixer, got 'top'"),
        ({"groups": -1}, r"groups must be 0 or an int in 1\.\.63, got -1"),
        ({"groups": 4}, r"topk_groups must be an int in 1\.\.groups \(4\), got 0"),
        ({"groups": 4, "topk_groups": 5}, r"topk_groups must be an int in 1\.\.groups \(4\), got 5"),
        ({"topk_groups": 2}, r"groups must be 0 or an int in 1\.\.63, got 0"),
        ({"score": "softmax_topk", "groups": 2, "topk_groups": 1}, "groups require one of the scores softmax, sigmoid"),
        ({"score": "sparsemixer", "groups": 2, "topk_groups": 1}, "groups require one of the scores"),
        ({"group_score": "mean"}, "group_score must be one of max, sum_top2, got 'mean'"),
        ({"score": "softmax_topk", "group_score": "sum_top2"}, "group_score='sum_top2' requires groups, got groups=0"),
        ({"capacity_factor": 0.0}, "capacity_factor must be None or a positive number"),
        ({"capacity_factor": float("nan")}, "capacity_factor must be None or a positive number"),
        ({"weight_on": "both"}, "weight_on must be one of output, input, got 'both'"),
        ({"scale": float("nan")}, "scale must be a finite number"),
    ):
        with pytest.raises(InputError, match=words):
            Router(**options)  # type: ignore[arg-type]
    two = Router(groups=2, topk_groups=1)
    for changes, words in (
        ({"router": replace(two, groups=3)}, "experts must be a multiple of groups=3, got 8"),
        ({"router": two, "top_k": 5}, "top_k must be at most 4, the experts in topk_groups=1 groups, got 5"),
        (
            {"router": Router(groups=8, topk_groups=4, group_score="sum_top2")},
            "requires groups of at least 2 experts, got 1",
        ),
        ({"router": Router(weight_on="input")}, "weight_on='input' requires top_k=1, got top_k=3"),
        ({"identity_experts": -1}, "identity_experts must be 0 or a positive int"),
        ({"identity_experts": 2, "router": two}, "identity_experts must be 0 for a router with groups, got 2"),
        (
            {"identity_experts": 2, "router": Router(capacity_factor=1.0)},
            "identity_experts must be 0 for a router with capacity_factor, got 2",
        ),
        ({"top_k": 9}, r"top_k must be at most experts \(8\), got 9"),
        ({"top_k": 11, "identity_experts": 2}, r"top_k must be at most experts \+ identity_experts \(10\), got 11"),
    ):
        with pytest.raises(InputError, match=words):
            replace(CFG, **changes)  # type: ignore[arg-type]
    mixer = replace(CFG, router=Router("softmax_topk"))
    with MoE(mixer) as moe:
        for name, value, words in (
            (
                "select_bias",
                BIAS,
                f"select_bias requires one of the scores {', '.join(BIASED)}, got score='sof",
            ),
            ("router_bias", BIAS[:5], r"router_bias must have shape \[8\], got \[5\]"),
            ("router_bias", BIAS * np.float32(np.nan), r"router_bias\[0\] must be finite, got nan"),
        ):
            with pytest.raises(InputError, match=words):
                moe.load(**W, **{name: value})
        with pytest.raises(InputError, match="load got router_bias= without router="):
            moe.load(**{n: a for n, a in W.items() if n != "router"}, router_bias=BIAS)
        with pytest.raises(InputError, match="load_router needs router=, router_bias= or select_bias="):
            moe.load_router(0)


@pytest.mark.ranks(2)
def test_a_wrong_argument_for_routing_is_refused_on_every_rank(comm):
    x = tokens(CFG, 9, seed=comm.rank)
    call = routing(CFG, 9, "uniform", seed=0)
    with MoE(CFG, comm) as moe:
        moe.load(**W)
        y = moe(x)
        for wrong, words in (
            ({"router_x": x, **call}, "router_x applies only to calls that use the layer's router"),
            ({"router_x": x[:5]}, r"router_x must have the shape of x \[9, 40\], got \[5, 40\]"),
            ({"router_x": x.astype("f8")}, "router_x must have dtype float32, got float64"),
            ({"return_routing": "yes"}, "return_routing must be True or False, got 'yes'"),
        ):
            for refusing in (0, 1):
                kind, text = (InputError, words) if comm.rank == refusing else (PeerInputError, f"rank {refusing} ref")
                with pytest.raises(kind, match=text):
                    moe(x, **wrong if comm.rank == refusing else {})
        assert same(moe(x), y)


@ranks_each(1, 2)
def test_a_router_s_bias_can_change_between_calls(comm, world):
    """Loss-free balancing (DeepSeek-V3) loads a new bias and keeps the router."""
    cfg = replace(CFG, router=Router("sigmoid"))
    x = tokens(cfg, 30, seed=world)
    with MoE(cfg, comm) as moe:
        moe.load(**W)
        plain = moe(x, return_routing=True)[1]
        bias = np.zeros(8, np.float32)
        bias[5] = 10
        moe.load_router(0, select_bias=bias)
        favoured = moe(x, return_routing=True)[1]
        assert (favoured.ids[:, 0] == 5).all()
        assert same(favoured.logits, plain.logits)
        moe.load_router(0, select_bias=0 * bias, router_bias=bias)
        assert np.array_equal(moe(x, return_routing=True)[1].logits[:, 5], plain.logits[:, 5] + 10)
