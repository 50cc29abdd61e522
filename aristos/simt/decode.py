"""What each PTX opcode becomes: its modifiers read one by one, anything unknown an error.

A handler takes the lowering and a `Mods`; it must use up every modifier, which `Mods.done` checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import isa
from .ptx import Address, Group, Instruction, Name, Number, Pair, Vector

if TYPE_CHECKING:
    from .lower import Lowering

WHOLE = {"rni": isa.RN, "rzi": isa.RZ, "rmi": isa.RM, "rpi": isa.RP}
ORDERS = {"weak": isa.WEAK, "volatile": isa.VOLATILE, "relaxed": isa.RELAXED, "acquire": isa.ACQUIRE,
          "release": isa.RELEASE, "acq_rel": isa.ACQ_REL, "sc": isa.SC}  # fmt: skip
SCOPES = {"cta": isa.CTA, "cluster": isa.CTA, "gpu": isa.GPU, "gl": isa.GPU, "sys": isa.SYS}
SPACES = {"global": isa.GLOBAL, "shared": isa.SHARED, "shared::cta": isa.SHARED, "shared::cluster": isa.SHARED,
          "local": isa.LOCAL, "const": isa.CONST, "param": isa.PARAM, "param::entry": isa.PARAM,
          "param::func": isa.PARAM, "generic": isa.GENERIC}  # fmt: skip
CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified")
INTEGER_KINDS = (isa.U, isa.S, isa.BITS)


class Mods:
    """The modifiers of an instruction, taken away as they are understood."""

    def __init__(self, low: Lowering, ins: Instruction):
        self.low, self.ins, self.left = low, ins, list(ins.mods)
        self.operands = ins.operands

    def take(self, *names: str) -> str | None:
        for name in names:
            if name in self.left:
                self.left.remove(name)
                return name
        return None

    def flag(self, name: str, value: int) -> int:
        return value if self.take(name) else 0

    def choose(self, table: dict[str, int], default: int | None = None) -> int:
        name = self.take(*table)
        if name is None:
            if default is None:
                raise self.fail(f"one of .{', .'.join(table)} is needed")
            return default
        return table[name]

    def types(self, count: int = 1) -> list[int]:
        """The last `count` type modifiers, in their order."""
        found = [name for name in self.left if name in isa.TYPES]
        if len(found) < count:
            raise self.fail("a type is missing, or not supported")
        picked = found[-count:]
        for name in picked:
            self.left.remove(name)
        return [isa.TYPES[name] for name in picked]

    def done(self, least: int, most: int | None = None) -> None:
        if self.left:
            raise self.fail(f"modifier .{self.left[0]} is not supported here")
        if not least <= len(self.operands) <= (least if most is None else most):
            raise self.fail(f"has {len(self.operands)} operands")

    def fail(self, what: str) -> Exception:
        return self.low.fail(what)

    def row(self, index: int, type_: int = isa.B64) -> int:
        return self.low.row(self.operands[index], type_)

    def dest(self, index: int = 0) -> int:
        return self.low.row(self.operands[index], write=True)


def decode(low: Lowering, ins: Instruction) -> None:
    """Emit the instruction's rows; raises PTXError if the opcode or a modifier is unknown."""
    handler = HANDLERS.get(ins.opcode)
    if handler is None:
        raise low.fail(f"opcode {ins.opcode!r} is not known to the machine")
    handler(low, Mods(low, ins))


def is_float(type_: int) -> bool:
    return type_ & 0xF0 == isa.F or type_ in (isa.BF16, isa.F16X2, isa.BF16X2)


def check_type(m: Mods, type_: int, allowed: tuple[int, ...]) -> None:
    if type_ not in allowed:
        raise m.fail("this type is not one the instruction takes")


# ---- integer and floating-point arithmetic ----
INTEGERS = (isa.U16, isa.U32, isa.U64, isa.S16, isa.S32, isa.S64)
WORDS = (isa.U32, isa.S32, isa.U64, isa.S64)
WIDE_FLOATS = (isa.F32, isa.F64)
DIRECTED = {"rn": isa.RN, "rz": isa.RZ, "rm": isa.RM, "rp": isa.RP}
NEAREST = {"rn": isa.RN}
HALVES = (isa.F16, isa.F16X2, isa.BF16, isa.BF16X2)


def flush(m: Mods, type_: int) -> int:
    """.ftz, which float64 and bfloat16 do not have."""
    return m.flag("ftz", isa.FTZ) if type_ in (isa.F32, isa.F16, isa.F16X2) else 0


def float_flags(m: Mods, type_: int, needed: bool = False) -> int:
    """Rounding, .ftz and .sat of add, sub, mul, fma; `needed`: the rounding has no default."""
    table = DIRECTED if type_ in WIDE_FLOATS else NEAREST
    flags = m.choose(table, None if needed else isa.RN) | flush(m, type_)
    return flags | (m.flag("sat", isa.SAT) if type_ in (isa.F32, isa.F16, isa.F16X2) else 0)


def carrying(op: int, count: int) -> Callable:
    def handler(low: Lowering, m: Mods, into: bool) -> None:
        high = m.take("hi")
        m.take("lo")
        out = m.flag("cc", isa.CARRY_OUT)
        (type_,) = m.types()
        m.done(count + 1)
        code = isa.MADCHI if op == isa.MADC and high else op
        rows = [m.row(i + 1, type_) for i in range(count)]
        flags = out | (isa.CARRY_IN if into else 0)
        low.emit(code, type_, d=m.dest(), a=rows[0], b=rows[1], c=rows[2] if count == 3 else 0, flags=flags)

    return handler


add_carry, sub_carry, mad_carry = carrying(isa.ADDC, 2), carrying(isa.SUBC, 2), carrying(isa.MADC, 3)


