"""What every transport's window offers, and the window of a rank that is alone (transport `self`)."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Window(Protocol):
    """Memory that each rank of a group exposes."""

    base: list[int]  # address of every rank's part in this process
    nbytes: int  # bytes a rank

    def close(self) -> None:
        """Give the memory back; collective."""


class SelfWindow:
    """Transport `self`: the private memory of a group of one."""

    def __init__(self, nbytes: int) -> None:
        raw = np.zeros(nbytes + 64, np.uint8)
        self._memory: np.ndarray | None = raw[-raw.ctypes.data % 64 :]
        self.base = [self._memory.ctypes.data]
        self.nbytes = nbytes

    def close(self) -> None:
        self._memory = None
