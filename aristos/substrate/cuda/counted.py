"""The persistent kernels that count what their workers do, for `timeline(True)`: those that ship compiled."""

from __future__ import annotations

from ...kernels.cuda.catalogue import Kernel
from ...kernels.cuda.target import Target
from . import persistent


def kernels(arch: str) -> list[Kernel]:
    """bfloat16's for an architecture, which the report on a GPU uses; others are compiled where they are called."""
    return [persistent.layer_kernel(tile, True) for tile in persistent.layer_tiles("bf16", Target.named(arch))]
