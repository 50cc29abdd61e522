"""A real GPU with the PTX machine's interface: device(0).array, launch, run, copy_to_host."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np


def missing() -> str:
    """Why no GPU can be used; '' if one can."""
    from numba import cuda

    if not cuda.is_available():
        return "no GPU: numba.cuda.is_available() is false"
    if importlib.util.find_spec("cupy") is None:
        return "a GPU, but no CuPy: pip install 'aristos[cuda12]'"
    return ""


class GpuArray:
    """An array on the GPU, held by CuPy."""

    def __init__(self, values: Any):
        self.values = values

    def copy_to_host(self) -> np.ndarray:
        return self.values.get()


class GpuExecutor:
    """Launches start at once. Nothing is checked: `run` only waits, and returns no reports."""

    def __init__(self, **options: Any):
        """options: those of the PTX machine, which are ignored."""
        import cupy

        self.cupy = cupy
        self.arch = "sm_" + cupy.cuda.Device().compute_capability

    def device(self, number: int) -> GpuExecutor:
        return self

    def array(self, values: np.ndarray) -> GpuArray:
        return GpuArray(self.cupy.asarray(values))

    def launch(self, kernel: Any, grid: int, block: int, *args: Any) -> None:
        values = [a.values if isinstance(a, GpuArray) else a for a in args]
        if not isinstance(kernel, str):
            kernel[grid, block](*values)
            return
        arch = self.arch + ("a" if int(self.arch[3:]) >= 90 else "")
        module = self.cupy.cuda.function.Module()
        module.load(re.sub(r"\.target \w+", f".target {arch}", kernel).encode() + b"\0")
        name = re.search(r"\.entry\s+([\w$]+)", kernel)[1]
        module.get_function(name)((grid,), (block,), tuple(values))

    def run(self) -> list:
        self.cupy.cuda.Device().synchronize()
        return []