def arithmetic(integer: int, floating: int, packed: int = -1) -> Callable:
    """add, sub, min, max: two operands of any type."""

    def handler(low: Lowering, m: Mods) -> None:
        if "cc" in m.left:
            (add_carry if integer == isa.ADD else sub_carry)(low, m, False)
            return
        (type_,) = m.types()
        extremes = floating in (isa.FMIN, isa.FMAX)
        if type_ in (isa.U16X2, isa.S16X2) and packed >= 0:
            flags = m.flag("relu", isa.RELU) if extremes and type_ == isa.S16X2 else 0
            m.done(3)
            low.emit(packed, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_), flags=flags)
        elif is_float(type_) and extremes:
            least_most(low, m, floating, type_)
        elif is_float(type_):
            flags = float_flags(m, type_)
            m.done(3)
            low.emit(floating, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_), flags=flags)
        else:
            check_type(m, type_, INTEGERS)
            name = "relu" if extremes else "sat"
            flags = m.flag(name, isa.RELU if extremes else isa.SAT) if type_ == isa.S32 else 0
            m.done(3)
            low.emit(integer, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_), flags=flags)

    return handler


def least_most(low: Lowering, m: Mods, op: int, type_: int) -> None:
    """min and max of floats, of three float32 too."""
    flags = flush(m, type_)
    if type_ != isa.F64:
        flags |= m.flag("NaN", isa.NAN)
    sizes = m.take("abs") is not None
    three = len(m.operands) == 4 and type_ == isa.F32
    if not three and sizes and m.take("xorsign"):
        flags |= isa.XORSIGN
    elif sizes and not three:
        raise m.fail("modifier .abs of two numbers needs .xorsign")
    m.done(4 if three else 3)
    rows = [m.row(i, type_) for i in range(1, len(m.operands))]
    if sizes and three:
        for i, row in enumerate(rows):
            rows[i] = low.new_row()
            low.emit(isa.FABS, type_, d=rows[i], a=row)
    if three:
        tmp = low.new_row()
        low.emit(op, type_, d=tmp, a=rows[0], b=rows[1], flags=flags)
        rows = [tmp, rows[2]]
    low.emit(op, type_, d=m.dest(), a=rows[0], b=rows[1], flags=flags)


def multiply(low: Lowering, m: Mods) -> None:
    (type_,) = m.types()
    if is_float(type_):
        flags = float_flags(m, type_)
        m.done(3)
        low.emit(isa.FMUL, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_), flags=flags)
        return
    check_type(m, type_, INTEGERS)
    op = product_part(m, {"lo": isa.MUL, "hi": isa.MULHI, "wide": isa.MULWIDE}, type_)
    m.done(3)
    low.emit(op, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_))


def product_part(m: Mods, table: dict[str, int], type_: int) -> int:
    """.lo, .hi or .wide, which 64-bit types do not have."""
    if type_ & 15 == 8:
        table = {name: op for name, op in table.items() if name != "wide"}
    return m.choose(table)


def multiply_add(low: Lowering, m: Mods) -> None:
    if "cc" in m.left:
        mad_carry(low, m, False)
        return
    (type_,) = m.types()
    if is_float(type_):
        flags = float_flags(m, type_, needed=m.ins.opcode == "fma")
        if type_ not in WIDE_FLOATS:
            flags |= m.flag("relu", isa.RELU)
        m.done(4)
        low.emit(isa.FFMA, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_), c=m.row(3, type_), flags=flags)
        return
    check_type(m, type_, INTEGERS)
    op = product_part(m, {"lo": isa.MAD, "hi": isa.MADHI, "wide": isa.MADWIDE}, type_)
    flags = m.flag("sat", isa.SAT) if op == isa.MADHI and type_ == isa.S32 else 0
    m.done(4)
    wide = type_ & 0xF0 | (type_ & 15) * 2 if op == isa.MADWIDE else type_
    low.emit(op, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_), c=m.row(3, wide), flags=flags)


def multiply24(op: int, high: int, count: int) -> Callable:
    def handler(low: Lowering, m: Mods) -> None:
        code = m.choose({"lo": op, "hi": high})
        (type_,) = m.types()
        check_type(m, type_, (isa.U32, isa.S32))
        flags = m.flag("sat", isa.SAT) if code == isa.MAD24HI and type_ == isa.S32 else 0
        m.done(count + 1)
        c = m.row(3, type_) if count == 3 else 0
        low.emit(code, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_), c=c, flags=flags)

    return handler


def divide(low: Lowering, m: Mods) -> None:
    (type_,) = m.types()
    if is_float(type_):
        check_type(m, type_, WIDE_FLOATS)
        fast = type_ == isa.F32 and m.take("approx", "full") is not None
        flags = (isa.APPROX if fast else m.choose(DIRECTED)) | flush(m, type_)
        m.done(3)
        low.emit(isa.FDIV, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_), flags=flags)
    else:
        m.done(3)
        check_type(m, type_, INTEGERS)
        low.emit(isa.DIV, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_))


def unary(integer: int, floating: int) -> Callable:
    def handler(low: Lowering, m: Mods) -> None:
        (type_,) = m.types()
        flags = flush(m, type_)
        m.done(2)
        if is_float(type_):
            low.emit(floating, type_, d=m.dest(), a=m.row(1, type_), flags=flags)
        else:
            check_type(m, type_, (isa.S16, isa.S32, isa.S64))
            low.emit(integer, type_, d=m.dest(), a=m.row(1, type_))

    return handler


def function(op: int, types: tuple[int, ...] = (isa.F32,), exact: bool = False) -> Callable:
    """rcp, sqrt, rsqrt, sin, cos, lg2, ex2, tanh: the types of .approx; `exact`: rounded ones exist too."""

    def handler(low: Lowering, m: Mods) -> None:
        approx = m.take("approx") is not None
        (type_,) = m.types()
        if not approx and not exact:
            raise m.fail("needs .approx")
        check_type(m, type_, types if approx else WIDE_FLOATS)
        flags = isa.APPROX if approx else m.choose(DIRECTED)
        if (op == isa.FEX2 and type_ in (isa.BF16, isa.BF16X2)) or (op == isa.FRCP and approx and type_ == isa.F64):
            flags |= m.choose({"ftz": isa.FTZ})
        elif (type_ == isa.F32 and op != isa.FTANH) or op == isa.FRSQRT:
            flags |= m.flag("ftz", isa.FTZ)
        m.done(2)
        low.emit(op, type_, d=m.dest(), a=m.row(1, type_), flags=flags)

    return handler


