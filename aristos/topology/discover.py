"""All sources together: what this machine and its job are."""

from __future__ import annotations

from .model import Topology
from .sysfs import node


def discover() -> Topology:
    """The machine this runs on."""
    return Topology(nodes=(node(),))
