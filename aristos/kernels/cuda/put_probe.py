"""A kernel that writes a row and keeps running until it is released, while a start-up probe lets MPI put the row."""

from __future__ import annotations

from ...primitives import memory as mem
from .compiler import cuda
from .put_signal import arrived

THREADS = 64
LINE = 128  # bytes from the first word to the second
STEP = 0x9E3779B97F4A7C15 >> 1  # word i of the row is (i + 1) * STEP modulo 2^64


@cuda.jit
def lend(row, words, flags, limit):
    """Write `words` words at `row`, release 1 at `flags`, and wait until the word LINE bytes after `flags` is 1 too.

    Grid: one block. flags: two words in mapped host memory. The wait ends after at most `limit` nanoseconds.
    """
    for i in range(mem.thread(), words, mem.threads()):
        mem.store(row + 8 * i, (i + 1) * STEP)
    mem.block_barrier()
    if mem.thread() == 0:
        mem.store_release(flags, 1)
        arrived(flags + LINE, 1, limit)
