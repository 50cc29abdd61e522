"""The tile GEMM on the PTX machine with its checker: equality with float64, batch invariance, memory traffic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cuda_products import drawn
from ml_dtypes import bfloat16

from aristos.config import ACTIVATIONS, MoEConfig
from aristos.errors import EnvironmentProblem, InputError
from aristos.kernels.cuda.assemble import TARGETS
from aristos.kernels.cuda.compiler import cuda
from aristos.kernels.cuda.fragments import fma
from aristos.kernels.cuda.gemm import GROUPS, TILES, tile_for, tile_product, tiles
from aristos.kernels.cuda.pack import interleaved, narrow, outputs, pack, unpacked, widen
from aristos.kernels.cuda.ptx import round_tf32
from aristos.kernels.cuda.target import Target
from aristos.kernels.cuda.tile import BYTES, Tile, tile_memory
from aristos.reference import error, expert

pytestmark = pytest.mark.slow

KINDS = list(TILES)
SETS = TILES | {f"{kind} in warpgroups": tiles for kind, tiles in GROUPS.items()}
# largest error relative to max |y|: rounding of the output and of float32 sums
BOUNDS = {"bf16": 2.0**-8, "f16": 2.0**-11, "tf32": 1e-6, "f32": 1e-6}
EPILOGUES = [
    {"activation": None, "bias": False},
    {"activation": "relu"},
    {"activation": "gelu"},
    {"activation": "gelu_tanh"},
    {"activation": "silu", "gated": True},
    {"activation": "gelu", "gated": True, "bias": False},
    {"activation": "swiglu_oai", "gated": True, "limit": 0.7},
    {"activation": "silu", "gated": True, "limit": 2.0},
    {"activation": "relu2", "bias": False},
    {"activation": "silu", "gated": True, "limit": 1.5, "after": True},
]


def test_every_activation_has_an_epilogue_here():
    assert {epilogue["activation"] for epilogue in EPILOGUES} == {None, *ACTIVATIONS}


def close(product, y):
    assert error(widen(y, product.kind), product.reference()) < BOUNDS[product.kind]


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: "-".join(f"{k}={v}" for k, v in e.items()))
@pytest.mark.parametrize("among", SETS)
def test_epilogues_equal_float64(among, epilogue):
    """Rows, k and columns are no multiples of tile, chunk and panel."""
    tile = SETS[among][0]
    product = drawn(tile.kind, 13, 77, 90, seed=1, **epilogue)
    close(product, product.run(tile, order=np.random.default_rng(2).permutation(13))[0])


@pytest.mark.parametrize(("among", "at"), [(name, at) for name in SETS for at in range(1, len(SETS[name]))])
def test_a_row_has_the_same_bits_in_every_tile(among, at):
    """A row's bits depend on the row and the weights, not on the tile or the other rows."""
    tile = SETS[among][at]
    k = 40 * 4 // BYTES[tile.kind] if not tile.groups else 397  # seven chunks: each slot is reused
    product = drawn(tile.kind, tile.m + 5, k, 24, gated=True, activation="silu", seed=3)
    order = np.random.default_rng(4).permutation(tile.m + 5)
    y, _ = product.run(tile, order=order, check=tile.m <= 64 or tile.groups)
    close(product, y)
    some = np.array([0, 3, tile.m - 1, tile.m + 4])
    product.x = product.x[some]
    alone, _ = product.run(SETS[among][0])
    np.testing.assert_array_equal(alone.view(np.uint8), y[some].view(np.uint8))


def test_float32_is_a_chain_in_k_order():
    """No tensor cores are used. Every output begins as its bias and gets one fused multiply-add per k, each rounded."""
    product = drawn("f32", 5, 70, 9, seed=5)
    y, _ = product.run(TILES["f32"][0])
    sums = np.broadcast_to(product.bias, y.shape).copy()
    for (i, j), _ in np.ndenumerate(sums):
        for k in range(70):
            sums[i, j] = fma(product.x[i, k], product.up[k, j], sums[i, j])
    np.testing.assert_array_equal(y, sums)


