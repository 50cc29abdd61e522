"""Step `return`, its publishing half: computed rows get a record at their source, ring rows become credit.

The output rows themselves were written by the expert kernel, straight into the source's return rows. There they are
counted, so that a block of tokens that misses none can be combined.
"""

from ..primitives import memory as mem
from ..primitives.compile import jit
from . import fields as f
from .layout import WORD, return_record_to, word_to


@jit
def post_return(job, st, source, packed, rows, status, staged):
    """Tell `source` that its packed rows packed..packed+rows are in its return rows: record, then tail.

    staged: for a far source, the pair number whose staged row is the first of them; UNSTAGED if they are there already.
    """
    tile = st[job[f.T_RETURNED] + source]
    a = return_record_to(job, st, source, tile)
    mem.store(a, packed)
    mem.store(a + 8, rows)
    mem.store(a + 16, status)
    mem.store(a + 24, staged)
    st[job[f.T_RETURNED] + source] = tile + 1
    mem.store_release(word_to(job, st, source, f.RETURN_TAIL), tile + 1)


@jit
def returns_due(job, st, owner):
    """Return records that `owner` still owes: one for every tile, and one for every exchange that was combined."""
    return st[job[f.T_SENT_TILES] + owner] + st[job[f.T_EXTRA] + owner] - st[job[f.T_SEEN_TILES] + owner]


@jit
def free_rows(job, st, source):
    """Give credit for ring rows in ring order, up to the first block that still has a reader."""
    tile, rows = st[job[f.T_FREE_TILES] + source], 0
    free, freed = tile, 0
    while tile < st[job[f.T_READ_TILES] + source]:
        r = job[f.T_RECORD] + f.RECORD_WORDS * (source * job[f.SLOTS] + tile % job[f.SLOTS])
        if st[r + f.R_LEFT] != 0:
            break
        rows += st[r + f.R_ROWS]
        tile += 1
        if st[r + f.R_LAST] != 0:
            free, freed = tile, rows
    if freed != 0:
        st[job[f.T_FREE_TILES] + source] = free
        st[job[f.T_FREED_ROWS] + source] += freed
        mem.store_release(word_to(job, st, source, f.CREDIT), st[job[f.T_FREED_ROWS] + source])


@jit
def finish_record(job, st, source, tile, rows):
    """`rows` of a tile have had their last reader; the whole tile is returned once they all have."""
    r = job[f.T_RECORD] + f.RECORD_WORDS * (source * job[f.SLOTS] + tile % job[f.SLOTS])
    st[r + f.R_LEFT] -= rows
    st[f.OWED] -= rows
    if st[r + f.R_LEFT] == 0:
        back = 0 if st[job[f.T_EXCHANGES] + source] else st[r + f.R_ROWS]  # an exchange's rows come later
        staged = st[r + f.R_ROW] if st[job[f.T_ANNOUNCED] + source] == f.SERVE else f.UNSTAGED
        post_return(job, st, source, st[r + f.R_PACKED], back, f.OK, staged)
        free_rows(job, st, source)


# ---- own rows that have come back: noted under the lock, counted outside it


@jit
def state_word(job, i):
    """Address of a word of the state: what workers share without the rank's lock they touch by address, atomically."""
    return job[f.STATE] + WORD * i


@jit
def note_back(st, c, packed, rows):
    """Own packed rows packed..packed+rows have come back: note it in a worker's command, which has room."""
    if rows == 0:
        return
    piece = c + f.C_BACK + 1 + 2 * st[c + f.C_BACK]
    st[piece] = packed
    st[piece + 1] = rows
    st[c + f.C_BACK] += 1


@jit
def count_back(job, st, packed, rows):
    """Count own packed rows as back: all threads of a worker together. Blocks that miss no row are queued to combine.

    Who counts a block's last row knows of all that were counted before, and who takes the block knows what that one
    knew.
    """
    for p in range(packed + mem.thread(), packed + rows, mem.threads()):
        b = st[job[f.T_TOKEN] + p] // f.TOKEN_BLOCK
        if mem.fetch_add(state_word(job, job[f.T_BLOCK_LEFT] + b), -1) == 1:
            place = mem.fetch_add(state_word(job, f.READY_COUNT), 1)
            mem.store_release(state_word(job, job[f.T_READY] + place), 1 + b)


@jit
def settle(job, st, worker):
    """Count what this worker has noted: all its threads, outside the lock; after it has decided and published."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    pieces = st[c + f.C_BACK]
    mem.block_barrier()  # nobody notes more before all have read how many there are
    if pieces == 0:
        return
    for i in range(pieces):
        piece = c + f.C_BACK + 1 + 2 * i
        count_back(job, st, st[piece], st[piece + 1])
    mem.block_barrier()
    if mem.thread() == 0:
        st[c + f.C_BACK] = 0
