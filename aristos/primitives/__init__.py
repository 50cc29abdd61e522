"""What compiled code is made of: memory, wire and buffers by name."""

from pathlib import Path

from kernel_cache import packages


def _isa() -> str:
    from .isa import chosen

    return chosen()


packages.register("aristos", Path(__file__).parent.parent, parts=_isa)