def test_results_can_be_stored_in_a_peers_memory():
    """Rows of y in another device's memory have the same bits, and the checker reports nothing."""
    product = drawn("bf16", 20, 64, 64, seed=6)
    (here, _), (there, _) = (product.run(TILES["bf16"][1], peer=peer) for peer in (0, 1))
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_traffic_of_warps(kind):
    """With whole tiles, copies, fragments and reads have no bank conflicts, and all global accesses are coalesced."""
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


@pytest.mark.parametrize("kind", GROUPS)
def test_slots_are_reused(kind):
    """There are enough chunks for the barriers' phases to repeat. Rows end inside a 16-byte part."""
    for tile, chunks, seed in ((GROUPS[kind][0], 1, 1), (GROUPS[kind][0], 9, 2), (GROUPS[kind][1], 8, 3)):
        product = drawn(kind, tile.m - 3, 64 * chunks - 11, 200, seed=seed)
        close(product, product.run(tile, order=np.random.default_rng(seed).permutation(tile.m - 3), seed=seed)[0])


@pytest.mark.parametrize("kind", GROUPS)
def test_products_follow_each_other_in_a_block(kind):
    """As in the persistent kernel, a product's barriers and chunks overwrite memory of the previous product."""
    tile = GROUPS[kind][0]
    step, memory = tile_product(tile), tile_memory(tile)

    def kernel(a_rows, c_rows, m, weight, pitch, bias, width, depth, code, gated):
        shared = memory()
        for n0 in range(0, width, 128):
            step(shared, a_rows, c_rows, m, weight, pitch, bias, width, depth, n0, code, gated)

    product = drawn(kind, 20, 500, 300, activation="relu", seed=4)
    y, _ = product.run(tile, alone=cuda.jit(kernel, launch_bounds=(tile.threads, 1)))
    close(product, y)
    np.testing.assert_array_equal(y, product.run(tile)[0])


@pytest.mark.parametrize("kind", GROUPS)
def test_memory_traffic_of_warpgroups(kind):
    """With whole tiles, rows are copied once and without bank conflicts. Each chunk of weights is one bulk copy."""
    tile = GROUPS[kind][1]
    _, profile = drawn(kind, tile.m, 5 * 64, 128, bias=False).run(tile)
    copies, bulk, stores = (profile.opcodes[name] for name in ("cp.async", "cp.async.bulk", "st"))
    assert copies["global_requests"] == 5 * tile.m * 128 // 512
    assert copies["bank_conflicts"] == stores["bank_conflicts"] == 0
    assert copies["sectors"] == copies["ideal_sectors"]
    assert bulk["loads"] == 5
    assert stores["sectors"] == stores["ideal_sectors"] == tile.m * 128 * BYTES[kind] // 32
    assert profile.opcodes["wgmma"]["instructions"] >= 5 * 4 * tile.threads // 32


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_is_two_products(kind):
    """h = act(x gate + g) (x up + b), stored in the kind's type, and then y = h down + d equal the float64 expert."""
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


@pytest.mark.parametrize("arch", TARGETS)
def test_the_smallest_sufficient_tile_is_chosen(arch):
    """On Hopper, 16-bit kinds have only tiles of warpgroups, for every number of rows."""
    gpu = Target.named(arch)
    for kind in KINDS:
        found = tiles(kind, gpu)
        assert {tile.groups for tile in found} == {arch == "sm_90" and kind in GROUPS}
        for rows in (1, 16, 17, 64, 65, 128, 5000):
            tile = tile_for(kind, rows, gpu)
            assert tile.m >= min(rows, found[-1].m)
            assert all(other.m < rows for other in found if other.m < tile.m)


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121"])
def test_every_tile_fits_the_gpu(arch):
    """A block's shared memory fits, and so does that of as many blocks as the launch bounds promise.

    Large tiles are used only where they fit.
    """
    gpu = Target.named(arch)
    for kind in KINDS:
        found = tiles(kind, gpu)
        most = max(tile.m for tile in (*TILES[kind], *GROUPS.get(kind, ())))
        assert found[-1].m == (most if gpu.limits.shared_block > 147456 else 128)
        for tile in found:
            assert tile.shared_bytes <= gpu.limits.shared_block
            assert tile.blocks * (tile.shared_bytes + 1024) <= gpu.limits.shared
            assert tile.blocks * tile.threads <= gpu.limits.threads


