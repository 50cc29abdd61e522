"""Emulated links between ranks: pings, collectives and calls take the set time, and outputs keep their bits."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from cases import MoE, same, tokens

import aristos
from aristos import reference
from aristos.errors import InputError
from aristos.primitives import memory

pytestmark = pytest.mark.slow  # the engine's steps are compiled once more

CFG = aristos.MoEConfig(hidden=24, ffn=40, experts=4, top_k=2, max_tokens=40)


def once_within(comm, measured, least, most):
    """Repeat a measurement until its time is at most `most`. No time may be below `least`. Collective.

    A time may be longer than `most` while another program has the core.
    """
    end = time.monotonic() + 20
    while True:
        took = comm.bcast(measured())
        assert took >= least
        if comm.bcast(took <= most or time.monotonic() > end):
            assert took <= most
            return


@pytest.mark.parallel
def test_delayed_steps_give_the_same_bits():
    """One rank runs the steps. It has no links."""
    from aristos.bench.delay import steps

    x = tokens(CFG, 40, seed=0)
    with MoE(CFG, threads=1) as moe:
        moe.load(**reference.weights(CFG))
        wanted = np.array(moe(x))
        moe.runtime.run_with(steps.loop())
        assert same(moe(x), wanted)


@pytest.mark.ranks(2, timeout=300)
def test_pings_and_calls_take_the_set_time_and_keep_their_bits(comm):
    from aristos.bench.delay import words
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
                    least = (alpha + nbytes / (1e3 * rate)) * 1e-6
                    once_within(comm, lambda n=nbytes: network.ping(n, 1), least, max(least + 0.5e-6, 1.05 * least))
            network.set(20e3, math.inf)
            for moe, trips in ((fused, 2), (bulk, 3)):  # rows there and back; bulk sends counts before them
                comm.Barrier()
                begun = time.monotonic()
                assert same(moe(x), wanted)
                ended = time.monotonic()
                assert ended - min(comm.allgather(begun)) >= trips * 0.02  # a rank that begins early also puts early
            network.set(0, 0.01)
            payload = np.ones((2, 200_000), np.uint8)

            def exchange() -> float:
                comm.Barrier()
                begun = time.monotonic()
                network.collective(lambda c: c.Alltoall(payload, payload.copy()), np.full(2, 200_000))
                return max(comm.allgather(time.monotonic() - begun))

            once_within(comm, exchange, 0.02, 0.022)
        assert same(fused(x), wanted)
        assert same(bulk(x), wanted)
        assert words.TABLE[0] == 0
        network.close()


@pytest.mark.ranks(2, timeout=300)
def test_poison_and_life_signs_are_not_delayed(comm):
    from aristos.bench.delay.network import Network
    from aristos.engine import arrivals, codes, layout, steps, words

    with MoE(CFG, comm, threads=1, moves="tokens") as moe, MoE(CFG, comm, threads=1, schedule="bulk") as bulk:
        runtime = moe.runtime
        network = Network(runtime, bulk._backend.bulk)
        network.set(60e6, math.inf)
        with network:
            job, state = runtime._blank_job(), runtime.state
            if comm.rank:
                steps.heartbeat(job, state, 5)
                steps.poison(job, state, 1, codes.CAUSE_ERROR)
            else:
                until = time.monotonic() + 20
                while arrivals.poisoned(job, state) != 1:
                    assert time.monotonic() < until
                assert memory.load_acquire(int(layout.word_from(job, state, 1, words.AT_PROGRESS))) == 5
            comm.Barrier()
            if comm.rank:
                memory.store_release(int(layout.word_to(job, state, 0, words.POISON)), 0)
                steps.heartbeat(job, state, -1)
                state[words.FAILED] = 0
            comm.Barrier()
        network.close()


@pytest.mark.ranks(2)
def test_ranks_of_several_nodes_are_refused(comm):
    from aristos.bench.delay.network import Network

    with MoE(CFG, comm, threads=1, ranks_per_node=1) as moe, pytest.raises(InputError, match="one node"):
        Network(moe.runtime, None)


@pytest.mark.ranks(2)
def test_experts_alone_computes_every_row_of_this_rank(comm):
    """Overlap efficiency compares with this time: it must contain all rows' arithmetic, and nothing else."""
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
