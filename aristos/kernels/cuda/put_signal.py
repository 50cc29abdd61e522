"""What a put and a signal cost between the blocks of one grid: two small kernels for benchmarks.

They use what the layer uses: its copy of a row, its release and acquire. Waits are bounded: a block that has waited
`limit` nanoseconds adds one to the word at `late` and goes on, so a launch ends whatever happens. Words only grow, so
that a launch needs nothing cleared: `base` is what they held before it.
"""

from __future__ import annotations

from ...primitives import memory as mem
from .compiler import cuda
from .memory_lowering import WARP as WARP

LINE = 128  # bytes between words: none shares a line with another
LOOKS = 64  # polls of a word between two reads of the clock
THREADS = 256  # of a block of `put_rows`


@cuda.jit(device=True)
def arrived(word, value, limit):
    """Wait until a word holds `value` or more; False if it does not within the limit. By one thread."""
    since, looks = mem.clock(), 0
    while mem.load_acquire(word) < value:
        looks += 1
        if looks % LOOKS == 0 and mem.clock() - since > limit:
            return False
    return True


@cuda.jit
def put_rows(source, target, words, rows, row_bytes, batch, halves, base, limit, late):
    """Block b puts its rows to its partner in the other half of the grid, and a signal behind each batch of them.

    Grid: an even number of blocks, all resident at once. source, target: [grid, rows, row_bytes]; the rows of block b
    go to the part of its partner, (b + grid / 2) mod grid. words: [grid] lines. halves: 1, the first half puts and the
    other waits; 2, both do both.
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
    """Block 0 puts a row and a signal to block 1, which puts what came back, with a signal, `rounds` times.

    Grid: 2 blocks of a warp. source: a row. slots: [2, row_bytes], what block 0 and block 1 get. words: [2] lines.
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
