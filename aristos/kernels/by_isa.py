"""The CPU kernels of any instruction set that this process may use, beside those of its own.

An ISA decides constants of the modules in `kernels/cpu`: vectors, register blocks, products, rounding. Constants are
built into compiled code, so each ISA needs modules of its own. They come from the same files: `aristos.kernels.cpu` is
made for the process's ISA, and a package such as `aristos.kernels.cpu_avx2` for another one. Numba and its cache keep
their code apart by these names.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = f"{__package__}.cpu"


def module(name: str, isa: str) -> Any:
    """The module `kernels/cpu/<name>.py`, made for an ISA."""
    if isa == import_module(f"{PACKAGE}.target").ISA:
        return import_module(f"{PACKAGE}.{name}")
    package = f"{PACKAGE}_{isa}"
    if package not in sys.modules:
        made = ModuleType(package)
        made.__path__ = [str(Path(__file__).parent / "cpu")]
        sys.modules[package] = made
    return import_module(f"{PACKAGE}_{isa}.{name}")
