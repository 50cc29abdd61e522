"""The LLVM lowerings of `memory.py` on CPUs, and conversions of float16. `micro_kernels.py` has the other arithmetic.

Importing this module registers the lowerings with Numba; it compiles nothing.
"""

import time

import numpy as np
from llvmlite import binding, ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import overload

from ...primitives import memory as mem
from ...primitives.intrinsics import emitted, forward

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTE, WORD = ir.IntType(8).as_pointer(), I64.as_pointer()
INT, VOID = types.int64, types.void


def _lowering(result, *arguments):
    """A decorator that makes an intrinsic as `emitted` does, and lowers the function of `memory` of that name to it."""

    def register(emit):
        made = emitted(result, *arguments)(emit)
        overload(getattr(mem, emit.__name__), inline="always")(forward(getattr(mem, emit.__name__), made))
        return made

    return register


def _call(builder, name, result, arguments):
    """Call a C function. arguments: LLVM values."""
    kind = ir.FunctionType(result, [each.type for each in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


# ---------------------------------------------------------------- words


@_lowering(INT, INT)
def load(builder, addr):
    return builder.load(builder.inttoptr(addr, WORD), align=8)


@_lowering(VOID, INT, INT)
def store(builder, addr, value):
    builder.store(value, builder.inttoptr(addr, WORD), align=8)


@_lowering(INT, INT)
def load_acquire(builder, addr):
    return builder.load_atomic(builder.inttoptr(addr, WORD), "acquire", 8)


@_lowering(VOID, INT, INT)
def store_release(builder, addr, value):
    builder.store_atomic(value, builder.inttoptr(addr, WORD), "release", 8)


@_lowering(INT, INT)
def arrived(builder, word):
    return builder.load_atomic(builder.inttoptr(word, WORD), "acquire", 8)


overload(mem.notify, inline="always")(
    lambda word, value, nbytes: lambda word, value, nbytes: store_release(word, value)
)


@_lowering(INT, INT, INT)
def fetch_add(builder, addr, value):
    return builder.atomic_rmw("add", builder.inttoptr(addr, WORD), value, "acq_rel")


@_lowering(types.boolean, INT, INT, INT)
def compare_exchange(builder, addr, expected, value):
    pair = builder.cmpxchg(builder.inttoptr(addr, WORD), expected, value, "acq_rel", "acquire")
    return builder.extract_value(pair, 1)


@_lowering(VOID, INT, INT, INT)
def copy_row(builder, dst, src, nbytes):
    cgutils.raw_memcpy(builder, builder.inttoptr(dst, BYTE), builder.inttoptr(src, BYTE), nbytes, 1)


@_lowering(INT, *[INT] * 9)
def call(builder, function, *arguments):
    """Call a C function. By the calling conventions of x86-64 and AArch64, an `int` argument is an int64's low half."""
    pointer = builder.inttoptr(function, ir.FunctionType(I32, [I64] * 8).as_pointer())
    return builder.sext(builder.call(pointer, arguments), I64)


# ---------------------------------------------------------------- spinning, yielding, clock


@_lowering(VOID)
def pause(builder):
    if "x86" in binding.get_default_triple():
        _call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])


@_lowering(VOID)
def yield_core(builder):
    _call(builder, "sched_yield", I32, [])


@_lowering(VOID)
def nap(builder):
    _call(builder, "usleep", I32, [I32(1)])


@_lowering(INT)
def clock(builder):
    """Call the C library's clock_gettime(CLOCK_MONOTONIC), which on Linux needs no system call (vDSO)."""
    pointer = builder.bitcast(cgutils.alloca_once(builder, ir.ArrayType(I64, 2)), WORD)
    _call(builder, "clock_gettime", I32, [I32(time.CLOCK_MONOTONIC), pointer])
    seconds = builder.load(pointer)
    return builder.add(builder.mul(seconds, I64(10**9)), builder.load(builder.gep(pointer, [I64(1)])))


# ---------------------------------------------------------------- floats


@_lowering(types.float32, INT)
def float_of_bits(builder, bits):
    return builder.bitcast(builder.trunc(bits, I32), F32)


@emitted(types.uint16, types.float32)
def half_of_float(builder, value):
    return builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16))


@emitted(types.float32, types.uint16)
def float_of_half(builder, bits):
    return builder.fpext(builder.bitcast(bits, ir.HalfType()), F32)


# ---------------------------------------------------------------- views


@emitted(types.voidptr, INT)
def _pointer(builder, addr):
    return builder.inttoptr(addr, cgutils.voidptr_t)


def _view(kind):
    """An implementation for `overload` of a function that returns memory as an array of this type."""
    return lambda addr, n: lambda addr, n: carray(_pointer(addr), n, kind)


VIEWS = {"floats": np.float32, "bits8": np.uint8, "bits16": np.uint16, "bits32": np.uint32, "words": np.int64}
for _name, _kind in VIEWS.items():
    overload(getattr(mem, _name))(_view(_kind))
for _name in ("thread", "warp", "lane"):  # a thread's numbers within its worker, which is one thread here
    overload(getattr(mem, _name), inline="always")(lambda: lambda: 0)
for _name in ("threads", "warps"):
    overload(getattr(mem, _name), inline="always")(lambda: lambda: 1)
overload(mem.block_barrier, inline="always")(lambda: lambda: None)
