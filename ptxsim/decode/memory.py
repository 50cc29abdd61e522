"""Lowers loads, stores, atomics, fences and cp.async."""

from __future__ import annotations

from typing import Any

from .. import isa
from ..lowering import Lowering
from ..syntax import Number, Vector
from .mods import HALVES, SPACES, WORDS, Mods, check_type, groups

ORDERS = {
    "weak": isa.WEAK,
    "volatile": isa.VOLATILE,
    "relaxed": isa.RELAXED,
    "acquire": isa.ACQUIRE,
    "release": isa.RELEASE,
    "acq_rel": isa.ACQ_REL,
    "sc": isa.SC,
}
SCOPES = {"cta": isa.CTA, "cluster": isa.CLUSTER, "gpu": isa.GPU, "gl": isa.GPU, "sys": isa.SYS}
CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified")


def order_scope(m: Mods, orders: tuple[str, ...], default: int, scope: int | None = None) -> tuple[int, int]:
    """Take order and scope. Returns (order, scope).

    orders: the allowed orders. scope: the default scope, or None if a strong order must come with a scope.
    """
    if m.take_one("mmio") and "relaxed" not in m.left:
        raise m.fail("modifier .mmio needs .relaxed")
    name = m.take_one(*ORDERS)
    if name is not None and name not in orders:
        raise m.fail(f"the order is one of .{', .'.join(orders)}, got .{name}")
    order = default if name is None else ORDERS[name]
    if order in (isa.WEAK, isa.VOLATILE):
        if m.take_one(*SCOPES):
            strong = f"a scope needs one of the orders .{', .'.join(orders[2:])}" if orders[2:] else "it takes no scope"
            raise m.fail(strong)
        return order, isa.SYS
    return order, m.choose(SCOPES, scope)


def cache_hints(m: Mods) -> bool:
    """Take the hints for caches. Returns True if the last operand is a cache policy."""
    policy = False
    for name in list(m.left):
        if name in CACHE or name.startswith(("L1::", "L2::")):
            m.left.remove(name)
            policy = policy or name == "L2::cache_hint"
    return policy


def place(low: Lowering, m: Mods, operand: Any, space: int) -> tuple[int, int, int]:
    """Read a memory operand. Returns (row, offset, space). A function's .param variables are in local memory."""
    row, offset, kind = low.memory(operand)
    if kind == "local" or (space == isa.PARAM and kind != "param" and low.current and not low.current.entry):
        space = isa.LOCAL
    elif kind == "param":
        space = isa.PARAM
    elif space == isa.GENERIC and kind in ("shared", "global", "const"):
        space = SPACES[kind]
    return row, offset, space


def access(low: Lowering, m: Mods, load: bool) -> None:
    """Lower a load or a store."""
    apart = load and "nc" in m.left
    policy = cache_hints(m)
    order, scope = order_scope(m, ("weak", "volatile", "relaxed", "acquire" if load else "release"), isa.WEAK)
    space = m.choose(SPACES, isa.GENERIC)
    if apart and (order != isa.WEAK or space != isa.GLOBAL):
        raise m.fail("modifier .nc needs a weak load of .global")
    vector = m.take_one("v2", "v4", "v8")
    (type_,) = m.types()
    m.done(2, 3 if policy else 2)
    register, address = (0, 1) if load else (1, 0)
    row, offset, space = place(low, m, m.operands[address], space)
    value = m.operands[register]
    items = value.items if isinstance(value, Vector) else (value,)
    wanted = int(vector[1:]) if vector else 1
    if len(items) != wanted:
        raise m.fail(f"the vector must have {wanted} registers, got {len(items)}")
    rows = [m.result(item, type_, wider=True) if load else low.row(item, type_) for item in items]
    if space not in (isa.PARAM, isa.LOCAL, isa.CONST):
        low.granule = min(low.granule, type_ & 15)
    flags = order << isa.ORDER_SHIFT | scope << isa.SCOPE_SHIFT | space << isa.SPACE_SHIFT
    if apart or m.ins.opcode == "ldu":
        flags |= isa.NOT_COHERENT
    low.emit(isa.LD if load else isa.ST, type_, a=row, imm=offset, flags=flags, items=rows)


def load(low: Lowering, m: Mods) -> None:
    """Lower ld or ldu."""
    access(low, m, True)


def store(low: Lowering, m: Mods) -> None:
    """Lower st."""
    access(low, m, False)


ATOMIC_TYPES = {
    "add": (*WORDS, *HALVES, isa.F32, isa.F64),
    "min": WORDS,
    "max": WORDS,
    "inc": (isa.U32,),
    "dec": (isa.U32,),
    "exch": (*WORDS, isa.B32, isa.B64),
    "cas": (*WORDS, isa.B16, isa.B32, isa.B64),
    **dict.fromkeys(("and", "or", "xor"), (*WORDS, isa.B32, isa.B64)),
}

VECTOR_TYPES = {
    **{("add", n): types for n, types in ((2, (isa.F32, *HALVES)), (4, (isa.F32, *HALVES)), (8, (isa.F16, isa.BF16)))},
    **{(op, n): HALVES if n < 8 else (isa.F16, isa.BF16) for op in ("min", "max") for n in (2, 4, 8)},
}


