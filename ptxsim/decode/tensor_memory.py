"""Lowers the tcgen05 instructions, which use tensor memory."""

from __future__ import annotations

import re

from .. import isa
from ..lowering import Lowering
from ..scaled_product import FACTORS_SHIFT, MX4_KIND, MX_KIND, NV4_KIND
from ..syntax import Address, Number, Vector
from ..tensor_memory import LANE_32, PACKS, PAIR, PARTS_64, PARTS_128, PARTS_256, TWICE_32
from ..tensor_product import (
    EVERY_32,
    F8_KIND,
    F16_KIND,
    FOUR,
    FROM_TENSOR,
    HALVES,
    I8_KIND,
    MULTICAST,
    QUARTERS,
    TF32_KIND,
    WHOLE,
    WIDENS_4,
    WIDENS_6,
)
from .mods import Mods

SHAPES = {
    "32x32b": (LANE_32, 1),
    "16x64b": (PARTS_64, 1),
    "16x128b": (PARTS_128, 2),
    "16x256b": (PARTS_256, 4),
    "16x32bx2": (TWICE_32, 1),
}
KINDS = {"kind::f16": F16_KIND, "kind::tf32": TF32_KIND, "kind::f8f6f4": F8_KIND, "kind::i8": I8_KIND}
# products with .block_scale: the kind, and for each modifier (None: without one) how many factors a row has
SCALED: dict[str, tuple[int, dict[str | None, int]]] = {
    "kind::mxf8f6f4": (MX_KIND, {None: 1, "scale_vec::1X": 1, "block32": 1}),
    "kind::mxf4": (MX4_KIND, {None: 2, "scale_vec::2X": 2, "block32": 2}),
    "kind::mxf4nvf4": (NV4_KIND, {"scale_vec::2X": 2, "block32": 2, "scale_vec::4X": 4, "block16": 4}),
}
VECTORS = ("scale_vec::1X", "scale_vec::2X", "scale_vec::4X", "block16", "block32")
WIDENED = {"b4x16_p64": WIDENS_4, "b6x16_p32": WIDENS_6}
COPIES = {  # tcgen05.cp: (shape, multicast) -> how many 16-byte parts a row has, and which lanes rows fill
    ("128x256b", None): (2, WHOLE),
    ("128x128b", None): (1, WHOLE),
    ("4x256b", None): (2, EVERY_32),
    ("64x128b", "warpx2::02_13"): (1, HALVES),
    ("64x128b", "warpx2::01_23"): (1, QUARTERS),
    ("32x128b", "warpx4"): (1, FOUR),
}
WAITS = ("wait::ld", "wait::st", "fence::before_thread_sync", "fence::after_thread_sync", "relinquish_alloc_permit")


def tensor_core(low: Lowering, m: Mods) -> None:
    """Lower any tcgen05 instruction except shift."""
    kind = m.take_one("alloc", "dealloc", "ld", "st", "mma", "cp", "commit", *WAITS)
    if kind is None and "shift" in m.left:
        raise m.fail(
            "is not supported: the PTX ISA does not say how many lanes move, nor whether 'down' is towards lane 0"
        )
    if kind is None:
        raise m.fail("is not supported")
    group = m.take_one("cta_group::1", "cta_group::2")
    pair = PAIR if group == "cta_group::2" else 0
    if kind in ("mma", "cp", "commit"):
        {"mma": multiply, "cp": copy, "commit": commit}[kind](low, m, pair)
        return
    synced = m.take_one("sync") is not None and m.take_one("aligned") is not None
    if not synced and not kind.startswith("fence"):
        raise m.fail("needs .sync.aligned")
    if kind in WAITS:
        m.done(0)
        if kind.startswith("wait"):
            low.emit(isa.TCWAIT, imm=int(kind == "wait::st"))
        else:
            low.emit(isa.NOP) if kind == "relinquish_alloc_permit" else low.emit(isa.TCFENCE, imm=int("after" in kind))
    elif kind == "alloc":
        m.take_one("shared::cta")
        m.take_one("b32")
        m.done(2)
        row, offset, _ = low.memory(m.operands[0])
        low.granule = min(low.granule, 4)
        low.emit(isa.TCALLOC, a=row, b=m.row(1, isa.B32), imm=offset, flags=pair)
    elif kind == "dealloc":
        m.take_one("b32")
        m.done(2)
        low.emit(isa.TCDEALLOC, a=m.row(0, isa.B32), b=m.row(1, isa.B32))
    else:
        move(low, m, kind == "ld")


def move(low: Lowering, m: Mods, load: bool) -> None:
    """Lower tcgen05.ld or tcgen05.st."""
    name = m.take_one(*SHAPES)
    times = next((word for word in m.left if re.fullmatch(r"x(1|2|4|8|16|32|64|128)", word)), None)
    if name is None or times is None:
        raise m.fail(f"needs one of .{', .'.join(SHAPES)} and one of .x1 to .x128")
    m.take_one(times)
    shape, per = SHAPES[name]
    flags = m.flag("pack::16b" if load else "unpack::16b", PACKS)
    if flags and shape not in (LANE_32, TWICE_32):
        raise m.fail(f"two elements in a register are not supported with .{name}")
    m.take_one("b32")
    halves = shape == TWICE_32
    m.done(3 if halves else 2)
    split = m.operands[2 if load else 1] if halves else Number(0, "i")
    if not isinstance(split, Number):
        raise m.fail("the distance between the two halves of the lanes must be an immediate")
    value, address = (m.operands[0], m.operands[1]) if load else (m.operands[-1], m.operands[0])
    items = list(value.items) if isinstance(value, Vector) else [value]
    if len(items) != int(times[1:]) * per:
        raise m.fail(f"expected {int(times[1:]) * per} registers, got {len(items)}")
    row, offset, _ = low.memory(address)
    rows = [m.result(item, isa.B32) if load else low.row(item, isa.B32) for item in items]
    op = isa.TCLOAD if load else isa.TCSTORE
    low.emit(op, shape, split.value, d=rows[0] if load else 0, a=row, imm=offset, flags=flags, items=rows)


