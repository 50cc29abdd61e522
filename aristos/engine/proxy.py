"""The one MPI caller of a rank whose workers are on a card: it knows of their call what lies in memory that both see.

The steps on the card write for a far peer into its outbox, which lies in mapped host memory, and release its words
there. The proxy reads those words as a peer would and counts what they tell of; then `outbox.turn` serves the wire as
it does for workers on a CPU. What arrives is copied to the card once, and only then are its words handed on, through
mapped memory. Both ways are one thing done twice: read words, count records, put what they tell of, flush, say words.

So it has two pairs of a job and a state. (job, st) are the rank's as `outbox.py` knows them, with addresses of the
host. (card, cs) are towards the card, which stands there as a peer: T_TO is where a far peer's region lies in the
window, T_AT its place on the card, T_STAGE and T_RETURNS_AT the same of return rows, T_WORDS the words that are
believed, T_CODED those that the card reads, and the wire's put and flush are the card's copy and the wait for it. It
decides nothing of what is sent, and takes no lock but the wire's.
"""

from ..primitives import memory as mem
from ..primitives import wire as mpi
from ..primitives.compile import jit
from . import fields as f
from .layout import LINE, RETURN_RECORD_BYTES, WORD, announcement_to, record_to, return_record_to, word_from, word_to
from .outbox import all_posted, last_words, listen, put_blocks, put_ring
from .outbox import turn as serve_wire


@jit
def count(job, st, peer, words):
    """Count the tiles, rows and returned tiles that the words at an address tell of, the rows by the tiles' records."""
    tail = mem.load_acquire(words + WORD * f.TAIL)
    for tile in range(st[job[f.T_SENT_TILES] + peer], tail):
        st[job[f.T_SENT_ROWS] + peer] += mem.load(record_to(job, st, peer, tile) + 8)
    st[job[f.T_SENT_TILES] + peer] = tail
    st[job[f.T_RETURNED] + peer] = mem.load_acquire(words + WORD * f.RETURN_TAIL)


# ---- from the card to far peers


@jit
def refresh(job, st, card):
    """Take in what the steps on the card have written for far peers, and which call they are in.

    The epoch comes last: what was counted before is of this call or an earlier one, of which everything was put.
    """
    for p in range(job[f.WORLD]):
        if st[job[f.T_FAR] + p] != 0:
            count(job, st, p, word_to(job, st, p, 0))
            st[job[f.T_FREED_ROWS] + p] = mem.load_acquire(word_to(job, st, p, f.CREDIT))
            st[f.PROGRESS] = mem.load_acquire(word_to(job, st, p, f.AT_PHASE))
    for p in range(job[f.WORLD]):
        if st[job[f.T_FAR] + p] != 0:
            epoch = mem.load_acquire(word_to(job, st, p, f.ANNOUNCED))
            if epoch > job[f.EPOCH]:  # one peer is announced to before another, and all is written before the first
                job[f.EPOCH] = epoch
                row = mem.load(announcement_to(job, st, p, epoch) + WORD * f.A_ROW_BYTES)
                job[f.RETURN_STRIDE] = card[f.RETURN_STRIDE] = (row + LINE - 1) // LINE * LINE
    for p in range(job[f.WORLD]):
        here = mem.load(word_from(job, st, p, f.ANNOUNCED)) >= job[f.EPOCH] if st[job[f.T_FAR] + p] != 0 else False
        st[job[f.T_ANNOUNCED] + p] = f.SERVE if here else f.UNANNOUNCED


@jit
def quiet(job, st):
    """Is no call under way, and all put? Then far peers need no sign of life, and MPI nothing but progress."""
    if job[f.EPOCH] == 0:
        return True
    for p in range(job[f.WORLD]):
        if st[job[f.T_FAR] + p] != 0:
            credit = st[job[f.T_FREED_ROWS] + p] - st[job[f.T_PUT_CREDIT] + p]
            if credit != 0 or st[job[f.T_OPEN] + p] != 0 or st[f.PROGRESS] >= 0:
                return False
    return all_posted(job, st)


@jit
def failed(job, st):
    """Has the card's engine told all far peers that it has failed? Its words come one after another."""
    for p in range(job[f.WORLD]):
        if st[job[f.T_FAR] + p] != 0 and mem.load_acquire(word_to(job, st, p, f.POISON)) == 0:
            return False
    return True


# ---- from far peers to the card


@jit
def card_word(card, cs, peer, word):
    """Address of a word of a far peer as the card reads it."""
    return cs[card[f.T_CODED] + peer] + WORD * word


@jit
def unpoisoned(card, cs, peer):
    """Has a far peer poison that the card has not? It is never taken back: another thread may have written it."""
    said = mem.load(word_from(card, cs, peer, f.POISON)) != 0
    return said and mem.load_acquire(card_word(card, cs, peer, f.POISON)) == 0


