"""Training: gradients against the float64 reference, equal bits on any number of ranks, tapes, changed weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import MoE, tokens
from mpi import ranks_each

from aristos import MoEConfig, Router, _reference_backward, losses, reference
from aristos.config import SCORES
from aristos.engine.layout import return_stride
from aristos.errors import CheckpointError, InputError, MismatchError, OpenCallError, PeerInputError
from aristos.kernels.cpu import token_backward
from aristos.layer import saved_files
from aristos.layer.collective import shape_of
from aristos.layer.options import backend_class, check_training
from aristos.placement import Placement
from aristos.train import SGD, Adam

SMALL = MoEConfig(hidden=20, ffn=12, experts=6, top_k=2, activation="silu", gated=True, max_tokens=64)
CASES: dict[str, MoEConfig] = {
    "plain": replace(SMALL, gated=False, activation="gelu"),
    "biases and a limit": replace(SMALL, bias=True, limit=0.5, activation="swiglu_oai"),
    "softmax over all": replace(SMALL, router=Router("softmax", renormalize=False, scale=1.5)),
    "softmax over the chosen": replace(SMALL, router=Router("softmax_topk")),
    "sigmoid, groups, a capacity": replace(
        SMALL, router=Router("sigmoid", groups=3, topk_groups=2, group_score="sum_top2", capacity=4)
    ),
    "sqrtsoftplus": replace(SMALL, router=Router("sqrtsoftplus", scale=2.0)),
    "sparsemixer": replace(SMALL, router=Router("sparsemixer")),
    "weights on the input": replace(SMALL, top_k=1, router=Router("sigmoid", renormalize=False, weight_on="input")),
    "identity experts": replace(SMALL, identity_experts=3, router=Router("sigmoid", renormalize=False)),
    "shared expert": replace(SMALL, shared_ffn=9, shared_sigmoid=True, bias=True),
}
ALL = replace(SMALL, shared_ffn=9, shared_sigmoid=True, bias=True, identity_experts=2, max_tokens=256)


def weights_of(cfg: MoEConfig) -> dict[str, np.ndarray]:
    extra = np.linspace(-0.1, 0.1, cfg.columns, dtype=np.float32)
    return reference.weights(cfg, 2) | {"router_bias": extra}


def close(got: np.ndarray, right: np.ndarray, name: str) -> None:
    assert got.shape == right.shape, name
    assert np.abs(got - right).max(initial=0) <= 1e-5 * np.abs(right).max(initial=0) + 1e-7, name


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_the_float64_reference(name):
    cfg = CASES[name]
    w, x, dy = weights_of(cfg), tokens(cfg, 21, seed=3), tokens(cfg, 21, seed=4)
    with MoE(cfg, threads=2, train=True) as moe:
        moe.load(**w)
        y, tape = moe.forward(x.reshape(3, 7, -1))
        assert y.tobytes() == moe(x).tobytes()
        _, dlogits = losses.z(tape.routing, 0.1)
        dx = moe.backward(dy.reshape(3, 7, -1), tape, dlogits=dlogits, pieces=3)
        moe.reduce_grads()
        right = reference.backward(cfg, x, dy, dlogits=dlogits.reshape(21, -1), **w)
        close(dx.reshape(21, -1), right.pop("x"), "x")
        assert set(moe.grads()) == set(right)
        for key, gradient in moe.grads().items():
            close(gradient, right[key], key)
        once = {key: gradient.copy() for key, gradient in moe.grads().items()}
        moe.backward(dy, moe.forward(x)[1], dlogits.reshape(21, -1))
        moe.reduce_grads()
        for key, gradient in moe.grads().items():  # a second call adds to the first
            close(gradient, 2 * once[key], key)
        moe.zero_grads()
        assert not any(gradient.any() for gradient in moe.grads().values())


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_gradients_of_a_router_that_is_sure_of_its_choice(score, renormalize):
    """First each token's gradient by its logits is right within 1e-5 of its largest entry.

    Then the router's gradient is right, for a loss that has its own gradient by the logits (dlogits).
    """
    rng = np.random.default_rng(0)
    for k in (1, 2):
        cfg = replace(SMALL, top_k=k, experts=4, router=Router(score, renormalize=renormalize))
        logits = (6 * rng.standard_normal((64, 4))).astype(np.float32)
        ids = np.argsort(-logits, axis=1)[:, :k].copy()
        dw, out = rng.standard_normal((64, k)).astype(np.float32), np.zeros((64, 4), np.float32)
        token_backward.logit_gradients(
            64,
            logits.ctypes.data,
            4,
            ids.ctypes.data,
            dw.ctypes.data,
            k,
            SCORES[score],
            renormalize,
            1.0,
            out.ctypes.data,
        )
        right = _reference_backward.by_logits(cfg, logits, ids, dw)
        largest = np.abs(right).max(axis=1, keepdims=True)
        assert np.all(np.abs(out - right) <= 1e-5 * largest + 1e-15)  # the reference itself is within 1e-15
    cfg = replace(cfg, top_k=1, activation="relu2", gated=False)
    w, x, dy = reference.weights(cfg), 5 * tokens(cfg, 64, seed=3), tokens(cfg, 64, seed=4)
    w["router"] *= 30
    dlogits = (1e-2 * rng.standard_normal((64, 4))).astype(np.float32)
    with MoE(cfg, threads=1, train=True) as moe:
        moe.load(**w)
        moe.backward(dy, moe.forward(x)[1], dlogits=dlogits)
        moe.reduce_grads()
        close(moe.grads()["router"], reference.backward(cfg, x, dy, dlogits=dlogits, **w)["router"], "router")


def test_routed_from_outside():
    cfg = replace(SMALL, bias=True)
    w, x, dy = weights_of(cfg), tokens(cfg, 9, seed=3), tokens(cfg, 9, seed=4)
    rng = np.random.default_rng(0)
    ids = np.array([rng.permutation(cfg.experts)[:2] for _ in x])
    ids[0], ids[1, 0] = -1, -1
    by = rng.standard_normal(ids.shape).astype(np.float32)
    del w["router"], w["router_bias"]
    with MoE(cfg, threads=1, train=True) as moe:
        moe.load(**w)
        dx, dweights = moe.backward(dy, moe.forward(x, ids, by)[1])
        right = reference.backward(cfg, x, dy, ids=ids, weights=by, **w)
        close(dx, right["x"], "x")
        close(dweights, right["weights"], "weights")
        for key, gradient in moe.grads().items():
            close(gradient, right[key], key)
        with pytest.raises(InputError, match="dlogits must be None"):
            moe.backward(dy, moe.forward(x, ids, by)[1], dlogits=np.zeros((9, 6), np.float32))


def steps(moe: Any, comm: Any, x: np.ndarray, dy: np.ndarray, pieces: int) -> dict[str, np.ndarray]:
    """Take three steps of Adam. x, dy: of this rank's tokens.

    Returns dx, losses, norms, gradients, weights and states by name.
    """
    found = {}
    optimizer = Adam(moe, 0.05, weight_decay=0.1, clip=0.5)
    for number in range(3):
        moe.zero_grads()
        tapes = [moe.forward(x, layer=layer)[1] for layer in range(moe.layers)]
        loss, dlogits = losses.switch(tapes[0].routing, 0.01, comm)
        for layer, tape in enumerate(tapes):
            found[f"{number} x {layer}"] = moe.backward(dy, tape, dlogits if layer == 0 else None, pieces)
        found[f"{number} loss"] = np.array([loss, optimizer.step()])
        for layer in range(moe.layers):
            for name, gradient in moe.grads(layer).items():
                found[f"{number} {layer} {name}"] = gradient.copy()
    for layer in range(moe.layers):
        for name, state in optimizer.states[layer].items():
            found |= {f"{layer} {key} {name}": array for key, array in state.items()}
        found |= {f"masters {layer} {name}": array.copy() for name, array in moe.params(layer).items()}
    return found


@ranks_each(2, 4)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_bits_on_any_number_of_ranks(comm, world, dtype):
    """Three steps of two layers in four pieces: gradients, loss, weights and states have equal bits.

    Four ranks are on two nodes, and one of them holds no expert.
    """
    count, mine = 32, slice(32 // world * comm.rank, 32 // world * (comm.rank + 1))
    cfg, kind = replace(ALL, dtype=dtype), np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    x, dy = (tokens(ALL, count, seed=seed).astype(kind) for seed in (5, 6))
    places = [0, 1, 0, 0, 1, 0] if world == 2 else [2, 0, 2, 3, 3, 0]
    with MoE(cfg, layers=2, threads=1, train=True) as alone:
        for layer in range(2):
            alone.load(layer, **reference.weights(ALL, layer))
        whole = steps(alone, None, x, dy, 4)
    nodes = {"ranks_per_node": 2} if world == 4 else {}
    with MoE(cfg, comm, layers=2, threads=2, placement=places, train=True, **nodes) as moe:
        for layer in range(2):
            moe.load(layer, **reference.weights(ALL, layer))
        found = steps(moe, comm, x[mine], dy[mine], 4 // world)
        held = moe.placement.mine(comm.rank)
        for key, value in found.items():
            name = key.split()[-1]
            right = whole[key]
            if " x " in key:
                right = right[mine]
            elif name.removesuffix("_bias") in ("up", "gate", "down"):
                right = right[held]
            assert value.tobytes() == np.ascontiguousarray(right).tobytes(), key
    assert set(found) == set(whole)
    assert whole["0 loss"][1] > 0.5  # the gradients were clipped


@ranks_each(2, 4)
def test_the_fused_backward_call_equals_the_bulk_one(comm, world):
    """dx and all gradients have equal bits in every case. Ranks have different numbers of tokens.

    On two ranks, as in `make test`, a case runs with one thread or with two. On four ranks it runs with both, and with
    two threads on two nodes.
    """
    nodes: list[dict[str, Any]] = [{}] if world == 2 else [{"ranks_per_node": 2}]
    for place, (name, plain) in enumerate(CASES.items()):
        for number, options in enumerate([{"threads": 1}, {"threads": 2, **nodes[0]}]):
            if world == 2 and number != place % 2:
                continue
            cfg = replace(plain, dtype="bfloat16") if number and "bias" in name else plain
            count = 21 + 40 * (comm.rank == number) - 21 * (comm.rank == 1)
            kind = np.float32 if cfg.dtype == "float32" else ml_dtypes.bfloat16
            x, dy = (tokens(cfg, count, seed=seed + comm.rank).astype(kind) for seed in (3, 9))
            found = []
            for schedule in ("bulk", "fused"):
                with MoE(cfg, comm, train=True, schedule=schedule, **options) as moe:
                    moe.load(**weights_of(cfg))
                    tapes = [moe.forward(x)[1], moe.forward(x[::-1])[1]]
                    dx = [moe.backward(dy, tape) for tape in (tapes if number else tapes[::-1])]
                    moe.reduce_grads()
                    found.append({"dx": np.array(dx), **{key: a.copy() for key, a in moe.grads().items()}})
            for key, value in found[0].items():
                assert value.tobytes() == found[1][key].tobytes(), (name, number, key)


def test_rows_of_dx_fit_where_rows_of_a_ring_do():
    """Between nodes rows of dx are staged before they are put back, with the stride of ring rows."""
    for dtype in ("float32", "bfloat16"):
        for hidden in range(1, 200):
            placement = Placement([0, 1], 2, 2)
            shape = shape_of(2, placement, hidden=hidden, experts=2, top_k=1, max_tokens=9, dtype=dtype, train=True)
            assert shape.stride >= return_stride(4 * hidden, 1)
            assert shape.returns >= shape.return_rows * return_stride(4 * hidden, 1)


@pytest.mark.ranks(2)
def test_bfloat16_between_nodes_gives_the_bits_of_one_node(comm):
    """Here a row of dx, 96 float32 and a scalar, takes more cache lines than a row [dy | x] of 2 x 96 bfloat16."""
    cfg = replace(SMALL, hidden=96, dtype="bfloat16", max_tokens=160)
    x, dy = (tokens(cfg, 120, seed=seed + comm.rank).astype(ml_dtypes.bfloat16) for seed in (3, 9))
    found = []
    for nodes in (None, 1):
        with MoE(cfg, comm, threads=1, train=True, ranks_per_node=nodes) as moe:
            moe.load(**reference.weights(cfg))
            dx = [moe.backward(dy, moe.forward(x, save=save)[1]) for save in ("nothing", "rows", "hidden")]
            found.append({"dx": np.array(dx), **{key: a.copy() for key, a in moe.grads().items()}})
    for key, value in found[0].items():
        assert value.tobytes() == found[1][key].tobytes(), key


@pytest.mark.ranks(2)
@pytest.mark.parametrize("schedule", ["fused", "bulk"])
def test_refusals_on_two_ranks(comm, schedule):
    """Every rank raises, no gradient changes, and the layer goes on."""
    x = tokens(SMALL, 6 - 6 * comm.rank, seed=1)  # one rank has no tokens
    with MoE(SMALL, comm, threads=1, train=True, schedule=schedule) as moe:
        moe.load(**reference.weights(SMALL))
        _, first = moe.forward(x)
        _, second = moe.forward(x)
        for refused, said, pieces in ((x[:, :3], "dy must", 1), (x, "pieces must divide the 6 tokens", 4)):
            theirs = said if schedule == "bulk" else "rank 0 refused its input"
            wrong = PeerInputError if comm.rank else InputError
            with pytest.raises(wrong, match=theirs if comm.rank else said):
                moe.backward(refused if comm.rank == 0 else x, first, pieces=pieces)
        with pytest.raises(MismatchError, match="tape of the same forward call"):
            moe.backward(x, first if comm.rank else second)
        with pytest.raises(MismatchError, match="tape of the same forward call"):
            moe.backward(x, first, pieces=1 + comm.rank)
        if schedule == "fused":
            with pytest.raises(MismatchError, match="made a different call"):
                moe.backward(x, first) if comm.rank else moe(x)
        assert not any(gradient.any() for gradient in moe.grads().values())
        moe.backward(x, second)
        moe.backward(x, first, pieces=2)
        assert any(gradient.any() for gradient in moe.grads().values())
        with pytest.raises(InputError, match="was used or discarded"):
            moe.backward(x, first)
        moe.reduce_grads()
    with pytest.raises(MismatchError, match="configured differently"):
        MoE(SMALL, comm, threads=1, train=comm.rank == 0)


def test_weights_cannot_change_while_a_tape_is_open():
    x = tokens(SMALL, 4, seed=1)
    w = reference.weights(SMALL)
    with MoE(SMALL, layers=2, threads=1, train=True) as moe:
        for layer in range(2):
            moe.load(layer, **w)
        _, tape = moe.forward(x)
        loads = (
            lambda: moe.load(**w),
            moe.update,
            lambda: moe.unload(0),
            lambda: moe.load_router(0, router=w["router"]),
        )
        for change in loads:
            with pytest.raises(OpenCallError, match="while a tape of that layer is open"):
                change()
        moe.update(1)
        assert moe.open_tapes == 1
        with pytest.raises(OpenCallError, match="open tapes: 1"):
            SGD(moe, 0.1).step()
        tape.discard()
        tape.discard()
        moe.update(0, up=2 * moe.params()["up"])
        assert np.array_equal(moe.params()["up"], 2 * w["up"])
        expected = reference.moe(SMALL, x, **{**w, "up": 2 * w["up"]})
        assert reference.error(moe(x), expected) < 1e-5
        with pytest.raises(InputError, match=r"up must be float32 of shape \[6, 20, 12\]"):
            moe.update(0, up=w["up"][0])
        with pytest.raises(InputError, match=r"update takes the layer's arrays .* by name, got other="):
            moe.update(0, other=w["up"])
        with pytest.raises(InputError, match="was used or discarded"):
            moe.backward(x, tape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moves": "experts"}, "moves='tokens' or 'auto', got moves='experts'"),
        ({"placement": [[0]] * 6}, None),
        ({"cfg": replace(SMALL, dtype="float16")}, "dtype='float32' or 'bfloat16'"),
        ({"cfg": replace(SMALL, precision="high")}, "precision='highest'"),
        ({"train": "yes"}, "train must be True or False"),
    ],
)
def test_what_cannot_be_trained(options, message):
    cfg, given = options.get("cfg", SMALL), {"train": True} | {k: v for k, v in options.items() if k != "cfg"}
    if message is None:
        MoE(cfg, threads=1, **given).close()
        return
    with pytest.raises(InputError, match=message):
        MoE(cfg, threads=1, **given)


def test_a_backend_says_whether_it_trains():
    with pytest.raises(InputError, match="train=True requires backend='cpu', got 'cuda'"):
        check_training(SMALL, backend_class("cuda"), "tokens")


def test_a_layer_without_train_says_so():
    with MoE(SMALL, threads=1) as moe:
        moe.load(**reference.weights(SMALL))
        for use in (
            lambda: moe.forward(tokens(SMALL, 2, seed=0)),
            moe.grads,
            moe.zero_grads,
            moe.reduce_grads,
            moe.update,
            lambda: moe.save("nowhere"),
            lambda: Adam(moe),
        ):
            with pytest.raises(InputError, match="requires a layer made with train=True"):
                use()


def trained(optimizer: Any, gradients: list[dict[str, np.ndarray]], moe: Any) -> list[float]:
    """Take a step with each of these gradients. Returns their norms."""
    norms = []
    for each in gradients:
        moe.zero_grads()
        for name, gradient in each.items():
            moe.grads()[name][:] = gradient
        norms.append(optimizer.step())
    return norms


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_steps_equal_their_formulas_in_float64(kind):
    cfg = replace(SMALL, shared_ffn=5, bias=True)
    w, rng = weights_of(cfg), np.random.default_rng(0)
    gradients = [{name: rng.standard_normal(a.shape).astype("f4") for name, a in w.items()} for _ in range(3)]
    with MoE(cfg, threads=1, train=True) as moe:
        moe.load(**w)
        options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2, "clip": 3.0}
        optimizer = Adam(moe, **options) if kind == "adam" else SGD(moe, momentum=0.5, **options)
        norms = trained(optimizer, gradients, moe)
        for name, start in w.items():
            right, m, v = start.astype("f8"), np.zeros(start.shape), np.zeros(start.shape)
            matrix = name.removeprefix("shared_") in ("up", "gate", "down", "router")
            for t, (each, norm) in enumerate(zip(gradients, norms), 1):
                exact = np.sqrt(sum((g.astype("f8") ** 2).sum() for g in each.values()))
                assert norm == pytest.approx(exact, rel=1e-12)
                g = each[name] * 3.0 / exact
                right *= 1 - 0.1 * 0.2 * matrix
                m, v = (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g) if kind == "adam" else (0.5 * m + g, v)
                by = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) if kind == "adam" else m
                right -= 0.1 * by
            close(moe.params()[name], right, name)
        assert (
            reference.error(moe(tokens(cfg, 5, seed=1)), reference.moe(cfg, tokens(cfg, 5, seed=1), **moe.params()))
            < 1e-5
        )


def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing():
    with MoE(SMALL, layers=2, threads=1, train=True) as moe:
        for layer in range(2):
            moe.load(layer, **reference.weights(SMALL))
        optimizer = SGD(moe, 0.1)
        moe.grads(1)["gate"][3, 2, 1] = np.nan
        moe.grads(1)["up"][:] = 1
        before = moe.params(1)["up"].copy()
        with pytest.raises(InputError, match="gradient of gate of expert 3 in layer 1 is not finite"):
            optimizer.step()
        assert np.array_equal(moe.params(1)["up"], before)
        for wrong in ({"lr": -1}, {"lr": 0.1, "clip": 0}, {"lr": 0.1, "momentum": None}):
            with pytest.raises(InputError, match="must be"):
                SGD(moe, **wrong)
        with pytest.raises(InputError, match="betas must be two numbers"):
            Adam(moe, betas=(0.9, 1.0))


@pytest.mark.ranks(2)
def test_a_gradient_of_nan_is_named_on_all_ranks_by_layer_and_expert(comm):
    """One token of rank 1 has NaN in dy. Nothing hangs, and no rank changes a weight."""
    x, ids = tokens(SMALL, 4, seed=comm.rank), np.array([[1, 5], [2, 5], [3, 5], [4, 5]])
    dy = x.copy()
    dy[0] = np.nan if comm.rank else 0
    with MoE(SMALL, comm, layers=2, threads=1, train=True) as moe:
        for layer in range(2):
            moe.load(layer, **{name: a for name, a in reference.weights(SMALL).items() if name != "router"})
        optimizer = Adam(moe, 0.1)
        weights = np.full(ids.shape, 0.5, np.float32)
        dx, dw = moe.backward(dy, moe.forward(x, ids, weights, layer=1)[1])
        assert np.isnan(dx).any(axis=1).tolist() == np.isnan(dw).any(axis=1).tolist() == [comm.rank == 1] + [False] * 3
        before = {name: array.copy() for name, array in moe.params(1).items()}
        with pytest.raises(InputError, match="gradient of down of expert 1 in layer 1 is not finite"):
            optimizer.step()
        for name, array in moe.params(1).items():
            assert np.array_equal(array, before[name]), name


def some_steps(moe: Any, optimizer: Any, count: int) -> None:
    """Take steps whose gradients depend on this rank's arrays alone."""
    for _ in range(count):
        moe.zero_grads()
        for layer in range(moe.layers):
            for name, gradient in moe.grads(layer).items():
                gradient[:] = moe.params(layer)[name] * np.float32(0.3)
        optimizer.step()


