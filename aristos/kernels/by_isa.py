"""The CPU kernels of any instruction set that this process may use, and of any format of packed weights.

An ISA decides constants of the modules in `kernels/cpu`: vectors, register blocks, products, rounding. A format of
packed weights decides products too. Compiled code contains the constants, so each pair of ISA and format needs its own
modules. All modules are made from the same files: `aristos.kernels.cpu` for the process's ISA and plain weights, and
packages such as `aristos.kernels.cpu_avx2` or `aristos.kernels.cpu_avx2_int4` for other pairs. By these names, Numba
and its cache distinguish the packages' code.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = f"{__package__}.cpu"


def module(name: str, isa: str, form: str = "") -> Any:
    """The module `kernels/cpu/<name>.py`, made for an ISA and a format of packed weights; form "" for plain weights."""
    if not form and isa == import_module(f"{PACKAGE}.target").ISA:
        return import_module(f"{PACKAGE}.{name}")
    made_for = f"{isa}_{form}" if form else isa
    package = f"{PACKAGE}_{made_for}"
    if package not in sys.modules:
        made = ModuleType(package)
        made.__path__ = [str(Path(__file__).parent / "cpu")]
        sys.modules[package] = made
    return import_module(f"{PACKAGE}_{made_for}.{name}")
