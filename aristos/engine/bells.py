"""Bells: a byte that says whether a remote peer's words must be read. With two levels an idle worker reads bells first.

A rank has a bell from each remote peer, for the words that the peer puts at this rank, and a bell for each stream of
its node, at the stream's rail. A bell is a digest of its words: their sum modulo MODULUS. The peer puts it right after
the words, without a flush between. For each bell a reader keeps a byte, `answered`: the digest of those words that it
has accepted. If the two bytes differ, the bell rings, and the reader reads the words. So it need not remember which
bell it has acted on, and a bell that lands before its words rings until the words have landed.

Bells order nothing: a reader uses a word only if the word's value and complement agree. A bell is silent by mistake if
it has not landed, or if the sum has changed by a multiple of MODULUS. Therefore each call of `outbox.look` also reads
all words of one peer, in turn (`next_in_turn`). Poison has no bell, and is found in this way.

Eight bells share a word of memory, and each has its own writer. MPI allows puts to different bytes at the same time.
Bells are put from the lowest byte of a word, which is the first one on the little-endian machines that Aristos runs on.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from ..primitives import wire as mpi
from . import words
from .layout import WORD, word_from
from .streams import streams

MODULUS = 251  # prime, because words often change by multiples of powers of two


@jit
def digest(a, step, first, end):
    """The bell of the words first..end, which lie `step` bytes apart. a: address of word 0."""
    total = 0
    for word in range(first, end):
        total += mem.load(a + step * word)
    return total % MODULUS


@jit
def byte_at(a):
    """The byte at address `a`."""
    return mem.load(a - a % WORD) >> 8 * (a % WORD) & 255


@jit
def set_byte(a, value):
    """Write a byte of this rank's own memory. The caller holds the wire's lock."""
    mem.store(a - a % WORD, mem.load(a - a % WORD) ^ (byte_at(a) ^ value) << 8 * (a % WORD))


@jit
def ring(job, st, peer):
    """Put the bells of the words that were just put to a remote peer from the buffer of coded words.

    The bells of the batch before are flushed, so their place may be written. The caller holds the wire's lock.
    """
    if st[words.put_bell(job, peer)] == 0:
        return
    coded, step = st[words.coded(job, peer)], 8 * words.CODED_WORDS
    here = words.coded_word(coded, words.LINE_WORDS)  # the place after the line's words: each half holds a bell
    mem.store(words.coded_value(here), digest(coded, step, words.AT_EPOCH, words.ANNOUNCED))
    mpi.put(job[words.WIRE], peer, st[words.put_bell(job, peer)], words.coded_value(here), 1)
    if streams(job, st, peer):
        mem.store(words.coded_complement(here), digest(coded, step, words.ANNOUNCED, words.LINE_WORDS))
        mpi.put(job[words.WIRE], peer, st[words.put_stream_bell(job, peer)], words.coded_complement(here), 1)


@jit
def any_rings(job, st):
    """Whether a bell for this rank, or of a stream of its node, differs from what this rank has answered."""
    here, answered = st[words.BELLS], st[words.ANSWERED]
    for i in range(st[words.BELL_WORDS]):
        if mem.load(here + WORD * i) != mem.load(answered + WORD * i):
            return True
    answered += WORD * st[words.BELL_WORDS]
    for rail in range(job[words.NODE_FIRST], job[words.NODE_END]):
        here = st[words.stream_bells(job, rail)]
        for i in range(st[words.STREAM_BELL_WORDS]):
            if mem.load(here + WORD * i) != mem.load(answered + WORD * i):
                return True
        answered += WORD * st[words.STREAM_BELL_WORDS]
    return False


@jit
def rings(job, st, peer):
    """Whether a bell of a remote peer differs from what this rank has answered."""
    if byte_at(st[words.BELLS] + peer) != byte_at(st[words.ANSWERED] + peer):
        return True
    return byte_at(st[words.stream_bell(job, peer)]) != byte_at(st[words.stream_answered(job, peer)])


@jit
def note_answered(job, st, peer):
    """Note the digests of a remote peer's words that this rank has accepted. The caller holds the wire's lock."""
    line = word_from(job, st, peer, 0)
    set_byte(st[words.ANSWERED] + peer, digest(line, WORD, words.AT_EPOCH, words.ANNOUNCED))
    set_byte(st[words.stream_answered(job, peer)], digest(line, WORD, words.ANNOUNCED, words.LINE_WORDS))


@jit
def next_in_turn(job, st):
    """The remote peer whose words are read next, whether its bells ring or not. The caller holds the wire's lock."""
    distance = st[words.TURN] % (job[words.WORLD] - 1) + 1
    while st[words.remote(job, (job[words.RANK] + distance) % job[words.WORLD])] == 0:
        distance = distance % (job[words.WORLD] - 1) + 1
    st[words.TURN] = distance
    return (job[words.RANK] + distance) % job[words.WORLD]
