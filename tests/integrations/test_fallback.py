"""Experts that Aristos does not compute, and the text of a report."""

from __future__ import annotations

import importlib
import warnings

import pytest
from hf_models import Fields, opened, relative, small

from aristos.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def nothing_said(ours):
    """Forget which warnings other tests have caused."""
    importlib.import_module("aristos.integrations.fallback")._said.clear()


def refused():
    """(a module whose gate Aristos does not have, arguments of a call)."""
    kind = importlib.import_module("transformers.models.inkling2.modeling_inkling2").Inkling2Experts
    torch.manual_seed(0)
    module = kind(Fields())
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.stack([torch.randperm(8)[:2] for _ in range(5)])
    return module, (torch.randn(5, 8), ids, torch.rand(5, 2))


@pytest.mark.parametrize("name", ["grouped_mm", "eager"])
def test_a_refused_class_is_left_to_transformers(ours, name):
    module, given = refused()
    ours.options(fallback=name)
    with torch.no_grad():
        wanted = module(*given)
        module.config._experts_implementation = "aristos"
        said = f"Inkling2Experts: its gate must be one of .*: transformers' {name} computes these experts"
        with pytest.warns(UserWarning, match=said):
            assert relative(module(*given), wanted) < 1e-5
        other, _ = refused()
        other.config._experts_implementation = "aristos"
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the warning comes only once
            other(*given)
    assert "Inkling2Experts, left to transformers" in str(ours.report(module))


def test_without_a_fallback_a_class_is_refused_with_advice(ours):
    module, given = refused()
    module.config._experts_implementation = "aristos"
    with torch.no_grad(), pytest.raises(InputError, match=r'Inkling2Experts.*options\(fallback="grouped_mm"\)'):
        module(*given)
    ours.options(fallback="fast")
    with torch.no_grad(), pytest.raises(InputError, match=r"fallback must be one of eager, .*, got 'fast'"):
        module(*given)


def llama4():
    """A configuration whose experts take no other implementation."""
    return transformers.Llama4TextConfig(
        hidden_size=32,
        intermediate_size=32,
        intermediate_size_mlp=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=64,
        num_local_experts=2,
        num_experts_per_tok=1,
        pad_token_id=0,
    )


def test_experts_that_are_never_called_raise(ours, tmp_path):
    model = transformers.AutoModelForCausalLM.from_config(llama4())
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="Llama4TextExperts: only transformers itself can compute these experts"):
        opened(tmp_path, "aristos")
    with pytest.raises(InputError, match="Llama4TextExperts"), ours.together(model):
        pass
    with pytest.raises(InputError, match="Llama4TextExperts"):
        model.set_experts_implementation("aristos")
    ours.options(fallback="grouped_mm")
    with pytest.warns(UserWarning, match="Llama4TextExperts: .*: transformers computes them"):
        opened(tmp_path, "aristos")


def test_a_report_has_a_line_for_each_layer(ours, tmp_path):
    model = opened(small("qwen3_moe", tmp_path), "aristos")
    assert str(ours.report(model)).count("no layer yet") == 2
    with torch.no_grad():
        model(torch.zeros(2, 3, dtype=torch.int64))
        model(torch.zeros(1, 1, dtype=torch.int64))
    found = ours.report(model)
    assert [each.name for each in found.layers] == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    for each in found.layers:
        assert (each.kind, each.experts, each.ranks, each.threads) == ("Qwen3MoeExperts", 8, 1, 1)
        assert (each.calls, each.tokens) == (2, 7)
        assert each.nbytes >= 8 * 3 * 64 * 48 * 4
        assert 0 <= each.idle < 1
    assert found.nbytes == sum(each.nbytes for each in found.layers)
    assert "model.layers.1.mlp.experts Qwen3MoeExperts" in str(found)
    ours.close(model)
