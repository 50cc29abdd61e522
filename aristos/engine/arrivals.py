"""Functions that read what peers write: announcements, tile records, return records, poison.

Functions that change tables run under the rank's lock, and change only this rank's tables. `returns.py` sends credit
and return records to peers.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import bounds, codes, store, tape, words
from .layout import announcement_from, record_from, return_record_from, word_from
from .lock import OUTSIDE, acquire, unlock
from .poison import failure_of
from .returns import finish_record, free_rows, note_back, returns_due
from .store import computes
from .streams import end_reader, end_slot, first_reader, note_staged, slowest


@jit
def own_part(job, st, source, a, rows):
    """(an announcement's rows for this rank, its rows for earlier readers, whether its counts are possible)."""
    first, end = first_reader(job, st, source), end_reader(job, st, source)
    if end - first == 1:
        return rows, 0, True
    start = job[words.slot_start(job, first)]
    low, high = job[words.slot_start(job, job[words.RANK])], job[words.slot_start(job, job[words.RANK] + 1)]
    mine, before, left = 0, 0, rows
    for slot in range(start, job[words.slot_start(job, end)]):
        count = mem.load(words.announced_count(a, slot - start))
        if not bounds.within(st, source, bounds.ANNOUNCED_COUNT, count, 0, left):
            return rows, 0, False
        left -= count
        if slot < low:
            before += count
        elif slot < high:
            mine += count
    return mine, before, bounds.within(st, source, bounds.ANNOUNCED_SUM, rows - left, rows, rows)


@jit
def read_announcement(job, st, source):
    """Read `source`'s announcement of this epoch; False if it has not come yet, or has values that no rank writes."""
    epoch = job[words.EPOCH]
    announced = mem.arrived(word_from(job, st, source, words.ANNOUNCED))
    if announced < epoch or not bounds.within(st, source, bounds.ANNOUNCED, announced, epoch, epoch + 1):
        return False
    a = announcement_from(job, st, source, epoch)
    rows, first = mem.load(words.announced_rows(a)), mem.load(words.announced_first(a))
    tokens, once = mem.load(words.announced_tokens(a)), mem.load(words.announced_once(a))
    status = mem.load(words.announced_status(a))
    if not bounds.announcement(job, st, source, rows, status, first, tokens, once):
        return False
    same = (
        mem.load(words.announced_object(a)) == job[words.OBJECT]
        and mem.load(words.announced_mode(a)) == job[words.MODE]
        and mem.load(words.announced_layer(a)) == job[words.LAYER]
        and tape.possible(job, st, source, mem.load(words.announced_row_bytes(a)))
        and mem.load(words.announced_top_k(a)) == job[words.TOP_K]
        and mem.load(words.announced_scalars(a)) == job[words.SCALARS]
        and mem.load(words.announced_tape(a)) == job[words.TAPE]
    )
    placed = mem.load(words.announced_placement(a)) == job[words.PLACEMENT]
    mine, before = rows, 0  # rows for this rank and for ranks before it; unknown if the source made another call
    if same and placed:
        mine, before, fits = own_part(job, st, source, a, rows)
        if not fits:
            return False
        same = mine == 0 or mem.load(words.announced_row_bytes(a)) >= tape.bytes_from(job, source)
    if status == codes.OK and not same:  # a refusal is recorded even if other fields differ
        status = codes.MISMATCH
    elif status == codes.OK and not placed:
        status = codes.MISPLACED
    st[words.peer_status(job, source)] = status
    st[words.version_of(job, source)] = mem.load(words.announced_version(a))
    st[words.exchanges(job, source)] = mem.load(words.announced_mode(a)) == codes.MODE_DISPATCH
    # a rank computes nothing without loaded weights, nor in a backward call that it refuses: then it has no store
    able = job[words.LOADED] != 0 or not computes(job)
    able = same and placed and able and store.admit(job, st, source, mine)
    st[words.verdict(job, source)] = codes.SERVE if able else codes.SKIP
    st[words.rows_left(job, source)] = rows
    st[words.rows_from(job, source)] = mine
    st[words.first_packed(job, source)] = first + before
    st[words.tokens_of(job, source)] = 1 + tokens
    st[words.once_from(job, source)] = once
    st[words.OWED] += rows
    st[words.UNREAD] -= 1
    if able:
        tape.admit(job, st, source, mine)
        end = st[words.read_rows(job, source)]
        if once != 0:
            end += rows  # bundles mix experts, so the last bundle may hold rows of every expert
        left = mine
        own = job[words.slot_start(job, job[words.RANK])] - job[words.slot_start(job, first_reader(job, st, source))]
        for expert in range(job[words.HELD]):
            count = mem.load(words.announced_count(a, own + expert))
            if not bounds.within(st, source, bounds.ANNOUNCED_COUNT, count, 0, left):
                return False
            left -= count
            if once == 0:
                end += count
            i = words.source_expert(job, source, expert)
            st[words.rows_for_at(job, i)] = count
            st[words.source_end_at(job, i)] = end
            st[words.expert_coming(job, expert)] += count
        if not bounds.within(st, source, bounds.ANNOUNCED_SUM, mine - left, mine, mine):
            return False
    admit_staying(job, st, source)
    return True


@jit
def admit_staying(job, st, owner):
    """Let the rows that stay here for experts of `owner` run. It has announced this epoch, so it loads no weights now.

    The rows run even if `owner` makes another call or refuses its input, although this call then has no result.
    """
    me = job[words.RANK]
    for expert in range(job[words.HELD], job[words.COMPUTED]):
        if job[words.foreign_owner(words.foreign(job, expert))] == owner:
            st[words.pending(job, me, expert)] = st[words.staying(job, expert)]
            st[words.expert_pending(job, expert)] = st[words.staying(job, expert)]


@jit
def read_record(job, st, source):
    """Read the next tile record of `source`; False if it has values that no rank writes.

    The tile's rows become pending. If the source is skipped, they go back uncomputed. If the tile is for another reader
    of the stream, this rank needs nothing of it.
    """
    tile = st[words.read_tiles(job, source)]
    a = record_from(job, st, source, tile)
    expert, rows = mem.load(words.record_expert(a)), mem.load(words.record_rows(a))
    packed, bundle = mem.load(words.record_packed(a)), mem.load(words.record_bundle(a))
    owner = mem.load(words.record_owner(a))
    if not bounds.record(job, st, source, expert, rows, packed, bundle, owner):
        return False
    r = words.landed(job, source, tile)
    st[words.landed_row(r)] = st[words.read_rows(job, source)]
    st[words.landed_rows(r)] = rows
    st[words.landed_packed(r)] = packed
    st[words.landed_left(r)] = rows
    st[words.landed_last(r)] = bundle
    st[words.read_tiles(job, source)] = tile + 1
    st[words.read_rows(job, source)] += rows
    st[words.rows_left(job, source)] -= rows
    if owner != job[words.RANK]:
        st[words.landed_left(r)] = 0
        st[words.OWED] -= rows
        if bundle != 0:
            note_staged(job, st, source)
            free_rows(job, st, source)
        return True
    if st[words.verdict(job, source)] == codes.SKIP:
        finish_record(job, st, source, tile, rows)
        return True
    i = words.source_expert(job, source, expert)
    if st[words.pending_at(job, i)] == 0:
        st[words.front_at(job, i)] = tile
    else:  # in bundles the tiles of one expert are not consecutive, so they are chained
        before = words.landed(job, source, st[words.latest_at(job, i)])
        st[words.landed_next(before)] = tile
    st[words.latest_at(job, i)] = tile
    st[words.pending_at(job, i)] += rows
    st[words.expert_pending(job, expert)] += rows
    st[words.expert_remote(job, expert)] += rows
    st[words.expert_coming(job, expert)] -= rows
    return True


@jit
def read_returns(job, st, worker, owner):
    """Read as many return records of `owner` as the worker's command has space for; True if there was any."""
    c = words.command(job, worker)
    seen = st[words.seen_tiles(job, owner)]
    tail = mem.arrived(word_from(job, st, owner, words.RETURN_TAIL))
    due = returns_due(job, st, owner)
    # an owner may already have added its record of an exchange's second phase; this rank reads it in that phase
    if not bounds.within(st, owner, bounds.RETURN_TAIL, tail, seen, seen + due + 1):
        return False
    tail = min(tail, seen + min(due, words.BACK_MOST - st[words.command_backs(c)]))
    for tile in range(seen, tail):
        a = return_record_from(job, st, owner, tile)
        rows, packed = mem.load(words.returned_rows(a)), mem.load(words.returned_packed(a))
        status, kept = mem.load(words.returned_status(a)), mem.load(words.returned_kept(a))
        if not bounds.returned(job, st, owner, rows, packed, status, kept):
            return False
        note_back(st, c, packed, rows)
        if rows != 0:  # 0: the record of a tile of an exchange, perhaps of an exchange that ended before this call
            tape.note(job, owner, kept)
        if status != codes.OK:
            st[words.peer_status(job, owner)] = status
    st[words.seen_tiles(job, owner)] = tail
    return tail != seen


@jit
def absorb(job, st, worker):
    """Read what has arrived from all peers; True if anything has."""
    me, world = job[words.RANK], job[words.WORLD]
    anything = False
    for i in range(1, world):
        p = (me + i) % world
        if st[words.verdict(job, p)] == codes.UNANNOUNCED and read_announcement(job, st, p):
            anything = True
        # rows of the next call may have landed too, so read no more than this call's announcement covers
        if st[words.rows_left(job, p)] > 0:
            tail = mem.arrived(word_from(job, st, p, words.TAIL))
            fits = bounds.tail(job, st, p, tail)
            while fits and st[words.rows_left(job, p)] > 0 and st[words.read_tiles(job, p)] < tail:
                fits = read_record(job, st, p)
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
    """The peer for which this rank waits.

    First comes a local peer that owes outputs for sums, because sources and owners may wait for these sums. Then comes
    a source that owes its announcement or rows, then an owner. If no peer owes anything, it is this rank itself.
    """
    me, world = job[words.RANK], job[words.WORLD]
    if st[words.UNSUMMED] != 0 and st[words.LATE_OWNER] != me:
        return st[words.LATE_OWNER]
    for i in range(1, world):
        p = (me + i) % world
        if st[words.verdict(job, p)] == codes.UNANNOUNCED or st[words.rows_left(job, p)] > 0:
            return p
    for i in range(1, world):
        p = (me + i) % world
        if returns_due(job, st, p) > 0:
            return p
        if st[words.cursor(job, p)] < st[words.offset(job, end_slot(job, st, p))]:
            return slowest(job, st, p)
    return me


@jit
def standing(job, st):
    """(awaited peer, this rank's progress, what the awaited peer owes), for timeouts and their messages.

    What the peer owes is (verdict, rows_left, read_tiles, seen_tiles, sent_tiles).
    """
    acquire(job, OUTSIDE)
    peer = job[words.RANK]
    announced, left, read, seen, sent = 0, 0, 0, 0, 0
    if st[words.PHASE] >= codes.PHASE_RUN:  # earlier, a worker may still be filling the tables
        peer = awaited(job, st)
        announced, left = st[words.verdict(job, peer)], st[words.rows_left(job, peer)]
        read, seen = st[words.read_tiles(job, peer)], st[words.seen_tiles(job, peer)]
        sent = st[words.sent_tiles(job, peer)]
    done = st[words.PROGRESS]
    unlock(job)
    return peer, done, (announced, left, read, seen, sent)
