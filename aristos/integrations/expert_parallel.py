"""transformers' own expert parallelism with Aristos: `DistributedConfig(..., ep_size=2, ep_implementation="aristos")`.

transformers splits the experts, and each rank reads its own experts. Aristos moves rows between the ranks and computes
them. The interface exists from transformers 5.23 on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from transformers.distributed import DistributedConfig
from transformers.distributed.expert_parallel import AutoEP, EPImplementation, EPImplementationInterface
from transformers.distributed.mixin import DistributedMixin

from ..errors import InputError
from . import experts_module, fallback
from .fp8 import packed_experts
from .masters import ShardedMasters
from .options import communicator, limits
from .process_groups import communicator_of, set_variables
from .same_tokens import Moved, SharedRows
from .torch import Experts
from .training import held, hold


class AristosEP(EPImplementation):
    """An experts module in which each rank has consecutive experts. transformers makes and calls it on all ranks.

    Ranks of a tensor parallel group have the same tokens: each computes a part of them, and gets the others' outputs.
    Gradients of experts are sums over all ranks' tokens; transformers divides them by the number of batches.
    """

    def __init__(self, experts: Any, ep_mesh: Any, tp_mesh: Any) -> None:
        super().__init__(experts, ep_mesh, tp_mesh)
        self._module = experts
        self._theirs = None if fallback.left_to(experts) is None else AutoEP(experts, ep_mesh, tp_mesh)
        if self._theirs is not None:
            return
        self._comm = communicator_of(ep_mesh.get_group())
        self._same_tokens = communicator_of(tp_mesh.get_group())

    @torch.compiler.disable
    def __call__(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """y [S, H] of this rank's S tokens. Collective over the ranks that share the experts."""
        if self._theirs is not None:
            left: torch.Tensor = self._theirs(hidden_states, top_k_index, top_k_weights)
            return left
        layer = self._layer(top_k_index.shape[-1], hidden_states.dtype)
        if self._same_tokens is None:
            return layer.computed(hidden_states, top_k_index, top_k_weights)
        count = hidden_states.shape[0]
        rows = SharedRows(self._same_tokens, layer.moe.runtime.group, count)
        calls = layer.calls_for(rows.most) if self.shares_batch else None
        ids = rows.part(top_k_index)
        if torch.is_grad_enabled():
            x, weights = (Moved.apply(rows.part, rows.whole, each) for each in (hidden_states, top_k_weights))
            y: torch.Tensor = Moved.apply(rows.whole, rows.part, layer.computed(x, ids, weights, calls))
            return y
        return rows.whole(layer.computed(rows.part(hidden_states), ids, rows.part(top_k_weights), calls))

    def _layer(self, top_k: int, dtype: torch.dtype) -> Experts:
        """The layer of this module, which is made at the first call. Collective.

        Once the layer is made, torch's memory of the experts is released. If the layer trains, torch's parameters stay
        instead, as the layer's masters.
        """
        experts = held(self._module)
        if experts is None:
            every, packed = self.num_local_experts * self.ep_mesh.size(), packed_experts(self._module)
            of = self._module, top_k, dtype, packed, self._comm
            experts = experts_module.layer_of(*of, ShardedMasters, every)
            if not experts.named_masters():
                _release(self._module)
            hold(self._module, experts)
        return experts


def _release(module: Any) -> None:
    """Release the memory of the module's matrices. Their shapes stay, so that transformers still knows the model.

    Within a call the module's parameters are this rank's local tensors. When the call ends, transformers turns
    parameters that were replaced into shards again.
    """
    if hasattr(module, "_get_fsdp_state"):
        _leave_fsdp(module._get_fsdp_state())
    for name in experts_module.MATRICES:
        local = module._parameters.get(name)
        if local is not None:
            module._parameters[name] = torch.empty(1, dtype=local.dtype).expand(local.shape)
    experts_module.refuse_saving(module)


def _leave_fsdp(state: Any) -> None:
    """Remove a module's parameters from FSDP, which holds two copies, and would make another copy in each call.

    FSDP's groups of parameters are held by the state, and by the hooks that the groups have registered.
    """
    for group in state._fsdp_param_groups:
        hooks = [
            *group._module_to_pre_save_state_dict_hook_handle.values(),
            *group._module_to_pre_load_state_dict_hook_handle.values(),
            *(parameter._post_load_hook_handle for parameter in group.fsdp_params),
        ]
        for hook in hooks:
            hook.remove()
    state._fsdp_param_groups.clear()


def _checked(config: Any) -> None:
    """Raise InputError if FSDP would cut each expert, before a process group is made."""
    if config.efsdp_size > 1:
        raise InputError(
            f"ep_size must be fsdp_size * tp_size, got fsdp_size {config.fsdp_size}, tp_size {config.tp_size} and"
            " ep_size"
            f" {config.ep_size}: FSDP would split each expert into {config.efsdp_size} parts, which Aristos does not"
            f" read; set ep_size={config.fsdp_size * config.tp_size}"
        )


def register(name: str) -> None:
    """Register Aristos as an `ep_implementation`; models with a distributed_config then find their process group."""
    EPImplementationInterface.register(name, AristosEP)
    prepare: Callable[..., Any] = DistributedMixin.prepare_distribute_model.__func__

    @wraps(prepare)
    def prepared(cls: Any, distributed_config: Any, *args: Any, **given: Any) -> Any:
        config = distributed_config
        if isinstance(config, dict):
            config = DistributedConfig.from_dict(config)
        if config is not None:
            if config.ep_size > 1 and config.ep_implementation == name:
                _checked(config)
            comm = communicator()
            if comm is not None and not torch.distributed.is_initialized():
                set_variables(comm, limits())
        return prepare(cls, config, *args, **given)

    DistributedMixin.prepare_distribute_model = classmethod(prepared)
