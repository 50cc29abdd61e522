"""Checkpoint: what a directory contains, tensors that must fit config.json, and what a layer gets."""

from __future__ import annotations

import json
import tracemalloc

import cases
import numpy as np
import pytest
from model_files import OLMOE, E, F, H, arrays, fused_fp8, olmoe, stacked, write

import aristos
from aristos.errors import CheckpointError, InputError, MismatchError, PeerInputError


def test_a_directory_gives_its_layers_and_configuration(tmp_path):
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, olmoe(), shards=3))
    assert checkpoint.model_type == "olmoe"
    assert checkpoint.layers == (0, 1)
    cfg = checkpoint.config(max_tokens=8, dtype="bfloat16")
    assert (cfg.hidden, cfg.ffn, cfg.experts, cfg.top_k, cfg.gated, cfg.activation) == (H, F, E, 2, True, "silu")
    assert (cfg.dtype, cfg.max_tokens, cfg.router) == ("bfloat16", 8, aristos.Router(renormalize=True))
    assert checkpoint.configs(max_tokens=8, dtype="bfloat16") == [cfg, cfg]
    assert checkpoint.options["rope_theta"] == 10000.0
    assert checkpoint.has("model.embed_tokens.weight")
    assert not checkpoint.has("lm_head.weight")
    assert np.array_equal(checkpoint.tensor("model.embed_tokens.weight"), olmoe()["model.embed_tokens.weight"])
    got = checkpoint.arrays(1, 3)
    assert np.array_equal(got["down"], olmoe()["model.layers.1.mlp.experts.3.down_proj.weight"])


def test_nothing_but_the_options_is_read_at_first(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OLMOE))
    checkpoint = aristos.Checkpoint(tmp_path)  # no tensors at all
    assert checkpoint.config().experts == E
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors"):
        checkpoint.check(0)


def test_a_shared_expert_that_config_json_does_not_name_is_refused(tmp_path):
    config = {
        "model_type": "granitemoeshared",
        "hidden_size": H,
        "intermediate_size": F,
        "num_local_experts": E,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
    }
    p = "model.layers.0."
    tensors = {
        p + "block_sparse_moe.input_linear.weight": arrays(E, 2 * F, H),
        p + "block_sparse_moe.output_linear.weight": arrays(E, H, F),
        p + "block_sparse_moe.router.layer.weight": arrays(E, H),
    }
    aristos.Checkpoint(write(tmp_path / "plain", config, tensors)).check(0)
    tensors[p + "shared_mlp.input_linear.weight"] = arrays(2 * F, H)
    with pytest.raises(CheckpointError, match=r"shared_mlp\.input_linear.* layer 0 has none: .* n_shared_exp"):
        aristos.Checkpoint(write(tmp_path / "shared", config, tensors)).check(0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.layers.1.mlp.experts.4.up_proj.weight"), "no tensor 'model.layers.1.mlp.experts.4.up"),
        (lambda t: t.pop("model.layers.1.mlp.gate.weight"), "model.layers.1.mlp.gate.weight"),
        (
            lambda t: t.update({"model.layers.1.mlp.experts.0.up_proj.weight": np.zeros((F, H + 1), np.float32)}),
            f"must have shape [{F}, {H}], as config.json says, got [{F}, {H + 1}]",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.experts.0.up_proj.bias": np.zeros(F, np.float32)}),
            "'model.layers.1.mlp.experts.0.up_proj.bias' is not known for model_type olmoe",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.gate.weight": np.zeros((E, H), np.int8)}),
            "has dtype I8 and no scales",
        ),
        (lambda t: t.update({"model.layers.1.mlp.gate.weight": np.zeros((E, H), np.uint8)}), "U8; weights must"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, change, words):
    tensors = olmoe()
    change(tensors)
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, tensors))
    checkpoint.check(0)
    with pytest.raises(CheckpointError) as error:
        checkpoint.check(1)
    assert words in str(error.value)


def test_numbers_of_layers_and_experts_are_checked(tmp_path):
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, olmoe()))
    for number in (2, -1, True, "1"):
        with pytest.raises(InputError, match=r"number must be one of the model's MoE layers"):
            checkpoint.check(number)
    with pytest.raises(InputError, match="expert must be an int"):
        checkpoint.arrays(0, E)


# ---- loading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loaded_layer_computes_the_model(tmp_path, dtype):
    tensors = olmoe(dtype)
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, tensors, shards=2))
    cfg = checkpoint.config(max_tokens=16)
    x = cases.tokens(cfg, 16, 1)
    with cases.MoE(cfg, layers=2, threads=1) as moe:
        for layer, number in enumerate(checkpoint.layers):
            checkpoint.load(moe, layer=layer, number=number)
        for layer, number in enumerate(checkpoint.layers):
            cases.check(cfg, stacked(tensors, number, E), x, {}, moe(x, layer=layer))


def test_a_layer_of_another_configuration_is_refused(tmp_path):
    checkpoint = aristos.Checkpoint(write(tmp_path, OLMOE, olmoe()))
    with cases.MoE(aristos.MoEConfig(H, F, E, 1, "silu", True), threads=1) as moe:
        with pytest.raises(CheckpointError, match=r"does not fit layer 0 .*top_k 1 and 2"):
            checkpoint.load(moe, layer=0, number=0)
        with pytest.raises(InputError, match=r"no weights|missing|lacks"):
            moe(cases.tokens(moe.cfg, 2, 1))