def plain(op: int, count: int, types: tuple[int, ...], wide: tuple[int, ...] = ()) -> Callable:
    """An integer instruction of `count` operands; wide: those that are numbers of 32 bits whatever the type."""

    def handler(low: Lowering, m: Mods) -> None:
        (type_,) = m.types()
        check_type(m, type_, types)
        m.done(count + 1)
        rows = [m.row(i + 1, isa.U32 if i in wide else type_) for i in range(count)] + [0] * (4 - count)
        low.emit(op, type_, d=m.dest(), a=rows[0], b=rows[1], c=rows[2], e=rows[3])

    return handler


def bit_find(low: Lowering, m: Mods) -> None:
    op = isa.BFINDSHIFT if m.take("shiftamt") else isa.BFIND
    (type_,) = m.types()
    check_type(m, type_, WORDS)
    m.done(2)
    low.emit(op, type_, d=m.dest(), a=m.row(1, type_))


def clamp_wrap(op: int, count: int) -> Callable:
    def handler(low: Lowering, m: Mods) -> None:
        code = m.choose({"l": isa.SHFLEFT, "r": isa.SHFRIGHT}) if op == isa.SHFLEFT else op
        flags = m.choose({"clamp": isa.SAT, "wrap": 0})
        (type_,) = m.types()
        check_type(m, type_, (isa.U32, isa.S32) if op == isa.SZEXT else (isa.B32,))
        m.done(count + 1)
        c = m.row(3, isa.U32) if count == 3 else 0
        low.emit(code, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_), c=c, flags=flags)

    return handler


def permute(low: Lowering, m: Mods) -> None:
    (type_,) = m.types()
    check_type(m, type_, (isa.B32,))
    mode = m.choose({"f4e": 1, "b4e": 2, "rc8": 3, "ecl": 4, "ecr": 5, "rc16": 6}, 0)
    m.done(4)
    low.emit(isa.PRMT, type_, d=m.dest(), a=m.row(1), b=m.row(2), c=m.row(3), imm=mode)


def lop3(low: Lowering, m: Mods) -> None:
    joined = m.take("or", "and")
    (type_,) = m.types()
    check_type(m, type_, (isa.B32,))
    m.done(6 if joined else 5)
    table = m.operands[4]
    if not isinstance(table, Number):
        raise m.fail("the table must be an immediate")
    target = m.operands[0]
    d = m.low.row(target.first if isinstance(target, Pair) else target, write=True)
    low.emit(isa.LOP3, type_, d=d, a=m.row(1), b=m.row(2), c=m.row(3), imm=table.value)
    if joined:
        if not isinstance(target, Pair):
            raise m.fail("needs two destinations")
        tmp = low.new_row()
        low.emit(isa.SETP, isa.B32, d=tmp, a=d, b=low.constant(0), imm=isa.COMPARE["ne"])
        code = isa.OR if joined == "or" else isa.AND
        low.emit(code, isa.PREDICATE, d=low.row(target.second, write=True), a=tmp, b=m.row(5))


def dot_product(op: int) -> Callable:
    def handler(low: Lowering, m: Mods) -> None:
        flags = m.choose({"lo": 0, "hi": isa.HIGH}) if op == isa.DP2A else 0
        signs = [name for name in m.left if name in ("u32", "s32")]
        if len(signs) != 2:
            raise m.fail("needs two types")
        m.left = [name for name in m.left if name not in ("u32", "s32")]
        m.done(4)
        a, b = isa.TYPES[signs[0]], isa.TYPES[signs[1]]
        low.emit(op, a, b, d=m.dest(), a=m.row(1), b=m.row(2), c=m.row(3), flags=flags)

    return handler


def logic(op: int) -> Callable:
    def handler(low: Lowering, m: Mods) -> None:
        (type_,) = m.types()
        check_type(m, type_, (isa.PREDICATE, isa.B16, isa.B32, isa.B64))
        count = 1 if op in (isa.NOT, isa.CNOT) else 2
        m.done(count + 1)
        low.emit(op, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_) if count == 2 else 0)

    return handler


# ---- comparing and selecting ----
def comparison(m: Mods, type_: int) -> int:
    """The comparison of setp or set, where the type has it."""
    test = m.choose(isa.COMPARE)
    if is_float(type_):
        allowed = [*range(6), *range(10, 18)]
    elif type_ & 0xF0 == isa.BITS:
        check_type(m, type_, (isa.B16, isa.B32, isa.B64))
        allowed = [0, 1]
    else:
        check_type(m, type_, INTEGERS)
        allowed = [*range(6)] if type_ & 0xF0 == isa.S else [*range(10)]
    if test not in allowed:
        raise m.fail("this type has no such comparison")
    return test


def compare(low: Lowering, m: Mods) -> None:
    """setp, with its second predicate and the boolean combination."""
    (type_,) = m.types()
    test = comparison(m, type_)
    joined = m.take("and", "or", "xor")
    flags = flush(m, type_)
    m.done(4 if joined else 3)
    op = isa.FSETP if is_float(type_) else isa.SETP
    target = m.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    a, b = m.row(1, type_), m.row(2, type_)
    extra = m.row(3) if joined else 0
    if not joined and second is None and type_ not in (isa.F16X2, isa.BF16X2):
        low.emit(op, type_, d=low.row(first, write=True), a=a, b=b, imm=test, flags=flags)
        return
    low.keep_guard()
    truth, other, result = low.new_row(), low.new_row(), low.new_row()
    low.emit(op, type_, d=truth, a=a, b=b, imm=test, flags=flags)
    if type_ in (isa.F16X2, isa.BF16X2):  # a bit for each half
        low.emit(isa.SHR, isa.U32, d=other, a=truth, b=low.constant(1))
        low.emit(isa.AND, isa.B32, d=truth, a=truth, b=low.constant(1))
    else:
        low.emit(isa.NOT, isa.PREDICATE, d=other, a=truth)
    code = {None: isa.MOV, "and": isa.AND, "or": isa.OR, "xor": isa.XOR}[joined]
    low.emit(code, isa.PREDICATE, d=result, a=truth, b=extra)
    if second is not None:  # before the first is written, which may be an operand
        low.emit(code, isa.PREDICATE, d=low.row(second, write=True), a=other, b=extra)
    low.emit(isa.MOV, isa.PREDICATE, d=low.row(first, write=True), a=result)


