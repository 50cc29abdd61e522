"""All deliberate bugs by name: the modules that define them are imported here."""

from __future__ import annotations

from . import (
    mutations,
    mutations_backward,
    mutations_between,
    mutations_in_place,
    mutations_once,
    mutations_proxy,
    mutations_tape,
    mutations_wire,
)
from .mutation import REGISTERED, Mutation

# imported to register
__all__ = [
    "mutations",
    "mutations_backward",
    "mutations_between",
    "mutations_in_place",
    "mutations_once",
    "mutations_proxy",
    "mutations_tape",
    "mutations_wire",
]


def load() -> dict[str, Mutation]:
    """All mutations by name."""
    return REGISTERED
