"""Tokens that cross once to a rank of the node: when they do, what crosses, and that outputs keep their bits."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from cases import Exchange, MoE, routing, same, tokens

import aristos
from aristos import reference
from aristos.engine import layout, words
from aristos.substrate.cpu import runtime

CFG = aristos.MoEConfig(hidden=40, ffn=72, experts=6, top_k=3, gated=True, bias=True, max_tokens=90)
KINDS = {
    "float32": CFG,
    "bfloat16": replace(CFG, dtype="bfloat16", activation="silu"),
    "shared": replace(CFG, shared_ffn=24, shared_sigmoid=True),
    "capacity": replace(CFG, router=aristos.Router(capacity_factor=0.7)),
    "on input": replace(CFG, top_k=1, router=aristos.Router(weight_on="input")),
    "identity": replace(CFG, identity_experts=2),
}


def crossing(placement, ids, peer: int) -> int:
    """How many tokens have a choice at `peer`."""
    owner = np.append([ranks[0] for ranks in placement.copies], -1)
    return int((owner[np.asarray(ids)] == peer).any(axis=1).sum())


def set_once(job, rows: int, share: int = 0, bundle: int = 512) -> None:
    job[words.ONCE_ROWS], job[words.ONCE_SHARE], job[words.BUNDLE_PAIRS] = rows, share, bundle


@pytest.mark.ranks(2)
def test_outputs_do_not_depend_on_how_often_a_token_crosses(comm, monkeypatch):
    """Tokens cross once on both ranks, on one, or on none; a call fills its rings several times."""
    monkeypatch.setattr(layout, "RING_BUDGET", 1)
    for name, cfg in KINDS.items():
        w = reference.weights(cfg)
        x = tokens(cfg, 90 - 17 * comm.rank, seed=comm.rank)
        x = x.astype(ml_dtypes.bfloat16) if cfg.dtype == "bfloat16" else x
        with MoE(cfg, comm, moves="tokens", threads=1 + (name == "float32")) as moe:
            moe.load(**w)
            wanted = moe(x)
            assert runtime.ONCE_ROWS > moe.runtime.shape.ring_rows == 64
            for n, once in enumerate((True, comm.rank == 0, False, True)):
                set_once(moe._backend._jobs.open(0), int(once), bundle=(512, 20, 20, 1)[n])
                assert same(moe(x), wanted), (name, n)


@pytest.mark.ranks(3)
def test_what_crosses(comm):
    """To some ranks each token crosses once in a call, to others once for each of its choices there."""
    placement = [0, 0, 1, 1, 1, 2]
    with MoE(CFG, comm, placement=placement, moves="tokens", threads=1) as moe:
        moe.load(**reference.weights(CFG))
        x, call = tokens(CFG, 80, seed=comm.rank), routing(CFG, 80, "uniform", seed=comm.rank)
        width = 4 * CFG.hidden
        pairs = [sum(placement[e] == p for e in call["ids"].ravel()) for p in range(3)]
        total = 0
        for rows, share in ((0, 0), (1, 0), (1, 120), (100, 0)):
            set_once(moe._backend._jobs.open(0), rows, share)
            _, stats = moe(x, **call, return_stats=True)
            for p in range(3):
                once = rows > 0 and pairs[p] >= max(rows, share * 80 // 100)
                wanted = crossing(moe.placement, call["ids"], p) if once else pairs[p]
                assert stats.moved_bytes_to_peer[p] == (p != comm.rank) * width * wanted, (rows, share, p)
                assert stats.logical_bytes_to_peer[p] == width * pairs[p]
            total += sum(stats.moved_bytes_to_peer)
        assert sum(m.bytes for m in moe.summary().messages) == comm.allreduce(total)


@pytest.mark.ranks(2)
def test_when_tokens_cross_once(comm):
    """By default tokens cross once if two conditions hold: there are many rows, and at least three for each token."""
    count = runtime.ONCE_ROWS // 2
    cfg = aristos.MoEConfig(hidden=16, ffn=16, experts=16, top_k=8, max_tokens=count)
    for k, here, once in ((8, count, True), (8, 64, False), (5, count, False)):
        with MoE(replace(cfg, top_k=k), comm, moves="tokens", threads=1) as moe:
            moe.load(**reference.weights(cfg))
            _, stats = moe(tokens(cfg, here, seed=comm.rank), return_stats=True)
        peer = 1 - comm.rank
        assert (stats.moved_bytes_to_peer[peer] < stats.logical_bytes_to_peer[peer]) == once, (k, here)


@pytest.mark.ranks(2)
def test_an_exchange_whose_tokens_cross_once(comm, monkeypatch):
    placement = [0, 0, 1, 1, 1, 1]
    monkeypatch.setattr(runtime, "ONCE_SHARE", 0)
    x, call = tokens(CFG, 90, seed=comm.rank), routing(CFG, 90, "some", seed=comm.rank)
    made = []
    for rows in (runtime.ONCE_ROWS, 1 + comm.rank * 50):
        monkeypatch.setattr(runtime, "ONCE_ROWS", rows)
        with Exchange(comm, hidden=40, experts=6, top_k=3, max_tokens=90, placement=placement) as exchange:
            for _ in range(2):
                rows_here, handle = exchange.dispatch(x, call["ids"])
                made.append((rows_here.copy(), exchange.combine(rows_here * 2, handle, call["weights"])))
    for rows_here, y in made[1:]:
        assert same(rows_here, made[0][0])
        assert same(y, made[0][1])


@pytest.mark.ranks(2)
def test_training_whose_tokens_cross_once(comm, monkeypatch):
    """Outputs of forward calls and gradients of backward calls keep their bits."""
    cfg = replace(CFG, bias=False)
    x, dy = (tokens(cfg, 80 - 9 * comm.rank, seed=s + comm.rank) for s in (1, 7))
    monkeypatch.setattr(runtime, "ONCE_SHARE", 0)
    made = []
    for rows in (runtime.ONCE_ROWS, 1 - comm.rank, 1):
        monkeypatch.setattr(runtime, "ONCE_ROWS", rows)
        with MoE(cfg, comm, train=True, threads=1) as moe:
            moe.load(**reference.weights(cfg))
            y, tape = moe.forward(x)
            dx = moe.backward(dy, tape)
            made.append([y, dx, *(array.copy() for array in moe.grads().values())])
    for other in made[1:]:
        assert all(same(a, b) for a, b in zip(other, made[0], strict=True))
