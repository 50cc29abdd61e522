"""Models of Hugging Face transformers with Aristos's experts: importing this module registers "aristos".

    import aristos.integrations.transformers
    model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="aristos")

In one process, or on the ranks of `aristos run -n 2 -- python program.py`: there each rank has prompts of its own, and
an equal part of every layer's experts. A layer is made at its first call, on all ranks together. Inference alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import EnvironmentProblem, InputError
from ..host import launch_environment
from . import experts_module
from .torch import Experts

try:
    from transformers.integrations.moe import ExpertsInterface
except ImportError as error:
    raise EnvironmentProblem(
        f"aristos.integrations.transformers needs transformers 5.24: pip install 'aristos[transformers]' ({error})"
    ) from error

NAME = "aristos"


@dataclass
class Options:
    """max_tokens: rows of a call; more are computed in several. comm: an mpi4py communicator; None: all ranks that a
    launcher has started. layer: further arguments of `Experts`, such as threads and moves. config: of `MoEConfig`.
    """

    max_tokens: int = 1024
    comm: Any = None
    layer: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


_options = Options()


def options(*, max_tokens: int = 1024, comm: Any = None, weight_dtype: Any = None, precision: str = "highest",
            **layer: Any) -> None:  # fmt: skip
    """Set what layers are made with from now on; what is left out gets its default again.

    max_tokens: most rows of a call. comm: an mpi4py communicator. weight_dtype, precision: as in `aristos.MoEConfig`.
    layer: further arguments of `aristos.MoE`, such as threads, moves, schedule and timeout.
    """
    global _options
    _options = Options(max_tokens, comm, layer, {"weight_dtype": weight_dtype, "precision": precision})


def _world() -> Any:
    """MPI's world if a launcher has started several tasks, else None."""
    started = launch_environment.started_as()
    if started is None or started[1] == 1:
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD


def _made(module: Any, top_k: int, dtype: torch.dtype) -> Experts:
    """The layer of an experts module, with its weights; the module's own memory is given back."""
    if module._is_expert_parallel:
        raise InputError(
            f"{type(module).__name__}: transformers has parted its experts already: leave distributed_config out, and"
            " start the program by `aristos run -n RANKS`"
        )
    gate = experts_module.gate_of(module)
    cfg = experts_module.configuration(module, gate, top_k, dtype, max_tokens=_options.max_tokens, **_options.config)
    experts = Experts(cfg, _options.comm or _world(), **_options.layer)
    experts.load(**experts_module.weights(module, gate))
    experts_module.release(module)
    return experts


def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What transformers calls for each layer's experts: y [S, H] of this rank's S tokens. Collective."""
    experts = self.__dict__.get("_aristos")
    if experts is None:
        experts = self.__dict__["_aristos"] = _made(self, top_k_index.shape[-1], hidden_states.dtype)
    return experts(hidden_states, top_k_index, top_k_weights)


def close(model: Any) -> None:
    """Release the layers of a model; collective. The model has no experts after it."""
    for module in model.modules():
        experts = module.__dict__.pop("_aristos", None)
        if experts is not None:
            experts.close()


ExpertsInterface.register(NAME, experts_forward)
