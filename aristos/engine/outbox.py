"""Traffic with remote peers: puts, then a flush, and only then the words.

Steps write for a remote peer as they do for a local one, but into its outbox. The holder of the wire's lock puts all
that has become ready as one batch, so that there is one flush for each batch, not for each tile. A batch is opened (its
data is put) and later closed (flush, then the words). A flush costs nothing if the batch had time to land; right after
the puts, a flush waits until the peer's processor calls MPI. A word is put as {value, complement}. An arriving word is
accepted when the two agree, and then published to the workers by a release store. Other modules decide what is sent.

With two levels, announcements, rows and the words that cover them are put at the rail in the peer's node, and all ranks
of that node read them there. MPI does not promise that a rank sees what was put into a window of another rank, so a
probe tests this before two levels are used (transport/two_levels.py). Nothing else is read in that way: credit,
returns, heartbeats and poison are put at the rank that reads them.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from ..primitives import wire as mpi
from . import bells, codes, scalars, words
from .layout import RECORD_BYTES, RETURN_RECORD_BYTES, WORD, index_from, record_to, return_record_to, word_from, word_to
from .lock import OUTSIDE, acquire, unlock
from .streams import end_slot, has_sums, streams

SERVE_NS = 100_000  # the least time between two calls of `serve_wire` by workers that have work
BATCH_NS = 1_000_000  # while there is work, returned rows wait until the last batch is this old
BATCH_ROWS = 256  # while there is work, credit alone opens a batch only for more rows than this
CLOSE_NS = 150_000  # a worker that has work flushes a batch after this time plus the transfer time of its bytes
LINK_BYTES_PER_NS = 2  # assumed bandwidth of the link, for the transfer time
HEARTBEAT_NS = 20_000_000  # interval of heartbeats to local peers, and to remote ones while this rank is idle
# each call of `look` reads the first TURN_WORDS words of TURN_RANKS remote peers, in turn, even if no bell rings
TURN_RANKS, TURN_WORDS = 1, words.LINE_WORDS
BUSY_HEARTBEAT_NS = 200_000_000  # interval of heartbeats to remote peers while there is work; batches carry them too


@jit
def all_posted(job, st):
    """Whether everything that remote peers must get has been put. The thread that puts keeps a word for each peer.

    The word is the sum of three numbers: how many tiles were put, how many returned tiles were put, and the epoch of
    the last announcement that was put. None of these numbers can be ahead of what this rank has done. So the sums agree
    only if all three numbers do.
    """
    for p in range(job[words.WORLD]):
        if st[words.remote(job, p)] != 0:
            # sent tiles count too, because an exchange's first phase ends before the tiles are returned
            owed = st[words.sent_tiles(job, p)] + st[words.returned(job, p)] + job[words.EPOCH]
            if mem.load_acquire(word_from(job, st, p, words.POSTED)) != owed:
                return False
    return True


@jit
def read_words(job, st, peer, end):
    """Publish those of a remote peer's first `end` words that have arrived whole; True if one is new.

    The caller holds the wire's lock.
    """
    anything = False
    for word in range(end):
        region = st[words.region_from(job, peer)] if word < words.ANNOUNCED else st[words.stream_from(job, peer)]
        a = words.coded_word(region, word)
        value = mem.load(words.coded_value(a))
        here = word_from(job, st, peer, word)
        if mem.load(words.coded_complement(a)) == ~value and value != mem.load(here):
            mpi.sync(job[words.WIRE])  # makes the data that the word covers visible
            mem.store_release(here, value)
            anything = True
    return anything


@jit
def receive(job, st):
    """Let MPI make progress and read the words that have arrived; True if any has.

    The caller holds the wire's lock.
    """
    mpi.progress(job[words.WIRE])
    anything = False
    for p in range(job[words.WORLD]):
        if st[words.remote(job, p)] != 0 and read_words(job, st, p, words.LINE_WORDS):
            anything = True
    return anything


@jit
def look(job, st):
    """Let MPI make progress and, if this rank has bells, read words of peers whose bells ring, and of one peer in turn.

    Without bells it reads the words of all peers. True if any word is new. The caller holds the wire's lock.
    """
    if st[words.BELLS] == 0:
        return receive(job, st)
    mpi.progress(job[words.WIRE])
    anything = False
    if bells.any_rings(job, st):
        for p in range(job[words.WORLD]):
            if st[words.remote(job, p)] != 0 and bells.rings(job, st, p) and answer(job, st, p, words.LINE_WORDS):
                anything = True
    for _ in range(TURN_RANKS):
        if answer(job, st, bells.next_in_turn(job, st), TURN_WORDS):
            anything = True
    return anything


@jit
def answer(job, st, peer, end):
    """Do what `read_words` does, and note the bells of the words that have been accepted."""
    anything = read_words(job, st, peer, end)
    bells.note_answered(job, st, peer)
    return anything


@jit
def announcing(job, st):
    """Whether the announcement of this epoch must still be put to a peer."""
    acquire(job, OUTSIDE)
    late = False
    if st[words.PHASE] >= codes.PHASE_RUN:
        for p in range(job[words.WORLD]):
            late = late or (st[words.remote(job, p)] != 0 and st[words.open_epoch(job, p)] != job[words.EPOCH])
    unlock(job)
    return late


@jit
def opens(job, st, peer, idle, now):
    """Whether it is time to open a batch for a remote peer. The caller holds the rank's lock."""
    staged = st[words.sent_rows(job, peer)] - st[words.put_rows(job, peer)]
    if st[words.open_epoch(job, peer)] != job[words.EPOCH]:
        if st[words.PHASE] < codes.PHASE_RUN:
            return False
        unsent = st[words.cursor(job, peer)] < st[words.offset(job, end_slot(job, st, peer))]
        return idle or staged > 0 or not unsent  # if there will be a bundle, the announcement waits for it
    if st[words.verdict(job, peer)] == codes.UNANNOUNCED:
        return False  # the peer may be in user code, where a flush waits for its progress thread
    tiles = st[words.returned(job, peer)] - st[words.put_returned(job, peer)]
    credit = st[words.freed_rows(job, peer)] - st[words.put_credit(job, peer)]
    age = now - st[words.put_time(job, peer)]
    if idle:
        return staged > 0 or tiles > 0 or credit > 0 or age > HEARTBEAT_NS
    if staged > 0 or credit > BATCH_ROWS:
        return True
    return (tiles > 0 and age > BATCH_NS) or age > BUSY_HEARTBEAT_NS


