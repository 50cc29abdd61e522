"""Lowers barriers, and collective instructions of a warp: shuffles, votes, reductions, matrices."""

from __future__ import annotations

import re

from .. import isa, matrix
from ..lowering import Lowering
from ..syntax import Number, Pair, Vector
from .cluster import cluster_barrier
from .mods import Mods, check_type


def barrier(low: Lowering, m: Mods) -> None:
    """Lower bar or barrier."""
    if m.take_one("warp"):
        m.take_one("sync")
        m.done(1)
        low.emit(isa.WARPSYNC, a=m.row(0, isa.U32))
        return
    m.take_one("cta")
    if "cluster" in m.left:
        cluster_barrier(low, m)
        return
    aligned = m.take_one("aligned") is not None or m.ins.opcode == "bar"
    kind = m.take_one("sync", "arrive", "red")
    if kind is None:
        raise m.fail("needs .sync, .arrive or .red")
    flags = 1 if aligned else 0
    counted = 2 if kind == "red" else 1
    number, threads = m.operands[counted - 1 : counted], m.operands[counted : len(m.operands) - (kind == "red")]
    if any(isinstance(n, Number) and not 0 <= n.value <= 15 for n in number):
        raise m.fail("a block has barriers 0 to 15")
    if any(isinstance(n, Number) and n.value % 32 for n in threads):
        raise m.fail("the number of threads must be a multiple of 32")
    if kind == "red":
        how = m.choose({"popc": 0, "and": 1, "or": 2})
        m.take_one("pred", "u32")
        m.done(3, 4)
        count = m.row(2, isa.U32) if len(m.operands) == 4 else low.constant(0)
        value = m.row(len(m.operands) - 1)
        d = m.dest(isa.PREDICATE if how else isa.U32)
        low.emit(isa.BARRED, d=d, a=m.row(1, isa.U32), b=count, c=value, imm=how, flags=flags)
        return
    m.done(1, 2)
    count = m.row(1, isa.U32) if len(m.operands) == 2 else low.constant(0)
    low.emit(isa.BAR if kind == "sync" else isa.BARARRIVE, a=m.row(0, isa.U32), b=count, flags=flags)


def synced(m: Mods) -> None:
    """Take .sync, which is required, and .aligned, which is optional."""
    if not m.take_one("sync"):
        raise m.fail("needs .sync on sm_70 and later")
    m.take_one("aligned")


def shuffle(low: Lowering, m: Mods) -> None:
    """Lower shfl.sync."""
    synced(m)
    mode = m.choose({"up": 0, "down": 1, "bfly": 2, "idx": 3})
    check_type(m, m.types()[0], (isa.B32,))
    m.done(5)
    target = m.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    d = m.result(first, isa.B32)
    d2 = m.result(second, isa.PREDICATE) if second is not None else 0
    low.emit(
        isa.SHFL,
        isa.B32,
        d=d,
        d2=d2,
        a=m.row(1, isa.B32),
        b=m.row(2, isa.U32),
        c=m.row(3, isa.U32),
        e=m.row(4, isa.U32),
        imm=mode,
    )


def vote(low: Lowering, m: Mods) -> None:
    """Lower vote.sync."""
    synced(m)
    kind = m.choose({"all": 0, "any": 1, "uni": 2, "ballot": 3})
    m.take_one("pred", "b32")
    m.done(3)
    d = m.dest(isa.B32 if kind == 3 else isa.PREDICATE)
    low.emit(isa.VOTE, isa.B32, d=d, a=m.row(1), e=m.row(2, isa.U32), imm=kind)


def match(low: Lowering, m: Mods) -> None:
    """Lower match.sync."""
    kind = m.choose({"any": 0, "all": 1})
    synced(m)
    (type_,) = m.types()
    check_type(m, type_, (isa.B32, isa.B64))
    m.done(3)
    target = m.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    d = m.result(first, isa.B32)
    d2 = m.result(second, isa.PREDICATE) if second is not None else 0
    low.emit(isa.MATCH, type_, d=d, d2=d2, a=m.row(1, type_), e=m.row(2, isa.U32), imm=kind)


def reduce(low: Lowering, m: Mods) -> None:
    """Lower redux.sync."""
    synced(m)
    kind = m.choose(isa.REDUCTIONS)
    (type_,) = m.types()
    flags = 0
    if kind in (isa.REDUCTIONS["min"], isa.REDUCTIONS["max"]) and type_ == isa.F32:
        flags = m.flag("NaN", isa.NAN) | m.flag("abs", isa.XORSIGN)
    else:
        numbers = kind in (isa.REDUCTIONS["add"], isa.REDUCTIONS["min"], isa.REDUCTIONS["max"])
        check_type(m, type_, (isa.U32, isa.S32) if numbers else (isa.B32,))
    m.done(3)
    low.emit(isa.REDUX, type_, d=m.dest(type_), a=m.row(1, type_), e=m.row(2, isa.U32), imm=kind, flags=flags)


def active(low: Lowering, m: Mods) -> None:
    """Lower activemask."""
    m.types()
    m.done(1)
    low.emit(isa.ACTIVEMASK, d=m.dest(isa.B32))


def elect(low: Lowering, m: Mods) -> None:
    """Lower elect.sync."""
    synced(m)
    m.done(2)
    target = m.operands[0]
    if not isinstance(target, Pair):
        raise m.fail("needs two destinations")
    d = m.result(target.first, isa.B32)
    low.emit(isa.ELECT, d=d, d2=m.result(target.second, isa.PREDICATE), e=m.row(1, isa.U32))


