"""A copy of the engine's steps and the CPU substrate's loops, compiled with the lowering of `words.py`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from kernel_cache import copies, sources

from ...primitives import arithmetic, memory
from ...substrate.cpu import loop as _needed  # noqa: F401  imports the modules that the copy shares with the package
from . import words

NAME, PACKAGE = "aristos_delayed", "aristos"
AGAIN = ("engine", "substrate", "substrate.cpu", "primitives")


@cache
def loop() -> Any:
    """The copy of the module `substrate/cpu/loop.py` that delays words."""
    delayed = copies.changed(memory, NAME, {"notify": words.notify, "arrived": words.arrived})
    replaced = {
        "primitives.memory": delayed,
        "primitives.arithmetic": arithmetic,
    }  # the copy shares `arithmetic`, because the lowerings of its functions are registered for these function objects
    copies.make(NAME, PACKAGE, AGAIN, replaced, sources.files(Path(__file__)))
    return import_module(f"{NAME}.substrate.cpu.loop")
