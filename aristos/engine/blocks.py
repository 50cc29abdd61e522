"""Step `dispatch` to a far owner: a block of tokens, each crossing once however many of its experts live there.

A block is the tokens t0..t1 that have a pair there: their rows once, for every pair (in the order of experts, then
tokens) an index entry that names its row, and a record a tile. It takes as many ring rows as it has pairs, so that
one credit, in pairs, bounds ring, index and the owner's staged outputs; its rows are the first of those. Everything is
written into the outbox; `outbox.py` puts it.
"""

from ..primitives import memory as mem
from ..primitives.compile import jit
from . import fields as f
from .layout import index_to, outbox_row_to, record_to, word_from, word_to
from .packing import tile_rows


@jit
def first_from(job, st, slot, token):
    """The first packed row of a slot, from its cursor on, whose token is `token` or later."""
    low, high = st[job[f.T_SLOT_FROM] + slot], st[job[f.T_OFFSET] + slot + 1]
    while low < high:
        middle = (low + high) // 2
        if st[job[f.T_TOKEN] + middle] < token:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def pairs_before(job, st, owner, token):
    """Pairs for `owner` that are not sent and whose token is before `token`."""
    pairs = 0
    for slot in range(job[job[f.SLOT_START] + owner], job[job[f.SLOT_START] + owner + 1]):
        pairs += first_from(job, st, slot, token) - st[job[f.T_SLOT_FROM] + slot]
    return pairs


@jit
def next_token(job, st, owner):
    """The first token that has a pair for `owner` which is not sent."""
    token = job[f.TOKENS]
    for slot in range(job[job[f.SLOT_START] + owner], job[job[f.SLOT_START] + owner + 1]):
        at = st[job[f.T_SLOT_FROM] + slot]
        if at < st[job[f.T_OFFSET] + slot + 1]:
            token = min(token, st[job[f.T_TOKEN] + at])
    return token


@jit
def end_token(job, st, owner, first, room):
    """Where a block that begins at token `first` ends: as many tokens as fit `room` pairs, at least one."""
    low, high = first + 1, job[f.TOKENS]  # pairs before low fit, or low is the least
    while low < high:
        middle = (low + high + 1) // 2
        if pairs_before(job, st, owner, middle) <= room:
            low = middle
        else:
            high = middle - 1
    return low


@jit
def claim(job, st, worker, owner, flying):
    """Claim the next block for `owner` if it has credit for it. (Decide, under the lock.)"""
    ring = job[f.RING_ROWS]
    sent = st[job[f.T_SENT_ROWS] + owner]
    room = ring - sent + mem.load_acquire(word_from(job, st, owner, f.CREDIT))
    first = next_token(job, st, owner)
    end = end_token(job, st, owner, first, min(room, job[f.FAR_BLOCK]))
    pair, tiles, most = sent, 0, min(job[f.TILE], ring)
    for slot in range(job[job[f.SLOT_START] + owner], job[job[f.SLOT_START] + owner + 1]):
        stop = first_from(job, st, slot, end)
        st[job[f.T_SLOT_TO] + slot] = stop
        st[job[f.T_SLOT_PAIR] + slot] = pair
        rows = stop - st[job[f.T_SLOT_FROM] + slot]
        pair += rows
        tiles += (rows + most - 1) // most
    if pair - sent > room or flying + tiles > ring:
        return False
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    st[c + f.C_KIND] = f.BLOCK
    st[c + f.C_A] = owner
    st[c + f.C_B] = first
    st[c + f.C_C] = end
    st[c + f.C_ROWS] = pair - sent
    st[job[f.T_BUSY] + owner] = 1
    return True


@jit
def write_records(job, st, owner, rows):
    """A record for every tile, the last one with the `rows` that lie in the ring; returns how many."""
    tile = st[job[f.T_SENT_TILES] + owner]
    most = min(job[f.TILE], job[f.RING_ROWS])
    start = job[job[f.SLOT_START] + owner]
    last = 0
    tiles = 0
    for slot in range(start, job[job[f.SLOT_START] + owner + 1]):
        packed, stop = st[job[f.T_SLOT_FROM] + slot], st[job[f.T_SLOT_TO] + slot]
        while packed < stop:
            n = tile_rows(stop - packed, most)
            last = record_to(job, st, owner, tile + tiles)
            mem.store(last, slot - start)
            mem.store(last + 8, n)
            mem.store(last + 16, packed)
            mem.store(last + 24, 0)
            packed += n
            tiles += 1
    mem.store(last + 24, rows)
    return tiles


@jit
def execute(job, st, worker):
    """Write rows, index entries and records into the outbox; of several warps, each the rows whose turn it has."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    owner, k = st[c + f.C_A], job[f.TOP_K]
    low = st[job[f.T_OFFSET] + job[job[f.SLOT_START] + owner]]
    high = st[job[f.T_OFFSET] + job[job[f.SLOT_START] + owner + 1]]
    ids = mem.words(job[f.IDS], job[f.TOKENS] * k)
    sent = st[job[f.T_SENT_ROWS] + owner]
    row = sent
    for t in range(st[c + f.C_B], st[c + f.C_C]):
        mine, crossed = (row - sent) % mem.warps() == mem.warp(), False
        for i in range(t * k, (t + 1) * k):
            packed = st[job[f.T_POSITION] + i]
            if packed < low or packed >= high:
                continue
            if mine and not crossed:
                mem.copy_row(outbox_row_to(job, st, owner, row), job[f.X] + job[f.X_STRIDE] * t, job[f.ROW_BYTES])
            crossed = True
            if mine and mem.lane() == 0:
                slot = job[job[f.SLOT_OF] + ids[i]]
                pair = st[job[f.T_SLOT_PAIR] + slot] + packed - st[job[f.T_SLOT_FROM] + slot]
                mem.store(index_to(job, st, owner, pair), row)
        row += crossed
    mem.block_barrier()
    if mem.thread() == 0:
        st[c + f.C_PARTS] = write_records(job, st, owner, row - sent)
        st[c + f.C_B] = row - sent


@jit
def publish(job, st, worker):
    """The block is in the outbox. (Under the lock.)"""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    owner, tiles, pairs = st[c + f.C_A], st[c + f.C_PARTS], st[c + f.C_ROWS]
    for slot in range(job[job[f.SLOT_START] + owner], job[job[f.SLOT_START] + owner + 1]):
        st[job[f.T_SLOT_FROM] + slot] = st[job[f.T_SLOT_TO] + slot]
    st[job[f.T_SENT_TILES] + owner] += tiles
    st[job[f.T_SENT_ROWS] + owner] += pairs
    st[job[f.T_CURSOR] + owner] += pairs
    st[job[f.T_TILES_TO] + owner] += tiles
    st[job[f.T_MOVED_TO] + owner] += st[c + f.C_B]
    st[job[f.T_BUSY] + owner] = 0
    st[f.UNSENT] -= pairs
    mem.store_release(word_to(job, st, owner, f.TAIL), st[job[f.T_SENT_TILES] + owner])
