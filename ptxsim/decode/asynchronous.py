"""Lowers mbarriers, asynchronous copies, fences and wgmma."""

from __future__ import annotations

import re

from .. import isa, matrix
from ..async_store import REDUCES, SPACE_SHIFT
from ..lowering import Lowering
from ..mbarrier import COMPLETES, DROPS, ENDS_NONE, EXPECTS, NOT_COUNTED, PARITY, TRIES
from ..syntax import Number, Vector
from ..warpgroup import (
    FROM_REGISTERS,
    HALF_RESULT,
    NEGATES_A,
    NEGATES_B,
    SATURATES,
    TRANSPOSES_A,
    TRANSPOSES_B,
    UNSIGNED_A,
    UNSIGNED_B,
)
from .memory import atomic, cache_hints, copy_async, elements, fence, order_scope, store
from .mods import Mods, check_type, groups
from .tensor import copy_box, fence_maps, reduce_bulk


def copy(low: Lowering, m: Mods) -> None:
    """Lower any instruction that begins with cp."""
    reduces = m.take_one("reduce") is not None
    if not m.take_one("async"):
        raise m.fail("is not supported")
    if m.take_one("bulk"):
        if m.take_one("tensor"):
            copy_box(low, m, reduces)
        elif reduces:
            reduce_bulk(low, m)
        else:
            copy_bulk(low, m)
    elif m.take_one("mbarrier"):
        arrive_after_copies(low, m)
    else:
        copy_async(low, m)


def any_fence(low: Lowering, m: Mods) -> None:
    """Lower any instruction that begins with fence."""
    if m.take_one("proxy"):
        fence_proxy(low, m)
    elif m.take_one("mbarrier_init"):
        fence_init(low, m)
    else:
        fence(low, m)


SHARED_NAMES = ("shared", "shared::cta", "shared::cluster")


def flags_of(m: Mods, orders: tuple[str, str], default: int) -> int:
    """Take the order, scope and space of an mbarrier instruction. Returns them as flags."""
    if {"gpu", "sys"} & set(m.left):
        raise m.fail("the scope is one of .cta, .cluster: no others can reach an mbarrier")
    order, scope = order_scope(m, orders, default, isa.CTA)
    space = isa.SHARED if m.take_one(*SHARED_NAMES) else isa.GENERIC
    return order << isa.ORDER_SHIFT | scope << isa.SCOPE_SHIFT | space << isa.SPACE_SHIFT


KINDS = ("init", "inval", "arrive", "arrive_drop", "test_wait", "try_wait", "pending_count", "expect_tx", "complete_tx")


