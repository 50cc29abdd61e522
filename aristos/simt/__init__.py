"""A PTX machine: compiled Numba kernels run on the CPU, with a checker and counters (docs/simt.md).

Importing this module does no work. Its names are loaded when first used, so pytest can load the plugin in every run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .findings import KernelFault, Report
    from .machine import DeviceArray, Machine, SimulatedGpu
    from .switch import enable, use
    from .syntax import PTXError

__all__ = ["DeviceArray", "KernelFault", "Machine", "PTXError", "Report", "SimulatedGpu", "enable", "use"]

_PLACES = {"KernelFault": "findings", "Report": "findings", "PTXError": "syntax", "enable": "switch", "use": "switch"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f".{_PLACES.get(name, 'machine')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
