"""Models of Hugging Face transformers with Aristos's experts. Importing this module registers "aristos".

    import aristos.integrations.transformers
    model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="aristos")

This works in one process, and on the ranks of `aristos run -n 2 -- python program.py`. Each rank then has its own
prompts, and an equal part of every layer's experts. A layer is made at its first call, on all ranks together.
`generate` waits for all ranks at its end; put other uses of a model into a block of `together`. Layers made after
`model.train()` have gradients.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from typing import Any

import torch

from ..errors import EnvironmentProblem, InputError
from . import experts_module, job, uncaught
from .fp8 import packed_experts
from .guard import Guard, Offer, guarded
from .masters import Masters, refuse_sharded
from .options import NAME, communicator, current, from_environment, limits
from .options import options as options
from .report import report
from .sources import model_without_experts
from .torch import CALLS, Experts
from .training import (
    CLOSED,
    HELD,
    SOURCE,
    TIMELINE,
    average_dense_grads,
    clip_grad_norm_,
    held,
    hold,
    layers_of,
    refuse_parts,
    whole_state_dict,
)

try:
    from transformers import GenerationMixin, PreTrainedModel
    from transformers.integrations.moe import ExpertsInterface

    from . import fallback
except ImportError as error:
    raise EnvironmentProblem(
        f"aristos.integrations.transformers needs transformers 5.24: pip install 'aristos[transformers]' ({error})"
    ) from error

__all__ = [
    "average_dense_grads",
    "changed",
    "clip_grad_norm_",
    "close",
    "from_pretrained",
    "options",
    "report",
    "together",
    "whole_state_dict",
]


def _layer_of(module: Any, top_k: int, dtype: torch.dtype) -> Experts:
    """The layer of an experts module. It is made at the first call; then the module's memory is released.

    Collective.
    """
    experts = held(module)
    if experts is None:
        if module._is_expert_parallel:
            raise InputError(
                f"{type(module).__name__}: transformers has split its experts among ranks: give its DistributedConfig"
                ' ep_implementation="aristos", or leave distributed_config out'
            )
        refuse_sharded(module)
        source = vars(module).get(SOURCE) or packed_experts(module)
        experts = experts_module.layer_of(module, top_k, dtype, source, communicator(), Masters)
        if experts.named_masters():
            experts_module.keep(module, experts)
        else:
            experts_module.release(module)
        hold(module, experts)
    return experts


def _refuse_adapter(module: Any) -> None:
    """Raise InputError for parameters that an adapter computes in each call, unless one process trains alone."""
    made, comm = vars(module).get(HELD), communicator()
    if comm is not None or not (experts_module.asked_to_train(module) if made is None else made.named_masters()):
        raise InputError(
            f"{type(module).__name__}: an adapter changes its experts in each call, which works only in one process"
            " that trains: call merge_and_unload() before the first call, or leave experts out of target_parameters"
        )


def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """y [S, H] of this rank's S tokens. transformers calls this for each layer's experts. Collective."""
    if torch.compiler.is_compiling():
        return _untraced_forward(self, hidden_states, top_k_index, top_k_weights)
    made: Experts | None = self.__dict__.get(HELD)
    if made is not None and _guard is None and "parametrizations" not in self._modules:
        return made.computed(hidden_states, top_k_index, top_k_weights)
    return _forward(self, made, hidden_states, top_k_index, top_k_weights)


def _forward(
    self: Any, made: Experts | None, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What `experts_forward` returns, for a layer that is not made yet, or that ranks use at their own pace."""
    if made is None and (theirs := fallback.left_to(self)) is not None:
        left: torch.Tensor = theirs(self, hidden_states, top_k_index, top_k_weights)
        return left
    if "parametrizations" in self._modules:
        _refuse_adapter(self)
    if (
        made is None
        and not experts_module.asked_to_train(self)
        and torch.is_grad_enabled()
        and hidden_states.requires_grad
    ):
        raise InputError(
            f"{type(self).__name__}: a gradient is asked for, but the model does not train: call it under"
            " torch.no_grad(), or call model.train() first"
        )
    top_k, dtype, calls = top_k_index.shape[-1], hidden_states.dtype, None
    if _guard is not None and _guard.covers(self):
        most = current().max_tokens if made is None else made.cfg.max_tokens  # options may have changed since
        mine = -(-len(hidden_states) // most)
        grad = torch.is_grad_enabled() and any(each.requires_grad for each in (hidden_states, *self.parameters()))
        calls = _guard.agree(self, mine, top_k, str(dtype).removeprefix("torch."), grad)
    with CALLS:
        return _layer_of(self, top_k, dtype).computed(hidden_states, top_k_index, top_k_weights, calls)


_untraced_forward = torch.compiler.disable(experts_forward)  # used only while torch compiles: it is slower


def _take_part(module: Any, offer: Offer) -> None:
    """Take part, without tokens, in another rank's calls of a layer."""
    _layer_of(module, offer.top_k, getattr(torch, offer.dtype)).idle(offer.calls)


@contextmanager
def together(*models: Any) -> Iterator[int]:
    """A block in which each rank uses the models at its own pace, with its own prompts or none. Collective.

    If ranks are at different layers, the first of these in the order of the models runs first. Ranks that are at later
    layers or at the end of their block take part in that layer's calls without tokens. A block ends when all ranks are
    at its end. `model.generate` is such a block. An exception on one rank ends the others' blocks with PoisonedError,
    which names the exception. Calls with gradients must be the same on all ranks.

    Parameters
    ----------
    *models : PreTrainedModel
        The models that the block uses, the same on all ranks.

    Yields
    ------
    int
        This rank's number, 0 in one process.

    Raises
    ------
    InputError
        A model is used within a block of `together` for other models, or has experts that Aristos refuses.
    MismatchError
        Ranks call different layers with gradients, or differ in a layer's calls.
    PoisonedError
        Another rank failed in its block.
    EnvironmentProblem
        MPI does not see the launcher's tasks as one job.
    """
    global _guard
    for model in models:
        fallback.check(model)
    comm = communicator()
    rank = 0 if comm is None else comm.Get_rank()
    modules = list(dict.fromkeys(module for model in models for module in experts_modules(model)))
    if _guard is not None and not all(map(_guard.covers, modules)):
        raise InputError(
            "together() must get every model that is called inside it, as in together(first, second), got fewer"
        )
    if comm is None or _guard is not None:
        yield rank
        return
    with guarded(comm, limits(), modules, _take_part) as guard:
        _guard = guard
        try:
            yield rank
        finally:
            _guard = None


def from_pretrained(path: str | os.PathLike[str], *, dtype: torch.dtype | str | None = None, **more: Any) -> Any:
    """A causal language model from a directory. Aristos reads the experts from there, torch all else. Collective.

    Each rank reads its own experts when it makes a layer. Packed experts stay packed, unless `options` set another
    weight_dtype.

    Parameters
    ----------
    path : path
        The model's directory.
    dtype : torch.dtype, str or None, default None
        The type of rows, and of all weights but the experts'. None or "auto": the type in config.json.
    **more : object
        Further arguments of transformers' own from_pretrained, such as config.

    Returns
    -------
    PreTrainedModel
        The model, with experts_implementation="aristos".

    Raises
    ------
    CheckpointError
        `aristos.Checkpoint` does not know the directory, or the dense parts are quantised too.
    InputError
        Another experts_implementation, or a dtype that torch does not have.
    PeerInputError
        Another rank cannot open the directory.
    MismatchError
        Ranks open different models.
    EnvironmentProblem
        MPI lacks a feature that Aristos needs.
    """
    return model_without_experts(path, communicator(), dtype, more)


def changed(model: Any) -> None:
    """Read the experts' parameters again. This is needed after a write through `.data`, which torch does not count.

    Parameters
    ----------
    model : torch.nn.Module
        A model whose layers train.
    """
    for experts in layers_of(model).values():
        experts.changed()


def close(model: Any) -> None:
    """Release the layers of a model. Collective. Afterwards the model has no experts, and its calls are refused.

    With `options(timeline=FOLDER)` each layer's last forward call is written first.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    """
    for name, module in model.named_modules():
        experts, folder = vars(module).pop(HELD, None), vars(module).pop(TIMELINE, None)
        if experts is not None:
            if folder is not None and experts.moe.runtime.broken is None:
                os.makedirs(folder, exist_ok=True)
                with suppress(InputError):  # the layer has made no call
                    experts.moe.write_timeline(os.path.join(folder, f"{name}.json"))
            experts.close()
            vars(module)[CLOSED] = SOURCE not in vars(module)


def _guarded_generate(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `generate` of all models: with Aristos's experts it becomes a block of `together`."""

    @wraps(generate)
    def whole(self: Any, *args: Any, **given: Any) -> Any:
        ours = any(getattr(each.config, "_experts_implementation", None) == NAME for each in experts_modules(self))
        with together(self) if ours else nullcontext():
            return generate(self, *args, **given)

    return whole


def experts_modules(model: Any) -> list[Any]:
    """The experts modules of a model, in order, if transformers lets other implementations compute them."""
    return [module for module in model.modules() if hasattr(module, "is_concatenated")]


def _checked_at_the_end(post_init: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `post_init` of models: with "aristos" it refuses experts that only transformers can compute."""

    @wraps(post_init)
    def whole(self: Any) -> None:
        post_init(self)
        if getattr(self.config, "_experts_implementation", None) == NAME:
            fallback.check(self)

    return whole


def _checked_choice(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `set_experts_implementation`: it refuses experts that only transformers can compute."""

    @wraps(choose)
    def whole(self: Any, experts_implementation: str | dict[str, str]) -> None:
        choose(self, experts_implementation)
        asked = experts_implementation
        if NAME in (asked.values() if isinstance(asked, dict) else [asked]):
            fallback.check(self)

    return whole


def _whole_when_saved(save: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `save_pretrained`: it refuses to save only a part of the experts."""
    called = inspect.signature(save)

    @wraps(save)
    def whole(self: Any, *args: Any, **given: Any) -> Any:
        if called.bind(self, *args, **given).arguments.get("state_dict") is None:
            refuse_parts(self)
        return save(self, *args, **given)

    return whole


_guard: Guard | None = None
from_environment()
job.start()
uncaught.end_together()
if importlib.util.find_spec("transformers.distributed.expert_parallel") is not None:  # from transformers 5.23 on
    from . import expert_parallel

    expert_parallel.register(NAME)
ExpertsInterface.register(NAME, experts_forward)
if fallback.ALL_FP8_EXPERTS_FUNCTIONS:
    fallback.ALL_FP8_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
PreTrainedModel.post_init = _checked_at_the_end(PreTrainedModel.post_init)
PreTrainedModel.set_experts_implementation = _checked_choice(PreTrainedModel.set_experts_implementation)
PreTrainedModel.save_pretrained = _whole_when_saved(PreTrainedModel.save_pretrained)
GenerationMixin.generate = _guarded_generate(GenerationMixin.generate)
