"""Loading weights: expert by expert, lists, files, types; errors for missing weights; and the memory of a load."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import MoE, same, tokens
from mpi import ranks_each

import aristos
from aristos import reference
from aristos.errors import InputError, PeerInputError

CFG = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, activation="silu", gated=True, bias=True, max_tokens=30)
W: dict[str, Any] = dict(reference.weights(CFG))
ROUTER = W["router"]
EXPERTS: dict[str, Any] = {name: a for name, a in W.items() if name != "router"}


def of_expert(e: int, arrays: dict[str, Any] = EXPERTS) -> dict[str, Any]:
    return {name: a[e] for name, a in arrays.items()}


def by_parts(moe: MoE, layer: int = 0, leave: tuple[int, ...] = (), **options: Any) -> None:
    """Load the experts in reverse order, those of other ranks too, then the router."""
    for e in reversed(range(CFG.experts)):
        if e not in leave:
            moe.load_expert(layer, e, **of_expert(e), **options)
    moe.load_router(layer, router=ROUTER)


@ranks_each(1, 2)
def test_expert_by_expert_equals_the_whole_layer(comm, world):
    x = tokens(CFG, 20, seed=world)
    for placement in (None, [[0, world - 1] if world > 1 else 0, 0, 0, world - 1, 0]):
        with MoE(CFG, comm, layers=2, placement=placement) as moe:
            moe.load(0, **W)
            by_parts(moe, 1)
            assert [moe.holds(e) for e in range(5)] == [e in moe.placement.mine(moe.rank) for e in range(5)]
            y = moe(x)
            assert same(moe(x, layer=1), y)
            moe.load_expert(1, 3, **of_expert(2))  # replaced by another expert, and then put back
            assert comm is not None or not same(moe(x, layer=1), y)
            moe.load_expert(1, 3, **of_expert(3))
            assert same(moe(x, layer=1), y)


def test_lists_files_and_types(tmp_path):
    """Weights of every form give the same outputs as float32 arrays with the same values."""
    short = {name: a.astype(ml_dtypes.bfloat16) for name, a in W.items()}
    half = {name: a.astype(np.float16) for name, a in W.items()}
    saved = {}
    for name, a in W.items():
        np.save(tmp_path / f"{name}.npy", a)
        saved[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    x = tokens(CFG, 20, seed=0)

    def listed(arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: a if name == "router" else list(a) for name, a in arrays.items()}

    def result(cfg: aristos.MoEConfig, arrays: dict[str, Any], **options: Any) -> np.ndarray:
        with MoE(cfg, threads=1) as moe:
            moe.load(**arrays, **options)
            return moe(x.astype(cfg.dtype))

    turned = {name: a if "bias" in name else a.swapaxes(-1, -2) for name, a in W.items()}
    for dtype in ("float32", "bfloat16", "float16"):
        cfg = replace(CFG, dtype=dtype)
        plain = result(cfg, W)
        assert same(result(cfg, saved), plain)
        assert same(result(cfg, listed(W)), plain)
        assert same(result(cfg, listed(turned), layout="out_in"), plain)
        for arrays, name in ((short, "bfloat16"), (half, "float16")):
            wanted = result(cfg, {n: a.astype("f4") for n, a in arrays.items()})
            assert same(result(cfg, arrays), wanted)
            assert same(result(cfg, {n: a.view(np.uint16) for n, a in arrays.items()}, bits=name), wanted)
            with MoE(cfg, threads=1) as moe:
                for e in range(5):
                    bits = {n: a[e].view(np.uint16) for n, a in arrays.items() if n != "router"}
                    moe.load_expert(0, e, **bits, bits=name)
                moe.load_router(0, router=arrays["router"].T.view(np.uint16), bits=name, layout="out_in")
                assert same(moe(x.astype(cfg.dtype)), wanted)


def test_a_bias_that_is_left_out_is_zero():
    x = tokens(CFG, 9, seed=0)
    with MoE(CFG, threads=1) as moe:
        by_parts(moe)
        for e in range(5):
            moe.load_expert(0, e, **of_expert(e) | {"up_bias": None, "gate_bias": None})
        zero = {name: 0 * a for name, a in W.items() if name in ("up_bias", "gate_bias")}
        assert reference.error(moe(x), reference.moe(CFG, x, **W | zero)) < 1e-5


def test_wrong_parts_are_refused_and_change_nothing():
    one = of_expert(1)
    x = tokens(CFG, 9, seed=0)
    with MoE(CFG, layers=2) as moe:
        moe.load(0, **W)
        y = moe(x)
        for change, words in (
            ({"up": one["up"].T}, r"up must have shape \[40, 72\], got \[72, 40\]: .* layout='out_in' \(nn.Linear's"),
            ({"down": one["down"][1:]}, r"down must have shape \[72, 40\], got \[71, 40\]$"),
            ({"gate": None}, "load_expert needs gate= for gated=True"),
            ({"up_bias": one["down_bias"]}, r"up_bias must have shape \[72\], got \[40\]"),
            ({"up": one["up"].astype("f8")}, "up must have dtype float32, bfloat16 or float16, got float64"),
            ({"up": one["up"].astype("f2").view("u2")}, "up must have dtype .*, got uint16: if it holds bits of bfl"),
            ({"bits": "fp8"}, "bits must be one of None, 'bfloat16', 'float16', got 'fp8'"),
            ({"layout": 1}, "layout must be 'in_out' or 'out_in', got 1"),
        ):
            with pytest.raises(InputError, match=words):
                moe.load_expert(0, 1, **one | change)
        for expert in (-1, 5, True, 1.0):
            with pytest.raises(InputError, match=rf"expert must be an int in 0\.\.4, got {expert}"):
                moe.load_expert(0, expert, **one)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"layer must be an int in 0\.\.1, got 2"):
            moe.load_router(2, router=ROUTER)
        with pytest.raises(InputError, match=r"router must have shape \[40, 5\], got \[5, 40\]: .*'out_in'"):
            moe.load_router(0, router=ROUTER.T)
        ups = list(W["up"])
        for parts, words in (
            (ups[:4], "up must have an array for each of the 5 experts of the layer, got 4"),
            ([*ups[:4], None], r"up\[4\] must be an array, because this rank holds that expert, got None"),
            ([*ups[:4], ups[4].T], r"up\[4\] must have shape \[40, 72\], got \[72, 40\]: .*layout='out_in'"),
        ):
            with pytest.raises(InputError, match=words):
                moe.load(0, **W | {"up": parts})
        assert same(moe(x), y)


@pytest.mark.ranks(2)
def test_lists_need_only_the_experts_that_a_rank_holds(comm):
    x = tokens(CFG, 12, seed=comm.rank)
    with MoE(CFG, comm) as moe:
        mine = moe.placement.mine(comm.rank)
        parts = {n: [v if e in mine else None for e, v in enumerate(a)] for n, a in EXPERTS.items()}
        moe.load(**parts, router=ROUTER)
        assert reference.error(moe(x), reference.moe(CFG, x, **W)) < 1e-5
        own = {n: list(a[mine]) for n, a in EXPERTS.items()}
        moe.load(**own, router=ROUTER, local=True)
        assert reference.error(moe(x), reference.moe(CFG, x, **W)) < 1e-5


@pytest.mark.parametrize("schedule", ["fused", "bulk"])
@ranks_each(1, 2)
def test_a_call_names_what_is_missing_on_every_rank(comm, world, schedule):
    """Rank 0 lacks its experts 0 and 1, then the router, then everything; afterwards the layer works."""
    x = tokens(CFG, 9, seed=world)
    first = comm is None or comm.rank == 0

    def refused(own: str, peers: str, **call: Any) -> None:
        with pytest.raises(InputError if first else PeerInputError, match=own if first else peers):
            moe(x, **call)

    with MoE(CFG, comm, layers=2, schedule=schedule) as moe:
        by_parts(moe, leave=(0, 1))
        refused("layer 0 lacks experts 0, 1: call load_expert", "rank 0 .* has not loaded expert 0 of this layer")
        moe.load_expert(0, 0, **of_expert(0))
        refused("layer 0 lacks expert 1: call load_expert", "rank 0 .* has not loaded expert 1 of this layer")
        moe.load_expert(0, 1, **of_expert(1))
        y = moe(x)
        if not first:
            moe.load(1, **W)
        refused("layer 1 has no weights", "rank 0 .* has not loaded any weights of this layer", layer=1)
        moe.load(1, **W | {"router": None if first else ROUTER})
        refused("layer 1 was loaded without a router", "rank 0 .* has not loaded a router of this layer", layer=1)
        moe.load_router(1, router=ROUTER)
        assert same(moe(x, layer=1), y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_finite_are_refused_and_the_old_ones_stay(dtype):
    """Weights that become infinite when they are rounded to the layer's type are refused too."""
    cfg = replace(CFG, dtype=dtype)
    bad = {name: np.array(W[name]) for name in W}
    bad["down"][2, 1, 3] = np.inf
    x = tokens(cfg, 5, seed=0).astype(dtype)
    with MoE(cfg, threads=1) as moe:
        moe.load(**W)
        before = moe(x)
        with pytest.raises(InputError, match=r"^down\[2\]\[1, 3\] must be finite, got inf"):
            moe.load(**bad)
        with pytest.raises(InputError, match=r"^down\[1, 3\] must be finite, got inf"):
            moe.load_expert(0, 2, **{name: array[2] for name, array in bad.items() if name != "router"})
        bad["down"][2, 1, 3] = 1e5
        if dtype == "float16":
            with pytest.raises(InputError, match=r"^down\[2\]\[1, 3\] must be at most 65504 in magnitude"):
                moe.load(**bad)
        assert np.array_equal(moe(x), before)


