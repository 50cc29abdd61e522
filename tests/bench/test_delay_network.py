"""Emulated links between ranks: pings, collectives and calls take what is set, and outputs keep their bits."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from cases import MoE, same, tokens

import aristos
from aristos import reference
from aristos.errors import InputError, PoisonedError

pytestmark = pytest.mark.slow  # the engine's steps are compiled once more

CFG = aristos.MoEConfig(hidden=24, ffn=40, experts=4, top_k=2, max_tokens=40)


@pytest.mark.ranks(2, timeout=300)
def test_pings_and_calls_take_what_is_set_and_keep_their_bits(comm):
    from aristos.bench.delay.network import Network

    w = reference.weights(CFG)
    x = tokens(CFG, 40, seed=comm.rank)
    with (
        MoE(CFG, comm, threads=1, moves="tokens") as fused,
        MoE(CFG, comm, threads=1, schedule="bulk") as bulk,
    ):
        for moe in (fused, bulk):
            moe.load(0, **w)
        wanted = np.array(fused(x))
        network = Network(fused.runtime, bulk._backend.bulk)
        network.set(0, math.inf)
        with network:
            assert same(fused(x), wanted)
            assert same(bulk(x), wanted)
            for alpha, rate in ((300.0, math.inf), (50.0, 0.1)):
                network.set(alpha, rate)
                for nbytes in (0, 20_000):
                    least = alpha + nbytes / (1e3 * rate)
                    took = comm.bcast(min(network.ping(nbytes, 2) for _ in range(30)) * 1e6)
                    assert least <= took <= max(least + 0.5, 1.05 * least), (alpha, rate, nbytes)
            network.set(20e3, math.inf)
            for moe, trips in ((fused, 2), (bulk, 3)):  # rows there and back; and the counts before them
                comm.Barrier()
                begun = time.monotonic()
                assert same(moe(x), wanted)
                assert time.monotonic() - begun >= trips * 0.02
            network.set(0, 0.01)
            payload = np.ones((2, 200_000), np.uint8)
            took = []
            for _ in range(5):
                comm.Barrier()
                begun = time.monotonic()
                network.collective(lambda c: c.Alltoall(payload, payload.copy()), np.full(2, 200_000))
                took.append(max(comm.allgather(time.monotonic() - begun)))
            assert 0.02 <= min(took) <= 0.022
        comm.Barrier()
        begun = time.monotonic()
        assert same(fused(x), wanted)
        assert same(bulk(x), wanted)
        assert time.monotonic() - begun < 0.02 * 5
        network.close()


@pytest.mark.ranks(2, timeout=300)
def test_poison_is_not_delayed(comm):
    from aristos.bench.delay.network import Network

    w = reference.weights(CFG)
    x = tokens(CFG, 40, seed=comm.rank)
    moe = MoE(CFG, comm.Dup(), threads=1, moves="tokens")
    moe.load(0, **w)
    bulk = MoE(CFG, moe._member.comm, threads=1, schedule="bulk")
    network = Network(moe.runtime, bulk._backend.bulk)
    network.set(60e6, math.inf)
    with network:
        begun = time.monotonic()
        if comm.rank:
            moe.runtime.give_up(RuntimeError("this rank leaves"))
        else:
            with pytest.raises(PoisonedError, match="rank 1"):
                moe(x)
        assert time.monotonic() - begun < 10
    network.close()


@pytest.mark.ranks(2)
def test_ranks_of_several_nodes_are_refused(comm):
    from aristos.bench.delay.network import Network

    with MoE(CFG, comm, threads=1, ranks_per_node=1) as moe, pytest.raises(InputError, match="one node"):
        Network(moe.runtime, None)


@pytest.mark.ranks(2)
def test_experts_alone_computes_every_row_of_this_rank(comm):
    """The time that overlap efficiency compares with is that of all rows, and of nothing else."""
    from aristos.bench.bounds import ExpertPhase
    from aristos.bench.workload import Workload, execute
    from aristos.bench.world import World

    work = Workload(World(comm), CFG, seed=3)
    rows = np.array([5, 0, 7, 30])
    layer = work.layer("fused", 1, moves="tokens")
    execute(layer, work.call(8, "uniform"))
    phase = ExpertPhase(work, layer, rows)
    for _ in range(2):
        phase._results[:] = 0
        phase()
        x, y = (a.view(np.float32)[:, : CFG.hidden] for a in (phase._received, phase._results))
        at = 0
        for e in work.local:
            mine = slice(at, at + rows[e])
            wanted = reference.expert(work.single, x[mine].astype(np.float64), 0, **work.expert(int(e)))
            assert np.allclose(y[mine], wanted, atol=1e-4)
            at += rows[e]
        assert at == len(y) or not at
    phase.close()
    layer.close()
