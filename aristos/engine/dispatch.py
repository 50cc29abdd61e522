"""Step `dispatch`: puts a tile of rows into its owner's ring: it takes credit, writes rows, record, and then tail."""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import bundles, codes, scalars, tape, words
from .layout import RECORD_BYTES, index_to, record_to, ring_of, ring_row_to, word_to
from .packing import tile_rows
from .returns import returns_due
from .streams import end_slot, freed


@jit
def slot_at(job, st, owner, packed):
    """The slot that a packed row for `owner` belongs to."""
    low, high = job[words.slot_start(job, owner)], job[words.slot_start(job, owner + 1)]
    while high - low > 1:
        middle = (low + high) // 2
        if st[words.offset(job, middle)] <= packed:
            low = middle
        else:
            high = middle
    return low


@jit
def claim(job, st, worker):
    """Claim the next tile for which there is credit, or the next bundle if tokens cross once. Owners take turns.

    Returns the kind of command. (Decide, under the lock.)
    """
    if st[words.UNSENT] == 0:
        return codes.IDLE
    me, world = job[words.RANK], job[words.WORLD]
    owner = st[words.NEXT_DEST]
    for _ in range(world):
        packed, ring = st[words.cursor(job, owner)], ring_of(job, st, owner)
        last = st[words.offset(job, end_slot(job, st, owner))]
        under_way = returns_due(job, st, owner)
        waiting = owner != me and packed < last and st[words.busy(job, owner)] == 0 and under_way < ring
        if waiting and st[words.once_to(job, owner)] != 0:
            if bundles.claim(job, st, worker, owner):
                st[words.NEXT_DEST] = (owner + 1) % world
                return codes.BUNDLE
        elif waiting:
            slot = slot_at(job, st, owner, packed)
            left = st[words.offset(job, slot + 1)] - packed
            rows = tile_rows(left, min(job[words.TILE], ring))
            if st[words.sent_rows(job, owner)] - freed(job, st, owner) + rows <= ring:
                c = words.command(job, worker)
                st[words.command_kind(c)] = codes.DISPATCH
                st[words.command_owner(c)] = owner
                st[words.command_packed(c)] = packed
                st[words.command_owner_expert(c)] = slot - job[words.slot_start(job, owner)]
                st[words.command_rows(c)] = rows
                st[words.busy(job, owner)] = 1
                st[words.NEXT_DEST] = (owner + 1) % world
                return codes.DISPATCH
        owner = (owner + 1) % world
    return codes.IDLE


@jit
def execute(job, st, worker):
    """Put the rows into the ring. The owner reads them when the tail has advanced."""
    c = words.command(job, worker)
    owner, packed, rows = st[words.command_owner(c)], st[words.command_packed(c)], st[words.command_rows(c)]
    ring, nbytes = ring_of(job, st, owner), tape.bytes_to_owner(job, owner)
    row = st[words.sent_rows(job, owner)]
    to_wrap = ring - row % ring
    target = ring_row_to(job, st, owner, row)
    for i in range(mem.warp(), rows, mem.warps()):
        place = i if i < to_wrap else i - ring
        source = job[words.X] + job[words.X_STRIDE] * st[words.token(job, packed + i)]
        mem.copy_row(target + job[words.STRIDE] * place, source, nbytes)
    if job[words.SCALARS] != 0:
        for i in range(mem.thread(), rows, mem.threads()):
            scalar = scalars.of_packed(job, st, packed + i)
            mem.store(index_to(job, st, owner, row + i), scalars.entry((row + i) % ring, scalar))


@jit
def publish(job, st, worker):
    """Write the record, then the tail. After that, workers may claim for this owner again. (Under the lock.)"""
    c = words.command(job, worker)
    owner, rows = st[words.command_owner(c)], st[words.command_rows(c)]
    tile = st[words.sent_tiles(job, owner)]
    a = record_to(job, st, owner, tile)
    mem.store(words.record_expert(a), st[words.command_owner_expert(c)])
    mem.store(words.record_rows(a), rows)
    mem.store(words.record_packed(a), st[words.command_packed(c)])
    mem.store(words.record_bundle(a), rows)
    mem.store(words.record_owner(a), owner)
    st[words.sent_tiles(job, owner)] = tile + 1
    st[words.due_tiles(job, owner)] += 1
    st[words.sent_rows(job, owner)] += rows
    st[words.cursor(job, owner)] += rows
    st[words.tiles_to(job, owner)] += 1
    st[words.moved_to(job, owner)] += rows
    st[words.busy(job, owner)] = 0
    st[words.UNSENT] -= rows
    mem.notify(word_to(job, st, owner, words.TAIL), tile + 1, rows * tape.bytes_to_owner(job, owner) + RECORD_BYTES)
