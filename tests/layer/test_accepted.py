"""Arguments that need not be plain: NumPy scalars as options, and arrays of any strides, alignment and integer type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import Exchange, MoE, one_exchange, routing, same, tokens
from mpi import ranks_each

import aristos
from aristos import models, reference
from aristos.errors import InputError
from aristos.placement import Placement

CFG = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=30)
W: dict[str, Any] = dict(reference.weights(CFG))
SHAPE = {"hidden": 40, "experts": 5, "top_k": 2, "max_tokens": 30}


# ---- options


@ranks_each(1, 2)
def test_options_may_be_numpy_scalars(comm, world):
    """Rank 0 passes NumPy's scalars and the others Python's: they are equal, so the ranks agree."""
    plain = {"layers": 2, "threads": 1, "timeout": 25.0}
    scalars = {"layers": np.int64(2), "threads": np.uint8(1), "timeout": np.float32(25)}
    first = comm is None or comm.rank == 0
    places = np.arange(5, dtype=np.uint16) % world
    with MoE(CFG, comm, placement=places if first else places.tolist(), **scalars if first else plain) as moe:
        assert [type(value) for value in (moe.layers, moe.threads, moe.timeout)] == [int, int, float]
        moe.load(np.int8(1), **W, local=np.False_)
        moe.timeline(True, np.int64(1000))
        x = tokens(CFG, 7, seed=0)
        assert reference.error(moe(x, layer=np.uint64(1)), reference.moe(CFG, x, **W)) < 1e-5


@ranks_each(1, 2)
def test_an_exchange_takes_numpy_scalars(comm, world):
    first = comm is None or comm.rank == 0
    shape: dict[str, Any] = {name: np.int32(value) for name, value in SHAPE.items()} if first else SHAPE
    with Exchange(comm, **shape) as exchange:
        assert all(type(getattr(exchange, name)) is int for name in SHAPE)
        one_exchange(comm, exchange, tokens(CFG, 9, seed=world), routing(CFG, 9, "some", seed=world), 5)


def test_a_configuration_of_numpy_scalars_looks_plain():
    """A configuration keeps Python's own types: ranks compare configurations as text."""
    router = aristos.Router(np.str_("softmax_topk"), np.False_, np.float16(2))
    given = aristos.MoEConfig(
        np.int8(40),
        np.uint64(72),
        np.int64(5),
        activation=np.str_("silu"),
        gated=np.True_,
        bias=np.False_,
        dtype=np.str_("float32"),
        router=router,
    )
    plain = aristos.MoEConfig(
        40, 72, 5, activation="silu", gated=True, router=aristos.Router("softmax_topk", False, 2.0)
    )
    assert (repr(given), given) == (repr(plain), plain)
    for scale in (10**400, np.longdouble("1e4000"), 1j, np.array(1.0)):
        with pytest.raises(InputError, match="scale must be a finite number within the range of float32"):
            aristos.Router(scale=scale)
    with pytest.raises(InputError, match=r"hidden must be a positive int below 2\*\*40, got 1099511627776"):
        aristos.MoEConfig(1 << 40, 1, 1)


def test_memory_takes_numpy_scalars_and_refuses_a_layer_that_cannot_be_made():
    wanted = aristos.MoE.memory(CFG, 2, ranks_per_node=1, layers=3)
    assert aristos.MoE.memory(CFG, np.int64(2), ranks_per_node=np.int64(1), layers=np.int64(3)) == wanted
    with_scratch = [aristos.MoE.memory(CFG, 2, ranks_per_node=1, layers=3, threads=n) - wanted for n in (1, 2, 3)]
    assert 0 < with_scratch[0] < with_scratch[1] < with_scratch[2]
    assert with_scratch[1] - with_scratch[0] == with_scratch[2] - with_scratch[1]
    for world in (0, 1.0, True, None):
        with pytest.raises(InputError, match=f"world must be a positive int of at most .*, got {world}"):
            aristos.MoE.memory(CFG, world)
    with pytest.raises(InputError, match="world must be a positive int of at most 1048576, got 1000000000"):
        aristos.MoE.memory(CFG, 10**9)
    with pytest.raises(InputError, match="experts must be a positive int of at most 1048576, got 1000000000"):
        aristos.MoEConfig(hidden=40, ffn=72, experts=10**9)
    tensor = aristos.MoEConfig(hidden=40, ffn=72, experts=5, dtype="tf32")
    with pytest.raises(
        InputError, match="dtype must be one of float32, bfloat16, float16 with backend='cpu', got 'tf32'"
    ):
        aristos.MoE.memory(tensor, 2, backend="cpu")


