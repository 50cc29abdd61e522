"""Dispatch and combine without experts: which rows arrive, their order, the combined sums, and refusals."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import sweeps
from cases import SKEWS, Exchange, MoE, one_exchange, rings_of, routing, same, tokens
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from mpi import ranks_each

import aristos
from aristos import reference
from aristos.errors import ClosedError, InputError, MismatchError, OpenCallError, PeerInputError

CFG = aristos.MoEConfig(hidden=24, ffn=40, experts=5, top_k=2, max_tokens=30)
SHAPE: dict[str, Any] = {"hidden": 24, "experts": 5, "top_k": 2, "max_tokens": 30}


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    experts, most = draw(st.integers(1, 9)), draw(st.sampled_from((1, 7, 40)))
    return {
        "cfg": aristos.MoEConfig(
            hidden=draw(st.sampled_from((1, 16, 33))),
            ffn=1,
            experts=experts,
            top_k=draw(st.integers(1, min(4, experts))),
            max_tokens=most,
        ),
        "placement": draw(st.none() | st.lists(st.integers(0, 7), min_size=experts, max_size=experts)),
        "ring": draw(st.sampled_from((None, 1, 2, 3, 40))),
        "calls": draw(
            st.lists(
                st.tuples(st.sampled_from(SKEWS[1:]), st.tuples(*[st.integers(0, most)] * 8), st.integers(0, 999)),
                min_size=1,
                max_size=4,
            )
        ),
    }


@pytest.mark.parallel
@ranks_each(1, 2, 5, timeout=240)
@seed(sweeps.number())
@settings(max_examples=10)
@given(plan=plans())
def test_any_exchange_moves_the_right_rows(comm, world, plan):
    cfg, places = plan["cfg"], plan["placement"]
    placement = None if places is None else [p % world for p in places]
    shape = {name: getattr(cfg, name) for name in SHAPE}
    with rings_of(plan["ring"]), Exchange(comm, placement=placement, **shape) as exchange:
        for skew, counts, seed in plan["calls"]:
            x = tokens(cfg, counts[comm.rank], seed=seed + comm.rank)
            one_exchange(comm, exchange, x, routing(cfg, len(x), skew, seed=seed + comm.rank), cfg.experts)


def test_an_exchange_in_one_process():
    with Exchange(**SHAPE) as exchange:
        for skew in SKEWS[1:]:
            one_exchange(None, exchange, tokens(CFG, 20, seed=0), routing(CFG, 20, skew, seed=1), 5)
        x = tokens(CFG, 6, seed=0).reshape(2, 3, 24)
        call = routing(CFG, 6, "uniform", seed=1)
        rows, handle = exchange.dispatch(x, call["ids"].reshape(2, 3, 2))
        assert exchange.combine(rows, handle, call["weights"].reshape(2, 3, 2)).shape == (2, 3, 24)


@pytest.mark.core
@pytest.mark.ranks(2)
def test_between_layers_of_the_same_communicator(comm):
    """Exchanges and layers share one engine and take turns. An exchange around the layer's experts gives its result."""
    w = reference.weights(CFG)
    x = tokens(CFG, 30, seed=comm.rank)
    call = routing(CFG, 30, "some", seed=comm.rank)
    with MoE(CFG, comm, threads=2) as moe, Exchange(comm, **SHAPE) as exchange:
        moe.load(**w)
        y = moe(x, **call)
        for _ in range(3):
            rows, handle = exchange.dispatch(x, call["ids"])
            ends = np.cumsum(handle.counts.sum(axis=1))
            parts = np.split(rows, ends[:-1])
            out = [aristos.kernels.ffn(part, w["up"][e], w["down"][e]) for e, part in zip(handle.experts, parts)]
            assert same(exchange.combine(np.concatenate(out), handle, call["weights"]), y)
            assert same(moe(x, **call), y)


def good(rank: int) -> tuple[np.ndarray, dict[str, Any]]:
    return tokens(CFG, 20, seed=rank), routing(CFG, 20, "some", seed=rank)


@pytest.mark.core
@pytest.mark.ranks(3)
def test_a_dispatch_refused_by_one_rank(comm):
    x, call = good(comm.rank)
    with Exchange(comm, **SHAPE) as exchange:
        bad: list[tuple[Any, Any, str]] = [
            (x[:, :3], call["ids"], r"x must have shape \[\.\.\., 24\]"),
            (x.astype("f8"), call["ids"], "x must have dtype float32"),
            (np.zeros((31, 24), "f4"), call["ids"], "x has 31 tokens, more than max_tokens=30"),
            (x, call["ids"][1:], r"ids must be integers of shape \[20, 2\]"),
            (x, call["ids"] + 9, r"ids of token 0 must be in -1\.\.4"),
            (x, np.zeros_like(call["ids"]), "ids of token 0 must name each expert once at most"),
        ]
        for n, (wrong_x, wrong_ids, words) in enumerate(bad):
            start = time.monotonic()
            if comm.rank == n % 3:
                with pytest.raises(InputError, match=words):
                    exchange.dispatch(wrong_x, wrong_ids)
            else:
                with pytest.raises(PeerInputError, match=f"rank {n % 3} refused"):
                    exchange.dispatch(x, call["ids"])
            assert time.monotonic() - start < 5
            one_exchange(comm, exchange, x, call, 5)


