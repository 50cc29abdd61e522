"""Step `dispatch`: a tile of rows goes into its owner's ring. Credit, then rows, then the record, then the tail."""

from ..primitives import memory as mem
from ..primitives.compile import jit
from . import blocks
from . import fields as f
from .layout import record_to, ring_row_to, word_from, word_to
from .packing import tile_rows
from .returns import returns_due


@jit
def slot_at(job, st, owner, packed):
    """The slot that a packed row for `owner` belongs to."""
    low, high = job[job[f.SLOT_START] + owner], job[job[f.SLOT_START] + owner + 1]
    while high - low > 1:
        middle = (low + high) // 2
        if st[job[f.T_OFFSET] + middle] <= packed:
            low = middle
        else:
            high = middle
    return low


@jit
def claim(job, st, worker):
    """Claim the next tile that has credit, or a block for a far owner, going round the owners; the kind of command.

    (Decide, under the lock.)
    """
    if st[f.UNSENT] == 0:
        return f.IDLE
    me, world, ring = job[f.RANK], job[f.WORLD], job[f.RING_ROWS]
    owner = st[f.NEXT_DEST]
    for _ in range(world):
        packed = st[job[f.T_CURSOR] + owner]
        last = st[job[f.T_OFFSET] + job[job[f.SLOT_START] + owner + 1]]
        flying = returns_due(job, st, owner)
        waiting = owner != me and packed < last and st[job[f.T_BUSY] + owner] == 0 and flying < ring
        if waiting and st[job[f.T_FAR] + owner] != 0:
            if blocks.claim(job, st, worker, owner, flying):
                st[f.NEXT_DEST] = (owner + 1) % world
                return f.BLOCK
        elif waiting:
            slot = slot_at(job, st, owner, packed)
            left = st[job[f.T_OFFSET] + slot + 1] - packed
            rows = tile_rows(left, min(job[f.TILE], ring))
            freed = mem.load_acquire(word_from(job, st, owner, f.CREDIT))
            if st[job[f.T_SENT_ROWS] + owner] - freed + rows <= ring:
                c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
                st[c + f.C_KIND] = f.DISPATCH
                st[c + f.C_A] = owner
                st[c + f.C_B] = packed
                st[c + f.C_C] = slot - job[job[f.SLOT_START] + owner]
                st[c + f.C_ROWS] = rows
                st[job[f.T_BUSY] + owner] = 1
                st[f.NEXT_DEST] = (owner + 1) % world
                return f.DISPATCH
        owner = (owner + 1) % world
    return f.IDLE


@jit
def execute(job, st, worker):
    """Put the rows into the ring; nobody reads them before the tail says so."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    owner, packed, rows = st[c + f.C_A], st[c + f.C_B], st[c + f.C_ROWS]
    ring, nbytes = job[f.RING_ROWS], job[f.ROW_BYTES]
    row = st[job[f.T_SENT_ROWS] + owner]
    to_wrap = ring - row % ring
    target = ring_row_to(job, st, owner, row)
    for i in range(mem.warp(), rows, mem.warps()):
        place = i if i < to_wrap else i - ring
        source = job[f.X] + job[f.X_STRIDE] * st[job[f.T_TOKEN] + packed + i]
        mem.copy_row(target + job[f.STRIDE] * place, source, nbytes)


@jit
def publish(job, st, worker):
    """Record, then tail; the owner may be visited again. (Under the lock.)"""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    owner, rows = st[c + f.C_A], st[c + f.C_ROWS]
    tile = st[job[f.T_SENT_TILES] + owner]
    a = record_to(job, st, owner, tile)
    mem.store(a, st[c + f.C_C])
    mem.store(a + 8, rows)
    mem.store(a + 16, st[c + f.C_B])
    mem.store(a + 24, rows)
    st[job[f.T_SENT_TILES] + owner] = tile + 1
    st[job[f.T_SENT_ROWS] + owner] += rows
    st[job[f.T_CURSOR] + owner] += rows
    st[job[f.T_TILES_TO] + owner] += 1
    st[job[f.T_MOVED_TO] + owner] += rows
    st[job[f.T_BUSY] + owner] = 0
    st[f.UNSENT] -= rows
    mem.store_release(word_to(job, st, owner, f.TAIL), tile + 1)