def test_a_bias_that_is_not_finite_is_refused_by_file_and_tensor(tmp_path):
    config = {
        "model_type": "minimax_m2",
        "hidden_size": H,
        "intermediate_size": F,
        "num_local_experts": E,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
    }
    p = "model.layers.0.block_sparse_moe."
    tensors = {
        p + "experts.gate_up_proj": arrays(E, 2 * F, H),
        p + "experts.down_proj": arrays(E, H, F),
        p + "gate.weight": arrays(E, H),
        p + "e_score_correction_bias": arrays(E),
    }
    tensors[p + "e_score_correction_bias"][3] = np.nan
    checkpoint = aristos.Checkpoint(write(tmp_path, config, tensors))
    with (
        cases.MoE(checkpoint.config(max_tokens=4), threads=1) as moe,
        pytest.raises(
            CheckpointError, match=r"model\.safetensors: tensor '.*correction_bias' must be finite, got nan at 3"
        ),
    ):
        checkpoint.load(moe, layer=0, number=0)


@pytest.mark.parametrize("fp8", [False, True])
def test_a_load_keeps_one_expert_beside_the_packed_ones(tmp_path, fp8):
    config = {**OLMOE, "hidden_size": 256, "intermediate_size": 256, "num_experts": 16, "num_hidden_layers": 1}
    model = fused_fp8(256, 256, 16) if fp8 else (config, olmoe(config=config))
    checkpoint = aristos.Checkpoint(write(tmp_path, *model))
    cfg = checkpoint.config(max_tokens=4)
    one_expert = 3 * 4 * 256 * 256
    with cases.MoE(cfg, threads=1) as moe:
        checkpoint.load(moe, layer=0, number=0)  # this load imports modules and compiles
        tracemalloc.start()
        checkpoint.load(moe, layer=0, number=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        packed = moe.packed_weights(0).nbytes
    assert peak < packed + 2 * one_expert, (peak, packed, one_expert)


@pytest.mark.ranks(3, timeout=60)
def test_ranks_open_a_directory_or_refuse_it_together(comm, tmp_path):
    """The folder of one rank is damaged, as on a node with its own disk. The other ranks do not wait."""
    good = write(tmp_path / "good", OLMOE, olmoe())
    assert aristos.Checkpoint(good, comm).config(max_tokens=4).experts == E
    for text, words in (
        (None, "config.json cannot be read"),
        ("{", "config.json is not JSON"),
        (json.dumps({**OLMOE, "model_type": "quokka"}), "model_type 'quokka' is not known"),
    ):
        bad = tmp_path / "bad"
        bad.mkdir(exist_ok=True)
        if text is not None:
            (bad / "config.json").write_text(text)
        for broken in (1, 2):
            kind = CheckpointError if comm.rank == broken else PeerInputError
            with pytest.raises(kind, match=words) as error:
                aristos.Checkpoint(bad if comm.rank == broken else good, comm)
            assert "bad" in str(error.value)
            assert comm.rank == broken or f"rank {broken} cannot open its model directory" in str(error.value)
    other = write(tmp_path / "other", {**OLMOE, "norm_topk_prob": False}, olmoe())
    with pytest.raises(MismatchError, match=r"ranks 0 and 2 have different config\.json files"):
        aristos.Checkpoint(other if comm.rank == 2 else good, comm)
    with pytest.raises((InputError, PeerInputError), match="path must be the path of a model directory, got 3"):
        aristos.Checkpoint(3 if comm.rank == 0 else good, comm)


@pytest.mark.ranks(2)
def test_ranks_load_their_experts_and_refuse_together(comm):
    import shutil
    import tempfile
    from pathlib import Path

    folder = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None, 0))
    tensors = olmoe("bfloat16")
    if comm.rank == 0:
        write(folder, OLMOE, tensors, shards=3)
    comm.Barrier()
    try:
        checkpoint = aristos.Checkpoint(folder)
        cfg = checkpoint.config(max_tokens=8)
        x = cases.tokens(cfg, 5 + comm.rank, 3 + comm.rank)
        with cases.MoE(cfg, comm, threads=1) as moe:
            checkpoint.load(moe, layer=0, number=1)
            cases.check(cfg, stacked(tensors, 1, E), x, {}, moe(x))
            broken = aristos.Checkpoint(folder)
            broken._directory.where["model.layers.0.mlp.experts.0.up_proj.weight"] = "model.safetensors"
            if comm.rank == 1:
                broken = checkpoint
            with pytest.raises((CheckpointError, PeerInputError), match=r"model\.safetensors|rank 0 refused layer 0"):
                broken.load(moe, layer=0, number=0)
            with pytest.raises((InputError, PeerInputError), match=r"lacks expert|has not loaded expert"):
                moe(x)  # rank 0 still has layer 1's experts, rank 1 has those of layer 0
            checkpoint.load(moe, layer=0, number=0)
            cases.check(cfg, stacked(tensors, 0, E), x, {}, moe(x))
            if comm.rank == 1:  # an unexpected error
                checkpoint._checked = lambda number: 1 // 0
            with pytest.raises((ZeroDivisionError, PeerInputError), match=r"integer.*by zero"):
                checkpoint.load(moe, layer=0, number=0)
    finally:
        comm.Barrier()
        if comm.rank == 0:
            shutil.rmtree(folder)
