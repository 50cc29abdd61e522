"""LLVM operations for Numba: conversions of bits to numbers and back, accesses by address, fused multiply-add.

The functions do not check addresses, because callers have checked them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernel_cache.compile import inner as jit

_F32, _F64 = ir.FloatType(), ir.DoubleType()


def _cast(source: Any, target: Any, llvm: Any) -> Any:
    @intrinsic
    def cast(typing, x):
        def codegen(context, builder, signature, args):
            value = context.cast(builder, args[0], signature.args[0], source)
            return builder.bitcast(value, llvm)

        return target(x), codegen

    return cast


f32_of = _cast(types.uint32, types.float32, _F32)
u32_of = _cast(types.float32, types.uint32, ir.IntType(32))
f64_of = _cast(types.uint64, types.float64, _F64)
u64_of = _cast(types.float64, types.uint64, ir.IntType(64))


@intrinsic
def fma32(typing, a, b, c):
    """float32 fused multiply-add, rounded once."""

    def codegen(context, builder, signature, args):
        return builder.fma(*(context.cast(builder, x, t, types.float32) for x, t in zip(args, signature.args)))

    return types.float32(a, b, c), codegen


@intrinsic
def fma64(typing, a, b, c):
    """float64 fused multiply-add, rounded once."""

    def codegen(context, builder, signature, args):
        return builder.fma(*(context.cast(builder, x, t, types.float64) for x, t in zip(args, signature.args)))

    return types.float64(a, b, c), codegen


def _load(bits: int) -> Any:
    @intrinsic
    def load(typing, address):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], ir.PointerType(ir.IntType(bits)))
            value = builder.load(pointer, align=1)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.uint64(types.int64), codegen

    return load


def _store(bits: int) -> Any:
    @intrinsic
    def store(typing, address, value):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], ir.PointerType(ir.IntType(bits)))
            value = args[1] if bits == 64 else builder.trunc(args[1], ir.IntType(bits))
            builder.store(value, pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.uint64), codegen

    return store


load8, load16, load32, load64 = (_load(bits) for bits in (8, 16, 32, 64))
store8, store16, store32, store64 = (_store(bits) for bits in (8, 16, 32, 64))


@intrinsic
def prefetch(typing, address):
    """Bring the cache line of an address near, for a write. Any address may be given."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *[ir.IntType(32)] * 3])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, *(ir.Constant(ir.IntType(32), n) for n in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@jit
def get(address, index):
    """Word `index` of a table of int64."""
    return np.int64(load64(address + 8 * index))


@jit
def put(address, index, value):
    """Set word `index` of a table of int64."""
    store64(address + 8 * index, np.uint64(value))


@jit
def load(address, size):
    """`size` (1, 2, 4 or 8) bytes of memory, zero-extended to uint64."""
    if size == 4:
        return load32(address)
    if size == 8:
        return load64(address)
    if size == 2:
        return load16(address)
    return load8(address)


@jit
def store(address, size, value):
    """Store the low `size` (1, 2, 4 or 8) bytes of a value."""
    if size == 4:
        store32(address, value)
    elif size == 8:
        store64(address, value)
    elif size == 2:
        store16(address, value)
    else:
        store8(address, value)
