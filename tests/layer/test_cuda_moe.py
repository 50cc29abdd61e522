"""`MoE(backend="cuda")` on the PTX machine: the unmodified host code, on GPUs simulated by the machine."""

from __future__ import annotations

from dataclasses import replace

import leftovers
import numpy as np
import pytest
import sweeps

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cases import routing, tokens
from simt_gpu import on_ranks

import aristos
from aristos import reference
from aristos.errors import ClosedError, InputError, MemoryProblem, PeerInputError, WaitTimeout
from aristos.layer import device_arrays
from aristos.layer.cuda_weights import packed_bytes

pytestmark = [pytest.mark.slow, pytest.mark.parallel]

CFG = aristos.MoEConfig(hidden=32, ffn=40, experts=5, top_k=2, activation="silu", gated=True, bias=True, max_tokens=24)
WEIGHTS = reference.weights(CFG)


def close(y, x, bound=1e-5, cfg=CFG, **call):
    want = reference.moe(cfg, x, **WEIGHTS if not call else {k: v for k, v in WEIGHTS.items() if k != "router"}, **call)
    assert y.shape == x.shape
    assert reference.error(y, want) < bound


def test_one_rank_equals_the_reference():
    def body(comm, rank):
        with aristos.MoE(CFG, comm, backend="cuda") as moe:
            assert moe.backend == "cuda"
            assert isinstance(moe, aristos.MoE)
            moe.load(**WEIGHTS)
            assert moe.packed_weights().nbytes == packed_bytes(CFG, CFG.experts) - 4 * CFG.experts  # no select_bias
            for count in (7, 24, 0, 1):
                x = tokens(CFG, count, seed=count)
                y = moe(x)
                close(y, x)
            call = routing(CFG, 9, "some", seed=3)
            x = tokens(CFG, 9, seed=5).reshape(3, 3, 32)
            out = np.empty_like(x)
            given = {name: value.reshape(3, 3, 2) for name, value in call.items()}
            y, stats = moe(x, **given, out=out, return_stats=True)
            assert y is out
            close(y.reshape(9, 32), x.reshape(9, 32), **call)
            assert (stats.tokens, stats.world, stats.rows_to_peer) == (9, 1, (int((call["ids"] >= 0).sum()),))
            assert 0 < stats.idle_seconds < 1e-3  # the machine's clock counts rounds, not time

    on_ranks(1, body)


def test_a_timeline_has_the_seconds_of_each_kind_of_work():
    def body(comm, rank):
        with aristos.MoE(CFG, comm, backend="cuda") as moe:
            moe.load(**WEIGHTS)
            x, seconds = tokens(CFG, 12, seed=rank), []
            for on in (False, True, False):
                moe.timeline(on)
                y, stats = moe(x, return_stats=True)
                close(y, x)
                seconds.append(
                    (
                        stats.route_seconds,
                        stats.dispatch_seconds,
                        stats.compute_seconds,
                        stats.combine_seconds,
                        stats.publish_seconds,
                        stats.lock_seconds,
                        stats.polls,
                    )
                )
            assert not any(seconds[0])
            assert all(seconds[1])
            assert not any(seconds[2])
            assert moe.events() == []

    on_ranks(2, body)


@pytest.mark.parametrize(("world", "gpus"), [(2, 2), (3, 3), (2, 1)])
def test_several_ranks_equal_the_reference(world, gpus):
    """One or two ranks share a GPU and make consecutive calls of two layers. Closing frees everything."""

    def body(comm, rank):
        with aristos.MoE(CFG, comm, layers=2, backend="cuda", placement=[0, 1, 1, 0, world - 1]) as moe:
            moe.load(0, **WEIGHTS)
            moe.load(1, **WEIGHTS)
            for layer, count in ((0, 11), (1, 6), (0, 0)):
                x = tokens(CFG, count + rank, seed=10 * layer + rank)
                close(moe(x, layer=layer), x)

    on_ranks(world, body, gpus=gpus, blocks=2 if gpus == world else 4)