def everything(moe: Any, optimizer: Any) -> dict[str, bytes]:
    found = {}
    for layer in range(moe.layers):
        arrays = dict(moe.params(layer))
        for name, states in optimizer.states[layer].items():
            arrays |= {f"{name}.{key}": array for key, array in states.items()}
        for name, array in arrays.items():
            held = moe.placement.mine(moe.rank) if name.partition(".")[0] in ("up", "gate", "down") else [-1]
            for expert, part in zip(held, array if held != [-1] else [array]):
                found[f"{layer} {name} {expert}"] = part.tobytes()
    return found


@pytest.mark.ranks(2)
def test_saved_on_two_ranks_and_restored_on_one_and_two(comm, tmp_path_factory, monkeypatch):
    """Five steps have the bits of three steps, a save, a restore and two more steps.

    A save that fails leaves the previous one.
    """
    folder = comm.bcast(tmp_path_factory.mktemp("saved") if comm.rank == 0 else None)
    cfg = replace(SMALL, shared_ffn=5)

    def unwritable(*given: Any) -> None:
        raise OSError("broken")

    def made(on: Any, **options: Any) -> Any:
        moe = MoE(cfg, on, layers=2, threads=1, train=True, **options)
        for layer in range(2):
            moe.load(layer, **reference.weights(cfg, layer))
        return moe, Adam(moe, 0.01)

    moe, optimizer = made(comm, placement=[0, 1, 0, 0, 1, 1])
    with moe:
        some_steps(moe, optimizer, 3)
        moe.save(folder, optimizer)
        saved = everything(moe, optimizer)
        some_steps(moe, optimizer, 2)
        after = everything(moe, optimizer)
        with monkeypatch.context() as patched:
            if comm.rank:
                patched.setattr(saved_files, "write_arrays", unwritable)
            with pytest.raises(CheckpointError if comm.rank else PeerInputError, match="cannot save: OSError: broken"):
                moe.save(folder, optimizer)
        comm.Barrier()
        assert sorted(path.name for path in folder.iterdir()) == ["saved-1", "saved.json", "saved.json.lock"]
    whole = {key: value for each in comm.allgather(after) for key, value in each.items()}
    for on, places in ((comm, [1, 1, 1, 0, 1, 0]), (None, None)):
        moe, optimizer = made(on, placement=places)
        with moe:
            moe.restore(folder, optimizer)
            assert optimizer.steps == 3
            some_steps(moe, optimizer, 2)
            for key, value in everything(moe, optimizer).items():
                assert value == whole[key], key
            moe.restore(folder)
            for key, value in saved.items():
                if on is None and "." not in key:
                    assert everything(moe, optimizer)[key] == value


