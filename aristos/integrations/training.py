"""Functions for a model that ranks train together: gradients outside the experts, the norm, all weights on one rank.

Each rank has all parameters outside the experts, and its own experts. The gradients of experts are complete after the
backward pass. The other gradients then come from this rank's tokens only.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from ..errors import InputError, MismatchError
from ..reproducible import reproducible_sum
from ..transport.group import Group
from .masters import as_numpy
from .options import current
from .torch import Experts

HELD = "_aristos"  # a module's attribute that holds its layer
CLOSED = "_aristos_closed"  # a module's attribute that says that its layer was closed, and its experts are not in torch
TIMELINE = "_aristos_timeline"  # a module's attribute that holds the folder for its timeline
SOURCE = "_aristos_source"  # a module's attribute that holds the reader of its experts, if torch never had them
ALIKE = "_aristos_alike"  # a model's attribute that says that ranks have compared parameters outside the experts
BUCKET = 1 << 22  # how many numbers are added at a time
COMPARED = 1 << 10  # how many values of each parameter are compared before each step


def held(module: torch.nn.Module) -> Experts | None:
    """The layer of an experts module; None if it is not made yet. Raises InputError after `close`."""
    if vars(module).get(CLOSED):
        raise InputError(f"{type(module).__name__}: its layer and its experts were closed: open the model again")
    return vars(module).get(HELD)


def hold(module: torch.nn.Module, experts: Experts) -> None:
    """Give a module its layer, which records what its workers do if the options say so."""
    vars(module)[HELD] = experts
    if current().timeline is not None:
        experts.moe.timeline(True)
        vars(module)[TIMELINE] = current().timeline


def layers_of(model: torch.nn.Module) -> dict[str, Experts]:
    """The layers of a model that are made, by the name of their module."""
    found = {
        name: module if isinstance(module, Experts) else vars(module).get(HELD)
        for name, module in model.named_modules()
    }
    return {name: experts for name, experts in found.items() if experts is not None}


def average_dense_grads(model: torch.nn.Module) -> None:
    """Replace the gradients outside the experts by their means over all ranks. Collective.

    All ranks then have the same bits. A rank that has no gradient of a parameter counts as zero. If no rank has one,
    the gradient stays None. The first call compares all values of parameters between ranks; later calls compare the
    first values of each parameter.

    Parameters
    ----------
    model : torch.nn.Module
        A model whose layers train.

    Raises
    ------
    InputError
        The model has no layer yet, or transformers has split it among ranks.
    MismatchError
        Ranks have different parameters, or different values of a parameter.
    """
    group = _group_of(model)
    dense = {name: each for name, each in _dense(model).items() if each.requires_grad}
    first = ALIKE not in vars(model)
    has = [
        (name, tuple(each.shape), each.grad is not None, _digest(each, first) if group.comm is not None else "")
        for name, each in dense.items()
    ]
    every = [has] if group.comm is None else group.allgather(has, "the other ranks' gradients outside the experts")
    for rank, theirs in enumerate(every):
        if [each[:2] for each in theirs] != [each[:2] for each in has]:
            raise MismatchError(
                f"ranks {rank} and {group.rank} train different parameters outside the experts: make the same model"
            )
        unlike = [mine[0] for mine, other in zip(has, theirs, strict=True) if mine[3] != other[3]]
        if unlike:
            raise MismatchError(
                f"{unlike[0]} has different values on rank {rank} and on rank {group.rank}: {_why(first)}"
            )
    vars(model)[ALIKE] = True
    for layer in layers_of(model).values():
        layer.averaged()
    if group.comm is None:
        return
    wanted = [each for i, each in enumerate(dense.values()) if any(theirs[i][2] for theirs in every)]
    while wanted:
        bucket = [wanted.pop(0)]
        while wanted and sum(each.numel() for each in bucket) + wanted[0].numel() <= BUCKET:
            bucket.append(wanted.pop(0))
        for each in bucket:
            each.grad = torch.zeros_like(each) if each.grad is None else each.grad
        flat = torch.cat([each.grad.reshape(-1).float() for each in bucket if each.grad is not None])
        with group.bounded("the other ranks (gradients outside the experts)"):
            total = torch.from_numpy(reproducible_sum(group.comm, [flat.numpy()])) / group.world
        for each, part in zip(bucket, total.split([each.numel() for each in bucket]), strict=True):
            assert each.grad is not None
            each.grad.copy_(part.view_as(each))


def clip_grad_norm_(model: torch.nn.Module, max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their norm over the whole model is at most `max_norm`. Collective.

    Call this after `average_dense_grads`. torch's own function knows only this rank's experts.

    Parameters
    ----------
    model : torch.nn.Module
        A model whose layers train.
    max_norm : float
        The largest norm.

    Returns
    -------
    torch.Tensor
        The norm before scaling, a float64 scalar.

    Raises
    ------
    InputError
        The model has no layer yet, or transformers has split it among ranks.
    """
    group = _group_of(model)
    experts = [each for layer in layers_of(model).values() for each in layer.named_masters().values()]

    def squares(parameters: Any) -> float:
        return float(sum(each.grad.double().square().sum() for each in parameters if each.grad is not None))

    of_experts = squares(experts)
    if group.comm is not None:
        of_experts = sum(group.allgather(of_experts, "the norm of the other ranks' gradients"))
    norm = torch.tensor(np.sqrt(squares(_dense(model).values()) + of_experts))
    factor = float(max_norm / (norm + 1e-6))
    if factor < 1:
        for each in (*_dense(model).values(), *experts):
            if each.grad is not None:
                each.grad.mul_(factor)
    return norm


