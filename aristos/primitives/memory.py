"""Shared-memory operations: their names, and their meaning in plain Python.

The engine accesses memory that other workers or ranks use through these functions only, by address (an int64). Each
function has three forms: the body below, which tests and the schedule explorer run uncompiled or replace; LLVM on CPUs
(`kernels/cpu/llvm.py`); PTX on GPUs. The forms bind by name when the engine is compiled, so never pass a function as an
argument. Words are 8 bytes, aligned, and hold signed 64-bit integers.
"""

import ctypes
import os
import time

import numpy as np


def _word(addr):
    return ctypes.c_int64.from_address(int(addr))  # an address may be a NumPy int64


def load(addr):
    """Read a word, unordered. No other thread may write the word meanwhile."""
    return _word(addr).value


def store(addr, value):
    """Write a word, unordered. A later `store_release` publishes it."""
    _word(addr).value = value


def load_acquire(addr):
    """Read a word that another worker or rank releases. Then all that was written before the release is visible."""
    return _word(addr).value


def store_release(addr, value):
    """Publish a word: a thread that reads it with `load_acquire` sees everything written before."""
    _word(addr).value = value


def notify(word, value, nbytes):
    """Publish, by `store_release`, a word that another rank's steps poll. nbytes: bytes of the data that it announces.

    Only a lowering that emulates a network reads `nbytes`: it delays the word accordingly.
    """
    store_release(word, value)


def arrived(word):
    """Poll, by `load_acquire`, a word that another rank's `notify` writes."""
    return load_acquire(word)


def fetch_add(addr, value):
    """Add to a word of this rank and return its old value (acquire and release)."""
    word = _word(addr)
    old = word.value
    word.value = old + value
    return old


def compare_exchange(addr, expected, value):
    """Write `value` if a word of this rank holds `expected` (acquire and release); True if written."""
    word = _word(addr)
    if word.value != expected:
        return False
    word.value = value
    return True


def copy_row(dst, src, nbytes):
    """Copy `nbytes` opaque bytes. Source and target must not overlap."""
    ctypes.memmove(int(dst), int(src), int(nbytes))


def call(function, a, b, c, d, e, f, g, h):
    """Call the C function at an address with up to eight integer arguments. Returns its int result."""
    return ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * 8)(int(function))(*map(int, (a, b, c, d, e, f, g, h)))


def pause():
    """Hint to the core that this thread is in a spin loop."""


def yield_core():
    """Yield this core to another thread or rank. Returns at once if none is ready."""
    os.sched_yield()


def nap():
    """Sleep for the shortest possible time, about 50 us. Unlike a yield, this always lets other ranks use the core."""
    time.sleep(1e-6)


def clock():
    """Nanoseconds on CLOCK_MONOTONIC, equal for all ranks of a node."""
    return time.monotonic_ns()


def thread():
    """This thread's number among the `threads` that execute a step together: on a GPU, the threads of a block."""
    return 0


def threads():
    """The number of threads that execute a step together."""
    return 1


def warp():
    """This warp's number among the `warps` that execute a step. All threads of a warp call `copy_row` together."""
    return 0


def warps():
    """The number of warps that execute a step together."""
    return 1


def lane():
    """This thread's number in its warp."""
    return 0


def block_barrier():
    """Wait for the other threads that execute this step. Then everything that they have written is visible."""


def floats(addr, n):
    """View: n float32 at `addr`, as a one-dimensional array."""
    return np.ctypeslib.as_array((ctypes.c_float * int(n)).from_address(int(addr)))


def words(addr, n):
    """View: n int64 at `addr`, as a one-dimensional array."""
    return np.ctypeslib.as_array((ctypes.c_int64 * int(n)).from_address(int(addr)))


def bits8(addr, n):
    """View: n uint8 at `addr`, as a one-dimensional array."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * int(n)).from_address(int(addr)))


def bits16(addr, n):
    """View: n uint16 at `addr`, as a one-dimensional array."""
    return np.ctypeslib.as_array((ctypes.c_uint16 * int(n)).from_address(int(addr)))


def bits32(addr, n):
    """View: n uint32 at `addr`, as a one-dimensional array."""
    return np.ctypeslib.as_array((ctypes.c_uint32 * int(n)).from_address(int(addr)))


def float_of_bits(bits):
    """The float32 whose bit pattern is the low half of `bits`."""
    return np.uint32(int(bits) & 0xFFFFFFFF).view(np.float32)