def test_an_exchange_has_no_more_choices_than_experts():
    with pytest.raises(InputError, match=r"top_k must be at most experts \(5\), got 6"):
        Exchange(**SHAPE | {"top_k": 6})


@pytest.mark.parametrize(
    "ranks",
    [[0, [0, 1]], [np.array(0), np.array([0, 1])], np.array([0, [0, 1]], object), (0, (0, 1))],
    ids=["lists", "arrays", "an array of objects", "tuples"],
)
def test_copies_in_a_placement(ranks):
    assert str(Placement(ranks, 2, 2)) == "[[0], [0, 1]]"


def test_copies_in_rows_of_an_array():
    places = Placement(np.array([[0, 1], [1, 2]]), np.int64(2), np.int64(3))
    assert (places.copies, places.held) == ([[0, 1], [1, 2]], [1, 2, 1])
    assert places.mine(np.int64(1)) == [0, 1]


def test_wrong_placements_are_refused():
    for ranks, experts, world, words in (
        (None, 0, 1, "experts must be a positive int"),
        (None, 2, 0, "world must be a positive int"),
        (np.array(0), 1, 1, r"placement must be 1 integers .*got shape \[\]"),
        (np.zeros((2, 0), int), 2, 2, r"placement\[0\] must be a rank in 0\.\.1 or a list of them"),
        ([[0], [0.5]], 2, 2, r"placement\[1\] must be a rank in 0\.\.1 or a list of them, got \[0\.5\]"),
        ([[[0], [0, 1]], 1], 2, 2, r"placement\[0\] must be a rank"),
        (np.array([[0, 0], [0, 1]]), 2, 2, r"placement\[0\] must name each rank once at most"),
    ):
        with pytest.raises(InputError, match=words):
            Placement(ranks, experts, world)
    for rank in (-1, 2, True, 0.0):
        with pytest.raises(InputError, match=rf"rank must be an int in 0\.\.1, got {rank}"):
            Placement(None, 4, 2).mine(rank)  # type: ignore[arg-type]


