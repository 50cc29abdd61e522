"""Wrong options of an optimizer, set after it was made, are refused on all ranks before any weight changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import MoE, tokens

from aristos import MoEConfig, reference
from aristos.errors import InputError, PeerInputError
from aristos.train import SGD, Adam

CFG = MoEConfig(hidden=12, ffn=20, experts=4, top_k=2, max_tokens=16)
WRONG: list[tuple[str, Any]] = [
    *(("lr", value) for value in (float("nan"), float("inf"), -0.1, 1e300, None, "0.1")),
    *(("clip", value) for value in (float("nan"), float("inf"), -1.0, 0.0)),
    *(("weight_decay", value) for value in (float("nan"), -0.1)),
    *(("betas", value) for value in (0.9, (0.9, 1.0), (0.9, float("nan")))),
    *(("eps", value) for value in (0.0, float("nan"))),
]


def train(moe: MoE, optimizer: Any) -> None:
    x = tokens(CFG, 16, seed=0)
    moe.zero_grads()
    moe.backward(x, moe.forward(x)[1])
    optimizer.step()


def bits(moe: MoE, optimizer: Any) -> list[bytes]:
    arrays = [*moe.params().values(), *(a for states in optimizer.states[0].values() for a in states.values())]
    return [array.tobytes() for array in arrays]


def test_a_step_refuses_what_would_make_weights_that_are_not_finite():
    with MoE(CFG, threads=1, train=True) as moe:
        moe.load(**reference.weights(CFG))
        optimizer = Adam(moe, clip=1.0)
        train(moe, optimizer)
        before = bits(moe, optimizer)
        for name, value in WRONG:
            kept = getattr(optimizer, name)
            setattr(optimizer, name, value)
            with pytest.raises(InputError, match=f"{name} must be"):
                optimizer.step()
            setattr(optimizer, name, kept)
            with pytest.raises(InputError, match=f"{name} must be"):
                Adam(moe, **{name: value})
            assert (optimizer.steps, bits(moe, optimizer)) == (1, before)
        optimizer.lr, optimizer.clip = np.float32(0.5), None
        train(moe, optimizer)  # other values are accepted
        assert np.isfinite(moe.params()["up"]).all()
        descent = SGD(moe, 0.1)
        descent.momentum = 0.9
        with pytest.raises(InputError, match="momentum must stay 0 in an optimizer that was made with 0"):
            descent.step()


@pytest.mark.ranks(2)
def test_an_option_that_is_wrong_on_one_rank_is_refused_on_both(comm):
    with MoE(CFG, comm, threads=1, train=True) as moe:
        moe.load(**reference.weights(CFG))
        optimizer = Adam(moe)
        train(moe, optimizer)
        before = bits(moe, optimizer)
        if comm.rank:
            optimizer.lr = float("nan")
        kind = InputError if comm.rank else PeerInputError
        with pytest.raises(kind, match="lr must be a number of at least 0 and below 2\\*\\*127, got nan"):
            optimizer.step()
        assert (optimizer.steps, bits(moe, optimizer)) == (1, before)
        optimizer.lr = 1e-3
        train(moe, optimizer)
        assert bits(moe, optimizer) != before
