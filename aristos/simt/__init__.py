"""A PTX machine: compiled Numba kernels run on the CPU, with a checker and counters (docs/simt.md)."""

from __future__ import annotations

from .findings import KernelFault, Report
from .machine import Device, DeviceArray, Machine
from .switch import enable, use
from .syntax import PTXError

__all__ = ["Device", "DeviceArray", "KernelFault", "Machine", "PTXError", "Report", "enable", "use"]
