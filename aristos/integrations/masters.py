"""torch's parameters as the masters of a trained layer.

Parameters that have changed are packed for the layer. The layer's gradients are given in the parameters' forms.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..errors import InputError
from ..layer.moe import MoE

BIAS = "_bias"
_alive: weakref.WeakSet[Masters] = weakref.WeakSet()


def _stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """React to a step of any optimizer, because torch does not count the changes by fused optimizers."""
    if not _alive:
        return
    theirs = {id(each) for group in optimizer.param_groups for each in group["params"] if each.grad is not None}
    every = list(_alive)
    ours = set().union(*(masters.numbers for masters in every))
    for masters in every:
        if theirs & masters.numbers:
            masters.changed()
            if masters.apart and theirs - ours:
                _say_apart()


@cache
def _say_apart() -> None:
    """Warn once that gradients outside the experts were not averaged."""
    warnings.warn(
        "an optimizer's step has changed weights outside the experts by gradients of this rank's tokens alone: call"
        " average_dense_grads(model) before each optimizer.step()",
        stacklevel=4,
    )


register_optimizer_step_post_hook(_stepped)


class Masters:
    """Parameters of this rank's experts, as their module has them now.

    names: the parameters' names in transformers: gate_up_proj [n, 2F, H] or up_proj [n, F, H], down_proj [n, H, F], and
    with _bias the biases. transposed: whether the last two axes are swapped. interleaved: see `MoE.load`.
    """

    def __init__(self, module: torch.nn.Module, names: Sequence[str], transposed: bool, interleaved: bool) -> None:
        self.transposed, self.interleaved = transposed, interleaved
        self._module, self._names = module, tuple(names)
        self._given = False  # whether the layer has weights
        self._packed: list[Any] | None = None  # what identifies the parameters that the layer has
        self.apart = False  # whether ranks have gradients outside the experts that they have not averaged
        _alive.add(self)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The module's present parameters. `load_state_dict(assign=True)` or an assignment may replace them."""
        return {name: getattr(self._module, name) for name in self._names}

    def views(self, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Views of tensors that are like the parameters, by the names and in the forms of `MoE.params`."""
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
        """Pack the parameters before the next call, even if torch has not counted a change."""
        self._packed = None

    @property
    def numbers(self) -> set[int]:
        """The `id`s of the parameters that the layer has taken."""
        return {number for number, *_ in self._packed or ()}

    def stale(self, moe: MoE) -> bool:
        """Whether a parameter has changed since the layer took it."""
        refuse_sharded(self._module)
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

    def take_weights(self, moe: MoE) -> None:
        """Write the weights that the layer has loaded into the parameters."""
        masters = moe.params(0)
        for name, view in self.views(list(self.parameters.values())).items():
            view.copy_(torch.from_numpy(masters[name]))
        self._given, self._packed = True, self._versions()

    def gradients(self, moe: MoE, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The gradients of `moe.grads` times `share`, in the order, forms and types of the parameters."""
        made = [torch.empty_like(each) for each in parameters]
        sums, share = moe.grads(0), self.share(moe)
        for name, view in self.views(made).items():
            view.copy_(torch.from_numpy(sums[name]) * share)  # rounded once
        self.apart = share < 1
        return made

    def share(self, moe: MoE) -> float:
        """The factor for gradients over all ranks' tokens: the loss is the mean of the ranks' losses."""
        return 1 / moe.world

    def _versions(self) -> list[Any] | None:
        return [(id(each), each._version, each.data_ptr(), each.dtype) for each in self.parameters.values()]


class ShardedMasters(Masters):
    """Parameters of which transformers gives this rank a shard.

    Each call has new tensors, made from the optimizer's tensors. Before each call, torch's counts of changes to the
    optimizer's tensors show whether values must be compared. A comparison takes 2 to 50 times as long as a call.
    transformers divides the gradients itself.
    """

    def __init__(self, module: torch.nn.Module, names: Sequence[str], transposed: bool, interleaved: bool) -> None:
        super().__init__(module, names, transposed, interleaved)
        self._now: list[Any] | None = None  # the same as `_packed`, for the call that begins
        module.register_forward_pre_hook(self._begin)

    def _begin(self, module: Any, _: Any) -> None:
        if hasattr(module, "_get_fsdp_state"):
            groups = module._get_fsdp_state()._fsdp_param_groups
            shards = [each.sharded_param for group in groups for each in group.fsdp_params]
        else:
            shards = list(self.parameters.values())
        local = [getattr(each, "_local_tensor", each) for each in shards]
        self._now = [  # a DTensor counts changes by its own operations, its local tensor counts all others
            (id(each), each._version, mine._version, mine.data_ptr()) for each, mine in zip(shards, local, strict=True)
        ]

    def stale(self, moe: MoE) -> bool:
        """Whether a parameter has changed since the layer took it."""
        if not self._given:
            return True
        now = self._versions()
        if now is not None and now == self._packed:
            return False
        views, masters = self.views(list(self.parameters.values())), moe.params(0)
        if not all(torch.equal(view.float(), torch.from_numpy(masters[name])) for name, view in views.items()):
            self._now = now
            return True
        self._packed = now
        return False

    def _versions(self) -> list[Any] | None:
        """The parameters' versions in this call; None if no hook ran, as in a direct call of `forward`."""
        found, self._now = self._now, None
        return found

    def array(self, view: torch.Tensor) -> np.ndarray:
        """A copy of a part. FSDP frees the memory of a call, and torch refuses to free memory that an array shares."""
        return as_numpy(view.clone())

    def share(self, moe: MoE) -> float:
        """The factor for gradients over all ranks' tokens: 1, because transformers divides them."""
        return 1.0


def refuse_sharded(module: torch.nn.Module) -> None:
    """Raise InputError if FSDP has cut a module's parameters: torch does not count FSDP's copies of them."""
    if vars(module).get("_is_fsdp_managed_module"):
        raise InputError(
            f"{type(module).__name__}: FSDP has split its experts, which Aristos splits itself: leave FSDP out, or give"
            " transformers' from_pretrained"
            ' distributed_config=DistributedConfig(fsdp_size=N, ep_size=N, ep_implementation="aristos")'
        )


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor on the CPU as an array of the same memory; torch.bfloat16 becomes ml_dtypes.bfloat16."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