def test_a_gpu_with_less_shared_memory_gets_smaller_tiles():
    """The GPU's limits decide, not its name. A GPU may be in no table, or may be a part of a larger GPU."""
    whole = Target.named("sm_100")
    small = replace(whole, limits=replace(whole.limits, shared=102400, shared_block=101376))
    assert [tile.m for tile in tiles("bf16", whole)] == [16, 32, 64, 128, 256]
    assert [(tile.m, tile.blocks) for tile in tiles("bf16", small)] == [(16, 1), (32, 1), (64, 1), (128, 1)]


def test_a_gpu_that_is_too_old_or_too_small_is_refused():
    with pytest.raises(EnvironmentProblem, match=r"kernels need sm_80 \(A100\) or later, got a GPU of sm_75: "):
        tiles("bf16", Target.named("sm_75"))
    whole = Target.named("sm_120")
    small = replace(whole, limits=replace(whole.limits, shared_block=49152))
    assert [tile.m for tile in tiles("f32", small)] == [16, 64]
    why = "needs 73856 bytes of shared memory and 128 threads, but a block of the sm_120 GPU has at most 49152 bytes"
    with pytest.raises(EnvironmentProblem, match=why):
        tiles("bf16", small, static=128)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="kind must be one of f32, tf32, bf16, f16, got 'fp8'"):
        Tile("fp8", 64, 64, 2, 2, 3, 1)
    with pytest.raises(InputError, match="multiple of 16 x 16, got 24 x 64"):
        Tile("bf16", 24, 64, 1, 2, 3, 1)
    with pytest.raises(InputError, match="n must be a power of two, got 96"):
        Tile("bf16", 64, 96, 2, 2, 3, 1)
    with pytest.raises(InputError, match="2 stages or more"):
        Tile("bf16", 64, 64, 2, 2, 1, 1)
    for wrong in ({"kind": "tf32"}, {"n": 64}, {"stages": 2}, {"warps_m": 2, "warps_n": 2}):
        with pytest.raises(InputError, match="which must have bf16 or f16, 128 columns, 4 x 1 or 8 x 1 warps"):
            replace(GROUPS["bf16"][0], **wrong)
    with pytest.raises(InputError, match=r"weight must be a float32 matrix, got float64 \[2, 2\]"):
        pack(np.zeros((2, 2)), "bf16")
    with pytest.raises(InputError, match=r"gate must have the shape of up \[2, 3\], got \[3, 2\]"):
        interleaved(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_packed_weights(kind):
    """A block has 128 outputs and 128 bytes of k. 16-byte part p of output r lies at p ^ (r & 7). Padding is zero."""
    weight = np.random.default_rng(8).standard_normal((75, 150), dtype=np.float32)
    packed, step = pack(weight, kind), 128 // BYTES[kind]
    assert packed.shape == (2, -(-75 // step), 128, step)
    assert outputs(packed) == 256
    values, group = widen(packed, kind), step // 8
    for n, k in ((0, 0), (0, 74), (9, 17), (127, 40), (128, 33), (149, 74)):
        at = (k % step // group ^ n % 8) * group + k % group
        assert values[n // 128, k // step, n % 128, at] == widen(narrow(weight[k : k + 1, n], kind), kind)[0]
    assert np.count_nonzero(values) == np.count_nonzero(weight)
    rows = unpacked(packed)
    np.testing.assert_array_equal(rows[:150, :75], narrow(weight.T, kind))


def test_operands_are_rounded_to_nearest():
    values = np.random.default_rng(7).integers(0, 1 << 32, 4000, np.uint32)
    values = ((values & 0x803FFFFF) | (values >> 3 & 0x0F) + 120 << 23).view(np.float32)
    values.view(np.uint32)[::5] &= 0xFFFF0000
    values.view(np.uint32)[::5] |= 0x8000  # ties
    np.testing.assert_array_equal(widen(narrow(values, "bf16"), "bf16"), values.astype(bfloat16).astype(np.float32))
    rounded = np.array([round_tf32.plain(value) for value in values], np.int32)
    np.testing.assert_array_equal(narrow(values, "tf32").view(np.int32), rounded)
    assert np.abs(narrow(values, "tf32") / values - 1).max() <= 2.0**-11