@jit
def closes(job, st, peer, idle, now):
    """Whether it is time to flush the open batch of a remote peer."""
    if idle:
        return True
    return now - st[words.put_time(job, peer)] > CLOSE_NS + st[words.open_bytes(job, peer)] // LINK_BYTES_PER_NS


@jit
def put_ring(job, st, peer, part, first, end, places, width):
    """Put entries first..end - 1 of a ring from the outbox to a remote peer. Returns how many bytes were put.

    part: the ring's offset in a region. places: how many entries the ring holds. width: bytes of an entry.
    """
    return put_from(job, st, peer, st[words.region_to(job, peer)] + part, part, first, end, places, width)


@jit
def put_from(job, st, peer, here, part, first, end, places, width):
    """Do what `put_ring` does, for a ring at address `here`."""
    there = st[words.put_region(job, peer)] + part
    nbytes = 0
    while first < end:
        place = first % places
        n = min(end - first, places - place)
        mpi.put(job[words.WIRE], peer, there + width * place, here + width * place, width * n)
        nbytes += width * n
        first += n
    return nbytes


@jit
def put_bundles(job, st, peer, tiles, rows):
    """Put rows, index and records of the bundles up to tile `tiles` and pair `rows`. Returns the bytes put."""
    ring = job[words.RING_ROWS]
    tile, pair = st[words.put_tiles(job, peer)], st[words.put_rows(job, peer)]
    nbytes = put_ring(job, st, peer, job[words.P_INDEX], pair, rows, ring, WORD)
    if has_sums(job):
        nbytes += put_ring(job, st, peer, job[words.P_LINKS], pair, rows, ring, WORD)
    nbytes += put_ring(job, st, peer, job[words.P_RECORDS], tile, tiles, job[words.RING_RECORDS], RECORD_BYTES)
    bundle = pair
    while tile < tiles:
        a = record_to(job, st, peer, tile)
        pair += mem.load(words.record_rows(a))
        tile += 1
        crossed = mem.load(words.record_bundle(a))
        if crossed != 0:  # this tile is the bundle's last
            here, end = st[words.out_ring(job, peer)], bundle + crossed
            nbytes += put_from(job, st, peer, here, job[words.P_RING], bundle, end, ring, job[words.STRIDE])
            bundle = pair
    return nbytes


