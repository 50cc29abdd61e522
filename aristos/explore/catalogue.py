"""All deliberate bugs by name: the modules that define them are imported here."""

from __future__ import annotations

from . import mutations, mutations_between, mutations_in_place, mutations_proxy
from .mutation import REGISTERED, Mutation

__all__ = ["mutations", "mutations_between", "mutations_in_place", "mutations_proxy"]  # imported to register


def load() -> dict[str, Mutation]:
    """All mutations by name."""
    return REGISTERED
