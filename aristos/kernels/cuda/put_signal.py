"""Two benchmark kernels that measure a put and a signal, between blocks of one grid or of two GPUs.

They use the layer's own row copy, release and acquire. Waits are bounded: a block that has waited `limit` nanoseconds
adds one to the word at `late` and continues, so every launch ends. Words only grow, so nothing is cleared between
launches: `base` is their value before the launch.
"""

from __future__ import annotations

from ...primitives import memory as mem
from .compiler import cuda
from .memory_lowering import WARP as WARP

LINE = 128  # bytes between words, so that each has its own cache line
BY_HALVES, ALL, PUTS, WAITS = 1, 2, 3, 4  # what blocks of `put_rows` do
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
def put_rows(source, target, words, awaited, rows, row_bytes, batch, way, base, limit, late):
    """Block b puts its rows to its partner in the other half of the grid, and a signal after each batch.

    Grid: an even number of blocks, all resident at once. source, target: [grid, rows, row_bytes]; block b puts to the
    part of its partner, (b + grid / 2) mod grid. words: [grid] lines, where a block's signals go. awaited: [grid]
    lines, where signals for a block arrive. way: BY_HALVES: the first half of the blocks puts and the other half waits.
    ALL: every block does both. PUTS, WAITS: every block puts, or waits; then target and words belong to another GPU.
    """
    half, b = cuda.gridDim.x // 2, cuda.blockIdx.x
    partner = (b + half) % (2 * half)
    if way in (ALL, PUTS) or (way == BY_HALVES and b < half):
        own, to = source + rows * row_bytes * b, target + rows * row_bytes * partner
        for first in range(0, rows, batch):
            end = min(first + batch, rows)
            for row in range(first + mem.warp(), end, mem.warps()):
                mem.copy_row(to + row_bytes * row, own + row_bytes * row, row_bytes)
            mem.block_barrier()
            if mem.thread() == 0:
                mem.store_release(words + LINE * partner, base + end)
    waits = way in (ALL, WAITS) or (way == BY_HALVES and b >= half)
    if waits and mem.thread() == 0 and not arrived(awaited + LINE * b, base + rows, limit):
        mem.fetch_add(late, 1)


@cuda.jit
def ping_pong(source, slots, words, their_slots, their_words, first, row_bytes, rounds, base, limit, late):
    """`rounds` times, side 0 puts a row and a signal to side 1, which puts the row back with a signal.

    Grid: 2 blocks of a warp, one for each side; or 1 block for side `first`, if another GPU has the other side. source:
    a row. slots: [2, row_bytes], where sides 0 and 1 receive. words: [2] lines. their_slots, their_words: the slots and
    words of the GPU that has the other side.
    """
    me = first + cuda.blockIdx.x
    own, other = slots + row_bytes * me, their_slots + row_bytes * (1 - me)
    given = source if me == 0 else own
    for i in range(rounds):
        if me == 1:
            if mem.thread() == 0 and not arrived(words + LINE, base + i + 1, limit):
                mem.fetch_add(late, 1)
            mem.block_barrier()
        mem.copy_row(other, given, row_bytes)
        mem.block_barrier()
        if mem.thread() == 0:
            mem.store_release(their_words + LINE * (1 - me), base + i + 1)
            if me == 0 and not arrived(words, base + i + 1, limit):
                mem.fetch_add(late, 1)
        mem.block_barrier()