@jit
def put_return_rows(card, cs, peer, tiles):
    """Put records and rows of what a far owner has returned, up to `tiles`, to where they are combined."""
    first, width = cs[card[f.T_PUT_RETURNED] + peer], card[f.RETURN_STRIDE]
    put_ring(card, cs, peer, card[f.P_RETURN_RECORDS], first, tiles, card[f.SLOTS], RETURN_RECORD_BYTES)
    for tile in range(first, tiles):
        a = return_record_to(card, cs, peer, tile)
        rows, at = mem.load(a + 8), width * mem.load(a)
        if mem.load(a + 24) != f.UNSTAGED:  # else it comes without rows
            mpi.put(
                card[f.WIRE], peer, cs[card[f.T_RETURNS_AT] + peer] + at, cs[card[f.T_STAGE] + peer] + at, width * rows
            )  # fmt: skip


@jit
def fetch(card, cs, peer):
    """Begin to copy what new words of a far peer tell of; True if one is new."""
    new = unpoisoned(card, cs, peer)
    for word in range(f.POISON + 1, f.WORDS + 1):
        new = new or mem.load(word_from(card, cs, peer, word)) != mem.load(card_word(card, cs, peer, word))
    if not new:
        return False
    epoch, told = mem.load(word_from(card, cs, peer, f.ANNOUNCED)), mem.load(card_word(card, cs, peer, f.ANNOUNCED))
    step = card[f.P_ANNOUNCE_STEP]
    for e in range(max(told + 1, epoch - 1), epoch + 1):  # a peer without rows from here may be a call ahead
        at = card[f.P_ANNOUNCE] + step * (e % 2)
        mpi.put(card[f.WIRE], peer, cs[card[f.T_AT] + peer] + at, cs[card[f.T_TO] + peer] + at, step)
    count(card, cs, peer, word_from(card, cs, peer, 0))
    tiles, rows = cs[card[f.T_SENT_TILES] + peer], cs[card[f.T_SENT_ROWS] + peer]
    put_blocks(card, cs, peer, tiles, rows)
    put_return_rows(card, cs, peer, cs[card[f.T_RETURNED] + peer])
    cs[card[f.T_PUT_TILES] + peer], cs[card[f.T_PUT_ROWS] + peer] = tiles, rows
    cs[card[f.T_PUT_RETURNED] + peer] = cs[card[f.T_RETURNED] + peer]
    return True


@jit
def hand_on(card, cs, peer):
    """What new words of a far peer tell of is on the card once the copies have ended: only then are they the card's.

    False if a copy has failed: then they are not.
    """
    mpi.flush(card[f.WIRE], peer)
    if mem.load(card[f.WIRE] + WORD * mpi.ERROR) != 0:
        return False
    for word in range(f.POISON + 1, f.WORDS + 1):
        mem.store_release(card_word(card, cs, peer, word), mem.load(word_from(card, cs, peer, word)))
    if unpoisoned(card, cs, peer):
        mem.store_release(card_word(card, cs, peer, f.POISON), mem.load(word_from(card, cs, peer, f.POISON)))
    return True


@jit
def deliver(card, cs):
    """Bring what has arrived to the card: copies for all peers at once, then their words. How many had; -1: failed."""
    came = 0
    for p in range(card[f.WORLD]):
        cs[card[f.T_OPEN] + p] = cs[card[f.T_FAR] + p] != 0 and fetch(card, cs, p)
    for p in range(card[f.WORLD]):
        if cs[card[f.T_OPEN] + p] != 0:
            if not hand_on(card, cs, p):
                return -1
            came += 1
    return came


# ---- both


@jit
def turn(job, st, card, cs):
    """Look both ways once. How much has moved; -1 if a copy has failed, or this rank's engine: then it is over."""
    refresh(job, st, card)
    moved = 0
    if quiet(job, st):
        if mpi.take(job[f.WIRE]):
            moved += listen(job, st)
            mpi.leave(job[f.WIRE])
    else:
        moved += serve_wire(job, st, 0, True)
    came = deliver(card, cs)
    if came < 0 or failed(job, st):
        return -1
    return moved + came


@jit
def tell(job, st):
    """Put the poison that the card's engine, or whoever runs the proxy, has written for far peers. True if it could."""
    if not mpi.take(job[f.WIRE]):
        return False
    last_words(job, st)
    listen(job, st)
    mpi.leave(job[f.WIRE])
    return True


@jit
def poison(job, st, card, cs, told):
    """The proxy fails: far peers will be told, and the card reads it as if each of them had said so."""
    for p in range(job[f.WORLD]):
        if st[job[f.T_FAR] + p] != 0:
            if mem.load_acquire(word_to(job, st, p, f.POISON)) == 0:
                mem.store_release(word_to(job, st, p, f.POISON), told)
            mem.store_release(card_word(card, cs, p, f.POISON), told)
