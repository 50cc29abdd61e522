"""The ring of put descriptors: blocks of a device say what is to be put, and the rank's one MPI caller does it.

It lies in memory that both see (on a GPU mapped host memory). Many post, each when a slot is free; one serves, in the
order of the tickets: it puts the data of all that is there, flushes each peer once, and only then puts the words that
tell of it. So a word must be posted after the data that it tells of. Full means: do something else and try again.
A slot may be filled again once it is TAKEN, the source of a put written again once it has LANDED.
"""

from ..primitives import memory as mem
from ..primitives import wire as mpi
from ..primitives.compile import jit
from . import fields as f
from .layout import LINE, WORD, word_to
from .outbox import encode, put_words

HEAD, TAKEN, LANDED = 0, LINE, 2 * LINE  # tickets given / slots free again / flushed, all up to this number
SLOTS_AT = 3 * LINE
SEQUENCE, PEER, AT, SOURCE, BYTES, TOLD, VALUE = range(0, 7 * WORD, WORD)  # in a slot
NOTHING = -1  # in TOLD: no word


def ring_bytes(slots: int) -> int:
    """Bytes of a ring of so many slots; zeros to begin with."""
    return SLOTS_AT + LINE * slots


@jit
def slot(ring, slots, ticket):
    """Address of a ticket's slot."""
    return ring + SLOTS_AT + LINE * (ticket % slots)


@jit
def post(ring, slots, peer, at, source, nbytes, word, value):
    """Ask for a put of `nbytes` from `source` to byte `at` of a peer's window, then of a word; its ticket, or -1.

    source: address; nbytes may be 0, word NOTHING. -1: the ring is full; nothing is asked.
    """
    while True:
        ticket = mem.load_acquire(ring + HEAD)
        if ticket - mem.load_acquire(ring + TAKEN) >= slots:
            return -1
        if mem.compare_exchange(ring + HEAD, ticket, ticket + 1):  # else another block was faster
            break
    a = slot(ring, slots, ticket)
    mem.store(a + PEER, peer)
    mem.store(a + AT, at)
    mem.store(a + SOURCE, source)
    mem.store(a + BYTES, nbytes)
    mem.store(a + TOLD, word)
    mem.store(a + VALUE, value)
    mem.store_release(a + SEQUENCE, ticket + 1)
    return ticket


@jit
def landed(ring, ticket):
    """Has the put of a ticket been flushed?"""
    return mem.load_acquire(ring + LANDED) > ticket


@jit
def take(job, st, ring, slots, ticket):
    """Put the data of a ticket, note its word; False if nobody has posted it yet."""
    a = slot(ring, slots, ticket)
    if mem.load_acquire(a + SEQUENCE) != ticket + 1:
        return False
    peer, nbytes, word = mem.load(a + PEER), mem.load(a + BYTES), mem.load(a + TOLD)
    if nbytes > 0:
        mpi.put(job[f.WIRE], peer, mem.load(a + AT), mem.load(a + SOURCE), nbytes)
    if word != NOTHING:
        mem.store(word_to(job, st, peer, word), mem.load(a + VALUE))
    st[job[f.T_OPEN] + peer] = 1
    return True


@jit
def serve(job, st, ring, slots, first):
    """Put all that is posted from ticket `first` on, and the words that tell of it; the next ticket. (Wire's lock.)"""
    ticket = first
    while ticket - first < slots and take(job, st, ring, slots, ticket):
        ticket += 1
    if ticket == first:
        return first
    mem.store_release(ring + TAKEN, ticket)
    for peer in range(job[f.WORLD]):
        if st[job[f.T_OPEN] + peer] != 0:
            st[job[f.T_OPEN] + peer] = 0
            mpi.flush(job[f.WIRE], peer)  # with it the words of last time: their buffer may be written again
            for word in range(f.AT_EPOCH, f.WORDS):
                encode(job, st, peer, word, mem.load(word_to(job, st, peer, word)))
            put_words(job, st, peer, f.AT_EPOCH, f.WORDS)
    mem.store_release(ring + LANDED, ticket)
    return ticket