def mbarrier(low: Lowering, m: Mods) -> None:
    """Lower any mbarrier instruction."""
    kind = m.take_one(*KINDS)
    if kind is None:
        raise m.fail("is not supported")
    if not m.take_one("b64"):
        raise m.fail("needs .b64")
    if kind == "pending_count":
        m.done(2)
        row = low.new_row()
        low.emit(isa.SHR, isa.B64, d=row, a=m.row(1, isa.B64), b=low.constant(21))
        low.emit(isa.AND, isa.B32, d=m.dest(isa.B32), a=row, b=low.constant((1 << 20) - 1))
        return
    low.granule = min(low.granule, 8)
    if kind in ("init", "inval"):
        flags = flags_of(m, ("weak", "volatile"), isa.WEAK)
        m.done(2 if kind == "init" else 1)
        row, offset, _ = low.memory(m.operands[0])
        count = m.row(1, isa.B32) if kind == "init" else low.constant(0)
        low.emit(isa.MBINIT if kind == "init" else isa.MBINVAL, isa.B64, a=row, b=count, imm=offset, flags=flags)
        return
    if kind in ("expect_tx", "complete_tx"):
        how = COMPLETES if kind == "complete_tx" else 0
        flags = flags_of(m, ("relaxed", "relaxed"), isa.RELAXED)
        m.done(2)
        row, offset, _ = low.memory(m.operands[0])
        low.emit(isa.MBEXPECT, isa.B64, how, a=row, c=m.row(1, isa.B32), imm=offset, flags=flags)
        return
    if kind in ("arrive", "arrive_drop"):
        quiet = m.flag("noComplete", ENDS_NONE)
        if quiet and {"relaxed", "cluster", "shared::cluster", "expect_tx"} & set(m.left):
            raise m.fail(
                ".noComplete takes no .relaxed, no .expect_tx and no .cluster: the mbarrier must lie in the thread's"
                " own block"
            )
        if quiet and len(m.operands) != 3:
            raise m.fail(".noComplete needs the count of arrivals as its third operand")
        expects = m.flag("expect_tx", EXPECTS)
        how = expects | quiet | (DROPS if kind == "arrive_drop" else 0)
        flags = flags_of(m, ("release", "relaxed"), isa.RELEASE)
        m.done(3 if expects else 2, 3)
        row, offset, _ = low.memory(m.operands[1])
        last = m.row(2, isa.B32) if len(m.operands) == 3 else low.constant(1)
        count, size = (low.constant(1), last) if expects else (last, low.constant(0))
        low.emit(isa.MBARRIVE, isa.B64, how, d=m.dest(isa.B64), a=row, b=count, c=size, imm=offset, flags=flags)
        return
    how = m.flag("parity", PARITY) | (TRIES if kind == "try_wait" else 0)
    flags = flags_of(m, ("acquire", "relaxed"), isa.ACQUIRE)
    m.done(3, 4 if kind == "try_wait" else 3)  # the fourth operand is a hint for the time to wait
    row, offset, _ = low.memory(m.operands[1])
    asked = m.row(2, isa.B32 if how & PARITY else isa.B64)
    low.emit(isa.MBWAIT, isa.B64, how, d=m.dest(isa.PREDICATE), a=row, b=asked, imm=offset, flags=flags)


def arrive_after_copies(low: Lowering, m: Mods) -> None:
    """Lower cp.async.mbarrier.arrive."""
    if not m.take_one("arrive"):
        raise m.fail("is not supported")
    how = m.flag("noinc", NOT_COUNTED)
    flags = flags_of(m, ("release", "release"), isa.RELEASE)
    if not m.take_one("b64"):
        raise m.fail("needs .b64")
    m.done(1)
    row, offset, _ = low.memory(m.operands[0])
    low.emit(isa.MBCOPIES, isa.B64, how, a=row, imm=offset, flags=flags)


def copy_bulk(low: Lowering, m: Mods) -> None:
    """Lower cp.async.bulk, or an instruction on its groups."""
    if m.take_one("commit_group"):
        m.done(0)
        low.emit(isa.BULKCOMMIT)
        return
    if m.take_one("wait_group"):
        reads = m.flag("read", 1)
        m.done(1)
        low.emit(isa.BULKWAIT, imm=groups(m), flags=reads)
        return
    policy = cache_hints(m)
    if m.take_one("prefetch"):
        m.take_one("L2")
        m.take_one("global")
        m.done(2 + int(policy))
        low.emit(isa.NOP)
        return
    spaces = [name for name in m.left if name in (*SHARED_NAMES, "global")]
    m.left = [name for name in m.left if name not in spaces]
    if spaces == ["global", "shared::cta"] and m.take_one("bulk_group"):
        m.done(3 + int(policy))
        (to, at), (source, offset) = (low.memory(operand)[:2] for operand in m.operands[:2])
        low.emit(isa.BULKSTORE, offset, a=to, b=source, c=m.row(2, isa.B32), imm=at)
        return
    known = spaces[1:] == ["global"] or spaces == ["shared::cluster", "shared::cta"]
    if not known or spaces[0] == "global" or not m.take_one("mbarrier::complete_tx::bytes"):
        raise m.fail(
            "only .shared::cluster.global and .shared::cluster.shared::cta with .mbarrier::complete_tx::bytes, and "
            ".global.shared::cta.bulk_group are supported"
        )
    cast = spaces[1] == "global" and m.take_one("multicast::cluster") is not None
    m.done(4 + int(policy) + int(cast))
    ranks = [m.row(4)] if cast else None
    space = isa.GLOBAL if spaces[1] == "global" else isa.SHARED
    (to, at), (source, offset), (barrier, place) = (low.memory(m.operands[k])[:2] for k in (0, 1, 3))
    size = m.row(2, isa.B32)
    low.emit(isa.BULKLOAD, offset, place, a=to, b=source, c=size, e=barrier, imm=at, flags=space, items=ranks)