def compare_set(low: Lowering, m: Mods) -> None:
    """set: like setp, with -1 or 1.0 for true."""
    to, type_ = m.types(2)
    test = comparison(m, type_)
    joined = m.take("and", "or", "xor")
    flags = flush(m, type_)
    m.done(4 if joined else 3)
    packed = type_ in (isa.F16X2, isa.BF16X2)
    if packed:
        check_type(m, to, (type_,))
    else:
        narrow = (isa.F16, isa.BF16, isa.U16, isa.S16) if type_ in (isa.F16, isa.BF16) else ()
        check_type(m, to, (isa.U32, isa.S32, isa.F32, *narrow))
    tmp = low.new_row()
    a, b = m.row(1, type_), m.row(2, type_)
    low.emit(isa.FSETP if is_float(type_) else isa.SETP, type_, d=tmp, a=a, b=b, imm=test, flags=flags)
    if joined:
        extra = m.row(3)
        if packed:  # for both halves
            pair = low.new_row()
            low.emit(isa.SELP, isa.B32, d=pair, a=low.constant(3), b=low.constant(0), c=extra)
            extra = pair
        code = {"and": isa.AND, "or": isa.OR, "xor": isa.XOR}[joined]
        low.emit(code, isa.PREDICATE, d=tmp, a=tmp, b=extra)
    one = {isa.F32: 0x3F800000, isa.F16: 0x3C00, isa.BF16: 0x3F80, isa.F16X2: 0x3C00, isa.BF16X2: 0x3F80}.get(to, -1)
    if packed:
        high, part = low.new_row(), low.new_row()
        low.emit(isa.SHR, isa.U32, d=high, a=tmp, b=low.constant(1))
        low.emit(isa.SELP, isa.B32, d=part, a=low.constant(one << 16), b=low.constant(0), c=high)
        low.emit(isa.SELP, isa.B32, d=tmp, a=low.constant(one), b=low.constant(0), c=tmp)
        low.emit(isa.OR, isa.B32, d=m.dest(), a=tmp, b=part)
        return
    low.emit(isa.SELP, isa.B32, d=m.dest(), a=low.constant(one & 0xFFFFFFFF), b=low.constant(0), c=tmp)


SELECTED = (*INTEGERS, isa.B16, isa.B32, isa.B64, isa.F32, isa.F64)


def select(low: Lowering, m: Mods) -> None:
    (type_,) = m.types()
    check_type(m, type_, SELECTED)
    m.done(4)
    low.emit(isa.SELP, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_), c=m.row(3))


def select_sign(low: Lowering, m: Mods) -> None:
    type_, by = m.types(2)
    check_type(m, type_, SELECTED)
    check_type(m, by, (isa.S32, isa.F32))
    flags = flush(m, by)
    m.done(4)
    a, b, c = m.row(1, type_), m.row(2, type_), m.row(3, by)
    if by == isa.F32:
        wide = isa.F64 if type_ & 15 == 8 else isa.F32
        low.emit(isa.FSLCT, wide, d=m.dest(), a=a, b=b, c=c, flags=flags)
    else:
        low.emit(isa.SLCT, type_, d=m.dest(), a=a, b=b, c=c)


def test_property(low: Lowering, m: Mods) -> None:
    kinds = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    kind = m.choose({name: i for i, name in enumerate(kinds)})
    (type_,) = m.types()
    check_type(m, type_, WIDE_FLOATS)
    m.done(2)
    low.emit(isa.FTESTP, type_, d=m.dest(), a=m.row(1, type_), imm=kind)


def copysign(low: Lowering, m: Mods) -> None:
    (type_,) = m.types()
    check_type(m, type_, WIDE_FLOATS)
    m.done(3)
    low.emit(isa.FCOPYSIGN, type_, d=m.dest(), a=m.row(1, type_), b=m.row(2, type_))


def is_space(low: Lowering, m: Mods) -> None:
    space = m.choose(SPACES)
    m.take("u32", "u64")
    m.done(2)
    low.emit(isa.ISSPACEP, isa.U64, d=m.dest(), a=m.row(1), imm=space)


