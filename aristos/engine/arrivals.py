"""What peers wrote is read here, and nowhere else: announcements, records of tiles, records of returned tiles, poison.

All under the rank's lock. Reading changes only this rank's tables; what it frees or returns goes out through
`returns.py`.
"""

from ..primitives import memory as mem
from ..primitives.compile import jit
from . import fields as f
from .layout import announcement_from, record_from, return_record_from, word_from
from .lock import acquire, unlock
from .returns import finish_record, note_back, returns_due


@jit
def read_announcement(job, st, source):
    """Take in `source`'s announcement of this epoch, if it is there."""
    if mem.load_acquire(word_from(job, st, source, f.ANNOUNCED)) < job[f.EPOCH]:
        return False
    a = announcement_from(job, st, source, job[f.EPOCH])
    same = (
        mem.load(a + 8 * f.A_OBJECT) == job[f.OBJECT]
        and mem.load(a + 8 * f.A_LAYER) == job[f.LAYER]
        and mem.load(a + 8 * f.A_ROW_BYTES) == job[f.ROW_BYTES]
        and mem.load(a + 8 * f.A_TOP_K) == job[f.TOP_K]
    )
    rows = mem.load(a + 8 * f.A_ROWS)
    status = mem.load(a + 8 * f.A_STATUS)  # a rank that refuses says so, whatever it announces beside it
    st[job[f.T_STATUS] + source] = status if same or status != f.OK else f.MISMATCH
    st[job[f.T_EXCHANGES] + source] = mem.load(a + 8 * f.A_LAYER) == f.EXCHANGE
    able = job[f.MODE] != f.MODE_LAYER or job[f.UP] != 0  # a rank that forgot to load its weights computes nothing
    st[job[f.T_ANNOUNCED] + source] = f.SERVE if same and able else f.SKIP
    st[job[f.T_LEFT] + source] = rows
    st[job[f.T_ROWS_FROM] + source] = rows
    st[job[f.T_FIRST] + source] = mem.load(a + 8 * f.A_FIRST)
    st[f.OWED] += rows
    st[f.UNREAD] -= 1
    if same and able:
        end = st[job[f.T_READ_ROWS] + source]
        far = st[job[f.T_FAR] + source] != 0
        if far:
            end += rows  # its blocks hold rows of every expert: the last one may bring some of each
        for expert in range(job[f.LOCAL]):
            count = mem.load(a + 8 * (f.ANNOUNCE_WORDS + expert))
            if not far:
                end += count
            st[job[f.T_SOURCE_END] + source * job[f.MAX_LOCAL] + expert] = end
            st[job[f.T_EXPERT_COMING] + expert] += count
    return True


@jit
def read_record(job, st, source):
    """Take in the next tile of `source`: its rows are pending, or, from a rank in another call, returned unread."""
    tile = st[job[f.T_READ_TILES] + source]
    a = record_from(job, st, source, tile)
    expert, rows = mem.load(a), mem.load(a + 8)
    r = job[f.T_RECORD] + f.RECORD_WORDS * (source * job[f.SLOTS] + tile % job[f.SLOTS])
    st[r + f.R_ROW] = st[job[f.T_READ_ROWS] + source]
    st[r + f.R_ROWS] = rows
    st[r + f.R_PACKED] = mem.load(a + 16)
    st[r + f.R_LEFT] = rows
    st[r + f.R_LAST] = mem.load(a + 24)
    st[job[f.T_READ_TILES] + source] = tile + 1
    st[job[f.T_READ_ROWS] + source] += rows
    st[job[f.T_LEFT] + source] -= rows
    if st[job[f.T_ANNOUNCED] + source] == f.SKIP:
        finish_record(job, st, source, tile, rows)
        return
    i = source * job[f.MAX_LOCAL] + expert
    if st[job[f.T_PENDING] + i] == 0:
        st[job[f.T_NEXT] + i] = tile
    else:  # a far source's tiles of one expert do not follow each other: they are chained
        latest = st[job[f.T_LATEST] + i] % job[f.SLOTS]
        st[job[f.T_RECORD] + f.RECORD_WORDS * (source * job[f.SLOTS] + latest) + f.R_NEXT] = tile
    st[job[f.T_LATEST] + i] = tile
    st[job[f.T_PENDING] + i] += rows
    st[job[f.T_EXPERT_PENDING] + expert] += rows
    st[job[f.T_EXPERT_REMOTE] + expert] += rows
    st[job[f.T_EXPERT_COMING] + expert] -= rows