@jit
def put_returns(job, st, peer, tiles):
    """Put output rows and records of tiles returned to a remote source, up to tile `tiles`. Returns the bytes put."""
    first = st[words.put_returned(job, peer)]
    nbytes = put_ring(
        job, st, peer, job[words.P_RETURN_RECORDS], first, tiles, job[words.RING_RECORDS], RETURN_RECORD_BYTES
    )
    tile = first
    while tile < tiles:
        a = return_record_to(job, st, peer, tile)
        packed, rows = mem.load(words.returned_packed(a)), mem.load(words.returned_rows(a))
        pair = mem.load(words.returned_staged(a))
        tile += 1
        if pair == codes.UNSTAGED:
            continue
        if has_sums(job):
            nbytes += put_sums(job, st, peer, packed, pair, rows)
            continue
        while tile < tiles:  # tiles whose rows are consecutive here and at the source go in one put
            a = return_record_to(job, st, peer, tile)
            if mem.load(words.returned_packed(a)) != packed + rows or mem.load(words.returned_staged(a)) != pair + rows:
                break
            rows += mem.load(words.returned_rows(a))
            tile += 1
        nbytes += put_staged(job, st, peer, packed, pair, rows)
    return nbytes


@jit
def put_staged(job, st, peer, packed, pair, rows):
    """Put `rows` consecutive staged rows into a remote source's return rows. Returns the bytes put.

    packed: the packed row of the first one. pair: the number of the first one's pair, which gives its staged place.
    """
    ring, width, nbytes = job[words.RING_ROWS], job[words.RETURN_STRIDE], 0
    while rows > 0:
        place = pair % ring
        n = min(rows, ring - place)
        there = st[words.put_return_rows(job, peer)] + width * packed
        mpi.put(job[words.WIRE], peer, there, st[words.staged(job, peer)] + width * place, width * n)
        nbytes += width * n
        pair, packed, rows = pair + n, packed + n, rows - n
    return nbytes


@jit
def put_sums(job, st, peer, packed, pair, rows):
    """Put only the sums among `rows` consecutive staged rows. Returns the bytes put.

    A staged row is a sum if the owner of its pair adds up the outputs for the token. For the arguments see
    `put_staged`.
    """
    nbytes, i = 0, 0
    while i < rows:
        n = 0
        while i + n < rows and scalars.adds(mem.load(index_from(job, st, peer, pair + i + n))):
            n += 1
        nbytes += put_staged(job, st, peer, packed + i, pair + i, n)
        i += max(1, n)
    return nbytes


@jit
def put_words(job, st, peer, first, end):
    """Put words first..end from the buffer of coded words to a remote peer."""
    there = words.coded_word(st[words.put_region(job, peer)], first)
    here = words.coded_word(st[words.coded(job, peer)], first)
    mpi.put(job[words.WIRE], peer, there, here, 8 * words.CODED_WORDS * (end - first))


@jit
def encode(job, st, peer, word, value):
    """Write a word into the buffer of coded words, from which MPI puts."""
    a = words.coded_word(st[words.coded(job, peer)], word)
    mem.store(words.coded_value(a), value)
    mem.store(words.coded_complement(a), ~value)


@jit
def open_batch(job, st, peer):
    """Put all data that is ready for a remote peer. The caller holds the wire's lock."""
    acquire(job, OUTSIDE)
    tiles, rows = st[words.sent_tiles(job, peer)], st[words.sent_rows(job, peer)]
    returned, credit = st[words.returned(job, peer)], st[words.freed_rows(job, peer)]
    first = st[words.open_epoch(job, peer)] != job[words.EPOCH]
    st[words.open_epoch(job, peer)] = job[words.EPOCH]
    unlock(job)
    nbytes = 0
    if first and streams(job, st, peer):
        step = job[words.P_ANNOUNCE_STEP]
        at = job[words.P_ANNOUNCE] + step * (job[words.EPOCH] % 2)
        mpi.put(job[words.WIRE], peer, st[words.put_region(job, peer)] + at, st[words.region_to(job, peer)] + at, step)
        nbytes += step
    nbytes += put_bundles(job, st, peer, tiles, rows)
    nbytes += put_returns(job, st, peer, returned)
    st[words.open_tiles(job, peer)] = tiles
    st[words.open_rows(job, peer)] = rows
    st[words.open_returned(job, peer)] = returned
    st[words.open_credit(job, peer)] = credit
    st[words.open_bytes(job, peer)] = nbytes
    st[words.put_time(job, peer)] = mem.clock()
    st[words.open(job, peer)] = 1


