"""Mutations, which are deliberate bugs. A mutation replaces functions; the engine has no flags for bugs.

A mutation is applied before a schedule and removed after it. The bug can show in the cases that `asked` describes.
`catalogue.py` has all mutations by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..primitives import memory
from . import places
from .cases import Asked
from .replaced import replaced

ONE_BY_ONE = (("tile", 1), ("run", 2), ("max_tokens", 6))  # sizes: each row is a tile
NOWHERE = places.private(0, places.GATE, 1 << 20)  # the address of a word that no actor reads
Put = Callable[[Any, str, Any], None]


@dataclass(frozen=True)
class Mutation:
    """A bug. put: a function that gets another function, which it calls with (module, name, replacement)."""

    name: str
    what: str
    put: Callable[[Put], None]
    asked: Asked = field(default_factory=Asked)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While inside, the bug's functions replace the right ones."""
        names: dict[tuple[Any, str], Any] = {}
        self.put(lambda module, name, value: names.update({(module, name): value}))
        with replaced(names):
            yield


class Instead:
    """A stand-in for `aristos.primitives.memory` or another module, with some functions replaced, for one module."""

    def __init__(self, module: Any = memory, /, **functions: Any) -> None:
        vars(self).update(functions)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


REGISTERED: dict[str, Mutation] = {}  # filled by the modules of the catalogue when they are imported


def mutation(name: str, **asked: Any) -> Callable[[Callable[[Put], None]], Callable[[Put], None]]:
    """Register a bug under a name."""

    def register(put: Callable[[Put], None]) -> Callable[[Put], None]:
        REGISTERED[name] = Mutation(
            name, (put.__doc__ or "").strip(), put, Asked(**{"rows": None, "plain": True, "faults": False} | asked)
        )
        return put

    return register