STORED = (isa.B32, isa.B64, isa.U32, isa.U64, isa.S32, isa.S64, isa.F32, isa.F64)
REDUCED = {
    "inc": (isa.U32,),
    "dec": (isa.U32,),
    "min": (isa.U32, isa.S32),
    "max": (isa.U32, isa.S32),
    "and": (isa.B32,),
    "or": (isa.B32,),
    "xor": (isa.B32,),
    "add": (isa.U32, isa.S32, isa.U64),
}
COUNTED = "mbarrier::complete_tx::bytes"


def any_store(low: Lowering, m: Mods) -> None:
    """Lower st, or st.async. An st.async that no mbarrier counts (.release.global) is done at once."""
    if m.take_one("async") and COUNTED in m.left:
        store_async(low, m, False)
    else:
        store(low, m)


def any_reduction(low: Lowering, m: Mods) -> None:
    """Lower red, or red.async. A red.async that no mbarrier counts (.release.global) is done at once."""
    if m.take_one("async") and COUNTED in m.left:
        store_async(low, m, True)
    else:
        atomic(low, m)


def store_async(low: Lowering, m: Mods, reduces: bool) -> None:
    """Lower st.async or red.async that an mbarrier counts."""
    m.take_one(COUNTED)
    flags = 0
    if reduces:
        if not (m.take_one("relaxed") and m.take_one("cluster")):
            raise m.fail("needs .relaxed.cluster")
        name = next((word for word in m.left if word in REDUCED), "")
        flags = REDUCES | m.choose({name: isa.ATOMS[name] for name in REDUCED})
    else:
        m.take_one("weak")
    space = isa.SHARED if m.take_one("shared::cluster") else isa.GENERIC
    vector = None if reduces else m.take_one("v2", "v4")
    (type_,) = m.types()
    check_type(m, type_, REDUCED[name] if reduces else STORED)
    if vector == "v4" and type_ & 15 == 8:
        raise m.fail("a vector has at most 16 bytes")
    m.done(3)
    rows = [low.row(item, type_) for item in elements(m, m.operands[1], int(vector[1:]) if vector else 1)]
    (to, at), (barrier, place) = (low.memory(m.operands[k])[:2] for k in (0, 2))
    low.granule = min(low.granule, type_ & 15)
    flags |= space << SPACE_SHIFT
    low.emit(isa.STASYNC, type_, place, a=to, e=barrier, imm=at, flags=flags, items=rows)


OTHER_PROXIES = ("alias", "async::generic")


def fence_proxy(low: Lowering, m: Mods) -> None:
    """Lower fence.proxy. The machine has only the generic and the asynchronous proxy."""
    if m.take_one("tensormap::generic"):
        fence_maps(low, m)
        return
    if not m.take_one("async"):
        if not m.left or m.left[0] not in OTHER_PROXIES:
            raise m.fail(f"the proxy is one of .async, .tensormap::generic, .{', .'.join(OTHER_PROXIES)}")
        m.left = []
        low.emit(isa.NOP)
        return
    which = 0
    if m.take_one(*SHARED_NAMES):
        which = 1
    elif m.take_one("global"):
        which = 2
    m.done(0)
    low.emit(isa.PROXYFENCE, imm=which)


def fence_init(low: Lowering, m: Mods) -> None:
    """Lower fence.mbarrier_init.release.cluster."""
    if not (m.take_one("release") and m.take_one("cluster")):
        raise m.fail("needs .release.cluster")
    m.done(0)
    low.emit(isa.INITFENCE)


# by the type of A: (kind of element, elements of k, types of D)
WGMMA_KINDS = {
    "tf32": (matrix.TF32, 8, ("f32",)),
    "f16": (matrix.F16, 16, ("f32", "f16")),
    "bf16": (matrix.BF16, 16, ("f32",)),
    "e4m3": (matrix.E4M3, 32, ("f32", "f16")),
    "e5m2": (matrix.E5M2, 32, ("f32", "f16")),
    "s8": (matrix.INT8, 32, ("s32",)),
    "u8": (matrix.INT8, 32, ("s32",)),
}


