"""Every LLVM primitive of the CPU substrate, and nothing else: lowerings of `memory.py`, and the micro-kernel.

Importing this module registers the lowerings with Numba; it compiles nothing.
"""

import numpy as np
from llvmlite import binding, ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from ...primitives import memory as mem
from .panels import LANES

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
WORD = I64.as_pointer()
AHEAD_LEVEL = 2  # of llvm.prefetch: the L2 cache


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
    """In the C calling conventions of x86-64 and AArch64 an `int` argument is the low half of an int64."""

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
    """clock_gettime(CLOCK_MONOTONIC) of the C library, in the vDSO on Linux."""
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


@overload(mem.floats)
def _floats(addr, n):
    return lambda addr, n: carray(_pointer(addr), n, np.float32)  # type: ignore[call-arg]


@overload(mem.words)
def _words(addr, n):
    return lambda addr, n: carray(_pointer(addr), n, np.int64)  # type: ignore[call-arg]


for _name in ("thread", "warp", "lane"):  # a worker is one thread
    overload(getattr(mem, _name), inline="always")(lambda: lambda: 0)
for _name in ("threads", "warps"):
    overload(getattr(mem, _name), inline="always")(lambda: lambda: 1)
overload(mem.block_barrier, inline="always")(lambda: lambda: None)


# ---------------------------------------------------------------- the micro-kernel


def _loop(builder, start_values, count, body):
    """Emit `for k in range(count)` (count >= 1) with values carried in registers: body(k, values) -> new values."""
    entry = builder.block
    head, after = builder.append_basic_block("k"), builder.append_basic_block("k.end")
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(I64)
    k.add_incoming(I64(0), entry)
    carried = []
    for value in start_values:
        phi = builder.phi(value.type)
        phi.add_incoming(value, entry)
        carried.append(phi)
    new = body(k, carried)
    step = builder.add(k, I64(1))
    k.add_incoming(step, head)
    for phi, value in zip(carried, new):
        phi.add_incoming(value, head)
    builder.cbranch(builder.icmp_signed("<", step, count), head, after)
    builder.position_at_end(after)
    return new


def micro_kernel(rows, vectors, pitch, lanes=LANES):
    """Emit the kernel for `rows` x (`vectors` * `lanes`) outputs, each one chain of fused multiply-adds in k order.

    The compiled call is kernel(a, b, c, jc, count, carry, ahead, pace): `a` is the address of the first of the packed
    rows, `pitch` bytes apart; `b` of a packed panel of `vectors` vectors; `c` of an array of row addresses, `jc` the
    first column of C; `count` >= 1 the number of k; with `carry` nonzero it adds to C. For each k it prefetches the
    cache line at `ahead` into L2 and advances `ahead` by `pace` bytes: a burst of prefetches would delay the loads that
    are needed now.
    """
    vector = ir.VectorType(F32, lanes)
    spread = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    byte = ir.IntType(8).as_pointer()

    def codegen(context, builder, signature, args):
        a, b, c, jc, count, carry, ahead, pace = args
        fma = _fma(builder, vector)
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32]), "llvm.prefetch.p0"
        )

        def at(address, offset, kind):
            pointer = builder.gep(builder.inttoptr(address, byte), [offset])
            return builder.bitcast(pointer, kind.as_pointer())

        places = []
        for i in range(rows):
            row = builder.load(builder.inttoptr(builder.add(c, I64(8 * i)), WORD))
            first = builder.add(row, builder.mul(jc, I64(4)))
            places += [at(first, I64(4 * lanes * j), vector) for j in range(vectors)]

        entry = builder.block
        load, ready = builder.append_basic_block("carry"), builder.append_basic_block("ready")
        builder.cbranch(builder.icmp_signed("!=", carry, I64(0)), load, ready)
        builder.position_at_end(load)
        held = [builder.load(place, align=4) for place in places]
        builder.branch(ready)
        builder.position_at_end(ready)
        start = []
        for value in held:
            phi = builder.phi(vector)
            phi.add_incoming(vector([0.0] * lanes), entry)
            phi.add_incoming(value, load)
            start.append(phi)

        def body(k, sums):
            line = builder.inttoptr(builder.add(ahead, builder.mul(k, pace)), byte)
            builder.call(prefetch, [line, I32(0), I32(AHEAD_LEVEL), I32(1)])  # read, into L2, data cache
            right = builder.add(b, builder.mul(k, I64(4 * lanes * vectors)))
            left = builder.add(a, builder.mul(k, I64(4)))
            columns = [builder.load(at(right, I64(4 * lanes * j), vector), align=4) for j in range(vectors)]
            new = []
            for i in range(rows):
                scalar = builder.load(at(left, I64(pitch * i), F32), align=4)
                broadcast = builder.shuffle_vector(builder.insert_element(undefined, scalar, I32(0)), undefined, spread)
                for j in range(vectors):
                    new.append(builder.call(fma, [broadcast, columns[j], sums[i * vectors + j]]))
            return new

        for value, place in zip(_loop(builder, start, count, body), places):
            builder.store(value, place, align=4)
        return context.get_dummy_value()

    def typed(typingctx, a, b, c, jc, count, carry, ahead, pace):
        return types.void(*[types.int64] * 8), codegen

    typed.__name__ = f"micro_{rows}x{vectors * lanes}"
    return intrinsic(typed)


def fma_loop(lanes, sums):
    """Emit loop(n, a): n rounds of one fused multiply-add for each of `sums` vectors, all in registers.

    a: address of `sums` vectors: the values to start from, then the results.
    """
    vector = ir.VectorType(F32, lanes)

    def codegen(context, builder, signature, args):
        count, address = args
        fma = _fma(builder, vector)
        places = [builder.inttoptr(builder.add(address, I64(4 * lanes * i)), vector.as_pointer()) for i in range(sums)]
        start = [builder.load(place, align=4) for place in places]
        x = start[0]

        def body(k, values):
            return [builder.call(fma, [value, x, x]) for value in values]

        for value, place in zip(_loop(builder, start, count, body), places):
            builder.store(value, place, align=4)
        return context.get_dummy_value()

    def typed(typingctx, count, address):
        return types.void(types.int64, types.int64), codegen

    typed.__name__ = f"fma_{sums}x{lanes}"
    return intrinsic(typed)


def _fma(builder, vector):
    name = f"llvm.fma.v{vector.count}f32"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
