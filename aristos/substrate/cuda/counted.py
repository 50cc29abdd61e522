"""The persistent kernels for `timeline(True)` that are shipped compiled. They count what their workers do."""

from __future__ import annotations

from ...kernels.cuda.catalogue import Kernel
from ...kernels.cuda.target import Target
from . import persistent


def kernels(arch: str) -> list[Kernel]:
    """The counting kernels of bfloat16 for an architecture, which the report on a GPU uses.

    Counting kernels of other types are compiled at first use.
    """
    return [persistent.layer_kernel(tile, True) for tile in persistent.layer_tiles("bf16", Target.named(arch))]
