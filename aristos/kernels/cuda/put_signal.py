"""Two small benchmark kernels that measure the cost of a put and a signal between the blocks of one grid.

They use the layer's own row copy, release and acquire. Waits are bounded: a block that has waited `limit` nanoseconds
adds one to the word at `late` and continues, so every launch ends. Words only grow, so nothing is cleared between
launches: `base` is their value before the launch.
"""

from __future__ import annotations

from ...primitives import memory as mem
from .compiler import cuda
from .memory_lowering import WARP as WARP

LINE = 128  # bytes between words: each has a cache line of its own
POLLS = 64  # polls of a word between two reads of the clock
THREADS = 256  # per block of `put_rows`


@cuda.jit(device=True)
def arrived(word, value, limit):
    """Wait until a word holds `value` or more; False if the limit is reached first. One thread calls it."""
    since, polls = mem.clock(), 0
    while mem.load_acquire(word) < value:
        polls += 1
        if polls % POLLS == 0 and mem.clock() - since > limit:
            return False
    return True


@cuda.jit
def put_rows(source, target, words, rows, row_bytes, batch, halves, base, limit, late):
    """Block b puts its rows to its partner in the other half of the grid, and a signal after each batch.

    Grid: an even number of blocks, all resident at once. source, target: [grid, rows, row_bytes]; block b puts to the
    part of its partner, (b + grid / 2) mod grid. words: [grid] lines. halves: 1: the first half puts and the other half
    waits; 2: every block does both.
    """
    half, b = cuda.gridDim.x // 2, cuda.blockIdx.x
    partner = (b + half) % (2 * half)
    if b < half or halves == 2:
        own, to = source + rows * row_bytes * b, target + rows * row_bytes * partner
        for first in range(0, rows, batch):
            end = min(first + batch, rows)
            for row in range(first + mem.warp(), end, mem.warps()):
                mem.copy_row(to + row_bytes * row, own + row_bytes * row, row_bytes)
            mem.block_barrier()
            if mem.thread() == 0:
                mem.store_release(words + LINE * partner, base + end)
    if (b >= half or halves == 2) and mem.thread() == 0 and not arrived(words + LINE * b, base + rows, limit):
        mem.fetch_add(late, 1)


@cuda.jit
def ping_pong(source, slots, words, row_bytes, rounds, base, limit, late):
    """Block 0 puts a row and a signal to block 1; block 1 puts the row back with a signal; `rounds` times.

    Grid: 2 blocks of a warp. source: a row. slots: [2, row_bytes], where block 0 and 1 receive. words: [2] lines.
    """
    me = cuda.blockIdx.x
    own, other = slots + row_bytes * me, slots + row_bytes * (1 - me)
    given = source if me == 0 else own
    for i in range(rounds):
        if me == 1:
            if mem.thread() == 0 and not arrived(words + LINE, base + i + 1, limit):
                mem.fetch_add(late, 1)
            mem.block_barrier()
        mem.copy_row(other, given, row_bytes)
        mem.block_barrier()
        if mem.thread() == 0:
            mem.store_release(words + LINE * (1 - me), base + i + 1)
            if me == 0 and not arrived(words, base + i + 1, limit):
                mem.fetch_add(late, 1)
        mem.block_barrier()