@pytest.mark.parametrize("dtype", ["bfloat16", *sweeps.turn(["float16", "tf32"])])
def test_every_dtype_equals_the_reference(dtype):
    cfg = replace(CFG, dtype=dtype)
    if dtype == "bfloat16":
        kind = pytest.importorskip("ml_dtypes").bfloat16
    else:
        kind = np.float16 if dtype == "float16" else np.float32

    def body(comm, rank):
        with aristos.MoE(cfg, comm, backend="cuda") as moe:
            moe.load(**WEIGHTS)
            assert moe.packed_weights().nbytes == packed_bytes(cfg, cfg.experts) - 4 * cfg.experts
            x = tokens(CFG, 20, seed=1).astype(kind)
            y = moe(x)
            assert y.dtype == x.dtype
            return y.astype(np.float32), x.astype(np.float32)

    ((y, x),) = on_ranks(1, body)
    close(y, x, bound=0.03 if dtype == "bfloat16" else 4e-3)


def test_published_routers_and_identity_experts():
    """Routers have biases, groups, identity experts and their own input. Calls on two ranks return the routing."""
    router = aristos.Router("sigmoid", scale=2.5, groups=3, topk_groups=2, group_score="sum_top2")
    grouped = replace(CFG, experts=6, router=router)
    identity = replace(CFG, identity_experts=3, top_k=3, router=aristos.Router(renormalize=False, scale=6.0))
    mixed = replace(CFG, router=aristos.Router("sparsemixer"))

    def body(comm, rank):
        for cfg, has_bias in ((grouped, True), (identity, True), (mixed, False)):
            w = reference.weights(cfg)
            w["router_bias"] = w["router"][0]
            if has_bias:
                w["select_bias"] = w["router"][1] / 4
            with aristos.MoE(cfg, comm, backend="cuda") as moe:
                moe.load(**w)
                x, by = tokens(cfg, 12 + rank, seed=rank), tokens(cfg, 12 + rank, seed=9)
                y, stats, found = moe(x, return_stats=True, return_routing=True)
                ids, weights = reference.route(cfg, x, w["router"], w["router_bias"], w.get("select_bias"))
                assert np.array_equal(found.ids, ids)
                assert np.abs(found.weights - weights).max() < 1e-5
                assert reference.error(found.logits, x.astype("f8") @ w["router"] + w["router_bias"]) < 1e-6
                assert reference.error(y, reference.moe(cfg, x, **w)) < 1e-5
                assert found.counts[: cfg.experts].tolist() == list(stats.expert_rows)
                assert reference.error(moe(x, router_x=by), reference.moe(cfg, x, router_x=by, **w)) < 1e-5
                given = moe(x, found.ids, found.weights, return_routing=True)
                assert given[0].tobytes() == y.tobytes()
                assert given[1].logits is None
                assert np.array_equal(given[1].ids, ids)
                with pytest.raises(InputError, match="router_x applies only to calls that use the layer's router"):
                    moe(x, found.ids, found.weights, router_x=by)

    on_ranks(2, body, gpus=2, blocks=2)


def test_layers_of_different_kinds():
    cfgs = [replace(CFG, router=aristos.Router("sqrtsoftplus")), replace(CFG, ffn=24, gated=False, activation="relu2")]

    def body(comm, rank):
        with aristos.MoE(cfgs, comm, backend="cuda") as moe:
            for layer, cfg in enumerate(cfgs):
                moe.load(layer, **reference.weights(cfg, seed=layer))
            for layer in (1, 0, 1):
                x, w = tokens(CFG, 9, seed=rank), reference.weights(cfgs[layer], seed=layer)
                assert reference.error(moe(x, layer=layer), reference.moe(cfgs[layer], x, **w)) < 1e-5

    on_ranks(2, body, gpus=2, blocks=2)


