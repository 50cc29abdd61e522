"""A PTX machine: compiled Numba kernels run on the CPU, with a checker and counters (docs/ptxsim.md).

The package needs no GPU, no driver, no MPI and nothing of Aristos. An import of this module does no work: names are
loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel_cache import packages

if TYPE_CHECKING:
    from .arrays import DeviceArray
    from .errors import EnvironmentProblem, InputError, PtxsimError
    from .findings import KernelFault, Report
    from .machine import Machine, SimulatedGpu
    from .streams import Stream
    from .switch import enable, use
    from .syntax import PTXError
    from .tensor_maps import tensor_map
    from .textures import surface, texture

__all__ = [
    "DeviceArray",
    "EnvironmentProblem",
    "InputError",
    "KernelFault",
    "Machine",
    "PTXError",
    "PtxsimError",
    "Report",
    "SimulatedGpu",
    "Stream",
    "enable",
    "surface",
    "tensor_map",
    "texture",
    "use",
]

packages.register("ptxsim", Path(__file__).parent)

_PLACES = {
    "EnvironmentProblem": "errors",
    "InputError": "errors",
    "KernelFault": "findings",
    "PTXError": "syntax",
    "PtxsimError": "errors",
    "Report": "findings",
    "Stream": "streams",
    "enable": "switch",
    "surface": "textures",
    "tensor_map": "tensor_maps",
    "texture": "textures",
    "use": "switch",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f".{_PLACES.get(name, 'machine')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
