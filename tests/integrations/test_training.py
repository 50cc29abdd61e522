"""Training of experts modules and models of transformers equals torch's own. Skipped without transformers."""

from __future__ import annotations

import contextlib
import gc
from unittest import mock

import pytest
from cases import PATIENCE
from hf_models import MODELS, batch, experts_of, on_ranks, opened, relative, small, steps

import aristos
from aristos.errors import InputError, MismatchError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
FIELDS = {"hidden": 24, "ffn": 40, "experts": 4, "top_k": 2, "activation": "silu", "gated": True, "max_tokens": 7}


def made(comm=None, placement=None, **fields):
    """An experts module that trains, as a context that closes it."""
    from aristos.integrations.torch import Experts

    torch.manual_seed(3)
    cfg = aristos.MoEConfig(**FIELDS | fields)
    experts = Experts(cfg, comm, threads=1, timeout=PATIENCE, train=True, placement=placement)
    return contextlib.closing(experts)


def drawn(count: int, seed: int = 0):
    """(x, ids, weights). x and weights are leaves that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(count)])
    x, weights = (torch.randn(count, 24, generator=generator), torch.rand(count, 2, generator=generator))
    return x.requires_grad_(), ids, weights.requires_grad_()


def plainly(parameters, x, ids, weights):
    """y, computed by torch in the parameters' type, token by token."""
    gate_up, down = parameters["gate_up_proj"], parameters["down_proj"]
    rows = []
    for token in range(len(x)):
        choices = []
        for choice, expert in enumerate(ids[token].tolist()):
            g, u = (gate_up[expert] @ x[token] + parameters["gate_up_proj_bias"][expert]).chunk(2)
            out = down[expert] @ (torch.nn.functional.silu(g) * u) + parameters["down_proj_bias"][expert]
            choices.append(weights[token, choice] * out)
        rows.append(sum(choices))
    return torch.stack(rows)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("count", [1, 20])
def test_gradients_are_those_of_torch(dtype, most, count):
    x, ids, weights = drawn(count)
    dy = torch.randn(count, 24, generator=torch.Generator().manual_seed(1))
    with made(dtype=dtype, bias=True) as experts:
        rows = x.detach().to(getattr(torch, dtype)).requires_grad_()
        experts(rows, ids, weights).backward(dy.to(rows.dtype))
        found = {"x": rows.grad, "weights": weights.grad} | {n: p.grad for n, p in experts.named_parameters()}
        wide = {name: p.detach().double().requires_grad_() for name, p in experts.named_parameters()}
    leaves = {"x": rows.detach().double().requires_grad_(), "weights": weights.detach().double().requires_grad_()}
    plainly(wide, leaves["x"], ids, leaves["weights"]).backward(dy.to(rows.dtype).double())
    assert set(found) == set(wide | leaves)
    for name, leaf in (wide | leaves).items():
        assert relative(found[name], leaf.grad) < most, name


def test_gradients_of_several_calls_are_added():
    with made() as experts:
        one, two = drawn(9, 1), drawn(3, 2)
        (experts(*one).sum() + experts(*two).sum()).backward()
        together = [p.grad.clone() for p in experts.parameters()]
        for p in experts.parameters():
            p.grad = None
        for call in (two, one):
            experts(*call).sum().backward()
        assert all(relative(p.grad, other) < 1e-6 for p, other in zip(experts.parameters(), together, strict=True))


def test_changed_parameters_are_used():
    call = drawn(5)
    with made() as experts:
        optimizer = torch.optim.SGD(experts.parameters(), lr=0.5)
        for how in ("by a step", "in place", "through .data"):
            before = experts(*call).detach().clone()
            if how == "by a step":
                experts(*call).sum().backward()
                optimizer.step()
            elif how == "in place":
                with torch.no_grad():
                    experts.down_proj.mul_(2)
            else:
                experts.down_proj.data *= 2
                assert relative(experts(*call), before) == 0
                experts.changed()
            factor = 2 if how != "by a step" else None
            with torch.no_grad():
                after = experts(*call)
            assert relative(after, before) > 1e-3 if factor is None else relative(after, before * factor) < 1e-6, how


def test_graphs_that_torch_drops_give_their_tapes_back():
    call = drawn(20)
    with made() as experts:
        for _ in range(5):
            y = experts(*call)
        assert experts.moe.open_tapes == 6  # three calls for y, and three for the graph that y replaced
        del y
        gc.collect()
        with torch.no_grad():
            experts(*call)
        assert experts.moe.open_tapes == 0


def test_a_graph_from_before_a_step_is_refused():
    call = drawn(5)
    with made() as experts:
        y = experts(*call)
        with torch.no_grad():
            experts.down_proj.mul_(2)
            experts(*call)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        experts(*call).sum().backward()