def whole_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors with the experts of all ranks. Collective.

    The result is meant for `model.save_pretrained(directory, state_dict=...)`.

    Parameters
    ----------
    model : torch.nn.Module
        A model whose layers train.

    Returns
    -------
    dict of str to torch.Tensor
        Name -> tensor on rank 0; an empty dict on the other ranks.

    Raises
    ------
    InputError
        The model has no layer yet, a layer does not train, or transformers has split the model among ranks.
    """
    group = _group_of(model)
    for name, layer in layers_of(model).items():
        if not layer.named_masters():
            raise InputError(
                f"the layer of {name} does not train, so torch does not have its experts: call model.train() before"
                " the model's first call"
            )
    state = dict(model.state_dict()) if group.rank == 0 else {}
    if group.comm is None:
        return state
    for name, layer in layers_of(model).items():
        owners = [layer.moe.placement.mine(rank) for rank in range(group.world)]
        for parameter, value in layer.named_masters().items():
            with group.bounded("the other ranks' experts"):
                whole = _gathered(group, value.detach().contiguous(), owners)
            if group.rank == 0:
                state[f"{name}.{parameter}" if name else parameter] = whole
    return state


def _gathered(group: Group, mine: torch.Tensor, owners: list[list[int]]) -> torch.Tensor:
    """Gather all ranks' arrays [n, ...] as one array [E, ...] on rank 0. owners: the experts of each rank.

    Other ranks get their own array back."""
    if group.rank > 0:
        for one in mine:
            group.comm.Send(as_numpy(one).view(np.uint8), 0)
        return mine
    whole = torch.empty(sum(map(len, owners)), *mine.shape[1:], dtype=mine.dtype)
    whole[owners[0]] = mine
    for rank in range(1, group.world):
        for expert in owners[rank]:
            group.comm.Recv(as_numpy(whole[expert]).view(np.uint8), rank)
    return whole


def refuse_parts(model: torch.nn.Module) -> None:
    """Raise InputError if this rank has the parameters of only a part of the experts."""
    for name, layer in layers_of(model).items():
        if layer.moe.world > 1 and layer.named_masters():
            raise InputError(
                f"{name}: this rank has a part of the experts: call state = whole_state_dict(model) on all ranks, then"
                " model.save_pretrained(directory, state_dict=state) on rank 0"
            )


def _why(first: bool) -> str:
    if first:
        return (
            "call torch.manual_seed with one number on all ranks before a model or an adapter is made of random"
            " numbers, and average_dense_grads before each step"
        )
    return (
        "steps must be equal on all ranks: call average_dense_grads before each step, and clip gradients by"
        " clip_grad_norm_ of aristos.integrations.transformers, not by torch's"
    )


def _digest(parameter: torch.Tensor, whole: bool) -> str:
    """A hash of the bytes of all values, or of the first values."""
    flat = parameter.detach().reshape(-1)
    values = as_numpy(flat if whole else flat[:COMPARED])
    return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()


def _group_of(model: torch.nn.Module) -> Group:
    layers = layers_of(model)
    if not layers:
        raise InputError("the model has no layers yet: they are made at its first call")
    if any(hasattr(each, "full_tensor") for layer in layers.values() for each in layer.named_masters().values()):
        raise InputError(
            "transformers has split this model among ranks: it averages gradients itself. Clip them with"
            " torch.nn.utils.clip_grad_norm_, and save the model with model.save_pretrained"
        )
    return next(iter(layers.values())).moe.everyone


def _dense(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    experts = {id(each) for layer in layers_of(model).values() for each in layer.named_masters().values()}
    return {name: each for name, each in model.named_parameters() if id(each) not in experts}
