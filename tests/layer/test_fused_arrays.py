"""`load` takes gate and up in one array, as model files and other engines store them."""

from __future__ import annotations

import numpy as np
import pytest
from cases import MoE, same, tokens

import aristos
from aristos import quantise, reference
from aristos.errors import InputError

CFG = aristos.MoEConfig(hidden=24, ffn=40, experts=4, top_k=2, activation="silu", gated=True, bias=True, max_tokens=9)
W = reference.weights(CFG)
REST = {name: array for name, array in W.items() if name not in ("gate", "up", "gate_bias", "up_bias")}


def joined(name: str, axis: int, interleaved: bool) -> np.ndarray:
    """The arrays `gate` and `up` in one array."""
    gate, up = W[f"gate{name}"], W[f"up{name}"]
    if interleaved:
        shape = list(gate.shape)
        shape[axis] *= 2
        return np.stack([gate, up], axis=axis + 1).reshape(shape)
    return np.concatenate([gate, up], axis=axis)


def loaded(**weights) -> np.ndarray:
    with MoE(CFG, threads=1) as moe:
        moe.load(0, **weights)
        return np.array(moe(tokens(CFG, 9, 0)))


@pytest.mark.parametrize("interleaved", [False, True])
def test_gate_and_up_in_one_array(interleaved):
    want = loaded(**W)
    bias = joined("_bias", 1, interleaved)
    fused = joined("", 2, interleaved)
    assert same(loaded(gate_up=fused, gate_up_bias=bias, interleaved=interleaved, **REST), want)
    assert same(loaded(gate_up=list(fused), gate_up_bias=list(bias), interleaved=interleaved, **REST), want)
    turned = {
        name: array.swapaxes(-1, -2) if array.ndim > 1 and "bias" not in name else array for name, array in REST.items()
    }
    out_in = {"gate_up_bias": bias, "interleaved": interleaved, "layout": "out_in"}
    assert same(loaded(gate_up=fused.swapaxes(1, 2), **out_in, **turned), want)
    down = turned.pop("down")
    assert same(loaded(w13=fused.swapaxes(1, 2), w2=down, **out_in, **turned), want)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"w13": joined("", 2, False)}, "need layout='out_in', .* got layout='in_out'"),
        ({"gate_up": joined("", 2, False), "up": W["up"]}, "load got up= and also gate_up=, which contains up"),
        ({"gate_up": joined("", 2, False)[0]}, r"gate_up must have 3 dimensions, .* got \[24, 80\]"),
        ({"gate_up": W["gate"][..., :39]}, r"dimension 2 must be 2 \* ffn, got \[4, 24, 39\]"),
        ({"gate_up": W["gate"], "gate_up_bias": joined("_bias", 1, False)}, r"gate must have shape \[4, 24, 40\], got"),
        ({"gate": W["gate"], "up": W["up"], "interleaved": True}, "interleaved=True applies only to gate_up= and w13="),
        ({"gate_up": joined("", 2, False), "interleaved": 1}, "interleaved must be True or False"),
        ({"gate_up": [quantise(W["gate"][0], aristos.packed("int8"))] * 4}, "must be an array, got packed"),
    ],
)
def test_arrays_that_cannot_be_parted_are_refused(weights, message):
    with MoE(CFG, threads=1) as moe, pytest.raises(InputError, match=message):
        moe.load(0, **REST, **weights)