def test_what_cannot_be_done_is_refused():
    call = drawn(5)
    with made() as experts:
        y = experts(*call).sum()
        y.backward(retain_graph=True)
        with pytest.raises(InputError, match=r"retain_graph=True"):
            y.backward()
        x, ids, weights = call
        (first,) = torch.autograd.grad(experts(x, ids, weights).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def test_frozen_parameters_have_no_gradient():
    x, ids, weights = drawn(5)
    with made() as experts:
        experts.requires_grad_(False)
        experts(x, ids, weights).sum().backward()
        assert x.grad is not None
        assert all(p.grad is None for p in experts.parameters())


def compared(model, theirs, ours, comm=None) -> None:
    """Check that the weights of both models are equal."""
    state = ours.whole_state_dict(model)
    if comm is None or comm.rank == 0:
        assert set(state) == set(theirs.state_dict())
        for name, wanted in theirs.state_dict().items():
            assert torch.equal(state[name], wanted) or relative(state[name], wanted) < 1e-5, name


@pytest.mark.parametrize("kind", MODELS)
def test_two_steps_are_those_of_eager(ours, tmp_path, kind):
    folder = small(kind, tmp_path)
    theirs, model = opened(folder, "eager").train(), opened(folder, "aristos").train()
    wanted = steps(theirs, [batch(0)])
    assert steps(model, [batch(0)], ranks=ours) == pytest.approx(wanted, rel=1e-5)
    compared(model, theirs, ours)
    ours.close(model)


def test_parameters_that_other_code_replaces_are_used():
    call = drawn(5)
    with made() as experts:
        before = experts(*call).detach().clone()
        state = {name: 2 * value if name == "down_proj" else value for name, value in experts.state_dict().items()}
        experts.load_state_dict(state, assign=True)
        assert relative(experts(*call), 2 * before) < 1e-6
        experts.down_proj.data = experts.down_proj.data / 2
        assert relative(experts(*call), before) < 1e-6
        experts(*call).sum().backward()
        assert experts.down_proj.grad is not None


@pytest.mark.ranks(2)
def test_copies_of_experts_are_refused(comm):
    with pytest.raises(InputError, match="each expert on one rank"):
        made(comm, placement=[[0, 1], 0, 1, 1])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(ours, tmp_path, reentrant):
    """No tape stays open until the backward pass."""
    folder = small("qwen3_moe", tmp_path)
    theirs, model = opened(folder, "eager").train(), opened(folder, "aristos").train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert steps(model, [batch(0)], ranks=ours) == pytest.approx(steps(theirs, [batch(0)]), rel=1e-5)
    compared(model, theirs, ours)
    loss = model(batch(0)[0], labels=batch(0)[0]).loss
    assert [vars(module)["_aristos"].moe.open_tapes for module in experts_of(model)] == [0, 0]
    loss.backward()
    ours.close(model)


@pytest.mark.ranks(2, timeout=120)
def test_gradient_checkpointing_on_two_ranks(comm, tmp_path):
    on_some_ranks(comm, tmp_path, "mixtral", checkpoints=True)


def test_hooks_that_copy_saved_tensors_are_refused():
    with made() as experts:
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda kept: kept):
            y = experts(*drawn(5))
        with pytest.raises(InputError, match="hooks for saved tensors keep copies"):
            y.sum().backward()


def on_some_ranks(comm, tmp_path, kind: str, checkpoints: bool = False) -> None:
    ours, folder = on_ranks(comm, tmp_path, kind)
    theirs, model = opened(folder, "eager").train(), opened(folder, "aristos").train()
    if checkpoints:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    steps(theirs, [batch(rank) for rank in range(comm.size)])
    steps(model, [batch(comm.rank)], ranks=ours)
    compared(model, theirs, ours, comm)
    ours.close(model)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
@pytest.mark.ranks(2, timeout=120)
def test_two_ranks_train_as_one_process(comm, tmp_path, kind):
    on_some_ranks(comm, tmp_path, kind)


@pytest.mark.ranks(4, timeout=120)
def test_four_ranks_train_as_one_process(comm, tmp_path):
    on_some_ranks(comm, tmp_path, "mixtral")


@pytest.mark.ranks(2, timeout=120)
def test_a_rank_without_a_training_step_is_named(comm, tmp_path):
    """Both ranks raise soon."""
    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    model = opened(folder, "aristos").train()

    def used() -> None:
        with ours.together(model):
            if comm.rank == 0:
                model(batch(0)[0])

    said = "rank 0 calls a layer with gradients and rank 1 does not"
    with mock.patch("aristos.transport.group.Group.abort_at_exit"), pytest.raises(MismatchError, match=said):
        used()


@pytest.mark.ranks(2, timeout=120)
def test_the_norm_of_gradients_is_that_of_the_whole_model(comm, tmp_path):
    ours, folder = on_ranks(comm, tmp_path, "mixtral")
    theirs, model = opened(folder, "eager").train(), opened(folder, "aristos").train()
    (sum(theirs(batch(rank)[0], labels=batch(rank)[0]).loss for rank in range(2)) / 2).backward()
    model(batch(comm.rank)[0], labels=batch(comm.rank)[0]).loss.backward()
    ours.average_dense_grads(model)
    wanted = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.01)
    assert relative(ours.clip_grad_norm_(model, 0.01), wanted) < 1e-5
    assert relative(model.lm_head.weight.grad, theirs.lm_head.weight.grad) < 1e-5
    ours.close(model)


@pytest.mark.ranks(2, timeout=120)
def test_a_rank_takes_its_experts_from_a_state_dict_of_all(comm):
    with made() as alone, made(comm) as experts:
        experts.load_state_dict(alone.state_dict())
        mine = experts.moe.placement.mine(comm.rank)
        assert torch.equal(experts.down_proj, alone.down_proj[mine])
        call = drawn(5, comm.rank)
        assert relative(experts(*call), alone(*call)) < 1e-6


def test_a_model_for_inference_refuses_gradients(ours, tmp_path):
    model = opened(small("mixtral", tmp_path), "aristos")
    with pytest.raises(InputError, match=r"model\.train\(\)"):
        model(batch(0)[0])
    ours.close(model)
