"""What every transport's window offers, and the windows of a rank without local peers (transport `self`)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ..primitives.buffers import LINE


class Window(Protocol):
    """Memory that each rank of a group exposes."""

    base: list[int]  # address of every rank's part in this process
    nbytes: int  # bytes of each rank's part

    def close(self) -> None:
        """Free the memory; collective."""


class SelfWindow:
    """Transport `self` in host memory: private memory of one rank, zeroed."""

    def __init__(self, nbytes: int) -> None:
        raw = np.zeros(nbytes + LINE, np.uint8)
        self._memory: np.ndarray | None = raw[-raw.ctypes.data % LINE :]
        self.base = [self._memory.ctypes.data]
        self.nbytes = nbytes

    def close(self) -> None:
        """Free the memory."""
        self._memory = None


class SelfDeviceWindow:
    """Transport `self` in GPU memory. device: a `CudaDevice` of aristos.substrate.cuda."""

    def __init__(self, device: Any, nbytes: int) -> None:
        self._device, self.nbytes = device, nbytes
        self.base = [device.allocate(nbytes)]

    def close(self) -> None:
        """Free the memory."""
        self._device.free(self.base[0])
