"""Replace names of modules and objects for a while, so that steps call functions of the explorer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(names: dict[tuple[Any, str], Any]) -> Iterator[None]:
    """While inside, each (owner, name) has the given value."""
    before = {(owner, name): getattr(owner, name) for owner, name in names}
    for (owner, name), value in names.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), value in before.items():
            setattr(owner, name, value)
