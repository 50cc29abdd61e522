"""Readers of what peers write: announcements, tile records, return records, poison.

Those that change tables run under the rank's lock. They change this rank's tables alone; credit and return records for
peers go out through `returns.py`.
"""

from ..primitives import memory as mem
from ..primitives.compile import jit
from . import codes, store, tape, words
from .layout import announcement_from, record_from, return_record_from, word_from
from .lock import acquire, unlock
from .poison import failure_of
from .returns import finish_record, note_back, returns_due
from .store import computes


@jit
def read_announcement(job, st, source):
    """Read `source`'s announcement of this epoch; False if it is not there yet."""
    if mem.arrived(word_from(job, st, source, words.ANNOUNCED)) < job[words.EPOCH]:
        return False
    a = announcement_from(job, st, source, job[words.EPOCH])
    same = (
        mem.load(words.announced_object(a)) == job[words.OBJECT]
        and mem.load(words.announced_mode(a)) == job[words.MODE]
        and mem.load(words.announced_layer(a)) == job[words.LAYER]
        and mem.load(words.announced_row_bytes(a)) == tape.bytes_from(job, source)
        and mem.load(words.announced_top_k(a)) == job[words.TOP_K]
        and mem.load(words.announced_scalars(a)) == job[words.SCALARS]
        and mem.load(words.announced_tape(a)) == job[words.TAPE]
    )
    rows = mem.load(words.announced_rows(a))
    status = mem.load(words.announced_status(a))  # a refusal counts, whatever else differs
    if status == codes.OK and not same:
        status = codes.MISMATCH
    elif status == codes.OK and mem.load(words.announced_placement(a)) != job[words.PLACEMENT]:
        status = codes.MISPLACED
    same = same and mem.load(words.announced_placement(a)) == job[words.PLACEMENT]
    st[words.peer_status(job, source)] = status
    st[words.version_of(job, source)] = mem.load(words.announced_version(a))
    st[words.exchanges(job, source)] = mem.load(words.announced_mode(a)) == codes.MODE_DISPATCH
    # a rank that forgot to load its weights computes nothing, nor does one that refused its tape: it has no store
    able = job[words.LOADED] != 0 or not computes(job)
    able = same and able and store.admit(job, st, source, rows)
    st[words.verdict(job, source)] = codes.SERVE if able else codes.SKIP
    st[words.rows_left(job, source)] = rows
    st[words.rows_from(job, source)] = rows
    st[words.first_packed(job, source)] = mem.load(words.announced_first(a))
    st[words.tokens_of(job, source)] = 1 + mem.load(words.announced_tokens(a))
    once = mem.load(words.announced_once(a))
    st[words.once_from(job, source)] = once
    st[words.OWED] += rows
    st[words.UNREAD] -= 1
    if able:
        tape.admit(job, st, source, rows)
        end = st[words.read_rows(job, source)]
        if once != 0:
            end += rows  # blocks mix experts: the last block may hold rows of each
        for expert in range(job[words.HELD]):
            count = mem.load(words.announced_count(a, expert))
            if once == 0:
                end += count
            st[words.source_end(job, source, expert)] = end
            st[words.expert_coming(job, expert)] += count
    admit_staying(job, st, source)
    return True


@jit
def admit_staying(job, st, owner):
    """Admit the rows that stay here for experts of `owner`: it has announced this epoch, so it loads no weights.

    They run even if `owner` makes another call or refuses its input; the call has no result then.
    """
    me = job[words.RANK]
    for expert in range(job[words.HELD], job[words.COMPUTED]):
        if job[words.foreign_owner(words.foreign(job, expert))] == owner:
            st[words.pending(job, me, expert)] = st[words.staying(job, expert)]
            st[words.expert_pending(job, expert)] = st[words.staying(job, expert)]


@jit
def read_record(job, st, source):
    """Read the next tile record of `source`. Its rows become pending, or go back uncomputed from a skipped source."""
    tile = st[words.read_tiles(job, source)]
    a = record_from(job, st, source, tile)
    expert, rows = mem.load(words.record_expert(a)), mem.load(words.record_rows(a))
    r = words.kept(job, source, tile)
    st[words.kept_row(r)] = st[words.read_rows(job, source)]
    st[words.kept_rows(r)] = rows
    st[words.kept_packed(r)] = mem.load(words.record_packed(a))
    st[words.kept_left(r)] = rows
    st[words.kept_last(r)] = mem.load(words.record_block(a))
    st[words.read_tiles(job, source)] = tile + 1
    st[words.read_rows(job, source)] += rows
    st[words.rows_left(job, source)] -= rows
    if st[words.verdict(job, source)] == codes.SKIP:
        finish_record(job, st, source, tile, rows)
        return
    i = words.source_expert(job, source, expert)
    if st[words.pending_at(job, i)] == 0:
        st[words.front_at(job, i)] = tile
    else:  # tiles of one expert are not consecutive where they come in blocks: chain them
        before = words.kept(job, source, st[words.latest_at(job, i)])
        st[words.kept_next(before)] = tile
    st[words.latest_at(job, i)] = tile
    st[words.pending_at(job, i)] += rows
    st[words.expert_pending(job, expert)] += rows
    st[words.expert_remote(job, expert)] += rows
    st[words.expert_coming(job, expert)] -= rows


