"""Scalars beside rows: each travels to the owner with its row and back with the output, on every transport.

The kernels of a layer do not change scalars. `aristos explore` has experts that do.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import MoE, routing, same, tokens
from mpi import ranks_each

import aristos
from aristos import reference
from aristos.engine import words

CFG = aristos.MoEConfig(hidden=48, ffn=72, experts=6, top_k=3, max_tokens=60)  # rows are whole cache lines
SHARED = replace(CFG, shared_ffn=24)


def echoed(comm, cfg: aristos.MoEConfig, **options) -> None:
    """Make calls with and without scalars in turns. Check that each scalar comes back."""
    count = cfg.max_tokens - 7 * (comm.rank if comm else 0)
    x, w = tokens(cfg, count, seed=1), reference.weights(cfg)
    choices = cfg.top_k + bool(cfg.shared_ffn)
    wider = replace(cfg, hidden=cfg.hidden + 1)  # its slots are wider than the rows of `cfg`
    with MoE(wider, comm, **options), MoE(cfg, comm, moves="tokens", **options) as moe:
        moe.load(**w)
        for n, pattern in enumerate(("uniform", "some", "one")):
            call = routing(cfg, count, pattern, seed=n)
            wanted = moe(x, **call)
            out = np.random.default_rng(n).integers(0, 2**32, (count, choices))
            back = np.full((count, choices), -1)
            job = moe._backend._jobs.open(0)
            job[words.SCALARS], moe._backend._jobs.filled[0] = 1, -1
            job[words.SCALARS_OUT], job[words.SCALARS_BACK] = out.ctypes.data, back.ctypes.data
            assert same(moe(x, **call), wanted)
            taken = np.ones((count, choices), bool)
            taken[:, : cfg.top_k] = call["ids"] >= 0
            np.testing.assert_array_equal(back, np.where(taken, out, 0))
            job[words.SCALARS], moe._backend._jobs.filled[0] = 0, -1
            assert same(moe(x, **call), wanted)


@ranks_each(1, 2)
def test_scalars_travel_within_a_node(comm, world):
    echoed(comm, CFG)
    echoed(comm, SHARED, threads=2)


@ranks_each(2, 3)
def test_scalars_travel_between_nodes(comm, world):
    echoed(comm, CFG, ranks_per_node=1 if world == 2 else 2)


@pytest.mark.ranks(2)
def test_ranks_that_differ_in_scalars(comm):
    with MoE(CFG, comm, moves="tokens") as moe:
        moe.load(**reference.weights(CFG))
        x = tokens(CFG, 9, seed=0)
        wanted = moe(x)
        moe._backend._jobs.open(0)[words.SCALARS] = comm.rank
        out = np.zeros((9, 3), np.int64)
        moe._backend._jobs.open(0)[words.SCALARS_OUT] = moe._backend._jobs.open(0)[words.SCALARS_BACK] = out.ctypes.data
        with pytest.raises(aristos.errors.MismatchError):
            moe(x)
        moe._backend._jobs.open(0)[words.SCALARS] = 0
        assert same(moe(x), wanted)
