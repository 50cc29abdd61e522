"""The persistent kernel on the PTX machine with its checker: layers on several devices against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sweeps

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cuda_layers import SMALL, Layers

from aristos.engine import codes, words
from aristos.engine.poison import poison_word
from aristos.kernels.cuda.gemm import GROUPS, TILES
from aristos.kernels.cuda.tile import BYTES
from aristos.reference import error
from aristos.substrate.counters import Tables
from aristos.substrate.cuda import persistent as substrate
from aristos.substrate.standing import describe

pytestmark = [pytest.mark.slow, pytest.mark.parallel]

BOUNDS = {"bf16": 2.0**-6, "f16": 2.0**-9, "tf32": 2.0**-9, "f32": 1e-6}  # relative to max |y|; h is rounded too


def close(layers, ys):
    for y, want in zip(ys, layers.expected()):
        assert y.shape == want.shape
        assert want.size == 0 or error(y, want) < BOUNDS[layers.kind]


@pytest.mark.parametrize("kind", ["bf16", *sweeps.turn(["f16", "tf32"]), "f32"])
def test_kinds(kind):
    layers = Layers(kind=kind)
    close(layers, layers.run())


def test_warpgroups():
    """On Hopper a block computes products of several tiles and chunks by wgmma, one after the other.

    Bits are equal for both tiles, and for every grid and seed.
    """
    cfg, tiles = replace(SMALL, hidden=200, ffn=72), GROUPS["bf16"]
    first = None
    for seed, (tile, grid) in enumerate(((tiles[0], 1), (tiles[0], 3), (tiles[1], 2))):
        layers = Layers(kind="bf16", tile=tile, cfg=cfg, grid=grid, ring=(None, 5, 3)[seed], seed=seed)
        ys = layers.run(calls=2)
        close(layers, ys)
        first = first or ys
        for y, other in zip(ys, first):
            np.testing.assert_array_equal(y, other)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_bits_do_not_depend_on_seed_or_grid(world):
    """In float32, without tensor cores, every schedule, grid and ring gives the same bits."""
    first = None
    for seed, grid, ring in ((0, 1, None), (1, 2, 3), (2, 4, 1), (3, 3, 7))[:: 1 if world < 4 else 2]:
        layers = Layers(tokens=(13, 20, 0, 32)[:world], grid=grid, ring=ring, seed=seed)
        ys = layers.run(calls=2)
        if first is None:
            close(layers, ys)
            first = ys
        for y, other in zip(ys, first):
            np.testing.assert_array_equal(y, other)


@pytest.mark.parametrize("seed", range(4))
def test_small_rings_and_uneven_experts(seed):
    """Rings have one to four rows, an expert has copies, and some ranks have no experts or no tokens."""
    rng = np.random.default_rng(seed)
    placement = [[0, 1], 1, 1, [1, 2]] if seed % 2 else [2, 2, 0, 2]
    tokens = tuple(rng.permutation([0, 9, 21]).tolist())
    layers = Layers(
        cfg=replace(SMALL, gated=bool(seed & 1), bias=bool(seed & 2), activation="gelu"),
        tokens=tokens,
        grid=1 + seed % 3,
        ring=1 + seed % 5,
        seed=seed,
        placement=placement,
        merge=8,
    )
    close(layers, layers.run(calls=3))


def test_routing_given_by_the_caller():
    """Some choices are not taken. A token without a choice gets zeros."""
    rng = np.random.default_rng(5)
    given = []
    for count in (13, 20):
        ids = np.argsort(rng.random((count, 4)), axis=1)[:, :2].astype(np.int64)
        ids[rng.random((count, 2)) < 0.4] = -1
        ids[3] = -1
        given.append((ids, rng.uniform(-1, 1, (count, 2)).astype(np.float32)))
    layers = Layers(given=given, ring=3)
    ys = layers.run(calls=2)
    close(layers, ys)
    assert (ys[0][3] == 0).all()


def test_a_rank_announces_its_refusal():
    """Rank 0 has repeated ids. It announces the reason, packs nothing, and serves rank 1, which gets its result."""
    bad = (np.zeros((4, 2), np.int64), np.ones((4, 2), np.float32))
    good = (np.tile([0, 3], (5, 1)), np.ones((5, 2), np.float32))
    layers = Layers(tokens=(4, 5), given=[bad, good])
    ys = layers.run()
    job, statuses = layers.ranks[1].job.copy_to_host(), layers.ranks[1].state.copy_to_host()
    assert statuses[job[words.T_PEER_STATUS] : words.peer_status(job, 2)].tolist() == [codes.BAD_IDS, codes.OK]
    assert layers.ranks[0].state.copy_to_host()[words.STATUS] == codes.BAD_IDS
    assert error(ys[1], layers.expected()[1]) < BOUNDS["f32"]


@pytest.mark.parametrize("absent", [0, 2])
def test_a_wait_is_bounded_and_all_ranks_know_which_rank_gave_up(absent):
    """One rank never makes the call. A second rank gives up and notifies the third, and both kernels end."""
    layers = Layers(tokens=(5, 6, 7), timeout=20_000)
    there = [rank for rank in layers.ranks if rank.me != absent]
    layers.run(ranks=there)
    states = [rank.state.copy_to_host() for rank in there]
    origins = {int(state[words.ORIGIN]) for state in states}
    assert {int(state[words.FAILED]) for state in states} == {codes.CAUSE_TIMEOUT}
    assert origins <= {rank.me for rank in there}
    assert any(
        state[words.ORIGIN] == rank.me for state, rank in zip(states, there)
    )  # one rank reports what it waited for
    at, first = next((rank, state) for rank, state in zip(there, states) if rank.me in origins)
    assert first[words.WAIT_PEER] == absent
    text = at.standing(first)
    assert f"rank {at.me} of 3, epoch 1: running, " in text
    assert "the lock is free\n  gave up because a wait took longer than its " in text
    assert f"\n  rank {absent}: its announcement is missing: the last one is of epoch 0\n" in text
    assert text.endswith("workers 0-1: has left the failed call")
    landed = describe(at.job.copy_to_host(), first, 0, lambda peer, word: int(word == words.ANNOUNCED))
    assert f"\n  rank {absent}: its announcement has landed and is not read\n" in landed


@pytest.mark.parametrize(("asked", "cause"), [(False, codes.CAUSE_TIMEOUT), (True, codes.CAUSE_INTERRUPT)])
def test_the_wait_for_the_call_in_flight_is_bounded(asked, cause):
    """A call in flight never ends, as after a launch that failed. The next call gives up, or the host makes it give up.

    The rank's peers get poison, and its other kernels touch nothing. A later call does not wait again.
    """
    layers = Layers(tokens=(5, 6), timeout=20_000 if not asked else 1 << 50)
    rank = layers.ranks[0]
    state = rank.state.copy_to_host()
    state[words.IN_FLIGHT], calls = 1, int(state[words.CALLS])
    rank.state.copy_to_device(state)
    if asked:
        rank.abort.copy_to_device(np.array([codes.CAUSE_INTERRUPT]))
    layers.run(ranks=[rank])
    found = rank.state.copy_to_host()
    assert (found[words.FAILED], found[words.ORIGIN], found[words.CALLS]) == (cause, 0, calls)
    assert found[words.UNBEGUN] == 1
    assert (found[words.IN_FLIGHT], found[words.LEFT]) == (1, state[words.LEFT])
    window = layers.windows[1].copy_to_host().view(np.int64)
    poison = poison_word(0, 0, cause)
    assert poison in window
    found[words.IN_FLIGHT] = 0  # the call in flight has ended after all
    rank.state.copy_to_device(found)
    layers.run(ranks=[rank])
    np.testing.assert_array_equal(rank.state.copy_to_host(), found)


def test_kernels_that_keep_counters():
    """Counters change no bits, and give the time of every phase. The usual kernel measures only idle time."""
    plain, counted = Layers(), Layers(counted=True)
    for y, other in zip(plain.run(), counted.run()):
        np.testing.assert_array_equal(y, other)
    phases = [words.N_ROUTE, words.N_DISPATCH, words.N_EXPERT, words.N_COMBINE, words.N_PACK]
    phases += [words.N_PUBLISH, words.N_LOCK, words.N_POLLS]
    for layers, each in ((plain, False), (counted, True)):
        for rank in layers.ranks:
            state = rank.state.copy_to_host()
            tables = Tables(layers.tables.starts, layers.grid, len(layers.tokens))
            found = tables.counters(state[tables.first :])
            assert (found[phases] > 0).all() == each
            assert found[words.N_IDLE] > 0
            assert found[words.N_POLLS] * 1000 <= found[words.N_IDLE] + 1000  # an idle poll naps for about 1000 ns


@pytest.mark.parametrize("gated", [False, True])
def test_shares_of_several_tiles(gated):
    """A phase of a run is cut into shares of three tiles. The last is smaller. One grid has more blocks than shares."""
    cfg = replace(SMALL, hidden=160, ffn=300 if gated else 600, gated=gated)
    first = None
    for grid in (2, 9):
        layers = Layers(cfg=cfg, tokens=(5, 3), grid=grid)
        ys = layers.run()
        first = first or ys
        close(layers, ys)
        for y, other in zip(ys, first):
            np.testing.assert_array_equal(y, other)


@pytest.mark.parametrize("kind", list(BOUNDS))
def test_every_block_has_work(kind):
    """Shares hold all tiles, none is empty, and the runs under way have shares for the whole grid."""
    for tile in [*TILES[kind], *GROUPS.get(kind, ())]:
        for hidden, ffn, gated, grid in (
            (32, 48, True, 1),
            (2048, 1408, True, 264),
            (4096, 14336, True, 132),
            (7168, 2048, True, 132),
            (1024, 4096, False, 7),
        ):
            shared = grid % 2 * 3 * ffn // 2
            runs = substrate.column_split_runs(tile, hidden, ffn, shared, gated, grid)
            phases = [("up_shares", 2 * ffn if gated else ffn), ("down_shares", hidden)]
            assert shared or runs["shared_shares"] == 0
            if shared:
                phases.append(("shared_shares", 2 * shared if gated else shared))
            for word, columns in phases:
                tiles, shares = substrate.tiles(columns, tile), runs[word]
                each = -(-tiles // shares)
                assert tiles * tile.n >= columns
                assert each * (shares - 1) < tiles <= each * shares
                assert shares >= min(tiles, grid)
                assert (runs["runs"] - 1) * shares >= grid or runs["runs"] == substrate.MOST_RUNS
            assert runs["run_step"] >= tile.m * runs["run_pitch"] >= tile.m * max(ffn, shared) * BYTES[kind]
