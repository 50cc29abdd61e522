"""Contexts of the C library (`ucontext.h`): each actor has a stack of its own, and one thread runs all of them in turn.

A change of context takes a fraction of a microsecond. A hand-over between threads takes several microseconds.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from ..primitives.buffers import zeros

CONTEXT_BYTES = 16 << 10  # sizeof(ucontext_t) is 968 on x86-64 and 4,560 on AArch64
STACK_BYTES = 512 << 10  # bytes of an actor's stack
GUARD_BYTES = 64 << 10  # below each stack; a multiple of every page size of Linux


class _Stack(ctypes.Structure):
    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


class _Head(ctypes.Structure):
    """The first members of ucontext_t on Linux."""

    _fields_ = (("flags", ctypes.c_ulong), ("link", ctypes.c_void_p), ("stack", _Stack))


class Contexts:
    """A context for each actor, which begins in a C function with the actor's number, and one for the thread.

    addresses: of the actors' contexts. main: of the thread's context. swap: of the C function swapcontext.
    """

    def __init__(self, actors: int, function: int) -> None:
        """function: address of a C function that takes an int64. The function must never return."""
        library = ctypes.CDLL(None, use_errno=True)
        self.swap = ctypes.cast(library.swapcontext, ctypes.c_void_p).value or 0
        self._words = zeros((actors + 1, CONTEXT_BYTES), np.uint8)
        self._stacks = mmap.mmap(-1, actors * (GUARD_BYTES + STACK_BYTES), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._stacks))
        self.addresses = [self._words[number].ctypes.data for number in range(actors)]
        self.main = self._words[actors].ctypes.data
        for number, context in enumerate(self.addresses):
            guard = first + number * (GUARD_BYTES + STACK_BYTES)
            if library.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(GUARD_BYTES), 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect failed for the guard of an actor's stack")
            library.getcontext(ctypes.c_void_p(context))
            head = _Head.from_address(context)
            head.link, head.stack = None, _Stack(guard + GUARD_BYTES, 0, STACK_BYTES)
            library.makecontext(ctypes.c_void_p(context), ctypes.c_void_p(function), 1, ctypes.c_int64(number))
