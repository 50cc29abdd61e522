"""Element type, precision and ISA of the kernels that ran, read from arrays and kernels afterwards, never from options.

Tables and the results file contain these facts. If a fact differs from the options, the suite has failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import MoEConfig
from ..row_types import BY_KIND

if TYPE_CHECKING:
    from .gpu.clock import BenchGpu


@dataclass(frozen=True)
class Ran:
    """Facts of the kernels that ran.

    dtype: the type of rows and weights, or all types if there are several. precision: the precision of the products.
    isa: the instruction set of the kernels; on a GPU its architecture. asked: dtype and precision in the options."""

    dtype: str
    precision: str
    isa: str
    asked: tuple[str, str]

    @property
    def kind(self) -> str:
        """The element type, and the precision unless it is the highest: `bfloat16` or `float32 high`."""
        return self.dtype if self.precision == "highest" else f"{self.dtype} {self.precision}"

    def __str__(self) -> str:
        return f"{self.kind}, {self.isa}"

    @property
    def wrong(self) -> str:
        """A sentence if another element type, or a coarser precision, ran than was asked for; else an empty text."""
        if self.dtype == self.asked[0] and self.precision in ("highest", self.asked[1]):
            return ""
        return f"FAILED: {' '.join(self.asked)} was asked for, but {self.dtype} {self.precision} ran"


def of_kernels(element: Any, arrays: Iterable[Any], isa: str, cfg: MoEConfig) -> Ran:
    """The facts of CPU kernels. element: the `ElementType` of the packed weights. arrays: rows read and written."""
    from ..kernels.cpu.convert import SPLIT

    dtypes = dict.fromkeys([element.name, *(each.dtype.name for each in arrays)])
    return Ran(" and ".join(dtypes), "high" if element.code == SPLIT else "highest", isa, (cfg.dtype, cfg.precision))


def of_layer(moe: Any, arrays: Iterable[Any], cfg: MoEConfig) -> Ran:
    """The facts of a layer on CPUs. arrays: rows of a call, read and written."""
    return of_kernels(moe._backend._element, arrays, moe.isa, cfg)


def of_gpu(gpu: BenchGpu, kind: str, arrays: Iterable[Any], cfg: MoEConfig) -> Ran:
    """The facts of kernels on a GPU. kind: their arithmetic. arrays: rows read and written, bfloat16 as bits."""
    row = BY_KIND[kind]
    others = {each.dtype.name for each in arrays if each.dtype.itemsize != row.nbytes}
    return Ran(" and ".join([row.name, *sorted(others)]), "highest", gpu.device.arch, (cfg.dtype, cfg.precision))


def of_gpu_layer(gpu: BenchGpu, moe: Any, arrays: Iterable[Any], cfg: MoEConfig) -> Ran:
    """The facts of a layer on a GPU. arrays: rows of a call, read and written."""
    return of_gpu(gpu, moe._backend._kind, arrays, cfg)
