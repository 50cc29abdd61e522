"""Step `return`, its publishing half: computed rows get a record at their source, ring rows become credit.

The output rows themselves were written by the expert kernel, straight into the source's return rows.
"""

from .. import memory as mem
from ..compile import jit
from . import fields as f
from .layout import return_record_to, word_to


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


@jit
def rows_are_back(job, st, packed, rows):
    """Own packed rows packed..packed+rows have come back: blocks of tokens that miss nothing are ready to combine."""
    for p in range(packed, packed + rows):
        b = st[job[f.T_TOKEN] + p] // f.TOKEN_BLOCK
        left = st[job[f.T_BLOCK_LEFT] + b] - 1
        st[job[f.T_BLOCK_LEFT] + b] = left
        if left == 0:
            st[job[f.T_READY] + st[f.READY_COUNT]] = b
            st[f.READY_COUNT] += 1
