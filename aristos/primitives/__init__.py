"""What compiled code is made of: memory, wire and buffers by name, and the cache that keeps it."""

from pathlib import Path

from . import packages


def _isa() -> str:
    from .isa import chosen

    return chosen()


packages.register("aristos", Path(__file__).parent.parent, parts=_isa)
