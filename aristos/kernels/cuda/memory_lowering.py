"""The CUDA lowerings of `aristos.primitives.memory`, the protocol's shared-memory operations.

Releases and acquires have system scope, because other devices and the host use the same words. Atomic adds and
exchanges have device scope, because their words are used only by this device's blocks. Importing this module registers
the lowerings with Numba-CUDA; it compiles nothing.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from ...primitives import memory as mem
from ..cpu import llvm as cpu  # noqa: F401  registers the CPU overloads, which the last line removes
from . import ptx
from .compiler import carray, cuda, forget_other_targets, intrinsic, overload, types

WARP = 32
NAP = 1000  # nanoseconds that a waiting block sleeps, so that other blocks get the SM's issue slots


@intrinsic
def _pointer(typing, addr):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


def _compare_exchange(addr, expected, value):  # no annotations: Numba requires the signature in `memory`
    return lambda addr, expected, value: ptx.compare_exchange_gpu(addr, expected, value) == expected


def _nap():
    return lambda: ptx.nanosleep(NAP)


@cuda.jit(device=True)
def copied(dst, src, nbytes):
    """Copy a row, 16 bytes per lane at a time, with cache hints for data that is read and written once."""
    for at in range(16 * (ptx.thread() & WARP - 1), nbytes, 16 * WARP):
        part = ptx.load16_once(src + at)
        ptx.store16_once(dst + at, part[0], part[1], part[2], part[3])


OWN = {
    mem.load: lambda addr: lambda addr: ptx.load8(addr),
    mem.store: lambda addr, value: lambda addr, value: ptx.store8(addr, value),
    mem.load_acquire: lambda addr: lambda addr: ptx.load_acquire_sys(addr),
    mem.store_release: lambda addr, value: lambda addr, value: ptx.store_release_sys(addr, value),
    mem.notify: lambda word, value, nbytes: lambda word, value, nbytes: ptx.store_release_sys(word, value),
    mem.arrived: lambda word: lambda word: ptx.load_acquire_sys(word),
    mem.fetch_add: lambda addr, value: lambda addr, value: ptx.add_gpu(addr, value),
    mem.compare_exchange: _compare_exchange,
    mem.copy_row: lambda dst, src, nbytes: lambda dst, src, nbytes: copied(dst, src, nbytes),
    mem.pause: _nap,
    mem.yield_core: _nap,
    mem.nap: _nap,
    mem.clock: lambda: lambda: ptx.globaltimer(),
    mem.thread: lambda: lambda: np.int64(ptx.thread()),
    mem.threads: lambda: lambda: np.int64(cuda.blockDim.x),
    mem.warp: lambda: lambda: np.int64(ptx.thread() // WARP),
    mem.warps: lambda: lambda: np.int64(cuda.blockDim.x // WARP),
    mem.lane: lambda: lambda: np.int64(ptx.thread() & WARP - 1),
    mem.block_barrier: lambda: lambda: cuda.syncthreads(),
    mem.float_of_bits: lambda bits: lambda bits: ptx.float_of_bits(bits),
}
VIEWS = {  # inlined, because a CUDA device function can return only arrays that it received
    mem.floats: lambda addr, n: lambda addr, n: carray(_pointer(addr), n, np.float32),
    mem.words: lambda addr, n: lambda addr, n: carray(_pointer(addr), n, np.int64),
}
for _name, _lowered in OWN.items():
    overload(_name)(_lowered)
for _name, _lowered in VIEWS.items():
    overload(_name, inline="always")(_lowered)
forget_other_targets([*OWN, *VIEWS])
