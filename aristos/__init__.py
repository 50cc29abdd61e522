"""Aristos: expert-parallel Mixture-of-Experts layers by one-sided puts, in Python down to the kernels.

Importing this module does no work: no MPI, no compilation, no device query. Its names are loaded when first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel_cache import errors as _shared
from kernel_cache import packages as _packages

from ._version import __version__
from .errors import (
    AristosError,
    CheckpointError,
    ClosedError,
    CorruptionError,
    EnvironmentProblem,
    InputError,
    MemoryProblem,
    MismatchError,
    NotLoaded,
    OpenCallError,
    PeerInputError,
    PoisonedError,
    ResultsError,
    TopologyError,
    WaitTimeout,
)

if TYPE_CHECKING:
    from . import results
    from .checkpoint import Checkpoint
    from .config import MoEConfig, Router
    from .layer.exchange import Exchange
    from .layer.moe import MoE
    from .quantised import Quantised, quantise
    from .reproducible import reproducible_sum
    from .routing import Routing
    from .weight_types import packed

__all__ = [
    "AristosError",
    "Checkpoint",
    "CheckpointError",
    "ClosedError",
    "CorruptionError",
    "EnvironmentProblem",
    "Exchange",
    "InputError",
    "MemoryProblem",
    "MismatchError",
    "MoE",
    "MoEConfig",
    "NotLoaded",
    "OpenCallError",
    "PeerInputError",
    "PoisonedError",
    "Quantised",
    "ResultsError",
    "Router",
    "Routing",
    "TopologyError",
    "WaitTimeout",
    "__version__",
    "packed",
    "quantise",
    "reproducible_sum",
    "results",
]

_LAZY = {
    "MoE": ".layer.moe",
    "Checkpoint": ".checkpoint",
    "Exchange": ".layer.exchange",
    "MoEConfig": ".config",
    "Quantised": ".quantised",
    "Router": ".config",
    "Routing": ".routing",
    "packed": ".weight_types",
    "quantise": ".quantised",
    "reproducible_sum": ".reproducible",
}
_MODULES = (
    "bench",
    "checkpoint",
    "errors",
    "integrations",
    "kernels",
    "losses",
    "model_table",
    "models",
    "placement",
    "planner",
    "reference",
    "reproducible",
    "results",
    "topology",
    "train",
)


def _isa() -> str:
    """The instruction set whose constants the modules of `kernels/cpu` have in this process."""
    from .kernels.cpu.target import ISA

    return ISA


_shared.raise_as(InputError, EnvironmentProblem)
_root = Path(__file__).parent
_packages.register("aristos", _root, parts=_isa, reader=_root / "kernels" / "cpu" / "target.py")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
