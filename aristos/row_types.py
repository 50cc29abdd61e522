"""The row types: what an element of a row is in memory, on the wire and in products. Everything else reads this table.

Rows of every type travel as bytes, `nbytes` an element, so a transport knows no types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class RowType:
    """One choice of `MoEConfig.dtype`.

    name: of the choice. array: the type of elements of users' arrays. kind: the name of its arithmetic in GPU kernels.
    error: what products may add to a result, relative to the largest one, against float64 on the same rounded inputs.
    cpu: whether CPU kernels have it. trained: whether `train=True` does. packed: whether kernels of packed weights do.
    """

    name: str
    array: Any
    kind: str
    error: float
    cpu: bool = True
    trained: bool = False
    packed: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of an element of a row, in memory and on the wire."""
        return int(np.dtype(self.array).itemsize)

    @property
    def stored(self) -> str:
        """The name of the arrays' type, as NumPy and ml_dtypes say it."""
        return np.dtype(self.array).name

    @property
    def rounds(self) -> bool:
        """Whether float32 rows lose bits when they become rows of this type."""
        return self.nbytes < 4

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return float(ml_dtypes.finfo(self.array).max)

    @property
    def overflow(self) -> float:
        """The least number that is infinite once it is rounded to the nearest of this type."""
        facts = ml_dtypes.finfo(self.array)
        return self.largest + 2.0 ** (facts.maxexp - 1 - facts.nmant - 1)


ROW_TYPES = {
    each.name: each
    for each in (
        RowType("float32", np.float32, "f32", 1e-5, trained=True, packed=True),
        RowType("tf32", np.float32, "tf32", 4e-3, cpu=False),
        RowType("bfloat16", ml_dtypes.bfloat16, "bf16", 3e-2, trained=True, packed=True),
        RowType("float16", np.float16, "f16", 4e-3),
    )
}
ON_CPUS = {name: each for name, each in ROW_TYPES.items() if each.cpu}
KINDS = {name: each.kind for name, each in ROW_TYPES.items()}  # names of arithmetic on GPUs, by `MoEConfig.dtype`
BY_KIND = {each.kind: each for each in ROW_TYPES.values()}
# by name, types with fewer bits than float32; weights may be arrays of them, or uint16 with their bits
ROUNDED = {name: each for name, each in ROW_TYPES.items() if each.rounds}