@jit
def read_returns(job, st, worker, owner):
    """Take in the tiles that `owner` has returned, as many as the worker can note; True if there were any."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    seen = st[job[f.T_SEEN_TILES] + owner]
    tail = mem.load_acquire(word_from(job, st, owner, f.RETURN_TAIL))
    # an owner in the second half of an exchange may be ahead: what it says there is for this rank's second half
    tail = min(tail, seen + min(returns_due(job, st, owner), f.BACK_MOST - st[c + f.C_BACK]))
    for tile in range(seen, tail):
        a = return_record_from(job, st, owner, tile)
        note_back(st, c, mem.load(a), mem.load(a + 8))
        if mem.load(a + 16) != f.OK:
            st[job[f.T_STATUS] + owner] = mem.load(a + 16)
    st[job[f.T_SEEN_TILES] + owner] = tail
    return tail != seen


@jit
def absorb(job, st, worker):
    """Read what has arrived from everybody; True if anything had."""
    me, world = job[f.RANK], job[f.WORLD]
    anything = False
    for i in range(1, world):
        p = (me + i) % world
        if st[job[f.T_ANNOUNCED] + p] == f.UNANNOUNCED and read_announcement(job, st, p):
            anything = True
        # rows of the next call may have landed too: no further than this call's announcement says
        if st[job[f.T_LEFT] + p] > 0:
            tail = mem.load_acquire(word_from(job, st, p, f.TAIL))
            while st[job[f.T_LEFT] + p] > 0 and st[job[f.T_READ_TILES] + p] < tail:
                read_record(job, st, p)
                anything = True
        if returns_due(job, st, p) > 0 and read_returns(job, st, worker, p):
            anything = True
    return anything


@jit
def poisoned(job, st):
    """The rank whose poison lies here, or -1."""
    for p in range(job[f.WORLD]):
        if p != job[f.RANK] and mem.load_acquire(word_from(job, st, p, f.POISON)) != 0:
            return p
    return -1


@jit
def told(job, st, peer):
    """(epoch, origin, cause) of the poison that lies here from `peer`."""
    word = mem.load_acquire(word_from(job, st, peer, f.POISON))
    failed, cause = word >> f.CAUSE_BITS, word & (1 << f.CAUSE_BITS) - 1
    return failed >> f.ORIGIN_BITS, failed & (1 << f.ORIGIN_BITS) - 1, cause


@jit
def awaited(job, st):
    """Whom this rank waits for: a source that owes news or rows, else an owner; itself if nobody."""
    me, world = job[f.RANK], job[f.WORLD]
    for i in range(1, world):
        p = (me + i) % world
        if st[job[f.T_ANNOUNCED] + p] == f.UNANNOUNCED or st[job[f.T_LEFT] + p] > 0:
            return p
    for i in range(1, world):
        p = (me + i) % world
        unsent = st[job[f.T_CURSOR] + p] < st[job[f.T_OFFSET] + job[job[f.SLOT_START] + p + 1]]
        if unsent or returns_due(job, st, p) > 0:
            return p
    return me


@jit
def standing(job, st):
    """(whom this rank waits for, how much it has done, what that one owes), for who is no worker.

    Owed are (T_ANNOUNCED, T_LEFT, T_READ_TILES, T_SEEN_TILES, T_SENT_TILES) of that rank.
    """
    acquire(job)
    peer = job[f.RANK]
    announced, left, read, seen, sent = 0, 0, 0, 0, 0
    if st[f.PHASE] >= f.PHASE_RUN:  # before, somebody may be filling the tables
        peer = awaited(job, st)
        announced, left = st[job[f.T_ANNOUNCED] + peer], st[job[f.T_LEFT] + peer]
        read, seen = st[job[f.T_READ_TILES] + peer], st[job[f.T_SEEN_TILES] + peer]
        sent = st[job[f.T_SENT_TILES] + peer]
    done = st[f.PROGRESS]
    unlock(job)
    return peer, done, (announced, left, read, seen, sent)
