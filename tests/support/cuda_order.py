"""Kernels for a litmus test and a stress test: one block publishes the rows of several blocks, as in the engine.

Blocks store rows into a peer's memory. Each then notifies the publishing block at gpu scope. That block releases one
word to the peer at system scope. By cumulativity the word covers the rows of all blocks (PTX ISA, "Release and
Acquire Patterns", "Causality Order"). A wait ends after `limit` nanoseconds and is then counted in the word `late`.
"""

from __future__ import annotations

from typing import Any

from aristos.kernels.cuda import ptx
from aristos.kernels.cuda.catalogue import Kernel
from aristos.kernels.cuda.compiler import cuda, types
from aristos.kernels.cuda.put_signal import arrived
from aristos.primitives import memory as mem

STEP = 1 << 20  # a word grows by this from round to round
ACROSS = ptx.store_release_sys


def writing(release: Any) -> Any:
    """The source's kernel. release: the function by which the publishing block sets the peer's word."""

    @cuda.jit
    def write_rows(source, target, word, back, count, row_bytes, rounds, limit, late):
        """Block 0 publishes; each other block stores one row. source, target: [grid - 1, row_bytes].

        back: the word with the rounds that the peer has checked. count: the word with the rows that are stored. Both
        lie in this GPU's memory.
        """
        row, others = cuda.blockIdx.x - 1, cuda.gridDim.x - 1
        for r in range(rounds):
            if mem.thread() == 0 and not arrived(back, r, limit):
                mem.fetch_add(late, 1)
            mem.block_barrier()
            if row >= 0:
                own = source + row_bytes * row
                for i in range(mem.thread(), row_bytes // 8, mem.threads()):
                    mem.store(own + 8 * i, STEP * r + row_bytes // 8 * row + i)
                mem.block_barrier()
                if mem.warp() == 0:
                    mem.copy_row(target + row_bytes * row, own, row_bytes)
                mem.block_barrier()
                if mem.thread() == 0:
                    mem.fetch_add(count, 1)
            elif mem.thread() == 0:
                since = mem.clock()
                while mem.fetch_add(count, 0) < others * (r + 1):
                    if mem.clock() - since > limit:
                        mem.fetch_add(late, 1)
                        break
                release(word, r + 1)
            mem.block_barrier()

    return write_rows


@cuda.jit
def check_rows(rows, word, back, nbytes, rounds, limit, late, wrong):
    """The peer's kernel, of one block. The source writes rows [nbytes] and word; back lies in the source's memory.

    wrong: the word that counts wrong words in rows.
    """
    for r in range(rounds):
        if mem.thread() == 0 and not arrived(word, r + 1, limit):
            mem.fetch_add(late, 1)
        mem.block_barrier()
        for i in range(mem.thread(), nbytes // 8, mem.threads()):
            if mem.load(rows + 8 * i) != STEP * r + i:
                mem.fetch_add(wrong, 1)
        mem.block_barrier()
        if mem.thread() == 0:
            mem.store_release(back, r + 1)


WRITE = Kernel("write_rows", writing(ACROSS), (types.int64,) * 9, 64, 0, 1)
CHECK = Kernel("check_rows", check_rows, (types.int64,) * 8, 64, 0, 1)