def sleep(low: Lowering, m: Mods) -> None:
    """Lower nanosleep."""
    m.take_one("u32")
    m.done(1)
    low.emit(isa.NANOSLEEP, a=m.row(0, isa.U32))


# by the type of A and B: the kind of element (matrix.py), its bits, the type of D and C, the shapes
ELEMENTS = {
    "tf32": (matrix.TF32, 32, "f32", ("m16n8k8", "m16n8k4")),
    "f16": (matrix.F16, 16, "f32", ("m16n8k16", "m16n8k8")),
    "bf16": (matrix.BF16, 16, "f32", ("m16n8k16", "m16n8k8")),
    "e4m3": (matrix.E4M3, 8, "f32", ("m16n8k32", "m16n8k16")),
    "e5m2": (matrix.E5M2, 8, "f32", ("m16n8k32", "m16n8k16")),
    "s8": (matrix.INT8, 8, "s32", ("m16n8k32", "m16n8k16", "m8n8k16")),
    "s4": (matrix.INT4, 4, "s32", ("m16n8k64", "m16n8k32", "m8n8k32")),
    "b1": (matrix.BIT, 1, "s32", ("m16n8k256", "m16n8k128", "m8n8k128")),
    "f64": (matrix.F64, 64, "f64", ("m16n8k16", "m16n8k8", "m16n8k4", "m8n8k4")),
}
HALF_RESULTS = ("f16", "e4m3", "e5m2")  # types of A whose D and C may be float16


def multiply_matrix(low: Lowering, m: Mods) -> None:
    """Lower mma.sync."""
    synced(m)
    if m.take_one("row") is None or m.take_one("col") is None:
        raise m.fail("only .row.col is supported")
    saturate = m.flag("satfinite", isa.SAT) if {"s8", "u8", "s4", "u4"} & set(m.left) else 0
    m.take_one("kind::f8f6f4")
    if "b1" in m.left:
        saturate |= m.choose({"xor": matrix.BIT_XOR, "and": 0})
        m.choose({"popc": 0})
    shape = m.left.pop(0) if m.left else ""
    names = m.left
    m.left = []
    if len(names) != 4:
        raise m.fail("needs the types of D, A, B and C")
    d_type, a_type, b_type, c_type = names
    kinds = [ELEMENTS.get(name.replace("u", "s", 1)) for name in (a_type, b_type)]
    first, second = kinds
    if first is None or second is None or first[1:] != second[1:] or shape not in first[3]:
        raise m.fail("this shape and these types are not supported")
    if first is not second and "e" not in a_type[0]:
        raise m.fail("this shape and these types are not supported")
    kind, bits, expected, _ = first
    half = 0
    if a_type in HALF_RESULTS:
        half = (1 if c_type == "f16" else 0) | (2 if d_type == "f16" else 0)
    for name, bit in ((d_type, 2), (c_type, 1)):
        if name != expected and not half & bit:
            raise m.fail(f"D or C of type {name} is not supported here")
    m.done(4)
    rows_of_a, depth = (int(part) for part in re.findall(r"[mk](\d+)", shape))
    each = 32 * max(bits, 32)
    count_c = rows_of_a * 8 // 32
    counts = (
        2 if half & 2 else count_c,
        rows_of_a * depth * bits // each,
        depth * 8 * bits // each,
        2 if half & 1 else count_c,
    )
    rows: list[int] = []
    for operand, count in zip(m.operands, counts):
        items = operand.items if isinstance(operand, Vector) else (operand,)
        if len(items) != count:
            raise m.fail(f"expected {count} registers, got {len(items)}")
        type_ = isa.B64 if bits == 64 else isa.B32
        if operand is m.operands[0]:
            rows += [m.result(item, type_) for item in items]
        else:
            rows += [low.row(item, type_) for item in items]
    flags = saturate | (isa.HIGH if a_type[0] == "u" else 0) | (isa.WIDE if b_type[0] == "u" else 0)
    low.emit(
        isa.MMA, half, d=rows[0], imm=kind | second[0] << 8 | rows_of_a << 16 | depth << 24, flags=flags, items=rows
    )


def matrix_access(low: Lowering, m: Mods) -> None:
    """Lower ldmatrix or stmatrix."""
    synced(m)
    is_load = m.ins.opcode == "ldmatrix"
    m.choose({"m8n8": 0})
    count = m.choose({"x1": 1, "x2": 2, "x4": 4})
    trans = isa.HIGH if m.take_one("trans") else 0
    m.take_one("shared", "shared::cta")
    (type_,) = m.types()
    check_type(m, type_, (isa.B16,))
    m.done(2)
    value, address = m.operands if is_load else m.operands[::-1]
    items = value.items if isinstance(value, Vector) else (value,)
    if len(items) != count:
        raise m.fail(f"expected {count} registers, got {len(items)}")
    row, offset, _ = low.memory(address)
    rows = [m.result(item, isa.B32) if is_load else low.row(item, isa.B32) for item in items]
    low.granule = min(low.granule, 2 if trans else 4)
    op = isa.LDMATRIX if is_load else isa.STMATRIX
    low.emit(op, isa.B16, d=rows[0] if is_load else 0, a=row, imm=offset, flags=trans, items=rows)


def move_matrix(low: Lowering, m: Mods) -> None:
    """Lower movmatrix."""
    synced(m)
    m.choose({"m8n8": 0})
    m.choose({"trans": 0})
    check_type(m, m.types()[0], (isa.B16,))
    m.done(2)
    low.emit(isa.MOVMATRIX, isa.B32, d=m.dest(isa.B32), a=m.row(1))
