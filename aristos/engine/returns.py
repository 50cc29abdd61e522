"""Step `return`: reports computed rows to their source, frees ring rows as credit, and counts rows that came back.

The expert kernel has already written the output rows, for a remote source into staged rows. The source counts the rows
that came back, and combines a block of tokens when the block waits for no more rows.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import codes, tape, words
from .layout import RETURN_RECORD_BYTES, WORD, return_record_to, state_word, token_of, word_to
from .streams import note_staged, summed


@jit
def post_return(job, st, source, packed, rows, status, staged):
    """Report the outputs of rows packed..packed+rows to `source`: write a record, and then the tail.

    staged: the number of the first row's pair, which gives the row's place among the rows staged for a remote source;
    UNSTAGED if no staged row belongs to this record. For a local source nothing reads the number.
    """
    tile = st[words.returned(job, source)]
    a = return_record_to(job, st, source, tile)
    mem.store(words.returned_packed(a), packed)
    mem.store(words.returned_rows(a), rows)
    mem.store(words.returned_status(a), status)
    mem.store(words.returned_staged(a), staged)
    mem.store(words.returned_kept(a), tape.kept_of(job, source))
    st[words.returned(job, source)] = tile + 1
    mem.notify(
        word_to(job, st, source, words.RETURN_TAIL), tile + 1, rows * job[words.RETURN_BYTES] + RETURN_RECORD_BYTES
    )


@jit
def returns_due(job, st, owner):
    """How many return records `owner` owes: one for each tile sent, and one for each second phase of an exchange."""
    return st[words.due_tiles(job, owner)] + st[words.extra(job, owner)] - st[words.seen_tiles(job, owner)]


@jit
def free_rows(job, st, source):
    """Give credit for the ring rows of whole bundles, in ring order, up to the first tile whose rows are needed."""
    tile, rows = st[words.free_tiles(job, source)], 0
    free, freed = tile, 0
    while tile < st[words.read_tiles(job, source)]:
        r = words.landed(job, source, tile)
        if st[words.landed_left(r)] != 0:
            break
        rows += st[words.landed_rows(r)]
        tile += 1
        if st[words.landed_last(r)] != 0:
            free, freed = tile, rows
    if freed != 0:
        st[words.free_tiles(job, source)] = free
        st[words.freed_rows(job, source)] += freed
        mem.notify(word_to(job, st, source, words.CREDIT), st[words.freed_rows(job, source)], WORD)


@jit
def finish_record(job, st, source, tile, rows):
    """Count `rows` rows of a tile as computed or skipped. When all are, return the tile, or let it be summed.

    Rows that are summed remain in OWED until their sums are written.
    """
    r = words.landed(job, source, tile)
    st[words.landed_left(r)] -= rows
    if summed(job, st, source):
        if st[words.landed_left(r)] == 0:
            st[words.landed_left(r)] = codes.UNSUMMED_TILE
            if st[words.UNSUMMED] == 0:
                st[words.LATE_OWNER] = job[words.RANK]
            st[words.unsummed(job, source)] += 1
            st[words.UNSUMMED] += 1
            note_staged(job, st, source)
        return
    st[words.OWED] -= rows
    if st[words.landed_left(r)] == 0:
        note_staged(job, st, source)
        back = 0 if st[words.exchanges(job, source)] else st[words.landed_rows(r)]  # an exchange returns its rows later
        staged = st[words.landed_row(r)] if st[words.verdict(job, source)] == codes.SERVE else codes.UNSTAGED
        post_return(job, st, source, st[words.landed_packed(r)], back, codes.OK, staged)
        free_rows(job, st, source)


# ---- own rows that came back. They are noted under the lock, and counted outside it


@jit
def note_back(st, c, packed, rows):
    """Note in a worker's command, which must have space, that own packed rows packed..packed+rows came back."""
    if rows == 0:
        return
    back = words.back(c, st[words.command_backs(c)])
    st[words.back_packed(back)] = packed
    st[words.back_rows(back)] = rows
    st[words.command_backs(c)] += 1


@jit
def count_back(job, st, packed, rows):
    """Count own packed rows as back, and queue blocks that now have all their rows.

    All threads of a worker do this together. The atomic count orders the earlier rows of a block before its last row,
    and the release of `ready` orders all of them before the reads of the worker that combines the block.
    """
    for p in range(packed + mem.thread(), packed + rows, mem.threads()):
        b = token_of(job, st, p) // words.TOKEN_BLOCK
        if mem.fetch_add(state_word(job, words.block_left(job, b)), -1) == 1:
            place = mem.fetch_add(state_word(job, words.READY_COUNT), 1)
            mem.store_release(state_word(job, words.ready(job, place)), 1 + b)


@jit
def settle(job, st, worker):
    """Count the rows that this worker noted while it decided or published.

    All threads of the worker do this together, outside the lock.
    """
    c = words.command(job, worker)
    backs = st[words.command_backs(c)]
    mem.block_barrier()  # no record may be added before all threads have read how many there are
    if backs == 0:
        return
    for i in range(backs):
        back = words.back(c, i)
        count_back(job, st, st[words.back_packed(back)], st[words.back_rows(back)])
    mem.block_barrier()
    if mem.thread() == 0:
        st[words.command_backs(c)] = 0
