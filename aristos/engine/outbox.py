"""What goes to far peers, and comes from them: puts, a flush, and only then the words.

Steps write for a far peer as for a near one, but into its outbox. Whoever holds the wire's lock looks at what has
become ready meanwhile and puts all of it as one batch; a fence is paid per batch and not per tile. A batch is opened
(data is put) and closed later (flush, then the words): the flush of a batch that has had time to land costs nothing,
that of a fresh one waits for the peer's attention. Words are put as {value, complement}; one that arrives is believed
when its halves agree, and handed to the workers by a release store. It refuses to decide what is sent.
"""

from ..primitives import memory as mem
from ..primitives import wire as mpi
from ..primitives.compile import jit
from . import fields as f
from .layout import RECORD_BYTES, RETURN_RECORD_BYTES, WORD, record_to, return_record_to, word_from, word_to
from .lock import acquire, unlock

TURN_NS = 100_000  # a worker that has work looks at the wire no more often
BATCH_NS = 1_000_000  # what is ready waits so long for more while there is work
BATCH_ROWS = 256  # or until so many rows of credit wait
CLOSE_NS = 150_000  # a batch is given so long, and the time its bytes take, before a worker that has work waits for it
BYTES_PER_NS = 2  # at which they are hoped to go
LIFE_NS = 20_000_000  # how often a rank that waits says that it lives
BUSY_LIFE_NS = 200_000_000  # and one that has work, whose batches wait for more to put
CODED_WORD = 16


@jit
def all_posted(job, st):
    """Has every far peer been put what it is owed? Who puts says so in one word, wherever the workers are.

    It adds up tiles, returned tiles and the epoch announced: none of them is ahead of what this rank has done, so the
    sums agree where all three do.
    """
    for p in range(job[f.WORLD]):
        if st[job[f.T_FAR] + p] != 0:
            # an exchange's first half awaits no return
            owed = st[job[f.T_SENT_TILES] + p] + st[job[f.T_RETURNED] + p] + job[f.EPOCH]
            if mem.load_acquire(word_from(job, st, p, f.POSTED)) != owed:
                return False
    return True


@jit
def read_words(job, st, peer):
    """Hand on the words of a far peer that have arrived whole; True if one is new. (Holding the wire's lock.)"""
    anything = False
    for word in range(f.WORDS):
        a = st[job[f.T_FROM] + peer] + job[f.P_CODED] + CODED_WORD * word
        value = mem.load(a)
        here = word_from(job, st, peer, word)
        if mem.load(a + WORD) == ~value and value != mem.load(here):
            mpi.sync(job[f.WIRE])  # after it, what the word tells of is here
            mem.store_release(here, value)
            anything = True
    return anything


@jit
def listen(job, st):
    """Make progress and read what has arrived; True if anything had. (Holding the wire's lock.)"""
    mpi.progress(job[f.WIRE])
    anything = False
    for p in range(job[f.WORLD]):
        if st[job[f.T_FAR] + p] != 0 and read_words(job, st, p):
            anything = True
    return anything


@jit
def announcing(job, st):
    """Is the announcement of this epoch still to be put to somebody?"""
    acquire(job)
    late = False
    if st[f.PHASE] >= f.PHASE_RUN:
        for p in range(job[f.WORLD]):
            late = late or (st[job[f.T_FAR] + p] != 0 and st[job[f.T_OPEN_EPOCH] + p] != job[f.EPOCH])
    unlock(job)
    return late


@jit
def opens(job, st, peer, idle, now):
    """Is it time to open a batch for a far peer? (Under the rank's lock.)"""
    staged = st[job[f.T_SENT_ROWS] + peer] - st[job[f.T_PUT_ROWS] + peer]
    if st[job[f.T_OPEN_EPOCH] + peer] != job[f.EPOCH]:
        if st[f.PHASE] < f.PHASE_RUN:
            return False
        unsent = st[job[f.T_CURSOR] + peer] < st[job[f.T_OFFSET] + job[job[f.SLOT_START] + peer + 1]]
        return idle or staged > 0 or not unsent  # the first block rides along
    if st[job[f.T_ANNOUNCED] + peer] == f.UNANNOUNCED:
        return False  # it may be in user code, where a flush waits for its pacing thread
    tiles = st[job[f.T_RETURNED] + peer] - st[job[f.T_PUT_RETURNED] + peer]
    credit = st[job[f.T_FREED_ROWS] + peer] - st[job[f.T_PUT_CREDIT] + peer]
    age = now - st[job[f.T_PUT_TIME] + peer]
    if idle:
        return staged > 0 or tiles > 0 or credit > 0 or age > LIFE_NS
    if staged > 0 or credit > BATCH_ROWS:
        return True
    return (tiles > 0 and age > BATCH_NS) or age > BUSY_LIFE_NS


