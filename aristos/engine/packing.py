"""Step `pack`: routing becomes packed rows, the tables of the call are set, and every rank is told what comes.

The packed order is a stable counting sort of the (token, choice) pairs by *slot*: copies of experts ordered by (rank
that holds them, id), so that all rows for one rank, and in it for one expert, lie together.
"""

from ..primitives import memory as mem
from ..primitives.compile import jit
from . import fields as f
from .layout import announcement_to, word_to


@jit
def tile_rows(rows, most):
    """Rows of the next tile of a run of `rows`: the run is cut into tiles of nearly equal size, at most `most` each."""
    tiles = (rows + most - 1) // most
    return (rows + tiles - 1) // tiles


@jit
def begin(job, st):
    """Open a call: before any worker runs, by one of them."""
    thread, threads = mem.thread(), mem.threads()
    if thread == 0:
        st[f.PHASE] = f.PHASE_ROUTE
        st[f.ROUTE_NEXT] = 0
        st[f.ROUTE_DONE] = 0
        st[f.STATUS] = job[f.STATUS_IN]
        st[f.IDLE_SWEEPS] = 0
        st[f.TARGETS_SET] = 0
    for i in range(job[f.T_COUNTERS] + thread, job[f.T_COUNTERS] + job[f.ALL_WORKERS] * f.COUNTER_WORDS, threads):
        st[i] = 0
    for worker in range(thread, job[f.ALL_WORKERS], threads):
        c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
        st[c + f.C_KIND] = f.ROUTE
        st[c + f.C_PEER] = job[f.RANK]
        st[c + f.C_RUN] = 0
        st[c + f.C_BACK] = 0
    for p in range(thread, job[f.WORLD], threads):
        st[job[f.T_PEER_WAIT] + p] = 0
        st[job[f.T_ROWS_TO] + p] = 0
        st[job[f.T_TILES_TO] + p] = 0
        st[job[f.T_ROWS_FROM] + p] = 0
        st[job[f.T_MOVED_TO] + p] = 0


@jit
def sort(job, st, tokens):
    """Counting sort of tokens * k choices; sets OFFSET [slots + 1], TOKEN [rows], POSITION [tokens, k]; gives rows."""
    slots, k = job[job[f.SLOT_START] + job[f.WORLD]], job[f.TOP_K]
    count, offset = job[f.T_COUNT], job[f.T_OFFSET]
    token, position, slot_of = job[f.T_TOKEN], job[f.T_POSITION], job[f.SLOT_OF]
    for s in range(slots):
        st[count + s] = 0
    ids = mem.words(job[f.IDS], tokens * k)
    for i in range(tokens * k):
        if ids[i] >= 0:
            st[count + job[slot_of + ids[i]]] += 1
    rows = 0
    for s in range(slots):
        st[offset + s] = rows
        rows += st[count + s]
        st[count + s] = st[offset + s]
    st[offset + slots] = rows
    i = 0
    for t in range(tokens):
        for _ in range(k):
            p = -1
            if ids[i] >= 0:
                s = count + job[slot_of + ids[i]]
                p = st[s]
                st[s] = p + 1
                st[token + p] = t
            st[position + i] = p
            i += 1
    return rows


@jit
def set_blocks(job, st, tokens):
    """Count the rows each block of tokens waits for; the queue of blocks to combine holds those that wait for none."""
    k, position = job[f.TOP_K], job[f.T_POSITION]
    blocks = (tokens + f.TOKEN_BLOCK - 1) // f.TOKEN_BLOCK
    for b in range(mem.thread(), blocks, mem.threads()):
        left = 0
        for i in range(b * f.TOKEN_BLOCK * k, min((b + 1) * f.TOKEN_BLOCK, tokens) * k):
            left += st[position + i] >= 0
        st[job[f.T_BLOCK_LEFT] + b] = left
        st[job[f.T_READY] + b] = 0
    mem.block_barrier()
    if mem.thread() != 0:
        return
    st[job[f.T_READY] + blocks] = 0  # nothing ever is behind the last one
    st[f.BLOCKS_LEFT] = blocks
    ready = 0
    for b in range(blocks):
        if st[job[f.T_BLOCK_LEFT] + b] == 0:
            st[job[f.T_READY] + ready] = 1 + b
            ready += 1
    st[f.READY_COUNT] = ready
    st[f.READY_NEXT] = 0


