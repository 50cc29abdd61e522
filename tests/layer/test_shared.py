"""Shared experts, bounds after the activation, and layers of different kinds in one object."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import MoE, routing, same, tokens
from mpi import ranks_each
from rounded import numpy_dtype

import aristos
from aristos import Router, reference
from aristos.errors import InputError, MismatchError, PeerInputError

CFG = aristos.MoEConfig(
    hidden=40, ffn=72, experts=5, top_k=2, activation="silu", gated=True, max_tokens=70, shared_ffn=50
)
W: dict[str, Any] = dict(reference.weights(CFG))
SHARED = {n.removeprefix("shared_"): a for n, a in W.items() if n.startswith("shared_")}


def by_hand(cfg: aristos.MoEConfig, w: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """What the shared expert adds, in float64, as in the blocks of Qwen2-MoE and DeepSeek."""
    x = x.astype("f8")
    act = {"silu": lambda v: v / (1 + np.exp(-v)), "relu2": lambda v: np.maximum(v, 0) ** 2}[cfg.activation]
    h = x @ w["shared_up"] + w.get("shared_up_bias", 0)
    if cfg.gated:
        h = h * act(x @ w["shared_gate"] + w.get("shared_gate_bias", 0))
    else:
        h = act(h)
    y = h @ w["shared_down"] + w.get("shared_down_bias", 0)
    return y / (1 + np.exp(-(x @ w["shared_sigmoid"])))[:, None] if cfg.shared_sigmoid else y


def routed(cfg: aristos.MoEConfig, w: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """The layer without its shared expert, in float64."""
    plain = replace(cfg, shared_ffn=0, shared_sigmoid=False)
    return reference.moe(plain, x, **{n: a for n, a in w.items() if not n.startswith("shared")})


KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"shared_sigmoid": True, "bias": True},
    {"activation": "relu2", "gated": False, "shared_ffn": 300, "bias": True},
    {"top_k": 1, "router": Router("sigmoid", renormalize=False, weight_on="input")},
    {"identity_experts": 3, "shared_sigmoid": True},
)


@pytest.mark.parametrize("change", KINDS)
def test_a_shared_expert_is_added(change):
    cfg = replace(CFG, **change)
    w, x = reference.weights(cfg, seed=1), tokens(cfg, 70, seed=0)
    want = routed(cfg, w, x) + by_hand(cfg, w, x)
    assert reference.error(reference.moe(cfg, x, **w), want) < 1e-13
    for options in ({"threads": 1}, {"threads": 3}, {"schedule": "bulk", "threads": 2}):
        with MoE(cfg, **options) as moe:
            moe.load(**w)
            y, stats, found = moe(x, return_stats=True, return_routing=True)
            assert reference.error(y, want) < 1e-5
            assert found.ids.shape == found.weights.shape == (70, cfg.top_k)
            assert found.counts.sum() == 70 * cfg.top_k
            assert sum(stats.rows_to_peer) == sum(stats.rows_from_peer) == sum(stats.expert_rows)
            assert same(moe(x, found.ids, found.weights), y)
            none = np.full((70, cfg.top_k), -1)
            assert reference.error(moe(x, none, found.weights), by_hand(cfg, w, x)) < 1e-5
            assert same(moe(x[:3]), y[:3])


@ranks_each(2, 3)
def test_equal_bits_on_any_cluster_shape(comm, world):
    for dtype, change in (("float32", KINDS[1]), ("bfloat16", KINDS[4]), ("float32", KINDS[3])):
        cfg = replace(CFG, dtype=dtype, **change)
        w = reference.weights(cfg)
        x = tokens(cfg, 60 * (comm.rank != 1), seed=comm.rank).astype(numpy_dtype(dtype))
        call = routing(cfg, len(x), "some", seed=comm.rank)
        with MoE(cfg, threads=1, backend="cpu") as moe:
            moe.load(**w)
            want, given = moe(x), moe(x, **call)
        for options in (
            {},
            {"threads": 2},
            {"ranks_per_node": 1},
            {"schedule": "bulk"},
            {"placement": [0, 0, 0, 0, [0, 1]]},
        ):
            with MoE(cfg, comm, backend="cpu", **options) as moe:
                moe.load(**w)
                assert same(moe(x), want), options
                assert same(moe(x, **call), given), options
                assert same(moe.start(x).wait(), want), options
                summary = moe.summary()
                assert summary.rows == summary.expert_rows.sum()


def test_memory_counts_the_shared_expert_of_every_layer():
    for change in KINDS:
        cfg = replace(CFG, **change)
        with MoE(cfg, threads=1, layers=2) as moe:
            moe.load(0, **reference.weights(cfg))
            moe.load(1, **reference.weights(cfg))
            held = moe._member.runtime._memory.nbytes + 2 * moe.packed_weights(0).nbytes
            assert aristos.MoE.memory(cfg, 1, layers=2) == held


@ranks_each(1, 2)
def test_loading_a_shared_expert(comm, world):
    cfg = replace(CFG, shared_sigmoid=True)
    w = reference.weights(cfg)
    x = tokens(cfg, 9, seed=world)
    parts = {n.removeprefix("shared_"): a for n, a in w.items() if n.startswith("shared_")}
    with MoE(cfg, comm, layers=2) as moe:
        moe.load(0, **w)
        y = moe(x)
        for e in range(5):
            moe.load_expert(1, e, **{n: w[n][e] for n in ("up", "gate", "down")})
        moe.load_router(1, router=w["router"])
        if comm is None or comm.rank:
            moe.load_shared(1, **parts)
        kind, words = InputError, "layer 1 lacks its shared expert: call load_shared"
        if comm is not None:
            kind = PeerInputError if comm.rank else InputError
            words = "rank 0 .* has not loaded the shared expert" if comm.rank else words
            with pytest.raises(kind, match=words):
                moe(x, layer=1)
        bits = {n: np.ascontiguousarray(a.T).astype(ml_dtypes.bfloat16).view(np.uint16) for n, a in parts.items()}
        moe.load_shared(1, **bits, layout="out_in", bits="bfloat16")
        assert not same(moe(x, layer=1), y)
        moe.load_shared(1, **parts)
        assert same(moe(x, layer=1), y)
        for change, words in (
            (
                {"sigmoid": None},
                "load_shared: shared_sigmoid= must be an array, because cfg has shared_sigmoid=True, got None",
            ),
            ({"gate": None}, "load_shared needs shared_gate= for gated=True"),
            ({"up": parts["up"].T}, r"shared_up must have shape \[40, 50\], got \[50, 40\]: .*'out_in'"),
            ({"up_bias": parts["sigmoid"]}, "load_shared got shared_up_bias=, but the configuration has .*bias=False"),
        ):
            with pytest.raises(InputError, match=words):
                moe.load_shared(1, **parts | change)
        assert same(moe(x, layer=1), y)
        bad = x * np.float32(np.inf if comm is None or comm.rank == 0 else 1)
        call = routing(cfg, 9, "none", seed=0)
        with pytest.raises(InputError if comm is None or comm.rank == 0 else PeerInputError, match="finite"):
            moe(bad, **call)
        assert same(moe(x), y)
    with MoE(replace(CFG, shared_ffn=0)) as moe, pytest.raises(InputError, match=r"got shared_up=, but .*shared_ffn=0"):
        moe.load(**W)


def test_a_limit_after_the_activation():
    """As in Step-3.7, silu(g) is clamped to at most the limit, and u to -limit..limit."""
    cfg = replace(CFG, limit=0.4, limit_after=True, shared_ffn=0)
    w = {n: a for n, a in W.items() if not n.startswith("shared")}
    x = 2 * tokens(cfg, 40, seed=0)
    g, u = x.astype("f8") @ w["gate"][3], x.astype("f8") @ w["up"][3]
    h = np.minimum(g / (1 + np.exp(-g)), 0.4) * np.clip(u, -0.4, 0.4)
    for dtype, bound in (("float32", 1e-5), ("bfloat16", 2e-2)):
        with MoE(replace(cfg, dtype=dtype), threads=2, backend="cpu") as moe:
            moe.load(**w)
            y = moe(x.astype(numpy_dtype(dtype)), np.full((40, 2), [3, -1]), np.ones((40, 2), np.float32))
            assert reference.error(y.astype("f4"), h @ w["down"][3]) < bound
    assert (
        reference.error(reference.expert(cfg, x, 3, **{n: w[n] for n in ("up", "gate", "down")}), h @ w["down"][3])
        < 1e-12
    )


LAYERS = [
    replace(CFG, shared_ffn=0),
    replace(CFG, ffn=200, shared_ffn=24, shared_sigmoid=True, router=Router("sigmoid", scale=2.0)),
    replace(CFG, ffn=16, gated=False, activation="relu2", bias=True, shared_ffn=0, identity_experts=2),
]


@ranks_each(1, 2)
def test_layers_of_different_kinds_share_windows(comm, world):
    weights = [reference.weights(cfg, seed=n) for n, cfg in enumerate(LAYERS)]
    x = tokens(CFG, 50, seed=world)
    wanted = []
    for cfg, w in zip(LAYERS, weights):
        with MoE(cfg, threads=1) as moe:
            moe.load(**w)
            wanted.append(moe(x))
        assert reference.error(wanted[-1], reference.moe(cfg, x, **w)) < 1e-5
    for options in ({}, {"schedule": "bulk"}, {"threads": 3, "ranks_per_node": 1}):
        with MoE(LAYERS, comm, **options) as moe:
            assert (moe.layers, moe.cfg) == (3, LAYERS[0])
            for layer, w in enumerate(weights):
                assert moe.layer_config(layer) == LAYERS[layer]
                moe.load(layer, **w)
            for layer in (0, 1, 2, 1, 0):
                y, found = moe(x, layer=layer, return_routing=True)
                assert same(y, wanted[layer])
                assert found.logits.shape == (50, LAYERS[layer].columns)
            assert moe.summary().expert_rows.shape == (3, 5)
            held = moe._member.runtime._memory.nbytes + sum(moe.packed_weights(n).nbytes for n in range(3))
            if not options:
                most = comm.allreduce(held, max_of()) if comm is not None else held
                assert aristos.MoE.memory(LAYERS, world) == most


def max_of() -> Any:
    from mpi4py import MPI

    return MPI.MAX


def test_lists_that_cannot_be_one_object_are_refused():
    for cfgs, words in (
        ([], "cfg must be an aristos.MoEConfig or a list of them, got an empty list"),
        ([CFG, "cfg"], r"cfg\[1\] must be an aristos.MoEConfig, got str"),
        ([CFG, replace(CFG, hidden=48)], "must have the same hidden, got 40 in layer 0 and 48 in layer 1"),
        ([CFG, replace(CFG, top_k=1)], "the same top_k, got 2 in layer 0 and 1 in layer 1: make an object for each"),
        ([CFG, CFG, replace(CFG, dtype="bfloat16")], "dtype, got 'float32' in layer 0 and 'bfloat16' in layer 2"),
        ([replace(CFG, max_tokens=9), CFG], "the same max_tokens, got 9 in layer 0 and 70 in layer 1"),
    ):
        with pytest.raises(InputError, match=words):
            MoE(cfgs)
    with pytest.raises(InputError, match="layers must be left out where cfg is a list, got 2"):
        MoE([CFG, CFG], layers=2)


@pytest.mark.ranks(2)
def test_ranks_with_different_lists(comm):
    with pytest.raises(MismatchError, match="ranks are configured differently"):
        MoE([CFG, LAYERS[comm.rank]], comm)


def test_configurations_without_meaning_are_refused():
    for changes, words in (
        ({"shared_ffn": -1}, "shared_ffn must be 0 or a positive int"),
        ({"shared_ffn": 0, "shared_sigmoid": True}, "shared_sigmoid=True requires a shared expert, got shared_ffn=0"),
        ({"limit_after": True}, "limit_after=True requires a limit, got limit=None"),
        ({"shared_sigmoid": "yes"}, "shared_sigmoid must be True or False, got 'yes'"),
        ({"shared_ffn": True}, "shared_ffn must be 0 or"),
    ):
        with pytest.raises(InputError, match=words):
            replace(CFG, **changes)
    for options, words in (
        ({"capacity": 0}, "capacity must be None or a positive int"),
        ({"capacity": 4, "capacity_factor": 1.0}, "give capacity or capacity_factor, not both, got 4 and 1.0"),
    ):
        with pytest.raises(InputError, match=words):
            Router(**options)
    cfg = replace(CFG, shared_ffn=0, router=Router(capacity=3))
    w = {n: a for n, a in W.items() if not n.startswith("shared")}
    x = tokens(cfg, 30, seed=0)
    with MoE(cfg) as moe:
        moe.load(**w)
        y, stats = moe(x, return_stats=True)
        assert max(stats.expert_rows) == 3
        assert reference.error(y, reference.moe(cfg, x, **w)) < 1e-5
