"""Lowers instructions on textures and surfaces."""

from __future__ import annotations

from typing import Any

from .. import isa
from ..lowering import Lowering
from ..sampling import (
    ARRAY_SIZE,
    CLAMPS,
    CUBE,
    DEPTH,
    FLOATS,
    HEIGHT,
    LAYER,
    LEVELS,
    NORMALIZED,
    OUTSIDE_SHIFT,
    TRAPS,
    WIDTH,
    ZERO,
)
from ..syntax import Indexed, Vector
from .cubes import on_face
from .mods import Mods

# geometry -> number of coordinates, padding left out, and flags
GEOMETRIES = {"1d": 1, "2d": 2, "3d": 3, "a1d": 2 | LAYER, "a2d": 3 | LAYER}
LACKING = ("acube", "2dms", "a2dms")
QUERIES = {
    "width": WIDTH,
    "height": HEIGHT,
    "depth": DEPTH,
    "array_size": ARRAY_SIZE,
    "normalized_coords": NORMALIZED,
    "num_mipmap_levels": LEVELS,
}
OUTSIDE = {"trap": TRAPS, "clamp": CLAMPS, "zero": ZERO}
RESULTS = (isa.U32, isa.S32, isa.F32)


def geometry(m: Mods) -> int:
    """Take the geometry from the modifiers. Returns its flags: number of coordinates, and LAYER if it has layers."""
    allowed = GEOMETRIES if m.ins.opcode != "tex" else GEOMETRIES | {"cube": 3 | CUBE}
    if any(name in m.left for name in (*LACKING, *({"cube"} - set(allowed)))):
        raise m.fail(f"only .{', .'.join(allowed)} are supported")
    return m.choose(allowed)


def coordinates(low: Lowering, m: Mods, operand: Any, flags: int) -> tuple[int, list[int]]:
    """The rows of a handle and of the coordinates in `[handle, {coordinates}]`."""
    if not isinstance(operand, Indexed) or operand.address.offset:
        raise m.fail("needs [handle, {coordinates}]")
    if len(operand.more) != 1:
        raise m.fail("a sampler beside the texture is not supported: use the unified mode, as CUDA C++ does")
    given = operand.more[0].items if isinstance(operand.more[0], Vector) else operand.more
    count = flags & 7
    if len(given) not in (count, 4 if count == 3 else count):
        raise m.fail(f"expected {count} coordinates, got {len(given)}")
    if operand.address.base is None:
        raise m.fail("the handle must be in a register")
    handle = low.memory(operand.address)[0]
    return handle, [low.row(item, isa.B32) for item in given[:count]]


def sample(low: Lowering, m: Mods) -> None:
    """Lower tex: one instruction for each channel."""
    level = m.take_one("level", "base", "grad")
    flags = geometry(m)
    if not m.take_one("v4"):
        raise m.fail("only .v4 is supported")
    result, where = m.types(2)
    if result not in RESULTS or where not in (isa.S32, isa.F32):
        raise m.fail("the types must be .u32, .s32 or .f32, then .s32 or .f32")
    m.done(2 + {"level": 1, "grad": 2}.get(level or "", 0))  # what selects a level is not read: a texture has one level
    value = m.operands[0]
    if not isinstance(value, Vector) or len(value.items) != 4:
        raise m.fail("the result must be four registers in braces")
    handle, places = coordinates(low, m, m.operands[1], flags | (FLOATS if where == isa.F32 else 0))
    flags |= FLOATS if where == isa.F32 else 0
    if flags & CUBE:
        if where != isa.F32:
            raise m.fail("the coordinates of a cube map must be .f32")
        places, flags = on_face(low, *places), flags | LAYER
    rows = [m.result(item, result, wider=True) for item in value.items]
    each(low, isa.TEX, result, 0, handle, flags, places, rows)


def each(
    low: Lowering, op: int, type_: int, whole: int, handle: int, flags: int, places: list[int], rows: list[int]
) -> None:
    """Append a load for each element of a vector. Results that are operands too are written after the last load."""
    apart = bool({handle, *places} & set(rows))
    made = [low.new_row() if apart else row for row in rows]
    for k, row in enumerate(made):
        low.emit(op, type_, whole, d=row, a=handle, imm=k, flags=flags, items=places)
    if apart:
        for row, result in zip(made, rows):
            low.emit(isa.MOV, isa.B64, d=result, a=row)


def surface(low: Lowering, m: Mods) -> None:
    """Lower suld.b or sust.b: one instruction for each element."""
    stores = m.ins.opcode == "sust"
    if not m.take_one("b"):
        raise m.fail("only .b, the form without a format, is supported")
    for name in ("ca", "cg", "cs", "cv", "wb", "wt"):
        m.take_one(name)
    flags = geometry(m)
    vector = m.take_one("v2", "v4")
    (type_,) = m.types()
    flags |= m.choose(OUTSIDE, TRAPS) << OUTSIDE_SHIFT
    m.done(2)
    if type_ not in (isa.B8, isa.B16, isa.B32, isa.B64):
        raise m.fail("the type must be .b8, .b16, .b32 or .b64")
    value, place = (m.operands[1], m.operands[0]) if stores else (m.operands[0], m.operands[1])
    items = list(value.items) if isinstance(value, Vector) else [value]
    count = int(vector[1:]) if vector else 1
    if len(items) != count:
        raise m.fail(f"expected {count} registers, got {len(items)}")
    handle, places = coordinates(low, m, place, flags)
    whole = count * (type_ & 15)
    low.granule = min(low.granule, type_ & 15)
    if stores:
        for k, row in enumerate([low.row(item, type_) for item in items]):
            low.emit(isa.SUSTORE, type_, whole, a=handle, b=row, imm=k, flags=flags, items=places)
        return
    each(low, isa.SULOAD, type_, whole, handle, flags, places, [m.result(item, type_, wider=True) for item in items])


def query(low: Lowering, m: Mods) -> None:
    """Lower txq or suq."""
    what = m.choose(QUERIES)
    m.take_one("b32")
    m.done(2)
    handle = low.memory(m.operands[1])[0]
    low.emit(isa.TEXQUERY, isa.B32, d=m.dest(isa.B32), a=handle, imm=what)
