"""The table of published models, and the commands `aristos models` and `aristos inspect`."""

from __future__ import annotations

import json
import re

import cases
import ml_dtypes
import numpy as np
import packed_files
import pytest
from model_files import OLMOE, olmoe, write

import aristos
from aristos import models
from aristos.checkpoint.recipe import FAMILIES
from aristos.cli import __main__ as command
from aristos.config import Router
from aristos.errors import CheckpointError, InputError


def test_every_model_has_a_source_and_a_recipe_that_exists():
    assert len(models.MODELS) >= 56
    for name, m in models.MODELS.items():
        assert m.source, name
        assert not m.family or m.family in FAMILIES, name
        assert m.lacking or not m.outside, name
        assert m.layers >= m.moe_layers, name
        assert m.moe_layers == m.layers or m.dense_ffn or name == "minimax-m3", name


@pytest.mark.parametrize("name", [name for name, m in models.MODELS.items() if m.buildable])
def test_every_model_can_be_made_at_reduced_width(name):
    cfg = models.reduced(name, 64, max_tokens=8)
    assert cfg.hidden == models.MODELS[name].hidden // 64
    assert cfg.router == Router(**models.MODELS[name].router)


def test_what_cannot_be_made_says_why():
    with pytest.raises(InputError, match="got switchhead: its experts are single matrices"):
        models.reduced("switchhead")
    with pytest.raises(InputError, match="name must be one of"):
        models.reduced("quokka")


def test_presets_have_the_values_of_the_table():
    for name, preset in models.PRESETS.items():
        if len(name) > 1:
            m = models.MODELS[name]
            assert (preset.hidden, preset.ffn, preset.experts, preset.top_k) == (m.hidden, m.ffn, m.experts, m.top_k)
            assert preset.router == Router(**m.router)


