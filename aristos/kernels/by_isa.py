"""The CPU kernels for any instruction set that this process may use, and for any format of packed weights.

The ISA decides constants of the modules in `kernels/cpu`: vectors, register blocks, products, rounding. The format of
packed weights also decides how products are computed. Compiled code contains the constants, so each pair of ISA and
format needs its own modules. All modules are made from the same files. The package `aristos.kernels.cpu` is for the
process's ISA and plain weights; packages such as `aristos.kernels.cpu_avx2` or `aristos.kernels.cpu_avx2_int4` are for
other pairs. By these names, Numba and its cache distinguish the packages' code.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = f"{__package__}.cpu"


def module(name: str, isa: str, form: str = "") -> Any:
    """The module `kernels/cpu/<name>.py`, made for an ISA and a format of packed weights.

    form: a name in `weight_types.FORMATS`, or "" for plain weights.
    """
    if not form and isa == import_module(f"{PACKAGE}.target").ISA:
        return import_module(f"{PACKAGE}.{name}")
    made_for = f"{isa}_{form}" if form else isa
    package = f"{PACKAGE}_{made_for}"
    if package not in sys.modules:
        made = ModuleType(package)
        made.__path__ = [str(Path(__file__).parent / "cpu")]
        sys.modules[package] = made
    return import_module(f"{PACKAGE}_{made_for}.{name}")
