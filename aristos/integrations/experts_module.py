"""What an experts module of transformers computes, found by asking its own gate: a configuration, and its weights.

`@use_experts_implementation` gives a class `is_transposed`, `is_concatenated`, `has_gate`, `has_bias` and a gate
between its two projections. The gate is called on numbers that tell all activations and limits of
`aristos.MoEConfig` apart, whatever its class is named.
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
from .torch import ROWS
from .training import SOURCE

LIMITS = ("limit", "swiglu_limit")  # attributes that hold the limit of a gate
MATRICES = ("gate_up_proj", "up_proj", "down_proj")  # parameters that may be there
FAR = (30.0, 100.0, 300.0)  # values of gates that reach limits which have another name
CLOSE = 1e-5  # relative to a value, or to 1
ELSEWHERE = "_aristos_elsewhere"  # a module's attribute: torch does not have all its experts
CHOICE = "_experts_implementation"  # a property of configurations; object's own way to it takes half the time


class Gate(NamedTuple):
    """activation, gated, limit: as in MoEConfig. interleaved: gate and up alternate in their projection."""

    activation: Any
    gated: bool
    limit: float | None
    interleaved: bool


def gate_of(module: Any) -> Gate:
    """The gate of an experts module. Raises InputError, naming the class, if Aristos has no such gate."""
    name = type(module).__name__
    if module.has_post_expert_norm:
        raise InputError(f"{name} normalises each expert's output, which Aristos does not")
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
                raise InputError(f"{name}: its gate cannot be asked ({type(error).__name__}: {error})") from error
            values = np.asarray(found.double().reshape(-1))
            for activation, limit in _candidates(module):
                wanted = gated(activation, limit, left, right)
                if values.shape == wanted.shape and (np.abs(values - wanted) <= CLOSE * (1 + np.abs(wanted))).all():
                    return Gate(activation, module.has_gate, limit, interleaved)
            if not module.has_gate:
                break
    raise InputError(f"{name}: its gate is none of {', '.join(ACTIVATIONS)}, with or without a limit")


def _candidates(module: Any) -> list[tuple[str, float | None]]:
    limits = [None, *(float(getattr(module, name)) for name in LIMITS if getattr(module, name, None) is not None)]
    names = [name for name, rule in ACTIVATIONS.items() if module.has_gate or not rule.gate_only]
    return [(name, limit) for name in names for limit in (limits if module.has_gate else [None])]


def configuration(module: Any, gate: Gate, top_k: int, dtype: torch.dtype, source: Any, **others: Any) -> MoEConfig:
    """The configuration of a module's layer, with the `options` that hold now; rows have `dtype`.

    source: what has packed weights in a `weight_type`, or None; the layer keeps it unless options name another. others:
    fields in place of the module's.
    """
    options = {"max_tokens": current().max_tokens, **current().config}
    if source is not None and options.get("weight_dtype") is None:
        options["weight_dtype"] = source.weight_type
    if dtype not in ROWS:
        raise InputError(f"{type(module).__name__}: rows must be of {', '.join(map(str, ROWS))}, got {dtype}")
    down = module.down_proj
    experts, first, second = down.shape
    ffn, hidden = (first, second) if module.is_transposed else (second, first)
    fields = {
        "hidden": hidden,
        "ffn": ffn,
        "experts": experts,
        "top_k": top_k,
        "dtype": ROWS[dtype],
        **options,
        **others,
    }
    return MoEConfig(activation=gate.activation, gated=gate.gated, limit=gate.limit, bias=module.has_bias, **fields)


def weights(module: Any, gate: Gate) -> dict[str, Any]:
    """The module's weights as `MoE.load` takes them; views, no copies."""
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
    """Whether a layer that is made now has gradients: as `options` says, else as the module does."""
    asked = current().train
    return bool(module.training) if asked is None else asked


def trains(module: Any, source: Any) -> bool:
    """`asked_to_train`. Raises InputError if that is true of a module with a source of packed or absent experts."""
    train = asked_to_train(module)
    if train and source is not None:
        raise InputError(
            f"{type(module).__name__}: torch does not have its experts as elements, so they cannot be trained: open"
            " the model by transformers' own from_pretrained"
        )
    return train


def masters(module: Any, gate: Gate, kind: type[Masters] = Masters) -> Masters:
    """The module's parameters as masters of a layer that trains."""
    first = "gate_up" if gate.gated else "up"
    names = [f"{first}_proj", "down_proj"]
    names += [f"{name}_bias" for name in names if module.has_bias]
    return kind(module, names, module.is_transposed, gate.interleaved)


def keep(module: Any, masters: Masters, mine: list[int]) -> None:
    """Cut parameters of all experts to those of this rank; an optimizer that has them sees it."""
    cut = False
    for parameter in masters.parameters.values():
        if len(mine) < len(parameter):
            parameter.data = parameter.data[mine]
            parameter.grad = None
            cut = True
    if cut:
        refuse_others(module)


def release(module: Any) -> None:
    """Give the memory of the module's matrices back. Their shapes stay, so that transformers still knows the model."""
    for name in MATRICES:
        parameter = getattr(module, name, None)
        if parameter is not None:
            parameter.data = torch.empty(1, dtype=parameter.dtype).expand(parameter.shape)
    if SOURCE not in vars(module):
        refuse_saving(module)
        refuse_others(module)


def refuse_others(module: Any) -> None:
    """From now on a call by another implementation raises InputError: torch does not have all experts.

    Its class looks for it, and calls Aristos itself: a hook of the module costs each call 20 us, the interface 10.
    """
    vars(module)[ELSEWHERE] = True
    kind = type(module)
    if not hasattr(kind.forward, "refuses"):
        kind.forward = _refusing(kind.forward, ALL_EXPERTS_FUNCTIONS[NAME])


def _refusing(forward: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a class of which some modules are those of `refuse_others`."""

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
    """From now on a state dict of the module raises InputError: torch does not have its experts."""
    module.register_state_dict_pre_hook(_refuse_saving)


def _refuse_saving(module: Any, *_: Any) -> None:
    raise InputError(
        f"{type(module).__name__}: its experts are in Aristos's layer and not in torch: save the model before its"
        " first call; a model that trains keeps them in torch"
    )
