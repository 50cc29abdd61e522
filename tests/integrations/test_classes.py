"""Every experts class of transformers against its own code. Skipped without transformers (`make test-hf` has it)."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from cases import PATIENCE
from hf_models import Fields, relative

from aristos.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
REFUSED = {  # class -> why it is refused
    "Inkling2Experts": "its gate must be one of",
    "Inkling2LoopExperts": "its gate must be one of",
    "MuseSparkExperts": "normalises each expert's output",
}


def classes() -> dict[str, str]:
    """{class: its module} of all experts classes that transformers lets others compute."""
    root = Path(transformers.__file__).parent
    pattern = re.compile(r"@use_experts_implementation(?:\([^)]*\))?\nclass (\w+)\(")
    return {
        name: f"transformers.models.{path.parent.name}.{path.stem}"
        for path in sorted((root / "models").rglob("modeling_*.py"))
        for name in pattern.findall(path.read_text())
    }


def drawn(rank: int) -> tuple[Any, Any, Any]:
    """(x, ids, weights) of a rank, with more tokens than a call holds."""
    generator = torch.Generator().manual_seed(rank)
    ids = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in range(20)])
    return torch.randn(20, 8, generator=generator), ids, torch.rand(20, 2, generator=generator)


def gradients(experts, x, ids, weights) -> list[Any]:
    """The gradients of x, of the weights and of all parameters, for a random gradient of the outputs."""
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    experts.zero_grad()
    experts(x, ids, weights).backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    return [x.grad, weights.grad, *(each.grad.clone() for each in experts.parameters())]


def compared(ours, kind: type, training: bool, rank: int = 0, world: int = 1) -> None:
    """Compare a module with its class's own code: outputs of a rank's tokens, and gradients.

    Gradients of parameters are means over the ranks. Values reach the limits of gates. Raises InputError for a class
    that is refused.
    """
    torch.manual_seed(0)
    experts, calls = kind(Fields()).train(training), [drawn(each) for each in range(world)]
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=1.5)
    with torch.no_grad():
        wanted = experts(*calls[rank])
    every = [gradients(experts, *call) for call in calls] if training else []
    experts.config._experts_implementation = "aristos"
    try:
        with torch.no_grad():
            assert relative(experts(*calls[rank]), wanted) < 1e-5, kind.__name__
        if training:
            mine = vars(experts)["_aristos"].moe.placement.mine(rank)
            means = [sum(each)[mine] / world for each in zip(*(found[2:] for found in every), strict=True)]
            found = gradients(experts, *calls[rank])
            for one, other in zip(found, [*every[rank][:2], *means], strict=True):
                assert relative(one, other) < 1e-5, kind.__name__
    finally:
        ours.close(experts)


def every_class(ours, training: bool, rank: int = 0, world: int = 1) -> None:
    """Compare all classes but those of REFUSED, which must be refused."""
    refused, found = {}, classes()
    assert len(found) >= 60
    for name, module in found.items():
        try:
            compared(ours, getattr(importlib.import_module(module), name), training, rank, world)
        except InputError as why:
            refused[name] = str(why)
    assert set(refused) == set(REFUSED)
    assert all(refused[name].startswith(name) and why in refused[name] for name, why in REFUSED.items())


@pytest.mark.parametrize("training", [False, True])
def test_one_process_computes_what_each_class_does(ours, training):
    every_class(ours, training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.ranks(2, timeout=120)
def test_two_ranks_compute_what_each_class_does(comm, ours, training):
    ours.options(max_tokens=16, threads=1, comm=comm, timeout=PATIENCE)
    every_class(ours, training, comm.rank, comm.size)


def test_experts_that_transformers_has_split_among_ranks_are_refused(ours):
    name, module = next(iter(classes().items()))
    experts = getattr(importlib.import_module(module), name)(Fields())
    experts._is_expert_parallel, experts.config._experts_implementation = True, "aristos"
    with torch.no_grad(), pytest.raises(InputError, match=r"ep_implementation=.aristos., or leave"):
        experts(torch.randn(3, 8), torch.zeros(3, 2, dtype=torch.int64), torch.rand(3, 2))