def warpgroup(low: Lowering, m: Mods) -> None:
    """Lower any wgmma instruction."""
    kind = m.take_one("fence", "commit_group", "wait_group", "mma_async")
    if kind is None:
        raise m.fail("is not supported")
    if not (m.take_one("sync") and m.take_one("aligned")):
        raise m.fail("needs .sync.aligned")
    if kind == "wait_group":
        m.done(1)
        low.emit(isa.WGWAIT, imm=groups(m))
    elif kind == "mma_async":
        multiply_group(low, m)
    else:
        m.done(0)
        low.emit(isa.WGFENCE if kind == "fence" else isa.WGCOMMIT)


def multiply_group(low: Lowering, m: Mods) -> None:
    """Lower wgmma.mma_async."""
    shape = re.fullmatch(r"m64n(\d+)k(\d+)", m.left.pop(0)) if m.left else None
    saturates = m.flag("satfinite", SATURATES)
    types, m.left = m.left, []
    if shape is None or len(types) != 3:
        raise m.fail("needs a shape m64nNkK and the types of D, A and B")
    n, kinds = int(shape[1]), [WGMMA_KINDS.get(name, (-1, 0, ())) for name in types[1:]]
    (kind, depth, allowed), integers = kinds[0], types[1] in ("s8", "u8")
    same = kinds[0][1:] == kinds[1][1:] if depth == 32 else types[1] == types[2]
    if types[0] not in allowed or not same or depth != int(shape[2]) or not 8 <= n <= 256 or n % 8:
        raise m.fail("this shape and these types are not supported")
    if saturates and not integers:
        raise m.fail(".satfinite needs A and B of .s8 or .u8")
    if integers and n > 24 and n % 16:
        raise m.fail("this shape and these types are not supported")
    results, a = (*m.operands, None, None)[:2]
    held = isinstance(a, Vector)
    extra = 0 if kind not in (matrix.F16, matrix.BF16) else (1 if held else 2)
    m.done(4 if integers else 6 + extra)
    wanted = n // 4 if types[0] == "f16" else n // 2
    if not isinstance(results, Vector) or len(results.items) != wanted:
        raise m.fail(f"expected {wanted} registers of D")
    if isinstance(a, Vector) and len(a.items) != 4:
        raise m.fail(f"expected 4 registers of A, got {len(a.items)}")
    flags = saturates | (HALF_RESULT if types[0] == "f16" else 0)
    flags |= (UNSIGNED_A if types[1] == "u8" else 0) | (UNSIGNED_B if types[2] == "u8" else 0)
    signs = choices(m, 4, {1: 0, -1: 1})
    if signs:
        flags |= signs[0] * NEGATES_A | signs[1] * NEGATES_B
    transposed = choices(m, 6, {0: 0, 1: 1})
    if transposed:
        flags |= transposed[-1] * TRANSPOSES_B | (0 if held else transposed[0] * TRANSPOSES_A)
    rows = [m.result(item, isa.B32) for item in results.items]
    if isinstance(a, Vector):
        flags |= FROM_REGISTERS
        for item in a.items:
            m.fits(item, isa.B32)
            rows.append(low.row(item, isa.B32))
    a_row = low.constant(0) if held else m.row(1, isa.B64)
    low.emit(
        isa.WGMMA,
        kind,
        kinds[1][0],
        d=rows[0],
        a=a_row,
        b=m.row(2, isa.B64),
        c=m.row(3, isa.PREDICATE),
        imm=n,
        flags=flags,
        items=rows,
    )


def choices(m: Mods, first: int, table: dict[int, int]) -> list[int]:
    """Look up in a table each immediate operand from `first` on, at most two. Returns what the table has for them."""
    found = []
    for number, operand in enumerate(m.operands[first : first + 2], first + 1):
        if not isinstance(operand, Number) or operand.value not in table:
            raise m.fail(f"operand {number}, counted from 1, must be one of the numbers {', '.join(map(str, table))}")
        found.append(table[operand.value])
    return found
