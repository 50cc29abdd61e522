"""Arithmetic. `ffn` runs an expert on rows, `Packed` keeps its weights packed, `gemm_peak` times the micro-kernel."""

from importlib import import_module
from typing import Any

_LAZY = ("Packed", "ffn", "gemm_peak")
__all__ = ["Packed", "ffn", "gemm_peak"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(".cpu.api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
