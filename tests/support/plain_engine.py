"""A second copy of the engine, uncompiled, beside the compiled one; a test supplies its memory and its wire."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import aristos

NAME = "plain_aristos"


def plain(module: str) -> Any:
    """A module of an uncompiled copy of the package. A test may replace the copy's `memory` and `wire`."""
    if NAME not in sys.modules:
        package: Any = ModuleType(NAME)
        package.__path__ = [str(Path(aristos.__file__).parent)]
        sys.modules[NAME] = package
    with mock.patch.multiple("kernel_cache.compile", jit=same, inlined=same):
        return import_module(f"{NAME}.{module}")


def same(function: Any) -> Any:
    """The function itself, not compiled."""
    return function
