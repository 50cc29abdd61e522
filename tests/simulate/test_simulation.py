"""A simulation moves the rows that the routing asks for, conserves bytes, and takes the time of what it models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aristos.config import MoEConfig
from aristos.engine import bells, words
from aristos.engine.layout import word_from
from aristos.host.nodes import Nodes
from aristos.placement import Placement
from aristos.primitives import memory as mem
from aristos.simulate import control as c
from aristos.simulate import scheduler
from aristos.simulate.machine import Costs, Kernel, Links, Machine
from aristos.simulate.outcome import Outcome
from aristos.simulate.rank import Layer
from aristos.simulate.simulation import Simulation, SimulationEnded

pytestmark = pytest.mark.slow
HIDDEN, FFN, EXPERTS, TOP_K = 256, 512, 16, 4
ROW = 2 * HIDDEN


def layer(world, tokens, seed=0, uneven=False):
    """A layer of EXPERTS experts on `world` ranks, and a drawn routing. uneven: numbers of tokens differ by rank."""
    rng = np.random.default_rng(seed)
    counts = [tokens * (1 + rank % 3) if uneven else tokens for rank in range(world)]
    ids = [np.argsort(rng.random((n, EXPERTS)), axis=1)[:, :TOP_K].astype(np.int64) for n in counts]
    cfg = MoEConfig(HIDDEN, FFN, EXPERTS, TOP_K, max_tokens=max(counts), dtype="bfloat16")
    return Layer(cfg, Placement(None, EXPERTS, world), ids)


def simulated(of, ranks_per_node, machine=None, **options):
    """A simulation of a layer that has run, and its outcome."""
    world = len(of.ids)
    sim = Simulation(of, Nodes.split(world, ranks_per_node), machine or Machine(), **options)
    sim.run()
    return sim, Outcome.from_simulation(sim)


def rows_to(of):
    """[world, world] rows from a source to an owner, counted from the routing."""
    world = len(of.ids)
    owner = of.placement.ranks
    return np.array([np.bincount(owner[ids].ravel(), minlength=world) for ids in of.ids])


def crossing(of, nodes):
    """Rows that cross between nodes: one for each token and rank of another node that has an expert of it."""
    owner, found = of.placement.ranks, 0
    for source, ids in enumerate(of.ids):
        for token in ids:
            found += sum(nodes.node_of[rank] != nodes.node_of[source] for rank in set(owner[token].tolist()))
    return found


@pytest.mark.parametrize(
    ("world", "ranks_per_node", "workers", "uneven"),
    [(1, 1, 1, False), (4, 4, 1, True), (6, 2, 1, True), (4, 1, 2, False)],
)
def test_the_rows_of_the_routing_move(world, ranks_per_node, workers, uneven):
    of = layer(world, 24, uneven=uneven)
    sim, found = simulated(of, ranks_per_node, workers=workers, calls=3)
    assert (found.rows == rows_to(of)).all()
    moved = crossing(of, sim.nodes) * ROW
    back = int(rows_to(of)[~np.equal.outer(sim.nodes.node_of, sim.nodes.node_of)].sum()) * ROW
    for rank in sim.ranks:
        assert int(rank.state[words.OWED]) == int(rank.state[words.UNSENT]) == 0
    rows = found.put_bytes.sum() / sim.calls
    assert moved + back <= rows <= (moved + back) * 1.2 + 4096 * world * world  # the rest is records, indices and words


def test_bytes_on_links_are_those_that_were_put():
    of = layer(6, 64)
    sim, found = simulated(of, 2)
    crossed = {name: nbytes for name, (nbytes, _) in found.links.items()}
    node = np.array(sim.nodes.node_of)
    for n in range(3):
        out, into = found.put_bytes[node == n].sum(), found.put_bytes[:, node == n].sum()
        small = 512 * sim.pairs[:, c.PUTS].sum()  # small puts take no share of a link
        assert out - small <= crossed[f"node {n} out"] <= out + sim.pairs[:, c.PUTS].sum()
        assert into - small <= crossed[f"node {n} in"] <= into + sim.pairs[:, c.PUTS].sum()
    assert all(share <= 1 for _, share in found.links.values())


def test_equal_options_give_equal_times():
    of = layer(4, 40)
    first, second = (simulated(of, 2, workers=2)[1] for _ in range(2))
    assert (first.calls == second.calls).all()
    assert (first.ranks == second.ranks).all()
    assert first.events == second.events


def test_one_rank_takes_the_time_of_its_kernels():
    of = layer(1, 512)
    rate = 100.0  # GFLOP/s
    machine = Machine(kernel=Kernel(call=0, rates={1: rate, 384: rate}))
    _, found = simulated(of, 1, machine)
    kernels = 4e-6 * HIDDEN * FFN * 512 * TOP_K / rate
    assert kernels < found.calls[-1] < 1.1 * kernels


def test_a_slow_link_binds():
    of = layer(2, 256)
    fast, slow = (simulated(of, 1, Machine(links=Links(latency=1.0, rate=rate)))[1] for rate in (100.0, 0.05))
    least = slow.put_bytes[0, 1] / len(slow.calls) / 0.05 * 1e-6  # ms
    assert fast.calls[-1] < slow.calls[-1]
    assert least < slow.calls[-1] < 3 * least
    assert slow.binds == "network"


def test_an_idle_rank_goes_on_as_soon_as_rows_land():
    latency, run = 1e6, 60e3  # ns; all runs take equal time, and its own rows keep a rank busy for half of the latency
    machine = Machine(Costs(local=latency), Kernel(run, {1: 1e6}))
    found = simulated(layer(2, 24), 2, machine, calls=2)[1]
    remote = EXPERTS // 2 * run
    assert found.calls == pytest.approx(1e-6 * (2 * latency + remote), rel=0.03)


def test_a_copy_that_costs_more_makes_a_call_longer():
    of = layer(2, 256)
    cheap, dear = (
        simulated(of, 2, Machine(costs=replace(Costs(), copy_kib=kib)))[1].calls[-1] for kib in (10.0, 10_000.0)
    )
    copied = ROW / 1024 * max(rows_to(of)[0, 1], rows_to(of)[1, 0])
    assert dear > cheap + 0.9e-6 * copied * (10_000 - 10)


def test_two_workers_share_a_ranks_work():
    of = layer(2, 384)
    one, two = (simulated(of, 2, workers=n)[1].calls[-1] for n in (1, 2))
    assert 0.5 * one <= two < 0.7 * one


def test_a_bulk_call_moves_every_row_and_waits_for_the_last_rank():
    of = layer(4, 96, uneven=True)
    rate = 100.0  # GFLOP/s
    machine = Machine(kernel=Kernel(call=0, rates={1: rate, 384: rate}))
    sim, found = simulated(of, 2, machine, schedule="bulk", calls=3)
    assert (found.rows == rows_to(of)).all()
    remote = ~np.equal.outer(sim.nodes.node_of, sim.nodes.node_of)
    least = 2 * int(rows_to(of)[remote].sum()) * ROW  # every row crosses, and its output comes back
    assert least < found.put_bytes.sum() / 3 < 1.1 * least + 4096 * int(remote.sum())
    kernels = 4e-6 * HIDDEN * FFN * rows_to(of).sum(axis=0) / rate
    assert (found.ranks > kernels.max()).all()  # each rank needs the outputs of the busiest one
    assert found.calls[-1] < 2 * kernels.max()


def test_bulk_calls_of_several_workers():
    of = layer(2, 384)
    one, two = (simulated(of, 2, workers=n, schedule="bulk")[1].calls[-1] for n in (1, 2))
    assert 0.5 * one <= two < 0.75 * one


def landed(job, st, p, first, end):
    """Words first..end - 1 of a remote peer that have landed at a rank, whether the rank has accepted them or not."""
    region = st[words.region_from(job, p) if first < words.ANNOUNCED else words.stream_from(job, p)]
    return [mem.load(int(words.coded_value(words.coded_word(region, word)))) for word in range(first, end)]


def test_idle_looks_read_bells():
    """With two levels ranks have bells. At the end each is the digest of the words that have landed with it."""
    of, nodes, calls = layer(6, 64, uneven=True), Nodes.split(6, 2).with_streams(), []
    for has_bells in (True, False):
        sim = Simulation(of, nodes, Machine(), calls=20)
        for rank in sim.ranks:
            assert rank.state[words.BELLS] != 0
            rank.state[words.BELLS] *= has_bells  # without bells each look reads all words
        sim.run()
        calls.append((sim.times[1] - sim.times[0]).max(axis=0))
        memory, base = sim.regions.memory, sim.regions.memory.ctypes.data
        for me, rank in enumerate(sim.ranks):
            assert int(rank.state[words.OWED]) == int(rank.state[words.UNSENT]) == 0
            for p in nodes.remote(me):
                own = landed(rank.job, rank.state, p, words.AT_EPOCH, words.ANNOUNCED)
                assert memory[sim.regions.bells(me) - base + p] == sum(own) % bells.MODULUS
                own = landed(rank.job, rank.state, p, words.ANNOUNCED, words.LINE_WORDS)
                assert memory[rank.state[words.stream_bell(rank.job, p)] - base] == sum(own) % bells.MODULUS
    rung, read = calls
    assert 0.9 < np.median(rung) / np.median(read) < 1.1
    assert rung.max() - np.median(rung) < 1.5 * (read.max() - np.median(read)) + 1e4  # no word waits for a timer: 1 ms


def test_an_actor_parks_only_if_all_words_are_read():
    """A bell may be silent by mistake, and a later one may be under way. Then the next polls may find the words."""
    for levels in (1, 2):
        nodes = Nodes.split(6, 2).with_streams() if levels == 2 else Nodes.split(6, 2)
        sim = Simulation(layer(6, 8), nodes, Machine())
        sim._fill()
        own, record = sim.ranks[3], sim._actors[3].ctypes.data
        assert not scheduler.unread(record)
        for word in (words.CREDIT, words.RETURN_TAIL, words.TAIL):
            region = own.state[(words.stream_from if word == words.TAIL else words.region_from)(own.job, 0)]
            mem.store(int(words.coded_value(words.coded_word(region, word))), 5)
            assert scheduler.unread(record) == (levels == 2)
            mem.store(int(word_from(own.job, own.state, 0, word)), 5)
            assert not scheduler.unread(record)


@pytest.mark.parametrize(("world", "ranks_per_node", "workers"), [(6, 3, 1), (6, 2, 2), (5, 2, 1), (3, 1, 1)])
def test_bulk_rows_with_two_levels_go_by_their_carriers(world, ranks_per_node, workers):
    of, nodes = layer(world, 48, uneven=True), Nodes.split(world, ranks_per_node).with_streams()
    sim = Simulation(of, nodes, Machine(), schedule="bulk", calls=3, workers=workers)
    sim.run()
    found, rows = Outcome.from_simulation(sim), rows_to(of)
    assert (found.rows == rows).all()
    carried = np.zeros((2, world, world), np.int64)  # rows out and back that a carrier sends to a rank of another node
    for source in range(world):
        for target in nodes.remote(source):
            carried[0, nodes.rail(target, source), target] += rows[source, target]
            carried[1, nodes.rail(target, source), target] += rows[target, source]
    remote = ~np.equal.outer(nodes.node_of, nodes.node_of)
    counts = 8 * (words.ANNOUNCED_WORDS + max(of.placement.held)) * remote
    stride = int(sim.ranks[0].job[words.RETURN_STRIDE])
    assert (found.put_bytes == 3 * (counts + stride * carried.sum(axis=0))).all()
    assert (found.puts == 3 * (remote + (carried > 0).sum(axis=0))).all()
    assert found.row_bytes == stride * carried.sum()
    flat = simulated(of, ranks_per_node, schedule="bulk", calls=3, workers=workers)[1]
    assert found.put_bytes.sum() == flat.put_bytes.sum()
    assert ranks_per_node == 1 or found.puts.sum() < flat.puts.sum()


def test_rows_for_another_node_wait_for_their_carrier():
    of, nodes = layer(4, 96), Nodes.split(4, 2).with_streams()
    usual, late = (
        Simulation(of, nodes, Machine(Costs(local=local), links=Links(latency=1.0)), schedule="bulk")
        for local in (100.0, 2e6)
    )
    for sim in (usual, late):
        sim.run()
    # 5 exchanges of a call are within a node and in sequence: the counts of the call; counts and rows on the way out;
    # counts and rows on the way back. Each takes 2 ms longer
    assert Outcome.from_simulation(late).calls[-1] - Outcome.from_simulation(usual).calls[-1] == pytest.approx(
        5 * 2, rel=0.05
    )


def test_overlap_hides_a_slow_link_that_bulk_waits_for():
    of = layer(2, 384)
    machine = Machine(links=Links(latency=1.0, rate=1.0))
    bulk, fused = (simulated(of, 1, machine, schedule=name)[1].calls[-1] for name in ("bulk", "fused"))
    assert fused < 0.9 * bulk


def test_a_slow_rank_makes_the_others_wait():
    of = layer(4, 128)
    even, slow = (simulated(of, 4, Machine(speeds=speeds))[1] for speeds in ({}, {2: 0.5}))
    assert slow.calls[-1] > 1.7 * even.calls[-1]
    assert slow.shares["idle"].argmin() == 2
    assert slow.shares["idle"].max() > 0.4


@pytest.mark.parametrize(("moves", "least"), [("tokens", 0.0), ("auto", 0.3), ("experts", 0.99)])
def test_rows_stay_if_experts_may_move(moves, least):
    """All tokens of rank 1 have experts of rank 0. What stays is decided by the shipped rule."""
    of = layer(2, 384)
    ids = [of.ids[0], np.sort(of.ids[1] % (EXPERTS // 2), axis=1)]
    ids[1][:] = np.arange(TOP_K)
    sim, found = simulated(replace(of, ids=ids, moves=moves), 2, calls=2)
    routed = len(ids[1]) * TOP_K
    assert found.rows[1].tolist() == [routed, 0]
    came = int(sim.ranks[0].state[sim.tables.starts[words.T_ROWS_FROM] + 1])
    assert 1 - came / routed >= least


class OneCalls(Simulation):
    """A simulation in which only rank 0 makes calls."""

    def _start(self, start):
        start(0, 0)


def test_a_simulation_that_cannot_go_on_ends():
    sim = OneCalls(layer(2, 8), Nodes.split(2, 2), Machine())
    with pytest.raises(SimulationEnded, match=r"no rank can go on at .* ms of virtual time; work is left on rank 0"):
        sim.run()