@jit
def close_batch(job, st, peer):
    """Flush the data that was put to a remote peer, then put the words that cover it.

    The caller holds the wire's lock.
    """
    mpi.flush(job[words.WIRE], peer)  # also flushes the earlier batch's words, so their buffer may be written again
    tiles, returned = st[words.open_tiles(job, peer)], st[words.open_returned(job, peer)]
    credit = st[words.open_credit(job, peer)]
    acquire(job, OUTSIDE)
    progress = st[words.PROGRESS]
    unlock(job)
    encode(job, st, peer, words.AT_EPOCH, job[words.EPOCH])
    encode(job, st, peer, words.AT_PROGRESS, progress)
    encode(job, st, peer, words.ANNOUNCED, st[words.open_epoch(job, peer)])
    encode(job, st, peer, words.TAIL, tiles)
    encode(job, st, peer, words.CREDIT, credit)
    encode(job, st, peer, words.RETURN_TAIL, returned)
    put_words(job, st, peer, words.AT_EPOCH, words.LINE_WORDS if streams(job, st, peer) else words.ANNOUNCED)
    bells.ring(job, st, peer)
    acquire(job, OUTSIDE)
    st[words.open(job, peer)] = 0
    st[words.put_tiles(job, peer)] = tiles
    st[words.put_rows(job, peer)] = st[words.open_rows(job, peer)]
    st[words.put_returned(job, peer)] = returned
    st[words.put_credit(job, peer)] = credit
    unlock(job)
    mem.store_release(word_from(job, st, peer, words.POSTED), tiles + returned + st[words.open_epoch(job, peer)])


@jit
def charge(job, st, worker, nbytes, nanoseconds):
    """Count a batch in its size class."""
    table = words.counter(job, worker, words.N_REMOTE_PUTS)
    count_put(st, table, nbytes, nanoseconds)


@jit
def count_put(st, table, nbytes, nanoseconds):
    """Count a put in its size class: up to 256 bytes, 1 KiB, 4 KiB, ... 16 MiB, or more."""
    size, limit = 0, 256
    while nbytes > limit and size < words.SIZE_CLASSES - 1:
        size, limit = size + 1, limit * 4
    puts = words.puts(table, size)
    st[words.puts_count(puts)] += 1
    st[words.puts_bytes(puts)] += nbytes
    st[words.puts_time(puts)] += nanoseconds


@jit
def next_due(job, st, first, idle):
    """The first remote peer whose batch is to be closed or opened now, as its distance from this rank; WORLD if none.

    The search begins at distance `first`: the rank that comes `first` ranks after this one. The caller holds the
    wire's lock. The clock is read once and the rank's lock is taken once for all peers, because a job can have hundreds
    of peers, and an idle worker calls this all the time.
    """
    now = mem.clock()
    distance, p = first, (job[words.RANK] + first) % job[words.WORLD]
    acquire(job, OUTSIDE)
    while distance < job[words.WORLD]:
        if st[words.remote(job, p)] != 0:
            due = closes(job, st, p, idle, now) if st[words.open(job, p)] != 0 else opens(job, st, p, idle, now)
            if due:
                break
        distance, p = distance + 1, p + 1
        if p == job[words.WORLD]:  # a division for each peer would take half the time of the search
            p = 0
    unlock(job)
    return distance


@jit
def serve(job, st, worker, peer, idle):
    """Close the open batch for a remote peer and open the next one, each if it is time.

    An idle worker also closes the batch that it has just opened. True if a batch was opened, or one with data closed.
    """
    now = mem.clock()
    moved = False
    for _ in range(2):
        if st[words.open(job, peer)] != 0 and closes(job, st, peer, idle, now):
            close_batch(job, st, peer)
            if st[words.open_bytes(job, peer)] != 0:  # 0: the batch has only words: credit or a heartbeat
                moved = True
                charge(job, st, worker, st[words.open_bytes(job, peer)], mem.clock() - st[words.put_time(job, peer)])
        if st[words.open(job, peer)] == 0:
            acquire(job, OUTSIDE)
            due = opens(job, st, peer, idle, now)
            unlock(job)
            if due:
                open_batch(job, st, peer)
                moved = True
    return moved


@jit
def serve_wire(job, st, worker, idle):
    """Receive words and serve every remote peer, unless another worker does so. True if anything came or was put."""
    wire = job[words.WIRE]
    if not idle and mem.clock() - mem.load(wire + 8 * mpi.SERVED) < SERVE_NS and not announcing(job, st):
        return False
    if not mpi.try_lock(wire):
        return False
    anything = look(job, st) if idle else receive(job, st)
    distance = next_due(job, st, 1, idle)
    while distance < job[words.WORLD]:
        if serve(job, st, worker, (job[words.RANK] + distance) % job[words.WORLD], idle):
            anything = True
        distance = next_due(job, st, distance + 1, idle)
    mem.store(wire + 8 * mpi.SERVED, mem.clock())
    mpi.unlock(wire)
    return anything


@jit
def put_poison_words(job, st):
    """Put the poison word to every remote peer, without a flush: a peer that does not answer must not block this rank.

    No other put of words writes to the place of the poison word. The caller holds the wire's lock.
    """
    for p in range(job[words.WORLD]):
        if st[words.remote(job, p)] != 0:
            encode(job, st, p, words.POISON, mem.load_acquire(word_to(job, st, p, words.POISON)))
            put_words(job, st, p, words.POISON, words.POISON + 1)