@jit
def closes(job, st, peer, idle, now):
    """Is it time to flush the open batch of a far peer?"""
    if idle:
        return True
    return now - st[job[f.T_PUT_TIME] + peer] > CLOSE_NS + st[job[f.T_OPEN_BYTES] + peer] // BYTES_PER_NS


@jit
def put_ring(job, st, peer, part, first, end, places, width):
    """Put entries first..end of one of an outbox's rings, `width` bytes each; returns bytes."""
    return put_from(job, st, peer, st[job[f.T_TO] + peer] + part, part, first, end, places, width)


@jit
def put_from(job, st, peer, here, part, first, end, places, width):
    """The same of a ring that lies anywhere."""
    there = st[job[f.T_AT] + peer] + part
    nbytes = 0
    while first < end:
        place = first % places
        n = min(end - first, places - place)
        mpi.put(job[f.WIRE], peer, there + width * place, here + width * place, width * n)
        nbytes += width * n
        first += n
    return nbytes


@jit
def put_blocks(job, st, peer, tiles, rows):
    """Put rows, index and records of the blocks up to tile `tiles`, pair `rows`; returns bytes."""
    ring = job[f.RING_ROWS]
    tile, pair = st[job[f.T_PUT_TILES] + peer], st[job[f.T_PUT_ROWS] + peer]
    nbytes = put_ring(job, st, peer, job[f.P_INDEX], pair, rows, ring, WORD)
    nbytes += put_ring(job, st, peer, job[f.P_RECORDS], tile, tiles, job[f.SLOTS], RECORD_BYTES)
    block = pair
    while tile < tiles:
        a = record_to(job, st, peer, tile)
        pair += mem.load(a + 8)
        tile += 1
        crossed = mem.load(a + 24)
        if crossed != 0:  # the block's last tile
            here = st[job[f.T_OUT_RING] + peer]
            nbytes += put_from(job, st, peer, here, job[f.P_RING], block, block + crossed, ring, job[f.STRIDE])
            block = pair
    return nbytes


@jit
def put_returns(job, st, peer, tiles):
    """Put the output rows and records of the tiles returned to a far source, up to `tiles`; returns bytes."""
    ring, width = job[f.RING_ROWS], job[f.RETURN_STRIDE]
    first = st[job[f.T_PUT_RETURNED] + peer]
    nbytes = put_ring(job, st, peer, job[f.P_RETURN_RECORDS], first, tiles, job[f.SLOTS], RETURN_RECORD_BYTES)
    tile = first
    while tile < tiles:
        a = return_record_to(job, st, peer, tile)
        packed, rows, pair = mem.load(a), mem.load(a + 8), mem.load(a + 24)
        tile += 1
        if pair == f.UNSTAGED:
            continue
        while tile < tiles:  # tiles that follow each other at both ends go as one
            a = return_record_to(job, st, peer, tile)
            if mem.load(a) != packed + rows or mem.load(a + 24) != pair + rows:
                break
            rows += mem.load(a + 8)
            tile += 1
        while rows > 0:
            place = pair % ring
            n = min(rows, ring - place)
            there = st[job[f.T_RETURNS_AT] + peer] + width * packed
            mpi.put(job[f.WIRE], peer, there, st[job[f.T_STAGE] + peer] + width * place, width * n)
            nbytes += width * n
            pair, packed, rows = pair + n, packed + n, rows - n
    return nbytes


@jit
def put_words(job, st, peer, first, end):
    """Put the words first..end for a far peer, whose values lie coded in this rank's buffer."""
    at = CODED_WORD * first
    there = st[job[f.T_AT] + peer] + job[f.P_CODED] + at
    mpi.put(job[f.WIRE], peer, there, st[job[f.T_CODED] + peer] + at, CODED_WORD * (end - first))


@jit
def encode(job, st, peer, word, value):
    """Write a word into the buffer that MPI puts from."""
    a = st[job[f.T_CODED] + peer] + CODED_WORD * word
    mem.store(a, value)
    mem.store(a + WORD, ~value)


@jit
def open_batch(job, st, peer):
    """Put all data that is ready for a far peer. (Holding the wire's lock.)"""
    acquire(job)
    tiles, rows = st[job[f.T_SENT_TILES] + peer], st[job[f.T_SENT_ROWS] + peer]
    returned, credit = st[job[f.T_RETURNED] + peer], st[job[f.T_FREED_ROWS] + peer]
    first = st[job[f.T_OPEN_EPOCH] + peer] != job[f.EPOCH]
    st[job[f.T_OPEN_EPOCH] + peer] = job[f.EPOCH]
    unlock(job)
    nbytes = 0
    if first:
        step = job[f.P_ANNOUNCE_STEP]
        at = job[f.P_ANNOUNCE] + step * (job[f.EPOCH] % 2)
        mpi.put(job[f.WIRE], peer, st[job[f.T_AT] + peer] + at, st[job[f.T_TO] + peer] + at, step)
        nbytes += step
    nbytes += put_blocks(job, st, peer, tiles, rows)
    nbytes += put_returns(job, st, peer, returned)
    st[job[f.T_OPEN_TILES] + peer] = tiles
    st[job[f.T_OPEN_ROWS] + peer] = rows
    st[job[f.T_OPEN_RETURNED] + peer] = returned
    st[job[f.T_OPEN_CREDIT] + peer] = credit
    st[job[f.T_OPEN_BYTES] + peer] = nbytes
    st[job[f.T_PUT_TIME] + peer] = mem.clock()
    st[job[f.T_OPEN] + peer] = 1


