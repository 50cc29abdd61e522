"""Lowers copies of boxes of tensors, bulk reductions, and instructions on tensor maps."""

from __future__ import annotations

from .. import boxes, isa
from ..lowering import Lowering
from ..syntax import Address, Indexed, Number, Vector
from .memory import cache_hints, order_scope
from .mods import Mods, check_type

BULK_TYPES = {
    "add": (isa.U32, isa.S32, isa.U64, isa.F16, isa.BF16, isa.F32, isa.F64),
    "min": (isa.U32, isa.S32, isa.U64, isa.S64, isa.F16, isa.BF16),
    "max": (isa.U32, isa.S32, isa.U64, isa.S64, isa.F16, isa.BF16),
    "inc": (isa.U32,),
    "dec": (isa.U32,),
    "and": (isa.B32, isa.B64),
    "or": (isa.B32, isa.B64),
    "xor": (isa.B32, isa.B64),
}


def copy_box(low: Lowering, m: Mods, reduces: bool) -> None:
    """Lower cp.async.bulk.tensor or cp.reduce.async.bulk.tensor. The modifiers up to .tensor have been taken."""
    policy = cache_hints(m)
    prefetches = m.take_one("prefetch") is not None
    dimensions = m.take_one("1d", "2d", "3d", "4d", "5d")
    if dimensions is None:
        raise m.fail("needs one of .1d to .5d")
    kind = m.flag("tile::gather4", boxes.ROWS) | m.flag("tile::scatter4", boxes.ROWS)
    m.take_one("tile")
    if any(name.startswith("im2col") for name in m.left):
        raise m.fail("only .tile modes are supported: im2col is not")
    kind |= boxes.PAIRED if m.take_one("cta_group::1", "cta_group::2") == "cta_group::2" else 0
    if prefetches:
        m.take_one("L2")
        m.take_one("global")
        m.done(1 + int(policy))
        low.emit(isa.NOP)
        return
    loads = not reduces and m.take_one("mbarrier::complete_tx::bytes") is not None
    spaces = [name for name in m.left if name in ("shared::cta", "shared::cluster", "global")]
    m.left = [name for name in m.left if name not in spaces]
    if loads:
        fits = len(spaces) == 2 and spaces[0] != "global" and spaces[1] == "global"
    else:
        fits = spaces == ["global", "shared::cta"] and m.take_one("bulk_group") is not None
    if not fits:
        raise m.fail("needs .shared.global.mbarrier::complete_tx::bytes or .global.shared::cta.bulk_group")
    if reduces:
        kind |= m.choose({name: isa.ATOMS[name] for name in BULK_TYPES}) | boxes.REDUCES
    cast = loads and m.take_one("multicast::cluster") is not None
    kind |= boxes.MULTICAST if cast else 0
    m.done((3 if loads else 2) + int(policy) + int(cast))
    boxed, shared = m.operands[1 if loads else 0], m.operands[0 if loads else 1]
    wanted = 5 if kind & boxes.ROWS else int(dimensions[0])
    if not isinstance(boxed, Indexed) or len(boxed.more) != 1:
        raise m.fail("needs [tensor map, {coordinates}]")
    given = boxed.more[0].items if isinstance(boxed.more[0], Vector) else boxed.more
    if len(given) != wanted:
        raise m.fail(f"expected {wanted} coordinates, got {len(given)}")
    coordinates = [low.row(item, isa.S32) for item in given]
    (to, at), (source, offset) = low.memory(shared)[:2], map_address(low, boxed.address)
    barrier, place = low.memory(m.operands[2])[:2] if loads else (low.constant(0), 0)
    op = isa.TENSORLOAD if loads else isa.TENSORSTORE
    ranks = m.row(3) if cast else low.constant(0)
    low.emit(op, offset, place, a=to, b=source, c=ranks, e=barrier, imm=at, flags=kind, items=coordinates)


def map_address(low: Lowering, address: Address) -> tuple[int, int]:
    """The row and offset of a tensor map's address, which is generic; a kernel's parameter may be named directly."""
    row, offset, space = low.memory(address)
    if space != "param":
        return row, offset
    return low.address_row(Address(address.base, 0)), address.offset