SHARED = replace(CFG, shared_ffn=56, shared_sigmoid=True)
ON_INPUT = replace(CFG, top_k=1, router=aristos.Router("sigmoid", renormalize=False, weight_on="input"))
KINDS = {
    "shared": replace(CFG, shared_ffn=24),
    "sigmoid": SHARED,
    "wide": replace(SHARED, shared_ffn=300, gated=False, activation="relu2", identity_experts=2),
    "input": ON_INPUT,
    "input and shared": replace(ON_INPUT, shared_ffn=24, shared_sigmoid=True),
    "limit": replace(CFG, limit=0.2, limit_after=True),
    "capacity": replace(SHARED, router=aristos.Router(capacity_factor=0.75)),
}


def test_shared_experts_weights_on_the_input_and_capacities():
    """Outputs and routings are right, whether the layer or the caller routes. Rank 1 takes part without tokens."""

    def body(comm, rank):
        for name, cfg in KINDS.items():
            w = reference.weights(cfg, seed=1)
            if cfg.shared_sigmoid:
                w["shared_sigmoid"] = w["shared_sigmoid"] * 4
            with aristos.MoE(cfg, comm, backend="cuda") as moe:
                moe.load(**w)
                if cfg.router.score != "softmax" or cfg is SHARED:
                    moe.load_router(0, select_bias=np.zeros(cfg.columns, "f4"))
                    assert moe.packed_weights().nbytes == packed_bytes(cfg, len(moe.placement.mine(rank)))
                x, by = tokens(cfg, 13 * (1 - rank), seed=rank), tokens(cfg, 13 * (1 - rank), seed=9)
                y, stats, found = moe(x, return_stats=True, return_routing=True)
                ids, weights = reference.route(cfg, x, w["router"])
                assert np.array_equal(found.ids, ids), name
                assert found.weights.size == 0 or np.abs(found.weights - weights).max() < 1e-5, name
                assert reference.error(y, reference.moe(cfg, x, **w)) < 1e-5, name
                assert found.dropped == stats.dropped_rows == (ids < 0).sum(), name
                assert (found.dropped > 0) == (name == "capacity" and rank == 0)
                assert sum(stats.expert_rows) + (ids >= cfg.experts).sum() + found.dropped == ids.size
                z, given = moe(x, found.ids, found.weights, return_routing=True)
                assert z.tobytes() == y.tobytes(), name
                assert given.weights.tobytes() == found.weights.tobytes()
                assert reference.error(moe(x, router_x=by), reference.moe(cfg, x, router_x=by, **w)) < 1e-5, name
                bad = x.copy()
                bad[:1, 3] = np.inf
                with pytest.raises(InputError if rank == 0 else PeerInputError, match=r"finite|not finite"):
                    moe(bad)
                if cfg.shared_sigmoid:
                    with pytest.raises(InputError if rank == 0 else PeerInputError, match=r"x times shared_s|finite"):
                        moe(bad, found.ids, found.weights)

    on_ranks(2, body, gpus=2, blocks=3)


def test_layers_with_and_without_a_shared_expert():
    """Layers share windows and buffers, though they differ in shared expert, capacity and `weight_on`."""
    cfgs = [replace(ON_INPUT, router=replace(ON_INPUT.router, capacity=2)), KINDS["input and shared"], ON_INPUT]

    def body(comm, rank):
        with aristos.MoE(cfgs, comm, backend="cuda") as moe:
            for layer, cfg in enumerate(cfgs):
                moe.load(layer, **reference.weights(cfg, seed=layer))
            for layer in (2, 0, 1, 2):
                x, w = tokens(CFG, 20, seed=rank), reference.weights(cfgs[layer], seed=layer)
                y, found = moe(x, layer=layer, return_routing=True)
                assert reference.error(y, reference.moe(cfgs[layer], x, **w)) < 1e-5
                assert found.dropped == (reference.route(cfgs[layer], x, w["router"])[0] < 0).sum()
            before, w = moe(x, layer=1), reference.weights(cfgs[1], seed=1)
            if rank == 0:  # calls are refused until every weight has been loaded again
                moe.unload(1)
            for name in ("expert", "shared expert", "router"):
                with pytest.raises(InputError if rank == 0 else PeerInputError, match=f"lacks|without|loaded.* {name}"):
                    moe(x, layer=1)
                if name == "expert":
                    for e in range(CFG.experts):
                        moe.load_expert(1, e, **{n: a[e] for n, a in w.items() if n in WEIGHTS and n != "router"})
                elif name == "shared expert":
                    moe.load_shared(1, **{n.removeprefix("shared_"): a for n, a in w.items() if n.startswith("shared")})
            moe.load_router(1, router=w["router"])
            assert moe(x, layer=1).tobytes() == before.tobytes()

    on_ranks(2, body, gpus=2, blocks=2)


