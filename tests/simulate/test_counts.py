"""The counts of simulated calls are those of real ones: rows and tiles to each rank, rows that cross, rows that stay.

The real ranks share cores and are on pretended nodes, so that their times differ from call to call.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from cases import MoE
from mpi import ranks_each

from aristos import reference
from aristos.config import MoEConfig
from aristos.engine import words
from aristos.host.nodes import Nodes
from aristos.placement import Placement
from aristos.simulate.machine import Machine
from aristos.simulate.rank import Layer
from aristos.simulate.simulation import Simulation
from aristos.transport.group import until_all_are_in

pytestmark = pytest.mark.slow
RANKS_PER_NODE = 2
COUNTED = ("T_ROWS_TO", "T_ROWS_FROM", "T_TILES_TO", "T_MOVED_TO")


def routings(cfg, world):
    """The ids of each rank, which has another number of tokens and prefers other experts than its neighbour."""
    rng = np.random.default_rng(world)
    found = []
    for rank in range(world):
        odds = rng.gumbel(size=(cfg.max_tokens - 5 * rank, cfg.experts)) + 1.5 * rng.standard_normal(cfg.experts)
        found.append(np.argsort(-odds, axis=1)[:, : cfg.top_k].astype(np.int64))
    return found


def remote_puts(state, starts):
    """How many puts to other nodes the last call of a rank made. Timing decides how many rows one put carries."""
    first = words.counter(starts, 0, words.N_REMOTE_PUTS)
    return sum(int(state[words.puts_count(words.puts(first, size))]) for size in range(words.SIZE_CLASSES))


def counts(state, starts, world):
    """Table -> [world] of the last call."""
    return {name: state[starts[getattr(words, name)] :][:world].tolist() for name in COUNTED}


@pytest.mark.parallel
@ranks_each(4, 8)
@pytest.mark.parametrize("moves", ["tokens", "experts"])
def test_counts_are_those_of_real_ranks(comm, world, moves):
    cfg = MoEConfig(128, 64, 4 * world, 4, max_tokens=160)
    ids = routings(cfg, world)
    mine = ids[comm.rank]
    x = np.zeros((len(mine), cfg.hidden), np.float32)
    with MoE(cfg, comm, ranks_per_node=RANKS_PER_NODE, moves=moves, threads=1) as moe:
        moe.load(**reference.weights(cfg))
        real, puts = [], []
        for _ in range(5):
            moe(x, ids=mine, weights=np.ones(mine.shape, np.float32))
            real.append(counts(moe.runtime.state, moe.runtime.tables.starts, world))
            puts.append(remote_puts(moe.runtime.state, moe.runtime.tables.starts))
    assert all(each == real[0] for each in real)
    every, puts = comm.gather(real[-1]), np.sum(comm.allgather(puts), axis=0)
    if comm.rank == 0:
        layer = Layer(cfg, Placement(None, cfg.experts, world), ids, moves)
        sim = Simulation(layer, Nodes.split(world, RANKS_PER_NODE), Machine())
        sim.run()
        assert [counts(rank.state, sim.tables.starts, world) for rank in sim.ranks] == every
        simulated = sum(remote_puts(rank.state, sim.tables.starts) for rank in sim.ranks)
        assert 0.5 * puts.min() <= simulated <= 1.5 * puts.max()
    for _ in until_all_are_in(comm):
        time.sleep(0.005)  # in a barrier of MPI the others would keep the cores busy while rank 0 simulates