def reduce_bulk(low: Lowering, m: Mods) -> None:
    """Lower cp.reduce.async.bulk to global memory."""
    policy = cache_hints(m)
    if not (m.take_one("global") and m.take_one("shared::cta") and m.take_one("bulk_group")):
        raise m.fail("only .global.shared::cta.bulk_group is supported")
    m.take_one("noftz")
    name = next((word for word in m.left if word in BULK_TYPES), "add")
    kind = m.choose({word: isa.ATOMS[word] for word in BULK_TYPES})
    (type_,) = m.types()
    check_type(m, type_, BULK_TYPES[name])
    m.done(3 + int(policy))
    (to, at), (source, offset) = (low.memory(operand)[:2] for operand in m.operands[:2])
    low.emit(isa.BULKREDUCE, offset, a=to, b=source, c=m.row(2, isa.B32), imm=at, flags=kind | type_ << 4)


# the fields of a tensor map: (place in the descriptor, type, bytes from one dimension's field to the next or 0)
FIELDS = {
    "global_address": (boxes.ADDRESS, isa.B64, 0),
    "rank": (boxes.RANK, isa.B32, 0),
    "elemtype": (boxes.TYPE, isa.B32, 0),
    "interleave_layout": (boxes.INTERLEAVE, isa.B32, 0),
    "swizzle_mode": (boxes.SWIZZLE, isa.B32, 0),
    "fill_mode": (boxes.FILL, isa.B32, 0),
    "swizzle_atomicity": (boxes.ATOMICITY, isa.B32, 0),
    "box_dim": (boxes.BOX, isa.B32, 4),
    "global_dim": (boxes.DIMS, isa.B32, 4),
    "element_stride": (boxes.STEPS, isa.B32, 4),
    "global_stride": (boxes.STRIDES, isa.B64, 8),
}


def tensor_map_instruction(low: Lowering, m: Mods) -> None:
    """Lower tensormap.replace, which stores a field, or tensormap.cp_fenceproxy."""
    if m.take_one("cp_fenceproxy"):
        copy_map(low, m)
        return
    name = next((word for word in FIELDS if word in m.left), None)
    if not (m.take_one("replace") and m.take_one("tile")) or name is None:
        raise m.fail(f"needs .replace.tile and one of .{', .'.join(FIELDS)}")
    m.take_one(name)
    place, type_, pitch = FIELDS[name]
    space = m.choose({"global": isa.GLOBAL, "shared::cta": isa.SHARED}, isa.GENERIC)
    m.take_one("b1024")
    check_type(m, m.types()[0], (type_,))
    m.done(3 if pitch else 2)
    if pitch:
        number = m.operands[1]
        if not isinstance(number, Number) or not 0 <= number.value < (4 if name == "global_stride" else 5):
            raise m.fail("the dimension must be an immediate from 0 to 4, or from 0 to 3 for .global_stride")
        place += pitch * number.value
    row, offset, _ = low.memory(m.operands[0])
    value = m.row(len(m.operands) - 1, type_)
    low.granule = min(low.granule, 4)
    low.emit(isa.ST, type_, a=row, imm=offset + place, flags=space << isa.SPACE_SHIFT, items=[value])


def copy_map(low: Lowering, m: Mods) -> None:
    """Lower tensormap.cp_fenceproxy."""
    for word in ("global", "shared::cta", "tensormap::generic", "release", "sync", "aligned"):
        if not m.take_one(word):
            raise m.fail(f"needs .{word}")
    scope = m.choose({"cta": isa.CTA, "cluster": isa.CLUSTER, "gpu": isa.GPU, "sys": isa.SYS})
    m.done(3)
    (to, at), (source, offset) = (low.memory(operand)[:2] for operand in m.operands[:2])
    low.granule = min(low.granule, 4)
    low.emit(isa.MAPCOPY, offset, a=to, b=source, imm=at, flags=scope << isa.SCOPE_SHIFT)


def fence_maps(low: Lowering, m: Mods) -> None:
    """Lower fence.proxy.tensormap::generic to a fence of its order and scope, because maps have no cache here."""
    order, scope = order_scope(m, ("acquire", "release"), isa.ACQ_REL)
    m.done(2 if order == isa.ACQUIRE else 0)
    low.emit(isa.FENCE, flags=order << isa.ORDER_SHIFT | scope << isa.SCOPE_SHIFT)