def test_an_input_refused_by_one_rank():
    def body(comm, rank):
        with aristos.MoE(CFG, comm, backend="cuda") as moe:
            moe.load(**WEIGHTS)
            x = tokens(CFG, 4, seed=rank)
            with pytest.raises(InputError if rank == 0 else PeerInputError, match=r"width|shape|refused"):
                moe(x[:, :8].copy() if rank == 0 else x)
            with pytest.raises(InputError if rank == 1 else PeerInputError, match=r"once at most|refused"):
                moe(
                    x,
                    ids=np.full((4, 2), rank and 3) if rank else np.tile([0, 1], (4, 1)),
                    weights=np.ones((4, 2), "f4"),
                )
            bad = x.copy()
            bad[2, 3] = np.nan
            with pytest.raises(InputError if rank == 0 else PeerInputError, match="finite"):
                moe(bad if rank == 0 else x)
            close(moe(x), x)

    on_ranks(2, body)


def test_options_that_gpus_do_not_have_are_refused():
    def body(comm, rank):
        for options, words in (
            ({"threads": 2}, "threads applies only to backend='cpu', got 2"),
            ({"schedule": "bulk"}, "has only schedule='fused', got 'bulk'"),
        ):
            with pytest.raises(InputError, match=words):
                aristos.MoE(CFG, comm, backend="cuda", **options)
        with pytest.raises(InputError, match="backend='cuda' needs plain weights, got weight_dtype='fp8': leave it"):
            aristos.MoE(replace(CFG, weight_dtype="fp8"), comm, backend="cuda")
        with pytest.raises(InputError, match="a row must be a multiple of 16, got 120 from hidden=30"):
            aristos.MoE(replace(CFG, hidden=30), comm, backend="cuda")
        with pytest.raises(
            InputError, match="dtype must be one of float32, bfloat16, float16 with backend='cpu', got 'tf32'"
        ):
            aristos.MoE(replace(CFG, dtype="tf32"), comm, backend="cpu")

    on_ranks(1, body)


def test_a_rank_that_makes_no_call(monkeypatch):
    """Rank 1 launches nothing: rank 0's kernel ends by itself, and the error names rank 1."""
    monkeypatch.setattr("aristos.layer.cuda_jobs.timeout_ns", lambda seconds: 50_000)

    def body(comm, rank):
        moe = aristos.MoE(CFG, comm, backend="cuda")
        moe.load(**WEIGHTS)
        if rank == 1:
            moe._member.runtime.device.together.run(1)
            moe._member.runtime.users = 0  # as if its process had ended: the exit hook has nothing to do
            return
        with pytest.raises(
            WaitTimeout, match=r"rank 0 waited .*for rank 1 in epoch 1 and still needs its announcement"
        ):
            moe(tokens(CFG, 3, seed=0))
        moe._member.runtime.users = 0  # it can never close: rank 1 is gone

    hooks = leftovers.registered()
    on_ranks(2, body)
    leftovers.drop_since(hooks)


