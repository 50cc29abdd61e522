"""A lowering of `notify` and `arrived` in which a word arrives as late as on a link of a set latency and bandwidth.

Each ordered pair of ranks has a *link* in shared memory, which its source writes. A notified word is queued there with
the time at which it is due:

    free = max(now, free) + bytes / rate          due = free + alpha

A reader takes what is due, in order, and does not see the rest. No thread copies or sleeps: a notified word costs its
source a clock, and its reader one while something is queued. Data lie in place at once, but no step reads them before
the word that says so. A queue, not one time beside the word: a cumulative word would hide its earlier values, and their
times, behind the last one.

Words of lines that are not in the table are ordinary. The table is private to a process; compiled code finds it by a
symbol, because an address would be kept in the kernel cache.
"""

from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, overload

from ...primitives import memory as mem
from ...primitives.buffers import aligned
from ...primitives.compile import jit

WORD, LINE, LINE_WORDS = 8, 64, 8
MIB = 1 << 20
MOST_LINES = 256

HEAD = 8  # words of the table before its lines: their number
TO, FROM, OUT, IN, SEEN = 0, 1, 2, 3, 4  # of a line: where it is written and read, the links, last value of each word
ENTRY_WORDS = SEEN + LINE_WORDS
TABLE = aligned((HEAD + ENTRY_WORDS * MOST_LINES,), np.int64)
TABLE[:] = 0

# A link: set values, `free`; then of each word its count of puts on a line, of takes on another, and the queue
ALPHA, PER_MIB, CAPACITY, FREE = 0, 8, 16, 24  # ns, ns per MiB; entries of a queue; ns
QUEUES = 32
VALUE, DUE, QUEUED_WORDS = 0, 1, 2

SYMBOL = "aristos_delayed_words"
binding.add_symbol(SYMBOL, TABLE.ctypes.data)


def empty(link: int) -> None:
    """Take all that is queued on a link, at its reader, without looking at it."""
    for which in range(LINE_WORDS):
        queue = _queue(link, which)
        mem.store(queue + LINE, mem.load_acquire(queue))


def link_bytes(capacity: int) -> int:
    """Bytes of a link whose queues hold `capacity` entries each."""
    return WORD * (QUEUES + LINE_WORDS * (16 + QUEUED_WORDS * capacity))


@intrinsic
def _table(typingctx):
    def codegen(context, builder, signature, args):
        name = builder.module.globals.get(SYMBOL) or ir.GlobalVariable(builder.module, ir.IntType(64), SYMBOL)
        return builder.ptrtoint(name, ir.IntType(64))

    return types.int64(), codegen


@jit
def _entry(word, side):
    """The line that has a word, 0 if none has it. side: TO or FROM."""
    table: int = _table()  # type: ignore[call-arg]
    for i in range(mem.load(table)):
        entry = table + WORD * (HEAD + ENTRY_WORDS * i)
        if 0 <= word - mem.load(entry + WORD * side) < WORD * LINE_WORDS:
            return entry
    return 0


@jit
def _queue(link, which):
    """A word's queue: its count of puts, on the next line its count of takes, then the entries."""
    return link + WORD * (QUEUES + which * (16 + QUEUED_WORDS * mem.load(link + WORD * CAPACITY)))


@jit
def due_after(free, now, nbytes, per_mib):
    """When a link that is free from `free` on has sent `nbytes`, in ns."""
    return max(now, free) + nbytes * per_mib // MIB


@jit
def delayed_notify(word, value, nbytes):
    mem.store_release(word, value)
    entry = _entry(word, TO)
    if entry == 0:
        return
    link = mem.load(entry + WORD * OUT)
    queue = _queue(link, (word - mem.load(entry + WORD * TO)) // WORD)
    sent = due_after(mem.load(link + WORD * FREE), mem.clock(), nbytes, mem.load(link + WORD * PER_MIB))
    mem.store(link + WORD * FREE, sent)
    puts = mem.load(queue)
    at = queue + WORD * (16 + QUEUED_WORDS * (puts % mem.load(link + WORD * CAPACITY)))
    mem.store(at + WORD * VALUE, value)
    mem.store(at + WORD * DUE, sent + mem.load(link + WORD * ALPHA))
    mem.store_release(queue, puts + 1)


@jit
def delayed_arrived(word):
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
            at = queue + WORD * (16 + QUEUED_WORDS * (takes % mem.load(link + WORD * CAPACITY)))
            if mem.load(at + WORD * DUE) > now:
                break
            mem.store(seen, mem.load(at + WORD * VALUE))
            takes += 1
        if takes != first:
            mem.store(queue + LINE, takes)
    return mem.load(seen)


def notify(word, value, nbytes):
    """`memory.notify`, later."""


def arrived(word):
    """`memory.arrived`, later."""


overload(notify)(lambda word, value, nbytes: lambda word, value, nbytes: delayed_notify(word, value, nbytes))
overload(arrived)(lambda word: lambda word: delayed_arrived(word))
