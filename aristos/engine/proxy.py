"""The proxy: the thread that calls MPI for a rank whose workers are on a GPU. It follows their calls in mapped memory.

Steps on the GPU write for a remote peer into its outbox, in mapped host memory, and release the peer's words there. The
proxy reads those words as a peer would, and counts the tiles and rows that they cover. `outbox.serve_wire` then puts
these tiles and rows as it does for a CPU's workers. Data from remote peers is copied to the GPU, and then its words are
published to the GPU through mapped memory. So both directions are alike: read words, count records, put what they
cover, flush, publish words.

Therefore the proxy has two pairs of a job and a state. (job, st) serves remote peers as `outbox.py` does, with host
addresses. (gpu, gs) serves the GPU as if it were a peer. In this second pair, `region_to` is a remote peer's region in
the MPI window, and `put_region` the region's place on the GPU; `staged` and `put_return_rows` are the same two places
for return rows. `line_from` has the words that were accepted, and `coded` the words that the GPU reads. A put by the
second pair's wire is a copy to the GPU, and a flush waits for that copy. The proxy does not decide what is sent, and
takes no lock but the wire's.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from ..primitives import wire as mpi
from . import codes, words
from .layout import LINE, RETURN_RECORD_BYTES, WORD, announcement_to, record_to, return_record_to, word_from, word_to
from .outbox import all_posted, put_bundles, put_poison_words, put_ring, receive, serve_wire


@jit
def count(job, st, peer, line):
    """Count the tiles, rows and returned tiles that a line of words covers.

    The tiles' records say how many rows there are.
    """
    tail = mem.load_acquire(line + WORD * words.TAIL)
    for tile in range(st[words.sent_tiles(job, peer)], tail):
        st[words.sent_rows(job, peer)] += mem.load(words.record_rows(record_to(job, st, peer, tile)))
    st[words.sent_tiles(job, peer)] = tail
    st[words.returned(job, peer)] = mem.load_acquire(line + WORD * words.RETURN_TAIL)


# ---- from the GPU to remote peers


@jit
def refresh(job, st, gpu):
    """Read what steps on the GPU have written for remote peers, and in which call the GPU is.

    The epoch is read last. So everything counted before belongs to this call, or to an earlier call and is already put.
    """
    for p in range(job[words.WORLD]):
        if st[words.remote(job, p)] != 0:
            count(job, st, p, word_to(job, st, p, 0))
            st[words.freed_rows(job, p)] = mem.load_acquire(word_to(job, st, p, words.CREDIT))
            st[words.PROGRESS] = mem.load_acquire(word_to(job, st, p, words.AT_PROGRESS))
    for p in range(job[words.WORLD]):
        if st[words.remote(job, p)] != 0:
            epoch = mem.load_acquire(word_to(job, st, p, words.ANNOUNCED))
            if epoch > job[words.EPOCH]:  # the GPU writes all announcements before it announces to the first peer
                words.fill_start(job, epoch)
                a = announcement_to(job, st, p, epoch)
                row = mem.load(words.announced_row_bytes(a)) + WORD * mem.load(words.announced_scalars(a))
                job[words.RETURN_STRIDE] = gpu[words.RETURN_STRIDE] = (row + LINE - 1) // LINE * LINE
    for p in range(job[words.WORLD]):
        here = (
            mem.load(word_from(job, st, p, words.ANNOUNCED)) >= job[words.EPOCH]
            if st[words.remote(job, p)] != 0
            else False
        )
        st[words.verdict(job, p)] = codes.SERVE if here else codes.UNANNOUNCED


@jit
def between_calls(job, st):
    """Whether no call is under way and everything has been put.

    In this state remote peers need no heartbeat, and MPI needs only progress.
    """
    if job[words.EPOCH] == 0:
        return True
    for p in range(job[words.WORLD]):
        if st[words.remote(job, p)] != 0:
            credit = st[words.freed_rows(job, p)] - st[words.put_credit(job, p)]
            if credit != 0 or st[words.open(job, p)] != 0 or st[words.PROGRESS] >= 0:
                return False
    return all_posted(job, st)


@jit
def failed(job, st):
    """Whether the GPU's engine has poisoned all remote peers. The engine writes their words one after another."""
    for p in range(job[words.WORLD]):
        if st[words.remote(job, p)] != 0 and mem.load_acquire(word_to(job, st, p, words.POISON)) == 0:
            return False
    return True


# ---- from remote peers to the GPU


@jit
def gpu_word(gpu, gs, peer, word):
    """Address of a word of a remote peer as the GPU reads it."""
    return gs[words.coded(gpu, peer)] + WORD * word


@jit
def new_poison(gpu, gs, peer):
    """Whether poison from a remote peer has arrived that the GPU has not got yet.

    Poison is never cleared, so any thread may write it.
    """
    poisoned = mem.load(word_from(gpu, gs, peer, words.POISON)) != 0
    return poisoned and mem.load_acquire(gpu_word(gpu, gs, peer, words.POISON)) == 0


