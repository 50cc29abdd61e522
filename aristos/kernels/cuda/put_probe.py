"""A kernel that writes a row and keeps running until it is released, while a start-up probe lets MPI put the row."""

from __future__ import annotations

from ...primitives import memory as mem
from .compiler import cuda
from .put_signal import arrived

THREADS = 64
LINE = 128  # bytes between the two words
STEP = 0x9E3779B97F4A7C15 >> 1  # word i of the row is (i + 1) * STEP, as 64 bits go


@cuda.jit
def lend(row, words, told, limit):
    """Write `words` words at `row`, release 1 at `told`, and wait until the word LINE bytes after it is 1 as well.

    Grid: one block. told: two words in mapped host memory. It ends after `limit` nanoseconds in any case.
    """
    for i in range(mem.thread(), words, mem.threads()):
        mem.store(row + 8 * i, (i + 1) * STEP)
    mem.block_barrier()
    if mem.thread() == 0:
        mem.store_release(told, 1)
        arrived(told + LINE, 1, limit)