def multiply(low: Lowering, m: Mods, pair: int) -> None:
    """Lower tcgen05.mma. pair: PAIR for .cta_group::2, else 0."""
    if m.take_one("block_scale"):
        multiply_scaled(low, m, pair)
        return
    scaled = next((word for word in m.left if word in SCALED), None)
    if scaled:
        raise m.fail(f".{scaled} needs .block_scale")
    kind = m.choose(KINDS)
    take_collector(m)
    m.done(5, 6)
    lanes = m.operands[4]
    left_out: list[int] = []
    if len(m.operands) == 6:
        count = 8 if pair else 4
        if not isinstance(lanes, Vector) or len(lanes.items) != count:
            raise m.fail(f"before the predicate expected a vector of {count} registers, which disable lanes of D")
        left_out = [low.row(item, isa.B32) for item in lanes.items]
    emit_product(low, m, kind, pair, left_out)


def take_collector(m: Mods) -> None:
    """Take the words about the buffer of A, which change no result."""
    for word in [word for word in m.left if word.startswith("collector::a::")]:
        m.take_one(word)


def multiply_scaled(low: Lowering, m: Mods, pair: int) -> None:
    """Lower tcgen05.mma with .block_scale. pair: as for `multiply`."""
    name = m.take_one(*SCALED)
    if name is None:
        raise m.fail(f".block_scale needs one of .{', .'.join(SCALED)}")
    kind, counts = SCALED[name]
    words = m.take_one(*VECTORS)
    if words not in counts:
        raise m.fail(f".{name} needs one of .{', .'.join(word for word in counts if word)}")
    take_collector(m)
    m.done(7)
    if not all(isinstance(operand, Address) for operand in m.operands[4:6]):
        raise m.fail("the scale factors of A and B are addresses in brackets: they lie in tensor memory")
    emit_product(low, m, kind, pair | counts[words] << FACTORS_SHIFT, [scales_row(low, m.operands[k]) for k in (4, 5)])


def scales_row(low: Lowering, operand: Address) -> int:
    """The row of the register file that holds the address of scale factors."""
    row, offset, _ = low.memory(operand)
    if not offset:
        return row
    moved = low.new_row()
    low.emit(isa.ADD, isa.U32, d=moved, a=row, b=low.constant(offset))
    return moved


def emit_product(low: Lowering, m: Mods, kind: int, flags: int, rest: list[int]) -> None:
    """Append a product. rest: the rows that follow the predicate in the list of operands."""
    held = isinstance(m.operands[1], Address)
    from_row, from_offset = low.memory(m.operands[1])[:2] if held else (m.row(1, isa.B64), 0)
    to_row, to_offset, _ = low.memory(m.operands[0])
    predicate = m.row(len(m.operands) - 1, isa.PREDICATE)
    low.emit(
        isa.TCMMA,
        from_offset,
        kind,
        a=to_row,
        b=from_row,
        c=m.row(2, isa.B64),
        e=m.row(3, isa.B32),
        imm=to_offset,
        flags=flags | (FROM_TENSOR if held else 0),
        items=[predicate, *rest],
    )


def copy(low: Lowering, m: Mods, pair: int) -> None:
    """Lower tcgen05.cp. pair: as for `multiply`."""
    shape = m.take_one(*{name for name, _ in COPIES})
    found = COPIES.get((shape or "", m.take_one(*{name for _, name in COPIES if name})))
    if found is None:
        raise m.fail("needs one of .128x256b, .128x128b, .4x256b, .64x128b.warpx2::02_13 (::01_23), .32x128b.warpx4")
    widens = 0
    if m.take_one("b8x16"):
        widens = m.choose(WIDENED)
    elif set(WIDENED) & set(m.left):
        raise m.fail(f"elements that become wider need .b8x16 before .{' or .'.join(WIDENED)}")
    m.done(2)
    parts, lanes = found
    row, offset, _ = low.memory(m.operands[0])
    low.emit(isa.TCCOPY, parts, lanes, a=row, b=m.row(1, isa.B64), imm=offset, flags=pair | widens)


def commit(low: Lowering, m: Mods, pair: int) -> None:
    """Lower tcgen05.commit. pair: as for `multiply`."""
    if not m.take_one("mbarrier::arrive::one"):
        raise m.fail("needs .mbarrier::arrive::one")
    m.take_one("shared::cluster")
    cast = m.take_one("multicast::cluster") is not None
    m.take_one("b64")
    m.done(1 + int(cast))
    row, offset, _ = low.memory(m.operands[0])
    low.granule = min(low.granule, 8)
    ranks = m.row(1) if cast else low.constant(0)
    low.emit(isa.TCCOMMIT, a=row, c=ranks, imm=offset, flags=pair | (MULTICAST if cast else 0))
