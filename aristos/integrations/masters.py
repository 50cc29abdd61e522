"""torch's parameters as the masters of a trained layer: what has changed is packed, and gradients take their forms."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..layer.moe import MoE

BIAS = "_bias"
_alive: weakref.WeakSet[Masters] = weakref.WeakSet()


def _stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """After a step of any optimizer: fused ones change parameters without torch counting it."""
    theirs = {id(each) for group in optimizer.param_groups for each in group["params"] if each.grad is not None}
    for masters in list(_alive):
        if any(id(each) in theirs for each in masters.parameters.values()):
            masters.changed()


register_optimizer_step_post_hook(_stepped)


class Masters:
    """Parameters of this rank's experts, as their module has them now.

    names: transformers' ones: gate_up_proj [n, 2F, H] or up_proj [n, F, H], down_proj [n, H, F], with _bias those of
    biases; transposed: the last two axes are the other way around. interleaved: see `MoE.load`.
    """

    def __init__(self, module: torch.nn.Module, names: Sequence[str], transposed: bool, interleaved: bool) -> None:
        self.transposed, self.interleaved = transposed, interleaved
        self._module, self._names = module, tuple(names)
        self._given = False  # whether the layer has weights
        self._packed: list[Any] | None = None  # what identifies the parameters that it has
        _alive.add(self)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """They may be others after `load_state_dict(assign=True)` or an assignment."""
        return {name: getattr(self._module, name) for name in self._names}

    def views(self, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parts of tensors in the order and forms of the parameters, by the names and in the forms of `MoE.params`."""
        found = {}
        for name, tensor in zip(self._names, tensors, strict=True):
            ending = BIAS if name.endswith(BIAS) else ""
            first = name.removesuffix(BIAS).removesuffix("_proj")
            whole = tensor.detach()
            if not ending and not self.transposed:
                whole = whole.transpose(1, 2)
            if first != "gate_up":
                found[first + ending] = whole
            elif self.interleaved:
                found["gate" + ending], found["up" + ending] = whole[..., ::2], whole[..., 1::2]
            else:
                found["gate" + ending], found["up" + ending] = whole.chunk(2, dim=-1)
        return found

    def changed(self) -> None:
        """Pack the parameters before the next call, whatever torch says of them."""
        self._packed = None

    def stale(self, moe: MoE) -> bool:
        """Whether a parameter has changed since the layer took it."""
        return self._versions() != self._packed

    def give(self, moe: MoE) -> None:
        """Write the parameters into the layer and pack them."""
        views = self.views(list(self.parameters.values()))
        if self._given:
            masters = moe.params(0)
            for name, view in views.items():
                torch.from_numpy(masters[name]).copy_(view)
            moe.update(0)
        else:
            arrays: dict[str, Any] = {name: self.array(view) for name, view in views.items()}
            moe.load(0, local=True, **arrays)
        self._given, self._packed = True, self._versions()

    def array(self, view: torch.Tensor) -> np.ndarray:
        """A part of a parameter as an array."""
        return as_numpy(view)

    def take(self, moe: MoE) -> None:
        """Write what the layer has loaded into the parameters."""
        masters = moe.params(0)
        for name, view in self.views(list(self.parameters.values())).items():
            view.copy_(torch.from_numpy(masters[name]))
        self._given, self._packed = True, self._versions()

    def gradients(self, moe: MoE, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`moe.grads` times a share, in the order, forms and types of the parameters."""
        made = [torch.empty_like(each) for each in parameters]
        sums, share = moe.grads(0), self.share(moe)
        for name, view in self.views(made).items():
            view.copy_(torch.from_numpy(sums[name]) * share)  # rounded once
        return made

    def share(self, moe: MoE) -> float:
        """What gradients of all ranks' tokens are multiplied by: the loss is the mean of the ranks' losses."""
        return 1 / moe.world

    def _versions(self) -> list[Any]:
        return [(id(each), each._version, each.data_ptr(), each.dtype) for each in self.parameters.values()]


class PartedMasters(Masters):
    """Parameters that transformers has parted: other tensors in each call, so their values show what has changed.

    transformers divides their gradients itself.
    """

    def stale(self, moe: MoE) -> bool:
        """Whether a parameter has changed since the layer took it."""
        if not self._given:
            return True
        views, masters = self.views(list(self.parameters.values())), moe.params(0)
        return not all(torch.equal(view.float(), torch.from_numpy(masters[name])) for name, view in views.items())

    def array(self, view: torch.Tensor) -> np.ndarray:
        """A copy: FSDP frees memory that it gives a call, and torch refuses to free what an array has shared."""
        return as_numpy(view.clone())

    def share(self, moe: MoE) -> float:
        """What gradients of all ranks' tokens are multiplied by."""
        return 1.0


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor on the CPU as an array of the same memory; NumPy has no bfloat16 of its own."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
