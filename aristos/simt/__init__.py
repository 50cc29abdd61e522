"""A PTX machine: compiled Numba kernels run on the CPU, with a checker and counters (docs/simt.md)."""

from __future__ import annotations

from .findings import KernelFault, Report
from .machine import DeviceArray, Machine, SimulatedGpu
from .switch import enable, use
from .syntax import PTXError

__all__ = ["DeviceArray", "KernelFault", "Machine", "PTXError", "Report", "SimulatedGpu", "enable", "use"]
