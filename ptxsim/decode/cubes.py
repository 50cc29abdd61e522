"""Lowers fetches from cube maps: a direction names one of six faces, which are the layers of a layered texture.

Source: the CUDA programming guide, "Cubemap Textures". Where two coordinates are the largest, the guide leaves the face
open; here x goes before y, and y before z.
"""

from __future__ import annotations

from .. import isa
from ..lowering import Lowering

HALF, ONE, BELOW_ONE = 0x3F000000, 0x3F800000, 0x3F7FFFFF  # float32


def on_face(low: Lowering, x: int, y: int, z: int) -> list[int]:
    """The rows of a face's number and of the two coordinates on it, from 0 to below 1, for a direction."""
    minus = [one(low, isa.FNEG, row) for row in (x, y, z)]
    size = [one(low, isa.FABS, row) for row in (x, y, z)]
    back = [true(low, row, low.constant(0), "lt") for row in (x, y, z)]
    to_x = true(low, size[0], two(low, isa.FMAX, size[1], size[2]), "ge")
    to_y = true(low, size[1], size[2], "ge")

    def chosen(values: list[int]) -> int:
        """Of the rows of three values, for x, y and z, the one for the axis of the face."""
        return either(low, to_x, values[0], either(low, to_y, values[1], values[2]))

    faces = [either(low, back[k], low.constant(2 * k + 1), low.constant(2 * k)) for k in range(3)]
    across = [either(low, back[0], z, minus[2]), x, either(low, back[2], minus[0], x)]
    down = [minus[1], either(low, back[1], minus[2], z), minus[1]]
    largest = chosen(size)
    return [chosen(faces), *(placed(low, chosen(values), largest) for values in (across, down))]


def placed(low: Lowering, value: int, largest: int) -> int:
    """The row of a coordinate on a face: (value / largest + 1) / 2, but below 1."""
    ratio = two(low, isa.FDIV, value, largest)
    half = two(low, isa.FMUL, two(low, isa.FADD, ratio, low.constant(ONE)), low.constant(HALF))
    return two(low, isa.FMIN, half, low.constant(BELOW_ONE))


def one(low: Lowering, op: int, a: int) -> int:
    """The row of an operation of one float32."""
    made = low.new_row()
    low.emit(op, isa.F32, d=made, a=a)
    return made


def two(low: Lowering, op: int, a: int, b: int) -> int:
    """The row of an operation of two float32, rounded to the nearest."""
    made = low.new_row()
    low.emit(op, isa.F32, d=made, a=a, b=b, flags=isa.RN if op in (isa.FDIV, isa.FMUL, isa.FADD) else 0)
    return made


def true(low: Lowering, a: int, b: int, test: str) -> int:
    """The row of the truth of a comparison of two float32."""
    made = low.new_row()
    low.emit(isa.FSETP, isa.F32, d=made, a=a, b=b, imm=isa.COMPARE[test])
    return made


def either(low: Lowering, truth: int, yes: int, no: int) -> int:
    """The row of a 32-bit value: `yes` where the row `truth` is true, else `no`."""
    made = low.new_row()
    low.emit(isa.SELP, isa.B32, d=made, a=yes, b=no, c=truth)
    return made