class OnDevice:
    """An array in GPU memory, with `__cuda_array_interface__` alone."""

    def __init__(self, gpu, values):
        self.gpu, self.shape, self.dtype = gpu, values.shape, values.dtype
        self.at = gpu.allocate(values.nbytes)
        gpu.copy_in(self.at, np.ascontiguousarray(values))

    @property
    def __cuda_array_interface__(self):
        return {"data": (self.at, False), "shape": self.shape, "typestr": self.dtype.str, "version": 3}

    def read(self):
        out = np.empty(self.shape, self.dtype)
        self.gpu.copy_out(out, self.at)
        return out


def test_arrays_in_gpu_memory():
    """Calls return before the GPU has run them. If one is refused, the next `synchronize` raises the error, once."""

    def body(comm, rank):
        with aristos.MoE(CFG, comm, backend="cuda") as moe:
            moe.synchronize()
            moe.load(**WEIGHTS)
            gpu, x = moe._member.runtime.device, tokens(CFG, 12, seed=rank)
            bad = x.copy()
            bad[5, 1] = np.inf
            there, out = OnDevice(gpu, x), OnDevice(gpu, np.zeros_like(x))
            assert moe(there, out=out) is out
            moe(OnDevice(gpu, bad if rank == 1 else x), out=OnDevice(gpu, np.zeros_like(x)))
            again = OnDevice(gpu, np.zeros_like(x))
            moe(there, out=again)
            with pytest.raises(InputError if rank == 1 else PeerInputError, match="earlier call"):
                moe.synchronize()
            moe.synchronize()
            np.testing.assert_array_equal(out.read(), again.read())
            close(out.read(), x)
            with pytest.raises(InputError, match="overlap"):
                moe(there, out=there)
            assert moe.device == rank
            assert moe.moves == "tokens"

    on_ranks(2, body)


def test_arrays_of_another_gpu_are_refused(monkeypatch):
    """Each of the four arrays must lie on this rank's GPU; DLPack says where an array lies."""
    plain = device_arrays.on_device

    def body(comm, rank):
        with aristos.MoE(CFG, comm, backend="cuda") as moe:
            moe.load(**WEIGHTS)
            gpu, x = moe._member.runtime.device, tokens(CFG, 12, seed=rank)
            call = routing(CFG, 12, "some", seed=1)
            given = {"x": x, "ids": call["ids"], "weights": call["weights"], "out": np.zeros_like(x)}
            given = {name: OnDevice(gpu, value) for name, value in given.items()}
            for wrong in given:

                def elsewhere(name, value, stream, wrong=wrong):
                    found = plain(name, value, stream)
                    return found if found is None or name != wrong else replace(found, device=7)

                monkeypatch.setattr(device_arrays, "on_device", elsewhere)
                with pytest.raises(InputError, match=f"{wrong} must lie on device 0, .*got device 7"):
                    moe(**given)
            monkeypatch.setattr(device_arrays, "on_device", plain)
            moe(**given)
            moe.synchronize()
            close(given["out"].read(), x, **call)

    on_ranks(1, body)


def test_an_engine_that_cannot_grow_names_the_cause(monkeypatch):
    """If a second layer does not fit, the first one is unusable. Its error names the cause. Nothing is freed twice."""

    def body(comm, rank):
        first = aristos.MoE(CFG, comm, backend="cuda")
        first.load(**WEIGHTS)
        gpu = first._member.runtime.device
        plain = gpu.allocate
        gpu.allocate = lambda nbytes: plain(nbytes) if nbytes < 1 << 20 else _no_memory()
        with pytest.raises(MemoryProblem, match="no room"):
            aristos.MoE(replace(CFG, hidden=512, max_tokens=4096), comm, backend="cuda")
        with pytest.raises(ClosedError, match="could not grow"):
            first(tokens(CFG, 3, seed=0))
        first.close()

    on_ranks(1, body)


def _no_memory():
    raise MemoryProblem("no room")