@pytest.mark.parametrize("schedule", ["fused", "bulk"])
@ranks_each(1, 2)
def test_a_reload_that_ends_half_way_is_refused(comm, world, schedule):
    """After `unload` on rank 0 no call mixes old and new parts, whichever part is missing; other layers work."""
    cfg = replace(CFG, shared_ffn=24, router=aristos.Router("sigmoid"))
    old, new = (dict(reference.weights(cfg, seed=seed)) for seed in (1, 2))
    old["select_bias"] = np.float32([9, 0, 0, 0, 0])
    x, first = tokens(cfg, 9, seed=world), comm is None or comm.rank == 0

    def refused(own: str, peers: str) -> None:
        with pytest.raises(InputError if first else PeerInputError, match=own if first else peers):
            moe(x)

    with MoE(cfg, comm, layers=2, schedule=schedule, placement=[0, world - 1, 0, 0, world - 1]) as moe:
        moe.load(0, **old)
        moe.load(1, **old)
        y = moe(x)
        if first:
            moe.unload(0)
        else:
            moe.load(0, **new)
        refused("layer 0 lacks experts 0, ", "rank 0 .* has not loaded expert 0 of this layer")
        for e in range(5):
            moe.load_expert(0, e, **{name: new[name][e] for name in EXPERTS})
        refused("layer 0 lacks its shared expert", "rank 0 .* has not loaded the shared expert of this layer")
        moe.load_shared(0, **{n.removeprefix("shared_"): a for n, a in new.items() if n.startswith("shared_")})
        refused("layer 0 was loaded without a router", "rank 0 .* has not loaded a router of this layer")
        assert same(moe(x, layer=1), y)
        moe.load_router(0, router=new["router"])
        assert reference.error(moe(x), reference.moe(cfg, x, **new)) < 1e-5  # the old select_bias is gone too


