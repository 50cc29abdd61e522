"""Uses of a model of transformers that Aristos cannot follow. Each is refused, with advice on what to do instead."""

from __future__ import annotations

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from hf_models import experts_of, on_ranks, opened, relative, small

from aristos.errors import InputError, MismatchError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
IDS = torch.arange(7).reshape(1, 7)


def called(model):
    """Make the first call of a model. Returns the model."""
    with torch.no_grad():
        model(IDS)
    return model


def test_another_implementation_after_the_first_call(ours, tmp_path):
    model = called(opened(small("mixtral", tmp_path), "aristos"))
    model.set_experts_implementation("grouped_mm")
    with pytest.raises(InputError, match=r"MixtralExperts: .* not in torch, so grouped_mm cannot"):
        called(model)
    model.set_experts_implementation("aristos")
    ours.close(called(model))


def test_a_model_whose_experts_torch_never_had(ours, tmp_path):
    model = ours.from_pretrained(small("mixtral", tmp_path))
    with pytest.raises(InputError, match="save the model"):
        model.save_pretrained(tmp_path / "saved")
    model.set_experts_implementation("eager")
    with pytest.raises(InputError, match="eager cannot compute"):
        called(model)


def test_gradients_of_a_model_that_does_not_train(ours, tmp_path):
    """No layer is made for the refused call, so `train()` still helps."""
    model = opened(small("mixtral", tmp_path), "aristos")
    with pytest.raises(InputError, match=r"torch\.no_grad\(\), or call model\.train\(\)"):
        model(IDS)
    model.train()(IDS, labels=IDS).loss.backward()
    ours.close(model)


@pytest.mark.parametrize("taken", [copy.deepcopy, pickle.dumps])
def test_copies_after_the_first_call(ours, tmp_path, taken):
    model = called(opened(small("mixtral", tmp_path), "aristos"))
    with pytest.raises(InputError, match="copy a model before its first call"):
        taken(model)
    ours.close(called(model))


def test_options_that_no_layer_has(ours):
    with pytest.raises(InputError, match=r"takes only the arguments .*threads.*, got thread"):
        ours.options(thread=1)


def test_another_type_after_the_first_call(ours, tmp_path):
    model = called(opened(small("mixtral", tmp_path), "aristos"))
    with pytest.raises(InputError, match="its dtype before its first call"):
        called(model.bfloat16())
    ours.close(model)


def test_a_first_call_in_inference_mode(ours, tmp_path):
    folder = small("mixtral", tmp_path)
    theirs, model = opened(folder, "eager"), opened(folder, "aristos")
    with torch.inference_mode():
        assert relative(model(IDS).logits, theirs(IDS).logits) < 1e-5
    ours.close(called(model))


@pytest.mark.ranks(2, timeout=120)
def test_a_part_of_the_experts_is_not_saved(comm, tmp_path):
    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    model = opened(folder, "aristos").train()
    model(IDS, labels=IDS).loss.backward()
    with pytest.raises(InputError, match="state = whole_state_dict"):
        model.save_pretrained(tmp_path / "saved")
    model.set_experts_implementation("eager")
    with pytest.raises(InputError, match="eager cannot compute"):
        called(model)
    ours.close(model)


@pytest.mark.ranks(2, timeout=120)
def test_ranks_that_begin_with_other_values(comm, tmp_path):
    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    model = opened(folder, "aristos").train()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = comm.rank
    model(IDS, labels=IDS).loss.backward()
    with pytest.raises(MismatchError) as caught:
        ours.average_dense_grads(model)
    assert re.search(r"lm_head\.weight has different values on rank . and on rank .*manual_seed", str(caught.value))
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 0
    ours.average_dense_grads(model)
    ours.close(model)


def test_types_are_named_as_for_transformers(ours, tmp_path):
    folder = small("mixtral", tmp_path)
    for given, wanted in [("bfloat16", torch.bfloat16), ("auto", torch.float32), (torch.float16, torch.float16)]:
        assert ours.from_pretrained(folder, dtype=given).dtype == wanted
    model = ours.from_pretrained(folder, torch_dtype="bfloat16", experts_implementation="aristos")
    assert model.dtype == torch.bfloat16
    ours.close(called(model))
    with pytest.raises(InputError, match=r"dtype must be .*, got 'bf16'"):
        ours.from_pretrained(folder, dtype="bf16")
    with pytest.raises(InputError, match="experts_implementation must be 'aristos' here"):
        ours.from_pretrained(folder, experts_implementation="eager")


@pytest.mark.parametrize("how", [{}, {"fused": True}, {"foreach": True}])
def test_steps_of_any_optimizer_are_taken(ours, tmp_path, how):
    """A fused optimizer, as Trainer uses one, changes tensors without a change of torch's version counters."""
    model = opened(small("mixtral", tmp_path), "aristos").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **how)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    with torch.no_grad():
        assert relative(model.eval()(IDS).logits, opened(tmp_path / "trained", "eager")(IDS).logits) < 1e-5
    ours.close(model)


def test_threads_call_a_model_one_after_the_other(ours, tmp_path):
    """The first call, which makes the layers, is also made by one thread alone."""
    folder = small("mixtral", tmp_path)
    wanted = called(opened(folder, "eager"))(IDS).logits
    for _ in range(3):
        model = opened(folder, "aristos")
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _, model=model: logits(model), range(8)):
                assert relative(found, wanted) < 1e-5
        ours.close(model)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


class Added(torch.nn.Module):
    """A parametrization that adds 1 to a parameter, as an adapter adds its product."""

    def forward(self, weight):
        return weight + 1


def adapted(model):
    """The model with adapters of its experts, registered in the way in which PEFT registers them during a call."""
    for module in experts_of(model):
        torch.nn.utils.parametrize.register_parametrization(module, "down_proj", Added())
    return model


def test_adapters_of_experts(ours, tmp_path):
    folder = small("mixtral", tmp_path)
    for first in (False, True):
        model = opened(folder, "aristos")
        model = adapted(called(model) if first else model)
        with pytest.raises(InputError, match="merge_and_unload"):
            called(model)
        ours.close(model)
    theirs, model = (adapted(opened(folder, each)).train() for each in ("eager", "aristos"))
    losses = [each(IDS, labels=IDS).loss for each in (theirs, model)]
    assert relative(losses[1], losses[0]) < 1e-5
    ours.close(model)