@jit
def set_streams(job, st, rows):
    """Cursors to every rank, this rank's own rows as pending, nothing known of the others."""
    me, world, local = job[f.RANK], job[f.WORLD], job[f.LOCAL]
    offset, start = job[f.T_OFFSET], job[f.SLOT_START]
    for p in range(mem.thread(), world, mem.threads()):
        st[job[f.T_CURSOR] + p] = st[offset + job[start + p]]
        st[job[f.T_BUSY] + p] = 0
        st[job[f.T_ANNOUNCED] + p] = f.UNANNOUNCED
        st[job[f.T_LEFT] + p] = 0
        st[job[f.T_EXCHANGES] + p] = 0
        st[job[f.T_STATUS] + p] = f.OK
        st[job[f.T_ROWS_TO] + p] = st[offset + job[start + p + 1]] - st[offset + job[start + p]]
        for i in range(p * job[f.MAX_LOCAL], p * job[f.MAX_LOCAL] + local):
            st[job[f.T_NEXT] + i] = 0
            st[job[f.T_TAKEN] + i] = 0
            st[job[f.T_PENDING] + i] = 0
    if job[f.FAR] != 0:
        for slot in range(mem.thread(), job[start + world], mem.threads()):
            st[job[f.T_SLOT_FROM] + slot] = st[offset + slot]
    mem.block_barrier()
    for expert in range(mem.thread(), local, mem.threads()):
        slot = job[start + me] + expert
        count = st[offset + slot + 1] - st[offset + slot]
        i = me * job[f.MAX_LOCAL] + expert
        st[job[f.T_NEXT] + i] = st[offset + slot]
        st[job[f.T_PENDING] + i] = count
        st[job[f.T_EXPERT_PENDING] + expert] = count
        st[job[f.T_EXPERT_REMOTE] + expert] = 0
        st[job[f.T_EXPERT_COMING] + expert] = 0
    if mem.thread() != 0:
        return
    own = st[offset + job[start + me + 1]] - st[offset + job[start + me]]
    st[job[f.T_FIRST] + me] = st[offset + job[start + me]]
    st[f.OWED] = own
    st[job[f.T_ROWS_FROM] + me] = own
    st[f.UNSENT] = rows - own
    st[f.UNREAD] = world - 1
    st[f.NEXT_DEST] = (me + 1) % world
    st[f.NEXT_EXPERT] = 0


@jit
def write_announcement(job, st, p):
    """Write for rank `p` how many rows each of its experts gets from here, zeros included."""
    offset, first = job[f.T_OFFSET], job[job[f.SLOT_START] + p]
    a = announcement_to(job, st, p, job[f.EPOCH])
    if mem.thread() == 0:
        mem.store(a + 8 * f.A_OBJECT, job[f.OBJECT])
        mem.store(a + 8 * f.A_LAYER, job[f.LAYER])
        mem.store(a + 8 * f.A_ROW_BYTES, job[f.ROW_BYTES])
        mem.store(a + 8 * f.A_TOP_K, job[f.TOP_K])
        mem.store(a + 8 * f.A_STATUS, st[f.STATUS])
        mem.store(a + 8 * f.A_ROWS, st[job[f.T_ROWS_TO] + p])
        mem.store(a + 8 * f.A_FIRST, st[offset + first])
    for slot in range(first + mem.thread(), job[job[f.SLOT_START] + p + 1], mem.threads()):
        count = st[offset + slot + 1] - st[offset + slot]
        mem.store(a + 8 * (f.ANNOUNCE_WORDS + slot - first), count)


@jit
def announce(job, st):
    """Tell every other rank what it gets."""
    me, world = job[f.RANK], job[f.WORLD]
    for i in range(1, world):
        write_announcement(job, st, (me + i) % world)
    mem.block_barrier()
    if mem.thread() == 0:
        for i in range(1, world):
            mem.store_release(word_to(job, st, (me + i) % world, f.ANNOUNCED), job[f.EPOCH])


@jit
def execute(job, st):
    """Pack; a rank that refused its input packs no token, and serves the others.

    Where the packed order is there already (PACKED), what is left is done by all threads together.
    """
    tokens = job[f.TOKENS] if st[f.STATUS] == f.OK else 0
    if job[f.PACKED] == 0:
        rows = sort(job, st, tokens)
    else:
        rows = st[job[f.T_OFFSET] + job[job[f.SLOT_START] + job[f.WORLD]]]
    set_blocks(job, st, tokens)
    set_streams(job, st, rows)
    mem.block_barrier()
    announce(job, st)
