"""What the names of `aristos.memory` compile to on CUDA: the third lowering of the protocol's shared memory.

Words are shared with other devices and with the host, so their scope is the system. Importing this module registers
the lowerings with Numba-CUDA; it compiles nothing.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from ... import memory as mem
from . import ptx
from .compiler import carray, intrinsic, overload, types

NAP = 1000  # nanoseconds; a block that waits leaves its SM's issue slots to the others


@intrinsic
def _pointer(typing, addr):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


def _compare_exchange(addr, expected, value):  # Numba compares annotations too
    return lambda addr, expected, value: ptx.compare_exchange_sys(addr, expected, value) == expected


def _nap():
    return lambda: ptx.nanosleep(NAP)


overload(mem.load)(lambda addr: lambda addr: ptx.load8(addr))
overload(mem.store)(lambda addr, value: lambda addr, value: ptx.store8(addr, value))
overload(mem.load_acquire)(lambda addr: lambda addr: ptx.load_acquire_sys(addr))
overload(mem.store_release)(lambda addr, value: lambda addr, value: ptx.store_release_sys(addr, value))
overload(mem.fetch_add)(lambda addr, value: lambda addr, value: ptx.add_sys(addr, value))
overload(mem.compare_exchange)(_compare_exchange)
overload(mem.pause)(_nap)
overload(mem.nap)(_nap)
overload(mem.clock)(lambda: lambda: ptx.globaltimer())
overload(mem.float_of_bits)(lambda bits: lambda bits: ptx.float_of_bits(bits))
# Inlined, because a function on CUDA cannot return an array that it was not given.
overload(mem.floats, inline="always")(lambda addr, n: lambda addr, n: carray(_pointer(addr), n, np.float32))
overload(mem.words, inline="always")(lambda addr, n: lambda addr, n: carray(_pointer(addr), n, np.int64))
