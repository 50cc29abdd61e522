"""Random layers: any shape, k, E, placement, router, skew, ring and thread count, on 1 to 8 ranks.

Every call is checked twice: in float64, and bit for bit against the same tokens in one process, which no rank count,
placement, thread count, ring size or company of other rows may change. Ranks are processes, so a launch runs many
examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from cases import SKEWS, MoE, alone, check, rings_of, routing, same, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi import ranks_each

import aristos
from aristos import reference
from aristos.config import ACTIVATIONS, SCORES

MOST_RANKS = 8


@dataclass(frozen=True)
class CallPlan:
    """One call: its layer, skew of the routing, tokens of each rank, and whether it is started in the background."""

    layer: int
    skew: str
    counts: tuple[int, ...]
    seed: int
    starts: bool


@dataclass(frozen=True)
class Plan:
    """A layer object and its calls; placement entries are taken modulo the number of ranks."""

    cfg: aristos.MoEConfig
    layers: int
    placement: tuple[int, ...] | None
    ring: int | None
    threads: int
    calls: tuple[CallPlan, ...]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    experts = draw(st.integers(1, 12))
    most = draw(st.sampled_from((1, 5, 32, 33, 100, 250)))
    layers = draw(st.integers(1, 3))
    router = aristos.Router(
        score=draw(st.sampled_from(tuple(SCORES))),
        renormalize=draw(st.booleans()),
        scale=draw(st.sampled_from((1.0, 2.5))),
    )
    gated = draw(st.booleans())
    cfg = aristos.MoEConfig(
        hidden=draw(st.sampled_from((1, 7, 16, 48, 100, 257, 1030))),
        ffn=draw(st.sampled_from((1, 5, 32, 70, 520))),
        experts=experts,
        top_k=draw(st.integers(1, min(experts, 5))),
        activation=draw(st.sampled_from([name for name, rule in ACTIVATIONS.items() if gated or not rule.gate_only])),
        gated=gated,
        limit=draw(st.sampled_from((None, 0.5))) if gated else None,
        bias=draw(st.booleans()),
        max_tokens=most,
        router=router,
    )
    calls = st.builds(
        CallPlan,
        layer=st.integers(0, layers - 1),
        skew=st.sampled_from(SKEWS),
        counts=st.tuples(*[st.one_of(st.just(0), st.just(most), st.integers(0, most))] * MOST_RANKS),
        seed=st.integers(0, 10**6),
        starts=st.booleans(),
    )
    places = st.lists(st.integers(0, MOST_RANKS - 1), min_size=experts, max_size=experts).map(tuple)
    return Plan(
        cfg=cfg,
        layers=layers,
        placement=draw(st.none() | places),
        ring=draw(st.sampled_from((None, None, 1, 2, 3, 4, 40))),
        threads=draw(st.integers(1, 3)),
        calls=tuple(draw(st.lists(calls, min_size=1, max_size=5))),
    )


def run(comm: Any, plan: Plan, schedule: Literal["fused", "bulk"] = "fused", ranks_per_node: int | None = None) -> None:
    """Make the layer of a plan on all ranks, run its calls, and check every rank's output in both ways."""
    cfg, rank, world = plan.cfg, comm.rank, comm.size
    weights: list[dict[str, Any]] = [dict(reference.weights(cfg, seed=s)) for s in range(plan.layers)]
    placement = None if plan.placement is None else [p % world for p in plan.placement]
    options: dict[str, Any] = {"schedule": schedule, "ranks_per_node": ranks_per_node}
    with rings_of(plan.ring):
        moe = MoE(cfg, comm, layers=plan.layers, threads=plan.threads, placement=placement, **options)
    with moe, alone(cfg, *weights, threads=1) as one:
        for layer, w in enumerate(weights):
            moe.load(layer, **w)
        for n, c in enumerate(plan.calls):
            x = tokens(cfg, c.counts[rank], seed=c.seed + rank)
            call = routing(cfg, len(x), c.skew, seed=c.seed + rank)
            if c.starts:
                y = moe.start(x, layer=c.layer, **call).wait()
            else:
                y = moe(x, layer=c.layer, **call)
            assert same(y, one(x, layer=c.layer, **call)), f"call {n}: other bits than one process"
            check(cfg, weights[c.layer], x, call, y)


@ranks_each(1, 2, 3, 4, timeout=240)
@settings(max_examples=30)
@given(plan=plans())
def test_any_layer_equals_the_reference(comm, world, plan):
    run(comm, plan)


@ranks_each(5, 6, 7, 8, timeout=240)
@settings(max_examples=8)
@given(plan=plans())
def test_any_layer_on_more_ranks_than_cores_equals_the_reference(comm, world, plan):
    run(comm, plan)


@pytest.mark.ranks(2, timeout=240)
@settings(max_examples=30)
@given(plan=plans())
def test_any_layer_in_bulk_equals_the_reference(comm, plan):
    run(comm, plan, schedule="bulk")


@settings(max_examples=40)
@given(plan=plans(), data=st.data())
def test_a_row_alone_has_the_same_bits(plan, data):
    """A row's bits depend on the row alone, not on its place or the other rows."""
    cfg = plan.cfg
    w = reference.weights(cfg)
    with alone(cfg, w, threads=plan.threads) as moe:
        x = tokens(cfg, cfg.max_tokens, seed=1)
        y = moe(x)
        first = data.draw(st.integers(0, len(x) - 1))
        last = data.draw(st.integers(first + 1, len(x)))
        assert same(moe(x[first:last]), y[first:last])
        order = np.random.default_rng(last).permutation(len(x))
        assert same(moe(x[order]), y[order])
