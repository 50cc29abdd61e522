"""Lowers tcgen05."""

from __future__ import annotations

import re

from .. import isa
from ..lowering import Lowering
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
)
from .mods import Mods

SHAPES = {"32x32b": (LANE_32, 1), "16x64b": (PARTS_64, 1), "16x128b": (PARTS_128, 2), "16x256b": (PARTS_256, 4),
          "16x32bx2": (TWICE_32, 1)}  # fmt: skip
KINDS = {"kind::f16": F16_KIND, "kind::tf32": TF32_KIND, "kind::f8f6f4": F8_KIND, "kind::i8": I8_KIND}
COPIES = {  # of tcgen05.cp: parts of 16 bytes in a row, and the lanes that rows fill, by shape and multicast
    ("128x256b", None): (2, WHOLE), ("128x128b", None): (1, WHOLE), ("4x256b", None): (2, EVERY_32),
    ("64x128b", "warpx2::02_13"): (1, HALVES), ("64x128b", "warpx2::01_23"): (1, QUARTERS),
    ("32x128b", "warpx4"): (1, FOUR),
}  # fmt: skip
WAITS = ("wait::ld", "wait::st", "fence::before_thread_sync", "fence::after_thread_sync", "relinquish_alloc_permit")


def tensor_core(low: Lowering, m: Mods) -> None:
    """Lower any tcgen05 instruction except shift."""
    kind = m.take_one("alloc", "dealloc", "ld", "st", "mma", "cp", "commit", *WAITS)
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
        raise m.fail("the distance of the halves must be an immediate")
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
    kind = m.choose(KINDS)
    for word in [word for word in m.left if word.startswith("collector::a::")]:
        m.take_one(word)
    m.done(5, 6)
    to, a, lanes = m.operands[0], m.operands[1], m.operands[4]
    left_out: list[int] = []
    if len(m.operands) == 6:
        count = 8 if pair else 4
        if not isinstance(lanes, Vector) or len(lanes.items) != count:
            raise m.fail(f"only {count} registers of lanes that D leaves out may stand before the predicate")
        left_out = [low.row(item, isa.B32) for item in lanes.items]
    held = isinstance(a, Address)
    from_row, from_offset = low.memory(a)[:2] if held else (m.row(1, isa.B64), 0)
    to_row, to_offset, _ = low.memory(to)
    predicate = m.row(len(m.operands) - 1, isa.PREDICATE)
    low.emit(
        isa.TCMMA, from_offset, kind, a=to_row, b=from_row, c=m.row(2, isa.B64), e=m.row(3, isa.B32), imm=to_offset,
        flags=pair | (FROM_TENSOR if held else 0), items=[predicate, *left_out],
    )  # fmt: skip


def copy(low: Lowering, m: Mods, pair: int) -> None:
    """Lower tcgen05.cp. pair: as for `multiply`."""
    shape = m.take_one(*{name for name, _ in COPIES})
    found = COPIES.get((shape or "", m.take_one(*{name for _, name in COPIES if name})))
    if found is None:
        raise m.fail("needs one of .128x256b, .128x128b, .4x256b, .64x128b.warpx2::02_13 (::01_23), .32x128b.warpx4")
    if m.left:
        raise m.fail("copies that widen elements (.b8x16 and its source's format) are not supported")
    m.done(2)
    parts, lanes = found
    row, offset, _ = low.memory(m.operands[0])
    low.emit(isa.TCCOPY, parts, lanes, a=row, b=m.row(1, isa.B64), imm=offset, flags=pair)


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
