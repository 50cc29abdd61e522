"""The LLVM lowerings of `memory.py` on CPUs, and nothing else. `micro_kernels.py` has the LLVM code of the arithmetic.

Importing this module registers the lowerings with Numba; it compiles nothing.
"""

import numpy as np
from llvmlite import binding, ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from ...primitives import memory as mem

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
WORD = I64.as_pointer()


# ---------------------------------------------------------------- words


@intrinsic
def _load(typingctx, addr):
    def codegen(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], WORD), align=8)

    return types.int64(types.int64), codegen


@intrinsic
def _store(typingctx, addr, value):
    def codegen(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], WORD), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _load_acquire(typingctx, addr):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], WORD), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _store_release(typingctx, addr, value):
    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], WORD), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _fetch_add(typingctx, addr, value):
    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], WORD), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _compare_exchange(typingctx, addr, expected, value):
    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], WORD)
        pair = builder.cmpxchg(pointer, args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def _copy_row(typingctx, dst, src, nbytes):
    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(builder, builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def _call(typingctx, function, a, b, c, d, e, f, g, h):
    """Call a C function. By the calling conventions of x86-64 and AArch64, an `int` argument is an int64's low half."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.FunctionType(I32, [I64] * 8).as_pointer())
        return builder.sext(builder.call(pointer, args[1:]), I64)

    return types.int64(*[types.int64] * 9), codegen


# ---------------------------------------------------------------- spinning, yielding, clock


@intrinsic
def _pause(typingctx):
    def codegen(context, builder, signature, args):
        if "x86" in binding.get_default_triple():
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"
            )
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _yield_core(typingctx):
    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, []), "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _nap(typingctx):
    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, [I32]), "usleep")
        builder.call(function, [I32(1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _clock(typingctx):
    """Call the C library's clock_gettime(CLOCK_MONOTONIC), which on Linux needs no system call (vDSO)."""
    import time

    number = time.CLOCK_MONOTONIC

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, [I32, WORD]), "clock_gettime")
        spec = cgutils.alloca_once(builder, ir.ArrayType(I64, 2))
        pointer = builder.bitcast(spec, WORD)
        builder.call(function, [I32(number), pointer])
        seconds = builder.load(pointer)
        return builder.add(builder.mul(seconds, I64(10**9)), builder.load(builder.gep(pointer, [I64(1)])))

    return types.int64(), codegen


@intrinsic
def _pointer(typingctx, addr):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def half_of_float(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@intrinsic
def float_of_half(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), F32)

    return types.float32(types.uint16), codegen


@intrinsic
def _float_of_bits(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], I32), F32)

    return types.float32(types.int64), codegen


def _bind(name, lowered, count):
    """Register `lowered` as the CPU lowering of `memory.<name>`."""
    arguments = ", ".join("abcdefghi"[:count])
    scope = {"lowered": lowered}
    exec(f"def typed({arguments}):\n    return lambda {arguments}: lowered({arguments})", scope)
    overload(getattr(mem, name), inline="always")(scope["typed"])


for _name, _lowered, _count in (
    ("load", _load, 1),
    ("store", _store, 2),
    ("load_acquire", _load_acquire, 1),
    ("store_release", _store_release, 2),
    ("arrived", _load_acquire, 1),
    ("fetch_add", _fetch_add, 2),
    ("compare_exchange", _compare_exchange, 3),
    ("copy_row", _copy_row, 3),
    ("call", _call, 9),
    ("pause", _pause, 0),
    ("yield_core", _yield_core, 0),
    ("nap", _nap, 0),
    ("clock", _clock, 0),
    ("float_of_bits", _float_of_bits, 1),
):
    _bind(_name, _lowered, _count)
overload(mem.notify, inline="always")(
    lambda word, value, nbytes: lambda word, value, nbytes: _store_release(word, value)  # type: ignore[call-arg]
)


@overload(mem.floats)
def _floats(addr, n):
    return lambda addr, n: carray(_pointer(addr), n, np.float32)  # type: ignore[call-arg]


@overload(mem.bits8)
def _bits8(addr, n):
    return lambda addr, n: carray(_pointer(addr), n, np.uint8)  # type: ignore[call-arg]


@overload(mem.bits16)
def _bits16(addr, n):
    return lambda addr, n: carray(_pointer(addr), n, np.uint16)  # type: ignore[call-arg]


@overload(mem.bits32)
def _bits32(addr, n):
    return lambda addr, n: carray(_pointer(addr), n, np.uint32)  # type: ignore[call-arg]


@overload(mem.words)
def _words(addr, n):
    return lambda addr, n: carray(_pointer(addr), n, np.int64)  # type: ignore[call-arg]


for _name in ("thread", "warp", "lane"):  # a thread's numbers within its worker, which is one thread here
    overload(getattr(mem, _name), inline="always")(lambda: lambda: 0)
for _name in ("threads", "warps"):
    overload(getattr(mem, _name), inline="always")(lambda: lambda: 1)
overload(mem.block_barrier, inline="always")(lambda: lambda: None)