@jit
def read_returns(job, st, worker, owner):
    """Read the return records of `owner`, as many as the worker's command has space for; True if any."""
    c = words.command(job, worker)
    seen = st[words.seen_tiles(job, owner)]
    tail = mem.arrived(word_from(job, st, owner, words.RETURN_TAIL))
    # an owner may be in the second phase of an exchange already: that record is read in this rank's second phase
    tail = min(tail, seen + min(returns_due(job, st, owner), words.BACK_MOST - st[words.command_back(c)]))
    for tile in range(seen, tail):
        a = return_record_from(job, st, owner, tile)
        rows = mem.load(words.returned_rows(a))
        note_back(st, c, mem.load(words.returned_packed(a)), rows)
        if rows != 0:  # not of a tile that an exchange sent, which may have ended before this call
            tape.note(job, owner, mem.load(words.returned_kept(a)))
        if mem.load(words.returned_status(a)) != codes.OK:
            st[words.peer_status(job, owner)] = mem.load(words.returned_status(a))
    st[words.seen_tiles(job, owner)] = tail
    return tail != seen


@jit
def absorb(job, st, worker):
    """Read what has arrived from all peers; True if anything had."""
    me, world = job[words.RANK], job[words.WORLD]
    anything = False
    for i in range(1, world):
        p = (me + i) % world
        if st[words.verdict(job, p)] == codes.UNANNOUNCED and read_announcement(job, st, p):
            anything = True
        # rows of the next call may have landed too: read no more than this call's announcement covers
        if st[words.rows_left(job, p)] > 0:
            tail = mem.arrived(word_from(job, st, p, words.TAIL))
            while st[words.rows_left(job, p)] > 0 and st[words.read_tiles(job, p)] < tail:
                read_record(job, st, p)
                anything = True
        if returns_due(job, st, p) > 0 and read_returns(job, st, worker, p):
            anything = True
    return anything


@jit
def poisoned(job, st):
    """The first peer from which poison has arrived, or -1."""
    for p in range(job[words.WORLD]):
        if p != job[words.RANK] and mem.load_acquire(word_from(job, st, p, words.POISON)) != 0:
            return p
    return -1


@jit
def read_poison(job, st, peer):
    """(epoch, origin, cause) of the poison from `peer`."""
    return failure_of(mem.load_acquire(word_from(job, st, peer, words.POISON)))


@jit
def awaited(job, st):
    """The peer that this rank waits for: a source that owes its announcement or rows, else an owner; else this rank."""
    me, world = job[words.RANK], job[words.WORLD]
    for i in range(1, world):
        p = (me + i) % world
        if st[words.verdict(job, p)] == codes.UNANNOUNCED or st[words.rows_left(job, p)] > 0:
            return p
    for i in range(1, world):
        p = (me + i) % world
        unsent = st[words.cursor(job, p)] < st[words.offset(job, job[words.slot_start(job, p + 1)])]
        if unsent or returns_due(job, st, p) > 0:
            return p
    return me


@jit
def standing(job, st):
    """Wait status for the host's thread: (awaited peer, this rank's progress, what the peer owes).

    The last is (verdict, rows_left, read_tiles, seen_tiles, sent_tiles) of the peer.
    """
    acquire(job)
    peer = job[words.RANK]
    announced, left, read, seen, sent = 0, 0, 0, 0, 0
    if st[words.PHASE] >= codes.PHASE_RUN:  # before it a worker may be filling the tables
        peer = awaited(job, st)
        announced, left = st[words.verdict(job, peer)], st[words.rows_left(job, peer)]
        read, seen = st[words.read_tiles(job, peer)], st[words.seen_tiles(job, peer)]
        sent = st[words.sent_tiles(job, peer)]
    done = st[words.PROGRESS]
    unlock(job)
    return peer, done, (announced, left, read, seen, sent)