def atomic(low: Lowering, m: Mods) -> None:
    """Lower atom or red."""
    reduce = m.ins.opcode == "red"
    policy = cache_hints(m)
    orders = ("relaxed", "release") if reduce else ("relaxed", "acquire", "release", "acq_rel")
    order, scope = order_scope(m, orders, isa.RELAXED, isa.GPU)
    space = m.choose(SPACES, isa.GENERIC)
    name = next((word for word in m.left if word in isa.ATOMS), "")
    kind = m.choose(isa.ATOMS)
    vector = m.take_one("v2", "v4", "v8")
    (type_,) = m.types()
    if vector:
        check_type(m, type_, VECTOR_TYPES.get((name, int(vector[1:])), ()))
        if space != isa.GLOBAL:
            raise m.fail("a vector needs .global")
    else:
        check_type(m, type_, ATOMIC_TYPES[name])
    if type_ in HALVES:
        m.take_one("noftz")
    swap = kind == isa.ATOMS["cas"]
    count = (2 if reduce else 3) + int(swap)
    m.done(count, count + int(policy))
    first = 0 if reduce else 1
    row, offset, space = place(low, m, m.operands[first], space)
    flags = order << isa.ORDER_SHIFT | scope << isa.SCOPE_SHIFT | space << isa.SPACE_SHIFT
    low.granule = min(low.granule, type_ & 15)
    if vector:  # each element is an atomic operation of its own (the PTX ISA on atom and red)
        wanted = int(vector[1:])
        results = [None] * wanted if reduce else elements(m, m.operands[0], wanted)
        values = [low.row(item, type_) for item in elements(m, m.operands[first + 1], wanted)]
        for k, (result, value) in enumerate(zip(results, values)):
            d = 0 if result is None else m.result(result, type_)
            how = kind if k else kind | wanted * (type_ & 15) << 8  # the first one checks the vector's alignment
            low.emit(isa.ATOM, type_, how, d=d, a=row, b=value, c=0, imm=offset + k * (type_ & 15), flags=flags)
        return
    a = low.row(m.operands[first + 1], type_)
    b = low.row(m.operands[first + 2], type_) if swap else 0
    d = 0 if reduce else m.dest(type_)
    low.emit(isa.ATOM, type_, kind, d=d, a=row, b=a, c=b, imm=offset, flags=flags)


def elements(m: Mods, operand: Any, wanted: int) -> list[Any]:
    """The operands of a vector in braces. Raises PTXError if their number is not `wanted`."""
    items = list(operand.items) if isinstance(operand, Vector) else [operand]
    if len(items) != wanted:
        raise m.fail(f"the vector must have {wanted} registers, got {len(items)}")
    return items


def fence(low: Lowering, m: Mods) -> None:
    """Lower fence or membar."""
    if m.ins.opcode == "membar":
        order, scope = isa.SC, m.choose(SCOPES)
    else:
        order, scope = order_scope(m, ("acquire", "release", "acq_rel", "sc"), isa.ACQ_REL)
    m.done(0)
    low.emit(isa.FENCE, flags=order << isa.ORDER_SHIFT | scope << isa.SCOPE_SHIFT)


def copy_async(low: Lowering, m: Mods) -> None:
    """Lower cp.async. Its modifier `.async` has been taken already."""
    if m.take_one("commit_group"):
        m.done(0)
        low.emit(isa.CPCOMMIT)
        return
    if m.take_one("wait_all"):
        m.done(0)
        low.emit(isa.CPWAIT, imm=-1)
        return
    if m.take_one("wait_group"):
        m.done(1)
        low.emit(isa.CPWAIT, imm=groups(m))
        return
    policy = cache_hints(m)
    if not (m.take_one("shared", "shared::cta", "shared::cluster") and m.take_one("global")):
        raise m.fail("is not supported: only .shared.global")
    m.done(3, 4 + int(policy))
    size = m.operands[2]
    if not isinstance(size, Number) or size.value not in (4, 8, 16):
        raise m.fail("the size must be 4, 8 or 16")
    to, to_offset, _ = low.memory(m.operands[0])
    source, offset, _ = low.memory(m.operands[1])
    if offset:
        total = low.new_row()
        low.emit(isa.ADD, isa.U64, d=total, a=source, b=low.constant(offset))
        source = total
    read = low.constant(size.value)
    if len(m.operands) > 3 and not (policy and len(m.operands) == 4):
        read = m.row(3)  # the size read, or a predicate
        if low.kind(m.operands[3]) == "pred":  # if the predicate is true, the source is not read
            read, ignore = low.new_row(), read
            low.emit(isa.SELP, isa.B32, d=read, a=low.constant(0), b=low.constant(size.value), c=ignore)
    low.granule = min(low.granule, 4)
    low.emit(isa.CPASYNC, size.value, a=to, b=source, c=read, imm=to_offset)


def policy_of(low: Lowering, m: Mods) -> None:
    """Lower createpolicy. Its result is 0, because caches are not modelled."""
    low.emit(isa.MOV, isa.B64, d=m.dest(isa.B64), a=low.constant(0))