# ---- moves and conversions ----
def move(low: Lowering, m: Mods) -> None:
    (type_,) = m.types()
    m.done(2)
    to, source = m.operands
    if isinstance(to, Vector):
        rows = [low.row(item, write=True) for item in to.items]
        part = (type_ & 15) // len(rows)
        low.emit(isa.UNPACK, type_, a=low.row(source, type_), imm=part, items=rows)
    elif isinstance(source, Vector):
        rows = [low.row(item) for item in source.items]
        low.emit(isa.PACK, type_, d=m.dest(), imm=(type_ & 15) // len(rows), items=rows)
    else:
        low.emit(isa.MOV, type_, d=m.dest(), a=low.row(source, type_))


def to_address(low: Lowering, m: Mods) -> None:
    """cvta: generic addresses of shared and local memory lie in a window; the others are the same."""
    back = m.take("to")
    space = m.choose(SPACES)
    (type_,) = m.types()
    m.done(2)
    base = {isa.SHARED: isa.SHARED_WINDOW, isa.LOCAL: isa.LOCAL_WINDOW}.get(space, 0)
    if space == isa.PARAM and low.current is not None and not low.current.entry:
        base = isa.LOCAL_WINDOW
    if base == 0:
        low.emit(isa.MOV, type_, d=m.dest(), a=m.row(1, type_))
    else:
        low.emit(isa.SUB if back else isa.ADD, type_, d=m.dest(), a=m.row(1, type_), b=low.constant(base))


def convert(low: Lowering, m: Mods) -> None:
    if m.take("pack"):
        convert_pack(low, m)
        return
    to, source = m.types(2)
    quarters = (isa.E4M3X2, isa.E5M2X2)
    if to in quarters or source in quarters:
        convert_quarters(low, m, to, source)
        return
    floats = is_float(source), is_float(to) or to == isa.TF32
    flags = m.flag("ftz", isa.FTZ) if isa.F32 in (to, source) else 0
    if floats[0] and (to == source or not floats[1]):
        whole = m.choose(WHOLE, -1 if to == source else None)
        flags |= whole | isa.INTEGER if whole >= 0 else 0
    elif floats[1]:
        exact = floats[0] and (to == isa.F64 or (to == isa.F32 and source != isa.F64))
        table = {**DIRECTED, "rna": isa.RNA} if to == isa.TF32 else DIRECTED
        flags |= m.choose(table, isa.RN if exact else None)
    if source == isa.F32 and to in (*HALVES, isa.TF32):
        flags |= m.flag("relu", isa.RELU) | m.flag("satfinite", isa.FINITE)
    if to not in (isa.BF16, isa.F16X2, isa.BF16X2, isa.TF32):
        flags |= m.flag("sat", isa.SAT)
    if to in (isa.F16X2, isa.BF16X2):
        check_type(m, source, (isa.F32,))
        m.done(3)
        low.emit(isa.CVTPACK, to, source, d=m.dest(), a=m.row(1, source), b=m.row(2, source), flags=flags)
        return
    known = (*INTEGERS, isa.U8, isa.S8, isa.F16, isa.BF16, isa.F32, isa.F64)
    check_type(m, source, (isa.F32,) if to == isa.TF32 else known)
    check_type(m, to, (*known, isa.TF32))
    m.done(2)
    low.emit(isa.CVT, to, source, d=m.dest(), a=m.row(1, source), flags=flags)


def convert_quarters(low: Lowering, m: Mods, to: int, source: int) -> None:
    """cvt between pairs of 8-bit floats and pairs of wider ones."""
    flags = m.choose(NEAREST) | m.flag("relu", isa.RELU)
    if to == isa.F16X2:
        check_type(m, source, (isa.E4M3X2, isa.E5M2X2))
    else:
        check_type(m, to, (isa.E4M3X2, isa.E5M2X2))
        check_type(m, source, (isa.F32, isa.F16X2))
        flags |= m.choose({"satfinite": 0})
    pair = source == isa.F32
    m.done(3 if pair else 2)
    low.emit(isa.CVTPACK, to, source, d=m.dest(), a=m.row(1, source), b=m.row(2, source) if pair else 0, flags=flags)


def convert_pack(low: Lowering, m: Mods) -> None:
    """cvt.pack.sat: two integers saturated and packed beside the top of a third."""
    if not m.take("sat"):
        raise m.fail("needs .sat")
    names = m.left
    m.left = []
    if len(names) not in (2, 3) or names[0] not in ("u16", "s16", "u8", "s8") or names[1] != "s32":
        raise m.fail("is not supported")
    m.done(3 if len(names) == 2 else 4)
    to = isa.TYPES[names[0]]
    bits = (to & 15) * 8
    high, part = low.new_row(), low.new_row()
    low.emit(isa.CVT, to, isa.S32, d=high, a=m.row(1), flags=isa.SAT)
    low.emit(isa.CVT, to, isa.S32, d=part, a=m.row(2), flags=isa.SAT)
    low.emit(isa.AND, isa.B32, d=high, a=high, b=low.constant((1 << bits) - 1))
    low.emit(isa.AND, isa.B32, d=part, a=part, b=low.constant((1 << bits) - 1))
    low.emit(isa.SHL, isa.B32, d=high, a=high, b=low.constant(bits))
    low.emit(isa.OR, isa.B32, d=part, a=high, b=part)
    if len(names) == 3:
        low.emit(isa.SHL, isa.B32, d=high, a=m.row(3), b=low.constant(2 * bits))
        low.emit(isa.OR, isa.B32, d=part, a=part, b=high)
    low.emit(isa.MOV, isa.B32, d=m.dest(), a=part)


# ---- control ----
def branch(low: Lowering, m: Mods) -> None:
    m.take("uni")
    m.done(1)
    low.branch(isa.BRA, m.operands[0])


def branch_indexed(low: Lowering, m: Mods) -> None:
    m.take("idx")
    m.take("uni")
    m.done(2)
    low.branch_table(m.row(0), m.operands[1].text)


def leave(op: int) -> Callable:
    def handler(low: Lowering, m: Mods) -> None:
        m.take("uni")
        m.done(0)
        low.emit(op)

    return handler


def call(low: Lowering, m: Mods) -> None:
    m.take("uni")
    m.done(1, 4)
    operands = list(m.operands)
    returns: tuple = ()
    if isinstance(operands[0], Group):
        returns = operands.pop(0).items
    target = operands.pop(0)
    arguments: tuple = ()
    if operands and isinstance(operands[0], Group):
        arguments = operands.pop(0).items
    if not isinstance(target, Name):
        raise m.fail("the target must be a name")
    low.call(returns, target, arguments)


def nothing(low: Lowering, m: Mods) -> None:
    """Hints that change no result: prefetch, discard of clean lines, pmevent, grid dependency control."""
    low.emit(isa.NOP)


# ---- memory ----
def order_scope(m: Mods, default_order: int, default_scope: int) -> tuple[int, int]:
    if m.take("mmio") and "relaxed" not in m.left:
        raise m.fail("modifier .mmio needs .relaxed")
    order = m.choose(ORDERS, default_order)
    scope = m.choose(SCOPES, isa.SYS if order == isa.VOLATILE else default_scope)
    return order, scope


def cache_hints(m: Mods) -> bool:
    """Take away hints of caching; True where an operand with a policy comes last."""
    policy = False
    for name in list(m.left):
        if name in CACHE or name.startswith(("L1::", "L2::")):
            m.left.remove(name)
            policy = policy or name == "L2::cache_hint"
    return policy


def place(low: Lowering, m: Mods, operand: Any, space: int) -> tuple[int, int, int]:
    """(row, offset, space) of a memory operand; a variable of a function's .param space is local memory."""
    row, offset, kind = low.memory(operand)
    if kind == "local" or (space == isa.PARAM and kind != "param" and low.current and not low.current.entry):
        space = isa.LOCAL
    elif kind == "param":
        space = isa.PARAM
    elif space == isa.GENERIC and kind in ("shared", "global", "const"):
        space = SPACES[kind]
    return row, offset, space


def access(low: Lowering, m: Mods, load: bool) -> None:
    policy = cache_hints(m)
    order, scope = order_scope(m, isa.WEAK, isa.SYS)
    space = m.choose(SPACES, isa.GENERIC)
    vector = m.take("v2", "v4", "v8")
    (type_,) = m.types()
    m.done(2, 3 if policy else 2)
    register, address = (0, 1) if load else (1, 0)
    row, offset, space = place(low, m, m.operands[address], space)
    value = m.operands[register]
    items = value.items if isinstance(value, Vector) else (value,)
    if len(items) != (int(vector[1:]) if vector else 1):
        raise m.fail("the vector has another number of registers")
    rows = [low.row(item, type_, write=load) for item in items]
    if space not in (isa.PARAM, isa.LOCAL, isa.CONST):
        low.granule = min(low.granule, type_ & 15)
    flags = order << isa.ORDER_SHIFT | scope << isa.SCOPE_SHIFT | space << isa.SPACE_SHIFT
    low.emit(isa.LD if load else isa.ST, type_, a=row, imm=offset, flags=flags, items=rows)


def load(low: Lowering, m: Mods) -> None:
    access(low, m, True)


def store(low: Lowering, m: Mods) -> None:
    m.take("async")
    access(low, m, False)


ATOMIC_TYPES = {
    "add": (*WORDS, *HALVES, isa.F32, isa.F64), "min": WORDS, "max": WORDS, "inc": (isa.U32,), "dec": (isa.U32,),
    "exch": (*WORDS, isa.B32, isa.B64), "cas": (*WORDS, isa.B16, isa.B32, isa.B64),
    **dict.fromkeys(("and", "or", "xor"), (*WORDS, isa.B32, isa.B64)),
}  # fmt: skip


def atomic(low: Lowering, m: Mods) -> None:
    reduce = m.ins.opcode == "red"
    policy = cache_hints(m)
    order, scope = order_scope(m, isa.RELAXED, isa.GPU)
    space = m.choose(SPACES, isa.GENERIC)
    name = next((word for word in m.left if word in isa.ATOMS), "")
    kind = m.choose(isa.ATOMS)
    (type_,) = m.types()
    check_type(m, type_, ATOMIC_TYPES[name])
    if type_ in HALVES:
        m.take("noftz")
    swap = kind == isa.ATOMS["cas"]
    count = (2 if reduce else 3) + int(swap)
    m.done(count, count + int(policy))
    first = 0 if reduce else 1
    row, offset, space = place(low, m, m.operands[first], space)
    a = low.row(m.operands[first + 1], type_)
    b = low.row(m.operands[first + 2], type_) if swap else 0
    flags = order << isa.ORDER_SHIFT | scope << isa.SCOPE_SHIFT | space << isa.SPACE_SHIFT
    low.granule = min(low.granule, type_ & 15)
    d = 0 if reduce else m.dest()
    low.emit(isa.ATOM, type_, kind, d=d, a=row, b=a, c=b, imm=offset, flags=flags)


def fence(low: Lowering, m: Mods) -> None:
    if m.ins.opcode == "membar":
        order, scope = isa.SC, m.choose(SCOPES)
    else:
        if m.take("proxy"):
            m.left = []  # every access here goes through one proxy
            low.emit(isa.NOP)
            return
        order = m.choose(ORDERS, isa.ACQ_REL)
        scope = m.choose(SCOPES)
    m.done(0)
    low.emit(isa.FENCE, flags=order << isa.ORDER_SHIFT | scope << isa.SCOPE_SHIFT)


def copy_async(low: Lowering, m: Mods) -> None:
    if not m.take("async"):
        raise m.fail("is not supported")
    if m.take("commit_group"):
        m.done(0)
        low.emit(isa.CPCOMMIT)
        return
    if m.take("wait_all"):
        m.done(0)
        low.emit(isa.CPWAIT, imm=-1)
        return
    if m.take("wait_group"):
        m.done(1)
        count = m.operands[0]
        if not isinstance(count, Number):
            raise m.fail("the number of groups must be an immediate")
        low.emit(isa.CPWAIT, imm=count.value)
        return
    policy = cache_hints(m)
    if not (m.take("shared", "shared::cta", "shared::cluster") and m.take("global")):
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
        read = m.row(3, isa.U32)
        if low.kind(m.operands[3]) == "pred":  # the copy's source is ignored where it holds
            read, ignore = low.new_row(), read
            low.emit(isa.SELP, isa.B32, d=read, a=low.constant(0), b=low.constant(size.value), c=ignore)
    low.granule = min(low.granule, 4)
    low.emit(isa.CPASYNC, size.value, a=to, b=source, c=read, imm=to_offset)


def policy_of(low: Lowering, m: Mods) -> None:
    """createpolicy: a cache policy is any number here."""
    low.emit(isa.MOV, isa.B64, d=m.dest(), a=low.constant(0))


# ---- barriers and warps ----
def barrier(low: Lowering, m: Mods) -> None:
    if m.take("warp"):
        m.take("sync")
        m.done(1)
        low.emit(isa.WARPSYNC, a=m.row(0, isa.U32))
        return
    m.take("cta")
    if "cluster" in m.left:
        raise m.fail("barriers of clusters are not supported")
    aligned = m.take("aligned") is not None or m.ins.opcode == "bar"
    kind = m.take("sync", "arrive", "red")
    if kind is None:
        raise m.fail("needs .sync, .arrive or .red")
    flags = 1 if aligned else 0
    if kind == "red":
        how = m.choose({"popc": 0, "and": 1, "or": 2})
        m.take("pred", "u32")
        m.done(3, 4)
        count = m.row(2, isa.U32) if len(m.operands) == 4 else low.constant(0)
        value = m.row(len(m.operands) - 1)
        low.emit(isa.BARRED, d=m.dest(), a=m.row(1, isa.U32), b=count, c=value, imm=how, flags=flags)
        return
    m.done(1, 2)
    count = m.row(1, isa.U32) if len(m.operands) == 2 else low.constant(0)
    low.emit(isa.BAR if kind == "sync" else isa.BARARRIVE, a=m.row(0, isa.U32), b=count, flags=flags)


def synced(m: Mods) -> None:
    if not m.take("sync"):
        raise m.fail("without .sync is not supported on sm_70 and later")
    m.take("aligned")


def shuffle(low: Lowering, m: Mods) -> None:
    synced(m)
    mode = m.choose({"up": 0, "down": 1, "bfly": 2, "idx": 3})
    check_type(m, m.types()[0], (isa.B32,))
    m.done(5)
    target = m.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    d = low.row(first, write=True)
    d2 = low.row(second, write=True) if second is not None else 0
    low.emit(isa.SHFL, isa.B32, d=d, d2=d2, a=m.row(1, isa.B32), b=m.row(2, isa.U32), c=m.row(3, isa.U32),
             e=m.row(4, isa.U32), imm=mode)  # fmt: skip


def vote(low: Lowering, m: Mods) -> None:
    synced(m)
    kind = m.choose({"all": 0, "any": 1, "uni": 2, "ballot": 3})
    m.take("pred", "b32")
    m.done(3)
    low.emit(isa.VOTE, isa.B32, d=m.dest(), a=m.row(1), e=m.row(2, isa.U32), imm=kind)


def match(low: Lowering, m: Mods) -> None:
    kind = m.choose({"any": 0, "all": 1})
    synced(m)
    (type_,) = m.types()
    check_type(m, type_, (isa.B32, isa.B64))
    m.done(3)
    target = m.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    d = low.row(first, write=True)
    d2 = low.row(second, write=True) if second is not None else 0
    low.emit(isa.MATCH, type_, d=d, d2=d2, a=m.row(1, type_), e=m.row(2, isa.U32), imm=kind)


def reduce(low: Lowering, m: Mods) -> None:
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
    low.emit(isa.REDUX, type_, d=m.dest(), a=m.row(1, type_), e=m.row(2, isa.U32), imm=kind, flags=flags)


def active(low: Lowering, m: Mods) -> None:
    m.types()
    m.done(1)
    low.emit(isa.ACTIVEMASK, d=m.dest())


def elect(low: Lowering, m: Mods) -> None:
    synced(m)
    m.done(2)
    target = m.operands[0]
    if not isinstance(target, Pair):
        raise m.fail("needs two destinations")
    d = low.row(target.first, write=True)
    low.emit(isa.ELECT, d=d, d2=low.row(target.second, write=True), e=m.row(1, isa.U32))


def sleep(low: Lowering, m: Mods) -> None:
    m.take("u32")
    m.done(1)
    low.emit(isa.NANOSLEEP, a=m.row(0, isa.U32))


SHAPES = {
    # shape, a and b type -> kind of the machine; the number of registers of A, B, C (D as C)
    ("m16n8k8", "tf32"): (0, 4, 2, 4), ("m16n8k4", "tf32"): (1, 2, 1, 4),
    ("m16n8k16", "f16"): (2, 4, 2, 4), ("m16n8k8", "f16"): (3, 2, 1, 4),
    ("m16n8k16", "bf16"): (4, 4, 2, 4), ("m16n8k8", "bf16"): (5, 2, 1, 4),
    ("m16n8k32", "s8"): (6, 4, 2, 4), ("m16n8k16", "s8"): (7, 2, 1, 4), ("m8n8k16", "s8"): (8, 1, 1, 2),
    ("m8n8k4", "f64"): (9, 1, 1, 2),
}  # fmt: skip


def multiply_matrix(low: Lowering, m: Mods) -> None:
    synced(m)
    if m.take("row") is None or m.take("col") is None:
        raise m.fail("only .row.col is supported")
    saturate = m.flag("satfinite", isa.SAT) if {"s8", "u8"} & set(m.left) else 0
    shape = m.left.pop(0) if m.left else ""
    names = m.left
    m.left = []
    if len(names) != 4:
        raise m.fail("needs the types of D, A, B and C")
    d_type, a_type, b_type, c_type = names
    kind_a = "s8" if a_type in ("u8", "s8") else a_type
    kind_b = "s8" if b_type in ("u8", "s8") else b_type
    if kind_a != kind_b or (shape, kind_a) not in SHAPES:
        raise m.fail("this shape and these types are not supported")
    kind, count_a, count_b, count_c = SHAPES[shape, kind_a]
    half = 0
    if kind_a == "f16":
        half = (1 if c_type == "f16" else 0) | (2 if d_type == "f16" else 0)
    expected = {"s8": "s32", "f64": "f64"}.get(kind_a, "f32")
    for name, bit in ((d_type, 2), (c_type, 1)):
        if name != expected and not half & bit:
            raise m.fail(f"D or C of type {name} is not supported here")
    m.done(4)
    counts = (2 if half & 2 else count_c, count_a, count_b, 2 if half & 1 else count_c)
    rows: list[int] = []
    for operand, count in zip(m.operands, counts):
        items = operand.items if isinstance(operand, Vector) else (operand,)
        if len(items) != count:
            raise m.fail(f"expected {count} registers, got {len(items)}")
        rows += [low.row(item, isa.B32, write=operand is m.operands[0]) for item in items]
    flags = saturate | (isa.HIGH if a_type == "u8" else 0) | (isa.WIDE if b_type == "u8" else 0)
    low.emit(isa.MMA, half, d=rows[0], imm=kind, flags=flags, items=rows)


def matrix_access(low: Lowering, m: Mods) -> None:
    synced(m)
    is_load = m.ins.opcode == "ldmatrix"
    m.choose({"m8n8": 0})
    count = m.choose({"x1": 1, "x2": 2, "x4": 4})
    trans = isa.HIGH if m.take("trans") else 0
    m.take("shared", "shared::cta")
    (type_,) = m.types()
    check_type(m, type_, (isa.B16,))
    m.done(2)
    value, address = m.operands if is_load else m.operands[::-1]
    items = value.items if isinstance(value, Vector) else (value,)
    if len(items) != count:
        raise m.fail(f"expected {count} registers, got {len(items)}")
    row, offset, _ = low.memory(address)
    rows = [low.row(item, isa.B32, write=is_load) for item in items]
    low.granule = min(low.granule, 2 if trans else 4)
    op = isa.LDMATRIX if is_load else isa.STMATRIX
    low.emit(op, isa.B16, d=rows[0] if is_load else 0, a=row, imm=offset, flags=trans, items=rows)


def move_matrix(low: Lowering, m: Mods) -> None:
    synced(m)
    m.choose({"m8n8": 0})
    m.choose({"trans": 0})
    check_type(m, m.types()[0], (isa.B16,))
    m.done(2)
    low.emit(isa.MOVMATRIX, isa.B32, d=m.dest(), a=m.row(1))


def stack(low: Lowering, m: Mods) -> None:
    raise m.fail("variable-sized local memory is not supported")


HANDLERS: dict[str, Callable[[Any, Mods], None]] = {
    "add": arithmetic(isa.ADD, isa.FADD, isa.ADD2), "sub": arithmetic(isa.SUB, isa.FSUB, isa.SUB2),
    "min": arithmetic(isa.MIN, isa.FMIN, isa.MIN2), "max": arithmetic(isa.MAX, isa.FMAX, isa.MAX2),
    "mul": multiply, "mad": multiply_add, "fma": multiply_add, "div": divide,
    "addc": lambda low, m: add_carry(low, m, True), "subc": lambda low, m: sub_carry(low, m, True),
    "madc": lambda low, m: mad_carry(low, m, True),
    "mul24": multiply24(isa.MUL24, isa.MUL24HI, 2), "mad24": multiply24(isa.MAD24, isa.MAD24HI, 3),
    "sad": plain(isa.SAD, 3, INTEGERS), "rem": plain(isa.REM, 2, INTEGERS), "abs": unary(isa.ABS, isa.FABS),
    "neg": unary(isa.NEG, isa.FNEG), "popc": plain(isa.POPC, 1, (isa.B32, isa.B64)),
    "clz": plain(isa.CLZ, 1, (isa.B32, isa.B64)), "bfind": bit_find,
    "brev": plain(isa.BREV, 1, (isa.B32, isa.B64)), "bfe": plain(isa.BFE, 3, WORDS, wide=(1, 2)),
    "bfi": plain(isa.BFI, 4, (isa.B32, isa.B64), wide=(2, 3)),
    "bmsk": clamp_wrap(isa.BMSK, 2), "szext": clamp_wrap(isa.SZEXT, 2), "shf": clamp_wrap(isa.SHFLEFT, 3),
    "shl": plain(isa.SHL, 2, (isa.B16, isa.B32, isa.B64), wide=(1,)),
    "shr": plain(isa.SHR, 2, (*INTEGERS, isa.B16, isa.B32, isa.B64), wide=(1,)), "prmt": permute, "lop3": lop3,
    "dp4a": dot_product(isa.DP4A), "dp2a": dot_product(isa.DP2A), "fns": plain(isa.FNS, 3, (isa.B32,)),
    "and": logic(isa.AND), "or": logic(isa.OR), "xor": logic(isa.XOR), "not": logic(isa.NOT),
    "cnot": logic(isa.CNOT), "setp": compare, "set": compare_set, "selp": select, "slct": select_sign,
    "testp": test_property, "copysign": copysign, "isspacep": is_space,
    "rcp": function(isa.FRCP, WIDE_FLOATS, exact=True), "sqrt": function(isa.FSQRT, exact=True),
    "rsqrt": function(isa.FRSQRT, WIDE_FLOATS), "sin": function(isa.FSIN), "cos": function(isa.FCOS),
    "lg2": function(isa.FLG2), "ex2": function(isa.FEX2, (isa.F32, *HALVES)),
    "tanh": function(isa.FTANH, (isa.F32, *HALVES)), "mov": move, "cvt": convert, "cvta": to_address,
    "bra": branch, "brx": branch_indexed, "ret": leave(isa.RET), "exit": leave(isa.EXIT), "trap": leave(isa.TRAP),
    "brkpt": leave(isa.TRAP), "call": call, "pmevent": nothing, "prefetch": nothing, "prefetchu": nothing,
    "discard": nothing, "applypriority": nothing, "griddepcontrol": nothing, "setmaxnreg": nothing,
    "ld": load, "ldu": load, "st": store, "atom": atomic, "red": atomic, "membar": fence, "fence": fence,
    "cp": copy_async, "createpolicy": policy_of, "bar": barrier, "barrier": barrier, "shfl": shuffle, "vote": vote,
    "match": match, "redux": reduce, "activemask": active, "elect": elect, "nanosleep": sleep, "mma": multiply_matrix,
    "ldmatrix": matrix_access, "stmatrix": matrix_access, "movmatrix": move_matrix,
    "alloca": stack, "stacksave": stack, "stackrestore": stack,
}  # fmt: skip
__all__ = ["Address", "Mods", "decode"]
