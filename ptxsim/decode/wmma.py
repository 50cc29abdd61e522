"""Lowers wmma to loads and stores of single elements and to mma.

PTX leaves open where the elements of a fragment lie. Here they lie as in the fragments of mma.sync: a fragment of 16x16
consists of two blocks of mma's 8 columns, and a fragment of 32 rows consists of two blocks of 16 rows. For a shape of 8
rows and 32 columns mma computes the transpose of the product. If a fragment of float16 has more registers than its
elements fill, the elements are repeated.
"""

from __future__ import annotations

import math
import re

from .. import isa, matrix
from ..lowering import Lowering
from ..rows import ROW
from ..syntax import Vector
from .mods import SPACES, Mods
from .warp import synced

SHAPES = {
    "f16": ("m16n16k16", "m32n8k16", "m8n32k16"),
    "bf16": ("m16n16k16", "m32n8k16", "m8n32k16"),
    "s8": ("m16n16k16", "m32n8k16", "m8n32k16"),
    "u8": ("m16n16k16", "m32n8k16", "m8n32k16"),
    "tf32": ("m16n16k8",),
    "f64": ("m8n8k4",),
}
KINDS = {
    "f16": (matrix.F16, 16),
    "bf16": (matrix.BF16, 16),
    "s8": (matrix.INT8, 8),
    "u8": (matrix.INT8, 8),
    "tf32": (matrix.TF32, 32),
    "f64": (matrix.F64, 64),
}
BITS = {**{name: bits for name, (_, bits) in KINDS.items()}, "f32": 32, "s32": 32}


def fragments(low: Lowering, m: Mods) -> None:
    """Lower any wmma instruction."""
    what = m.take_one("load", "store", "mma")
    if what is None:
        raise m.fail("is not supported")
    role = m.take_one("a", "b", "c", "d") if what != "mma" else "mma"
    synced(m)
    layouts = [name for name in m.left if name in ("row", "col")]
    m.left = [name for name in m.left if name not in ("row", "col")]
    saturates = m.flag("satfinite", isa.SAT)
    shape = next((name for name in m.left if re.fullmatch(r"m\d+n\d+k\d+", name)), None)
    if shape is None or role is None:
        raise m.fail("needs a shape and .a, .b, .c or .d")
    m.left.remove(shape)
    rows, columns, depth = (int(part) for part in re.findall(r"\d+", shape))
    if what == "mma":
        types, m.left = m.left, []
        if len(types) == 2:  # the types of D and C; A and B are float16
            types = [types[0], "f16", "f16", types[1]]
        known = len(types) == 4 and all(shape in SHAPES.get(name, ()) for name in types[1:3])
        if not known or KINDS[types[1]] != KINDS[types[2]]:
            raise m.fail("this shape and these types are not supported")
        multiply(low, m, rows, columns, depth, types, saturates)
        return
    space = m.choose(SPACES, isa.GENERIC)
    name, m.left = (m.left[0], m.left[1:]) if m.left else ("", [])
    if name not in BITS or len(layouts) != 1:
        raise m.fail("needs .row or .col and a type of elements")
    m.done(2, 3)
    transfer(low, m, role, (rows, columns, depth), name, layouts[0], space)


