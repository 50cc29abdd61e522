"""Layers that choose experts by a table of token ids, as DeepSeek-V4's first layers do."""

from __future__ import annotations

import itertools
import math

import cases
import numpy as np
import pytest
from model_files import OLMOE, E, F, H, arrays, olmoe, write

import aristos
from aristos.errors import CheckpointError, InputError


def hashed(table):
    """(config, tensors) of a layer of DeepSeek-V4's shape that chooses by a table of token ids."""
    config = {
        "model_type": "deepseek_v4",
        "hidden_size": H,
        "moe_intermediate_size": F,
        "n_routed_experts": E,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
        "n_shared_experts": 0,
        "mlp_layer_types": ["hash_moe"],
    }
    p = "layers.0.ffn."
    tensors = {p + "gate.weight": arrays(E, H), p + "gate.tid2eid": table}
    for e, (array, shape) in itertools.product(range(E), (("w1", (F, H)), ("w3", (F, H)), ("w2", (H, F)))):
        tensors[f"{p}experts.{e}.{array}.weight"] = 0.3 * arrays(*shape) + e / 10
    return config, tensors


def test_a_layer_that_chooses_by_a_table_of_token_ids(tmp_path):
    table = np.array([[0, 1], [4, 2], [3, 0]])
    checkpoint = aristos.Checkpoint(write(tmp_path, *hashed(table)))
    assert checkpoint.problem(0) == ""
    assert "Checkpoint.route" in checkpoint.note(0)
    x, tokens = arrays(4, H), np.array([2, 0, 1, 1])
    ids, weights = checkpoint.route(0, x, tokens)
    assert ids.tolist() == table[tokens].tolist()
    for row, chosen, got in zip(x, ids, weights):
        scores = [math.sqrt(math.log1p(math.exp(float(row @ arrays(E, H)[e])))) for e in chosen]
        assert got.tolist() == pytest.approx([1.5 * v / sum(scores) for v in scores], rel=1e-5)
    with cases.MoE(checkpoint.config(max_tokens=4), threads=1) as moe:
        checkpoint.load(moe, layer=0, number=0)
        assert np.isfinite(moe(x, ids=ids, weights=weights)).all()
        with pytest.raises(InputError, match="router"):
            moe(x)
    for wrong, words in (
        ((x, np.array([0, 0, 0, 3])), r"tokens must be in 0\.\.2, got 0 to 3"),
        ((x, tokens[:3]), "tokens must be 4 token ids"),
        ((x, tokens / 2), "ints, one for each row of x, got float64"),
        ((x[:, 1:], tokens), r"x must have shape \[S, 24\]"),
        ((x.astype("f8"), tokens), "x must have dtype"),
    ):
        with pytest.raises(InputError, match=words):
            checkpoint.route(0, *wrong)
    for number in (1, True, [0]):
        with pytest.raises(InputError, match=r"number must be one of the model's MoE layers"):
            checkpoint.route(number, x, tokens)
    with pytest.raises(InputError, match="needs a layer that chooses experts by a table, but layer 0 has a router"):
        aristos.Checkpoint(write(tmp_path / "olmoe", OLMOE, olmoe())).route(0, x, tokens)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (np.array([[0, 5]] * 3), r"gate\.tid2eid' must have experts in 0\.\.4, got 0 to 5"),
        (np.array([[0, 1, 2]] * 3), r"must have ints of shape \[token ids, 2\], got int64 \[3, 3\]"),
        (np.zeros((3, 2), np.float32), "got float32"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, table, words):
    checkpoint = aristos.Checkpoint(write(tmp_path, *hashed(table)))
    with pytest.raises(CheckpointError, match=words):
        checkpoint.route(0, arrays(2, H), np.array([0, 1]))
