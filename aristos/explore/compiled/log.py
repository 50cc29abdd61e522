"""The log: all reads, writes, releases and acquires by the threads of all ranks of a node, in one order.

A thread takes an entry by adding to one shared counter. It makes an atomic access, and takes the access's entry, while
it holds a lock of the log. So the order of entries is the order of all atomic accesses, and an acquire reads the latest
release before it. The checker ignores the order that this lock gives the threads.

A process's table says where the log lies. Compiled code finds the table, and the function that writes entries, by
symbols, because the kernel cache would keep addresses.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding
from numba import int64, types

from kernel_cache.compile import Locator, compiling, entry

from ...kernels import cpu as _lowerings  # noqa: F401  registers what the primitives compile to
from ...primitives import memory as mem
from ...primitives.buffers import zeros
from ...primitives.named_words import address_of

WORD = 8

# kinds of entries: plain reads and writes of a range of bytes; atomics on a word; calls of MPI; marks made by the host
READ, WRITE, ACQUIRE, RELEASE, ADD, EXCHANGE, PUT, FLUSH, SYNC, WORKER = range(10)
KIND_BITS = 8  # bits of a code that hold the kind; the bits above hold the site

CURSOR, LOCK, CAPACITY, HEAD = 0, 8, 16, 24  # offsets in bytes: entries taken, lock, most entries, first entry
THREAD, RANK, CODE, AT, A, B, RESULT, ENTRY_WORDS = range(8)  # words of an entry

LOG, MINE, ELEMENT, PLANTED, TABLE_WORDS = range(5)  # words of TABLE; ELEMENT: bytes of a row's element
TABLE = zeros((TABLE_WORDS,))
table = address_of("aristos_races_table", TABLE)
RECORD_SYMBOL, RECORD = "aristos_races_record", int64(*[int64] * 4)

# for compiled code: a number of the calling thread, different from those of the other threads of its process
thread: Any = types.ExternalFunction("pthread_self", int64())
# record(code, at, a, b) writes the entry of an access. If the access is atomic, it also makes it and returns its result
record: Any = types.ExternalFunction(RECORD_SYMBOL, RECORD)


def write(code, at, a, b):
    """The body of `record`."""
    names = table()
    log = mem.load(names + WORD * LOG)
    if log == 0:
        return 0
    kind = code & ((1 << KIND_BITS) - 1)
    result = 0
    atomic = ACQUIRE <= kind <= EXCHANGE
    if atomic:
        tries = 0
        while not mem.compare_exchange(log + WORD * LOCK, 0, 1):
            tries += 1
            if tries % 64 == 0:
                mem.yield_core()
        if kind == ACQUIRE:
            result = mem.load_acquire(at)
        elif kind == RELEASE:
            mem.store_release(at, a)
        elif kind == ADD:
            result = mem.fetch_add(at, a)
        else:
            result = int(mem.compare_exchange(at, a, b))
    n = mem.fetch_add(log + WORD * CURSOR, 1)
    if n < mem.load(log + WORD * CAPACITY):
        place = log + WORD * (HEAD + ENTRY_WORDS * n)
        mem.store(place + WORD * THREAD, thread())
        mem.store(place + WORD * RANK, mem.load(names + WORD * MINE))
        mem.store(place + WORD * CODE, code)
        mem.store(place + WORD * AT, at)
        mem.store(place + WORD * A, a)
        mem.store(place + WORD * B, b)
        mem.store(place + WORD * RESULT, result)
    if atomic:
        mem.store_release(log + WORD * LOCK, 0)
    return result


@cache
def prepare() -> Any:
    """Compile `write` and give it its symbol. Returns it as a function that Python can call."""
    with compiling(name=__name__):
        made = entry(write, RECORD, Locator)
    binding.add_symbol(RECORD_SYMBOL, made.address)
    return made.ctypes


def note(kind: int, at: int, a: int = 0, b: int = 0) -> int:
    """Record an access of Python code."""
    return int(prepare()(kind, at, a, b))


class Log:
    """A log that the ranks of a node share. Collective. entries: the most that the log holds."""

    def __init__(self, comm: Any, entries: int) -> None:
        from mpi4py import MPI

        prepare()
        nbytes = WORD * (HEAD + ENTRY_WORDS * entries) if comm.rank == 0 else 0
        self._window: Any = MPI.Win.Allocate_shared(nbytes, 1, comm=comm)
        memory, _ = self._window.Shared_query(0)
        self.capacity = entries
        self._words = np.asarray(memory).view(np.int64)
        self._comm, self._address = comm, memory.address
        if comm.rank == 0:
            self._words[:HEAD] = 0
            self._words[CAPACITY] = entries
        TABLE[MINE] = comm.rank
        comm.Barrier()

    def start(self) -> None:
        """Start to record. Collective; no thread may be making a call."""
        self._comm.Barrier()
        if self._comm.rank == 0:
            self._words[CURSOR] = 0
        self._comm.Barrier()
        TABLE[LOG] = self._address

    def stop(self) -> np.ndarray:
        """Stop recording. Returns all entries so far, [n, ENTRY_WORDS]. Collective."""
        self._comm.Barrier()
        TABLE[LOG] = 0
        taken = min(self.taken, self.capacity)
        return self._words[HEAD:][: ENTRY_WORDS * taken].reshape(taken, ENTRY_WORDS)

    @property
    def taken(self) -> int:
        """The number of entries that threads wanted to write: more than `capacity` if some were lost."""
        return int(self._words[CURSOR])

    def close(self) -> None:
        """Free the log. Collective."""
        del self._words
        self._window.Free()
