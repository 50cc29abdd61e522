"""Streams: what a source puts into one ring, for one rank or, between nodes with two levels, for all ranks of a node.

A stream has one ring of rows, one of records, an index and a tail. All its readers read every record, and each takes
the tiles that are for it. Each reader has a word of its own. The word says up to which row the reader has read every
record, and no longer needs rows, index entries and staged outputs. The credit of the stream is the least of
these words: a sum of freed rows would not say up to which row all rows are free.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import bounds, codes, words
from .layout import WORD, mark_to, ring_of, word_from


@jit
def first_slot(job, st, peer):
    """The first slot whose rows go into the stream at a peer."""
    return job[words.slot_start(job, st[words.stream_first(job, peer)])]


@jit
def end_slot(job, st, peer):
    """The end of the slots whose rows go into the stream at a peer."""
    return job[words.slot_start(job, st[words.stream_end(job, peer)])]


@jit
def streams(job, st, peer):
    """Whether this rank has a stream at a peer."""
    return st[words.stream_first(job, peer)] < st[words.stream_end(job, peer)]


@jit
def freed(job, st, peer):
    """How many rows of the stream at a peer all of its readers have freed."""
    sent = st[words.sent_rows(job, peer)]
    least = sent
    for p in range(st[words.stream_first(job, peer)], st[words.stream_end(job, peer)]):
        rows = mem.arrived(word_from(job, st, p, words.CREDIT))
        if not bounds.credit(job, st, peer, p, rows):
            return sent - ring_of(job, st, peer)  # no space
        st[words.seen_credit(job, p)] = rows
        least = min(least, rows)
    return least


@jit
def slowest(job, st, peer):
    """The reader of the stream at a peer that had freed the fewest rows when this rank last read credit."""
    found = peer
    for p in range(st[words.stream_first(job, peer)], st[words.stream_end(job, peer)]):
        if st[words.seen_credit(job, p)] < st[words.seen_credit(job, found)]:
            found = p
    return found


@jit
def first_reader(job, st, source):
    """The first of the ranks that read the same stream of `source` as this rank."""
    return job[words.NODE_FIRST] if st[words.remote(job, source)] != 0 else job[words.RANK]


@jit
def end_reader(job, st, source):
    """The end of the ranks that read the same stream of `source` as this rank."""
    return job[words.NODE_END] if st[words.remote(job, source)] != 0 else job[words.RANK] + 1


@jit
def has_sums(job):
    """Whether outputs come back from remote nodes as sums: in forward calls of a layer with combine="sums"."""
    return job[words.SUMS] != 0 and job[words.MODE] == codes.MODE_LAYER


@jit
def summed(job, st, source):
    """Whether outputs for a source go back as sums of this node."""
    return has_sums(job) and st[words.remote(job, source)] != 0 and st[words.verdict(job, source)] == codes.SERVE


@jit
def note_staged(job, st, source):
    """Publish to local peers up to which bundle this rank has nothing left to stage for a source. (Under the lock.)"""
    if st[words.remote(job, source)] == 0 or job[words.NODE_END] - job[words.NODE_FIRST] == 1:
        return
    tile, rows = st[words.staged_tiles(job, source)], 0
    end, staged = tile, 0
    while tile < st[words.read_tiles(job, source)]:
        r = words.landed(job, source, tile)
        if st[words.landed_left(r)] > 0:
            break
        rows += st[words.landed_rows(r)]
        tile += 1
        if st[words.landed_last(r)] != 0:
            end, staged = tile, rows
    if staged == 0:
        return
    st[words.staged_tiles(job, source)] = end
    st[words.staged_rows(job, source)] += staged
    for p in range(job[words.NODE_FIRST], job[words.NODE_END]):
        if p != job[words.RANK]:
            mem.notify(mark_to(job, st, p, source), st[words.staged_rows(job, source)], WORD)
