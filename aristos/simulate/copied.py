"""A copy of the engine's steps and the CPU substrate's loops, compiled with the lowering of a simulation."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from kernel_cache import copies, sources

from ..primitives import arithmetic, memory
from ..substrate.cpu import loop as _needed  # noqa: F401  imports what the copy shares with the package
from . import lowering

NAME, PACKAGE = "aristos_simulated", "aristos"
AGAIN = ("engine", "substrate", "substrate.cpu", "primitives", "simulate.inside")


@cache
def module(name: str) -> Any:
    """The module of this name in the folder `inside` of the copy."""
    replaced = {
        "primitives.memory": copies.changed(memory, NAME, lowering.MEMORY),
        "primitives.arithmetic": copies.changed(arithmetic, NAME, lowering.ARITHMETIC),
    }
    copies.make(NAME, PACKAGE, AGAIN, replaced, sources.files(Path(__file__)))
    wire = import_module(f"{NAME}.primitives.wire")
    for primitive, function in lowering.WIRE.items():
        setattr(wire, primitive, function)
    return import_module(f"{NAME}.simulate.inside.{name}")
