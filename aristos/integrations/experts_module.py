"""Finds what an experts module of transformers computes, by calls of the module's gate: configuration and weights.

`@use_experts_implementation` gives a class `is_transposed`, `is_concatenated`, `has_gate`, `has_bias` and a gate
between its two projections. The gate is called with numbers that distinguish all activations and limits of
`aristos.MoEConfig`. The name of the class does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..config import ACTIVATIONS, MoEConfig
from ..errors import InputError
from ..reference import gated
from .masters import Masters
from .options import NAME, current
from .torch import ROWS, Experts
from .training import SOURCE

LIMITS = ("limit", "swiglu_limit")  # attributes that hold the limit of a gate
MATRICES = ("gate_up_proj", "up_proj", "down_proj")  # parameters that a module may have
FAR = (30.0, 100.0, 300.0)  # gate values that exceed limits whose attribute has another name
CLOSE = 1e-5  # largest accepted difference from a value, relative to 1 + its magnitude
ELSEWHERE = "_aristos_elsewhere"  # a module's attribute that says that torch does not have all its experts
CHOICE = "_experts_implementation"  # a property of configurations; object.__getattribute__ reads it in half the time


class Gate(NamedTuple):
    """A gate. activation, gated, limit: as in MoEConfig.

    interleaved: whether gate and up alternate in their projection.
    """

    activation: Any
    gated: bool
    limit: float | None
    interleaved: bool


def gate_of(module: Any) -> Gate:
    """The gate of an experts module. Raises InputError, with the class, if Aristos has no such gate."""
    name = type(module).__name__
    if module.has_post_expert_norm:
        raise InputError(f"{name} normalises each expert's output, which Aristos does not do")
    beyond = {1.5 * limit for _, limit in _candidates(module) if limit is not None}
    far = torch.tensor([*FAR, *sorted(beyond)], device="cpu")
    side = torch.cat([-far, torch.linspace(-12.0, 12.0, 49, device="cpu"), far])
    g, u = (each.reshape(-1) for each in torch.meshgrid(side, side, indexing="ij"))
    left = g.double().numpy()
    right = u.double().numpy() if module.has_gate else np.ones_like(left)
    with torch.no_grad():
        for interleaved in (False, True):
            both = torch.stack([g, u], dim=-1).reshape(1, -1) if interleaved else torch.cat([g, u]).reshape(1, -1)
            asked = both if module.has_gate else g.reshape(1, -1)
            try:
                found = module._apply_gate(asked) if module.has_gate else module.act_fn(asked)
            except Exception as error:
                raise InputError(f"{name}: calling its gate fails ({type(error).__name__}: {error})") from error
            values = np.asarray(found.double().reshape(-1))
            for activation, limit in _candidates(module):
                wanted = gated(activation, limit, left, right)
                if values.shape == wanted.shape and (np.abs(values - wanted) <= CLOSE * (1 + np.abs(wanted))).all():
                    return Gate(activation, module.has_gate, limit, interleaved)
            if not module.has_gate:
                break
    raise InputError(
        f"{name}: its gate must be one of {', '.join(ACTIVATIONS)}, with or without a limit, got another function"
    )


def _candidates(module: Any) -> list[tuple[str, float | None]]:
    limits = [None, *(float(getattr(module, name)) for name in LIMITS if getattr(module, name, None) is not None)]
    names = [name for name, rule in ACTIVATIONS.items() if module.has_gate or not rule.gate_only]
    return [(name, limit) for name in names for limit in (limits if module.has_gate else [None])]


def configuration(module: Any, gate: Gate, top_k: int, dtype: torch.dtype, source: Any, experts: int = 0) -> MoEConfig:
    """The configuration of a module's layer, with the present `options`. Rows have `dtype`.

    source: an object that has packed weights of a `weight_type`, or None; the layer keeps this type unless options name
    another. experts: the number of experts of all ranks, if torch has only this rank's; else 0.
    """
    options = {"max_tokens": current().max_tokens, **current().config}
    if source is not None and options.get("weight_dtype") is None:
        options["weight_dtype"] = source.weight_type
    if dtype not in ROWS:
        raise InputError(f"{type(module).__name__}: rows must be of {', '.join(map(str, ROWS))}, got {dtype}")
    down = module.down_proj
    held, first, second = down.shape
    ffn, hidden = (first, second) if module.is_transposed else (second, first)
    fields = {
        "hidden": hidden,
        "ffn": ffn,
        "experts": experts or held,
        "top_k": top_k,
        "dtype": ROWS[dtype],
        **options,
    }
    return MoEConfig(activation=gate.activation, gated=gate.gated, limit=gate.limit, bias=module.has_bias, **fields)


def weights(module: Any, gate: Gate) -> dict[str, Any]:
    """The module's weights as `MoE.load` takes them. They are views, not copies."""
    first = "gate_up" if gate.gated else "up"
    found = {
        first: getattr(module, f"{first}_proj").detach(),
        "down": module.down_proj.detach(),
        "layout": "in_out" if module.is_transposed else "out_in",
    }
    if module.has_bias:
        found[f"{first}_bias"] = getattr(module, f"{first}_proj_bias").detach()
        found["down_bias"] = module.down_proj_bias.detach()
    if gate.gated:
        found["interleaved"] = gate.interleaved
    return found


