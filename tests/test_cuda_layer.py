"""The persistent kernel on the PTX machine, checker on: whole layers over several devices against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cuda_layers import SMALL, Layers

from aristos.engine import fields as f
from aristos.kernels.cuda.gemm import TILES
from aristos.reference import error
from aristos.substrate import cuda as substrate

BOUNDS = {"bf16": 2.0**-6, "f16": 2.0**-9, "tf32": 2.0**-9, "f32": 1e-6}  # of max |y|; h is rounded to the kind


def close(layers, ys):
    for y, want in zip(ys, layers.expected()):
        assert y.shape == want.shape
        assert want.size == 0 or error(y, want) < BOUNDS[layers.kind]


@pytest.mark.parametrize("kind", list(BOUNDS))
def test_kinds(kind):
    layers = Layers(kind=kind)
    close(layers, layers.run())


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_bits_do_not_depend_on_seed_or_grid(world):
    """float32 without tensor cores: every schedule, grid and ring gives the same bits."""
    first = None
    for seed, grid, ring in ((0, 1, None), (1, 2, 3), (2, 4, 1), (3, 3, 7)):
        layers = Layers(tokens=(13, 20, 0, 32)[:world], grid=grid, ring=ring, seed=seed)
        ys = layers.run(calls=2)
        if first is None:
            close(layers, ys)
            first = ys
        for y, other in zip(ys, first):
            np.testing.assert_array_equal(y, other)


@pytest.mark.parametrize("seed", range(6))
def test_small_rings_and_uneven_experts(seed):
    """Rings of one to five rows, an expert with copies, ranks without experts or tokens, several calls."""
    rng = np.random.default_rng(seed)
    placement = [[0, 1], 1, 1, [1, 2]] if seed % 2 else [2, 2, 0, 2]
    tokens = tuple(rng.permutation([0, 9, 21]).tolist())
    layers = Layers(
        cfg=replace(SMALL, gated=bool(seed & 1), bias=bool(seed & 2), activation="gelu"), tokens=tokens,
        grid=1 + seed % 3, ring=1 + seed % 5, seed=seed, placement=placement, merge=8,
    )  # fmt: skip
    close(layers, layers.run(calls=3))


@pytest.mark.parametrize("gated", [False, True])
def test_shares_of_several_tiles(gated):
    """A half of a run is cut into shares of three tiles, the last one of fewer; and more blocks than shares."""
    cfg = replace(SMALL, hidden=160, ffn=600, gated=gated)
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
    for tile in TILES[kind]:
        for hidden, ffn, gated, grid in ((32, 48, True, 1), (2048, 1408, True, 264), (4096, 14336, True, 132),
                                         (7168, 2048, True, 132), (1024, 4096, False, 7)):  # fmt: skip
            runs = substrate.shared_runs(tile, hidden, ffn, gated, grid)
            for word, columns in ((f.UP_SHARES, 2 * ffn if gated else ffn), (f.DOWN_SHARES, hidden)):
                tiles, shares = substrate.tiles(columns, tile), runs[word]
                each = -(-tiles // shares)
                assert tiles * tile.n >= columns
                assert each * (shares - 1) < tiles <= each * shares
                assert shares >= min(tiles, grid)
                assert (runs[f.RUNS] - 1) * shares >= grid or runs[f.RUNS] == substrate.MOST_RUNS
            assert runs[f.RUN_STEP] >= tile.m * runs[f.RUN_PITCH] >= tile.m * ffn