def test_a_shape_keeps_zeros_that_the_user_gave():
    """Zero is refused; it does not stand for the preset's number."""
    for name in ("hidden", "ffn", "experts", "top_k", "scale"):
        with pytest.raises(InputError, match=f"{name} must be a positive int"):
            models.shape("c", 2, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tokens must have at least one number"):
        models.shape("c", 2, tokens=())
    with pytest.raises(InputError, match=r"name must be one of a, b, .*, got 'z'"):
        models.shape("z", 2)


# ---- arrays


def between(array: np.ndarray) -> np.ndarray:
    """A copy whose elements are not aligned."""
    copy = np.ndarray(array.shape, array.dtype, bytearray(array.nbytes + 8), offset=1)
    copy[...] = array
    return copy


def strided(array: np.ndarray) -> np.ndarray:
    """A copy with other elements between its own, in every dimension."""
    wide = np.full([2 * n for n in array.shape], 77, array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "reversed": lambda a: a[::-1].copy()[::-1],
    "backwards": lambda a: np.flip(np.flip(a).copy()),
    "Fortran": np.asfortranarray,
    "strided": strided,
    "between": between,
    "read-only": read_only,
    "a column of an array": lambda a: np.stack([a, a], axis=-1)[..., 0],
}


@pytest.mark.parametrize("schedule", ["fused", "bulk"])
@pytest.mark.parametrize("name", VIEWS)
def test_any_view_gives_the_same_bits(name, schedule):
    """Tokens, ids, combine weights and every array of `load` are passed as views."""
    change = VIEWS[name]
    x, call = tokens(CFG, 20, seed=0), routing(CFG, 20, "some", seed=1)
    with MoE(CFG, schedule=schedule) as moe:
        moe.load(**W)
        routed, given = moe(x), moe(x, **call)
        moe.load(**{key: change(value) for key, value in W.items()})
        assert same(moe(change(x)), routed)
        assert same(moe(change(x), **{key: change(value) for key, value in call.items()}), given)
        ids, weights = call["ids"].astype(">i2"), call["weights"].astype("f8")
        assert same(moe.start(change(x), change(ids), change(weights)).wait(), given)


@pytest.mark.parametrize("name", VIEWS)
def test_an_exchange_takes_any_view(name):
    change = VIEWS[name]
    x, call = tokens(CFG, 20, seed=0), routing(CFG, 20, "some", seed=1)
    with Exchange(**SHAPE) as exchange:
        rows, handle = exchange.dispatch(x, call["ids"])
        wanted = exchange.combine(rows, handle, call["weights"])
        again, handle = exchange.dispatch(change(x), change(call["ids"]))
        assert same(again, rows)
        assert same(exchange.combine(change(again), handle, change(call["weights"])), wanted)


def test_repeated_rows_and_no_rows():
    x = np.broadcast_to(tokens(CFG, 1, seed=0), (20, 40))
    with MoE(CFG) as moe:
        moe.load(**W)
        y = moe(x)
        assert same(y, moe(x.copy()))
        assert (y == y[0]).all()
        for shape in ((0, 40), (3, 0, 40), (0, 3, 40)):
            assert moe(np.zeros(shape, np.float32)).shape == shape
            ids, weights = np.zeros((*shape[:-1], 2), int), np.zeros((*shape[:-1], 2), np.float32)
            assert moe(np.zeros(shape, np.float32), ids, weights).shape == shape
        assert moe(x[0]).shape == (40,)


def test_the_text_of_a_layer_says_what_it_is():
    with MoE(CFG, threads=1, layers=2) as moe:
        text = "H 40 F 72 E 5 k 2 float32, rank 0 of 1, cpu, fused, 1 worker"
        assert repr(moe) == f"<MoE {text}, 0 of 2 layers have weights>"
        moe.load(1, **W)
        assert repr(moe) == f"<MoE {text}, 1 of 2 layers have weights>"
    assert repr(moe) == "<MoE, closed>"
    with MoE(CFG, threads=1, train=True) as moe:
        assert repr(moe) == f"<MoE {text}, train, 0 of 1 layers have weights>"


def test_weights_of_choices_not_taken_may_be_anything():
    """Layers and exchanges ignore these weights. A choice that is taken must have a finite weight."""
    x, ids = tokens(CFG, 3, seed=0), np.array([[0, -1], [1, 2], [-1, -1]])
    weights = np.array([[1, np.nan], [2, 3], [np.inf, np.nan]], np.float32)
    clean = np.where(ids >= 0, weights, 0)
    wrong = np.where(ids == 2, np.inf, clean)
    words = r"weights must be finite, got \[2\.0, inf\] at token 1"
    with MoE(CFG) as moe, Exchange(**SHAPE) as exchange:
        moe.load(**W)
        assert same(moe(x, ids, weights), moe(x, ids, clean))
        with pytest.raises(InputError, match=words):
            moe(x, ids, wrong)
        for given in (weights, clean):
            chosen = ids.copy()
            rows, handle = exchange.dispatch(x, chosen)
            chosen[:] = 0  # changes nothing: the call has read the ids
            y = exchange.combine(rows, handle, given)
            assert reference.error(y, x * clean.sum(1, keepdims=True)) < 1e-6
        rows, handle = exchange.dispatch(x, ids)
        with pytest.raises(InputError, match=words):
            exchange.combine(rows, handle, wrong)


def test_an_expert_that_overflows_spoils_only_its_own_tokens():
    """Only the tokens that the expert computes become NaN or infinite."""
    up = W["up"].copy()
    up[3, :, 7], up[3, :, 8] = 3e38, -3e38
    ids, x = np.tile([[0], [3], [4]], (5, 1)), tokens(CFG, 15, seed=0)
    ids = np.concatenate([ids, np.full_like(ids, -1)], axis=1)
    with MoE(CFG) as moe:
        moe.load(**{**W, "up": up})
        y = moe(x, ids, np.ones((15, 2), np.float32))
    assert (~np.isfinite(y).all(axis=1) == (ids[:, 0] == 3)).all()
