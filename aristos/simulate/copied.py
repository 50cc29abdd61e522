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
    copies.make(NAME, PACKAGE, AGAIN, replaced, read())
    wire = import_module(f"{NAME}.primitives.wire")
    for primitive, function in lowering.WIRE.items():
        setattr(wire, primitive, function)
    return import_module(f"{NAME}.simulate.inside.{name}")


def read() -> frozenset[Path]:
    """The files that define what differs from the package: lowerings, and functions that `inside` replaces."""
    here = Path(__file__)
    return frozenset().union(*map(sources.files, [here, *here.with_name("inside").glob("*.py")]))
