"""The tape of a forward call on an owner: what the owner keeps of the rows that it computes, for the backward call.

A call has a tape if its job's TAPED is set. TAPED points to a record for each rank, in memory that the caller holds
until the backward call. When the owner reads a source's announcement, it takes places for the source's rows from its
own reserve: for all that SAVE asks, for less if that does not fit, or for nothing. The owner's return records say what
it keeps. In the backward call the source sends rows [dy] to an owner that keeps x, and rows [dy | x] to others. The
places of a source's rows are in the source's packed order. Of own rows only hidden activations are kept, because the
caller has their x.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from ..primitives import taped
from . import codes, words


@jit
def step(job, kept):
    """Bytes between the places of two rows. kept: what is kept of each row, see primitives/taped.py."""
    nbytes = job[words.TAPE_HIDDEN] if kept & taped.HIDDEN else 0
    return nbytes + (job[words.TAPE_X] if kept & taped.X else 0)


@jit
def admit(job, st, source, rows):
    """In a forward call with a tape, decide what is kept of a source's rows, and reserve places. (Under the lock.)

    For 0 rows nothing is kept, because no return record would report it. With a shared expert `rows` is negative if
    this rank's own routing was refused, because then nothing is packed.
    """
    if job[words.MODE] != codes.MODE_LAYER or job[words.TAPED] == 0 or rows <= 0:
        return
    kept = job[words.SAVE] & taped.HIDDEN if source == job[words.RANK] else job[words.SAVE]
    while kept != 0 and st[words.TAPE_NEXT] + step(job, kept) * rows > job[words.TAPE_END]:
        kept = kept & taped.X if kept & taped.HIDDEN else 0
    a = words.taped(job, source)
    mem.store(words.taped_at(a), st[words.TAPE_NEXT])
    mem.store(words.taped_kept(a), kept)
    st[words.TAPE_NEXT] += step(job, kept) * rows


@jit
def kept_of(job, source):
    """What this rank keeps of a source's rows."""
    return mem.load(words.taped_kept(words.taped(job, source))) if job[words.TAPED] != 0 else 0


@jit
def note(job, owner, kept):
    """In a forward call with a tape, note what an owner keeps of this rank's rows. (Under the lock.)"""
    if job[words.MODE] == codes.MODE_LAYER and job[words.TAPED] != 0:
        mem.store(words.taped_there(words.taped(job, owner)), kept)


@jit
def keeps_x(job, owner):
    """Whether an owner keeps x of this rank's rows."""
    return mem.load(words.taped_there(words.taped(job, owner))) & taped.X != 0


@jit
def bytes_to_owner(job, owner):
    """Bytes of a row that goes to one owner only. In a backward call they are half as many if the owner keeps x."""
    if job[words.MODE] != codes.MODE_BACKWARD or job[words.TAPED] == 0 or not keeps_x(job, owner):
        return job[words.ROW_BYTES]
    return job[words.ROW_BYTES] // 2


@jit
def bytes_to(job, st, peer):
    """Bytes of a row that goes into the stream at a peer.

    In a backward call they are half as many if x is kept by all owners that get rows.
    """
    if job[words.MODE] != codes.MODE_BACKWARD or job[words.TAPED] == 0:
        return job[words.ROW_BYTES]
    half = False
    for owner in range(st[words.stream_first(job, peer)], st[words.stream_end(job, peer)]):
        if keeps_x(job, owner):
            half = True
        elif st[words.rows_to(job, owner)] != 0:
            return job[words.ROW_BYTES]
    return job[words.ROW_BYTES] // 2 if half else job[words.ROW_BYTES]


@jit
def bytes_from(job, source):
    """Bytes of a row that comes from a source."""
    if job[words.MODE] == codes.MODE_BACKWARD and kept_of(job, source) & taped.X:
        return job[words.ROW_BYTES] // 2
    return job[words.ROW_BYTES]


@jit
def possible(job, st, source, nbytes):
    """Whether a source may announce rows of `nbytes` bytes.

    If other ranks of the node read the rows too, rows of a backward call may have either size: with x or without.
    """
    needed = bytes_from(job, source)
    alone = job[words.NODE_END] - job[words.NODE_FIRST] == 1 or st[words.remote(job, source)] == 0
    if nbytes == needed or alone or job[words.MODE] != codes.MODE_BACKWARD:
        return nbytes == needed
    return nbytes == job[words.ROW_BYTES] or nbytes == job[words.ROW_BYTES] // 2


@jit
def number(job, st, part):
    """The number of a part's first row among its source's rows for this rank, in packed order."""
    source, packed = st[words.part_source(part)], st[words.part_first(part)]
    if source != job[words.RANK]:
        r = words.landed(job, source, st[words.part_where(part)])
        packed += st[words.landed_packed(r)] - st[words.landed_row(r)]
    return packed - st[words.first_packed(job, source)]


@jit
def list_places(job, st, c):
    """List what is kept of a command's rows, and where. All threads of the worker do this together."""
    have = words.tape_list(job, c)
    shared = st[words.command_expert(c)] + 1 == job[words.SHARED]
    for i in range(st[words.command_parts(c)]):
        part = words.part(job, c, i)
        source, rows = st[words.part_source(part)], st[words.part_rows(part)]
        kept = 0 if shared else kept_of(job, source)
        by = step(job, kept)
        place = mem.load(words.taped_at(words.taped(job, source))) + by * number(job, st, part)
        for j in range(mem.thread(), rows, mem.threads()):
            st[have + j] = taped.entry(place + by * j, kept)
        have += rows


@jit
def keep_rows(job, st, c):
    """Copy a command's rows to their places, if rows are kept. All threads of the worker do this together."""
    rows, places = words.row_list(c), words.tape_list(job, c)
    for i in range(mem.warp(), st[words.command_rows(c)], mem.warps()):
        entry = st[places + i]
        kept = taped.kept_of(entry)
        if kept & taped.X:
            mem.copy_row(taped.place_of(entry) + step(job, kept & taped.HIDDEN), st[rows + i], job[words.ROW_BYTES])


@jit
def list_of(job, st, c):
    """Address of the list of a command's places on the tape; 0 if its call has no tape."""
    return st.ctypes.data + 8 * words.tape_list(job, c) if job[words.TAPED] != 0 else 0
