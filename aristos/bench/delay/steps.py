"""The engine's steps compiled with the lowering of `words.py`, as separate modules made from the same files.

Numba and its cache tell this code from the ordinary steps' code by the modules' names. `kernels/by_isa.py` does the
same for each instruction set.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from ...primitives import memory
from . import words

SUFFIX = "_delayed"
ENGINE, SUBSTRATE = "aristos.engine", "aristos.substrate.cpu"


def _package(name: str) -> str:
    """Make a second package, named `name` + SUFFIX, from the files of the package `name`. Returns its name."""
    made = ModuleType(name + SUFFIX)
    made.__path__ = import_module(name).__path__
    return sys.modules.setdefault(made.__name__, made).__name__


@cache
def loop() -> Any:
    """The copy of the module `substrate/cpu/loop.py` that delays words."""
    delayed = ModuleType(memory.__name__ + SUFFIX)
    vars(delayed).update({k: v for k, v in vars(memory).items() if not k.startswith("__")})
    vars(delayed).update(notify=words.notify, arrived=words.arrived)
    engine, substrate = _package(ENGINE), _package(SUBSTRATE)
    made = import_module(f"{substrate}.loop")
    for name, value in list(vars(made).items()):
        if isinstance(value, ModuleType) and value.__name__.startswith(f"{ENGINE}."):
            setattr(made, name, import_module(f"{engine}.{value.__name__.rpartition('.')[2]}"))
    for name, module in list(sys.modules.items()):
        if name.startswith((f"{engine}.", f"{substrate}.")):
            for key, value in list(vars(module).items()):
                if value is memory:
                    setattr(module, key, delayed)
    return made
