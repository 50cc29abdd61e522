"""Random layers and their calls, drawn by Hypothesis, and a run of them that checks every output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cases import SKEWS, MoE, alone, check, rings_of, routing, same, tokens
from hypothesis import strategies as st

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
        shared_ffn=draw(st.sampled_from((0, 33, 200))),
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
    """Make the layer of a plan on all ranks, run its calls, and check outputs with the reference and one process."""
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
            assert same(y, one(x, layer=c.layer, **call)), f"call {n}: the bits differ from one process's"
            check(cfg, weights[c.layer], x, call, y)
