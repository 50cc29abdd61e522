"""mma.sync of 16-bit floats with float32 sums, eight columns at a time in vector instructions.

The fragments of A, B, C and D consist of 8x8 quarters. For each quarter of A, of C or D, and of B transposed, the lanes
hold the elements by rows, two neighbours in a lane. So the elements of all lanes in succession are the quarter itself.
The results are those of `matrix.chain`: each element of C gets its products one by one, in the order of k.
"""

from __future__ import annotations

import inspect
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernel_cache.compile import inner as jit

from . import state as s
from .bits import get
from .floating import NAN32

QUARTER = 64 * 4  # bytes of a quarter of float32
# the places in the scratch table, from its word FREE on: the quarters of A, of B, of the sums
FREE, AT_B, AT_SUMS = 512, 4 * QUARTER, 6 * QUARTER
WORDS = FREE + 8 * QUARTER // 8  # words that the scratch table must have

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_EVEN, _ODD = list(range(0, 64, 2)), list(range(1, 64, 2))
_BY_TURNS = [half * 32 + lane for lane in range(32) for half in range(2)]
_TURNED = [column * 8 + row for row in range(8) for column in range(8)]
_HIDDEN, _LEAST = 1 << 23, 2.0**-14  # the lowest bit of a float32's exponent; the least normal float16


