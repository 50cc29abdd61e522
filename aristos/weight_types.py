"""The weight types: what a packed weight matrix [K, N] is in memory. Its bytes are read from here."""

from __future__ import annotations

from dataclasses import dataclass

from .row_types import ROW_TYPES, RowType


@dataclass(frozen=True)
class WeightType:
    """bits: of the code of one weight. group: k whose codes share a scale, a divisor of a panel's k; 0: no scales.

    scale: type of a scale; None without. zero_bits: of a group's zero point, 0: codes are symmetric. Scales and zero
    points lie with the codes of their group, in one stream.
    """

    name: str
    bits: int
    group: int = 0
    scale: RowType | None = None
    zero_bits: int = 0

    def __post_init__(self) -> None:
        if (self.group > 0) != (self.scale is not None) or (self.zero_bits and not self.group):
            raise ValueError(f"weight type {self.name}: a group needs the type of its scale, and all else a group")

    def nbytes(self, depth: int, columns: int) -> int:
        """Bytes of a matrix of `depth` rows and `columns` columns, both padded as its packing has them."""
        bits = self.bits * depth * columns
        if self.group:
            assert self.scale is not None
            bits += -(-depth // self.group) * columns * (8 * self.scale.nbytes + self.zero_bits)
        return -(-bits // 8)


def plain(row: RowType) -> WeightType:
    """Weights that are elements of a row type, without scales."""
    return WeightType(row.name, 8 * row.nbytes)


WEIGHT_TYPES = {name: plain(row) for name, row in ROW_TYPES.items()}
# float32 as sums of two bfloat16, for `precision="high"`
SPLIT = WeightType("float32 in two", 32)