@pytest.mark.ranks(3)
def test_a_combine_refused_by_one_rank(comm):
    x, call = good(comm.rank)
    with Exchange(comm, **SHAPE) as exchange:
        for n in range(6):
            rows, handle = exchange.dispatch(x, call["ids"])
            wrong = ((rows[:, :3], call["weights"]), (np.zeros((len(rows) + 1, 24), "f4"), call["weights"]))
            nan = (rows, call["weights"] * np.nan)
            start = time.monotonic()
            if comm.rank == n % 3:
                out, weights = (*wrong, nan)[n // 2]
                with pytest.raises(InputError, match=r"out must|weights must be finite"):
                    exchange.combine(out, handle, weights)
            else:
                with pytest.raises(PeerInputError, match=f"rank {n % 3} refused"):
                    exchange.combine(rows, handle, call["weights"])
            assert time.monotonic() - start < 5
            one_exchange(comm, exchange, x, call, 5)


@pytest.mark.ranks(3)
def test_ranks_in_an_exchange_and_in_a_layer(comm):
    x, call = good(comm.rank)
    with MoE(CFG, comm) as moe, Exchange(comm, **SHAPE) as exchange, Exchange(comm, **SHAPE) as twin:
        moe.load(**reference.weights(CFG))
        y = moe(x)
        for n in range(6):
            mine = twin if n >= 3 and comm.rank == (n + 1) % 3 else exchange
            start = time.monotonic()
            with pytest.raises(MismatchError):
                moe(x) if comm.rank == n % 3 else mine.dispatch(x, call["ids"])
            assert time.monotonic() - start < 5
            assert same(moe(x), y)
            one_exchange(comm, exchange, x, call, 5)


@ranks_each(1, 2)
def test_a_second_open_call_is_refused(comm, world):
    x, call = good(comm.rank)
    with MoE(CFG, comm) as moe, Exchange(comm, **SHAPE) as exchange, Exchange(comm, **SHAPE) as twin:
        moe.load(**reference.weights(CFG))
        y = moe(x)
        rows, handle = exchange.dispatch(x, call["ids"])
        for between in (
            lambda: exchange.dispatch(x, call["ids"]),
            lambda: twin.dispatch(x, call["ids"]),
            lambda: moe(x),
            lambda: moe.start(x),
            lambda: twin.combine(rows, handle, call["weights"]),
        ):
            with pytest.raises(OpenCallError):
                between()
        done = exchange.combine(rows, handle, call["weights"])
        assert done.shape == x.shape
        with pytest.raises(OpenCallError):
            exchange.combine(rows, handle, call["weights"])
        assert same(moe(x), y)


@pytest.mark.core
@ranks_each(1, 2)
def test_closing_between_the_phases_refuses_the_call(comm, world):
    """Closing between the phases of a call refuses that call on all ranks; the communicator stays usable."""
    x, call = good(comm.rank)
    exchange = Exchange(comm, **SHAPE)
    one_exchange(comm, exchange, x, call, 5)
    exchange.close()
    exchange.close()
    with pytest.raises(ClosedError):
        exchange.dispatch(x, call["ids"])
    exchange = Exchange(comm, **SHAPE)
    _, handle = exchange.dispatch(x, call["ids"])
    exchange.close()
    with pytest.raises((ClosedError, OpenCallError)):
        exchange.combine(x, handle, call["weights"])
    with Exchange(comm, **SHAPE) as again:
        one_exchange(comm, again, x, call, 5)


@pytest.mark.ranks(2)
def test_wrong_options_are_refused_on_every_rank(comm):
    for name, value in {"hidden": 0, "experts": 2.0, "top_k": -1, "max_tokens": True, "timeout": 0.0}.items():
        if comm.rank == 0:
            with pytest.raises(InputError, match=f"{name} must be"):
                Exchange(comm, **{**SHAPE, name: value})
        else:
            with pytest.raises(PeerInputError, match="rank 0 refused its arguments"):
                Exchange(comm, **SHAPE)
    with pytest.raises(MismatchError):
        Exchange(comm, **{**SHAPE, "hidden": 24 + comm.rank})
    with pytest.raises(MismatchError):
        MoE(CFG, comm) if comm.rank else Exchange(comm, **SHAPE)