def test_models_are_listed(capsys):
    assert command.main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in models.MODELS)
    assert "its experts are single matrices" in out
    assert max(map(len, out.splitlines())) <= 120
    assert command.main(["models", "deepseek-v3", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)["deepseek-v3"]
    assert (one["experts"], one["router"]["groups"], one["runs"]) == (256, 8, "runs")
    with pytest.raises(SystemExit, match="2"):
        command.main(["models", "mixtral-8x7"])
    assert "similar: mixtral-8x7b" in capsys.readouterr().err


def test_the_page_names_every_recipe():
    page = (cases.ROOT / "docs" / "models.md").read_text()
    assert [name for name in FAMILIES if f"`{name}`" not in page] == []
    counted = re.search(r"recipes for (\d+) values", (cases.ROOT / "CHANGELOG.md").read_text())
    assert counted is not None
    assert int(counted[1]) == len(FAMILIES)


def test_the_page_s_lines_run(tmp_path, monkeypatch):
    lines = re.findall(r"```python\n(.*?)```", (cases.ROOT / "docs" / "models.md").read_text(), re.S)[0]
    write(tmp_path / re.search(r'Checkpoint\("(.*?)"', lines)[1], OLMOE, olmoe())
    monkeypatch.chdir(tmp_path)
    found = {"aristos": aristos, "comm": None, "x": np.ones((3, OLMOE["hidden_size"]), ml_dtypes.bfloat16)}
    exec(lines, found)
    assert found["y"].shape == (3, OLMOE["hidden_size"])


def test_inspect_reports_layers_recipe_and_bytes(tmp_path, capsys):
    write(tmp_path, OLMOE, olmoe(), shards=2)
    assert command.main(["inspect", str(tmp_path), "--ranks", "1", "2", "--tokens", "16", "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    assert "olmoe, 2 MoE layers" in out
    layer = "hidden=24, ffn=20, experts=5, top_k=2, activation='silu', gated=True, max_tokens=16"
    assert f"layers 0-1: MoEConfig({layer})" in " ".join(out.split()), "fields with their defaults are left out"
    assert max(map(len, (line for line in out.splitlines() if str(tmp_path) not in line))) <= 120
    assert repr(aristos.Checkpoint(tmp_path)) == f"<Checkpoint {tmp_path}: olmoe>"
    assert (
        command.main(["inspect", str(tmp_path), "--ranks", "1", "2", "--tokens", "16", "--dtype", "float32", "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    cfg = models.MoEConfig(24, 20, 5, 2, "silu", True, max_tokens=16)
    for world in (1, 2):
        assert found["bytes"][str(world)] == cases.MoE.memory(cfg, world, layers=2)


def test_inspect_says_bytes_packed_and_expanded(tmp_path, capsys):
    config, tensors, _ = packed_files.olmoe(packed_files.CASES["awq"])
    write(tmp_path, config, tensors)
    words = ["inspect", str(tmp_path), "--ranks", "1", "--tokens", "16"]
    assert command.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["weights"]
    assert found["expanded"] == 2 * 3 * 128 * 64 * 2
    assert found["packed"] == 2 * 3 * (128 * 64 // 2 + 128 * 64 // 32 * 2 + 128 * 64 // 32 // 2)
    cfg = aristos.Checkpoint(tmp_path).config(max_tokens=16, dtype="bfloat16", weight_dtype="file")
    assert found["bytes"]["1"] == cases.MoE.memory(cfg, 1)
    assert command.main(words) == 0
    out = capsys.readouterr().out
    assert "layers 0: experts of int4 with a float16 scale for 32 rows and zero points" in out
    assert "GiB of all experts' matrices: 0.000 as in the files, 0.000 expanded to bfloat16" in out
    assert command.main([*words, "--dtype", "float16"]) == 0  # packed weights have no rows of float16
    assert "  packed" not in capsys.readouterr().out


def test_the_command_models_with_a_folder_inspects_the_folder(tmp_path, capsys):
    write(tmp_path, OLMOE, olmoe())
    assert command.main(["models", str(tmp_path)]) == 0
    found = capsys.readouterr().out
    assert command.main(["inspect", str(tmp_path)]) == 0
    assert capsys.readouterr().out == found
    assert command.main(["models", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"]


def test_inspect_names_what_is_not_supported(tmp_path, capsys):
    tensors = olmoe()
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    write(tmp_path, OLMOE, tensors)
    assert command.main(["inspect", str(tmp_path)]) == 1
    assert "layers 1: NOT SUPPORTED:" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps({**OLMOE, "model_type": "quokka"}))
    assert command.main(["inspect", str(tmp_path)]) == 2
    assert "'quokka' is not known" in capsys.readouterr().err


SWITCH = {
    "model_type": "switch_transformers",
    "d_model": 8,
    "d_ff": 4,
    "num_experts": 2,
    "expert_capacity": 4,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2,
}


def switch_layer(name: str) -> dict[str, np.ndarray]:
    found = {f"{name}mlp.router.classifier.weight": np.ones((2, 8), np.float32)}
    for e in range(2):
        found[f"{name}mlp.experts.expert_{e}.wi.weight"] = np.ones((4, 8), np.float32)
        found[f"{name}mlp.experts.expert_{e}.wo.weight"] = np.ones((8, 4), np.float32)
    return found


def test_layers_are_those_that_have_tensors(tmp_path, capsys):
    """A directory has only the encoder of an encoder-decoder model.

    Layers that config.json promises but the files lack are named.
    """
    there = switch_layer("encoder.block.1.layer.1.") | switch_layer("encoder.block.3.layer.1.")
    encoder = aristos.Checkpoint(write(tmp_path / "encoder", SWITCH, there))
    assert (encoder.layers, encoder.missing) == ((1, 3), (5, 7))
    assert len(encoder.configs()) == 2
    for number in encoder.layers:
        encoder.check(number)
    with pytest.raises(
        CheckpointError, match=r"layer 5 of model_type switch_transformers must have .* is the download comple"
    ):
        encoder.check(5)
    assert command.main(["inspect", str(tmp_path / "encoder")]) == 1
    out = capsys.readouterr().out
    assert "2 MoE layers" in out
    assert "layers 5 7: MISSING: config.json names these layers" in out
    there |= switch_layer("decoder.block.1.layer.2.") | switch_layer("decoder.block.3.layer.2.")
    whole = aristos.Checkpoint(write(tmp_path / "whole", SWITCH, there))
    assert (whole.layers, whole.missing) == ((1, 3, 5, 7), ())
    (tmp_path / "whole" / "model.safetensors").unlink()
    assert aristos.Checkpoint(tmp_path / "whole").layers == (1, 3, 5, 7)  # from config.json alone


@pytest.mark.parametrize("name", ["deepseek-v3", "gpt-oss-20b", "phi-3.5-moe", "longcat-flash", "llama-4-scout"])
def test_a_reduced_model_runs(name):
    """A call with random weights gives finite numbers. tests/layer and `make test-hf` check their values."""
    cfg = models.reduced(name, 128, max_tokens=4)
    rng = np.random.default_rng(2)
    shapes = {"up": (cfg.hidden, cfg.ffn), "gate": (cfg.hidden, cfg.ffn), "down": (cfg.ffn, cfg.hidden)}
    one = {key: rng.standard_normal(shape, dtype=np.float32) for key, shape in shapes.items()}
    beside = {
        key: np.resize(array, [cfg.shared_ffn if n == cfg.ffn else n for n in array.shape])
        for key, array in one.items()
    }
    with cases.MoE(cfg, threads=1) as moe:
        for e in range(cfg.experts):
            moe.load_expert(0, e, **one)
        if cfg.shared_ffn:
            moe.load_shared(0, **beside)
        moe.load_router(0, router=rng.standard_normal((cfg.hidden, cfg.columns), dtype=np.float32))
        assert np.isfinite(moe(cases.tokens(cfg, 4, 1))).all()
