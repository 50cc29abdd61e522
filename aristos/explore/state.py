"""A rank's state. In the substrate it is an array; here it is a list that steps use in the same way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class State(list[Any]):
    """A list that has an address, as an array has. times: words that count time, on which no decision depends."""

    shared = False
    times = range(0)

    def __init__(self, size: int, at: int) -> None:
        super().__init__([0] * size)
        self.ctypes = SimpleNamespace(data=at)

    def touch(self, i: int, writes: bool) -> None:
        """Note an atomic access."""

    # ---- accesses by address

    def load(self, i: int) -> int:
        value: int = list.__getitem__(self, i)
        return value

    def store(self, i: int, value: int) -> None:
        list.__setitem__(self, i, value)

    def add(self, i: int, value: int) -> int:
        """Add atomically. Returns the old value."""
        old = State.load(self, i)
        State.store(self, i, old + value)
        return old
