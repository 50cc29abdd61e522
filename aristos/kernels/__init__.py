"""Arithmetic. `ffn` runs an expert on rows, `Packed` keeps its weights packed, and `Matrix` is one matrix product.

Two functions measure a rate of this core: `fma_peak` of multiply-adds in registers, and `gemm_peak` of the micro-kernel
alone.
"""

from importlib import import_module
from typing import Any

_LAZY = {"Matrix": "api", "Packed": "api", "ffn": "api", "fma_peak": "cpu.peaks", "gemm_peak": "cpu.peaks"}
__all__ = ["Matrix", "Packed", "ffn", "fma_peak", "gemm_peak"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