def test_an_expert_whose_packing_failed_half_way_counts_as_missing(monkeypatch):
    """No call mixes the expert's old and new projections."""
    cfg = replace(CFG, shared_ffn=24)
    w, x = reference.weights(cfg), tokens(CFG, 9, seed=0)
    shared = {n.removeprefix("shared_"): a for n, a in w.items() if n.startswith("shared_")}
    with MoE(cfg, threads=1, backend="cpu") as moe:
        moe.load(**w)
        y = moe(x)
        element = type(moe.packed_weights()._element)
        pack = element.pack
        for load, words in (
            (lambda: moe.load_expert(0, 2, **of_expert(2)), "layer 0 lacks expert 2: call load_expert"),
            (lambda: moe.load_shared(0, **shared), "layer 0 lacks its shared expert: call load_shared"),
        ):
            works = iter((True, False))
            with monkeypatch.context() as patch:
                patch.setattr(element, "pack", lambda self, a, works=works: pack(self, a) if next(works) else 1 // 0)
                with pytest.raises(ZeroDivisionError):
                    load()
            with pytest.raises(InputError, match=words):
                moe(x)
            load()
            assert same(moe(x), y)


@pytest.mark.ranks(2)
def test_a_load_that_fails_over_the_weights_that_peers_read_is_refused(comm, monkeypatch):
    """Experts that local peers read have one place in memory. So a failed load has destroyed the former weights."""
    x = tokens(CFG, 9, seed=comm.rank)
    with MoE(CFG, comm, backend="cpu") as moe:
        moe.load(**W)
        y, held = moe(x), moe.packed_weights()
        in_place, element = held._home is not None, type(held._element)
        pack, works = element.pack, iter((True, True, False))
        if comm.rank == 0:
            with monkeypatch.context() as patch:
                patch.setattr(element, "pack", lambda self, a: pack(self, a) if next(works) else 1 // 0)
                with pytest.raises(ZeroDivisionError):
                    moe.load(**W)
        if in_place:
            with pytest.raises(InputError if comm.rank == 0 else PeerInputError, match=r"lacks exp|not loaded exp"):
                moe(x)
            moe.load(**W)
        assert same(moe(x), y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_loading_expert_by_expert(tmp_path, dtype):
    """At its peak a load from files has this rank's packed experts and the arrays of one expert in memory."""
    cfg = aristos.MoEConfig(hidden=256, ffn=512, experts=16, activation="silu", gated=True, dtype=dtype)
    width = 4 if dtype == "float32" else 2
    one = {"up": (256, 512), "gate": (256, 512), "down": (512, 256)}
    expert = 3 * 256 * 512 * width
    for name, shape in one.items():
        np.zeros((16, *shape), dtype if width == 4 else np.uint16).tofile(tmp_path / name)
    arrays = {
        n: np.memmap(tmp_path / n, dtype if width == 4 else np.uint16, "r", shape=(16, *s)) for n, s in one.items()
    }
    with MoE(cfg, threads=1, backend="cpu") as moe:
        tracemalloc.start()
        try:
            for e in range(16):
                moe.load_expert(0, e, **of_expert(e, arrays), bits="bfloat16")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        packed = moe.packed_weights().nbytes
    assert 16 * expert <= packed < 16.1 * expert
    assert peak < packed + expert
