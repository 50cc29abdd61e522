"""A call whose arrays have the form of those of the call before skips some checks. It must behave as any other call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import MoE, check, routing, tokens

import aristos
from aristos import reference
from aristos.engine import words
from aristos.errors import InputError

CFG = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=70)
W = [reference.weights(CFG, seed=layer) for layer in range(2)]


@pytest.fixture
def moe():
    """An object of two layers, each of which has had a call of four tokens."""
    with MoE(CFG, layers=2) as made:
        for layer in range(2):
            made.load(layer, **W[layer])
            made(*call(0), layer=layer)
        yield made


def call(seed: int, count: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, ids and weights of a call."""
    given = routing(CFG, count, "some", seed=seed)
    return tokens(CFG, count, seed=seed), given["ids"], given["weights"]


def right(moe, arrays, layer=0):
    """Check that a call is right."""
    x, ids, weights = arrays
    check(CFG, W[layer], x, {"ids": ids, "weights": weights}, moe(x, ids, weights, layer=layer))


def test_other_arrays_of_the_same_form_in_turns_over_layers(moe):
    for seed in range(1, 6):
        right(moe, call(seed), layer=seed % 2)


def test_the_result_of_the_call_before_stays(moe):
    first = moe(*call(1))
    kept = first.copy()
    moe(*call(2))
    np.testing.assert_array_equal(first, kept)


def test_every_refusal_is_the_same_and_the_next_call_is_right(moe):
    x, ids, weights = call(1)
    for wrong, why in (
        ((x, np.full_like(ids, 9), weights), "must be in"),
        ((x, ids, np.full_like(weights, np.nan)), "finite"),
        ((x[:, :8], ids, weights), "must have shape"),
        ((x.astype(np.float64), ids, weights), "dtype"),
        ((x, ids[:3], weights), "ids must be"),
        ((x, ids, weights.astype(int)), "weights must be"),
        ((np.ma.masked_array(x), ids, weights), "masked"),
    ):
        right(moe, call(2))
        for _ in range(2):
            with pytest.raises(InputError, match=why):
                moe(*wrong)
        right(moe, call(3))


def test_arrays_elsewhere_in_memory_that_are_not_aligned(moe):
    x, ids, weights = call(1)
    shifted = np.frombuffer(bytearray(x.nbytes + 1), np.uint8)[1:].view(np.float32).reshape(x.shape)
    shifted[:] = x
    right(moe, (shifted, ids, weights))
    assert moe._backend._jobs.made[0][words.X] != shifted.ctypes.data, "kernels may read only aligned rows"
    right(moe, (x, ids, weights))


def test_an_output_of_the_caller(moe):
    x, ids, weights = call(1)
    out = np.empty_like(x)
    for seed in range(3):
        x, ids, weights = call(seed)
        assert moe(x, ids, weights, out=out) is out
        check(CFG, W[0], x, {"ids": ids, "weights": weights}, out)
    locked = out.copy()
    locked.flags.writeable = False
    for wrong, why in ((x, "overlap"), (out[:3], "shape"), (locked, "writable"), (out.astype(np.float64), "float32")):
        for _ in range(2):
            with pytest.raises(InputError, match=why):
                moe(x, ids, weights, out=wrong)
        moe(x, ids, weights, out=out)
    check(CFG, W[0], x, {"ids": ids, "weights": weights}, out)


def test_an_output_that_shares_rows_with_the_input(moe):
    x, ids, weights = call(1)
    room = np.zeros((7, CFG.hidden), np.float32)
    room[:4] = x
    moe(x, ids, weights, out=np.empty_like(x))
    for first in (0, 3):
        with pytest.raises(InputError, match="overlap"):
            moe(room[:4], ids, weights, out=room[first : first + 4])
    moe(x, ids, weights, out=np.empty_like(x))
    for rows in (room[3::-1], np.lib.stride_tricks.as_strided(room, (4, CFG.hidden), (0, 4))):
        moe(rows, ids, weights, out=np.empty_like(x))
        with pytest.raises(InputError, match="overlap"):
            moe(rows, ids, weights, out=room[:4])


def test_a_call_with_other_options_in_between(moe):
    right(moe, call(1))
    x, ids, weights = call(2)
    out = np.empty_like(x)
    _, found = moe(x, ids, weights, out=out, return_routing=True)
    check(CFG, W[0], x, {"ids": ids, "weights": weights}, out)
    np.testing.assert_array_equal(found.ids, ids)
    assert moe.start(x, ids, weights).wait() is not None
    right(moe, call(3))


def test_weights_loaded_in_between(moe):
    moe.load(0, **W[1])
    x, ids, weights = call(1)
    check(CFG, W[1], x, {"ids": ids, "weights": weights}, moe(x, ids, weights))
    moe.unload(0)
    with pytest.raises(InputError, match="lacks experts"):
        moe(x, ids, weights)


def test_larger_calls_in_between_make_larger_windows(moe):
    right(moe, call(1, 70))
    right(moe, call(2))
    with MoE(replace(CFG, max_tokens=200)) as other:
        other.load(0, **W[0])
        right(other, call(3, 200))
        right(moe, call(4))


@pytest.mark.parametrize("more", [{"shared_ffn": 16}, {"top_k": 1, "router": aristos.Router(weight_on="input")}])
def test_layers_that_write_their_routing_themselves(more):
    cfg = replace(CFG, **more)
    w = reference.weights(cfg)
    with MoE(cfg) as moe:
        moe.load(**w)
        for seed in range(3):
            given = routing(cfg, 4, "some", seed=seed)
            x, ids, weights = tokens(cfg, 4, seed=seed), given["ids"], given["weights"]
            check(cfg, w, x, {"ids": ids, "weights": weights}, moe(x, ids, weights))


def test_the_summary_counts_repeated_calls(moe):
    before = moe.summary()
    for seed in range(3):
        moe(*call(seed))
    after = moe.summary()
    assert after.calls == before.calls + 3
    taken = sum(int((call(seed)[1] >= 0).sum()) for seed in range(3))
    assert np.sum(after.expert_rows) == np.sum(before.expert_rows) + taken
