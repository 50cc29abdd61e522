"""Step `dispatch`: a tile of rows goes into its owner's ring. Credit, then rows, then the record, then the tail."""

from .. import memory as mem
from ..compile import jit
from . import fields as f
from .layout import record_to, ring_row_to, word_from, word_to
from .returns import returns_due


@jit
def tile_rows(rows, most):
    """Rows of the next tile of a run of `rows`: the run is cut into tiles of nearly equal size, at most `most` each."""
    tiles = (rows + most - 1) // most
    return (rows + tiles - 1) // tiles


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
    """Claim the next tile that has credit, going round the owners; False if none has. (Decide, under the lock.)"""
    if st[f.UNSENT] == 0:
        return False
    me, world, ring = job[f.RANK], job[f.WORLD], job[f.RING_ROWS]
    owner = st[f.NEXT_DEST]
    for _ in range(world):
        packed = st[job[f.T_CURSOR] + owner]
        last = st[job[f.T_OFFSET] + job[job[f.SLOT_START] + owner + 1]]
        flying = returns_due(job, st, owner)
        if owner != me and packed < last and st[job[f.T_BUSY] + owner] == 0 and flying < ring:
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
                return True
        owner = (owner + 1) % world
    return False


@jit
def execute(job, st, worker):
    """Put the rows into the ring; nobody reads them before the tail says so."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    owner, packed, rows = st[c + f.C_A], st[c + f.C_B], st[c + f.C_ROWS]
    ring, nbytes = job[f.RING_ROWS], job[f.ROW_BYTES]
    row = st[job[f.T_SENT_ROWS] + owner]
    to_wrap = ring - row % ring
    target = ring_row_to(job, st, owner, row)
    for i in range(rows):
        if i == to_wrap:
            target -= job[f.STRIDE] * ring
        source = job[f.X] + job[f.X_STRIDE] * st[job[f.T_TOKEN] + packed + i]
        mem.copy_row(target + job[f.STRIDE] * i, source, nbytes)


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
    st[job[f.T_SENT_TILES] + owner] = tile + 1
    st[job[f.T_SENT_ROWS] + owner] += rows
    st[job[f.T_CURSOR] + owner] += rows
    st[job[f.T_TILES_TO] + owner] += 1
    st[job[f.T_BUSY] + owner] = 0
    st[f.UNSENT] -= rows
    mem.store_release(word_to(job, st, owner, f.TAIL), tile + 1)
