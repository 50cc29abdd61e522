"""The row types: what an element of a row is in memory, on the wire and in products. Other modules read this table.

Rows of every type travel as bytes, `nbytes` for each element, so transports know no types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class RowType:
    """One choice of `MoEConfig.dtype`.

    name: the value of the option. array: the type of elements of users' arrays. kind: the name of its arithmetic in GPU
    kernels. error: the largest error of a result, relative to the largest result, against float64 on the same rounded
    inputs. cpu, trained, packed: whether CPU kernels, `train=True`, and kernels of packed weights support the type.
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
        """The name of the arrays' type in NumPy and ml_dtypes."""
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
        """The least number that becomes infinite when it is rounded to this type."""
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
# types with fewer bits than float32, by name; weights may be arrays of these types, or of uint16 that hold their bits
ROUNDED = {name: each for name, each in ROW_TYPES.items() if each.rounds}
