"""Experts modules and models of transformers with "aristos". Skipped without transformers (`make test-hf` has it)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from cases import PATIENCE
from hf_models import GENERATE, MODELS, MORE, experts_of, held_by_torch, on_ranks, opened, relative, small

from aristos import packed, quantise
from aristos.errors import CheckpointError, InputError, PoisonedError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", MODELS | MORE)
def test_logits_and_text_are_those_of_eager(ours, tmp_path, kind):
    folder = small(kind, tmp_path)
    theirs, model = opened(folder, "eager"), opened(folder, "aristos")
    ids = torch.randint(0, 128, (3, 15), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative(model(ids).logits, theirs(ids).logits) < 1e-5
        assert (model.generate(ids[:, :5], **GENERATE) == theirs.generate(ids[:, :5], **GENERATE)).all()
    assert held_by_torch(model) < 10_000  # biases; the layers have the matrices, and torch has freed its copies
    ours.close(model)


def test_a_model_without_experts_is_not_saved_or_called(ours, tmp_path):
    """After the first call torch no longer has the experts, and after `close` Aristos does not have them either."""
    folder = small("mixtral", tmp_path)
    model, ids = opened(folder, "aristos"), torch.zeros(1, 3, dtype=torch.int64)
    with torch.no_grad():
        model(ids)
    with pytest.raises(InputError, match="MixtralExperts: its experts are in Aristos's layer"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="does not train"):
        ours.whole_state_dict(model)
    ours.close(model)
    with torch.no_grad(), pytest.raises(InputError, match="were closed"):
        model(ids)


def test_generation_stops_as_its_own_file_says(ours, tmp_path):
    folder, ids = small("qwen3_moe", tmp_path), torch.zeros(1, 3, dtype=torch.int64)
    with torch.no_grad():
        text = opened(folder, "eager").generate(ids, **GENERATE)[0].tolist()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [text[4]], "do_sample": False}))
    asked = {"max_new_tokens": 6, "pad_token_id": 0}
    wanted = opened(folder, "eager").generate(ids, **asked)[0].tolist()
    model = ours.from_pretrained(folder, dtype=torch.float32)
    assert model.generate(ids, **asked)[0].tolist() == wanted
    assert len(wanted) < len(text)
    ours.close(model)


def test_a_compiled_model_calls_the_layers(ours, tmp_path):
    folder = small("mixtral", tmp_path)
    theirs, model = opened(folder, "eager"), torch.compile(opened(folder, "aristos"), backend="eager")
    with torch.no_grad():
        for seed in range(2):
            ids = torch.randint(0, 128, (1, 5), generator=torch.Generator().manual_seed(seed))
            assert relative(model(ids).logits, theirs(ids).logits) < 1e-5
    ours.close(model)


@pytest.mark.parametrize("limit", [20.0, 64.0])
def test_limits_of_any_size_are_found(limit):
    from aristos.integrations import experts_module

    class Limited:
        has_post_expert_norm, has_gate, swiglu_limit = False, True, limit

        def _apply_gate(self, both):
            g, u = both.chunk(2, dim=-1)
            return torch.nn.functional.silu(g.clamp(max=limit)) * u.clamp(-limit, limit)

    assert experts_module.gate_of(Limited()).limit == limit
    del Limited.swiglu_limit
    with pytest.raises(InputError, match="its gate must be one of"):
        experts_module.gate_of(Limited())


def test_experts_are_quantised_as_they_are_loaded(ours, tmp_path):
    ours.options(max_tokens=16, threads=1, weight_dtype="int8", timeout=PATIENCE)
    model = opened(small("qwen3_moe", tmp_path), "aristos")
    with torch.no_grad():
        model(torch.zeros(1, 3, dtype=torch.int64))
    layers = [vars(module)["_aristos"].moe for module in model.modules() if "_aristos" in vars(module)]
    assert all(0 < moe.summary().weight_errors[0] < 0.01 for moe in layers)
    ours.close(model)


@pytest.mark.ranks(2, timeout=120)
def test_two_ranks_with_prompts_of_their_own(comm, tmp_path):
    ours, folder = on_ranks(comm, tmp_path, "qwen3_moe")
    theirs, model = opened(folder, "eager"), ours.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(comm.rank)
    ids = torch.randint(0, 128, (1 + comm.rank, 5 + 9 * comm.rank), generator=generator)
    with torch.no_grad():
        assert relative(model(ids).logits, theirs(ids).logits) < 1e-5
        assert (model.generate(ids, **GENERATE) == theirs.generate(ids, **GENERATE)).all()
    layer = next(vars(module)["_aristos"] for module in model.modules() if "_aristos" in vars(module))
    assert len(layer.moe.placement.mine(comm.rank)) == 4
    ours.close(model)


@pytest.mark.ranks(2, timeout=120)
@pytest.mark.parametrize("kind", ["many", "qwen3_moe"])
def test_logits_on_two_ranks_and_on_two_nodes(comm, tmp_path, kind):
    """One model has 128 experts, 8 for each token. The other runs on nodes that share no memory."""
    ours, folder = on_ranks(comm, tmp_path, kind)
    ours.options(max_tokens=8, threads=1, comm=comm, timeout=PATIENCE, ranks_per_node=None if kind == "many" else 1)
    theirs, model = opened(folder, "eager"), ours.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, 128, (2, 15), generator=torch.Generator().manual_seed(comm.rank))
    with torch.no_grad():
        assert relative(model(ids).logits, theirs(ids).logits) < 1e-5
        if kind != "many":
            assert (model.generate(ids, **GENERATE) == theirs.generate(ids, **GENERATE)).all()
    moe = vars(experts_of(model)[0])["_aristos"].moe
    assert (len(moe.placement.mine(comm.rank)), moe.runtime.group.nodes.single) == (
        (64, True) if kind == "many" else (4, False)
    )
    ours.close(model)


@pytest.mark.parametrize("kind", MODELS)
def test_experts_are_read_from_the_directory(ours, tmp_path, kind):
    folder = small(kind, tmp_path)
    theirs, model = opened(folder, "eager"), ours.from_pretrained(folder, dtype=torch.float32).eval()
    assert held_by_torch(model) < 1000
    ids = torch.randint(0, 128, (3, 15), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative(model(ids).logits, theirs(ids).logits) < 1e-5
    assert held_by_torch(model) < 1000
    ours.close(model)


def as_mxfp4(folder: Path, target: Path) -> Any:
    """Write the experts as gpt-oss is published. Returns the model with the values of the codes."""
    from safetensors.torch import load_file, save_file

    model = opened(folder, "eager")
    state = load_file(folder / "model.safetensors")
    for name, module in model.named_modules():
        for array in ("gate_up_proj", "down_proj") if hasattr(module, "is_concatenated") else ():
            parameter = getattr(module, array)
            found = [quantise(one.detach().numpy(), packed("mxfp4")) for one in parameter]
            codes = np.stack([one.codes for one in found]).transpose(0, 2, 1)  # [E, out, in]
            blocks = codes[..., ::2] | codes[..., 1::2] << 4
            del state[f"{name}.{array}"]
            state[f"{name}.{array}_blocks"] = torch.from_numpy(blocks.reshape(*codes.shape[:2], -1, 16).copy())
            scales = np.stack([np.asarray(one.scales).view(np.uint8).T for one in found])
            state[f"{name}.{array}_scales"] = torch.from_numpy(scales.copy())
            parameter.data = torch.from_numpy(np.stack([one.dequantised() for one in found]).astype(np.float32))
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    target.mkdir()
    save_file(state, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config))
    return model


def test_packed_experts_stay_packed(ours, tmp_path):
    theirs = as_mxfp4(small("gpt_oss", tmp_path / "plain"), tmp_path / "packed")
    model = ours.from_pretrained(tmp_path / "packed", dtype=torch.float32).eval()
    ids = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative(model(ids).logits, theirs(ids).logits) < 1e-5
    layers = [vars(module)["_aristos"].moe for module in model.modules() if "_aristos" in vars(module)]
    assert {str(moe.cfg.packed).split()[0] for moe in layers} == {"mxfp4"}
    assert not any(moe.summary().weight_errors[0] for moe in layers)  # nothing was rounded
    ours.close(model)


def test_other_layers_that_are_quantised_are_transformers_own(ours, tmp_path):
    from safetensors.torch import load_file, save_file

    file = small("qwen3_moe", tmp_path) / "model.safetensors"
    scale = {"model.layers.0.self_attn.q_proj.weight_scale_inv": torch.ones(1, 1)}
    save_file(load_file(file) | scale, file)
    with pytest.raises(
        CheckpointError, match=r"q_proj.* outside the experts: use transformers' own from_pretrained, which"
    ):
        ours.from_pretrained(tmp_path)


@pytest.mark.ranks(3, timeout=120)
def test_ranks_stop_at_different_times(comm, tmp_path):
    """One rank has no prompt at all. Layers are made while it waits."""
    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    theirs, model = opened(folder, "eager"), opened(folder, "aristos")
    ids = torch.randint(0, 128, (1, 3 + 9 * comm.rank), generator=torch.Generator().manual_seed(comm.rank))
    for counts in ((0, 3, 9), (5, 1, 0)):
        count = counts[comm.rank]
        with ours.together(model):
            for _ in range(1 + (count == 9)):
                if count:
                    fields = GENERATE | {"max_new_tokens": count}
                    assert (model.generate(ids, **fields) == theirs.generate(ids, **fields)).all()
    ours.close(model)


@pytest.mark.ranks(2, timeout=120)
def test_ranks_use_several_models_at_their_own_pace(comm, tmp_path):
    """The ranks call the models in different orders, and one rank makes fewer calls."""
    ours, first = on_ranks(comm, tmp_path / "first", "mixtral")
    _, second = on_ranks(comm, tmp_path / "second", "qwen3_moe")
    theirs, models = ([opened(folder, way) for folder in (first, second)] for way in ("eager", "aristos"))
    ids = torch.randint(0, 128, (1, 3 + 9 * comm.rank), generator=torch.Generator().manual_seed(comm.rank))
    with ours.together(*models):
        for number in ((0, 1, 0, 0), (1, 0))[comm.rank]:
            assert (models[number].generate(ids, **GENERATE) == theirs[number].generate(ids, **GENERATE)).all()
    with (
        ours.together(models[0]),
        pytest.raises(InputError, match=r"together\(\) must get every model that is called inside it"),
    ):
        models[1].generate(ids, **GENERATE)
    for model in models:
        ours.close(model)


@pytest.mark.ranks(2, timeout=120)
def test_options_that_change_later_concern_later_layers(comm, tmp_path):
    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    theirs, model = opened(folder, "eager"), opened(folder, "aristos")
    ids = torch.randint(0, 128, (2, 15), generator=torch.Generator().manual_seed(comm.rank))
    with torch.no_grad(), ours.together(model):
        model(ids)
        ours.options(max_tokens=1024, threads=1, comm=comm, timeout=PATIENCE)
        assert relative(model(ids).logits, theirs(ids).logits) < 1e-5
    ours.close(model)


@pytest.mark.ranks(2, timeout=120)
def test_an_exception_on_one_rank_ends_the_others(comm, tmp_path):
    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    model = opened(folder, "aristos")

    def used() -> None:
        with ours.together(model):
            if comm.rank == 1:
                raise ValueError("no prompt")
            model.generate(torch.zeros(1, 3, dtype=torch.int64), **GENERATE)

    kind = ValueError if comm.rank == 1 else PoisonedError
    with mock.patch("aristos.transport.group.Group.abort_at_exit"), pytest.raises(kind) as caught:  # they end together
        used()
    wanted = "no prompt" if comm.rank == 1 else "rank 1 gave up .*ValueError: no prompt"
    assert re.search(wanted, str(caught.value)), caught.value


def test_nothing_else_imports_torch():
    code = "import sys, aristos; aristos.MoE, aristos.Checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