def test_what_cannot_be_restored(tmp_path):
    w = reference.weights(SMALL)
    with MoE(SMALL, threads=1, train=True) as moe:
        moe.load(**w)
        with pytest.raises(CheckpointError, match=r"saved.json does not exist"):
            moe.restore(tmp_path)
        moe.save(tmp_path)
        moe.save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["saved-2", "saved.json", "saved.json.lock"]
        with pytest.raises(CheckpointError, match="given optimizer's kind, Adam, but was saved with no optimizer"):
            moe.restore(tmp_path, Adam(moe))
        moe.update(up=2 * w["up"])
        (tmp_path / "saved-2" / "layer-0-expert-4.npz").write_bytes(b"PK")
        with pytest.raises(CheckpointError, match=r"layer-0-expert-4.npz is damaged"):
            moe.restore(tmp_path)
        (tmp_path / "saved-2" / "layer-0-expert-4.npz").unlink()
        with pytest.raises(CheckpointError, match=r"layer-0-expert-4.npz is missing"):
            moe.restore(tmp_path)
        assert np.array_equal(moe.params()["up"], 2 * w["up"])  # nothing has changed
        moe.save(tmp_path)
        (tmp_path / "saved.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"saved.json is damaged"):
            moe.restore(tmp_path)
    with MoE(replace(SMALL, ffn=13), threads=1, train=True) as other:
        other.load(**reference.weights(replace(SMALL, ffn=13)))
        with MoE(SMALL, threads=1, train=True) as moe:
            moe.load(**w)
            moe.save(tmp_path / "new")
        with pytest.raises(
            CheckpointError, match=r"like this object's, but layer 0 differs: ffn: the save has 12, this object has 13$"
        ):
            other.restore(tmp_path / "new")


def test_dense_arrays_are_trained_clipped_and_saved_with_the_layers(tmp_path):
    w, rng = reference.weights(SMALL), np.random.default_rng(0)
    first = {name: rng.standard_normal(shape, np.float32) for name, shape in (("head", (3, 4)), ("norm", (5,)))}
    gradients = {name: rng.standard_normal(a.shape, np.float32) for name, a in first.items()}

    def stepped(
        clip: float | None, times: int = 1, restore: bool = False, folder: str = "once"
    ) -> tuple[float, dict[str, np.ndarray]]:
        dense = {name: a.copy() for name, a in first.items()}
        with MoE(SMALL, threads=1, train=True) as moe:
            moe.load(**w)
            optimizer = SGD(moe, 0.5, momentum=0.9, clip=clip, dense=dense)
            if restore:
                moe.restore(tmp_path / folder, optimizer)
            norms = [optimizer.step(gradients) for _ in range(times)]
            moe.save(tmp_path / folder, optimizer)
            return norms[-1], dense

    norm, dense = stepped(None)
    assert norm == pytest.approx(float(np.sqrt(sum((g.astype(float) ** 2).sum() for g in gradients.values()))))
    for name, a in first.items():
        assert np.array_equal(dense[name], a - np.float32(0.5) * gradients[name])
    _, once = stepped(None, restore=True)
    _, twice = stepped(None, times=2, folder="twice")
    assert all(np.array_equal(once[name], twice[name]) for name in first)
    _, dense = stepped(norm / 2, folder="clipped")
    for name, a in first.items():
        assert dense[name] == pytest.approx(a - 0.25 * gradients[name], abs=1e-6)


def test_gradients_of_dense_arrays_that_do_not_fit_are_refused():
    dense = {"head": np.ones((3, 4), np.float32)}
    with MoE(SMALL, threads=1, train=True) as moe:
        moe.load(**reference.weights(SMALL))
        with pytest.raises(InputError, match="writable float32 arrays, got head: float64"):
            SGD(moe, 0.1, dense={"head": np.ones(3)})
        optimizer = SGD(moe, 0.1, dense=dense)
        for wrong, said in (
            (None, r"superfluous or missing: \['head'\]"),
            ({"head": dense["head"], "tail": dense["head"]}, r"\['tail'\]"),
            ({"head": np.ones((4, 3), np.float32)}, r"head must be float32 \[3, 4\], got float32 \[4, 3\]"),
            ({"head": np.full((3, 4), np.nan, np.float32)}, "dense array head is not finite"),
        ):
            with pytest.raises(InputError, match=said):
                optimizer.step(wrong)
        assert (dense["head"] == 1).all()
        assert optimizer.steps == 0


@pytest.mark.parametrize("name", ["plain", "biases and a limit", "weights on the input", "shared expert"])
def test_gradients_of_bfloat16_rows(name):
    """Gradients are compared with those in float64 at the rounded weights. The router computes in float32."""
    cfg = replace(CASES[name], dtype="bfloat16")
    masters, x, dy = weights_of(cfg), tokens(cfg, 21, seed=3), tokens(cfg, 21, seed=4)
    bits = ml_dtypes.bfloat16
    w = dict(masters)
    for key in (name for name in masters if name.removeprefix("shared_") in ("up", "gate", "down")):
        w[key] = masters[key].astype(bits).astype("f4")
    x, dy = x.astype(bits), dy.astype(bits)
    with MoE(cfg, threads=1, train=True) as moe:
        moe.load(**masters)
        y, tape = moe.forward(x)
        dx = moe.backward(dy, tape)
        assert (y.dtype, dx.dtype) == (bits, bits)
        moe.reduce_grads()
        right = reference.backward(cfg, x.astype("f8"), dy.astype("f8"), **w)
        off = np.abs(dx.astype("f8") - right.pop("x")).max() / np.abs(dx.astype("f8")).max()
        assert off < 2**-7
        for key, gradient in moe.grads().items():
            assert gradient.dtype == np.float32
            assert reference.error(gradient, right[key]) < (
                1e-2 if "router" not in key or cfg.router.weight_on == "input" else 1e-5
            ), key
        with pytest.raises(InputError, match="dy must have dtype bfloat16"):
            moe.backward(dy.astype("f4"), moe.forward(x)[1])


@pytest.mark.parametrize("name", ["plain", "shared expert", "sigmoid, groups, a capacity", "bfloat16"])
def test_memory_of_masters_and_gradients(name):
    cfg = CASES[name] if name in CASES else replace(CASES["shared expert"], dtype=name)
    with_train, without = (
        MoE.memory(cfg, 1, train=train, layers=3) - MoE.memory(cfg, 1, train=train) for train in (True, False)
    )
    more = with_train - without  # more bytes of two more layers; windows do not depend on layers
    with MoE(cfg, threads=1, train=True) as moe:
        moe.load(**weights_of(cfg))
        weights = moe.packed_weights()
        made = sum(
            array.nbytes
            for arrays in (weights.masters, weights.transposed, weights.sums, weights.shared_transposed)
            for array in arrays.values()
        )
        made += weights.router_transposed.nbytes + weights.common.nbytes
    assert 0 <= 2 * made - more < 2 * 64 * len(weights.places)  # each gradient starts on a cache line


def test_weights_of_an_interrupted_step_are_refused_until_they_are_restored(monkeypatch, tmp_path):
    cfg = MoEConfig(hidden=12, ffn=20, experts=4, top_k=2, max_tokens=16)
    x = tokens(cfg, 16, seed=0)
    with MoE(cfg, threads=1, train=True) as moe:
        moe.load(**reference.weights(cfg))
        optimizer = Adam(moe)

        def step():
            moe.zero_grads()
            moe.backward(x, moe.forward(x)[1])
            optimizer.step()
            return [array.tobytes() for array in moe.params().values()]

        step()
        moe.save(tmp_path, optimizer)
        second, write, left = step(), moe.training.updates.adam, iter((True, True, False))

        def interrupted(*given):
            if not next(left):
                raise KeyboardInterrupt
            write(*given)

        with monkeypatch.context() as patched:
            patched.setattr(moe.training.updates, "adam", interrupted)
            with pytest.raises(KeyboardInterrupt):
                step()
        for call in (
            lambda: moe(x),
            lambda: moe.start(x).wait(),
            lambda: moe.forward(x),
            moe.params,
            optimizer.step,
            lambda: moe.save(tmp_path, optimizer),
        ):
            with pytest.raises(
                InputError, match=r"the weights are half changed.*: call restore\(\) with a saved directory"
            ):
                call()
        moe.restore(tmp_path)  # restores the weights alone
        for call in (optimizer.step, lambda: moe.save(tmp_path, optimizer)):
            with pytest.raises(InputError, match=r"the optimizer's states are half changed.*: call restore\("):
                call()
        moe.restore(tmp_path, optimizer)
        assert optimizer.steps == 1
        assert step() == second


@pytest.mark.parametrize("schedule", ["fused", "bulk"])
def test_gradients_of_an_interrupted_backward_call_are_refused_until_they_are_zero(schedule, monkeypatch):
    cfg = MoEConfig(hidden=12, ffn=20, experts=4, top_k=2, max_tokens=16)
    with MoE(cfg, threads=1, schedule=schedule, train=True) as moe:
        moe.load(**reference.weights(cfg))
        y, tape = moe.forward(tokens(cfg, 16, seed=0))
        kernels = moe.training._calls.kernels
        owner, name = (kernels.expert, "stored_gradients") if schedule == "fused" else (kernels, "run_expert")
        add, left = getattr(owner, name), iter((True, True, False))

        def interrupted(*given):
            if not next(left):
                raise KeyboardInterrupt
            add(*given)

        monkeypatch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            moe.backward(y, tape)
        with pytest.raises(InputError, match=r"the gradients are half changed.* zero_grads\(\) sets them to zero"):
            moe.grads()
        moe.zero_grads()
        assert not any(gradient.any() for gradient in moe.grads().values())


@pytest.mark.parametrize("schedule", ["fused", "bulk"])
def test_cleared_gradients_are_those_of_the_next_call_alone(schedule):
    """Gradients of experts without rows are zero, also in views that were taken before. A further call adds to them."""
    cfg = MoEConfig(hidden=12, ffn=20, experts=3, top_k=1, bias=True, max_tokens=16)
    x = tokens(cfg, 16, seed=0)
    with MoE(cfg, threads=1, schedule=schedule, train=True) as moe:
        moe.load(**reference.weights(cfg))

        def call(expert):
            moe.backward(x, moe.forward(x, np.full((16, 1), expert), np.ones((16, 1), "f4"))[1])

        call(0)
        held = {name: moe.grads()[name] for name in ("up", "down", "up_bias", "down_bias")}
        alone = {name: gradient[0].copy() for name, gradient in held.items()}
        moe.zero_grads()
        call(1)
        assert all(gradient[1].any() and not gradient[[0, 2]].any() for gradient in held.values())
        moe.zero_grads()
        call(0)
        assert all(held[name][0].tobytes() == gradient.tobytes() for name, gradient in alone.items())
        call(0)
        assert all(np.allclose(held[name][0], 2 * gradient, 1e-5, 1e-6) for name, gradient in alone.items())
        moe.zero_grads()
        assert not any(gradient.any() for gradient in moe.grads().values())
