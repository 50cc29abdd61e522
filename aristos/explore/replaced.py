"""Names of modules and objects that stand for other things for a while: how it gets under the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(names: dict[tuple[Any, str], Any]) -> Iterator[None]:
    """(owner, name) -> what it stands for inside."""
    before = {(owner, name): getattr(owner, name) for owner, name in names}
    for (owner, name), value in names.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), value in before.items():
            setattr(owner, name, value)