@jit
def close_batch(job, st, peer):
    """Flush what was put to a far peer, then put the words that tell of it. (Holding the wire's lock.)"""
    mpi.flush(job[f.WIRE], peer)  # and with it the words of last time: their buffer may be written again
    tiles, returned = st[job[f.T_OPEN_TILES] + peer], st[job[f.T_OPEN_RETURNED] + peer]
    credit = st[job[f.T_OPEN_CREDIT] + peer]
    acquire(job)
    progress = st[f.PROGRESS]
    unlock(job)
    encode(job, st, peer, f.AT_EPOCH, job[f.EPOCH])
    encode(job, st, peer, f.AT_PHASE, progress)
    encode(job, st, peer, f.ANNOUNCED, st[job[f.T_OPEN_EPOCH] + peer])
    encode(job, st, peer, f.TAIL, tiles)
    encode(job, st, peer, f.CREDIT, credit)
    encode(job, st, peer, f.RETURN_TAIL, returned)
    put_words(job, st, peer, f.AT_EPOCH, f.WORDS)
    acquire(job)
    st[job[f.T_OPEN] + peer] = 0
    st[job[f.T_PUT_TILES] + peer] = tiles
    st[job[f.T_PUT_ROWS] + peer] = st[job[f.T_OPEN_ROWS] + peer]
    st[job[f.T_PUT_RETURNED] + peer] = returned
    st[job[f.T_PUT_CREDIT] + peer] = credit
    unlock(job)
    mem.store_release(word_from(job, st, peer, f.POSTED), tiles + returned + st[job[f.T_OPEN_EPOCH] + peer])


@jit
def charge(job, st, worker, nbytes, nanoseconds):
    """Count a batch in its size class."""
    table = job[f.T_COUNTERS] + f.COUNTER_WORDS * worker + f.N_FAR_MESSAGES
    count_put(st, table, nbytes, nanoseconds)


@jit
def count_put(st, table, nbytes, nanoseconds):
    """Count a put in its size class: up to 256 bytes, 1 KiB, 4 KiB, ... 16 MiB, more."""
    size, limit = 0, 256
    while nbytes > limit and size < f.SIZE_CLASSES - 1:
        size, limit = size + 1, limit * 4
    st[table + 3 * size] += 1
    st[table + 3 * size + 1] += nbytes
    st[table + 3 * size + 2] += nanoseconds


@jit
def serve(job, st, worker, peer, idle):
    """Close the batch of a far peer, open the next, as far as it is time; True if data went."""
    now = mem.clock()
    moved = False
    for _ in range(2):
        if st[job[f.T_OPEN] + peer] != 0 and closes(job, st, peer, idle, now):
            close_batch(job, st, peer)
            if st[job[f.T_OPEN_BYTES] + peer] != 0:  # else words alone: credit, or a sign of life
                moved = True
                charge(job, st, worker, st[job[f.T_OPEN_BYTES] + peer], mem.clock() - st[job[f.T_PUT_TIME] + peer])
        if st[job[f.T_OPEN] + peer] == 0:
            acquire(job)
            due = opens(job, st, peer, idle, now)
            unlock(job)
            if due:
                open_batch(job, st, peer)
                moved = True
    return moved


@jit
def turn(job, st, worker, idle):
    """Look after the wire, if nobody does just now: listen, serve every far peer. True if anything came or went."""
    wire = job[f.WIRE]
    if not idle and mem.clock() - mem.load(wire + 8 * mpi.TURNED) < TURN_NS and not announcing(job, st):
        return False
    if not mpi.take(wire):
        return False
    anything = listen(job, st)
    for i in range(1, job[f.WORLD]):
        p = (job[f.RANK] + i) % job[f.WORLD]
        if st[job[f.T_FAR] + p] != 0 and serve(job, st, worker, p, idle):
            anything = True
    mem.store(wire + 8 * mpi.TURNED, mem.clock())
    mpi.leave(wire)
    return anything


@jit
def last_words(job, st):
    """Put the poison word to every far peer, unflushed: a peer that does not answer must not hold up this rank.

    It has a place of its own, so that no other put of words can land on it. (Holding the wire's lock.)
    """
    for p in range(job[f.WORLD]):
        if st[job[f.T_FAR] + p] != 0:
            encode(job, st, p, f.POISON, mem.load_acquire(word_to(job, st, p, f.POISON)))
            put_words(job, st, p, f.POISON, f.POISON + 1)