def _emitted(emit: Any, count: int) -> Any:
    """A function of `count` int64 for compiled code, whose code `emit(builder, arguments)` generates."""

    def call(typing: Any, *args: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emit(builder, [context.cast(builder, v, t, types.int64) for v, t in zip(values, signature.args)])
            return context.get_dummy_value()

        return types.void(*args), codegen

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ["typing", *(f"word{i}" for i in range(count))]
    call.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    call.__name__ = emit.__name__
    return intrinsic(call)


def _place(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    """A pointer to values of a type, `offset` bytes after an address."""
    return builder.inttoptr(builder.add(address, _I64(offset)), kind.as_pointer())


def _words(builder: Any, row: Any) -> Any:
    """A row of registers as <32 x i32>: the low halves of its 64-bit words."""
    whole = builder.load(_place(builder, row, 0, ir.VectorType(_I64, 32)), align=8)
    return builder.trunc(whole, ir.VectorType(_I32, 32))


def _picked(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    """A vector of the given lanes of two vectors."""
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _all(kind: Any, value: Any) -> Any:
    """A constant vector whose lanes all hold one value."""
    return ir.Constant(kind, [value] * kind.count)


def _bfloat(builder: Any, halves: Any) -> Any:
    """The values of bfloat16s, given as <32 x i32>."""
    return builder.bitcast(builder.shl(halves, _all(halves.type, 16)), ir.VectorType(_F32, 32))


def _float16(builder: Any, halves: Any) -> Any:
    """The values of float16s, given as <32 x i32>. A NaN stays a NaN, but its other bits may change."""
    words, floats = halves.type, ir.VectorType(_F32, 32)
    exponent = builder.and_(halves, _all(words, 0x7C00))
    wide = builder.shl(builder.and_(halves, _all(words, 0x7FFF)), _all(words, 13))
    normal = builder.add(wide, _all(words, 112 * _HIDDEN))
    largest = builder.or_(wide, _all(words, 255 * _HIDDEN))
    small = builder.bitcast(builder.add(wide, _all(words, 113 * _HIDDEN)), floats)
    small = builder.bitcast(builder.fsub(small, _all(floats, _LEAST)), words)
    found = builder.select(builder.icmp_signed("==", exponent, _all(words, 0)), small, normal)
    found = builder.select(builder.icmp_signed("==", exponent, _all(words, 0x7C00)), largest, found)
    sign = builder.shl(builder.and_(halves, _all(words, 0x8000)), _all(words, 16))
    return builder.bitcast(builder.or_(found, sign), floats)


def _quarter(widen: Any, turned: bool) -> Any:
    """Emit quarter(row, to): write the floats that a row of registers packs. turned: as the transposed quarter."""

    def quarter(builder: Any, args: Any) -> None:
        row, to = args
        words = _words(builder, row)
        low = widen(builder, builder.and_(words, _all(words.type, 0xFFFF)))
        high = widen(builder, builder.lshr(words, _all(words.type, 16)))
        made = _picked(builder, low, high, _BY_TURNS)
        if turned:
            made = _picked(builder, made, made, _TURNED)
        builder.store(made, _place(builder, to, 0, made.type), align=4)

    return _emitted(quarter, 2)


def _sums_of(builder: Any, args: Any) -> None:
    """Emit sums_of(even, odd, to): write a quarter of C. even, odd: the rows with its even and odd columns."""
    even, odd, to = args
    made = _picked(builder, _words(builder, even), _words(builder, odd), _BY_TURNS)
    builder.store(made, _place(builder, to, 0, made.type), align=4)


def _sums_to(builder: Any, args: Any) -> None:
    """Emit sums_to(source, even, odd): set the rows of a quarter of D."""
    source, even, odd = args
    floats = ir.VectorType(_F32, 64)
    words = ir.VectorType(_I32, 64)
    value = builder.load(_place(builder, source, 0, floats), align=4)
    nan = builder.fcmp_unordered("uno", value, value)
    bits = builder.select(nan, _all(words, NAN32), builder.bitcast(value, words))
    for row, lanes in ((even, _EVEN), (odd, _ODD)):
        half = builder.zext(_picked(builder, bits, bits, lanes), ir.VectorType(_I64, 32))
        builder.store(half, _place(builder, row, 0, half.type), align=8)


def _add_products(builder: Any, args: Any) -> None:
    """Emit add_products(a, b, sums): add the product of two quarters to a quarter of sums, in the order of k."""
    a, b, sums = args
    vector = ir.VectorType(_F32, 8)
    kind = ir.FunctionType(vector, [vector] * 3)
    fma = builder.module.globals.get("llvm.fma.v8f32") or ir.Function(builder.module, kind, "llvm.fma.v8f32")
    places = [_place(builder, sums, 32 * row, vector) for row in range(8)]
    total = [builder.load(place, align=4) for place in places]
    none = ir.Constant(vector, ir.Undefined)
    for k in range(8):
        right = builder.load(_place(builder, b, 32 * k, vector), align=4)
        for row in range(8):
            one = builder.load(_place(builder, a, 32 * row + 4 * k, _F32), align=4)
            left = _picked(builder, builder.insert_element(none, one, _I32(0)), none, [0] * 8)
            total[row] = builder.call(fma, [left, right, total[row]])
    for place, value in zip(places, total):
        builder.store(value, place, align=4)


bfloats, bfloats_turned = _quarter(_bfloat, False), _quarter(_bfloat, True)
halves, halves_turned = _quarter(_float16, False), _quarter(_float16, True)
sums_of, sums_to, add_products = _emitted(_sums_of, 3), _emitted(_sums_to, 3), _emitted(_add_products, 3)


@jit
def row_of(regs, items, number):
    """The address of the row of registers that an instruction's list names at a place."""
    return regs + get(items, number) * 256


@jit
def multiply_halves(x, regs, items, depth, brain):
    """Run an mma of 16 rows. brain: whether A and B are bfloat16, not float16. depth: 8 or 16.

    items: the list of the rows of D, A, B and C.
    """
    a = get(x, s.SCRATCH) + FREE * 8
    b, sums = a + AT_B, a + AT_SUMS
    steps = depth >> 3
    for which in range(2 * steps):
        if brain:
            bfloats(row_of(regs, items, 4 + which), a + which * QUARTER)
        else:
            halves(row_of(regs, items, 4 + which), a + which * QUARTER)
    at_b = 4 + 2 * steps
    for which in range(steps):
        if brain:
            bfloats_turned(row_of(regs, items, at_b + which), b + which * QUARTER)
        else:
            halves_turned(row_of(regs, items, at_b + which), b + which * QUARTER)
    at_c = at_b + steps
    for half in range(2):
        mine = sums + half * QUARTER
        sums_of(row_of(regs, items, at_c + 2 * half), row_of(regs, items, at_c + 2 * half + 1), mine)
        for k in range(steps):
            add_products(a + (2 * k + half) * QUARTER, b + k * QUARTER, mine)
    for half in range(2):
        sums_to(sums + half * QUARTER, row_of(regs, items, 2 * half), row_of(regs, items, 2 * half + 1))
