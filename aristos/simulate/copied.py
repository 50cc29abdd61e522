"""The engine's steps and the CPU substrate's loops, compiled with the lowering of a simulation."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from kernel_cache import copies, sources

from ..primitives import arithmetic, memory
from ..substrate.cpu import loop as _needed  # noqa: F401  imports all that the copy shares
from . import lowering

NAME, PACKAGE = "aristos_simulated", "aristos"
AGAIN = ("engine", "substrate", "substrate.cpu", "primitives", "simulate.inside")


def _changed(module: ModuleType, functions: dict[str, Any]) -> ModuleType:
    """A module like another one, with some functions replaced."""
    made = ModuleType(module.__name__.replace(PACKAGE, NAME, 1))
    vars(made).update({name: value for name, value in vars(module).items() if not name.startswith("__")})
    vars(made).update(functions)
    return made


@cache
def actors() -> Any:
    """The module `inside/actor.py` of the copy."""
    replaced = {
        "primitives.memory": _changed(memory, lowering.MEMORY),
        "primitives.arithmetic": _changed(arithmetic, lowering.ARITHMETIC),
    }
    copies.make(NAME, PACKAGE, AGAIN, replaced, sources.files(Path(__file__)))
    wire = import_module(f"{NAME}.primitives.wire")
    for name, function in lowering.WIRE.items():
        setattr(wire, name, function)
    return import_module(f"{NAME}.simulate.inside.actor")
