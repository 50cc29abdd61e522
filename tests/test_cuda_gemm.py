"""The tile GEMM on the PTX machine, checker on: against float64, batch invariance, and what it asks of memory."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cuda_products import drawn
from ml_dtypes import bfloat16

from aristos.config import MoEConfig
from aristos.errors import InputError
from aristos.kernels.cuda.fragments import fma
from aristos.kernels.cuda.gemm import TILES, tile_for
from aristos.kernels.cuda.pack import interleaved, narrow, pack, widen
from aristos.kernels.cuda.ptx import round_tf32
from aristos.kernels.cuda.tile import BYTES, Tile
from aristos.reference import error, expert

KINDS = list(TILES)
# of max |y|: the rounding of the output, of sums in float32
BOUNDS = {"bf16": 2.0**-8, "f16": 2.0**-11, "tf32": 1e-6, "f32": 1e-6}
EPILOGUES = [
    {"activation": None, "bias": False}, {"activation": "relu"}, {"activation": "gelu"}, {"activation": "gelu_tanh"},
    {"activation": "silu", "gated": True}, {"activation": "gelu", "gated": True, "bias": False},
    {"activation": "swiglu_oai", "gated": True, "limit": 0.7}, {"activation": "silu", "gated": True, "limit": 2.0},
]  # fmt: skip


def close(product, y):
    assert error(widen(y, product.kind), product.reference()) < BOUNDS[product.kind]


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: "-".join(f"{k}={v}" for k, v in e.items()))
@pytest.mark.parametrize("kind", KINDS)
def test_epilogues(kind, epilogue):
    """Odd sizes: rows, k and columns that fill no tile, no chunk and no panel."""
    product = drawn(kind, 13, 77, 90, seed=1, **epilogue)
    close(product, product.run(TILES[kind][0], order=np.random.default_rng(2).permutation(13))[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", range(1, 5))
def test_tile_shapes_and_batch_invariance(kind, at):
    """A row's bits depend on the row and the weights: not on the tile, nor on the rows beside it."""
    if at >= len(TILES[kind]):
        pytest.skip(f"{kind} has no more tiles")
    tile = TILES[kind][at]
    product = drawn(kind, tile.m + 5, 40 * 4 // BYTES[kind], 24, gated=True, activation="silu", seed=3)
    order = np.random.default_rng(4).permutation(tile.m + 5)
    y, _ = product.run(tile, order=order, check=tile.m <= 64)
    close(product, y)
    some = np.array([0, 3, tile.m - 1, tile.m + 4])
    product.x = product.x[some]
    alone, _ = product.run(TILES[kind][0])
    np.testing.assert_array_equal(alone.view(np.uint8), y[some].view(np.uint8))


def test_float32_is_a_chain_in_k_order():
    """Without tensor cores: every output is its bias, then one fused multiply-add a k, rounded each time."""
    product = drawn("f32", 5, 70, 9, seed=5)
    y, _ = product.run(TILES["f32"][0])
    sums = np.broadcast_to(product.bias, y.shape).copy()
    for (i, j), _ in np.ndenumerate(sums):
        for k in range(70):
            sums[i, j] = fma(product.x[i, k], product.up[k, j], sums[i, j])
    np.testing.assert_array_equal(y, sums)


def test_results_go_straight_to_a_peer():
    """Rows of y in another device's memory: the same bits, nothing reported."""
    product = drawn("bf16", 20, 64, 64, seed=6)
    (here, _), (there, _) = (product.run(TILES["bf16"][1], peer=peer) for peer in (0, 1))
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_asks_of_memory(kind):
    """Whole tiles: no bank conflict in copies, fragments and their reads; every request of global memory coalesced."""
    tile = TILES[kind][2 if kind != "f32" else 1]
    product = drawn(kind, tile.m, 3 * 128 // BYTES[kind], 128, bias=False)
    _, profile = product.run(tile)
    copies, reads = profile.opcodes["cp.async"], profile.opcodes["ldmatrix" if kind != "f32" else "ld"]
    columns = 128 // tile.n
    chunks = 3 * columns
    assert copies["global_requests"] == chunks * (tile.m + tile.n) * 128 // 512  # 32 lanes of 16 bytes, each once
    assert copies["bank_conflicts"] == 0
    assert copies["sectors"] == copies["ideal_sectors"]
    assert reads["shared_requests"] > 0
    inner = reads if kind != "f32" else None
    assert inner is None or inner["bank_conflicts"] == 0
    stores = profile.opcodes["st"]
    assert stores["sectors"] == stores["ideal_sectors"] == tile.m * 128 * BYTES[kind] // 32
    assert stores["bank_conflicts"] == 0
    if kind == "f32":
        assert reads["bank_conflicts"] == 0
    else:
        depth = {"bf16": 16, "f16": 16, "tf32": 8}[kind]
        steps = 3 * 128 // BYTES[kind] // depth
        assert profile.opcodes["mma"]["instructions"] == tile.m // 16 * 128 // 8 * steps


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_is_two_products(kind):
    """h = act(x gate + g) (x up + b), y = h down + d, h kept in the arithmetic's type: against the float64 expert."""
    first = drawn(kind, 20, 48, 72, gated=True, activation="silu", seed=8)
    second = drawn(kind, 20, 72, 48, seed=9)
    tile = TILES[kind][0]
    h, _ = first.run(tile)
    second.x = widen(h, kind)
    y, _ = second.run(tile)
    cfg = MoEConfig(hidden=48, ffn=72, experts=1, top_k=1, activation="silu", gated=True, bias=True)
    names = {"up": first.up, "gate": first.gate, "down": second.up}
    weights = {name: widen(narrow(value, kind), kind)[None] for name, value in names.items()}
    biases = {"up_bias": first.bias, "gate_bias": first.gate_bias, "down_bias": second.bias}
    x = widen(narrow(first.x, kind), kind)
    expected = expert(cfg, x, 0, **weights, **{name: value[None] for name, value in biases.items()})
    assert error(widen(y, kind), expected) < {"bf16": 2.0**-7, "f16": 2.0**-10, "tf32": 2.0**-11, "f32": 1e-6}[kind]


def test_which_tile():
    for kind in KINDS:
        for rows in (1, 16, 17, 64, 65, 128, 5000):
            tile = tile_for(kind, rows, "sm_90")
            assert tile.m >= min(rows, TILES[kind][-1].m)
            assert all(other.m < rows for other in TILES[kind] if other.m < tile.m)


def test_bad_input():
    with pytest.raises(InputError, match="kind must be one of bf16, f16, tf32, f32, got 'fp8'"):
        Tile("fp8", 64, 64, 2, 2, 3, 1)
    with pytest.raises(InputError, match="multiple of 16 x 16, got 24 x 64"):
        Tile("bf16", 24, 64, 1, 2, 3, 1)
    with pytest.raises(InputError, match="n must be a power of two, got 96"):
        Tile("bf16", 64, 96, 2, 2, 3, 1)
    with pytest.raises(InputError, match="2 stages or more"):
        Tile("bf16", 64, 64, 2, 2, 1, 1)
    with pytest.raises(InputError, match=r"weight must be a float32 matrix, got float64 \[2, 2\]"):
        pack(np.zeros((2, 2)), "bf16")
    with pytest.raises(InputError, match=r"gate must have the shape of up \[2, 3\], got \[3, 2\]"):
        interleaved(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32))


def test_operands_are_rounded_to_nearest():
    values = np.random.default_rng(7).integers(0, 1 << 32, 4000, np.uint32)
    values = ((values & 0x803FFFFF) | (values >> 3 & 0x0F) + 120 << 23).view(np.float32)
    values.view(np.uint32)[::5] &= 0xFFFF0000
    values.view(np.uint32)[::5] |= 0x8000  # ties
    np.testing.assert_array_equal(widen(narrow(values, "bf16"), "bf16"), values.astype(bfloat16).astype(np.float32))
    rounded = np.array([round_tf32.plain(value) for value in values], np.int32)
    np.testing.assert_array_equal(narrow(values, "tf32").view(np.int32), rounded)
    assert np.abs(narrow(values, "tf32") / values - 1).max() <= 2.0**-11
