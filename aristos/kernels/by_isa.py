"""The CPU kernels of any instruction set that this process may use, and of any format of packed weights.

An ISA decides constants of the modules in `kernels/cpu`: vectors, register blocks, products, rounding; a format of
packed weights decides products too. Constants are built into compiled code, so each pair needs modules of its own. They
come from the same files: `aristos.kernels.cpu` is made for the process's ISA and plain weights, and a package such as
`aristos.kernels.cpu_avx2` or `aristos.kernels.cpu_avx2_int4` for others. Numba and its cache keep their code apart by
these names.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = f"{__package__}.cpu"


def module(name: str, isa: str, form: str = "") -> Any:
    """The module `kernels/cpu/<name>.py`, made for an ISA and a format of packed weights, "" for plain ones."""
    package = PACKAGE
    if form or isa != import_module(f"{PACKAGE}.target").ISA:
        package = f"{PACKAGE}_{isa}" + (f"_{form}" if form else "")
        if package not in sys.modules:
            made = ModuleType(package)
            made.__path__ = [str(Path(__file__).parent / "cpu")]
            sys.modules[package] = made
    return import_module(f"{package}.{name}")
