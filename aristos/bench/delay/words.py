"""A lowering of `notify` and `arrived` in which a word arrives as late as on a link of a set latency and bandwidth.

Each ordered pair of ranks has a *link* in shared memory, which the source rank writes. A notified word is queued there
with the time at which it is due:

    free = max(now, free) + bytes / rate          due = free + alpha

A reader takes the words that are due, in order, and does not see later ones. No thread copies or sleeps: a notified
word costs its source one reading of the clock, and its reader one for each poll while words are queued. Data is in
place at once, but no step reads data before the word that announces it. A queue is needed, because words are
cumulative: with one due time beside each word, a new value would replace the due times of earlier values.

A table, private to each process, lists the lines whose words are delayed. All other words are ordinary. Compiled code
finds the table by a symbol, because the kernel cache would keep an address.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives.buffers import aligned
from ...primitives.named_words import address_of

WORD, LINE, LINE_WORDS = 8, 64, 8
MIB = 1 << 20
MOST_LINES = 256

HEAD = 8  # words of the table before the entries of its lines; the first word is the number of lines
# words of a line's entry: address where it is written, where it is read, the links out and in, each word's last value
TO, FROM, OUT, IN, SEEN = 0, 1, 2, 3, 4
ENTRY_WORDS = SEEN + LINE_WORDS
TABLE = aligned((HEAD + ENTRY_WORDS * MOST_LINES,), np.int64)
TABLE[:] = 0

# words of a link, each on a line of its own: latency, ns per MiB, entries of a queue, when the link becomes free in ns
ALPHA, PER_MIB, CAPACITY, FREE = 0, 8, 16, 24
QUEUES = 32  # offset of the queues, one for each word of a line
COUNTS = 2 * LINE_WORDS  # words of a queue before its entries: one line each for the counts of puts and of takes
VALUE, DUE, QUEUED_WORDS = 0, 1, 2  # words of an entry

_table = address_of("aristos_delayed_words", TABLE)


def empty(link: int) -> None:
    """Discard all words that are queued on a link. Only the link's reader may call this."""
    for which in range(LINE_WORDS):
        queue = _queue(link, which)
        mem.store(queue + LINE, mem.load_acquire(queue))


def link_bytes(capacity: int) -> int:
    """Bytes of a link whose queues hold `capacity` entries each."""
    return WORD * (QUEUES + LINE_WORDS * (COUNTS + QUEUED_WORDS * capacity))


@jit
def _entry(word, side):
    """Address of the entry for the line that contains a word, 0 if the table has no such line. side: TO or FROM."""
    table: int = _table()
    for i in range(mem.load(table)):
        entry = table + WORD * (HEAD + ENTRY_WORDS * i)
        if 0 <= word - mem.load(entry + WORD * side) < WORD * LINE_WORDS:
            return entry
    return 0


@jit
def _queue(link, which):
    """Address of a word's queue. It holds a count of puts, on the next line a count of takes, then the entries."""
    return link + WORD * (QUEUES + which * (COUNTS + QUEUED_WORDS * mem.load(link + WORD * CAPACITY)))


@jit
def due_after(free, now, nbytes, per_mib):
    """The time at which a link that becomes free at `free` has sent `nbytes`, in ns."""
    return max(now, free) + nbytes * per_mib // MIB


@jit
def delayed_notify(word, value, nbytes):
    """The compiled form of `notify`: queue the word if its line is in the table."""
    mem.store_release(word, value)
    entry = _entry(word, TO)
    if entry == 0:
        return
    link = mem.load(entry + WORD * OUT)
    queue = _queue(link, (word - mem.load(entry + WORD * TO)) // WORD)
    sent = due_after(mem.load(link + WORD * FREE), mem.clock(), nbytes, mem.load(link + WORD * PER_MIB))
    mem.store(link + WORD * FREE, sent)
    puts = mem.load(queue)
    at = queue + WORD * (COUNTS + QUEUED_WORDS * (puts % mem.load(link + WORD * CAPACITY)))
    mem.store(at + WORD * VALUE, value)
    mem.store(at + WORD * DUE, sent + mem.load(link + WORD * ALPHA))
    mem.store_release(queue, puts + 1)


@jit
def delayed_arrived(word):
    """The compiled form of `arrived`: take the due values of the word's queue, and return the last value taken."""
    entry = _entry(word, FROM)
    if entry == 0:
        return mem.load_acquire(word)
    which = (word - mem.load(entry + WORD * FROM)) // WORD
    link, seen = mem.load(entry + WORD * IN), entry + WORD * (SEEN + which)
    queue = _queue(link, which)
    takes, puts = mem.load(queue + LINE), mem.load_acquire(queue)
    if takes != puts:
        now, first = mem.clock(), takes
        while takes < puts:
            at = queue + WORD * (COUNTS + QUEUED_WORDS * (takes % mem.load(link + WORD * CAPACITY)))
            if mem.load(at + WORD * DUE) > now:
                break
            mem.store(seen, mem.load(at + WORD * VALUE))
            takes += 1
        if takes != first:
            mem.store(queue + LINE, takes)
    return mem.load(seen)


def notify(word, value, nbytes):
    """`memory.notify` with a delay."""


def arrived(word):
    """`memory.arrived` with a delay."""


overload(notify)(lambda word, value, nbytes: lambda word, value, nbytes: delayed_notify(word, value, nbytes))
overload(arrived)(lambda word: lambda word: delayed_arrived(word))