@jit
def put_return_rows(gpu, gs, peer, tiles):
    """Copy the records and rows that a remote owner has returned, up to tile `tiles`, to the GPU."""
    first, width = gs[words.put_returned(gpu, peer)], gpu[words.RETURN_STRIDE]
    put_ring(gpu, gs, peer, gpu[words.P_RETURN_RECORDS], first, tiles, gpu[words.RING_RECORDS], RETURN_RECORD_BYTES)
    for tile in range(first, tiles):
        a = return_record_to(gpu, gs, peer, tile)
        rows, at = mem.load(words.returned_rows(a)), width * mem.load(words.returned_packed(a))
        if mem.load(words.returned_staged(a)) != codes.UNSTAGED:  # UNSTAGED: the record came without rows
            there, here = gs[words.put_return_rows(gpu, peer)] + at, gs[words.staged(gpu, peer)] + at
            mpi.put(gpu[words.WIRE], peer, there, here, width * rows)


@jit
def fetch(gpu, gs, peer):
    """Begin to copy the data that new words of a remote peer cover; True if a word is new."""
    new = new_poison(gpu, gs, peer)
    for word in range(words.POISON + 1, words.LINE_WORDS + 1):
        new = new or mem.load(word_from(gpu, gs, peer, word)) != mem.load(gpu_word(gpu, gs, peer, word))
    if not new:
        return False
    epoch = mem.load(word_from(gpu, gs, peer, words.ANNOUNCED))
    known = mem.load(gpu_word(gpu, gs, peer, words.ANNOUNCED))
    step = gpu[words.P_ANNOUNCE_STEP]
    # a peer that gets no rows from this rank may be one call ahead
    for e in range(max(known + 1, epoch - 1), epoch + 1):
        at = gpu[words.P_ANNOUNCE] + step * (e % 2)
        there, here = gs[words.put_region(gpu, peer)] + at, gs[words.region_to(gpu, peer)] + at
        mpi.put(gpu[words.WIRE], peer, there, here, step)
    count(gpu, gs, peer, word_from(gpu, gs, peer, 0))
    tiles, rows = gs[words.sent_tiles(gpu, peer)], gs[words.sent_rows(gpu, peer)]
    put_bundles(gpu, gs, peer, tiles, rows)
    put_return_rows(gpu, gs, peer, gs[words.returned(gpu, peer)])
    gs[words.put_tiles(gpu, peer)], gs[words.put_rows(gpu, peer)] = tiles, rows
    gs[words.put_returned(gpu, peer)] = gs[words.returned(gpu, peer)]
    return True


@jit
def hand_on(gpu, gs, peer):
    """Wait for the copies, then publish the new words of a remote peer to the GPU.

    False if a copy has failed: then no word is published.
    """
    mpi.flush(gpu[words.WIRE], peer)
    if mem.load(gpu[words.WIRE] + WORD * mpi.ERROR) != 0:
        return False
    for word in range(words.POISON + 1, words.LINE_WORDS + 1):
        mem.store_release(gpu_word(gpu, gs, peer, word), mem.load(word_from(gpu, gs, peer, word)))
    if new_poison(gpu, gs, peer):
        mem.store_release(gpu_word(gpu, gs, peer, words.POISON), mem.load(word_from(gpu, gs, peer, words.POISON)))
    return True


@jit
def deliver(gpu, gs):
    """Copy what has arrived from all peers to the GPU at once, then publish the peers' words.

    Returns how many peers have new words, or -1 if a copy has failed.
    """
    came = 0
    for p in range(gpu[words.WORLD]):
        gs[words.open(gpu, p)] = gs[words.remote(gpu, p)] != 0 and fetch(gpu, gs, p)
    for p in range(gpu[words.WORLD]):
        if gs[words.open(gpu, p)] != 0:
            if not hand_on(gpu, gs, p):
                return -1
            came += 1
    return came


# ---- both directions


@jit
def serve_both(job, st, gpu, gs):
    """Serve both directions once.

    Returns -1 if a copy or this rank's engine has failed; then the proxy ends. Else returns 0 if nothing moved.
    """
    refresh(job, st, gpu)
    moved = 0
    if between_calls(job, st):
        if mpi.try_lock(job[words.WIRE]):
            moved += receive(job, st)
            mpi.unlock(job[words.WIRE])
    else:
        moved += serve_wire(job, st, 0, True)
    came = deliver(gpu, gs)
    if came < 0 or failed(job, st):
        return -1
    return moved + came


@jit
def put_poison(job, st):
    """Put the poison that is written for remote peers. False if another thread holds the wire; then try again."""
    if not mpi.try_lock(job[words.WIRE]):
        return False
    put_poison_words(job, st)
    receive(job, st)
    mpi.unlock(job[words.WIRE])
    return True


@jit
def poison(job, st, gpu, gs, word):
    """Fail: write poison for remote peers, and for the GPU as if each remote peer had written it."""
    for p in range(job[words.WORLD]):
        if st[words.remote(job, p)] != 0:
            if mem.load_acquire(word_to(job, st, p, words.POISON)) == 0:
                mem.store_release(word_to(job, st, p, words.POISON), word)
            mem.store_release(gpu_word(gpu, gs, p, words.POISON), word)
