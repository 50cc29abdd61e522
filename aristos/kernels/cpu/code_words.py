"""Generates LLVM code that turns codes into words of two bfloat16 in registers, 32 codes at once.

This code needs a CPU that permutes words and bytes of registers of 512 bits (AVX-512 with BW and VBMI). A word has a
pair of k of one column, the even k in its low half. `packed_kernels` says how codes lie in memory.
"""

from functools import cache

import numpy as np
from llvmlite import ir

from ...quantised import FP4
from ...weight_types import FORMATS
from .micro_kernels import I8, I16, I32, _at, _declare
from .packed_panels import UNIT

FP8_SCALE = 256.0
WORDS, HALVES = ir.VectorType(I32, 16), ir.VectorType(I16, 32)  # a vector has a pair of k for each of 16 columns


def _bits(value):
    """The bits of a value as bfloat16, in a signed integer of 16 bits. bfloat16 must hold the value exactly."""
    return int(np.float32(value).view(np.int32)) >> 16


_INT4_BITS = [_bits(n) for n in (*range(8), *range(-8, 0))]
_FP4_BITS = [_bits(value) for value in FP4]
_FP8_BIAS = 112 << 7


def _permuted(builder, table, index):
    """Look up each 16-bit number of `index`: its low five bits are a place in a table of 32 such numbers."""
    permute = _declare(builder, "llvm.x86.avx512.permvar.hi.512", HALVES, [HALVES, HALVES])
    return builder.call(permute, [HALVES(table), index])


def _words_of_4_bits(builder, form, raw, b):
    """The bfloat16 values of pair b of a unit of k, for 16 columns. raw: the codes of the unit.

    The fifth bit of an index does not matter, because both halves of the table are equal.
    """
    table = {"int4": _INT4_BITS, "mxfp4": _FP4_BITS}[form]
    codes = builder.bitcast(raw, HALVES)
    index = builder.lshr(codes, HALVES([4 * b] * 32)) if b else codes
    return builder.bitcast(_permuted(builder, table * 2, index), WORDS)


def _words_of_fp8(builder, codes, j):
    """The values of a pair of k for 16 columns, divided by FP8_SCALE, as bfloat16.

    codes: all 64 codes of the pair, for 32 columns. j: 0 for the first 16 columns, 1 for the others.
    """
    picked = [k for column in range(16 * j, 16 * j + 16) for k in (column, column, 32 + column, 32 + column)]
    both = builder.shuffle_vector(codes, codes, ir.Constant(ir.VectorType(I32, 64), picked))
    words = builder.bitcast(both, HALVES)  # 16 bits hold a code twice, so their sign bit is the code's

    def every(bits):
        return HALVES([bits] * 32)

    small = [_bits(m / 512 / FP8_SCALE) for m in range(8)]
    normal = builder.or_(builder.and_(builder.shl(words, every(4)), every(0x07F0)), every(_FP8_BIAS))
    denormal = builder.icmp_unsigned("==", builder.and_(words, every(0x78)), every(0))
    value = builder.select(denormal, _permuted(builder, small * 4, words), normal)
    return builder.bitcast(builder.or_(value, builder.and_(words, every(-0x8000))), WORDS)


@cache
def values_of_8_bits(form):
    """The values of the 256 codes of int8, or of fp8 divided by FP8_SCALE, as float32."""
    bits = np.arange(256, dtype=np.uint8)
    if form == "int8":
        return bits.view(np.int8).astype(np.float32)
    moved = (bits.view(np.int8).astype(np.int16) << 7) & np.int16(0xBF80 - 0x10000)
    return moved.view(np.float16).astype(np.float32)


def _words_of_8_bits(builder, form, place):
    """The bfloat16 values of a pair of k, for both halves of the columns.

    A code's low seven bits are a place in two tables: one of values' low bytes, one of their high bytes. int8 has two
    more tables for negative codes; a negative code of fp8 has its sign in the high byte.
    """
    kind = ir.VectorType(I8, 64)
    codes = builder.load(_at(builder, place, 0, kind), align=1)
    lookup = _declare(builder, "llvm.x86.avx512.vpermi2var.qi.512", kind, [kind] * 3)
    bits = (values_of_8_bits(form).view(np.uint32) >> 16).astype(np.uint16).view(np.int8).reshape(2, 2, 64, 2)
    negative = builder.icmp_signed("<", codes, kind([0] * 64))

    def looked_up(byte, sign):
        first, second = (kind([int(x) for x in half]) for half in bits[sign, :, :, byte])
        return builder.call(lookup, [first, codes, second])

    if form == "fp8":
        low, high = (looked_up(byte, 0) for byte in range(2))
        high = builder.or_(high, builder.and_(codes, kind([-128] * 64)))
    else:
        low, high = (builder.select(negative, looked_up(byte, 1), looked_up(byte, 0)) for byte in range(2))
    found = []
    for j in range(2):
        picked = [k for c in range(16 * j, 16 * j + 16) for k in (c, 64 + c, 32 + c, 96 + c)]
        both = builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, 64), picked))
        found.append(builder.bitcast(both, WORDS))
    return [found]


def unit_words(builder, form, place):
    """Unpack the unit at `place`: words of two bfloat16, for each pair of k and each half of the columns.

    form: fp8, int4 or mxfp4.
    """
    if form == "fp8":
        codes = builder.load(_at(builder, place, 0, ir.VectorType(I8, 64)), align=1)
        return [[_words_of_fp8(builder, codes, j) for j in range(2)]]
    raw = [builder.load(_at(builder, place, 64 * j, WORDS), align=1) for j in range(2)]
    return [[_words_of_4_bits(builder, form, each, b) for each in raw] for b in range(UNIT[FORMATS[form].bits])]


def looked_up_words(builder, form, place):
    """Do what `unit_words` does, for any format. Codes of 8 bits are looked up in tables of bytes.

    Such lookups are fast on CPUs that look up bytes in a table of two registers by one operation, as Zen 4 does.
    """
    return _words_of_8_bits(builder, form, place) if FORMATS[form].bits == 8 else unit_words(builder, form, place)
