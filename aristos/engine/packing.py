"""Step `pack`: sorts the routed pairs into packed rows, sets the call's tables, and announces the call to every rank.

The packed order is a stable counting sort of the (token, choice) pairs by *slot*: the copies of experts ordered by
(rank that holds them, id). So all rows for one rank, and among them all rows for one expert, are contiguous.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import codes, staying, store, tape, words
from .layout import WORD, announcement_to, word_to
from .streams import end_slot, first_slot, streams


@jit
def tile_rows(rows, most):
    """How many rows the next tile has if `rows` rows are cut into nearly equal tiles of at most `most` rows."""
    tiles = (rows + most - 1) // most
    return (rows + tiles - 1) // tiles


@jit
def begin(job, st):
    """Open a call before any worker runs a step. All threads of one worker do this."""
    thread, threads = mem.thread(), mem.threads()
    if thread == 0:
        st[words.PHASE] = codes.PHASE_ROUTE
        st[words.ROUTE_NEXT] = 0
        st[words.ROUTE_DONE] = 0
        st[words.STATUS] = job[words.STATUS_IN]
        st[words.IDLE_SWEEPS] = 0
        st[words.TARGETS_SET] = 0
    for i in range(words.counter(job, 0, thread), words.counter(job, job[words.ALL_WORKERS], 0), threads):
        st[i] = 0
    for worker in range(thread, job[words.ALL_WORKERS], threads):
        c = words.command(job, worker)
        st[words.command_kind(c)] = codes.ROUTE
        st[words.command_peer(c)] = job[words.RANK]
        st[words.command_run(c)] = 0
        st[words.command_backs(c)] = 0
    for p in range(thread, job[words.WORLD], threads):
        st[words.peer_wait(job, p)] = 0
        st[words.rows_to(job, p)] = 0
        st[words.tiles_to(job, p)] = 0
        st[words.rows_from(job, p)] = 0
        st[words.moved_to(job, p)] = 0


@jit
def drop(job, st, tokens, ids):
    """Set ids of choices beyond the capacity to -2 - id, and clear `count`.

    First choices count before second ones; choices with the same number count in the order of their tokens.
    """
    count, slot_of = words.count(job, 0), words.slot_of(job, 0)
    for j in range(job[words.CHOICES]):
        for i in range(j, tokens * job[words.TOP_K], job[words.TOP_K]):
            if ids[i] >= 0:
                at = count + job[slot_of + ids[i]]
                st[at] += 1
                if st[at] > job[words.CAPACITY]:
                    ids[i] = -2 - ids[i]
    for s in range(job[words.slot_start(job, job[words.WORLD])]):
        st[count + s] = 0


@jit
def sort(job, st, tokens):
    """Sort tokens * k choices by counting. Set offset [slots + 1], token [rows] and position [tokens, k].

    The position is -1 for a choice that is not taken (id -1) or dropped, or whose expert is an identity expert. Rows
    that stay come after the rows of all slots. Slots do not count them, so they are not announced. Returns
    offset[slots], the number of rows that do not stay.
    """
    slots, k = job[words.slot_start(job, job[words.WORLD])], job[words.TOP_K]
    count, offset = words.count(job, 0), words.offset(job, 0)
    token, position, slot_of = words.token(job, 0), words.position(job, 0), words.slot_of(job, 0)
    for s in range(slots):
        st[count + s] = 0
    ids = mem.words(job[words.IDS], tokens * k)
    if job[words.CAPACITY] > 0:
        drop(job, st, tokens, ids)
    for i in range(tokens * k):
        if ids[i] >= 0 and job[slot_of + ids[i]] >= 0:
            st[count + job[slot_of + ids[i]]] += 1
    if job[words.COMPUTED] > job[words.HELD]:
        staying.choose(job, st, tokens)
    rows = 0
    for s in range(slots):
        st[offset + s] = rows
        rows += st[count + s]
        st[count + s] = st[offset + s]
    st[offset + slots] = rows
    end = rows
    for expert in range(job[words.HELD], job[words.COMPUTED]):
        if st[words.staying(job, expert)] > 0:
            st[words.front(job, job[words.RANK], expert)] = end
            st[count + job[words.foreign_slot(words.foreign(job, expert))]] = end
            end += st[words.staying(job, expert)]
    i = 0
    for t in range(tokens):
        for _ in range(k):
            p = -1
            if ids[i] >= 0 and job[slot_of + ids[i]] >= 0:
                s = count + job[slot_of + ids[i]]
                p = st[s]
                st[s] = p + 1
                st[token + p] = t
            st[position + i] = p
            i += 1
    return rows


@jit
def set_blocks(job, st, tokens):
    """Count the rows for which each block of tokens waits. Queue the blocks that wait for no row."""
    k, position = job[words.TOP_K], words.position(job, 0)
    blocks = (tokens + words.TOKEN_BLOCK - 1) // words.TOKEN_BLOCK
    for b in range(mem.thread(), blocks, mem.threads()):
        left = 0
        for i in range(b * words.TOKEN_BLOCK * k, min((b + 1) * words.TOKEN_BLOCK, tokens) * k):
            left += st[position + i] >= 0
        st[words.block_left(job, b)] = left
        st[words.ready(job, b)] = 0
    mem.block_barrier()
    if mem.thread() != 0:
        return
    st[words.ready(job, blocks)] = 0  # the end of the queue
    st[words.BLOCKS_LEFT] = blocks
    ready = 0
    for b in range(blocks):
        if st[words.block_left(job, b)] == 0:
            st[words.ready(job, ready)] = 1 + b
            ready += 1
    st[words.READY_COUNT] = ready
    st[words.READY_NEXT] = 0


@jit
def crosses_once(job, st, p):
    """1 if each token of this call crosses to rank `p` once, in bundles with an index; 0 if each pair has its own row.

    Tokens always cross once to a remote rank. To a local rank they do only where that saves time: if the rows for it
    make several bundles (ONCE_ROWS), and are at least ONCE_SHARE percent of the call's tokens, so that tokens repeat.
    """
    if st[words.remote(job, p)] != 0:
        return 1
    least = max(job[words.ONCE_ROWS], job[words.ONCE_SHARE] * job[words.TOKENS] // 100)
    return 1 if job[words.ONCE_ROWS] != 0 and st[words.rows_to(job, p)] >= least else 0


@jit
def set_streams(job, st):
    """Set the streams of the call: the cursor of each rank stands at its first row, and own rows are pending."""
    me, world, local = job[words.RANK], job[words.WORLD], job[words.HELD]
    offset, start = words.offset(job, 0), words.slot_start(job, 0)
    for p in range(mem.thread(), world, mem.threads()):
        st[words.cursor(job, p)] = st[offset + first_slot(job, st, p)]
        st[words.busy(job, p)] = 0
        st[words.verdict(job, p)] = codes.UNANNOUNCED
        st[words.rows_left(job, p)] = 0
        st[words.exchanges(job, p)] = 0
        st[words.peer_status(job, p)] = codes.OK
        st[words.rows_to(job, p)] = st[offset + job[start + p + 1]] - st[offset + job[start + p]]
        st[words.once_to(job, p)] = crosses_once(job, st, p)
        for i in range(words.source_expert(job, p, 0), words.source_expert(job, p, local)):
            st[words.front_at(job, i)] = 0
            st[words.taken_at(job, i)] = 0
            st[words.pending_at(job, i)] = 0
    for slot in range(mem.thread(), job[start + world], mem.threads()):
        st[words.slot_from(job, slot)] = st[offset + slot]
    mem.block_barrier()
    # rows that stay wait for the announcements of their experts' holders
    for expert in range(local + mem.thread(), job[words.COMPUTED], mem.threads()):
        i = words.source_expert(job, me, expert)
        st[words.taken_at(job, i)] = 0
        st[words.pending_at(job, i)] = 0
        st[words.expert_pending(job, expert)] = 0
    for expert in range(mem.thread(), local, mem.threads()):
        slot = job[start + me] + expert
        count = st[offset + slot + 1] - st[offset + slot]
        i = words.source_expert(job, me, expert)
        st[words.front_at(job, i)] = st[offset + slot]
        st[words.pending_at(job, i)] = count
        st[words.expert_pending(job, expert)] = count
        st[words.expert_remote(job, expert)] = 0
        st[words.expert_coming(job, expert)] = 0
    if mem.thread() != 0:
        return
    own = st[offset + job[start + me + 1]] - st[offset + job[start + me]]
    st[words.first_packed(job, me)] = st[offset + job[start + me]]
    st[words.STORE_NEXT] = 0
    store.admit(job, st, me, own)
    st[words.TAPE_NEXT] = job[words.TAPE_AT]
    tape.admit(job, st, me, own - (job[words.TOKENS] if job[words.SHARED] != 0 else 0))
    st[words.version_of(job, me)] = job[words.VERSION]
    st[words.OWED] = own
    for expert in range(local, job[words.COMPUTED]):
        st[words.OWED] += st[words.staying(job, expert)]
        st[words.rows_to(job, job[words.foreign_owner(words.foreign(job, expert))])] += st[words.staying(job, expert)]
    st[words.rows_from(job, me)] = own
    st[words.UNSENT] = st[offset + job[start + world]] - own
    st[words.UNREAD] = world - 1
    st[words.NEXT_DEST] = (me + 1) % world
    st[words.NEXT_EXPERT] = 0


@jit
def write_announcement(job, st, p):
    """Write the announcement of the stream at rank `p`: how many rows each expert gets, zeros included.

    The announcement of epoch e overwrites the one of epoch e - 2 without waiting, because `p` has read the older one.
    Here is why. This rank is in call e, so its call e - 1 has ended. A call ends only when all its announcements are
    read (`steps.finished`), so this rank has read the announcement of `p` for e - 1. `p` wrote it after its own call
    e - 2 had ended, and therefore after it had read all announcements of call e - 2, also this rank's. The acquire of
    `p`'s ANNOUNCED orders those reads before this write.
    """
    offset, first, end = words.offset(job, 0), first_slot(job, st, p), end_slot(job, st, p)
    a = announcement_to(job, st, p, job[words.EPOCH])
    if mem.thread() == 0:
        mem.store(words.announced_object(a), job[words.OBJECT])
        mem.store(words.announced_mode(a), job[words.MODE])
        mem.store(words.announced_layer(a), job[words.LAYER])
        mem.store(words.announced_row_bytes(a), tape.bytes_to(job, st, p))
        mem.store(words.announced_top_k(a), job[words.TOP_K])
        mem.store(words.announced_scalars(a), job[words.SCALARS])
        mem.store(words.announced_placement(a), job[words.PLACEMENT])
        mem.store(words.announced_status(a), st[words.STATUS])
        mem.store(words.announced_rows(a), st[offset + end] - st[offset + first])
        mem.store(words.announced_first(a), st[offset + first])
        mem.store(words.announced_tokens(a), job[words.TOKENS])
        mem.store(words.announced_version(a), job[words.VERSION])
        mem.store(words.announced_tape(a), job[words.TAPE])
        mem.store(words.announced_once(a), st[words.once_to(job, p)])
    for slot in range(first + mem.thread(), end, mem.threads()):
        count = st[offset + slot + 1] - st[offset + slot]
        mem.store(words.announced_count(a, slot - first), count)


@jit
def announce(job, st):
    """Send an announcement into every stream."""
    me, world = job[words.RANK], job[words.WORLD]
    for i in range(1, world):
        if streams(job, st, (me + i) % world):
            write_announcement(job, st, (me + i) % world)
    mem.block_barrier()
    if mem.thread() == 0:
        for i in range(1, world):
            p = (me + i) % world
            if streams(job, st, p):
                nbytes = WORD * (words.ANNOUNCED_WORDS + end_slot(job, st, p) - first_slot(job, st, p))
                mem.notify(word_to(job, st, p, words.ANNOUNCED), job[words.EPOCH], nbytes)


@jit
def open_streams(job, st, tokens):
    """Set the call's tables and announce the call, once the packed order is known. All threads of one worker do it."""
    set_blocks(job, st, tokens)
    set_streams(job, st)
    mem.block_barrier()
    announce(job, st)


@jit
def execute(job, st):
    """Pack the tokens. A rank that refused its input packs no tokens, and only serves the other ranks."""
    tokens = job[words.TOKENS] if st[words.STATUS] == codes.OK else 0
    sort(job, st, tokens)
    open_streams(job, st, tokens)