def places(role: str, shape: tuple[int, int, int], bits: int) -> list[tuple[int, int, int, bool]]:
    """Where a fragment's elements lie, in the order of registers: (row, column, step, turned).

    A lane's element is at (row + lane // 4, column + step * (lane % 4)). If turned, it is at (row + step * (lane % 4),
    column + lane // 4).
    """
    rows, columns, depth = shape
    if rows == 8 and columns == 32:  # the transpose: A in the role of B, and B in that of A
        other = places({"a": "b", "b": "a"}.get(role, role), (columns, rows, depth), bits)
        return [(column, row, step, not turned) for row, column, step, turned in other]
    per = max(32 // bits, 1)
    tall = [0, 8] if rows > 8 else [0]
    if role == "a":
        return [
            (top + row, left + part, per, False)
            for top in range(0, rows, 16)
            for left in range(0, depth, 4 * per)
            for row in tall
            for part in range(per)
        ]
    if role == "b":
        return [
            (left + part, block, per, True)
            for block in range(0, columns, 8)
            for left in range(0, depth, 4 * per)
            for part in range(per)
        ]
    return [
        (top + row, block + part, 2, False)
        for top in range(0, rows, 16)
        for block in range(0, columns, 8)
        for row in tall
        for part in range(2)
    ]


def transfer(
    low: Lowering, m: Mods, role: str, shape: tuple[int, int, int], name: str, layout: str, space: int
) -> None:
    """Lower wmma.load or wmma.store: each lane moves its own elements."""
    loads = "load" in m.ins.mods
    bits, found = BITS[name], places(role, shape, BITS[name])
    value, address = (m.operands[0], m.operands[1]) if loads else (m.operands[1], m.operands[0])
    items = list(value.items) if isinstance(value, Vector) else [value]
    per = max(32 // bits, 1)
    needed = len(found) // per
    if not items or len(items) % needed:
        raise m.fail(f"expected {needed} registers, got {len(items)}")
    rows, columns, depth = shape
    wide = {"a": depth, "b": columns}.get(role, columns), {"a": rows, "b": depth}.get(role, rows)
    stride = m.row(2, isa.B32) if len(m.operands) == 3 else low.constant(wide[0 if layout == "row" else 1])
    size = bits // 8
    base, offset, _ = low.memory(address)
    pitch, group, rest = low.new_row(), low.new_row(), low.new_row()
    low.emit(isa.MULWIDE, isa.U32, d=pitch, a=stride, b=low.constant(size))
    low.emit(isa.SHR, isa.U32, d=group, a=ROW["laneid"], b=low.constant(2))
    low.emit(isa.AND, isa.B32, d=rest, a=ROW["laneid"], b=low.constant(3))
    low.granule = min(low.granule, size)
    starts: dict[tuple[int, int, bool], int] = {}

    def place(row: int, column: int, step: int, turned: bool) -> tuple[int, int]:
        """The row of registers and the offset of an element's address."""
        major, minor = (row, column) if layout == "row" else (column, row)
        by_group = turned == (layout == "col")  # whether lane // 4 counts along the stride
        key = (major, step, by_group)
        if key not in starts:
            mine, other, at = low.new_row(), low.new_row(), low.new_row()
            steps = low.constant(1 if by_group else step), low.constant(step if by_group else 1)
            first, second = (group, rest) if by_group else (rest, group)
            low.emit(isa.MAD, isa.U64, d=mine, a=first, b=steps[0], c=low.constant(major))
            low.emit(isa.MUL, isa.U64, d=other, a=second, b=steps[1])
            low.emit(isa.MAD, isa.U64, d=at, a=other, b=low.constant(size), c=base)
            low.emit(isa.MAD, isa.U64, d=at, a=mine, b=pitch, c=at)
            starts[key] = at
        return starts[key], offset + minor * size

    flags = isa.WEAK << isa.ORDER_SHIFT | isa.SYS << isa.SCOPE_SHIFT | space << isa.SPACE_SHIFT
    type_ = isa.BITS | size
    for number, item in enumerate(items[:needed] if not loads else items):
        parts = found[number % needed * per :][:per]
        whole = isa.B64 if bits == 64 else isa.B32
        target = m.result(item, whole) if loads else low.row(item, whole)
        pieces = [target] if per == 1 else [low.new_row() for _ in parts]
        if not loads and per > 1:
            low.emit(isa.UNPACK, isa.B32, a=target, imm=size, items=pieces)
        for piece, part in zip(pieces, parts):
            at, plus = place(*part)
            low.emit(isa.LD if loads else isa.ST, type_, a=at, imm=plus, flags=flags, items=[piece])
        if loads and per > 1:
            low.emit(isa.PACK, isa.B32, d=target, imm=size, items=pieces)


def multiply(low: Lowering, m: Mods, rows: int, columns: int, depth: int, types: list[str], saturates: int) -> None:
    """Lower wmma.mma to one mma for each block of D."""
    m.done(4)
    kind, bits = KINDS[types[1]]
    half = ((2 if types[0] == "f16" else 0) | (1 if types[3] == "f16" else 0)) if types[1] == "f16" else 0
    groups = [list(operand.items) if isinstance(operand, Vector) else [operand] for operand in m.operands]
    if rows == 8 and columns == 32:
        rows, columns = columns, rows
        groups[1], groups[2] = groups[2], groups[1]
        types = [types[0], types[2], types[1], types[3]]
    whole, wide = (isa.B64 if bits == 64 else isa.B32), min(rows, 16)
    each = 32 * max(bits, 32)
    count_a, count_b = wide * depth * bits // each, depth * 8 * bits // each
    count_d, count_c = (wide * 8 // (64 if half & bit else 32) for bit in (2, 1))
    blocks = [(top, left) for top in range(rows // wide) for left in range(columns // 8)]
    wanted = (len(blocks) * count_d, math.ceil(rows / 16) * count_a, columns // 8 * count_b, len(blocks) * count_c)
    for group, number in zip(groups, wanted):
        if len(group) < number or len(group) % number:
            raise m.fail(f"expected {number} registers, got {len(group)}")
    flags = saturates | (isa.HIGH if types[1] == "u8" else 0) | (isa.WIDE if types[2] == "u8" else 0)
    results: list[tuple[int, int]] = []
    for number, (top, left) in enumerate(blocks):
        mine = [low.new_row() for _ in range(count_d)]
        rest = [
            *(low.row(item, whole) for item in groups[1][top * count_a :][:count_a]),
            *(low.row(item, whole) for item in groups[2][left * count_b :][:count_b]),
            *(low.row(item, whole) for item in groups[3][number * count_c :][:count_c]),
        ]
        shape = kind | kind << 8 | wide << 16 | depth << 24
        low.emit(isa.MMA, half, d=mine[0], imm=shape, flags=flags, items=[*mine, *rest])
        results += [(m.result(item, whole), row) for item, row in zip(groups[0][number * count_d :], mine)]
    for target, row in results:  # last, since D's registers may be those of A, B or C
        low.emit(isa.MOV, whole, d=target, a=row)