def asked_to_train(module: Any) -> bool:
    """Whether a layer that is made now has gradients: as `options` says, or else as the module says."""
    asked = current().train
    return bool(module.training) if asked is None else asked


def trains(module: Any, source: Any) -> bool:
    """The answer of `asked_to_train`. Raises InputError if it is True, but the experts are packed or not in torch."""
    train = asked_to_train(module)
    if train and source is not None:
        raise InputError(
            f"{type(module).__name__}: torch does not hold its experts as plain tensors, so they cannot be trained:"
            " open the model with transformers' own from_pretrained"
        )
    return train


def masters(module: Any, gate: Gate, kind: type[Masters]) -> Masters:
    """The module's parameters as masters of a layer that trains."""
    first = "gate_up" if gate.gated else "up"
    names = [f"{first}_proj", "down_proj"]
    names += [f"{name}_bias" for name in names if module.has_bias]
    return kind(module, names, module.is_transposed, gate.interleaved)


def layer_of(
    module: Any, top_k: int, dtype: torch.dtype, source: Any, comm: Any, kind: type[Masters], experts: int = 0
) -> Experts:
    """A new layer for a module's experts, with the present `options`. It has the weights, unless it trains. Collective.

    source, experts: see `configuration`; the source's method `load` gives the layer its weights, in place of torch's
    tensors. comm: the ranks that share the experts. kind: of the masters of a layer that trains.
    """
    gate, local = gate_of(module), experts > 0
    cfg = configuration(module, gate, top_k, dtype, source, experts)
    train = trains(module, source)
    made = Experts(cfg, comm, train=train, masters=masters(module, gate, kind) if train else None, **current().layer)
    if not train:
        found = {} if source is not None else weights(module, gate)
        made.load_together(lambda: made.load(**found, local=local) if source is None else source.load(made.moe))
    return made


def keep(module: Any, experts: Experts) -> None:
    """Cut parameters of all experts to those of this rank, in place, so that an optimizer sees the same objects."""
    mine = experts.moe.placement.mine(experts.moe.rank)
    cut = [parameter for parameter in experts.named_masters().values() if len(mine) < len(parameter)]
    for parameter in cut:
        parameter.data = parameter.data[mine]
        parameter.grad = None
    if cut:
        refuse_others(module)


def release(module: Any) -> None:
    """Release the memory of the module's matrices. Their shapes stay, so that transformers still knows the model."""
    for name in MATRICES:
        parameter = getattr(module, name, None)
        if parameter is not None:
            parameter.data = torch.empty(1, dtype=parameter.dtype).expand(parameter.shape)
    if SOURCE not in vars(module):
        refuse_saving(module)
        refuse_others(module)


def refuse_others(module: Any) -> None:
    """Let calls by another implementation raise InputError from now on, because torch does not have all experts.

    The `forward` of the module's class checks this, and calls Aristos directly: a hook would cost each call 20 us, and
    transformers' interface 10 us.
    """
    vars(module)[ELSEWHERE] = True
    kind = type(module)
    if not hasattr(kind.forward, "refuses"):
        kind.forward = _refusing(kind.forward, ALL_EXPERTS_FUNCTIONS[NAME])


def _refusing(forward: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the `forward` of a class, for its modules that were passed to `refuse_others`."""

    @wraps(forward)
    def whole(self: Any, *args: Any, **given: Any) -> Any:
        if ELSEWHERE not in self.__dict__:
            return forward(self, *args, **given)
        if (other := object.__getattribute__(self.config, CHOICE)) != NAME:
            raise InputError(
                f"{type(self).__name__}: its experts are in Aristos's layer and not in torch, so {other} cannot compute"
                f" them: open the model again with experts_implementation={other!r}"
            )
        return ours(self, *args, **given)

    vars(whole)["refuses"] = True
    return whole


def refuse_saving(module: Any) -> None:
    """Let a state dict of the module raise InputError from now on, because torch does not have its experts."""
    module.register_state_dict_pre_hook(_refuse_saving)


def _refuse_saving(module: Any, *_: Any) -> None:
    raise InputError(
        f"{type(module).__name__}: its experts are in Aristos's layer and not in torch: save the model before its"
        " first call; a model that trains keeps them in torch"
    )
