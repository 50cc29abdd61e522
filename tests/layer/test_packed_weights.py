"""Layers of packed weights: results against float64 of the dequantised weights, equal bits, memory, and refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from cases import MoE, same, tokens
from rounded import numpy_dtype

import aristos
from aristos import packed, quantise, reference
from aristos.errors import InputError, MismatchError
from aristos.layer.weights import packed_bytes
from aristos.weight_types import FORMATS, PACKED_ROWS

CFG = aristos.MoEConfig(
    hidden=128, ffn=256, experts=5, top_k=2, activation="silu", gated=True, bias=True, max_tokens=70
)
MATRICES = ("up", "gate", "down")


def layer(name: str, dtype: str = "float32", **changes):
    """(a configuration, its weights as codes, the same weights dequantised)."""
    kind = packed(name, zeros=FORMATS[name].zeros)
    cfg = replace(CFG, dtype=dtype, weight_dtype=kind, **changes)
    w = reference.weights(replace(cfg, dtype="float32", weight_dtype=None))
    codes = {n: [quantise(one, kind) for one in w[n]] for n in MATRICES}
    wide = w | {n: np.stack([one.dequantised() for one in codes[n]]) for n in MATRICES}
    return cfg, w | codes, wide


def check(cfg, wide, x, y):
    assert y.dtype == x.dtype
    plain = replace(cfg, dtype="float32", weight_dtype=None)
    want = reference.moe(plain, x.astype("f8"), **{n: v.astype("f8") for n, v in wide.items()})
    most = 1e-5 if cfg.dtype == "float32" else 8 * 2.0**-8
    assert np.abs(y.astype("f8") - want).max() <= most * np.abs(want).max()


def rows(cfg, count, seed=0):
    return tokens(replace(cfg, dtype="float32", weight_dtype=None), count, seed).astype(numpy_dtype(cfg.dtype))


QUICK = ("int4", "bfloat16")  # tests/kernels/test_packed.py tests experts with float32
KINDS = [
    pytest.param(*kind, marks=[] if kind == QUICK else pytest.mark.slow, id="-".join(kind))
    for kind in product(FORMATS, PACKED_ROWS)
]


@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_a_layer_alone(name, dtype):
    cfg, w, wide = layer(name, dtype)
    x = rows(cfg, 60)
    with MoE(cfg, backend="cpu", threads=1) as moe:
        moe.load(0, **w)
        y = moe(x)
        check(cfg, wide, x, y)
        alone = np.concatenate([moe(x[i : i + 1]) for i in range(len(x))])
    assert same(alone, y)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("moves", ["tokens", "experts", "auto"])
@pytest.mark.parametrize("placement", [None, [0, [0, 1], 1, [0, 1], 0]], ids=["", "copies"])
def test_several_ranks_give_the_bits_of_one_rank(comm, moves, placement):
    """Other weights are loaded before these. An object with plain weights is open at the same time."""
    cfg, w, wide = layer("int4", "bfloat16")
    plain = replace(cfg, dtype="float32", weight_dtype=None)
    x, reversed_experts = rows(cfg, 50, comm.rank), w | {n: w[n][::-1] for n in MATRICES}
    with (
        MoE(cfg, comm, backend="cpu", threads=1, moves=moves, placement=placement) as moe,
        MoE(plain, comm, backend="cpu", threads=1, moves=moves, placement=placement) as other,
    ):
        for each in (reversed_experts, w):
            moe.load(0, **each)
            other.load(0, **reference.weights(plain))
        assert moe.packed_weights(0).nbytes == packed_bytes(cfg, len(moe.placement.mine(comm.rank)))
        y = moe(x)
    check(cfg, wide, x, y)
    with MoE(cfg, backend="cpu", threads=2) as moe:
        moe.load(0, **w)
        assert same(moe(x), y)


def test_plain_arrays_become_the_nearest_codes():
    cfg, w, _ = layer("int4")
    kind = cfg.packed
    plain = reference.weights(replace(cfg, weight_dtype=None))
    x = rows(cfg, 30)
    with MoE(cfg, backend="cpu", threads=1) as moe:
        moe.load(0, **w)
        y = moe(x)
        moe.load(0, **plain)
        assert same(moe(x), y)
        turned = {n: v.swapaxes(-1, -2) if n in (*MATRICES, "router") else v for n, v in plain.items()}
        moe.load(0, **turned, layout="out_in")
        assert same(moe(x), y)
        for e in range(cfg.experts):
            biases = {n: w[n][e] for n in w if n in ("up_bias", "gate_bias", "down_bias")}
            moe.load_expert(0, e, **{n: quantise(plain[n][e], kind) for n in MATRICES}, **biases)
        assert same(moe(x), y)


def test_memory_has_the_bytes_of_the_codes():
    cfg, w, _ = layer("int4", "bfloat16", bias=False, hidden=1024, ffn=512)
    files = sum(one.nbytes for n in MATRICES for one in w[n])
    router = packed_bytes(cfg, 0)
    assert packed_bytes(cfg, cfg.experts) - router <= 1.02 * files
    assert packed_bytes(cfg, 5) < packed_bytes(replace(cfg, weight_dtype=None), 5) / 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_dtype": "int3"}, "weight_dtype must be one of fp8, int8, int4, mxfp4, got 'int3'"),
        ({"weight_dtype": "int4", "hidden": 96}, "hidden must be a multiple of 128, the group of int4, got 96"),
        ({"weight_dtype": "int8", "dtype": "float16"}, "requires rows of float32 or bfloat16, got dtype='float16'"),
        ({"weight_dtype": "int8", "precision": "high"}, "requires precision='highest', got 'high'"),
    ],
)
def test_a_configuration_that_packed_weights_cannot_have_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CFG, **changes)


def test_training_refuses_packed_weights():
    cfg = replace(CFG, weight_dtype="fp8")
    with pytest.raises(InputError, match="train=True requires plain weights, got weight_dtype='fp8'"):
        MoE(cfg, backend="cpu", train=True)


def test_codes_of_another_type_are_refused():
    cfg, w, _ = layer("int4")
    other = packed("int4", group=32)
    with MoE(cfg, backend="cpu", threads=1) as moe:
        wrong = w | {"up": [quantise(np.ones((128, 256), np.float32), other)] * 5}
        with pytest.raises(
            InputError, match=r"up\[0\] must have shape \[128, 256\] and type int4 with a float32 scale for 128 rows"
        ):
            moe.load(0, **wrong)
        with pytest.raises(InputError, match=r"up\[0\] must have shape \[128, 256\]"):
            moe.load(0, **w | {"up": [quantise(np.ones((256, 128), np.float32), cfg.packed)] * 5})
    plain = MoE(replace(cfg, weight_dtype=None), backend="cpu", threads=1)
    with plain as moe, pytest.raises(InputError, match="and type plain float32, as the configuration says"):
        moe.load(0, **w)


@pytest.mark.ranks(2)
def test_ranks_with_different_types_all_raise(comm):
    with pytest.raises(MismatchError, match=r"weight_dtype\.name: rank 0 has 'int4', rank 1 has 'int8'"):
        MoE(replace(CFG, weight_dtype=("int4", "int8")[comm.rank]), comm, backend="cpu")
