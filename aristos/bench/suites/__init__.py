"""The suites, one module each: NAME.py for CPUs, NAME_gpu.py for GPUs. Every module of this folder is imported."""

from __future__ import annotations

import importlib
import pkgutil

from ..registry import Backend, Suite, declared


def known(backend: Backend = "cpu") -> dict[str, Suite]:
    """All suites of a backend by name, in the order in which they run. Imports every module of this folder."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return declared(backend)
